//! The keys that leave a container alone while it runs.

/// A sequence of keys, and how much of it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    typed: usize,
}

/// Docker's.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

impl DetachKeys {
    /// Reads docker's form: keys separated by commas, each a character or `ctrl-` and one of `a`-`z`, `@`, `[`, `\`,
    /// `]`, `^`, `_`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let sequence = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        match sequence {
            Some(sequence) => Ok(Self { sequence, typed: 0 }),
            None => Err(format!(
                "{text:?} is no sequence of keys; write them as in {DEFAULT}"
            )),
        }
    }

    /// What of these bytes is the container's, and whether the sequence is complete; what comes behind it is nobody's.
    pub(super) fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len() + self.typed);
        for byte in bytes {
            if self.sequence.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend(self.sequence.iter().take(self.typed));
            self.typed = usize::from(self.sequence.first() == Some(byte));
            if self.typed == 0 {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

fn key(text: &str) -> Option<u8> {
    match (text.as_bytes(), text.strip_prefix("ctrl-")) {
        ([byte], _) => Some(*byte),
        (_, Some(letter)) => match letter.as_bytes() {
            [byte @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Some(byte & 0x1f),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_dockers_form() {
        assert_eq!(DetachKeys::parse("ctrl-a,x").unwrap().sequence, [1, b'x']);
        assert_eq!(DetachKeys::parse("ctrl-@").unwrap().sequence, [0]);
        for wrong in ["", "ctrl-", "ctrl-1", "ab", "a,,b"] {
            assert!(DetachKeys::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sequence_may_be_typed_in_parts_and_begun_in_vain() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11z"), (Vec::new(), true));
    }
}
