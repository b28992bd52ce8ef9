//! `postrider dlq --queue NAME` as an operator calls it: with a broker, and no database.

mod setup;

use std::collections::BTreeSet;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::rabbit::{Server, Vhost};
use crate::support::eventually;
use crate::support::relay::Program;
use setup::*;

#[tokio::test(flavor = "multi_thread")]
async fn list_counts_what_is_ready_and_with_the_management_api_what_is_unacknowledged() {
    let server = Server::shared().await;
    let vhost = server.vhost("dlqq_list").await;
    // A quorum queue counts one who holds a message as a consumer.
    let target = queues(&vhost, "billing", "classic").await;
    for id in ["1", "2", "3"] {
        publish(&vhost, &target, message(id), b"{}").await;
    }
    let channel = vhost.channel().await;
    let held = take(&channel, &target).await;
    until_depth(&vhost, &target, 2).await;
    let said = succeeds(&vhost, &["--queue", &target, "list"]);
    let expected = format!(
        "queue {target} in vhost {}: 2 messages ready, unacknowledged not known (set management_url), 0 consumers\n",
        vhost.name
    );
    assert_eq!(said, expected);

    let management = crate::support::servers::shared().await.management_url.to_string();
    let mut with_api = settings(&vhost.url(&server.address()));
    with_api.push(("POSTRIDER_MANAGEMENT_URL".to_owned(), management));
    // Its statistics are seconds old.
    eventually("the API knows of it", async || {
        let (code, stdout, _) = output(&with_api, &["list", "--queue", &target, "--json"]);
        assert_eq!(code, Some(0));
        let listing: Value = serde_json::from_str(&stdout).unwrap();
        (listing["ready"] == 2 && listing["unacknowledged"] == 1).then_some(())
    })
    .await;
    with_api[1].1 = "http://guest:guest@127.0.0.1:1".to_owned();
    let (code, stdout, stderr) = output(&with_api, &["list", "--queue", &target]);
    assert_eq!(code, Some(0), "the counts of AMQP are there: {stderr}");
    assert!(
        stdout.contains("unacknowledged not known, ") && stderr.contains("management API cannot"),
        "{stdout}{stderr}"
    );
    held.ack(BasicAckOptions::default()).await.unwrap();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_shows_where_messages_died_and_leaves_them_in_their_place() {
    let vhost = Server::shared().await.vhost("dlqq_peek").await;
    for kind in ["quorum", "classic"] {
        let target = queues(&vhost, kind, kind).await;
        for id in ["1", "2", "3"] {
            kill(&vhost, kind, message(id).with_type("Placed".into()), b"{\"name\": \"Ada\"}").await;
        }
        for _ in 0..2 {
            let said = succeeds(&vhost, &["list", "--queue", &target, "--peek", "2", "--json"]);
            assert_eq!(peeked(&said), ["1", "2"], "{kind}");
            assert!(!said.contains("Ada"), "a body that nobody asked for: {said}");
            until_depth(&vhost, &target, 3).await;
        }
        let said = succeeds(&vhost, &["list", "--queue", &target, "--peek", "100", "--bodies"]);
        assert!(
            said.contains(&format!("died         in queue {kind} (rejected), from the default exchange")),
            "{said}"
        );
        assert!(said.contains("1 death, last 20") && said.contains("  Placed  15 B\n"), "{said}");
        assert_eq!(said.matches("{\"name\": \"Ada\"}").count(), 3, "{said}");
        until_depth(&vhost, &target, 3).await;
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_is_no_failed_delivery_and_where_it_counts_that_is_said() {
    let server = Server::shared().await;
    let vhost = server.vhost("dlqq_limit").await;
    vhost.queue("q", &[("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongLongInt(2))]).await;
    publish(&vhost, "q", message("1"), b"{}").await;
    let looks =
        [["list", "--queue", "q", "--peek", "1"].as_slice(), &["redrive", "--queue", "q", "--all", "--dry-run"]];
    if nack_is_free(&server).await {
        for look in looks.iter().cycle().take(6) {
            let (code, _, stderr) = dlq(&vhost, look);
            assert_eq!((code, stderr.as_str()), (Some(0), ""));
        }
        // What cannot be redriven is given back in the same way.
        for _ in 0..4 {
            fails(&vhost, &["redrive", "--queue", "q", "--all"]);
        }
        until_depth(&vhost, "q", 1).await;
    } else {
        for look in looks {
            let (code, _, stderr) = dlq(&vhost, look);
            assert!(code == Some(0) && stderr.contains("counts each look at a message of a quorum queue"), "{stderr}");
        }
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_back_to_its_queue_as_it_was() {
    let vhost = Server::shared().await.vhost("dlqq_redrive").await;
    let target = queues(&vhost, "billing", "quorum").await;
    vhost
        .queue("shipping", &[("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text(&target))])
        .await;
    let own = [("x-postrider-position", text("7/8")), ("tenant", AMQPValue::LongLongInt(4))];
    let properties = message("1")
        .with_type("Placed".into())
        .with_content_type("application/json".into())
        .with_correlation_id("c-1".into())
        .with_app_id("postrider".into())
        .with_timestamp(1_795_256_130)
        .with_headers(headers(&own));
    let body: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    kill(&vhost, "billing", properties.clone(), &body).await;
    publish(&vhost, "shipping", message("2"), b"two").await;
    take(&vhost.channel().await, "shipping").await.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    until_depth(&vhost, &target, 2).await;

    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--all", "--dry-run"]);
    assert!(
        said.contains("2 messages would go: billing 1, shipping 1\n") && said.contains("nothing was changed"),
        "{said}"
    );
    until_depth(&vhost, &target, 2).await;
    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--all"]);
    assert_eq!(said, format!("2 messages redriven from queue {target}: billing 1, shipping 1\n"));
    assert_eq!(depth(&vhost, &target).await, 0);

    let [back] = &drain(&vhost, "billing").await[..] else { panic!("one message in billing") };
    assert_eq!(back.data, body);
    let mut found = back.properties.headers().clone().unwrap();
    assert_eq!(found.inner().get("x-postrider-redelivered"), Some(&AMQPValue::Boolean(true)));
    // The broker's own count of the delivery that this test has made.
    let counts = ["x-postrider-redelivered", "x-delivery-count", "x-acquired-count"];
    let kept = found.inner().iter().filter(|(name, _)| !counts.contains(&name.as_str()));
    found =
        kept.map(|(name, value)| (name.clone(), value.clone())).collect::<std::collections::BTreeMap<_, _>>().into();
    assert_eq!(back.properties.clone().with_headers(found), properties, "nothing else was added or lost");
    let [back] = &drain(&vhost, "shipping").await[..] else { panic!("one message in shipping") };
    assert_eq!((id(back).as_str(), back.data.as_slice()), ("2", b"two".as_slice()));

    // A new life: when it dies again its deaths are counted from the beginning.
    kill(&vhost, "billing", back.properties.clone(), b"{}").await;
    let said = succeeds(&vhost, &["list", "--queue", &target, "--peek", "1"]);
    assert!(said.contains("; 1 death, last"), "{said}");
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_time_limits_and_foreign_user_names_are_left_behind_and_the_documented_rights_are_enough() {
    let vhost = Server::shared().await.vhost("dlqq_traps").await;
    for name in ["q", "billing", "stolen"] {
        vhost.queue(name, &[]).await;
    }
    let copies = AMQPValue::FieldArray(vec![text("stolen")].into());
    let (user, _) = vhost.server.user();
    let properties = message("1")
        .with_headers(headers(&[("CC", copies)]))
        .with_user_id(user.as_str().into())
        .with_expiration("600000".into());
    publish(&vhost, "q", properties, b"{}").await;
    assert_eq!(drain(&vhost, "stolen").await.len(), 1, "the copy of its first life");

    let url = |user: &str| format!("amqp://{user}:pw@{}/{}", vhost.server.address(), vhost.name);
    let looker = vhost.add_user("looker", "", "", "^q$").await;
    let arguments = ["redrive", "--queue", "q", "--all", "--to", "billing"];
    let (code, _, stderr) = output(&settings(&url(&looker)), &arguments);
    assert!(code == Some(1) && stderr.contains("publishing to queue `billing` is refused: ACCESS_REFUSED"), "{stderr}");
    until_depth(&vhost, "q", 1).await;
    let stranger = vhost.add_user("stranger", "", "", "^other$").await;
    let (code, _, stderr) = output(&settings(&url(&stranger)), &["list", "--queue", "q", "--peek", "1"]);
    assert!(code == Some(1) && stderr.contains(r"USER '' '^amq\.default$' '^q$'` (configure, write, read"), "{stderr}");

    let redriver = vhost.add_user("redriver", "", r"^amq\\.default$", "^q$").await;
    let (code, _, stderr) = output(&settings(&url(&redriver)), &arguments);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let [back] = &drain(&vhost, "billing").await[..] else { panic!("one message in billing") };
    assert_eq!((back.properties.user_id(), back.properties.expiration()), (&None, &None));
    assert_eq!(depth(&vhost, "stolen").await, 0, "no copy of its second life");
    for user in [looker, stranger, redriver] {
        vhost.server.management("DELETE", &format!("users/{user}"), "").await;
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_returned_or_refused_stays_and_stops_it() {
    let vhost = Server::shared().await.vhost("dlqq_refused").await;
    let target = queues(&vhost, "billing", "quorum").await;
    for id in ["1", "2"] {
        kill(&vhost, "billing", message(id), b"{}").await;
    }
    vhost.channel().await.queue_delete("billing".into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    let (stdout, stderr) = fails(&vhost, &["redrive", "--queue", &target, "--all"]);
    assert_eq!(stdout, format!("nothing was redriven from queue {target}\n"));
    assert!(stderr.contains("stopped: there is no queue `billing`") && stderr.contains("--to"), "{stderr}");
    until_depth(&vhost, &target, 2).await;

    let full = [("x-max-length", AMQPValue::LongLongInt(1)), ("x-overflow", text("reject-publish"))];
    vhost.queue("full", &full).await;
    let (stdout, stderr) = fails(&vhost, &["redrive", "--queue", &target, "--all", "--to", "full"]);
    assert_eq!(stdout, format!("1 message redriven from queue {target}: full 1\n"), "until it was full");
    assert!(stderr.contains("stopped: queue `full` refuses it"), "{stderr}");
    until_depth(&vhost, &target, 1).await;
    until_depth(&vhost, "full", 1).await;

    let ids: BTreeSet<String> =
        drain(&vhost, &target).await.iter().chain(&drain(&vhost, "full").await).map(id).collect();
    assert_eq!(ids, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_die_again_at_once_are_redriven_once() {
    let vhost = Server::shared().await.vhost("dlqq_again").await;
    let target = queues(&vhost, "billing", "classic").await;
    for id in ["1", "2", "3", "4", "5"] {
        kill(&vhost, "billing", message(id), b"{}").await;
    }
    let channel = vhost.channel().await;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("billing".into(), "".into(), options, FieldTable::default()).await.unwrap();
    let rejects = tokio::spawn(async move {
        while let Some(delivery) = consumer.next().await {
            delivery.unwrap().reject(BasicRejectOptions { requeue: false }).await.unwrap();
        }
    });
    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--all"]);
    assert_eq!(said, format!("5 messages redriven from queue {target}: billing 5\n"));
    until_depth(&vhost, &target, 5).await;
    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--limit", "2"]);
    assert_eq!(said, format!("2 messages redriven from queue {target}: billing 2\n"));
    until_depth(&vhost, &target, 5).await;
    rejects.abort();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_history_waits_for_a_target_and_the_others_go() {
    let vhost = Server::shared().await.vhost("dlqq_to").await;
    let target = queues(&vhost, "billing", "quorum").await;
    publish(&vhost, &target, message("1"), b"{}").await;
    kill(&vhost, "billing", message("2"), b"{}").await;
    // Published by a person, with headers that say that it died in this very queue.
    let itself = headers(&[("x-first-death-queue", text(&target))]);
    publish(&vhost, &target, message("3").with_headers(itself), b"{}").await;

    let (stdout, stderr) = fails(&vhost, &["redrive", "--queue", &target, "--all"]);
    assert!(stdout.starts_with(&format!("1 message redriven from queue {target}: billing 1\n")), "{stdout}{stderr}");
    assert!(
        stdout.contains("1 message without a target") && stdout.contains("1 message that died first in this"),
        "{stdout}"
    );
    until_depth(&vhost, &target, 2).await;
    let (_, stderr) = fails(&vhost, &["redrive", "--queue", &target, "--all", "--to", &target]);
    assert!(stderr.contains("cannot be redriven to itself"), "{stderr}");
    vhost.queue("elsewhere", &[]).await;
    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--all", "--to", "elsewhere"]);
    assert_eq!(said, format!("2 messages redriven from queue {target}: elsewhere 2\n"));
    let said = succeeds(&vhost, &["redrive", "--queue", &target, "--all"]);
    assert_eq!(said, format!("queue {target} has no ready messages: nothing was redriven\n"));
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_queue_and_options_of_the_other_dead_letters_are_errors_that_say_what_to_do() {
    let vhost = Server::shared().await.vhost("dlqq_wrong").await;
    for arguments in [["list"].as_slice(), &["list", "--peek", "1"], &["redrive", "--all"]] {
        let (_, stderr) = fails(&vhost, &[&["--queue", "absent"], arguments].concat());
        assert!(stderr.contains("queue `absent` does not exist in vhost `dlqq_wrong"), "{stderr}");
    }
    let (_, stderr) = fails(&vhost, &["list", "--queue", "q", "--slot", "s"]);
    assert!(stderr.contains("--queue and --slot exclude each other"), "{stderr}");
    let database = [("DATABASE_URL".to_owned(), "postgres://app@127.0.0.1:1/shop".to_owned())];
    for (arguments, option) in
        [(["list", "--peek", "1"].as_slice(), "--peek"), (&["redrive", "--all", "--to", "q"], "--to")]
    {
        let (code, _, stderr) = output(&database, arguments);
        assert!(code == Some(1) && stderr.contains(&format!("{option} goes with --queue NAME")), "{stderr}");
    }
    let (code, _, stderr) = output(&[], &["list", "--queue", "q"]);
    assert!(code == Some(64) && stderr.starts_with("amqp_url: not set") && stderr.lines().count() == 1, "{stderr}");
    vhost.queue("stream", &[("x-queue-type", text("stream"))]).await;
    let (_, stderr) = fails(&vhost, &["list", "--queue", "stream", "--peek", "1"]);
    assert!(stderr.contains("getting a message failed: NOT_IMPLEMENTED"), "{stderr}");
    vhost.remove().await;
}

/// A dead-letter queue `q` of so many messages.
async fn filled(vhost: &Vhost, count: u32) {
    vhost.queue("q", &[("x-queue-type", text("quorum"))]).await;
    let channel = vhost.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut confirms = Vec::new();
    for id in 0..count {
        let (options, properties) = (BasicPublishOptions::default(), message(&id.to_string()));
        confirms.push(channel.basic_publish("".into(), "q".into(), options, b"{}", properties).await.unwrap());
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
}

/// A redrive of `count` messages that has begun.
async fn begun(vhost: &Vhost, count: u32) -> Program {
    filled(vhost, count).await;
    vhost.queue("billing", &[("x-queue-type", text("quorum"))]).await;
    let arguments = ["dlq", "redrive", "--queue", "q", "--all", "--to", "billing"];
    let program = Program::start(&settings(&vhost.url(&vhost.server.address())), &arguments);
    eventually("some have arrived", async || (depth(vhost, "billing").await > 10).then_some(())).await;
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_is_interrupted_gives_everything_back() {
    let vhost = Server::shared().await.vhost("dlqq_look").await;
    filled(&vhost, 1_000).await;
    let arguments = ["dlq", "list", "--queue", "q", "--peek", "1000"];
    for signal in ["-INT", "-TERM"] {
        let mut program = Program::start(&settings(&vhost.url(&vhost.server.address())), &arguments);
        eventually("it has some", async || (depth(&vhost, "q").await < 1_000).then_some(())).await;
        program.signal(signal);
        assert_eq!(program.exit(DEADLINE).await.code(), Some(1), "{signal}");
        assert!(program.log().ends_with("interrupted; what was looked at is back in the queue\n"), "{}", program.log());
        until_depth(&vhost, "q", 1_000).await;
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_between_two_messages() {
    let vhost = Server::shared().await.vhost("dlqq_signal").await;
    let mut program = begun(&vhost, 3_000).await;
    program.signal("-INT");
    assert_eq!(program.exit(DEADLINE).await.code(), Some(1));
    let log = program.log();
    let sent = depth(&vhost, "billing").await;
    assert!(sent < 3_000, "it was too fast to be interrupted");
    assert!(log.contains(&format!("{sent} messages redriven from queue q: billing {sent}\n")), "{log}");
    assert!(log.contains("stopped: interrupted"), "{log}");
    assert_eq!(sent + depth(&vhost, "q").await, 3_000, "each is in one queue");
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_at_most_one_message_twice_and_loses_none() {
    let vhost = Server::shared().await.vhost("dlqq_kill").await;
    let mut program = begun(&vhost, 3_000).await;
    program.kill();
    // What it had unacknowledged comes back when the broker has noticed.
    let total = eventually("nothing is missing", async || {
        let total = depth(&vhost, "billing").await + depth(&vhost, "q").await;
        (total >= 3_000).then_some(total)
    })
    .await;
    assert!(total <= 3_001, "{total}");
    let left = drain(&vhost, "q").await;
    assert!(!left.is_empty(), "it was too fast to be killed");
    let ids: BTreeSet<String> = drain(&vhost, "billing").await.iter().chain(&left).map(id).collect();
    assert_eq!(ids.len(), 3_000);
    vhost.remove().await;
}
