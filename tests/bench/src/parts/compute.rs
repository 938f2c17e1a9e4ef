//! How fast a program runs inside: arithmetic, system calls, memory.

use anyhow::{Context as _, Result};
use sandbox_harness::bundle::PROBE;
use serde_json::Value as Json;

use super::BESIDE_THE_HOST;
use crate::lab::{About, Lab};
use crate::report::{Part, Unit, Value};
use crate::subject::Subject;

const ABOUT: About = About {
    name: "compute",
    title: "Processor and memory",
    about: "The same static program (`sandbox-probe bench`) on the host, under runc, and in a guest with its default size. Its clock is the machine's that it runs in. \
            Ratios are to the host: more is slower for times, faster for rates.",
    one_scale: false,
};

/// What the probe prints: where, what it is called in the report, and its unit.
pub(super) type Reading = (&'static str, &'static str, Unit);

const LOOPS: [&str; 6] = ["compute", "syscall", "fork", "bandwidth", "random", "fault"];
const READINGS: [Reading; 7] = [
    (
        "/compute/ns_per_round",
        "a round of arithmetic",
        Unit::Nanoseconds,
    ),
    ("/syscall/ns", "a system call (getppid)", Unit::Nanoseconds),
    (
        "/fork/us",
        "a process: fork, exit, wait",
        Unit::Microseconds,
    ),
    (
        "/bandwidth/read_mib_per_s",
        "memory, read in order",
        Unit::MebibytesPerSecond,
    ),
    (
        "/bandwidth/copy_mib_per_s",
        "memory, copied",
        Unit::MebibytesPerSecond,
    ),
    ("/random/ns", "memory, a read at random", Unit::Nanoseconds),
    (
        "/fault/ns_per_page",
        "a new page, touched",
        Unit::Nanoseconds,
    ),
];

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&BESIDE_THE_HOST), lab.turns(), |subject| {
        probe(lab, BESIDE_THE_HOST[subject], &LOOPS, &READINGS)
    })
}

/// Runs the probe's loops, and reads what it prints.
pub(super) fn probe(
    lab: &Lab,
    subject: Subject,
    loops: &[&str],
    readings: &[Reading],
) -> Result<Vec<Value>> {
    let name = lab.name();
    let mut run = lab.run(subject, &name, &[&[PROBE, "bench"], loops].concat())?;
    let (line, _) = run.line()?;
    run.end()?;
    read(&line, readings)
}

pub(super) fn read(line: &str, readings: &[Reading]) -> Result<Vec<Value>> {
    let json: Json = serde_json::from_str(line).with_context(|| line.to_owned())?;
    readings
        .iter()
        .map(|(place, what, unit)| {
            let number = json.pointer(place).and_then(Json::as_f64);
            let number = number.with_context(|| format!("no {place} in {line}"))?;
            Ok(Value::new(*what, *unit, number))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_found_in_what_the_probe_prints() {
        let readings = [("/a/b", "one", Unit::Nanoseconds)];
        let values = read("{\"a\": {\"b\": 2.5}}", &readings).unwrap();
        assert_eq!(values, [Value::new("one", Unit::Nanoseconds, 2.5)]);
        let error = read("{\"a\": {}}", &readings).unwrap_err().to_string();
        assert!(error.contains("/a/b"), "{error}");
    }
}
