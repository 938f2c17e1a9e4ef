//! How an entry is written: the JSON that serde_json makes of [`super::Entry`], byte for byte.
//!
//! All that a container writes passes here. So what needs no escaping is found many bytes at a time, and copied once.

use std::borrow::Cow;

/// How many bytes are looked at together.
const GROUP: usize = 32;

/// Where the first newline is.
pub(super) fn newline(bytes: &[u8]) -> Option<usize> {
    first(bytes, |byte| byte == b'\n')
}

/// Where the first byte is that `is_sought`. What is asked must be so simple that the compiler asks it of a whole group at once.
fn first(bytes: &[u8], is_sought: impl Fn(u8) -> bool) -> Option<usize> {
    let (groups, _) = bytes.as_chunks::<GROUP>();
    let without = groups
        .iter()
        .take_while(|group| !group.iter().fold(false, |any, byte| any | is_sought(*byte)))
        .count();
    let start = without * GROUP;
    let rest = bytes.get(start..).unwrap_or_default();
    let found = rest.iter().position(|byte| is_sought(*byte))?;
    Some(start + found)
}

/// Appends an entry, and the newline that ends it. What is not UTF-8 in `log` is replaced. `stream` and `time` are of the
/// kind that needs no escaping.
pub(super) fn append_entry(entries: &mut Vec<u8>, log: &[u8], stream: &str, time: &str) {
    // The lossy conversion looks at each byte alone, which most output does not need.
    let log = std::str::from_utf8(log).map_or_else(|_| String::from_utf8_lossy(log), Cow::Borrowed);
    entries.extend_from_slice(b"{\"log\":\"");
    append_escaped(entries, log.as_bytes());
    entries.extend_from_slice(b"\",\"stream\":\"");
    entries.extend_from_slice(stream.as_bytes());
    entries.extend_from_slice(b"\",\"time\":\"");
    entries.extend_from_slice(time.as_bytes());
    entries.extend_from_slice(b"\"}\n");
}

/// The inside of a JSON string (RFC 8259, 7).
fn append_escaped(entries: &mut Vec<u8>, mut text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    loop {
        let special = first(text, |byte| byte < b' ' || byte == b'"' || byte == b'\\');
        let (plain, rest) = text.split_at(special.unwrap_or(text.len()));
        entries.extend_from_slice(plain);
        let Some((byte, rest)) = rest.split_first() else {
            return;
        };
        text = rest;
        let short = match byte {
            b'"' | b'\\' => *byte,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x08 => b'b',
            0x0c => b'f',
            _ => {
                let digit = |value: u8| DIGITS.get(usize::from(value & 0xf)).copied();
                entries.extend_from_slice(b"\\u00");
                entries.extend(digit(byte >> 4).into_iter().chain(digit(*byte)));
                continue;
            }
        };
        entries.extend([b'\\', short]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Entry;
    use super::*;

    proptest! {
        #[test]
        fn entry_is_what_serde_json_writes(
            log in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "(?s).{0,200}".prop_map(String::into_bytes),
                "[ -~]{0,200}\n?".prop_map(String::into_bytes),
            ],
        ) {
            let mut written = b"before\n".to_vec();
            append_entry(&mut written, &log, "stdout", "2026-01-02T03:04:05.000000006Z");
            let expected = serde_json::to_string(&Entry {
                log: String::from_utf8_lossy(&log),
                stream: "stdout".into(),
                time: "2026-01-02T03:04:05.000000006Z".into(),
            })
            .unwrap();
            prop_assert_eq!(String::from_utf8(written).unwrap(), format!("before\n{expected}\n"));
        }

        #[test]
        fn newline_is_the_first(bytes in prop::collection::vec(9_u8..12, 0..100)) {
            prop_assert_eq!(newline(&bytes), bytes.iter().position(|byte| *byte == b'\n'));
        }
    }

    #[test]
    fn newline_is_found_behind_groups_without_one() {
        for at in 0..100 {
            let mut line = vec![b'x'; at];
            assert_eq!(newline(&line), None);
            line.extend(b"\nx\n");
            assert_eq!(newline(&line), Some(at));
        }
    }
}
