//! Which queues are watched: those that are listed, those that a pattern matches, and those that our exchanges lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Config, WatchedQueue};
use crate::event::route::Pattern;
use crate::rabbitmq::management::queues::ListedQueue;
use crate::rabbitmq::management::{Binding, Exchange, matches};

/// Queues that are watched, at most.
pub(super) const MOST_QUEUES: usize = 200;

/// Follows bindings from exchange to exchange. An exchange is visited once, so that a circle ends.
pub(super) struct Walk {
    /// Of the messages; `None`: any.
    routing_key: Option<String>,
    waiting: Vec<String>,
    seen: BTreeSet<String>,
    queues: BTreeSet<String>,
}

impl Walk {
    pub(super) fn new<'e>(exchanges: impl IntoIterator<Item = &'e str>, routing_key: Option<String>) -> Self {
        let mut walk = Walk { routing_key, waiting: Vec::new(), seen: BTreeSet::new(), queues: BTreeSet::new() };
        exchanges.into_iter().for_each(|exchange| walk.visit(exchange));
        walk
    }

    fn visit(&mut self, exchange: &str) {
        if self.seen.insert(exchange.to_owned()) {
            self.waiting.push(exchange.to_owned());
        }
    }

    /// The next exchange whose bindings are to be told by [`Walk::found`].
    pub(super) fn next(&mut self) -> Option<String> {
        self.waiting.pop()
    }

    pub(super) fn found(&mut self, exchange: &Exchange, bindings: &[Binding]) {
        for binding in bindings {
            if self.routing_key.as_ref().is_some_and(|key| !matches(exchange, binding, key)) {
                continue;
            }
            if binding.destination_type == "exchange" {
                self.visit(&binding.destination);
            } else {
                self.queues.insert(binding.destination.clone());
            }
        }
    }

    /// The queues that were reached.
    pub(super) fn end(self) -> BTreeSet<String> {
        self.queues
    }
}

/// Why a queue is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    Listed,
    /// Our exchanges lead to it.
    Bound,
    Matched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) because: Because,
    pub(super) max_lag: Option<Duration>,
}

/// The watched queues by name, and how many were left out. Listed ones come first, then those that are bound.
///
/// A queue that is exclusive or deletes itself belongs to one consumer and goes with it: it is watched only if it is listed.
pub(super) fn choose(
    config: &Config,
    existing: &[ListedQueue],
    bound: &BTreeSet<String>,
) -> (BTreeMap<String, Watched>, usize) {
    let (patterns, names): (Vec<&WatchedQueue>, Vec<&WatchedQueue>) =
        config.queues.iter().partition(|queue| queue.is_pattern());
    let patterns: Vec<(Pattern, Option<Duration>)> =
        patterns.iter().map(|queue| (Pattern::new(&queue.name), queue.max_lag)).collect();
    let matched = |name: &str| patterns.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, max_lag)| *max_lag);
    let lasting = || existing.iter().filter(|queue| !queue.exclusive && !queue.auto_delete).map(|queue| &queue.name);

    let listed = names.iter().map(|queue| (&queue.name, Because::Listed, queue.max_lag));
    let bound = lasting().filter(|name| bound.contains(*name));
    let bound = bound.map(|name| (name, Because::Bound, matched(name).flatten()));
    let by_pattern = lasting().filter_map(|name| Some((name, Because::Matched, matched(name)?)));

    let (mut watched, mut left_out) = (BTreeMap::new(), BTreeSet::new());
    for (name, because, max_lag) in listed.chain(bound).chain(by_pattern) {
        if watched.contains_key(name) {
            continue;
        }
        if watched.len() == MOST_QUEUES {
            left_out.insert(name);
            continue;
        }
        watched.insert(name.clone(), Watched { because, max_lag: max_lag.or(config.consumers.max_lag) });
    }
    (watched, left_out.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Consumers;

    fn config(queues: &[(&str, Option<u64>)]) -> Config {
        let urls = [
            ("DATABASE_URL", "postgres://app@localhost/shop"),
            ("AMQP_URL", "amqp://localhost"),
            ("POSTRIDER_MANAGEMENT_URL", "http://localhost:15672"),
        ];
        let mut config = Config::load(None, urls.map(|(name, url)| (name.to_owned(), url.to_owned()))).unwrap();
        let seconds = |max_lag: &Option<u64>| max_lag.map(Duration::from_secs);
        let listed = queues.iter().map(|(name, max_lag)| (*name, seconds(max_lag)));
        config.queues = listed.map(|(name, max_lag)| WatchedQueue { name: name.to_owned(), max_lag }).collect();
        config.consumers = Consumers { max_lag: Some(Duration::from_secs(300)), ..Consumers::default() };
        config
    }

    fn lasting(name: &str) -> ListedQueue {
        ListedQueue { name: name.to_owned(), exclusive: false, auto_delete: false }
    }

    fn binding(kind: &str, destination: &str, key: &str) -> Binding {
        let (destination_type, destination) = (kind.to_owned(), destination.to_owned());
        Binding { destination, destination_type, routing_key: key.to_owned(), arguments: serde_json::Map::new() }
    }

    /// Exchange, its type and its bindings.
    type Net<'n> = [(&'n str, &'n str, Vec<Binding>)];

    fn reached(net: &Net<'_>, from: &str, key: Option<&str>) -> Vec<String> {
        let mut walk = Walk::new([from], key.map(str::to_owned));
        let mut visits = 0;
        while let Some(exchange) = walk.next() {
            visits += 1;
            assert!(visits <= net.len(), "in circles");
            if let Some((_, kind, bindings)) = net.iter().find(|(name, ..)| *name == exchange) {
                walk.found(&Exchange { kind: (*kind).to_owned() }, bindings);
            }
        }
        walk.end().into_iter().collect()
    }

    #[test]
    fn a_walk_follows_exchanges_and_ends_in_a_circle() {
        let net = [
            ("events", "topic", vec![binding("queue", "billing", "order.*"), binding("exchange", "audit", "#")]),
            ("audit", "fanout", vec![binding("queue", "archive", ""), binding("exchange", "events", "")]),
            ("elsewhere", "fanout", vec![binding("queue", "other", "")]),
        ];
        assert_eq!(reached(&net, "events", None), ["archive", "billing"]);
        assert_eq!(reached(&net, "events", Some("shipment.Sent")), ["archive"], "only where this key goes");
        assert!(reached(&net, "missing", None).is_empty());
    }

    #[test]
    fn a_listed_queue_has_its_own_objective_and_others_the_general_one() {
        let config = config(&[("billing", Some(30)), ("ship*", Some(60)), ("mail", None)]);
        let existing = [lasting("billing"), lasting("shipping"), lasting("archive"), lasting("unrelated")];
        let bound = ["archive".to_owned(), "shipping".to_owned(), "gone".to_owned()].into();
        let (watched, left_out) = choose(&config, &existing, &bound);
        let seconds = |name: &str| watched[name].max_lag.unwrap().as_secs();
        assert_eq!(watched.keys().collect::<Vec<_>>(), ["archive", "billing", "mail", "shipping"]);
        assert_eq!((seconds("billing"), seconds("shipping"), seconds("mail"), seconds("archive")), (30, 60, 300, 300));
        assert_eq!((watched["shipping"].because, watched["mail"].because), (Because::Bound, Because::Listed));
        assert_eq!(left_out, 0);
    }

    #[test]
    fn a_queue_of_one_consumer_is_watched_only_if_it_is_listed() {
        let own = |name: &str, exclusive| ListedQueue { name: name.to_owned(), exclusive, auto_delete: !exclusive };
        let existing = [own("a.exclusive", true), own("a.auto", false), own("listed", true), lasting("a.lasting")];
        let bound = existing.iter().map(|queue| queue.name.clone()).collect();
        let (watched, left_out) = choose(&config(&[("listed", None), ("a.*", None)]), &existing, &bound);
        assert_eq!(watched.keys().collect::<Vec<_>>(), ["a.lasting", "listed"]);
        assert_eq!(left_out, 0);
    }

    #[test]
    fn beyond_the_bound_the_listed_ones_stay() {
        let existing: Vec<ListedQueue> = (0..250).map(|number| lasting(&format!("q{number:03}"))).collect();
        let bound = existing.iter().map(|queue| queue.name.clone()).collect();
        let (watched, left_out) = choose(&config(&[("zzz", None), ("q2*", None)]), &existing, &bound);
        assert_eq!((watched.len(), left_out), (200, 51));
        assert!(watched.contains_key("zzz"));
    }
}
