//! What the host loses by a container that uses up what it can.

use anyhow::Result;
use sandbox_harness::bundle::PROBE;

use super::BESIDE_THE_HOST;
use super::compute::{Reading, probe};
use crate::lab::{About, Given, Lab};
use crate::report::{Part, Unit, Value};
use crate::subject::{Runtime, Subject, Way};

const ABOUT: About = About {
    name: "noise",
    title: "What the host loses by a neighbour",
    about: "Three loops on the host (`sandbox-probe bench`): arithmetic, a byte to another process and back, 32 MiB written to the disk and synced. \"host\" is alone; beside the others \
            there is a container with one processor, 256 MiB of memory and 256 processes, which does nothing, makes processes (a fork bomb), touches all the memory it can get, writes its disk over and over, \
            sends datagrams to itself, writes lines that are read and thrown away, or sets timers. Ratios are to being alone: more is a loss for times, less for rates.",
    one_scale: false,
};

/// What the container does, and what that is called.
const NEIGHBOURS: [(&str, &str); 7] = [
    ("nothing", "an idle container"),
    ("fork", "a fork bomb"),
    ("memory", "a memory hog"),
    ("disk", "a disk that is filled"),
    ("network", "a flood of datagrams"),
    ("output", "a flood of output"),
    ("timers", "a storm of timers"),
];

const READINGS: [Reading; 3] = [
    (
        "/compute/ns_per_round",
        "a round of arithmetic",
        Unit::Nanoseconds,
    ),
    (
        "/round-trip/us",
        "a byte there and back",
        Unit::Microseconds,
    ),
    (
        "/block/write_mib_per_s",
        "written and synced",
        Unit::MebibytesPerSecond,
    ),
];

const ALONE: Subject = Subject::new(Way::Command, Runtime::Host);

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&BESIDE_THE_HOST), lab.turns(), |subject| {
        let subject = BESIDE_THE_HOST[subject];
        if subject == ALONE {
            let alone = victim(lab)?;
            let rows = NEIGHBOURS.iter().flat_map(|(_, by)| beside(by, &alone));
            return Ok(rows.collect());
        }
        let mut rows = Vec::new();
        for (kind, by) in NEIGHBOURS {
            let given = Given {
                limited: true,
                ..lab.given()
            };
            let mut run = lab.run_given(subject, &lab.name(), &given, &[PROBE, "disturb", kind])?;
            run.line()?;
            run.forget_output()?;
            rows.extend(beside(by, &victim(lab)?));
            run.end()?;
        }
        Ok(rows)
    })
}

/// What the loops say on the host.
fn victim(lab: &Lab) -> Result<Vec<Value>> {
    let file = lab.world().path().join("noise-victim");
    let block = format!("block={}", file.display());
    probe(lab, ALONE, &["compute", "round-trip", &block], &READINGS)
}

/// The same values, called by what was beside them.
fn beside(by: &str, values: &[Value]) -> Vec<Value> {
    let named = values
        .iter()
        .map(|value| Value::new(format!("{by}: {}", value.what), value.unit, value.value));
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::compute::read;

    #[test]
    fn readings_are_what_the_probe_prints() {
        let line = r#"{"compute": {"ns_per_round": 1.0}, "round-trip": {"us": 2.0}, "block": {"write_mib_per_s": 3.0}}"#;
        let values = beside("a fork bomb", &read(line, &READINGS).unwrap());
        assert_eq!(values[1].what, "a fork bomb: a byte there and back");
        assert!((values[2].value - 3.0).abs() < 1e-9);
    }
}
