//! Suites in test hosts, as many at once as there are processors for them.
//!
//! A test host has one processor, but for suites that ask for a second, and what it emulates takes as much time as that has.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, bail};

use super::report::Outcome;
use super::suite::Suite;
use crate::testhost;

/// What a test host needs of this machine's memory at most, in KiB: its own, and QEMU's.
const KIB_OF_A_TEST_HOST: u64 = (testhost::MEMORY_MIB as u64 + 512) << 10;

/// Runs the suites; returns what became of them, in their order.
///
/// # Errors
/// When one cannot be started.
pub(super) fn run(suites: &[Suite]) -> Result<Vec<Outcome>> {
    if suites.is_empty() {
        return Ok(Vec::new());
    }
    // Made once, and not by all of them at the same time.
    testhost::BootFiles::get()?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let count = lanes(processors, available_kib(&meminfo));
    let next = AtomicUsize::new(0);
    let lane = || -> Result<Vec<(usize, Outcome)>> {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(suite) = suites.get(at) else {
                return Ok(done);
            };
            done.push((at, suite.run()?));
        }
    };
    let mut outcomes = thread::scope(|scope| -> Result<Vec<_>> {
        let lanes: Vec<_> = (0..count).map(|_| scope.spawn(lane)).collect();
        let mut outcomes = Vec::new();
        for lane in lanes {
            let Ok(done) = lane.join() else {
                bail!("a thread that ran suites in test hosts panicked");
            };
            outcomes.extend(done?);
        }
        Ok(outcomes)
    })?;
    outcomes.sort_by_key(|(at, _)| *at);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// How many test hosts run at once: what processors and memory are enough for, and one at least.
fn lanes(processors: usize, available_kib: Option<u64>) -> usize {
    let fit = available_kib.map_or(1, |kib| kib / KIB_OF_A_TEST_HOST);
    processors
        .min(usize::try_from(fit).unwrap_or(usize::MAX))
        .max(1)
}

/// proc_meminfo(5): `MemAvailable`.
fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_what_the_machine_has_room_for() {
        let gib = |count: u64| Some(count << 20);
        assert_eq!(lanes(2, gib(23)), 2);
        assert_eq!(lanes(8, gib(20)), 3);
        assert_eq!(lanes(1, gib(64)), 1);
        assert_eq!(lanes(4, gib(2)), 1);
        assert_eq!(lanes(4, None), 1);
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24684544 kB\nMemAvailable:   24359228 kB\n";
        assert_eq!(available_kib(text), Some(24_359_228));
        assert_eq!(available_kib("MemTotal: 1 kB\n"), None);
        let here = fs::read_to_string("/proc/meminfo").unwrap();
        assert!(available_kib(&here).is_some_and(|kib| kib > 0));
    }
}
