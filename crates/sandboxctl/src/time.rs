//! Points in time as text.

use std::time::{Duration, UNIX_EPOCH};

/// What docker writes for a time that has not come: Go's zero.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

/// RFC 3339, in UTC; `NEVER` for what was not noted.
pub(crate) fn rfc3339(seconds: Option<u64>) -> String {
    // Later than the format can say is not a time that was noted.
    const LAST: u64 = 253_402_300_799;
    match seconds.filter(|seconds| *seconds <= LAST) {
        Some(seconds) => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        None => NEVER.to_owned(),
    }
}

/// docker's form in lists: `2024-05-01 12:00:00 +0000 UTC`.
pub(crate) fn spoken(seconds: u64) -> String {
    let text = rfc3339(Some(seconds));
    match text.strip_suffix('Z').and_then(|text| text.split_once('T')) {
        Some((day, time)) => format!("{day} {time} +0000 UTC"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_text_in_utc() {
        assert_eq!(rfc3339(Some(1_714_564_800)), "2024-05-01T12:00:00Z");
        assert_eq!(rfc3339(None), NEVER);
        assert_eq!(rfc3339(Some(u64::MAX)), NEVER);
        assert_eq!(spoken(1_714_564_800), "2024-05-01 12:00:00 +0000 UTC");
    }
}
