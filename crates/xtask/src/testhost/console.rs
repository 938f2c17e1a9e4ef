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

/// How a Linux kernel begins to tell of a fault of its own.
const FAULTS: &[&str] = &[
    "BUG:",
    "Oops",
    "general protection fault",
    "invalid opcode",
    "divide error",
    "double fault",
    "WARNING:",
];
/// So much is shown of where a fault begins, and so much of the end: the trace of a stack ends with what was interrupted first.
const FAULT_LINES: usize = 20;
const END_LINES: usize = 40;

/// The lines to show of a test host that failed: the beginning of its first fault, and the end.
pub(super) fn what_matters(console: &str) -> Vec<&str> {
    let lines: Vec<&str> = console.lines().collect();
    let end = lines.len().saturating_sub(END_LINES);
    let fault = lines
        .iter()
        .position(|line| FAULTS.iter().any(|sign| line.contains(sign)))
        .map_or(end, |at| at.min(end));
    let beginning = fault..end.min(fault + FAULT_LINES);
    [&lines[beginning], &lines[end..]].concat()
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

    #[test]
    fn fault_is_shown_by_its_beginning_and_the_end() {
        let noise = "noise\n".repeat(100);
        let console = format!("{noise}BUG: unable to handle page fault\nRIP: f\n{noise}first\n");
        let lines = what_matters(&console);
        assert_eq!(lines[..2], ["BUG: unable to handle page fault", "RIP: f"]);
        assert_eq!(lines.len(), FAULT_LINES + END_LINES);
        assert_eq!(lines.last(), Some(&"first"));
        assert_eq!(what_matters(&noise).len(), END_LINES);
        // Nothing twice.
        assert_eq!(what_matters("BUG: a\nb\n"), ["BUG: a", "b"]);
        let late = format!("{noise}BUG: a\nb\n");
        assert_eq!(what_matters(&late).len(), END_LINES);
    }
}
