//! The guest's console: a bounded tail of what it printed, made printable.

/// `bytes` as text that is safe to show: at most `limit` bytes of it, control characters and what is not UTF-8 replaced.
pub(crate) fn printable(bytes: &[u8], limit: usize) -> String {
    let kept = bytes.get(..limit).unwrap_or(bytes);
    let mut text: String = String::from_utf8_lossy(kept)
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect();
    while text.len() > limit {
        text.pop();
    }
    if kept.len() < bytes.len() {
        text.push('…');
    }
    text
}
