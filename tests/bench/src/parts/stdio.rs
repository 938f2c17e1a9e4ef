//! Bytes through a container's standard streams.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::commands_and_engines;
use crate::lab::{About, Lab};
use crate::report::{Part, Unit, Value};
use crate::stats::Summary;

const ABOUT: About = About {
    name: "stdio",
    title: "Standard streams",
    about: "`cat` in a container. A round trip is a line in and the same line out, the median of a hundred. The throughput is that of 32 MiB that go in \
            and come out at the same time.",
    one_scale: false,
};

const ROUND_TRIPS: usize = 100;
const BYTES: usize = 32 << 20;

pub(super) fn measure(lab: &Lab) -> Part {
    let subjects = commands_and_engines();
    ABOUT.measure(lab.contenders(&subjects), lab.turns(), |subject| {
        let name = lab.name();
        let mut run = lab.run(subjects[subject], &name, &["sh", "-c", "echo up; exec cat"])?;
        run.line()?;
        let mut trips = Vec::with_capacity(ROUND_TRIPS);
        for trip in 0..ROUND_TRIPS {
            let begun = Instant::now();
            run.write(format!("{trip}\n").as_bytes())?;
            let (line, _) = run.line()?;
            trips.push(begun.elapsed().as_secs_f64() * 1e6);
            ensure!(line == trip.to_string(), "{line:?} came back");
        }
        let spent = run.echo(BYTES)?;
        run.end()?;
        let mut values = vec![Value::new(
            "in and out",
            Unit::MebibytesPerSecond,
            mebibytes(BYTES) / spent.max(Duration::from_nanos(1)).as_secs_f64(),
        )];
        if let Some(trips) = Summary::of(&trips) {
            let median = Value::new("round trip of a line", Unit::Microseconds, trips.median);
            values.insert(0, median);
        }
        Ok(values)
    })
}

pub(super) fn mebibytes(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mebibytes_are_exact() {
        assert!((mebibytes(BYTES) - 32.0).abs() < 1e-9);
    }
}
