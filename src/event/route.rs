//! Exchange, routing key, format and ordering of an event: the first `[[route]]` that matches decides.

use std::sync::Arc;

use super::Route;
use crate::config::{Format, RouteRule};

/// The routes of the configuration, compiled.
#[derive(Debug)]
pub struct Router {
    rules: Vec<Rule>,
    /// Those of table changes.
    tables: Vec<(Pattern, Arc<Rule>)>,
    /// The last rule, which matches everything.
    default: Arc<Rule>,
}

/// One `[[route]]`.
#[derive(Debug)]
pub struct Rule {
    aggregatetype: Pattern,
    kind: Pattern,
    routing_key: Template,
    pub format: Format,
    pub route: Arc<Route>,
}

/// Routes that cannot be used. Each is a mistake in the configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("`routing_key` of route `{route}`")]
    RoutingKey {
        route: String,
        #[source]
        source: TemplateError,
    },
    #[error("the last route must match everything: leave out its `aggregatetype` and `type`, or set both to `*`")]
    NoDefault,
}

impl Router {
    /// # Errors
    /// A routing key template that is wrong, or no rule at the end that matches everything.
    pub fn new(rules: &[RouteRule]) -> Result<Router, RouteError> {
        let (last, rules) = rules.split_last().ok_or(RouteError::NoDefault)?;
        let default = Rule::new(last)?;
        let (mut outbox, mut tables) = (Vec::new(), Vec::new());
        for rule in rules {
            match &rule.table {
                Some(pattern) => tables.push((Pattern::new(pattern), Arc::new(Rule::new(rule)?))),
                None => outbox.push(Rule::new(rule)?),
            }
        }
        if last.table.is_some() || !(default.aggregatetype.matches_everything() && default.kind.matches_everything()) {
            return Err(RouteError::NoDefault);
        }
        Ok(Router { rules: outbox, tables, default: Arc::new(default) })
    }

    /// The first rule that matches.
    pub fn choose(&self, aggregatetype: &str, kind: &str) -> &Rule {
        let matching = |rule: &&Rule| rule.aggregatetype.matches(aggregatetype) && rule.kind.matches(kind);
        self.rules.iter().find(matching).unwrap_or(&self.default)
    }
}

impl Router {
    /// Whether rows of the outbox may leave in this format.
    pub fn uses(&self, format: Format) -> bool {
        self.default.format == format || self.rules.iter().any(|rule| rule.format == format)
    }

    /// The first rule for tables that matches `schema.table`.
    pub fn choose_table(&self, table: &str) -> &Arc<Rule> {
        self.tables.iter().find(|(pattern, _)| pattern.matches(table)).map_or(&self.default, |(_, rule)| rule)
    }
}

impl Rule {
    fn new(rule: &RouteRule) -> Result<Rule, RouteError> {
        let routing_key = Template::new(&rule.routing_key)
            .map_err(|source| RouteError::RoutingKey { route: rule.name.clone(), source })?;
        let route = Route {
            name: rule.name.clone(),
            exchange: rule.exchange.clone(),
            ordering: rule.ordering,
            on_unroutable: rule.on_unroutable,
            on_poison: rule.on_poison,
        };
        Ok(Rule {
            aggregatetype: Pattern::new(&rule.aggregatetype),
            kind: Pattern::new(&rule.kind),
            routing_key,
            format: rule.format,
            route: Arc::new(route),
        })
    }

    /// Whether the routing key has the aggregate's id in it.
    pub(super) fn names_aggregateid(&self) -> bool {
        self.routing_key.0.iter().any(|part| matches!(part, Part::Value(Placeholder::AggregateId)))
    }

    /// Not checked to fit a short string.
    pub fn routing_key(&self, values: &KeyValues<'_>) -> String {
        let mut key = String::with_capacity(64);
        for part in &self.routing_key.0 {
            key.push_str(match part {
                Part::Text(text) => text,
                Part::Value(placeholder) => placeholder.of(values),
            });
        }
        key
    }
}

/// What the placeholders of a routing key stand for.
#[derive(Clone, Copy, Debug)]
pub struct KeyValues<'a> {
    pub aggregatetype: &'a str,
    pub aggregateid: &'a str,
    pub kind: &'a str,
    pub version: &'a str,
    pub op: &'a str,
    pub schema: &'a str,
    pub table: &'a str,
    /// Where Debezium would send it.
    pub topic: &'a str,
}

/// A text in which `*` stands for any run of characters, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exact(String),
    Wild { prefix: String, middle: Vec<String>, suffix: String },
}

impl Pattern {
    pub(crate) fn new(pattern: &str) -> Pattern {
        let Some((prefix, rest)) = pattern.split_once('*') else { return Pattern::Exact(pattern.to_owned()) };
        let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
        let middle = middle.split('*').filter(|text| !text.is_empty()).map(str::to_owned).collect();
        Pattern::Wild { prefix: prefix.to_owned(), middle, suffix: suffix.to_owned() }
    }

    /// The text, of one that is no pattern.
    pub(super) fn exact(&self) -> Option<&String> {
        match self {
            Pattern::Exact(text) => Some(text),
            Pattern::Wild { .. } => None,
        }
    }

    fn matches_everything(&self) -> bool {
        matches!(self, Pattern::Wild { prefix, middle, suffix }
            if prefix.is_empty() && middle.is_empty() && suffix.is_empty())
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::Exact(exact) => exact == text,
            Pattern::Wild { prefix, middle, suffix } => {
                let inner = text.strip_prefix(prefix.as_str()).and_then(|text| text.strip_suffix(suffix.as_str()));
                // The leftmost place for each part leaves the most room for the next.
                let left = inner.and_then(|inner| {
                    middle.iter().try_fold(inner, |rest, part| Some(rest.split_once(part.as_str())?.1))
                });
                left.is_some()
            }
        }
    }
}

/// A routing key with placeholders.
#[derive(Debug)]
struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(String),
    Value(Placeholder),
}

#[derive(Clone, Copy, Debug)]
enum Placeholder {
    AggregateType,
    AggregateId,
    Kind,
    Version,
    Op,
    Schema,
    Table,
    Topic,
}

/// Why a text is no routing key template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "unknown placeholder `{{{0}}}`: known are `{{aggregatetype}}`, `{{aggregateid}}`, `{{type}}`, `{{version}}`, \
         `{{op}}`, `{{schema}}`, `{{table}}` and `{{topic}}`; a brace itself is written `{{{{` or `}}}}`"
    )]
    UnknownPlaceholder(String),
    #[error("a `{{` without its `}}`; a brace itself is written `{{{{`")]
    Unclosed,
    #[error("a `}}` without its `{{`; a brace itself is written `}}}}`")]
    Unopened,
}

/// Says whether a text is a routing key template, for the one who reads the configuration.
///
/// # Errors
/// [`TemplateError`], which names what is wrong with it.
pub fn check(template: &str) -> Result<(), TemplateError> {
    Template::new(template).map(drop)
}

impl Template {
    fn new(template: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            text.push_str(before);
            if let Some(after) = brace.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = brace.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else {
                let inner = brace.strip_prefix('{').ok_or(TemplateError::Unopened)?;
                let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
                let placeholder =
                    Placeholder::named(name).ok_or_else(|| TemplateError::UnknownPlaceholder(name.to_owned()))?;
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Value(placeholder));
                rest = after;
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Template(parts))
    }
}

impl Placeholder {
    fn named(name: &str) -> Option<Placeholder> {
        Some(match name {
            "aggregatetype" => Placeholder::AggregateType,
            "aggregateid" => Placeholder::AggregateId,
            "type" => Placeholder::Kind,
            "version" => Placeholder::Version,
            "op" => Placeholder::Op,
            "schema" => Placeholder::Schema,
            "table" => Placeholder::Table,
            "topic" => Placeholder::Topic,
            _ => return None,
        })
    }

    fn of<'a>(self, values: &KeyValues<'a>) -> &'a str {
        match self {
            Placeholder::AggregateType => values.aggregatetype,
            Placeholder::AggregateId => values.aggregateid,
            Placeholder::Kind => values.kind,
            Placeholder::Version => values.version,
            Placeholder::Op => values.op,
            Placeholder::Schema => values.schema,
            Placeholder::Table => values.table,
            Placeholder::Topic => values.topic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{OnPoison, OnUnroutable, Ordering};

    fn rule(name: &str, aggregatetype: &str, kind: &str, routing_key: &str) -> RouteRule {
        RouteRule {
            name: name.to_owned(),
            aggregatetype: aggregatetype.to_owned(),
            kind: kind.to_owned(),
            table: None,
            exchange: format!("exchange of {name}"),
            routing_key: routing_key.to_owned(),
            format: Format::Cdc,
            ordering: Ordering::Key,
            on_unroutable: OnUnroutable::Park,
            on_poison: OnPoison::ParkKey,
        }
    }

    fn key(template: &str) -> String {
        let values = KeyValues {
            aggregatetype: "order",
            aggregateid: "42",
            kind: "OrderPlaced",
            version: "3",
            op: "c",
            schema: "public",
            table: "outbox",
            topic: "shop.public.outbox",
        };
        Router::new(&[rule("default", "*", "*", template)]).unwrap().choose("", "").routing_key(&values)
    }

    #[test]
    fn the_first_route_that_matches_decides() {
        let rules = [
            rule("placed", "order", "OrderPlaced", "a"),
            rule("orders", "order*", "*", "b"),
            rule("default", "*", "*", "c"),
        ];
        let router = Router::new(&rules).unwrap();
        let chosen = |aggregatetype, kind| router.choose(aggregatetype, kind).route.name.clone();
        assert_eq!(chosen("order", "OrderPlaced"), "placed");
        assert_eq!(chosen("order", "OrderPaid"), "orders");
        assert_eq!(chosen("orderline", "OrderPlaced"), "orders");
        assert_eq!(chosen("invoice", "OrderPlaced"), "default");
        assert_eq!(router.choose("invoice", "x").route.exchange, "exchange of default");
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        let matches = |pattern: &str, text: &str| Pattern::new(pattern).matches(text);
        assert!(matches("*", "") && matches("*", "anything") && matches("**", "anything"));
        assert!(matches("a*", "a") && matches("a*", "ab") && !matches("a*", "ba"));
        assert!(matches("*a", "ba") && !matches("*a", "ab"));
        assert!(matches("a*b*c", "abc") && matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "a-c"));
        assert!(matches("*b*", "abc") && !matches("*b*", "ac"));
        assert!(!matches("ab*ba", "aba"), "the ends may not overlap");
        assert!(matches("a*aa*a", "aaaa") && !matches("a*aa*a", "aaa"));
        assert!(matches("exact", "exact") && !matches("exact", "exactly") && !matches("", "x"));
    }

    #[test]
    fn a_routing_key_is_text_and_placeholders() {
        assert_eq!(key("{aggregatetype}.{type}"), "order.OrderPlaced");
        assert_eq!(key("{schema}.{table}.{op}.v{version}.{aggregateid}"), "public.outbox.c.v3.42");
        assert_eq!(key("plain"), "plain");
        assert_eq!(key(""), "");
        assert_eq!(key("{{{type}}}-{{}}"), "{OrderPlaced}-{}");
    }

    #[test]
    fn a_wrong_template_is_an_error_that_says_what_is_wrong() {
        assert_eq!(check("{{{type}}}.{op}"), Ok(()));
        assert_eq!(check("{kind}"), Err(TemplateError::UnknownPlaceholder("kind".to_owned())));
        assert_eq!(check("{}"), Err(TemplateError::UnknownPlaceholder(String::new())));
        assert_eq!(check("a.{type"), Err(TemplateError::Unclosed));
        assert_eq!(check("a.type}"), Err(TemplateError::Unopened));
        assert_eq!(
            check("{kind}").unwrap_err().to_string(),
            "unknown placeholder `{kind}`: known are `{aggregatetype}`, `{aggregateid}`, `{type}`, `{version}`, `{op}`, \
             `{schema}`, `{table}` and `{topic}`; a brace itself is written `{{` or `}}`"
        );
        let error = Router::new(&[rule("bad", "*", "*", "{kind}")]).unwrap_err();
        assert_eq!(error.to_string(), "`routing_key` of route `bad`");
    }

    #[test]
    fn the_last_route_must_match_everything() {
        assert_eq!(Router::new(&[]).unwrap_err(), RouteError::NoDefault);
        assert_eq!(Router::new(&[rule("only", "order", "*", "")]).unwrap_err(), RouteError::NoDefault);
        assert!(Router::new(&[rule("only", "*", "**", "")]).is_ok());
    }
}
