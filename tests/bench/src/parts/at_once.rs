//! Several containers that are started together.

use std::time::Instant;

use anyhow::Result;

use super::COMMANDS;
use crate::lab::{About, Lab};
use crate::report::{Part, Value};
use crate::subject::Subject;

const ABOUT: About = About {
    name: "at-once",
    title: "Several at once",
    about: "So many `echo` in new containers, all commands started one right after the other: the time until the last of them has printed, and until all \
            commands have ended.",
    one_scale: true,
};

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&COMMANDS), lab.turns(), |subject| {
        let mut values = Vec::new();
        for count in lab.at_once() {
            values.extend(together(lab, COMMANDS[subject], *count)?);
        }
        Ok(values)
    })
}

fn together(lab: &Lab, subject: Subject, count: usize) -> Result<Vec<Value>> {
    let begun = Instant::now();
    let mut runs = (0..count)
        .map(|_| lab.run(subject, &lab.name(), &["echo", "up"]))
        .collect::<Result<Vec<_>>>()?;
    for run in &mut runs {
        run.line()?;
    }
    let printed = begun.elapsed();
    for run in &mut runs {
        run.end()?;
    }
    let ended = begun.elapsed();
    Ok(vec![
        Value::took(format!("{count} at once: last first output"), printed),
        Value::took(format!("{count} at once: all ended"), ended),
    ])
}
