//! The functions of templates, Go's and docker's, and how values are shown.

use std::cmp::Ordering;

use serde_json::Value;

use super::TemplateError;
use crate::names;

/// Every function.
pub(super) const NAMES: [&str; 23] = [
    "and", "eq", "ge", "gt", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not",
    "or", "pad", "print", "println", "slice", "split", "title", "truncate", "upper", "printf",
];

/// The name, if there is such a function.
pub(super) fn known(name: &str) -> Result<String, TemplateError> {
    if NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    let near = names::near(name, NAMES.into_iter());
    Err(TemplateError::NoFunction {
        name: name.to_owned(),
        near: near.into_iter().map(str::to_owned).collect(),
    })
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Whether a value is not the zero of its kind (Go).
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let shown: Vec<String> = list.iter().map(show).collect();
            format!("[{}]", shown.join(" "))
        }
        Value::Object(map) => {
            let mut shown: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", show(value)))
                .collect();
            shown.sort();
            format!("map[{}]", shown.join(" "))
        }
    }
}

pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = |takes| TemplateError::Arguments {
        function: name.to_owned(),
        takes,
    };
    let text = |change: fn(&str) -> String| match arguments {
        [value] => Ok(Value::String(change(&show(value)))),
        _ => Err(wrong("one text")),
    };
    match name {
        "json" => match arguments {
            [value] => Ok(Value::String(value.to_string())),
            _ => Err(wrong("one value")),
        },
        "upper" => text(str::to_uppercase),
        "lower" => text(str::to_lowercase),
        "title" => text(title),
        "join" => match arguments {
            [Value::Array(list), Value::String(between)] => {
                let shown: Vec<String> = list.iter().map(show).collect();
                Ok(Value::String(shown.join(between)))
            }
            [Value::Null, Value::String(_)] => Ok(Value::String(String::new())),
            _ => Err(wrong("a list and a text")),
        },
        "split" => match arguments {
            [Value::String(whole), Value::String(between)] => Ok(whole
                .split(between.as_str())
                .map(|part| Value::String(part.to_owned()))
                .collect()),
            _ => Err(wrong("a text and what separates its parts")),
        },
        "truncate" => match (arguments, arguments.get(1).and_then(Value::as_u64)) {
            ([value, _], Some(most)) => {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                Ok(Value::String(show(value).chars().take(most).collect()))
            }
            _ => Err(wrong("a text and a number of characters")),
        },
        "pad" => pad(arguments).ok_or_else(|| wrong("a text and two numbers of spaces")),
        "len" => length(arguments).ok_or_else(|| wrong("a text, a list or a map")),
        "index" => match arguments.split_first() {
            Some((value, keys)) if !keys.is_empty() => index(value, keys),
            _ => Err(wrong("a list or a map, and what to look up in it")),
        },
        "slice" => slice(arguments),
        "print" | "println" => {
            let shown: Vec<String> = arguments.iter().map(show).collect();
            let end = if name == "println" { "\n" } else { "" };
            Ok(Value::String(format!("{}{end}", shown.join(" "))))
        }
        "printf" => match arguments.split_first() {
            Some((Value::String(format), values)) => Ok(Value::String(printf(format, values))),
            _ => Err(wrong("a format and values")),
        },
        "and" | "or" => arguments
            .iter()
            .find(|value| truth(value) == (name == "or"))
            .or(arguments.last())
            .cloned()
            .ok_or_else(|| wrong("values")),
        "not" => match arguments {
            [value] => Ok(Value::Bool(!truth(value))),
            _ => Err(wrong("one value")),
        },
        "eq" => match arguments.split_first() {
            Some((first, others)) if !others.is_empty() => {
                Ok(Value::Bool(others.iter().any(|other| equal(first, other))))
            }
            _ => Err(wrong("two values or more")),
        },
        "ne" => match arguments {
            [a, b] => Ok(Value::Bool(!equal(a, b))),
            _ => Err(wrong("two values")),
        },
        _ => {
            let order = match arguments {
                [Value::String(a), Value::String(b)] => Some(a.cmp(b)),
                [Value::Number(a), Value::Number(b)] => a
                    .as_f64()
                    .zip(b.as_f64())
                    .and_then(|(a, b)| a.partial_cmp(&b)),
                _ => None,
            };
            let order = order.ok_or_else(|| wrong("two numbers or two texts"))?;
            Ok(Value::Bool(match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }))
        }
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn pad(arguments: &[Value]) -> Option<Value> {
    let [value, before, after] = arguments else {
        return None;
    };
    // Wide enough for any terminal.
    let spaces =
        |count: &Value| Some(" ".repeat(usize::try_from(count.as_u64()?.min(1_000)).ok()?));
    let shown = show(value);
    Some(Value::String(match shown.is_empty() {
        true => shown,
        false => format!("{}{shown}{}", spaces(before)?, spaces(after)?),
    }))
}

fn length(arguments: &[Value]) -> Option<Value> {
    let len = match arguments {
        [Value::String(text)] => text.len(),
        [Value::Array(list)] => list.len(),
        [Value::Object(map)] => map.len(),
        [Value::Null] => 0,
        _ => return None,
    };
    Some(Value::from(len))
}

/// What is at a place in a list or a map, and there at the next place. What a map does not have is empty.
pub(super) fn index(value: &Value, keys: &[Value]) -> Result<Value, TemplateError> {
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Object(map), Value::String(key)) => map
                .get(key)
                .cloned()
                .unwrap_or(Value::String(String::new())),
            (Value::Array(list), Value::Number(at)) => at
                .as_u64()
                .and_then(|at| list.get(usize::try_from(at).ok()?))
                .cloned()
                .ok_or_else(|| TemplateError::Index {
                    index: at.to_string(),
                    len: list.len(),
                })?,
            (Value::Null, _) => Value::String(String::new()),
            _ => {
                return Err(TemplateError::Arguments {
                    function: "index".to_owned(),
                    takes: "a list and numbers, or a map and texts",
                });
            }
        };
    }
    Ok(value)
}

/// Go's `x[a:b]`, by bytes of a text and items of a list.
fn slice(arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || TemplateError::Arguments {
        function: "slice".to_owned(),
        takes: "a text or a list, and one or two places in it",
    };
    let Some((value, places)) = arguments.split_first().filter(|(_, rest)| rest.len() <= 2) else {
        return Err(wrong());
    };
    let at = |place: Option<&Value>, default| match place {
        None => Some(default),
        Some(place) => place.as_u64().and_then(|at| usize::try_from(at).ok()),
    };
    let outside = |len| TemplateError::Index {
        index: places.iter().map(show).collect::<Vec<_>>().join(":"),
        len,
    };
    match value {
        Value::String(text) => {
            let from = at(places.first(), 0).ok_or_else(wrong)?;
            let to = at(places.get(1), text.len()).ok_or_else(wrong)?;
            let part = text.get(from..to).ok_or_else(|| outside(text.len()))?;
            Ok(Value::String(part.to_owned()))
        }
        Value::Array(list) => {
            let from = at(places.first(), 0).ok_or_else(wrong)?;
            let to = at(places.get(1), list.len()).ok_or_else(wrong)?;
            let part = list.get(from..to).ok_or_else(|| outside(list.len()))?;
            Ok(Value::Array(part.to_vec()))
        }
        _ => Err(wrong()),
    }
}

/// `%s`, `%v`, `%d`, `%q`, `%t` and `%%`; a width is kept up to a hundred.
fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        let verb = loop {
            match characters.next() {
                Some(flag) if flag.is_ascii_digit() || flag == '-' => flags.push(flag),
                other => break other,
            }
        };
        let width: usize = flags.trim_start_matches('-').parse().unwrap_or(0).min(100);
        let shown = match verb {
            Some('%') => "%".to_owned(),
            Some('q') => values
                .next()
                .map_or_else(String::new, |value| Value::String(show(value)).to_string()),
            Some('s' | 'v' | 'd' | 't') => {
                values.next().map_or_else(|| "%!(MISSING)".to_owned(), show)
            }
            Some(other) => format!("%!{other}"),
            None => "%!(NOVERB)".to_owned(),
        };
        if flags.starts_with('-') {
            out.push_str(&format!("{shown:<width$}"));
        } else {
            out.push_str(&format!("{shown:>width$}"));
        }
    }
    out
}
