//! Publications that make the application's writes fail, each with what mends it.

use postrider::preflight::{Finding, Level, Remedy};

use super::{TABLES, bare, findings, migrate, version};

struct Breaking {
    table: &'static str,
    made: &'static str,
    /// How the table is named in the publication.
    member: &'static str,
    write: &'static str,
}

const BREAKING: [Breaking; 11] = [
    Breaking {
        table: "bare",
        made: "create table bare (id int, v text); insert into bare values (1, 'a')",
        member: "bare",
        write: "update bare set v = 'b'",
    },
    Breaking {
        table: "upserted",
        made: "create table upserted (id int unique, v text); insert into upserted values (1, 'a')",
        member: "upserted",
        write: "insert into upserted values (1, 'b') on conflict (id) do update set v = excluded.v",
    },
    Breaking {
        table: "merged",
        made: "create table merged (id int, v text); insert into merged values (1, 'a')",
        member: "merged",
        write: "merge into merged using (values (1)) as s (id) on merged.id = s.id when matched then update set v = 'b'",
    },
    Breaking {
        table: "nothing",
        made: "create table nothing (id int primary key, v text); alter table nothing replica identity nothing; insert into nothing values (1, 'a')",
        member: "nothing",
        write: "delete from nothing",
    },
    Breaking {
        table: "\"Lost Índex\"",
        made: r#"create table "Lost Índex" (id int not null, v text); create unique index lost on "Lost Índex" (id);
                 alter table "Lost Índex" replica identity using index lost; drop index lost; insert into "Lost Índex" values (1, 'a')"#,
        member: "\"Lost Índex\"",
        write: r#"update "Lost Índex" set v = 'b'"#,
    },
    Breaking {
        table: "deferred",
        made: "create table deferred (id int primary key deferrable, v text); insert into deferred values (1, 'a')",
        member: "deferred",
        write: "update deferred set v = 'b'",
    },
    Breaking {
        table: "filtered",
        made: "create table filtered (id int primary key, v text); insert into filtered values (1, 'a')",
        member: "filtered where (v <> 'x')",
        write: "update filtered set v = 'b'",
    },
    Breaking {
        table: "listed",
        made: r#"create table listed (id int primary key, "V a" text, w text); insert into listed values (1, 'a')"#,
        member: r#"listed ("V a", w)"#,
        write: r#"update listed set "V a" = 'b'"#,
    },
    Breaking {
        table: "neither",
        made: "create table neither (id int, v text); insert into neither values (1, 'a')",
        member: "neither (id)",
        write: "update neither set v = 'b'",
    },
    Breaking {
        table: "wholly",
        made: "create table wholly (id int primary key, v text); alter table wholly replica identity full; insert into wholly values (1, 'a')",
        member: "wholly (id, v) where (id > 0)",
        write: "update wholly set v = 'b'",
    },
    Breaking {
        table: "leaf",
        made: "create table root (id int, v text) partition by range (id); create table leaf partition of root for values from (0) to (9);
               insert into root values (1, 'a')",
        member: "root",
        write: "update root set v = 'b'",
    },
];

const GENERATED: Breaking = Breaking {
    table: "generated",
    made: "create table generated (id int, twice int generated always as (id * 2) stored); alter table generated replica identity full;
           insert into generated values (1)",
    member: "generated",
    write: "update generated set id = 2",
};

#[tokio::test(flavor = "multi_thread")]
async fn each_publication_that_makes_writes_fail_is_reported_with_the_statement_that_mends_it() {
    let world = bare("breaking", "").await;
    let mut cases: Vec<Breaking> = BREAKING.into();
    if version(&world).await >= 18 {
        cases.push(GENERATED);
    }
    let made: Vec<_> = cases.iter().map(|case| case.made).collect();
    world.sql.batch_execute(&made.join(";\n")).await.unwrap();
    let listed: Vec<_> = cases.iter().map(|case| case.member).collect();
    let publications = format!(
        "create publication postrider_tables for table {} with (publish_via_partition_root = true);
         create publication postrider_inserts with (publish = 'insert, truncate', publish_via_partition_root = true)",
        listed.join(", ")
    );
    world.sql.batch_execute(&publications).await.unwrap();
    let config = world.config(&[(TABLES, "public.*")]);
    for Breaking { table, write, .. } in &cases {
        let error = world.sql.batch_execute(write).await.expect_err(table);
        println!("{table}: {}", error.as_db_error().map_or("", |error| error.message()));
        let failing = |findings: Vec<Finding>| {
            let of_it =
                |finding: &Finding| finding.level == Level::Fail && finding.what.contains(&format!(".{table} "));
            findings.into_iter().find(of_it)
        };
        let finding = failing(findings(&config).await).unwrap_or_else(|| panic!("{table} is not reported"));
        assert!(!finding.remedies.is_empty(), "{finding:?}");
        for remedy in &finding.remedies {
            let Remedy::Sql(statement) = remedy else { panic!("{finding:?}") };
            println!("{statement}");
            world.sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        world
            .sql
            .batch_execute(write)
            .await
            .unwrap_or_else(|error| panic!("{table} after {:?}: {error:?}", finding.remedies));
        assert_eq!(failing(findings(&config).await), None);
    }
    let said = migrate(&world, "public.*").await.unwrap();
    assert!(said.iter().any(|line| line.contains("public.wholly: somebody has given it a filter")), "{said:#?}");
    let filter = "select pg_get_expr(prqual, prrelid) from pg_publication_rel where prrelid = 'wholly'::regclass";
    let kept: String = world.sql.query_one(filter, &[]).await.unwrap().get(0);
    assert_eq!(kept, "(id > 0)", "only the list is taken away");
}
