//! Reads the test host's kernel console.

/// What a Linux kernel says when it is stuck or dead.
const SIGNS: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "detected stalls on",
    "self-detected stall on",
    "Kernel panic",
];

/// The line in which the kernel says that it is stuck or dead; `None` when it never does.
pub(super) fn wedged(console: &str) -> Option<&str> {
    console
        .lines()
        .find(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockup_is_recognised() {
        let console =
            "[1.0] all is well\n[40.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!\n";
        assert!(wedged(console).is_some_and(|line| line.contains("CPU#1")));
        assert_eq!(wedged("[1.0] all is well\n"), None);
    }
}
