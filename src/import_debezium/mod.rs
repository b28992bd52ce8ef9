//! A Debezium Server `.properties` as a postrider.toml, for `postrider import-debezium`.
//!
//! Text in, text out: nothing here looks at a server. What would change a body is refused with its line; what nothing depends on is named as
//! dropped in the file; what is not known here is not understood, and is refused too unless a person has decided otherwise.

mod dropped;
mod format;
mod given;
mod output;
mod patterns;
mod properties;
mod router;
mod sink;
mod source;
mod tables;
#[cfg(test)]
mod tests;

pub use given::Note;

use given::{Given, note};
use output::Toml;

/// What has come of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// To be used only if nothing was refused.
    pub toml: String,
    /// What would change what consumers are sent.
    pub refused: Vec<Note>,
    /// Properties that nobody here knows.
    pub unknown: Vec<Note>,
    /// What is different, and does not change a body.
    pub warnings: Vec<Note>,
    pub dropped: Vec<Note>,
    /// Debezium's slot.
    pub slot: String,
    /// Debezium's publication, which is of no use afterwards.
    pub publication: String,
    /// Why the slot cannot be taken over; empty: it can.
    pub not_adoptable: Vec<String>,
}

/// Reads the text of a file. `file`: its name, for the head of what comes out.
pub fn import(file: &str, text: &str) -> Imported {
    let mut given = Given::new(text);
    let mut toml = Toml::new();
    let key = format::check(&mut given);
    let router = router::take(&mut given, &mut toml);
    let source = source::map(&mut given, &mut toml, router.as_ref());
    sink::map(&mut given, &mut toml, &source, router.as_ref(), key);
    dropped::take(&mut given);
    let unknown: Vec<Note> = given.rest().iter().map(|item| note(item, "not understood")).collect();
    let Given { mut refused, mut dropped, mut warnings, .. } = given;
    for notes in [&mut refused, &mut dropped, &mut warnings] {
        notes.sort_by_key(|note| note.line.unwrap_or_default());
    }
    let head = format!(
        "Made by postrider import-debezium from {file}. docs/from-debezium.md says how to move, and what is different.\n\
         Passwords and salts are not copied."
    );
    let notes = [
        ("What is different:", warnings.as_slice()),
        ("Not understood, and left out:", unknown.as_slice()),
        ("Dropped, because no message depends on it:", dropped.as_slice()),
    ];
    Imported {
        toml: toml.render(&head, &notes),
        refused,
        unknown,
        warnings,
        dropped,
        slot: source.slot,
        publication: source.publication,
        not_adoptable: source.not_adoptable,
    }
}
