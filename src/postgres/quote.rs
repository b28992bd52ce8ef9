//! Names and values of the configuration inside SQL text.
//!
//! Values go as parameters wherever PostgreSQL takes parameters. It takes none in DDL and in replication commands: there
//! every name goes through [`quote_ident`] and every text through [`quote_literal`], whatever it contains.

use crate::config::Outbox;

/// An SQL identifier: always quoted, so that case, spaces and reserved words are kept.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string constant, right under both settings of `standard_conforming_strings` (manual, "String Constants").
///
/// Not for a text with a backslash in a *replication* command: that grammar has no `E''`.
pub fn quote_literal(text: &str) -> String {
    let quotes_doubled = text.replace('\'', "''");
    if text.contains('\\') {
        return format!("E'{}'", quotes_doubled.replace('\\', "\\\\"));
    }
    format!("'{quotes_doubled}'")
}

/// The dollar quote of the function bodies in `sql/`.
const BODY_TAG: &str = "$postrider$";

/// Puts values, quoted by the caller, into the `{{placeholders}}` of a file of `sql/`.
///
/// Values are not searched for placeholders again. A dollar-quoted body stays one whatever the values contain: its tag is
/// lengthened until it occurs in none of them. A placeholder without a value is left as it is.
pub fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut tag = BODY_TAG.to_owned();
    while values.iter().any(|(_, value)| value.contains(&tag)) {
        tag.insert(1, '_');
    }
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(&before.replace(BODY_TAG, &tag));
        let known = after
            .split_once("}}")
            .and_then(|(name, rest)| Some((values.iter().find(|(known, _)| *known == name)?, rest)));
        match known {
            Some(((_, value), behind)) => {
                filled.push_str(value);
                rest = behind;
            }
            None => {
                filled.push_str("{{");
                rest = after;
            }
        }
    }
    filled.push_str(&rest.replace(BODY_TAG, &tag));
    filled
}

/// The placeholders of the outbox table and its columns: `{{x}}` is the identifier, `{{x_text}}` a string constant.
pub fn outbox_values(outbox: &Outbox) -> Vec<(&'static str, String)> {
    let columns = &outbox.columns;
    // A column that is configured away still stands in statements that never run.
    let or_usual = |name: &str, usual: &str| quote_ident(if name.is_empty() { usual } else { name });
    let or_usual_text = |name: &str, usual: &str| quote_literal(if name.is_empty() { usual } else { name });
    let qualified = format!("{}.{}", quote_ident(&outbox.schema), quote_ident(&outbox.table));
    vec![
        ("outbox_text", quote_literal(&qualified)),
        ("outbox", qualified),
        ("outbox_schema", quote_ident(&outbox.schema)),
        ("outbox_schema_text", quote_literal(&outbox.schema)),
        ("outbox_table_text", quote_literal(&outbox.table)),
        ("outbox_pkey", quote_ident(&format!("{}_pkey", outbox.table))),
        ("id", quote_ident(&columns.id)),
        ("id_text", quote_literal(&columns.id)),
        ("aggregatetype", quote_ident(&columns.aggregatetype)),
        ("aggregatetype_text", quote_literal(&columns.aggregatetype)),
        ("aggregateid", quote_ident(&columns.aggregateid)),
        ("aggregateid_text", quote_literal(&columns.aggregateid)),
        ("type", quote_ident(&columns.kind)),
        ("type_text", quote_literal(&columns.kind)),
        ("payload", quote_ident(&columns.payload)),
        ("payload_text", quote_literal(&columns.payload)),
        ("before", or_usual(&columns.before, "before")),
        ("before_text", or_usual_text(&columns.before, "before")),
        ("version", or_usual(&columns.version, "version")),
        ("sequence", or_usual(&columns.sequence, "sequence")),
        ("headers", or_usual(&columns.headers, "headers")),
        ("headers_text", or_usual_text(&columns.headers, "headers")),
        ("occurred_at", or_usual(&columns.occurred_at, "occurred_at")),
        ("xid", or_usual(&columns.xid, "xid")),
        ("xid_text", quote_literal(&columns.xid)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_case_quotes_and_reserved_words() {
        assert_eq!(quote_ident("Order"), r#""Order""#);
        assert_eq!(quote_ident(r#"a"; drop table x; --"#), r#""a""; drop table x; --""#);
    }

    #[test]
    fn texts_cannot_end_their_constant() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"\'; drop table x; --"), r"E'\\''; drop table x; --'");
    }

    #[test]
    fn a_value_is_neither_searched_for_placeholders_nor_able_to_end_a_body() {
        let values = [("a", "{{b}} $postrider$".to_owned()), ("b", "no".to_owned())];
        assert_eq!(
            fill("do $postrider$ {{a}} {{c}} $postrider$;", &values),
            "do $_postrider$ {{b}} $postrider$ {{c}} $_postrider$;"
        );
    }
}
