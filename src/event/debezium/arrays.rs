//! The text form of arrays.

/// An element, as its type's output function wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Element {
    Null,
    Text(String),
    /// An array of a further dimension, with its braces.
    Nested(String),
}

/// The elements of the first dimension. None: the text is not an array.
pub(super) fn elements(text: &str, delimiter: char) -> Option<Vec<Element>> {
    // `[0:2]={...}`: bounds that are not the usual ones are lost, as in Debezium.
    let body = if text.starts_with('[') { text.split_once('=')?.1 } else { text };
    let body = body.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    let mut letters = body.char_indices().peekable();
    if letters.peek().is_none() {
        return Some(elements);
    }
    loop {
        let mut value = String::new();
        let (mut quoted, mut nested) = (false, false);
        let (mut inside, mut depth) = (false, 0_usize);
        let mut more = false;
        while let Some((_, letter)) = letters.next() {
            if depth == 0 && !inside && letter == delimiter {
                more = true;
                break;
            }
            match letter {
                '\\' => {
                    if depth > 0 {
                        value.push(letter);
                    }
                    value.push(letters.next()?.1);
                    continue;
                }
                '"' => {
                    inside = !inside;
                    quoted = true;
                    if depth == 0 {
                        continue;
                    }
                }
                '{' if !inside => {
                    depth += 1;
                    nested = true;
                }
                '}' if !inside => depth = depth.checked_sub(1)?,
                _ => {}
            }
            value.push(letter);
        }
        if inside || depth > 0 {
            return None;
        }
        elements.push(match () {
            () if nested => Element::Nested(value),
            () if !quoted && value.eq_ignore_ascii_case("null") => Element::Null,
            () => Element::Text(value),
        });
        if !more {
            return Some(elements);
        }
    }
}
