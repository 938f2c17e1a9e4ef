//! Reads libtest's lines and adds them up.

use std::time::Duration;

/// So many failed tests of a suite in the test host, or of a part of it, run again: a fifth of a part.
const MOST_FAILED_FIRST: usize = 4;

/// How often a test of the test host may run, in all.
const MOST_RUNS: usize = 3;

/// So many lines of what a failed test said are shown again at the end.
const LINES_AGAIN: usize = 24;

/// What became of one suite, or of one part of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// The suite's name.
    name: String,
    /// The same, with what tells it from the suite's other parts.
    label: String,
    passed: u64,
    failed: u64,
    /// Name and reason of each skipped test.
    skipped: Vec<String>,
    /// What the suite wants to be told at the end.
    notes: Vec<String>,
    /// Why it could not run, or not to its end.
    trouble: Option<String>,
    failures: Vec<String>,
    /// The summary line was seen.
    closed: bool,
    exited_well: bool,
    /// Tests that the present run of the suite told of, and how many of them passed.
    told: Vec<String>,
    told_passed: u64,
    /// How often the test host failed under it.
    test_host_failures: u64,
    /// Tests that failed in a test host, and ran again in another: once for each time.
    failed_first: Vec<String>,
    /// What failed tests said, each with a heading, and whether such lines are being read.
    said: Vec<String>,
    failure_is_told: bool,
    took: Duration,
}

impl Outcome {
    /// A suite, or one part of it, begins.
    pub(super) fn new(name: &str, label: &str) -> Self {
        Self {
            name: name.to_owned(),
            label: label.to_owned(),
            ..Self::default()
        }
    }

    /// A suite, or something that suites need, that could not be had or run: that is a failure.
    pub(super) fn broken(name: &str, label: &str, error: &anyhow::Error) -> Self {
        Self {
            trouble: Some(format!("{error:#}")),
            ..Self::new(name, label)
        }
    }

    /// A suite that cannot run here at all.
    pub(super) fn skipped(name: &str, label: &str, reason: &str) -> Self {
        Self {
            skipped: vec![format!("{label} (all of it): {reason}")],
            closed: true,
            exited_well: true,
            ..Self::new(name, label)
        }
    }

    /// Makes room for another run of the failed tests; returns the names of the others.
    fn put_failures_aside(&mut self) -> Vec<String> {
        let failures = std::mem::take(&mut self.failures);
        let told = std::mem::take(&mut self.told);
        let failed = |name: &String| failures.contains(&format!("{} {name}", self.name));
        let others = told.into_iter().filter(|name| !failed(name)).collect();
        self.failed_first.extend(failures);
        others
    }

    /// Keeps what failed tests say: libtest tells it under a heading for each, between two lists of names.
    fn hear(&mut self, line: &str) {
        if line.starts_with("---- ") {
            self.failure_is_told = true;
            self.said.push(format!("{} {line}", self.name));
        } else if line == "failures:" {
            self.failure_is_told = false;
        } else if self.failure_is_told
            && !line.is_empty()
            && let Some(last) = self.said.last_mut()
            && last.lines().count() <= LINES_AGAIN
        {
            last.push_str("\n  ");
            last.push_str(line);
        }
    }

    /// A line that it printed.
    pub(super) fn line(&mut self, line: &str) {
        let line = plain(line);
        self.hear(&line);
        if let Some(note) = line.strip_prefix("note: ") {
            self.notes.push(format!("{}: {note}", self.name));
            return;
        }
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.passed += count(summary, "passed").unwrap_or(0);
            self.failed += count(summary, "failed").unwrap_or(0);
            self.closed = true;
            return;
        }
        let Some((test, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        let test = test.trim();
        self.told.push(test.to_owned());
        if let Some(reason) = outcome.trim().strip_prefix("ignored") {
            let reason = reason.trim_matches([' ', ',', '(', ')']);
            let reason = if reason.is_empty() {
                "no reason given"
            } else {
                reason
            };
            self.skipped.push(format!("{} {test}: {reason}", self.name));
        } else if outcome.trim().starts_with("FAILED") {
            self.failures.push(format!("{} {test}", self.name));
        } else {
            self.told_passed += 1;
        }
    }

    /// The test host failed under the suite, which goes on in another one. What passed there counts, though there is no
    /// summary. Returns the names of the tests that need not run again.
    pub(super) fn test_host_failed(&mut self) -> Vec<String> {
        self.test_host_failures += 1;
        self.passed += std::mem::take(&mut self.told_passed);
        self.put_failures_aside()
    }

    /// The suite's failed tests are to run again in another test host, if they are few: an emulated machine in an emulated
    /// machine fails by itself now and then, and a product that fails does so in most of its tests, or again. Returns the names
    /// of the tests that need not run again; `None` where nothing is to.
    pub(super) fn another_run(&mut self) -> Option<Vec<String>> {
        let few = (1..=MOST_FAILED_FIRST).contains(&self.failures.len());
        let ran_as_often = |line: &String| {
            let before = self.failed_first.iter().filter(|first| *first == line);
            before.count() + 1 >= MOST_RUNS
        };
        if !few || !self.closed || self.failures.iter().any(ran_as_often) {
            return None;
        }
        self.failed = 0;
        self.closed = false;
        self.told_passed = 0;
        Some(self.put_failures_aside())
    }

    /// The suite ended, or this run of it, so long after it began.
    pub(super) fn end(&mut self, exited_well: bool, took: Duration) {
        self.exited_well = exited_well;
        self.took = took;
    }

    /// It printed nothing for so long, and was ended.
    pub(super) fn hung(&mut self, limit: Duration) {
        self.trouble = Some(format!(
            "it printed nothing for {} minutes, and was ended",
            limit.as_secs() / 60
        ));
    }

    /// It ran to its end, and no test failed.
    fn passed_everything(&self) -> bool {
        self.failed == 0 && !self.broke()
    }

    /// A suite that ends without its summary, or badly without a failed test, has failed as a whole.
    fn broke(&self) -> bool {
        self.trouble.is_some() || !self.closed || (!self.exited_well && self.failed == 0)
    }

    /// The tests that failed in a test host and passed in another.
    fn passed_later(&self) -> impl Iterator<Item = &String> {
        let failed = |line: &&String| !self.failures.contains(line);
        self.failed_first.iter().filter(failed)
    }
}

/// All suites so far.
#[derive(Default)]
pub(super) struct Report(Vec<Outcome>);

/// Takes terminal colours out of a line.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            for skipped in characters.by_ref() {
                if skipped.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if character != '\r' {
            text.push(character);
        }
    }
    text
}

/// The number before `word` in libtest's summary line.
fn count(summary: &str, word: &str) -> Option<u64> {
    summary
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
}

impl Report {
    /// Takes in what became of a suite.
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.0.push(outcome);
    }

    /// Prints how long the suites took, what was skipped and what failed.
    pub(super) fn print(&self) {
        println!("\nseconds:");
        for suite in self.0.iter().filter(|suite| suite.took.as_secs() > 0) {
            println!("{:7} {}", suite.took.as_secs(), suite.label);
        }
        println!();
        let skipped: Vec<&String> = self.0.iter().flat_map(|suite| &suite.skipped).collect();
        if skipped.is_empty() {
            println!("skipped: nothing");
        } else {
            println!("skipped:");
            for line in skipped {
                println!("  {line}");
            }
        }
        for suite in self.0.iter().filter(|suite| suite.test_host_failures > 0) {
            println!(
                "{}: the test host failed {} times, and the tests that it had not finished ran again",
                suite.label, suite.test_host_failures
            );
        }
        for line in self.0.iter().flat_map(Outcome::passed_later) {
            println!("failed in one test host, and ran again in another: {line}");
        }
        for line in self.0.iter().flat_map(|suite| &suite.notes) {
            println!("note: {line}");
        }
        for line in self.0.iter().flat_map(|suite| &suite.said) {
            println!("{line}");
        }
        for line in self.0.iter().flat_map(|suite| &suite.failures) {
            println!("FAILED: {line}");
        }
        for suite in self.0.iter().filter(|suite| suite.broke()) {
            let why = suite.trouble.as_deref().unwrap_or("its output says why");
            println!("FAILED: {} did not run to its end: {why}", suite.label);
        }
    }

    /// The line that closes a run.
    pub(super) fn closing_line(&self) -> String {
        let passed: u64 = self.0.iter().map(|suite| suite.passed).sum();
        let broke = self.0.iter().filter(|suite| suite.broke()).count() as u64;
        let failed: u64 = self.0.iter().map(|suite| suite.failed).sum::<u64>() + broke;
        let skipped: usize = self.0.iter().map(|suite| suite.skipped.len()).sum();
        let again = self.0.iter().flat_map(Outcome::passed_later).count();
        let again = match again {
            0 => String::new(),
            count => format!(", {count} ran again"),
        };
        format!("{passed} passed, {failed} failed, {skipped} skipped{again}")
    }

    /// Skips that no line of `allowed` is about: `SUITE: PART OF THE REASON` (`#` begins a comment).
    pub(super) fn skips_not_in(&self, allowed: &str) -> Vec<String> {
        let allowed: Vec<(&str, &str)> = allowed
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .filter_map(|line| line.split_once(": "))
            .collect();
        let is_allowed = |skip: &String| {
            allowed.iter().any(|(suite, reason)| {
                let test = skip.strip_prefix(suite);
                test.is_some_and(|rest| rest.starts_with(' ') && rest.contains(reason))
            })
        };
        self.0
            .iter()
            .flat_map(|suite| &suite.skipped)
            .filter(|skip| !is_allowed(skip))
            .cloned()
            .collect()
    }

    /// Every suite ran to its end, no test failed, and at least one passed.
    pub(super) fn passed_everything(&self) -> bool {
        self.0.iter().all(Outcome::passed_everything) && self.0.iter().any(|suite| suite.passed > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(lines: &[&str], exited_well: bool) -> Outcome {
        let mut outcome = Outcome::new("suite", "suite");
        for line in lines {
            outcome.line(line);
        }
        outcome.end(exited_well, Duration::ZERO);
        outcome
    }

    fn read(lines: &[&str], exited_well: bool) -> Report {
        Report(vec![ended(lines, exited_well)])
    }

    #[test]
    fn skip_is_listed_with_its_reason() {
        let report = read(
            &[
                "test a ... ok",
                "test b ... ignored (no /dev/kvm)",
                "test c ... ignored, slow",
                "test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out",
            ],
            true,
        );
        assert!(report.passed_everything());
        assert_eq!(
            report.0[0].skipped,
            ["suite b: no /dev/kvm", "suite c: slow"]
        );
        assert_eq!(
            report.skips_not_in("# comment\nsuite: no /dev/kvm\nother: slow\nsui: slow\n"),
            ["suite c: slow"]
        );
    }

    #[test]
    fn suite_without_summary_is_a_failure() {
        assert!(!read(&["test a ... ok"], true).passed_everything());
        assert!(!read(&["test result: ok. 1 passed; 0 failed"], false).passed_everything());
        assert!(!read(&["test result: ok. 0 passed; 0 failed"], true).passed_everything());
    }

    #[test]
    fn suite_that_hung_is_a_failure_whatever_it_had_printed() {
        let mut suite = ended(&["test result: ok. 1 passed; 0 failed"], true);
        suite.hung(Duration::from_secs(120));
        assert!(!suite.passed_everything());
        assert!(suite.trouble.unwrap().contains("for 2 minutes"));
    }

    #[test]
    fn what_cannot_be_had_is_a_failure_and_its_suites_are_skips() {
        let mut report = read(
            &["test a ... ok", "test result: ok. 1 passed; 0 failed"],
            true,
        );
        let error = anyhow::anyhow!("no mirror").context("no kernel");
        report.add(Outcome::skipped("e2e", "e2e 1/2", "no kernel"));
        assert!(report.passed_everything());
        assert_eq!(report.closing_line(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(report.skips_not_in(""), ["e2e 1/2 (all of it): no kernel"]);
        report.add(Outcome::broken("test host", "test host", &error));
        assert!(!report.passed_everything());
        assert_eq!(report.closing_line(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(report.0[2].trouble.as_deref(), Some("no kernel: no mirror"));
    }

    #[test]
    fn note_is_kept_for_the_end() {
        let report = read(
            &[
                "test a ... ok",
                "test result: ok. 1 passed; 0 failed",
                "note: left behind: cgroup /a",
            ],
            false,
        );
        assert_eq!(report.0[0].notes, ["suite: left behind: cgroup /a"]);
        assert!(!report.passed_everything());
    }

    #[test]
    fn few_failures_run_again_once_and_are_told() {
        let mut suite = Outcome::new("suite", "suite");
        suite.line("test a ... ok");
        suite.line("test b ... FAILED");
        suite.line("test result: FAILED. 1 passed; 1 failed; 0 ignored");
        suite.end(false, Duration::ZERO);
        assert_eq!(suite.another_run(), Some(vec!["a".to_owned()]));
        assert!(!suite.passed_everything());
        suite.line("test b ... ok");
        suite.line("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
        suite.end(true, Duration::ZERO);
        assert!(suite.passed_everything());
        assert_eq!(suite.passed, 2);
        assert_eq!(suite.failed_first, ["suite b"]);
        assert_eq!(suite.another_run(), None);
        let line = Report(vec![suite]).closing_line();
        assert_eq!(line, "2 passed, 0 failed, 0 skipped, 1 ran again");
    }

    #[test]
    fn failure_that_comes_again_is_one() {
        let mut suite = Outcome::new("suite", "suite");
        suite.line("test b ... FAILED");
        suite.line("test result: FAILED. 0 passed; 1 failed; 0 ignored");
        suite.end(false, Duration::ZERO);
        for _ in 1..MOST_RUNS {
            assert_eq!(suite.another_run(), Some(vec![]));
            suite.line("test b ... FAILED");
            suite.line("test result: FAILED. 0 passed; 1 failed; 0 ignored");
            suite.end(false, Duration::ZERO);
        }
        assert_eq!(suite.another_run(), None);
        assert!(!suite.passed_everything());
    }

    #[test]
    fn many_failures_do_not_run_again() {
        let mut lines = vec!["test a ... FAILED"; MOST_FAILED_FIRST + 1];
        lines.push("test result: FAILED. 0 passed; 7 failed; 0 ignored");
        let mut suite = ended(&lines, false);
        assert_eq!(suite.another_run(), None);
        assert_eq!(suite.failed, 7);
    }

    #[test]
    fn suite_goes_on_after_its_test_host_failed() {
        let mut suite = Outcome::new("suite", "suite");
        suite.line("test a ... ok");
        suite.line("test b ... FAILED");
        // What failed in a machine that was failing itself is asked again.
        assert_eq!(suite.test_host_failed(), ["a"]);
        suite.line("test b ... FAILED");
        suite.line("test c ... ok");
        suite.line("test result: FAILED. 1 passed; 1 failed; 0 ignored");
        suite.end(false, Duration::ZERO);
        assert_eq!((suite.passed, suite.failed), (2, 1));
        assert!(!suite.passed_everything());
        assert!(!suite.broke());
        // It failed twice.
        assert_eq!(suite.another_run(), Some(vec!["c".to_owned()]));
    }

    #[test]
    fn what_a_failed_test_said_is_kept() {
        let report = read(
            &[
                "test a ... FAILED",
                "",
                "failures:",
                "",
                "---- a ----",
                "it broke",
                "here",
                "",
                "failures:",
                "    a",
                "test result: FAILED. 0 passed; 1 failed; 0 ignored",
            ],
            false,
        );
        assert_eq!(report.0[0].said, ["suite ---- a ----\n  it broke\n  here"]);
    }

    #[test]
    fn colours_do_not_hide_an_outcome() {
        let report = read(
            &[
                "test a ... \u{1b}[31mFAILED\u{1b}[0m",
                "test result: FAILED. 0 passed; 1 failed; 0 ignored",
            ],
            false,
        );
        assert_eq!(report.0[0].failures, ["suite a"]);
        assert_eq!(report.0[0].failed, 1);
    }
}
