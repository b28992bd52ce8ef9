//! The URLs of the two servers: a target that can be dialled, or an error without a secret.

use super::{CANARY, keeps_its_secret};
use crate::postgres;
use crate::rabbitmq;

pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let start = |start: &str| format!("{start}{text}");
    let with_password = |before: &str, after: &str| format!("{before}{CANARY}{after}{text}");
    for url in [start(""), start("amqp://"), with_password("amqp://app:", "@"), with_password("amqps://app:", "@mq/")] {
        amqp(&url);
    }
    for url in [
        start(""),
        start("postgres://"),
        with_password("postgres://app:", "@"),
        with_password("host=db password=", " "),
        with_password("postgres://db/shop?password=", "&"),
    ] {
        postgres(&url);
    }
}

fn amqp(url: &str) {
    let target = match rabbitmq::url::Target::parse(url) {
        Ok(target) => target,
        Err(error) => return keeps_its_secret("an error", &format!("{error} {error:?}")),
    };
    keeps_its_secret("a target", &format!("{target:?} {:?}", target.warnings()));
    assert!(!target.brokers.is_empty() && (1..=255).contains(&target.vhost.len()), "{target:?}");
    for broker in &target.brokers {
        assert!(!broker.host.is_empty() && broker.port > 0, "{target:?}");
        assert!((1..=600).contains(&broker.heartbeat_seconds) && !broker.connect_timeout.is_zero(), "{target:?}");
        assert!(broker.frame_max.is_none_or(|frame_max| frame_max == 0 || frame_max >= 8_192), "{target:?}");
    }
}

fn postgres(url: &str) {
    for require_tls in [false, true] {
        match postgres::url::Target::parse(url, require_tls) {
            Ok(target) => {
                keeps_its_secret("a target", &format!("{target} {target:?}"));
                assert!(
                    !target.hosts.is_empty() && !target.user.is_empty() && !target.database.is_empty(),
                    "{target:?}"
                );
                assert!(target.hosts.iter().all(|host| host.port > 0), "{target:?}");
                assert!(!target.connect_timeout.is_zero(), "{target:?}");
            }
            Err(error) => keeps_its_secret("an error", &format!("{error} {error:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn an_empty_user_or_database() {
        super::check(b"user=");
        super::check(b"host=db user=u dbname=");
    }

    proptest! {
        #[test]
        fn whatever_stands_in_the_place_of_a_url(pieces in proptest::collection::vec(prop_oneof![
            proptest::sample::select(vec![
                "@", ":", "/", "?", "&", "=", ",", "%2F", "%", "%00", "[::1]", "[", "host", "5672", "0", "65536", "sslmode=require",
                "heartbeat=0", "frame_max=1", "verify=verify_none", "auth_mechanism=external", "user=u", "user=", "dbname=d", "port=1,2", "'", "\\",
                " ", "connect_timeout=0", "hostaddr=::1", "options=-c x=y", "target_session_attrs=any",
            ]).prop_map(str::to_owned),
            any::<String>(),
        ], 0..10)) {
            super::check(pieces.concat().as_bytes());
        }
    }
}
