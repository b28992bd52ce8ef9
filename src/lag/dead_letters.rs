//! Which queues are the dead-letter queues of the consumers, by what their queues say of their dead letters.

use std::collections::{BTreeMap, BTreeSet};

use super::discovery::{Because, MOST_QUEUES, Watched};
use crate::rabbitmq::management::queues::DeadLettering;

/// The queues that dead letters reach on each way.
pub(super) type Reach = BTreeMap<DeadLettering, BTreeSet<String>>;

/// The queue that needs no exchange to be asked for: the default exchange leads to the queue that the routing key names. `None`:
/// the bindings decide.
pub(super) fn without_bindings(way: &DeadLettering) -> Option<BTreeSet<String>> {
    // By each message's own key: no event has the name of a queue for its key.
    way.exchange.is_empty().then(|| way.routing_key.iter().cloned().collect())
}

/// The dead-letter queues of the `watched` queues. `ways` says where a queue sends its dead letters, of those that are known.
///
/// Not one that sends its own dead letters back: that is where messages wait for their next attempt. Not one that is listed
/// either: "dead letters" of a queue where messages only wait for a while go to where they are worked on. And where each
/// message keeps its own routing key, everything that is bound to the exchange may be reached; what our exchanges lead to as
/// well is an ordinary queue then.
pub(super) fn choose(
    watched: &BTreeMap<String, Watched>,
    ways: &BTreeMap<String, DeadLettering>,
    reach: &Reach,
) -> BTreeSet<String> {
    let reached = |queue: &str| ways.get(queue).and_then(|way| reach.get(way));
    let because = |queue: &str| watched.get(queue).map(|watched| watched.because);
    let mut found = BTreeSet::new();
    for source in watched.keys() {
        let Some(way) = ways.get(source) else { continue };
        for target in reached(source).into_iter().flatten() {
            let comes_back = target == source || reached(target).is_some_and(|back| back.contains(source));
            let ordinary = match because(target) {
                Some(Because::Listed) => true,
                Some(Because::Bound) => way.routing_key.is_none(),
                Some(Because::Matched) | None => false,
            };
            if !comes_back && !ordinary && found.len() < MOST_QUEUES {
                found.insert(target.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(exchange: &str, routing_key: Option<&str>) -> DeadLettering {
        DeadLettering { exchange: exchange.to_owned(), routing_key: routing_key.map(str::to_owned) }
    }

    fn chosen(
        watched: &[(&str, Because)],
        ways: &[(&str, DeadLettering)],
        reach: &[(DeadLettering, &[&str])],
    ) -> Vec<String> {
        let watched = watched.iter().map(|(name, because)| {
            let watched = Watched { because: *because, max_lag: None };
            ((*name).to_owned(), watched)
        });
        let ways = ways.iter().map(|(name, way)| ((*name).to_owned(), way.clone())).collect();
        let queues = |queues: &[&str]| queues.iter().map(|queue| (*queue).to_owned()).collect::<BTreeSet<_>>();
        let reach = reach.iter().map(|(way, reached)| (way.clone(), queues(reached))).collect();
        choose(&watched.collect(), &ways, &reach).into_iter().collect()
    }

    #[test]
    fn the_default_exchange_leads_to_the_queue_that_the_key_names() {
        assert_eq!(without_bindings(&way("", Some("failed"))), Some(["failed".to_owned()].into()));
        assert_eq!(without_bindings(&way("", None)), Some(BTreeSet::new()));
        assert_eq!(without_bindings(&way("dlx", None)), None);
    }

    #[test]
    fn the_queues_that_a_watched_queue_sends_its_dead_letters_to() {
        let (billing, mail) = (way("dlx", Some("billing.dlq")), way("graveyard", None));
        let found = chosen(
            &[("billing", Because::Bound), ("mail", Because::Matched), ("plain", Because::Listed)],
            &[("billing", billing.clone()), ("mail", mail.clone())],
            &[(billing, &["billing.dlq"]), (mail, &["one", "two"])],
        );
        assert_eq!(found, ["billing.dlq", "one", "two"]);
    }

    #[test]
    fn a_queue_that_leads_back_is_a_pause_between_attempts() {
        let (out, back) = (way("retry", Some("later")), way("", Some("billing")));
        let found = chosen(
            &[("billing", Because::Bound)],
            &[("billing", out.clone()), ("billing.later", back.clone())],
            &[(out, &["billing", "billing.later", "billing.dlq"]), (back, &["billing"])],
        );
        assert_eq!(found, ["billing.dlq"]);
    }

    #[test]
    fn by_its_own_key_a_message_reaches_ordinary_queues_too() {
        let (ours, named) = (way("events", None), way("events", Some("failed")));
        let watched = [("billing", Because::Bound), ("mail", Because::Bound), ("failed", Because::Bound)];
        let everything: &[&str] = &["billing", "mail", "failed", "graveyard"];
        let found = chosen(&watched, &[("billing", ours.clone())], &[(ours, everything)]);
        assert_eq!(found, ["graveyard"]);
        let found = chosen(&watched, &[("billing", named.clone())], &[(named, &["failed"])]);
        assert_eq!(found, ["failed"], "named: it is meant");
    }

    #[test]
    fn a_listed_queue_is_an_ordinary_one_whatever_leads_to_it() {
        let delayed = way("", Some("work"));
        let found = |work| {
            let watched = [("wait", Because::Bound), ("work", work)];
            chosen(&watched, &[("wait", delayed.clone())], &[(delayed.clone(), &["work"])])
        };
        assert!(found(Because::Listed).is_empty());
        assert_eq!(found(Because::Matched), ["work"]);
    }
}
