//! What the documents say of the settings is what the program does.

use std::collections::BTreeMap;

use super::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A setting in `postrider.example.toml`.
struct Documented {
    key: String,
    /// In TOML; `None` for a key that is commented out.
    default: Option<String>,
    meaning: String,
}

fn example() -> String {
    std::fs::read_to_string(format!("{ROOT}/postrider.example.toml")).unwrap()
}

/// The example with every key set: a `#` right before a key or a table is taken away.
fn example_with_every_key() -> String {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    example().lines().map(|line| uncommented(line) + "\n").collect()
}

fn documented() -> Vec<Documented> {
    let (mut table, mut meaning, mut settings) = (String::new(), String::new(), Vec::new());
    for line in example().lines() {
        let setting = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = setting.strip_prefix('[') {
            table = name.trim_matches(['[', ']']).to_owned() + ".";
            meaning.clear();
        } else if let Some(prose) = setting.strip_prefix(' ') {
            meaning = if meaning.is_empty() { prose.to_owned() } else { format!("{meaning} {prose}") };
        } else if let Some((key, value)) = setting.split_once(" = ") {
            let default = (!line.starts_with('#')).then(|| value.to_owned());
            settings.push(Documented { key: format!("{table}{key}"), default, meaning: std::mem::take(&mut meaning) });
        } else {
            meaning.clear();
        }
    }
    settings
}

fn known_keys() -> std::collections::BTreeSet<String> {
    let file = file(&example_with_every_key());
    let mut reader = Reader::open(Some(file.path()), env(&[])).unwrap();
    sections::config(&mut reader, Needs::Nothing);
    reader.keys().clone()
}

#[test]
fn every_key_of_the_example_is_known_and_every_known_key_is_in_it() {
    let text = example_with_every_key();
    let file = file(&text);
    let mut reader = Reader::open(Some(file.path()), env(&[])).unwrap();
    sections::config(&mut reader, Needs::Nothing);
    let in_example: std::collections::BTreeSet<String> = documented().into_iter().map(|setting| setting.key).collect();
    assert_eq!(in_example, known_keys());
    // A value and its file are both there; nothing else is wrong with it.
    let errors = reader.finish().map_or_else(|errors| errors.0, |()| Vec::new());
    let others: Vec<_> = errors.iter().filter(|error| !error.problem.starts_with("given twice")).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn the_defaults_of_the_example_are_the_defaults() {
    let urls = env(&[DATABASE, AMQP]);
    let file = file(&example());
    let with_example = Config::load(Some(file.path()), urls.clone()).unwrap();
    let without = Config::load(None, urls).unwrap();
    assert_eq!(format!("{with_example:#?}"), format!("{without:#?}"));
}

#[test]
fn every_key_says_why() {
    for Documented { key, meaning, .. } in documented() {
        assert!(meaning.len() > 5, "{key} has no comment in postrider.example.toml");
    }
}

/// The table of `docs/configuration.md`, as the example has it.
fn table() -> String {
    let file_only = ["route.", "topology.", "queues.", "columns."];
    let mut table = "| key | variable | default | what it is |\n|---|---|---|---|\n".to_owned();
    for Documented { key, default, meaning } in documented() {
        let in_array = file_only.iter().any(|prefix| key.starts_with(prefix));
        let name = if in_array {
            format!("[[{}]] {}", key.rsplit_once('.').unwrap().0, key.rsplit_once('.').unwrap().1)
        } else {
            key.clone()
        };
        let variable = if in_array { "-".to_owned() } else { format!("`{}`", reader::variable_of(&key)) };
        let default = default.map_or("-".to_owned(), |value| format!("`{value}`"));
        let meaning = meaning.replace('|', "\\|");
        table += &format!("| `{name}` | {variable} | {default} | {meaning} |\n");
    }
    table
}

#[test]
fn the_table_of_settings_in_the_documentation_is_the_example() {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/configuration.md")).unwrap();
    assert!(page.contains(&table()), "docs/configuration.md must contain:\n\n{}", table());
}

#[test]
fn each_setting_outside_of_lists_can_be_given_by_its_variable() {
    let values: BTreeMap<String, String> = documented()
        .into_iter()
        .filter_map(|setting| Some((reader::variable_of(&setting.key), setting.default?.trim_matches('"').to_owned())))
        .filter(|(_, value)| value != "[]")
        .collect();
    let all = env(&[DATABASE, AMQP]).into_iter().chain(values);
    let by_variables = Config::load(None, all).unwrap();
    let without = Config::load(None, env(&[DATABASE, AMQP])).unwrap();
    assert_eq!(format!("{by_variables:#?}"), format!("{without:#?}"));
}
