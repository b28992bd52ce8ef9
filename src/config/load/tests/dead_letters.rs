//! Dead letters of both kinds: those of a queue in `[topology]`, and the relay's own.

use super::*;
use crate::config::DeadLetterDecl;
use crate::event::{OnPoison, OnUnroutable};

fn dead_letter(line: &str) -> Option<DeadLetterDecl> {
    let text = format!("[[topology.queues]]\nname = 'billing'\n{line}");
    load(&text, &[]).unwrap().topology.unwrap().queues.remove(0).dead_letter
}

#[test]
fn true_is_enough_for_a_queue_with_dead_letters() {
    let usual = DeadLetterDecl {
        delivery_limit: 3,
        retention: Duration::from_secs(14 * 24 * 3600),
        queue: "billing.dlq".to_owned(),
        exchange: "dead-letters".to_owned(),
    };
    assert_eq!(dead_letter("dead_letter = true"), Some(usual.clone()));
    assert_eq!(dead_letter("dead_letter = {}"), Some(usual));
    assert_eq!(dead_letter("dead_letter = false"), None);
    assert_eq!(dead_letter(""), None);
    let own = "dead_letter = { delivery_limit = 0, retention = '36h', queue = 'broken', exchange = 'dlx' }";
    let own = dead_letter(own).unwrap();
    assert_eq!((own.delivery_limit, own.retention), (0, Duration::from_secs(36 * 3600)));
    assert_eq!((own.queue.as_str(), own.exchange.as_str()), ("broken", "dlx"));
}

#[test]
fn arguments_that_say_the_same_as_dead_letter_are_no_contradiction() {
    let same =
        "dead_letter = true\narguments = { x-max-length = 5, x-overflow = 'reject-publish', x-delivery-limit = 3 }";
    assert!(dead_letter(same).is_some());
}

#[test]
fn what_a_queue_with_dead_letters_cannot_be_is_an_error_that_names_the_key() {
    let text = "[[topology.queues]]\nname = 'a'\ndead_letter = true\n\
                arguments = { x-queue-type = 'classic', x-overflow = 'drop-head', x-delivery-limit = 5, x-dead-letter-exchange = '' }\n\
                [[topology.queues]]\nname = 'b'\ndead_letter = { retention = '50d' }\n\
                [[topology.queues]]\nname = 'c'\ndead_letter = { ttl = 5 }\n\
                [[topology.queues]]\nname = 'd'\ndead_letter = 'yes'\n";
    insta::assert_snapshot!(errors(text, &[]), @r#"
topology.queues.arguments (file:2): x-dead-letter-exchange = "" contradicts dead_letter, which makes it "dead-letters"; say it there
topology.queues.arguments (file:2): x-delivery-limit = 5 contradicts dead_letter, which makes it 3; say it there
topology.queues.arguments (file:2): x-overflow = "drop-head" contradicts dead_letter, which makes it "reject-publish"; with any other a dead letter may be lost on its way
topology.queues.arguments (file:2): x-queue-type = "classic" contradicts dead_letter, which makes it "quorum"; no other type has a delivery limit
topology.queues.dead_letter (file:7): retention must be a time from 1s to 4233600s, as in "500ms", "30s" or "2m", not "50d"
topology.queues.dead_letter (file:10): unknown key ttl: known are delivery_limit, retention, queue and exchange
topology.queues.dead_letter (file:13): must be true, false, or a table as in { delivery_limit = 5, retention = "30d" }, not "yes"
"#);
}

#[test]
fn dead_letters_that_would_go_astray_are_errors_that_name_the_queue() {
    let long = "x".repeat(252);
    let text = format!(
        "[[topology.queues]]\nname = 'a'\ndead_letter = {{ queue = 'b' }}\n\
         [[topology.queues]]\nname = 'b'\ndead_letter = {{ exchange = 'events' }}\n\
         [[topology.queues]]\nname = '{long}'\ndead_letter = true\n\
         [[topology.queues]]\nname = 'c'\ndead_letter = {{ queue = 'all', retention = '1d' }}\n\
         [[topology.queues]]\nname = 'd'\ndead_letter = {{ queue = 'all', retention = '2d' }}\n\
         [[topology.queues]]\nname = 'e'\ndead_letter = {{ queue = 'e' }}\n"
    );
    insta::assert_snapshot!(errors(&text, &[]).replace(&long, "xxx"), @r#"
topology.queues.dead_letter: queue "a": its dead-letter queue "b" is listed as a queue too; leave it out, or choose another
topology.queues.dead_letter: queue "b": events go to the exchange "events": whoever listens there would get the dead letters too
topology.queues.dead_letter: queue "xxx": the name of its dead-letter queue is over 255 bytes: choose one with queue = "..."
topology.queues.dead_letter: queue "d": "all" cannot keep dead letters for 172800s and, as another queue has it, for 86400s
topology.queues.dead_letter: queue "e": its dead-letter queue "e" is listed as a queue too; leave it out, or choose another
"#);
}

#[test]
fn what_becomes_of_the_undeliverable_is_decided_per_route() {
    let text = "
        [event]
        on_poison = 'halt'
        [[route]]
        name = 'mail'
        type = 'Mail*'
        on_unroutable = 'discard'
        on_poison = 'skip'
        [limits]
        hold_for = '0s'
        max_parked = 5
    ";
    let config = load(text, &[("POSTRIDER_LIMITS_MAX_PARKED_BYTES", "2GiB")]).unwrap();
    let policies: Vec<_> = config.routes.iter().map(|route| (route.on_unroutable, route.on_poison)).collect();
    assert_eq!(policies, [(OnUnroutable::Discard, OnPoison::Skip), (OnUnroutable::Park, OnPoison::Halt)]);
    assert_eq!((config.limits.hold_for, config.limits.max_parked), (Duration::ZERO, 5));
    assert_eq!(config.limits.max_parked_bytes, 2 << 30);
}

#[test]
fn faults_of_the_policies_name_the_choices() {
    let text = "[event]\non_unroutable = 'drop'\n[[route]]\nname = 'a'\non_poison = 'park'\n[limits]\nmax_parked_bytes = '1MiB'\nmax_parked = 0\n";
    insta::assert_snapshot!(errors(text, &[]), @r#"
event.on_unroutable (file:2): must be "park" or "hold" or "discard", not "drop"
route.on_poison (file:5): must be "park_key" or "skip" or "halt", not "park"
limits.max_parked (file:8): must be a whole number from 1 to 10000000, not 0
limits.max_parked_bytes (file:7): must be at least limits.max_message_bytes (16777216), not 1048576
"#);
}
