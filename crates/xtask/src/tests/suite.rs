//! A suite: a program that prints libtest's lines, here or in test hosts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::report::Outcome;
use super::{interruption, silence};
use crate::{guest, shell, testhost};

/// How long a part of a suite may take in test hosts, all together.
const TESTHOST_LIMIT: Duration = Duration::from_secs(40 * 60);

/// In how many test hosts a part of a suite may run: an emulated machine fails now and then.
const TEST_HOSTS: u32 = 6;

/// So many tests at most are a part: some minutes in a test host.
const TESTS_OF_A_PART: usize = 16;

/// Where a suite runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On this machine.
    Here,
    /// In a test host, which is a machine with KVM and version 2 of cgroups.
    TestHost {
        /// How many processors it has.
        cpus: u8,
    },
}

/// A program to run and the folder to run it in.
#[derive(Clone)]
pub(super) struct Suite {
    pub(super) name: String,
    /// The name, with what tells a part from the others.
    pub(super) label: String,
    pub(super) place: Place,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// The tests to run, by the beginning of their names; all when there is none.
    pub(super) filter: Option<&'static str>,
    /// Tests to leave out, by their names.
    pub(super) skip: Vec<String>,
    pub(super) folder: PathBuf,
}

impl Suite {
    /// What the program is started with.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.arguments.clone();
        arguments.extend(self.filter.map(OsString::from));
        if !self.skip.is_empty() {
            arguments.push("--exact".into());
        }
        for name in &self.skip {
            arguments.extend(["--skip".into(), name.into()]);
        }
        arguments
    }

    /// The same under another name, in another place.
    pub(super) fn at(&self, name: &str, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            label: name.to_owned(),
            place,
            ..self.clone()
        }
    }

    /// Whether it can go on where it was cut off, and be had in parts: libtest takes either beginnings of names or whole ones.
    fn can_go_on(&self) -> bool {
        self.filter.is_none()
    }

    /// The names of its tests.
    fn tests(&self) -> Result<Vec<String>> {
        let what = || format!("`{} --list`", self.program.display());
        let output = Command::new(&self.program)
            .args(self.arguments())
            .arg("--list")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", what()))?;
        ensure!(
            output.status.success(),
            "{} failed: {}",
            what(),
            output.status
        );
        Ok(listed(&String::from_utf8(output.stdout)?))
    }

    /// Its parts, each of which runs in a test host of its own.
    ///
    /// # Errors
    /// When the program does not list its tests.
    pub(super) fn parts(&self) -> Result<Vec<Self>> {
        if !self.can_go_on() {
            return Ok(vec![self.clone()]);
        }
        let tests = self.tests()?;
        Ok(others(&tests)
            .into_iter()
            .map(|(part, skip)| Self {
                label: format!("{}{part}", self.name),
                skip,
                ..self.clone()
            })
            .collect())
    }

    /// Runs it. When the test host fails under it, not the suite, what is left of it runs in another. That it cannot be run is an
    /// outcome too.
    pub(super) fn run(&self) -> Outcome {
        self.try_to_run()
            .unwrap_or_else(|error| Outcome::broken(&self.name, &self.label, &error))
    }

    fn try_to_run(&self) -> Result<Outcome> {
        let in_test_host = self.place != Place::Here;
        let place = if in_test_host {
            " (in the test host)"
        } else {
            ""
        };
        shell::step(format!("{}{place}", self.label));
        let mut outcome = Outcome::new(&self.name, &self.label);
        let start = Instant::now();
        let mut suite = self.clone();
        for left in (0..TEST_HOSTS).rev() {
            let status = suite.run_once(start, &mut outcome)?;
            outcome.end(status.success(), start.elapsed());
            if !in_test_host || left == 0 || !suite.can_go_on() {
                break;
            }
            let done = match status.code() {
                Some(testhost::WEDGED) => Some(outcome.test_host_failed()),
                _ => outcome.another_run(),
            };
            let Some(done) = done else {
                break;
            };
            shell::step(format!("{} goes on in another test host", self.label));
            suite.skip.extend(done);
        }
        Ok(outcome)
    }

    /// Runs it once, to its end or the test host's, or until it hangs. `start` is when its first run began.
    fn run_once(&self, start: Instant, outcome: &mut Outcome) -> Result<ExitStatus> {
        interruption::Running::may_begin()?;
        // Whatever ends us, it is asked to end too, and takes down what it made.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]);
        if let Place::TestHost { cpus } = self.place {
            let limit = TESTHOST_LIMIT.saturating_sub(start.elapsed());
            let variables = ["PATH", "SANDBOX_TEST_KERNEL"];
            let testhost = testhost::command(limit, cpus, &variables)?;
            command
                .arg(testhost.get_program())
                .args(testhost.get_args());
        }
        // A test host has its own limit.
        let limit = (self.place == Place::Here).then_some(silence::LIMIT);
        if limit.is_some() {
            silence::apart(&mut command);
        }
        let mut child = command
            .arg(&self.program)
            .args(self.arguments())
            .current_dir(&self.folder)
            .env("SANDBOX_TEST_KERNEL", guest::artifacts().join("vmlinux"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let running = interruption::Running::note(&child)?;
        let hung = silence::follow(&mut child, limit, |line| {
            match self.place {
                Place::Here => println!("{line}"),
                // There may be others beside it.
                Place::TestHost { .. } => println!("{}: {line}", self.label),
            }
            outcome.line(line);
        })?;
        if hung {
            outcome.hung(silence::LIMIT);
        }
        // Its number is its own until it has been waited for.
        drop(running);
        Ok(child.wait()?)
    }
}

/// The names in what `--list` prints.
fn listed(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// Deals the tests out to as many parts as they need: what each part is called, and the tests that are not in it.
/// Neighbours, which take about the same time, come to different parts.
fn others(tests: &[String]) -> Vec<(String, Vec<String>)> {
    let parts = tests.len().div_ceil(TESTS_OF_A_PART).max(1);
    (0..parts)
        .map(|part| {
            let name = match parts {
                1 => String::new(),
                _ => format!(" {}/{parts}", part + 1),
            };
            let others = tests
                .iter()
                .enumerate()
                .filter(|(at, _)| at % parts != part)
                .map(|(_, name)| name.clone())
                .collect();
            (name, others)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_has_the_names_of_tests() {
        assert_eq!(
            listed("a: test\nb::c: test\n\n2 tests, 0 benchmarks\n"),
            ["a", "b::c"]
        );
    }

    #[test]
    fn each_test_is_in_one_part() {
        for count in [0, 1, TESTS_OF_A_PART, TESTS_OF_A_PART + 1, 77] {
            let tests: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
            let parts = others(&tests);
            for test in &tests {
                let with = parts
                    .iter()
                    .filter(|(_, others)| !others.contains(test))
                    .count();
                assert_eq!(with, 1, "{test} of {count}");
            }
            for (_, others) in &parts {
                assert!(count - others.len() <= TESTS_OF_A_PART);
            }
        }
        let names = |tests: &[String]| -> Vec<String> {
            others(tests).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&[]), [""]);
        assert_eq!(
            names(&vec![String::from("t"); TESTS_OF_A_PART + 1]),
            [" 1/2", " 2/2"]
        );
    }
}
