//! What strace wrote.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use sandbox_jail::seccomp::{Argument, Rule};

/// A system call of a thread.
#[derive(Debug)]
pub(crate) struct Call {
    /// The thread's name.
    pub(crate) thread: String,
    name: String,
    arguments: Vec<String>,
}

impl Call {
    /// Whether this rule allows it.
    pub(crate) fn is_by(&self, rule: &Rule) -> bool {
        let name = rule.name.trim_start_matches("SYS_");
        // strace's names of what the lists call as the kernel does.
        let same = match self.name.as_str() {
            "pread64" => name == "pread64",
            other => name == other,
        };
        let allows = |all: &&[Argument]| all.iter().all(|argument| self.has(*argument));
        same && (rule.arguments.is_empty() || rule.arguments.iter().any(allows))
    }

    fn has(&self, argument: Argument) -> bool {
        let value = |place: u8| {
            self.arguments
                .get(usize::from(place))
                .and_then(|text| number(text))
        };
        match argument {
            Argument::Is(place, wanted) => {
                // Arguments that the kernel takes as int.
                value(place).is_some_and(|value| value & 0xffff_ffff == u64::from(wanted))
            }
            Argument::Bits {
                argument,
                mask,
                value: wanted,
            } => value(argument).is_some_and(|value| value & mask == wanted),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Ok(number) = text.parse::<u64>() {
        return Some(number);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.cast_unsigned());
    }
    // Octal.
    text.strip_prefix('0')
        .and_then(|octal| u64::from_str_radix(octal, 8).ok())
}

/// The calls of each thread after it was confined, from the output of `strace -f -Y -X raw`. Where a filter is `inherited`, it is one of a
/// process that has no other thread yet: all that come later have it from the beginning.
pub(crate) fn confined(trace: &str, inherited: bool) -> Result<Vec<Call>> {
    let mut confined = BTreeSet::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (process, rest) = line.split_once('<').with_context(|| line.to_owned())?;
        let (thread, rest) = rest.split_once("> ").with_context(|| line.to_owned())?;
        let rest = rest.trim_start();
        let Some((name, arguments)) = rest.split_once('(') else {
            // Signals and ends.
            continue;
        };
        if rest.starts_with("<...") || rest.starts_with("---") || rest.starts_with("+++") {
            continue;
        }
        if name == "seccomp" {
            confined.insert(process.to_owned());
        } else if confined.contains(process) || (inherited && !confined.is_empty()) {
            calls.push(Call {
                thread: thread.to_owned(),
                name: name.to_owned(),
                arguments: in_order(name, split(arguments)),
            });
        }
    }
    ensure!(!calls.is_empty(), "nobody was confined:\n{trace}");
    Ok(calls)
}

/// The arguments as the kernel has them. Those of `clone` strace has by name, and the stack, which is the second, first.
fn in_order(name: &str, mut arguments: Vec<String>) -> Vec<String> {
    if name == "clone" {
        let flags = arguments.iter().find_map(|one| one.strip_prefix("flags="));
        if let Some(flags) = flags.map(str::to_owned) {
            arguments.insert(0, flags);
        }
    }
    arguments
}

/// The arguments, up to the closing parenthesis or where the line breaks off.
fn split(text: &str) -> Vec<String> {
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for character in text.chars() {
        match character {
            ')' if depth == 0 => break,
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                match character {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth -= 1,
                    _ => {}
                }
                if let Some(last) = parts.last_mut() {
                    last.push(character);
                }
            }
        }
        if parts
            .last()
            .is_some_and(|last| last.ends_with("<unfinished ..."))
        {
            break;
        }
    }
    parts
        .iter()
        .map(|part| part.replace("<unfinished ...", "").trim().to_owned())
        .collect()
}
