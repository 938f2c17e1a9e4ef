//! Bytes that both ends know, in which no piece can be lost, doubled or moved unseen.

use std::io::{self, Read, Write};

/// The pattern's bytes from `at`, a multiple of eight.
fn fill(at: u64, buffer: &mut [u8]) {
    for (index, word) in buffer.chunks_mut(8).enumerate() {
        let value = (at / 8 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let length = word.len();
        word.copy_from_slice(&value.to_le_bytes()[..length]);
    }
}

/// Writes `total` bytes of the pattern.
pub(crate) fn send(mut to: impl Write, total: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while at < total {
        let count = (total - at).min(buffer.len() as u64) as usize;
        fill(at, &mut buffer[..count]);
        to.write_all(&buffer[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// Reads to the end, which must come after exactly `total` bytes of the pattern.
pub(crate) fn expect(mut from: impl Read, total: u64) -> Result<(), String> {
    let mut got = vec![0; 64 * 1024];
    let mut wanted = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        // Whole pieces, so that they begin at multiples of eight.
        let mut filled = 0;
        while filled < got.len() {
            match from.read(&mut got[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("after {} bytes: {error}", at + filled as u64)),
            }
        }
        fill(at, &mut wanted[..filled]);
        if got[..filled] != wanted[..filled] {
            return Err(format!(
                "other bytes between {at} and {}",
                at + filled as u64
            ));
        }
        at += filled as u64;
        if filled < got.len() {
            break;
        }
    }
    if at == total {
        Ok(())
    } else {
        Err(format!("{at} bytes instead of {total}"))
    }
}
