//! `table.expand.json.payload`: the payload as the value that its text is, within what Kafka Connect has schemas for.
//!
//! Numbers are what Java reads them as, members that are null are left out, and so are empty arrays; the elements of
//! an array have one schema. What has none stays a string, and so does an array that is not inside an object.

use indexmap::IndexMap;

use super::text::{push, push_double, push_json};

/// Jackson's limit.
const DEEPEST: usize = 1_000;

/// A JSON value as Jackson reads it.
#[derive(Debug)]
enum Node {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    /// An integer that Java's `long` does not hold: it has the schema of a double, and does not fit it.
    Big,
    Double(f64),
    Text(String),
    Array(Vec<Node>),
    Object(IndexMap<String, Node>),
}

/// What Debezium finds for a value.
#[derive(Clone, Debug, PartialEq)]
enum Schema {
    Bool,
    Int,
    Long,
    Double,
    Text,
    Array(Box<Schema>),
    Object(IndexMap<String, Schema>),
}

/// There is no schema for the value, or the value does not fit the one that was found.
#[derive(Debug)]
struct Unfit;

/// Appends the expanded value. False, and nothing appended: it stays a string.
pub(super) fn push_expanded(out: &mut Vec<u8>, text: &str) -> bool {
    if !text.starts_with('{') {
        return false;
    }
    // What is behind the value Jackson does not read.
    let Some(node) = (Reader { rest: text }).value(0) else { return false };
    let Ok(Some(schema)) = schema(&node) else { return false };
    let before = out.len();
    let fits = write(out, &node, &schema).is_ok();
    if !fits {
        out.truncate(before);
    }
    fits
}

/// None where there is nothing to see: the member is left out.
fn schema(node: &Node) -> Result<Option<Schema>, Unfit> {
    Ok(Some(match node {
        Node::Null => return Ok(None),
        Node::Bool(_) => Schema::Bool,
        Node::Int(_) => Schema::Int,
        Node::Long(_) => Schema::Long,
        Node::Big | Node::Double(_) => Schema::Double,
        Node::Text(_) => Schema::Text,
        Node::Array(elements) if elements.is_empty() => return Ok(None),
        Node::Array(elements) => Schema::Array(Box::new(element_schema(elements)?)),
        Node::Object(members) => {
            let mut fields = IndexMap::with_capacity(members.len());
            for (name, member) in members {
                if let Some(found) = schema(member)? {
                    if name.is_empty() {
                        return Err(Unfit);
                    }
                    fields.insert(name.clone(), found);
                }
            }
            Schema::Object(fields)
        }
    }))
}

/// That of the first element which is not null; of objects, with the members of all of them.
fn element_schema(elements: &[Node]) -> Result<Schema, Unfit> {
    let mut elements = elements.iter().filter(|element| !matches!(element, Node::Null));
    let first = elements.next().ok_or(Unfit)?;
    let mut common = schema(first)?.ok_or(Unfit)?;
    for element in elements {
        match (&mut common, element) {
            (Schema::Object(fields), Node::Object(_)) => {
                let Some(Schema::Object(more)) = schema(element)? else { return Err(Unfit) };
                for (name, found) in more {
                    fields.entry(name).or_insert(found);
                }
            }
            // It has to fit the first one's, which shows when it is written.
            (Schema::Array(_), Node::Array(_)) => {}
            (common, _) if schema(element)?.as_ref() == Some(&*common) => {}
            _ => return Err(Unfit),
        }
    }
    Ok(common)
}

fn write(out: &mut Vec<u8>, node: &Node, schema: &Schema) -> Result<(), Unfit> {
    match (node, schema) {
        (Node::Null, _) => push(out, "null"),
        (Node::Bool(truth), Schema::Bool) => push_json(out, truth),
        (Node::Int(number), Schema::Int) => push_json(out, number),
        (Node::Long(number), Schema::Long) => push_json(out, number),
        (Node::Double(number), Schema::Double) => push_double(out, *number),
        (Node::Text(text), Schema::Text) => push_json(out, text),
        (Node::Array(elements), Schema::Array(schema)) => {
            out.push(b'[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(out, element, schema)?;
            }
            out.push(b']');
        }
        (Node::Object(members), Schema::Object(fields)) => {
            out.push(b'{');
            for (index, (name, schema)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                push_json(out, name);
                out.push(b':');
                let member = members.get(name).unwrap_or(&Node::Null);
                write(out, member, schema)?;
            }
            out.push(b'}');
        }
        _ => return Err(Unfit),
    }
    Ok(())
}

/// Reads JSON. It is one of its own because Jackson goes deeper, keeps the order of members, and has kinds of numbers.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Option<Node> {
        if depth > DEEPEST {
            return None;
        }
        self.skip_blanks();
        match self.rest.as_bytes().first()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(Node::Text),
            b't' => self.word("true").map(|()| Node::Bool(true)),
            b'f' => self.word("false").map(|()| Node::Bool(false)),
            b'n' => self.word("null").map(|()| Node::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Node> {
        let mut members = IndexMap::new();
        self.word("{")?;
        if self.next_is("}") {
            return Some(Node::Object(members));
        }
        loop {
            self.skip_blanks();
            let name = self.string()?;
            if !self.next_is(":") {
                return None;
            }
            let value = self.value(depth + 1)?;
            // The last one counts, in the place of the first.
            members.insert(name, value);
            if self.next_is("}") {
                return Some(Node::Object(members));
            }
            if !self.next_is(",") {
                return None;
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Node> {
        let mut elements = Vec::new();
        self.word("[")?;
        if self.next_is("]") {
            return Some(Node::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            if self.next_is("]") {
                return Some(Node::Array(elements));
            }
            if !self.next_is(",") {
                return None;
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        let mut escaped = false;
        let end = self.rest.strip_prefix('"')?.find(|letter| {
            let ends = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        })?;
        let (text, rest) = self.rest.split_at_checked(end + 2)?;
        self.rest = rest;
        serde_json::from_str(text).ok()
    }

    fn number(&mut self) -> Option<Node> {
        let of_number = |letter: char| letter.is_ascii_digit() || matches!(letter, '+' | '-' | '.' | 'e' | 'E');
        let end = self.rest.find(|letter| !of_number(letter)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let leading_zero =
            digits.len() > 1 && digits.starts_with('0') && digits.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if leading_zero || !digits.starts_with(|first: char| first.is_ascii_digit()) || digits.ends_with('.') {
            return None;
        }
        if digits.bytes().all(|digit| digit.is_ascii_digit()) {
            let int = text.parse().map(Node::Int);
            return Some(int.or_else(|_| text.parse().map(Node::Long)).unwrap_or(Node::Big));
        }
        let pointless = digits.contains(".e") || digits.contains(".E");
        text.parse().ok().filter(|_| !pointless).map(Node::Double)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(())
    }

    fn next_is(&mut self, mark: &str) -> bool {
        self.skip_blanks();
        self.word(mark).is_some()
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Option<String> {
        let mut out = Vec::new();
        push_expanded(&mut out, text).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_are_what_debezium_expands_them_to() {
        // Recorded.
        for (text, value) in [
            (r#"{"a": 1.0}"#, r#"{"a":1.0}"#),
            (r#"{"a": 1e3, "b": 1E-7}"#, r#"{"a":1000.0,"b":1.0E-7}"#),
            ("{}", "{}"),
            (r#"{"a": []}"#, "{}"),
            (r#"{"a": [[1,2],[3]]}"#, r#"{"a":[[1,2],[3]]}"#),
            (r#"{"a": [[1],[]]}"#, r#"{"a":[[1],[]]}"#),
            (r#"{"a": [null, 1]}"#, r#"{"a":[null,1]}"#),
            (r#"{"a": null}"#, "{}"),
            (r#"{"a": {"b": null}}"#, r#"{"a":{}}"#),
            (r#"{"a": [{}]}"#, r#"{"a":[{}]}"#),
            (r#"{"a": [{"x": 1, "y": null}, {"x": 2, "z": [1]}]}"#, r#"{"a":[{"x":1,"z":null},{"x":2,"z":[1]}]}"#),
            (r#"{"a": [{"x": null}, {"x": 5}]}"#, r#"{"a":[{"x":null},{"x":5}]}"#),
            (
                r#"{"a": -0.0, "b": 0.1, "c": 1.10, "d": 100000000000000000000.5, "e": 0.30000000000000004441}"#,
                r#"{"a":-0.0,"b":0.1,"c":1.1,"d":1.0E20,"e":0.30000000000000004}"#,
            ),
            (r#"{"a":[{"b":1},null]}"#, r#"{"a":[{"b":1},null]}"#),
            (r#"{"a":[{"b":[{"c":null}]}]}"#, r#"{"a":[{"b":[{}]}]}"#),
            (r#"{"a": 3.4028235e38, "c": 1e400}"#, r#"{"a":3.4028235E38,"c":"Infinity"}"#),
            (r#"{"a":["x",null,"y"]}"#, r#"{"a":["x",null,"y"]}"#),
            (r#"{"z":1,"a":{"zz":1,"b":2}}"#, r#"{"z":1,"a":{"zz":1,"b":2}}"#),
            (r#"{"a":[[{"b":1}],[{"c":2}]]}"#, r#"{"a":[[{"b":1}],[{"b":null}]]}"#),
            (r#"{"a":[[1,null],[null]]}"#, r#"{"a":[[1,null],[null]]}"#),
            (r#"{"a": 1, "b": 2, "a": 3}"#, r#"{"a":3,"b":2}"#),
            (r#"{"a": "ü\n\"\u00e4"}"#, "{\"a\":\"ü\\n\\\"ä\"}"),
            (r#"{"a": 1} trailing"#, r#"{"a":1}"#),
        ] {
            assert_eq!(expanded(text).as_deref(), Some(value), "{text}");
        }
    }

    #[test]
    fn what_has_no_schema_stays_a_string() {
        for text in [
            // Recorded.
            "[1, 2.5]",
            r#"[1, "a"]"#,
            "[]",
            r#"{"a": [[]]}"#,
            r#"{"a": [null]}"#,
            r#"{"a": [1, 3000000000]}"#,
            r#"{"a": [true, 1]}"#,
            r#"{"": 5}"#,
            r#""text""#,
            "12",
            r#"{"a":[1.5,2]}"#,
            r#"{"a": 1"#,
            r#"  {"a": 1}"#,
            r#"{"a": NaN}"#,
            r#"{"a": 01}"#,
            "{'a': 1}",
            // Debezium stops at these.
            r#"{"a": 12345678901234567890}"#,
            "[1, 2, 3]",
            r#"{"a":[{"n":1},{"n":1.5}]}"#,
            r#"{"a":[[1,2],["a"]]}"#,
        ] {
            assert_eq!(expanded(text), None, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(expanded(&nested(900)).is_some());
        assert_eq!(expanded(&nested(100_000)), None);
    }
}
