//! Points in time as `--since` and `--until` take them, in docker's forms (`api/types/time` of its source).
//!
//! | form | what it means |
//! | --- | --- |
//! | `10m`, `1h30m` | so long ago |
//! | `1714564800`, `1714564800.5` | seconds since 1970 |
//! | `2024-05-01`, `2024-05-01T12`, `…T12:00`, `…T12:00:00`, `…T12:00:00.5` | local time |
//! | any of these with `Z`, `+02:00` or `-07:00` behind it | time of that offset |

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, FixedOffset, Local, NaiveDate, NaiveTime};

/// What a date is written in, `2024-05-01`.
const DATE_BYTES: usize = 10;

/// A point in time.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    // As docker takes it, today's offset for all times of the year.
    moment_in(text, *Local::now().offset())
}

fn moment_in(text: &str, local: FixedOffset) -> Result<SystemTime, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| format!("{text:?} is not a time"));
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now()
            .checked_sub(ago)
            .ok_or_else(|| format!("{text:?} is too long ago"));
    }
    written_out(text, local).map(SystemTime::from).ok_or_else(|| {
        format!(
            "{text:?} is not a time; write 2024-05-01T12:00:00Z, 2024-05-01, seconds since 1970, or how long ago as in 10m"
        )
    })
}

fn written_out(text: &str, local: FixedOffset) -> Option<DateTime<FixedOffset>> {
    let (date, rest) = text.split_at_checked(DATE_BYTES)?;
    let date = NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    // A dash behind the date can only be an offset's.
    let (time, offset) = rest.split_at(rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len()));
    let offset = match offset {
        "" => local,
        "Z" | "z" => FixedOffset::east_opt(0)?,
        offset => offset_of(offset)?,
    };
    let time = match time.strip_prefix(['T', 't', ' ']) {
        Some(time) => time_of_day(time)?,
        None if time.is_empty() => NaiveTime::MIN,
        None => return None,
    };
    date.and_time(time).and_local_timezone(offset).single()
}

fn offset_of(text: &str) -> Option<FixedOffset> {
    let minutes_of = |digits: &str| -> Option<i32> {
        let (hours, minutes) = digits.split_once(':')?;
        let number = |part: &str, limit: i32| -> Option<i32> {
            let number = (part.len() == 2).then(|| part.parse::<u8>().ok())??;
            Some(i32::from(number)).filter(|number| *number < limit)
        };
        Some(number(hours, 24)? * 60 + number(minutes, 60)?)
    };
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(digits), _) => FixedOffset::east_opt(minutes_of(digits)? * 60),
        (_, Some(digits)) => FixedOffset::west_opt(minutes_of(digits)? * 60),
        _ => None,
    }
}

/// Hours, minutes and seconds, of which the latter may be left out.
fn time_of_day(text: &str) -> Option<NaiveTime> {
    let whole = match text.matches(':').count() {
        0 => format!("{text}:00:00"),
        1 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    NaiveTime::parse_from_str(&whole, "%H:%M:%S%.f").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noon of 1 May 2024, UTC.
    const NOON: u64 = 1_714_564_800;

    fn milliseconds(text: &str) -> Option<u128> {
        let berlin = FixedOffset::east_opt(2 * 3600).unwrap();
        let at = moment_in(text, berlin).ok()?;
        Some(at.duration_since(UNIX_EPOCH).unwrap().as_millis())
    }

    #[test]
    fn time_is_that_of_its_offset_or_else_local() {
        for (text, hours) in [
            ("2024-05-01", -14),
            ("2024-05-01T14", 0),
            ("2024-05-01T14:00", 0),
            ("2024-05-01T14:00:00", 0),
            ("2024-05-01 15:00:00", 1),
            ("2024-05-01Z", -12),
            ("2024-05-01+02:00", -14),
            ("2024-05-01-07:00", -5),
            ("2024-05-01T12Z", 0),
            ("2024-05-01T12:00z", 0),
            ("2024-05-01T14:00:00+02:00", 0),
            ("2024-05-01T05:00:00-07:00", 0),
            ("2024-05-01T17:30+05:30", 0),
        ] {
            let expected = NOON.checked_add_signed(hours * 3600).unwrap();
            assert_eq!(
                milliseconds(text),
                Some(u128::from(expected) * 1000),
                "{text}"
            );
        }
    }

    #[test]
    fn fraction_of_a_second_counts_with_every_offset() {
        let expected = Some(u128::from(NOON) * 1000 + 250);
        for text in [
            "1714564800.25",
            "2024-05-01T14:00:00.25",
            "2024-05-01T12:00:00.250000000Z",
            "2024-05-01T14:00:00.25+02:00",
            "2024-05-01T05:00:00.25-07:00",
        ] {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn time_that_is_none_is_refused() {
        for text in [
            "",
            "yesterday",
            "2024-13-01",
            "2024-05-01T",
            "2024-05-01T25:00",
            "2024-05-01T12:00:00+2",
            "2024-05-01T12:00:00+0200",
            "2024-05-01T12:00:00+02:00Z",
            "2024-05-01T12:00:00 +02:00",
            "2024-05-01T12:00:00+25:00",
            "2024-05-01x",
            "-1",
        ] {
            assert_eq!(milliseconds(text), None, "{text}");
        }
    }

    #[test]
    fn duration_is_that_long_ago() {
        let utc = FixedOffset::east_opt(0).unwrap();
        let moment = moment_in("1h30m", utc).unwrap();
        let ago = SystemTime::now().duration_since(moment).unwrap();
        assert!((5400..5500).contains(&ago.as_secs()));
    }
}
