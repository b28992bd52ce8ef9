//! `debezium.format.*`: what a body and the headers are written in.

use super::given::Given;

/// What is known of the record's key, which RabbitMQ is not sent: only a routing key may come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyFormat {
    Json,
    /// The text itself.
    Plain,
    Other,
}

pub(super) fn check(given: &mut Given) -> KeyFormat {
    let json = "Postrider writes JSON alone: a consumer of another format cannot read it";
    given.take_choice("debezium.format.value", &["json"], json);
    given.take_choice("debezium.format.header", &["json"], json);
    let key = given.take("debezium.format.key");
    let format = match key.as_ref().map(|item| item.value.trim().to_ascii_lowercase()).as_deref() {
        None | Some("json") => KeyFormat::Json,
        Some("simplestring") => KeyFormat::Plain,
        Some(_) => KeyFormat::Other,
    };
    if let Some(key) = key {
        given.dropped(&key, "RabbitMQ is not sent the key of a record");
    }

    let all = given.take_flag("debezium.format.schemas.enable");
    let whole = "with schemas every body is {\"schema\": ..., \"payload\": ...}, and Postrider writes the payload alone: set it to false, \
                 with the consumers prepared, before you move";
    for part in ["value", "header"] {
        let name = format!("debezium.format.{part}.schemas.enable");
        match given.take_flag(&name).or_else(|| all.clone()) {
            Some((false, _)) => {}
            Some((true, item)) => given.refused(&item, whole),
            None => given.refused_default(&name, format!("not set, and schemas are on by default; {whole}")),
        }
    }
    for item in given.take_all("debezium.format.key.") {
        given.dropped(&item, "RabbitMQ is not sent the key of a record");
    }
    for part in ["", "value.", "header."] {
        let name = |property: &str| format!("debezium.format.{part}{property}");
        given.only_default(&name("decimal.format"), "BASE64", "Postrider writes such numbers in base64");
        given.only_default(
            &name("replace.null.with.default"),
            "true",
            "Postrider writes them as the default, true, does",
        );
        if let Some(item) = given.take_raw(&name("schemas.cache.size")) {
            given.dropped(&item, "nothing that is sent depends on it");
        }
    }
    format
}
