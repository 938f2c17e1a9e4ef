//! A process that is added from the command line.

use anyhow::{Context as _, Result};

use super::commands_and_engines;
use crate::lab::{About, Lab};
use crate::report::{Part, Value};
use crate::timed::Timed;

const ABOUT: About = About {
    name: "exec",
    title: "Exec from a command line",
    about: "`true` in a container that runs: the whole command (`runc exec`, `sandboxctl exec`, `ctr task exec`), the client's own start included.",
    one_scale: true,
};

pub(super) fn measure(lab: &Lab) -> Part {
    let subjects = commands_and_engines();
    // Each runs one container, from its first turn to the end of the part.
    let mut running: Vec<Option<(String, Timed)>> = subjects.iter().map(|_| None).collect();
    let execs = u32::try_from(subjects.len() * (lab.runs() + 2)).unwrap_or(u32::MAX);
    let whole_part = lab.limit().saturating_mul(execs);
    let part = ABOUT.measure(lab.contenders(&subjects), lab.turns(), |subject| {
        let slot = &mut running[subject];
        if slot.is_none() {
            let name = lab.name();
            let script = ["sh", "-c", "echo up; cat"];
            let mut run = lab.hold(subjects[subject], &name, &script, whole_part)?;
            run.line()?;
            *slot = Some((name, run));
        }
        let (name, _) = slot.as_ref().context("it was just started")?;
        let mut command = lab.exec_command(subjects[subject], name, &["true"])?;
        let label = lab.name();
        let mut exec = Timed::start(&mut command, lab.world().path(), &label, lab.limit())?;
        Ok(vec![Value::took("exec of true", exec.end()?)])
    });
    for (_, mut run) in running.into_iter().flatten() {
        if let Err(error) = end(&mut run) {
            eprintln!("    a container did not end well: {error:#}");
        }
    }
    part
}

fn end(run: &mut Timed) -> Result<()> {
    run.end().map(drop)
}
