//! How a layer is compressed, told by its first bytes.
//!
//! The media type is not believed: images whose layers are compressed otherwise than declared are common, and every
//! other tool looks at the bytes too.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// A compression of layers and archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None.
    Plain,
    /// gzip (RFC 1952), of any number of members.
    Gzip,
    /// Zstandard (RFC 8878), of any number of frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "a plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

const BUFFER_BYTES: usize = 128 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How a stream that begins with `start` is compressed.
pub(crate) fn sniff(start: &[u8]) -> Compression {
    if start.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if start.starts_with(&ZSTD_MAGIC) {
        Compression::Zstd
    } else {
        Compression::Plain
    }
}

/// A stream, decompressed.
pub(crate) struct Decompressed<'a> {
    /// How it was compressed.
    pub(crate) compression: Compression,
    /// Whether reading failed: the stream is not what it began as.
    pub(crate) broken: bool,
    reader: Box<dyn Read + 'a>,
}

impl<'a> Decompressed<'a> {
    /// Looks at the first bytes of `blob` and decompresses it accordingly.
    pub(crate) fn new(blob: impl Read + 'a) -> io::Result<Self> {
        let mut blob = BufReader::with_capacity(BUFFER_BYTES, blob);
        let compression = sniff(blob.fill_buf()?);
        let reader: Box<dyn Read + 'a> = match compression {
            Compression::Plain => Box::new(blob),
            Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
        };
        Ok(Self {
            compression,
            broken: false,
            reader,
        })
    }
}

impl Read for Decompressed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.reader.read(buf);
        self.broken |= result.is_err() && self.compression != Compression::Plain;
        result
    }
}
