//! What containers of one image take of the host's disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Result;

use super::{COMMANDS, ENGINES};
use crate::lab::{About, Lab};
use crate::order::Turns;
use crate::report::{Part, Unit, Value};

const ABOUT: About = About {
    name: "disk",
    title: "Disk used by containers of one image",
    about: "Ten containers of one image that run and have written nothing, and then 1 MiB each: how much more of the disk is allocated to all files of the runtime and the engine, \
            divided by ten. The image itself was there before.",
    one_scale: true,
};

const COUNT: usize = 10;
/// It scatters little.
const MAX_RUNS: usize = 3;

pub(super) fn measure(lab: &Lab) -> Part {
    // By a command line, runc has its caller's folder as it is.
    let subjects = [ENGINES[0], COMMANDS[1], ENGINES[1]];
    let turns = Turns::at_once(lab.runs().min(MAX_RUNS));
    ABOUT.measure(lab.contenders(&subjects), turns, |subject| {
        let subject = subjects[subject];
        let folder = lab.world().path();
        // Unpacks the image where that is left to the first container.
        lab.run(subject, &lab.name(), &["true"])?.end()?;
        let before = allocated(folder)?;
        let script = "echo up; read line; yes | head -c 1048576 >/root/written; sync; echo written; exec cat";
        let mut runs = Vec::new();
        for _ in 0..COUNT {
            let mut run = lab.run(subject, &lab.name(), &["sh", "-c", script])?;
            run.line()?;
            runs.push(run);
        }
        let empty = allocated(folder)?;
        for run in &mut runs {
            run.write(b"\n")?;
            run.line()?;
        }
        let written = allocated(folder)?;
        for run in &mut runs {
            run.end()?;
        }
        let row = |what: &str, now: u64| {
            let each = now.saturating_sub(before) / 1024 / COUNT as u64;
            let mebibytes = f64::from(u32::try_from(each).unwrap_or(u32::MAX)) / 1024.0;
            Value::new(format!("each of {COUNT}: {what}"), Unit::Mebibytes, mebibytes)
        };
        Ok(vec![
            row("nothing written", empty),
            row("1 MiB written", written),
        ])
    })
}

/// The bytes allocated to everything below `folder` on its own file system, each file counted once.
fn allocated(folder: &Path) -> Result<u64> {
    let device = fs::metadata(folder)?.dev();
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        // What is gone since it was listed counts nothing.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.dev() != device || !seen.insert(metadata.ino()) {
            continue;
        }
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_with_two_names_is_counted_once() {
        let folder = std::env::temp_dir().join(format!("bench-disk-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let empty = allocated(&folder).unwrap();
        fs::write(folder.join("one"), vec![1; 1 << 20]).unwrap();
        fs::File::open(folder.join("one"))
            .unwrap()
            .sync_all()
            .unwrap();
        let one = allocated(&folder).unwrap();
        fs::hard_link(folder.join("one"), folder.join("two")).unwrap();
        let two = allocated(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(one - empty >= 1 << 20);
        assert!(two - one < 1 << 20);
    }
}
