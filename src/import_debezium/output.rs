//! The postrider.toml that comes out.

use std::fmt::Write as _;

use super::given::{Item, Note};

/// Keys section by section, in the order in which the sections are first named here.
#[derive(Debug)]
pub(super) struct Toml {
    sections: Vec<(&'static str, String)>,
}

const SECTIONS: [&str; 10] = [
    "",
    "[outbox]",
    "[outbox.columns]",
    "[source]",
    "[[columns]]",
    "[event]",
    "[[route]]",
    "[debezium]",
    "[debezium.router]",
    "[limits]",
];

impl Toml {
    pub(super) fn new() -> Toml {
        Toml { sections: SECTIONS.map(|section| (section, String::new())).to_vec() }
    }

    fn section(&mut self, name: &str) -> Option<&mut String> {
        self.sections.iter_mut().find(|(section, _)| *section == name).map(|(_, text)| text)
    }

    /// A key with its value as TOML has it.
    pub(super) fn set(&mut self, section: &str, key: &str, value: &str) {
        if let Some(text) = self.section(section) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }

    pub(super) fn set_text(&mut self, section: &str, key: &str, value: &str) {
        self.set(section, key, &quoted(value));
    }

    pub(super) fn set_texts(&mut self, section: &str, key: &str, values: &[String]) {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        self.set(section, key, &format!("[{}]", values.join(", ")));
    }

    /// The same, with the property that it comes from.
    pub(super) fn carry(&mut self, section: &str, key: &str, value: &str, from: &Item) {
        self.comment(section, &format!("line {}: {}", from.line, one_line(last(&from.name))));
        self.set(section, key, value);
    }

    pub(super) fn comment(&mut self, section: &str, text: &str) {
        if let Some(section) = self.section(section) {
            for line in text.lines() {
                section.push_str(&format!("# {}\n", one_line(line)));
            }
        }
    }

    /// A further element of an array of tables.
    pub(super) fn begin(&mut self, section: &'static str) {
        if let Some(text) = self.section(section)
            && !text.is_empty()
        {
            text.push_str(&format!("\n{section}\n"));
        }
    }

    pub(super) fn render(&self, head: &str, notes: &[(&str, &[Note])]) -> String {
        let mut text: String = head.lines().map(|line| format!("# {line}\n")).collect();
        for (name, body) in self.sections.iter().filter(|(_, body)| !body.is_empty()) {
            let name = if name.is_empty() { String::new() } else { format!("{name}\n") };
            text.push_str(&format!("\n{name}{body}"));
        }
        for (title, notes) in notes.iter().filter(|(_, notes)| !notes.is_empty()) {
            text.push_str(&format!("\n# {title}\n"));
            for note in *notes {
                text.push_str(&format!("#   {}\n", one_line(&note.to_string())));
            }
        }
        text
    }
}

/// The part of a name behind `debezium.source.` and the like.
fn last(name: &str) -> &str {
    ["debezium.source.", "debezium.sink.", "quarkus.debezium.", "debezium."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

/// A comment ends with its line, so that nothing in it may end it earlier.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                write!(quoted, "\\u{:04X}", u32::from(c)).ok();
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_quoted_as_toml_wants_it() {
        let text = "a\"b\\c\nd\u{7f}ä";
        let parsed: toml::Table = toml::from_str(&format!("x = {}", quoted(text))).unwrap();
        assert_eq!(parsed["x"].as_str(), Some(text));
    }
}
