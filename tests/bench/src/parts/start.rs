//! From a command to the container's first output, and to its end.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::commands_and_engines;
use crate::lab::{About, Lab};
use crate::report::{Part, Unit, Value};

const ABOUT: About = About {
    name: "start",
    title: "Start",
    about: "`echo` in a new container: the time from the start of the command (`runc run`, `sandboxctl run`, `ctr run`) to its first line of output, \
            and to the command's end, when everything is cleared away. The phases are those of `sandboxctl run --timings`.",
    one_scale: true,
};

/// A mark of `--timings=json`.
#[derive(Debug, Deserialize)]
struct Mark {
    phase: String,
    monotonic_ns: u64,
}

/// Spans between phases: what each is called, and where it begins and ends.
const SPANS: [(&str, &str, &str); 10] = [
    ("phase: request to image ready", "requested", "image-ready"),
    (
        "phase: image ready to shim started",
        "image-ready",
        "shim-started",
    ),
    (
        "phase: shim started to monitor started",
        "shim-started",
        "monitor-started",
    ),
    (
        "phase: monitor started to first guest instruction",
        "monitor-started",
        "first-instruction",
    ),
    // The monitor may have been begun before.
    (
        "phase: shim started to first guest instruction",
        "shim-started",
        "first-instruction",
    ),
    (
        "phase: first guest instruction to agent (kernel)",
        "first-instruction",
        "agent-started",
    ),
    (
        "phase: agent to agent ready",
        "agent-started",
        "agent-ready",
    ),
    (
        "phase: first guest instruction to agent ready",
        "first-instruction",
        "agent-ready",
    ),
    (
        "phase: agent ready to container created",
        "agent-ready",
        "container-created",
    ),
    (
        "phase: image ready to first output",
        "image-ready",
        "first-output",
    ),
];

pub(super) fn measure(lab: &Lab) -> Part {
    let subjects = commands_and_engines();
    ABOUT.measure(lab.contenders(&subjects), lab.turns(), |subject| {
        let name = lab.name();
        let mut run = lab.run(subjects[subject], &name, &["echo", "up"])?;
        let (line, first) = run.line()?;
        ensure!(line == "up", "it printed {line:?}");
        let total = run.end()?;
        let mut values = vec![
            Value::took("first output", first),
            Value::took("to the end of the command", total),
        ];
        values.extend(phases(&run.errors())?);
        Ok(values)
    })
}

/// The spans of a timeline, which is a line of its own. Without one, there are none.
fn phases(errors: &str) -> Result<Vec<Value>> {
    let Some(line) = errors.lines().find(|line| line.starts_with("[{\"phase\"")) else {
        return Ok(Vec::new());
    };
    let marks: Vec<Mark> =
        serde_json::from_str(line).with_context(|| format!("not a timeline: {line}"))?;
    let at = |phase: &str| {
        let mark = marks.iter().find(|mark| mark.phase == phase);
        mark.map(|mark| mark.monotonic_ns)
    };
    Ok(SPANS
        .iter()
        .filter_map(|(what, from, to)| {
            // One that came before the other did not wait for it.
            let span = at(to)?.saturating_sub(at(from)?);
            let microseconds = u32::try_from(span / 1_000).unwrap_or(u32::MAX);
            Some(Value::new(
                *what,
                Unit::Milliseconds,
                f64::from(microseconds) / 1_000.0,
            ))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_taken_from_the_line_with_the_timeline() {
        let errors = "sandboxctl: emulating\n\
            [{\"phase\":\"first-instruction\",\"monotonic_ns\":5000000},{\"phase\":\"agent-started\",\"monotonic_ns\":7000000},{\"phase\":\"agent-ready\",\"monotonic_ns\":7500000}]\n";
        let values = phases(errors).unwrap();
        let seen: Vec<(&str, f64)> = values
            .iter()
            .map(|value| (value.what.as_str(), value.value))
            .collect();
        assert_eq!(
            seen,
            [
                ("phase: first guest instruction to agent (kernel)", 2.0),
                ("phase: agent to agent ready", 0.5),
                ("phase: first guest instruction to agent ready", 2.5),
            ]
        );
        assert_eq!(phases("nothing of it\n").unwrap(), []);
    }
}
