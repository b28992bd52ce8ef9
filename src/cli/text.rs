//! Texts for a terminal.

/// What an application wrote may hold control characters, and a terminal would obey them. `keep` are let through.
pub(super) fn harmless(text: &str, keep: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !keep.contains(&character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A size for a person.
pub(super) fn bytes(bytes: i64) -> String {
    const UNITS: [(i64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_obedient_to_an_application() {
        assert_eq!(harmless("a\u{1b}[31mb\u{9b}ä\n", &[]), "a\\u{1b}[31mb\\u{9b}ä\\n");
        assert_eq!(harmless("a\n\tb", &['\n', '\t']), "a\n\tb");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!([0, 1023, 1024, 17 << 20, 3 << 29].map(bytes), ["0 B", "1023 B", "1.0 KiB", "17.0 MiB", "1.5 GiB"]);
    }
}
