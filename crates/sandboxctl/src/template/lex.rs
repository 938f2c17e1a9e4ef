//! Text and actions, and the words of an action.

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// What stands between `{{` and `}}`.
    Action(&'a str),
}

/// Cuts a template into text and actions; trims text beside `{{-` and `-}}`, drops comments.
pub(super) fn pieces(template: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = template;
    let mut trim_start = false;
    loop {
        let Some(at) = rest.find("{{") else {
            found.push(Piece::Text(trimmed(rest, trim_start, false)));
            return Ok(found);
        };
        let (text, action) = (&rest[..at], &rest[at + 2..]);
        let trims =
            |text: &str| text.starts_with('-') && text[1..].starts_with(char::is_whitespace);
        let trim_end = trims(action);
        found.push(Piece::Text(trimmed(text, trim_start, trim_end)));
        let end = closing(action).ok_or_else(|| TemplateError::Unclosed {
            start: rest[at..].chars().take(20).collect(),
        })?;
        rest = &action[end + 2..];
        let mut action = &action[..end];
        if trim_end {
            action = &action[1..];
        }
        trim_start =
            action.ends_with('-') && action[..action.len() - 1].ends_with(char::is_whitespace);
        if trim_start {
            action = &action[..action.len() - 1];
        }
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            found.push(Piece::Action(action));
        }
    }
}

fn trimmed(text: &str, start: bool, end: bool) -> &str {
    let text = if start { text.trim_start() } else { text };
    if end { text.trim_end() } else { text }
}

/// Where the action ends: `}}` outside of strings and comments.
fn closing(action: &str) -> Option<usize> {
    if action
        .trim_start_matches('-')
        .trim_start()
        .starts_with("/*")
    {
        let end = action.find("*/")?;
        return action[end..].find("}}").map(|at| end + at);
    }
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in action.char_indices() {
        match (quote, c) {
            (Some('"'), _) if escaped => escaped = false,
            (Some('"'), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if action[at..].starts_with("}}") => return Some(at),
            (None, _) => {}
        }
    }
    None
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `.A.B`, without the dots; none for `.` alone. The flag: whether space stands before it.
    Field(Vec<String>, bool),
    /// `$name`; empty for `$`.
    Variable(String),
    Word(String),
    Text(String),
    Number(serde_json::Number),
    Pipe,
    Open,
    Close,
    Comma,
    Declare,
    Assign,
}

/// Cuts an action into words.
pub(super) fn tokens(action: &str) -> Result<Vec<Token>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = action;
    let mut spaced = true;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = rest.trim_start();
            spaced = true;
            continue;
        }
        let (token, used) = token(rest, first, spaced, action)?;
        found.push(token);
        rest = &rest[used..];
        spaced = false;
    }
    Ok(found)
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn name_len(text: &str) -> usize {
    text.find(|c| !is_name(c)).unwrap_or(text.len())
}

fn token(
    rest: &str,
    first: char,
    spaced: bool,
    action: &str,
) -> Result<(Token, usize), TemplateError> {
    let unexpected = || TemplateError::Unexpected {
        found: rest.chars().take(12).collect(),
        action: action.to_owned(),
    };
    Ok(match first {
        '|' => (Token::Pipe, 1),
        '(' => (Token::Open, 1),
        ')' => (Token::Close, 1),
        ',' => (Token::Comma, 1),
        '=' => (Token::Assign, 1),
        ':' if rest.starts_with(":=") => (Token::Declare, 2),
        '.' => {
            let mut names = Vec::new();
            let mut used = 0;
            while rest[used..].starts_with('.') {
                let len = name_len(&rest[used + 1..]);
                if len == 0 {
                    break;
                }
                names.push(rest[used + 1..used + 1 + len].to_owned());
                used += 1 + len;
            }
            (Token::Field(names, spaced), used.max(1))
        }
        '$' => {
            let len = name_len(&rest[1..]);
            (Token::Variable(rest[1..=len].to_owned()), 1 + len)
        }
        '"' => string(rest, action)?,
        '`' => {
            let end = rest[1..]
                .find('`')
                .ok_or_else(|| TemplateError::UnclosedString {
                    action: action.to_owned(),
                })?;
            (Token::Text(rest[1..=end].to_owned()), end + 2)
        }
        c if c.is_ascii_digit() || c == '-' || c == '+' => {
            let end = rest[1..]
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
                .map_or(rest.len(), |at| at + 1);
            let text = rest[..end].trim_start_matches('+');
            let number = text
                .parse::<i64>()
                .map(serde_json::Number::from)
                .ok()
                .or_else(|| text.parse().ok().and_then(serde_json::Number::from_f64))
                .ok_or_else(unexpected)?;
            (Token::Number(number), end)
        }
        c if is_name(c) => {
            let len = name_len(rest);
            (Token::Word(rest[..len].to_owned()), len)
        }
        _ => return Err(unexpected()),
    })
}

/// A string in Go's spelling, as far as it is also JSON's.
fn string(rest: &str, action: &str) -> Result<(Token, usize), TemplateError> {
    let unclosed = || TemplateError::UnclosedString {
        action: action.to_owned(),
    };
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let quoted = &rest[..=at];
                let text = serde_json::from_str(quoted).map_err(|_| TemplateError::Unexpected {
                    found: quoted.to_owned(),
                    action: action.to_owned(),
                })?;
                return Ok((Token::Text(text), at + 1));
            }
            _ => {}
        }
    }
    Err(unclosed())
}
