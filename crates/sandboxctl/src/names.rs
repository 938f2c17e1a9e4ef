//! Identifiers and names that people did not choose.

use std::fs::File;
use std::io::{self, Read as _};

/// 64 hexadecimal digits, as docker's identifiers are.
pub(crate) fn random_id() -> io::Result<String> {
    let mut bytes = [0_u8; 32];
    fill(&mut bytes)?;
    let mut id = String::with_capacity(64);
    for byte in bytes {
        id.push(char::from(DIGITS[usize::from(byte >> 4)]));
        id.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    // docker does not give out identifiers whose short form is a number: a shell or a host name would take
    // it for one.
    if id.as_bytes()[..SHORT].iter().all(u8::is_ascii_digit) {
        id.replace_range(..1, "a");
    }
    Ok(id)
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Digits of the short form.
const SHORT: usize = 12;

/// The first twelve characters of an identifier.
pub(crate) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// Two words joined by `_`, that a person can say and remember.
pub(crate) fn random_name() -> io::Result<String> {
    let mut bytes = [0_u8; 2];
    fill(&mut bytes)?;
    Ok(format!(
        "{}_{}",
        ADJECTIVES[usize::from(bytes[0]) % ADJECTIVES.len()],
        NOUNS[usize::from(bytes[1]) % NOUNS.len()]
    ))
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

const ADJECTIVES: [&str; 48] = [
    "amber", "ancient", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy",
    "crisp", "curious", "dapper", "eager", "early", "fair", "fleet", "fresh", "gentle", "golden",
    "hardy", "honest", "jolly", "keen", "kind", "light", "lively", "lucid", "merry", "mild",
    "modest", "neat", "nimble", "noble", "patient", "placid", "plain", "proud", "quick", "quiet",
    "rapid", "sober", "steady", "still", "sturdy", "tidy", "warm", "wise",
];

const NOUNS: [&str; 48] = [
    "acorn", "anvil", "badger", "basalt", "beacon", "birch", "brook", "cedar", "cliff", "clover",
    "comet", "coral", "crane", "dune", "ember", "falcon", "fern", "finch", "fjord", "flint",
    "glade", "harbor", "hazel", "heron", "island", "juniper", "kestrel", "lantern", "lark",
    "linden", "maple", "marsh", "meadow", "otter", "pebble", "pine", "plover", "quartz", "raven",
    "reef", "river", "rowan", "sparrow", "summit", "thistle", "valley", "willow", "wren",
];

/// The names out of `known` that `wanted` may have been meant as, nearest first.
pub(crate) fn near<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<(usize, &str)> = known
        .filter_map(|name| {
            let distance = distance(wanted, name);
            let close = distance <= 2.max(wanted.len() / 3) || name.contains(wanted);
            close.then_some((distance, name))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, name)| name).take(3).collect()
}

/// The Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(256).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(256).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_types::ContainerId;

    #[test]
    fn random_id_is_container_id() {
        let id = random_id().unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(short(&id).len(), 12);
        ContainerId::new(id).unwrap();
    }

    #[test]
    fn random_name_is_container_name() {
        for adjective in ADJECTIVES {
            for noun in NOUNS {
                ContainerId::new(format!("{adjective}_{noun}")).unwrap();
            }
        }
        assert!(random_name().unwrap().contains('_'));
    }

    #[test]
    fn near_finds_misspelling() {
        let known = ["alpine:latest", "demo", "busybox"];
        assert_eq!(near("dmeo", known.into_iter()), ["demo"]);
        assert_eq!(near("alpine", known.into_iter()), ["alpine:latest"]);
        assert!(near("postgres", known.into_iter()).is_empty());
    }
}
