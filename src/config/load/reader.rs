//! Looks settings up in their variable and in the file, and remembers what was asked for, so that whatever is left over
//! at the end is a mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::file::{self, Item, Table, Value};
use super::values::Parsed;
use super::{ConfigError, ConfigErrors, Origin};

const PREFIX: &str = "POSTRIDER_";

pub(super) struct Reader {
    /// Variables that nobody has asked for yet: `POSTRIDER_*`, and the four bare names of the URLs.
    env: BTreeMap<String, String>,
    path: String,
    /// What nobody has asked for yet.
    table: Table,
    keys: BTreeSet<String>,
    tables: BTreeSet<String>,
    variables: BTreeSet<String>,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
}

/// One element of an array of tables, such as a `[[route]]`. It has no variables.
pub(super) struct Entry {
    /// `route`, `topology.queues`.
    array: &'static str,
    /// The line of its first key.
    pub(super) line: usize,
    table: Table,
}

impl Reader {
    /// Opens the file, if any, and sorts the variables. A file that cannot be read or parsed is an error by itself.
    pub(super) fn open(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut env = of_ours(env);
        let named = env.remove("POSTRIDER_CONFIG");
        let path = file.map(|path| path.display().to_string()).or(named);
        match &path {
            None => Ok(Reader::new("", Table::new(), env)),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    let problem = format!("cannot read {path}: {error}");
                    ConfigErrors(vec![ConfigError { key: "--config".to_owned(), origin: Origin::Default, problem }])
                })?;
                Reader::of_text(path, &text, env)
            }
        }
    }

    /// With the file's text.
    pub(super) fn of_text(
        path: &str,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let table = file::parse(text).map_err(|faults| {
            let origin = |line| Origin::File { path: path.to_owned(), line };
            let error = |(line, problem)| ConfigError { key: "not TOML".to_owned(), origin: origin(line), problem };
            ConfigErrors(faults.into_iter().map(error).collect())
        })?;
        Ok(Reader::new(path, table, of_ours(env)))
    }

    fn new(path: &str, table: Table, env: BTreeMap<String, String>) -> Self {
        Reader {
            env,
            path: path.to_owned(),
            table,
            keys: BTreeSet::new(),
            tables: BTreeSet::new(),
            variables: BTreeSet::new(),
            origins: BTreeMap::new(),
            errors: Vec::new(),
        }
    }

    /// The setting at `path`, if it is given and good; a bad one is remembered as an error.
    pub(super) fn optional<T>(&mut self, path: &str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        self.know(path);
        let variable = variable_of(path);
        self.variables.insert(variable.clone());
        let in_file = self.take(path).map(|item| (self.in_file(item.line), item.value));
        let in_env = self.variable(&variable).map(|text| (Origin::Variable(variable), Value::Text(text)));
        let (origin, value) = in_env.or(in_file)?;
        self.origins.insert(path.to_owned(), origin);
        parse(&value).map_err(|problem| self.fault(path, problem)).ok()
    }

    pub(super) fn or<T>(&mut self, path: &str, default: T, parse: impl Fn(&Value) -> Parsed<T>) -> T {
        self.optional(path, parse).unwrap_or(default)
    }

    /// A variable outside the scheme (`DATABASE_URL`, `*_FILE`), once.
    pub(super) fn variable(&mut self, name: &str) -> Option<String> {
        self.variables.insert(name.to_owned());
        self.env.remove(name)
    }

    /// A setting that stands in the file alone.
    pub(super) fn only_in_file(&mut self, path: &str) -> Option<(Origin, Value)> {
        self.know(path);
        let item = self.take(path)?;
        Some((self.in_file(item.line), item.value))
    }

    /// Whether the file has the table, be it empty.
    pub(super) fn has_table(&mut self, path: &str) -> bool {
        matches!(self.table.get(path), Some(Item { value: Value::Table(_), .. }))
    }

    /// The elements of an array of tables.
    pub(super) fn entries(&mut self, array: &'static str) -> Vec<Entry> {
        // Known also while there is none of it.
        self.know_tables(array);
        self.tables.insert(array.to_owned());
        let Some(item) = self.take(array) else { return Vec::new() };
        let Value::List(elements) = item.value else {
            let problem = format!("must be a list of tables: write [[{array}]], not [{array}]");
            self.fault_at(array, self.in_file(item.line), problem);
            return Vec::new();
        };
        let mut entries = Vec::new();
        for element in elements {
            let Value::Table(table) = element.value else {
                let problem = format!("must be a table, not {}: write [[{array}]]", element.value.kind());
                self.fault_at(array, self.in_file(element.line), problem);
                continue;
            };
            let line = table.values().map(|item| item.line).min().unwrap_or(element.line);
            entries.push(Entry { array, line, table });
        }
        entries
    }

    /// A key of an element.
    pub(super) fn field<T>(&mut self, entry: &mut Entry, key: &str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        let path = format!("{}.{key}", entry.array);
        self.know(&path);
        let item = entry.table.remove(key)?;
        parse(&item.value).map_err(|problem| self.fault_at(&path, self.in_file(item.line), problem)).ok()
    }

    /// As [`Reader::field`]; its absence is an error.
    pub(super) fn required<T>(
        &mut self,
        entry: &mut Entry,
        key: &str,
        parse: impl Fn(&Value) -> Parsed<T>,
    ) -> Option<T> {
        if !entry.table.contains_key(key) {
            self.fault_in(entry, key, "missing".to_owned());
        }
        self.field(entry, key, parse)
    }

    /// Call it when all fields have been read: the rest is unknown.
    pub(super) fn close(&mut self, entry: Entry) {
        self.unknown(entry.array, &entry.table);
    }

    /// Something is wrong with the setting at `path`, wherever it was given.
    pub(super) fn fault(&mut self, path: &str, problem: String) {
        let origin = self.origins.get(path).cloned().unwrap_or(Origin::Default);
        self.fault_at(path, origin, problem);
    }

    pub(super) fn fault_in(&mut self, entry: &Entry, key: &str, problem: String) {
        self.fault_at(&format!("{}.{key}", entry.array), self.in_file(entry.line), problem);
    }

    pub(super) fn fault_at(&mut self, path: &str, origin: Origin, problem: String) {
        self.errors.push(ConfigError { key: path.to_owned(), origin, problem });
    }

    pub(super) fn remember(&mut self, path: &str, origin: Origin) {
        self.origins.insert(path.to_owned(), origin);
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn keys(&self) -> &BTreeSet<String> {
        &self.keys
    }

    /// Reports what is left over, and whether anything was wrong.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        let table = std::mem::take(&mut self.table);
        self.unknown("", &table);
        for name in std::mem::take(&mut self.env).into_keys() {
            let hint = did_you_mean(&name, self.variables.iter());
            self.fault_at(&name.clone(), Origin::Variable(name), format!("unknown variable{hint}"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }

    fn unknown(&mut self, prefix: &str, table: &Table) {
        for (key, item) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let known_table = self.tables.contains(&path);
            match &item.value {
                Value::Table(inner) if known_table => self.unknown(&path, inner),
                other if known_table => {
                    let problem = format!("must be a table, not {}: write [{path}]", other.kind());
                    self.fault_at(&path, self.in_file(item.line), problem);
                }
                _ => {
                    let is_table = matches!(item.value, Value::Table(_) | Value::List(_));
                    let hint = did_you_mean(&path, if is_table { self.tables.iter() } else { self.keys.iter() });
                    self.fault_at(&path, self.in_file(item.line), format!("unknown key{hint}"));
                }
            }
        }
    }

    fn know(&mut self, path: &str) {
        self.keys.insert(path.to_owned());
        self.know_tables(path);
    }

    /// The tables that `path` lies in.
    fn know_tables(&mut self, path: &str) {
        let mut rest = path;
        while let Some((table, _)) = rest.rsplit_once('.') {
            self.tables.insert(table.to_owned());
            rest = table;
        }
    }

    fn in_file(&self, line: usize) -> Origin {
        Origin::File { path: self.path.clone(), line }
    }

    /// Takes the value at a dotted path out of the file's tree.
    fn take(&mut self, path: &str) -> Option<Item> {
        let mut table = &mut self.table;
        let mut rest = path;
        while let Some((head, tail)) = rest.split_once('.') {
            let Some(Item { value: Value::Table(inner), .. }) = table.get_mut(head) else { return None };
            (table, rest) = (inner, tail);
        }
        table.remove(rest)
    }
}

/// `limits.window` is `POSTRIDER_LIMITS_WINDOW`.
pub(super) fn variable_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// The variables that concern us and are not empty.
fn of_ours(env: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    env.into_iter().filter(|(name, value)| !value.is_empty() && concerns_us(name)).collect()
}

/// Kubernetes gives every container of a namespace with a Service named `postrider` the variables
/// `POSTRIDER_SERVICE_HOST`, `POSTRIDER_PORT_9750_TCP` and so on, and Docker's links do the same: they are not ours.
fn concerns_us(name: &str) -> bool {
    const URLS: [&str; 4] = ["DATABASE_URL", "DATABASE_URL_FILE", "AMQP_URL", "AMQP_URL_FILE"];
    const FOREIGN: [&str; 3] = ["TEST_", "SERVICE_", "PORT_"];
    match name.strip_prefix(PREFIX) {
        // Elsewhere they are mistakes, and a relay that is told to have a fault says that it has none to offer.
        Some(_) if cfg!(feature = "chaos") && crate::faults::VARIABLES.contains(&name) => false,
        Some(rest) => rest != "PORT" && !FOREIGN.iter().any(|foreign| rest.starts_with(foreign)),
        None => URLS.contains(&name),
    }
}

fn did_you_mean<'k>(wrong: &str, known: impl Iterator<Item = &'k String>) -> String {
    // Two slips in a short name, more in a long one; beyond that a suggestion is noise.
    let allowed = 2 + wrong.len() / 12;
    let distance = |known: &String| strsim::damerau_levenshtein(wrong, known);
    known
        .map(|known| (distance(known), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map_or(String::new(), |(_, known)| format!("; did you mean {known}?"))
}
