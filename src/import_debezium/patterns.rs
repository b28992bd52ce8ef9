//! Debezium's regular expressions as our patterns, where both mean the same.

/// Why an expression has no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPattern {
    #[error("is a regular expression that `*` cannot say")]
    Expression,
    #[error("has not {0} names with dots between them")]
    Names(usize),
}

/// One expression for `names` names with dots between them, as our pattern. A bare dot is taken for the dot between two names, as everybody
/// writes it.
pub(super) fn pattern(expression: &str, names: usize) -> Result<String, NoPattern> {
    let pattern = text(expression.trim_start_matches('^').trim_end_matches('$'))?;
    // `public.*` is meant as "everything in public".
    let parts: Vec<&str> = pattern.split('.').collect();
    let everything = pattern == "*" && names > 1;
    if everything {
        return Ok(vec!["*"; names].join("."));
    }
    if parts.len() != names || parts.iter().any(|part| part.is_empty()) {
        return Err(NoPattern::Names(names));
    }
    Ok(pattern)
}

/// The same for a text in which dots are nothing special.
pub(super) fn text(expression: &str) -> Result<String, NoPattern> {
    let mut pattern = String::with_capacity(expression.len());
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            // What is escaped stands for itself, unless it is a class such as \d.
            '\\' => match rest.chars().next() {
                Some(escaped) if !escaped.is_alphanumeric() && escaped != '*' => {
                    pattern.push(escaped);
                    rest = rest.get(escaped.len_utf8()..).unwrap_or_default();
                }
                _ => return Err(NoPattern::Expression),
            },
            '[' => {
                rest = rest.strip_prefix(".]").ok_or(NoPattern::Expression)?;
                pattern.push('.');
            }
            // `public.*`: whoever writes it means the dot, and everything behind it.
            '.' if rest.starts_with('*') => {
                rest = rest.get(1..).unwrap_or_default();
                let name = !pattern.is_empty() && !pattern.contains('.') && !rest.contains('.') && !rest.contains('*');
                pattern.push_str(if name { ".*" } else { "*" });
            }
            '*' | '+' | '?' | '(' | ')' | '|' | '{' | '}' | ']' | '^' | '$' => return Err(NoPattern::Expression),
            c => pattern.push(c),
        }
    }
    Ok(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_star_can_say_is_carried_over() {
        let cases = [
            ("public.orders", "public.orders"),
            (r"public\.orders", "public.orders"),
            ("public[.]orders", "public.orders"),
            ("^public.orders$", "public.orders"),
            (r"public\..*", "public.*"),
            ("public.*", "public.*"),
            (r".*\.orders", "*.orders"),
            (".*", "*.*"),
            (r"sales\.order_.*", "sales.order_*"),
            (r"app\.Order\-Lines", "app.Order-Lines"),
        ];
        for (expression, expected) in cases {
            assert_eq!(pattern(expression, 2).as_deref(), Ok(expected), "{expression}");
        }
        assert_eq!(pattern("public.orders.email", 3).as_deref(), Ok("public.orders.email"));
    }

    #[test]
    fn other_expressions_are_not_guessed() {
        for expression in
            ["public.(a|b)", "public.a|public.b", "public.a+", r"public\.a\d", "public.a?", "public.[ab]", "(?i)a.b"]
        {
            assert_eq!(pattern(expression, 2), Err(NoPattern::Expression), "{expression}");
        }
        for expression in ["orders", "a.b.c", "public."] {
            assert_eq!(pattern(expression, 2), Err(NoPattern::Names(2)), "{expression}");
        }
    }
}
