//! Suites in test hosts, as many at once as there are processors for them.
//!
//! A test host has one processor, but for suites that ask for a second, and what it emulates takes as much time as that has.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::anyhow;

use super::report::Outcome;
use super::suite::Suite;
use crate::testhost;

/// What a test host needs of this machine's memory at most, in KiB: its own, and QEMU's.
const KIB_OF_A_TEST_HOST: u64 = (testhost::MEMORY_MIB as u64 + 512) << 10;

/// Why no test host can run on this machine, if so.
pub(super) fn obstacle() -> Option<String> {
    too_little(kib_of("MemTotal", &meminfo()))
}

fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

fn too_little(total_kib: Option<u64>) -> Option<String> {
    let total = total_kib.filter(|kib| *kib < KIB_OF_A_TEST_HOST)?;
    let gib = |kib: u64| format!("{}.{}", kib >> 20, ((kib % (1 << 20)) * 10) >> 20);
    Some(format!(
        "a test host needs {} GiB of memory, and this machine has {}",
        gib(KIB_OF_A_TEST_HOST),
        gib(total)
    ))
}

/// Runs the suites; returns what became of them, in their order. There are boot files already.
pub(super) fn run(suites: &[Suite]) -> Vec<Outcome> {
    if suites.is_empty() {
        return Vec::new();
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let count = lanes(processors, kib_of("MemAvailable", &meminfo()));
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(suite) = suites.get(at) else {
                return done;
            };
            done.push((at, suite.run()));
        }
    };
    let mut outcomes = thread::scope(|scope| {
        let lanes: Vec<_> = (0..count).map(|_| scope.spawn(lane)).collect();
        let mut outcomes = Vec::new();
        for lane in lanes {
            match lane.join() {
                Ok(done) => outcomes.extend(done),
                Err(_) => {
                    let error = anyhow!("a thread that ran suites in test hosts panicked");
                    outcomes.push((usize::MAX, Outcome::broken("lane", "a lane", &error)));
                }
            }
        }
        outcomes
    });
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// How many test hosts run at once: what processors and memory are enough for, and one at least.
fn lanes(processors: usize, available_kib: Option<u64>) -> usize {
    let fit = available_kib.map_or(1, |kib| kib / KIB_OF_A_TEST_HOST);
    processors
        .min(usize::try_from(fit).unwrap_or(usize::MAX))
        .max(1)
}

/// A field of proc_meminfo(5).
fn kib_of(field: &str, meminfo: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
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
        assert_eq!(kib_of("MemAvailable", text), Some(24_359_228));
        assert_eq!(kib_of("MemTotal", text), Some(24_684_544));
        assert_eq!(kib_of("MemAvailable", "MemTotal: 1 kB\n"), None);
        assert!(kib_of("MemTotal", &meminfo()).is_some_and(|kib| kib > 0));
    }

    #[test]
    fn machine_too_small_for_a_test_host_is_told_what_it_takes() {
        let reason = too_little(Some(4 << 20)).unwrap();
        assert_eq!(
            reason,
            "a test host needs 6.5 GiB of memory, and this machine has 4.0"
        );
        assert_eq!(too_little(Some(KIB_OF_A_TEST_HOST)), None);
        assert_eq!(too_little(None), None);
    }
}
