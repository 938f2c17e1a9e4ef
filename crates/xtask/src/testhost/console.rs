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
/// So much is shown of a fault, and so much of the end when there is none.
const FAULT_LINES: usize = 60;
const TAIL_LINES: usize = 20;

/// The lines to show of a test host that failed: the first fault, else the end.
pub(super) fn what_matters(console: &str) -> Vec<&str> {
    let lines: Vec<&str> = console.lines().collect();
    let fault = lines
        .iter()
        .position(|line| FAULTS.iter().any(|sign| line.contains(sign)));
    let (from, count) = match fault {
        Some(at) => (at, FAULT_LINES),
        None => (lines.len().saturating_sub(TAIL_LINES), TAIL_LINES),
    };
    lines.into_iter().skip(from).take(count).collect()
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
    fn fault_is_shown_from_its_beginning() {
        let noise = "noise\n".repeat(100);
        let console = format!("{noise}BUG: unable to handle page fault\nRIP: f\n{noise}");
        let lines = what_matters(&console);
        assert_eq!(lines[..2], ["BUG: unable to handle page fault", "RIP: f"]);
        assert_eq!(lines.len(), FAULT_LINES);
        assert_eq!(what_matters(&noise).len(), TAIL_LINES);
    }
}
