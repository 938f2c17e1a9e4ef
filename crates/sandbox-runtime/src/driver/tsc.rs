//! How fast the host's time stamp counter counts, which is the guest's too where QEMU emulates one (Intel SDM, volume 3, "Time-Stamp Counter").
#![expect(unsafe_code, reason = "the counter is read by an instruction")]

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::timeline::monotonic_ns;

/// Over what time it is measured: a moment is known to some 100 ns, so that the frequency is to some 20 millionths.
const SPAN: Duration = Duration::from_millis(5);
/// Of so many readings of a moment the one is taken in which the process was held up least.
const READINGS: usize = 16;

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    ticks: u64,
    ns: u64,
}

impl Moment {
    fn now() -> Self {
        // SAFETY: every processor with 64-bit mode has the instruction. Where a process may not use it (prctl(2), PR_SET_TSC), which nobody
        // asks for here, it is a signal.
        let ticks = || unsafe { _rdtsc() };
        let reading = |_| {
            let before = ticks();
            let ns = monotonic_ns();
            let after = ticks();
            (after.wrapping_sub(before), Self { ticks: before, ns })
        };
        let readings = (0..READINGS).map(reading);
        let best = readings.min_by_key(|(took, _)| *took);
        best.map_or(Self { ticks: 0, ns: 0 }, |(took, moment)| Self {
            ticks: moment.ticks.wrapping_add(took / 2),
            ..moment
        })
    }
}

/// In kHz; measured once, which takes 5 ms. Nothing if the counter does not count.
pub(super) fn khz() -> Option<u64> {
    static MEASURED: OnceLock<Option<u64>> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let first = Moment::now();
        thread::sleep(SPAN);
        between(first, Moment::now())
    })
}

fn between(first: Moment, second: Moment) -> Option<u64> {
    let ticks = second.ticks.checked_sub(first.ticks)?;
    let ns = second.ns.checked_sub(first.ns)?;
    let khz = u128::from(ticks)
        .checked_mul(1_000_000)?
        .checked_div(u128::from(ns))?;
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(ticks: u64, ns: u64) -> Moment {
        Moment { ticks, ns }
    }

    #[test]
    fn frequency_is_ticks_by_time() {
        let first = moment(1_000, 5);
        assert_eq!(
            between(first, moment(11_501_000, 5_000_005)),
            Some(2_300_000)
        );
        for second in [
            moment(999, 10),
            moment(2_000, 5),
            moment(2_000, 4),
            moment(1_000, 10),
        ] {
            assert_eq!(between(first, second), None, "{second:?}");
        }
    }

    #[test]
    fn counter_of_this_host_counts_at_a_rate_that_there_are() {
        let khz = khz().unwrap();
        assert!((100_000..20_000_000).contains(&khz), "{khz}");
    }
}
