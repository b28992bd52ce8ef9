//! Java's `.properties`, as `java.util.Properties.load` reads them, with the line on which each property begins.

/// One property. Line numbers begin with 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub line: usize,
    pub name: String,
    pub value: String,
}

/// Never fails: whatever a line is, Java finds a name in it. A `\u` without four hexadecimal digits, which Java refuses, stays as it is.
pub(super) fn parse(text: &str) -> Vec<Property> {
    let lines: Vec<&str> = natural_lines(text);
    let mut properties = Vec::new();
    let mut at = 0;
    while let Some(first) = lines.get(at) {
        let line = at + 1;
        at += 1;
        let first = first.trim_start_matches(BLANKS);
        // A comment is one line, whatever it ends with.
        if first.is_empty() || first.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = first.to_owned();
        while continues(&logical) {
            logical.pop();
            let Some(next) = lines.get(at) else { break };
            logical.push_str(next.trim_start_matches(BLANKS));
            at += 1;
        }
        if !logical.is_empty() {
            let (name, value) = split(&logical);
            properties.push(Property { line, name: unescape(name), value: unescape(value) });
        }
    }
    properties
}

/// What Java takes for white space here.
const BLANKS: [char; 3] = [' ', '\t', '\u{c}'];

/// Lines end with LF, CR or both.
fn natural_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    for line in text.trim_start_matches('\u{feff}').split('\n') {
        lines.extend(line.strip_suffix('\r').unwrap_or(line).split('\r'));
    }
    lines
}

/// An odd number of backslashes at the end: the last one escapes the end of the line.
fn continues(line: &str) -> bool {
    line.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1
}

/// At the first `=`, `:` or blank that is not escaped. Blanks around the separator belong to nothing.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line.char_indices().find_map(|(at, c)| {
        let ends = !escaped && (matches!(c, '=' | ':') || BLANKS.contains(&c));
        escaped = c == '\\' && !escaped;
        ends.then_some(at)
    });
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_start_matches(BLANKS);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (name, rest.trim_start_matches(BLANKS))
}

fn unescape(text: &str) -> String {
    // As UTF-16, because a character beyond the first plane is two escapes.
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let c = match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', None) => break,
            ('\\', Some('u')) => match unit(rest.as_str()) {
                Some((unit, after)) => {
                    units.push(unit);
                    rest = after.chars();
                    continue;
                }
                None => {
                    units.push(u16::from(b'\\'));
                    'u'
                }
            },
            ('\\', Some('t')) => '\t',
            ('\\', Some('n')) => '\n',
            ('\\', Some('r')) => '\r',
            ('\\', Some('f')) => '\u{c}',
            (_, Some(escaped)) => escaped,
            (plain, None) => plain,
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16_lossy(&units)
}

/// Four hexadecimal digits at the start, and what follows them.
fn unit(text: &str) -> Option<(u16, &str)> {
    let (digits, after) = text.split_at_checked(4)?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((u16::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)?, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(usize, String, String)> {
        parse(text).into_iter().map(|property| (property.line, property.name, property.value)).collect()
    }

    #[test]
    fn names_and_values_are_found_as_java_finds_them() {
        let cases = [
            ("a=b", "a", "b"),
            ("a:b", "a", "b"),
            ("a b", "a", "b"),
            ("  a \t = \t b c ", "a", "b c "),
            ("a", "a", ""),
            ("a=", "a", ""),
            ("a==b", "a", "=b"),
            ("a = = b", "a", "= b"),
            (r"a\=b\ c=d", "a=b c", "d"),
            (r"a=\#\!\:\\x\q", "a", r"#!:\xq"),
            (r"a=\t\n\r\f", "a", "\t\n\r\u{c}"),
            (r"\u0061=\u00e4\u20AC", "a", "ä€"),
            (r"a=\ud83d\ude00", "a", "😀"),
            (r"a=\u12", "a", r"\u12"),
            ("a=ä", "a", "ä"),
            ("=b", "", "b"),
        ];
        for (text, name, value) in cases {
            assert_eq!(parsed(text), [(1, name.to_owned(), value.to_owned())], "{text}");
        }
    }

    #[test]
    fn lines_are_counted_through_comments_blanks_and_continuations() {
        let text = "# a=1 \\\n! b=2\r\n\r\n  c = one,\\\r\n     two,\\\n\tthree\nd=4\r e=\\\\\nf=6\\";
        let found = parsed(text);
        let expected = [(4, "c", "one,two,three"), (7, "d", "4"), (8, "e", "\\"), (9, "f", "6")];
        assert_eq!(found, expected.map(|(line, name, value)| (line, name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_continued_line_may_look_like_a_comment() {
        assert_eq!(parsed("a=1\\\n#2\nb=3"), [(1, "a".into(), "1#2".into()), (3, "b".into(), "3".into())]);
    }
}
