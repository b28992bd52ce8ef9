//! Partitioned tables whose own replica identity is not that of their partitions, and two relays on one database.

use super::{TABLES, bare, both, findings, members, migrate, names, recorded};
use crate::support::relay::Relay;
use crate::support::world::{World, connect};
use postrider::migrate::{Target, up_saying};
use postrider::preflight::{Finding, Level};

/// Of a table `root` with the partition `leaf`: `changes` part their identities; `remedy` makes them one again.
struct Parted {
    changes: &'static str,
    remedy: &'static str,
}

const PARTED: [Parted; 5] = [
    Parted {
        changes: "alter table root replica identity full",
        remedy: "alter table public.leaf replica identity full",
    },
    Parted {
        changes: "alter table leaf replica identity full",
        remedy: "alter table public.root replica identity full",
    },
    Parted {
        changes: "alter table leaf replica identity using index leaf_code",
        remedy: "alter table public.leaf replica identity default",
    },
    Parted {
        changes: "alter table root replica identity nothing",
        remedy: "alter table public.root replica identity default",
    },
    // The root has no key at all.
    Parted {
        changes: "alter table root drop constraint root_pkey; alter table leaf add primary key (id); alter table root replica identity full",
        remedy: "alter table public.leaf replica identity full",
    },
];

async fn parted(changes: &str) -> World {
    let world =
        bare("parted", "create table root (id int primary key, code int not null) partition by range (id)").await;
    let leaf =
        "create table leaf partition of root for values from (0) to (10); create unique index leaf_code on leaf (code)";
    world.sql.batch_execute(&format!("{leaf}; {changes}")).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_proven_only_if_its_identity_is_that_of_its_partitions() {
    for Parted { changes, remedy } in PARTED {
        let world = parted(changes).await;
        let said = migrate(&world, "public.root").await.unwrap();
        assert_eq!(both(&world).await, (vec![], names(&["public.root"])), "{changes}");
        assert!(said.iter().any(|line| line.contains(remedy)), "{changes}: {said:#?}");
        let config = world.config(&[(TABLES, "public.root")]);
        let found = findings(&config).await;
        assert!(found.iter().any(|finding| format!("{finding:?}").contains(remedy)), "{changes}: {found:#?}");
        assert!(!found.iter().any(|finding| finding.level == Level::Fail), "{changes}: {found:#?}");

        world.sql.batch_execute(remedy).await.unwrap();
        migrate(&world, "public.root").await.unwrap();
        assert_eq!(both(&world).await, (names(&["public.root"]), vec![]), "{changes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_that_part_later_are_reported_until_migrate_moves_the_table() {
    let world = parted("").await;
    migrate(&world, "public.root").await.unwrap();
    assert_eq!(both(&world).await, (names(&["public.root"]), vec![]));
    let config = world.config(&[(TABLES, "public.root")]);
    let wrong = |finding: &Finding| finding.level == Level::Fail && finding.what.contains("old values of public.root");
    assert!(!findings(&config).await.iter().any(wrong));
    world.sql.batch_execute("alter table root replica identity full").await.unwrap();
    let found = findings(&config).await;
    assert!(found.iter().any(wrong), "{found:#?}");
    migrate(&world, "public.root").await.unwrap();
    assert_eq!(both(&world).await, (vec![], names(&["public.root"])));
    assert!(!findings(&config).await.iter().any(wrong));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_another_slot_captures_stays_and_the_line_says_how_to_part_them() {
    let world =
        bare("shared", "create table first (id int primary key); create table second (id int primary key)").await;
    migrate(&world, "public.first").await.unwrap();
    let relay = Relay::carrying(&world, &[(TABLES, "public.first")]).await;
    assert!(recorded(&world).await.contains("; tables of "));
    relay.stop().await;

    let other = world.config(&[(TABLES, "public.second"), ("POSTRIDER_SLOT", "another_slot")]);
    let mut owner = connect(&world.database_url).await;
    let (_, said) = up_saying(&mut owner, &Target::from(&*other)).await.unwrap();
    let line = said.iter().find(|line| line.contains("public.first stays in postrider_tables")).expect("it is said");
    assert!(line.contains(&world.name) && line.contains("source.publication_inserts"), "{line}");
    assert_eq!(members(&world.sql, "postrider_tables").await, names(&["public.first", "public.second"]));
    // The relay whose table it was takes it out as before.
    migrate(&world, "public.second").await.unwrap();
    assert_eq!(members(&world.sql, "postrider_tables").await, names(&["public.second"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_captured_tables_that_is_damaged_halts_the_relay() {
    let world = bare("damaged", "create table first (id int primary key)").await;
    migrate(&world, "public.first").await.unwrap();
    Relay::carrying(&world, &[(TABLES, "public.first")]).await.stop().await;
    let damage = "update postrider.progress set publication_state = replace(publication_state, ' a ', ' ')";
    world.sql.batch_execute(damage).await.unwrap();
    let relay = Relay::start(world.config(&[(TABLES, "public.first")]));
    let halted = relay.until("it halts", |snapshot| snapshot.halt.is_some()).await;
    assert_eq!(halted.halt.unwrap().reason, "publication_changed");
    let problem = halted.problem.unwrap();
    assert!(problem.contains("cannot be read"), "{problem}");
    relay.stop().await;
}
