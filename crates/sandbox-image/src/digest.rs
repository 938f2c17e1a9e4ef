//! SHA-256 digests and readers that compute or demand them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a string is not a digest that this store works with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not `algorithm:hex`.
    #[error("{text:?} is not a digest of the form sha256:<64 hexadecimal digits>")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// Another algorithm than SHA-256.
    #[error("digest {text:?} uses an algorithm other than sha256, which is the only one supported")]
    Algorithm {
        /// What was given.
        text: String,
    },
}

/// A SHA-256 digest, written `sha256:<64 lower-case hexadecimal digits>` (OCI image spec, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of what went into `hasher`.
    pub(crate) fn from_hasher(hasher: &Sha256) -> Self {
        Self(hasher.clone().finalize().into())
    }

    /// The 64 hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed {
            text: text.to_owned(),
        };
        let (algorithm, value) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm {
                text: text.to_owned(),
            });
        }
        if value.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Passes bytes through and keeps their digest and count.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            count: 0,
        }
    }

    /// What is read from.
    pub(crate) fn inner(&self) -> &R {
        &self.inner
    }

    /// Reads to the end, but at most `limit` bytes more, and gives the digest and number of all bytes that went
    /// through; `None` if that was not the end.
    pub(crate) fn finish(&mut self, limit: u64) -> io::Result<Option<(Digest, u64)>> {
        let rest = io::copy(&mut (&mut *self).take(limit), &mut io::sink())?;
        if rest == limit && self.read(&mut [0])? != 0 {
            return Ok(None);
        }
        let digest = Digest::from_hasher(&self.hasher);
        Ok(Some((digest, self.count)))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(read) = buf.get(..n) {
            self.hasher.update(read);
        }
        self.count = self.count.saturating_add(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_known_bytes_round_trips() {
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::of(b"abc"));
    }

    #[test]
    fn digest_that_is_malformed_is_refused() {
        for text in ["", "abc", "sha256:", "sha256:../../etc/passwd", "sha256:BA"] {
            assert!(
                matches!(text.parse::<Digest>(), Err(DigestError::Malformed { .. })),
                "{text}"
            );
        }
        let sha512 = format!("sha512:{}", "0".repeat(128));
        assert!(matches!(
            sha512.parse::<Digest>(),
            Err(DigestError::Algorithm { .. })
        ));
    }

    #[test]
    fn hashing_reader_finish_covers_unread_bytes() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        let mut one = [0; 1];
        reader.read_exact(&mut one).unwrap();
        assert_eq!(reader.finish(2).unwrap(), Some((Digest::of(b"abc"), 3)));
        assert_eq!(HashingReader::new(&b"abc"[..]).finish(2).unwrap(), None);
    }
}
