//! What the host's memory holds when several containers have read the same image.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::COMMANDS;
use crate::fixture;
use crate::lab::{About, Given, Lab, tool};
use crate::order::Turns;
use crate::report::{Part, Unit, Value};
use crate::subject::Subject;

const ABOUT: About = About {
    name: "page-cache",
    title: "Memory of containers that have read one image",
    about: "So many containers of one image of 300 MiB, of which each has read every file. All memory of the host that is not free, page cache included, less what it was before the first of them and with \
            nothing of the image cached; and how much more page cache there is. A guest that has a copy of its own of what it has read shows as memory that grows with the number.",
    one_scale: true,
};

/// How many at a time.
const COUNTS: [usize; 4] = [1, 2, 5, 10];
/// What one may need: the image, and the guest's own.
const EACH_KIB: u64 = 480 << 10;
/// Memory does not scatter as times do.
const MAX_RUNS: usize = 3;
/// The large image's name.
const LARGE: &str = "large";

pub(super) fn measure(lab: &Lab) -> Part {
    let prepared = prepare(lab).map_err(|error| format!("{error:#}"));
    let counts = counts();
    let turns = Turns::at_once(lab.runs().min(MAX_RUNS));
    let contenders = lab.contenders(&COMMANDS);
    ABOUT.measure(contenders, turns, |subject| match &prepared {
        Ok(given) => read_by(lab, COMMANDS[subject], given, &counts),
        Err(why) => anyhow::bail!("the large image cannot be made: {why}"),
    })
}

/// Imports the large image, and unpacks it for runtimes that want a folder.
fn prepare(lab: &Lab) -> Result<Given<'static>> {
    let layout = lab.world().path().join("large-layout");
    fs::create_dir(&layout)?;
    fixture::write_large_image(&layout)?;
    let root = lab.world().path().join("large-root");
    fixture::unpack(&layout, &root)?;
    let path = layout.to_string_lossy().into_owned();
    let import = ["image", "import", "--name", LARGE, &path];
    tool(&mut lab.world().sandboxctl_command(&import), lab.limit())?;
    fs::remove_dir_all(&layout)?;
    Ok(Given {
        image: LARGE,
        root,
        shared: None,
        limited: false,
    })
}

/// Those that the host has the memory for; the others are named.
fn counts() -> Vec<usize> {
    let available = Meminfo::read().map_or(0, |memory| memory.available_kib);
    let (fit, rest): (Vec<usize>, Vec<usize>) = COUNTS
        .iter()
        .partition(|count| EACH_KIB * **count as u64 <= available);
    for count in rest {
        eprintln!(
            "==> page-cache: {count} containers do not fit into the {available} KiB that are free"
        );
    }
    fit
}

/// The host's memory, in KiB (proc(5), `/proc/meminfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meminfo {
    used_kib: u64,
    cached_kib: u64,
    available_kib: u64,
}

impl Meminfo {
    fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| -> Result<u64> {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            Ok(number.with_context(|| format!("no {name}"))?.parse()?)
        };
        let total = field("MemTotal")?;
        Ok(Self {
            used_kib: total.saturating_sub(field("MemFree")?),
            cached_kib: field("Cached")?,
            available_kib: field("MemAvailable")?,
        })
    }
}

/// Has the host write back and forget what it can (kernel `Documentation/admin-guide/sysctl/vm.rst`).
fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

fn mebibytes(now: u64, before: u64) -> f64 {
    f64::from(u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX)) / 1024.0
}

/// Starts one container after the other, and looks whenever there are as many as one of `counts`.
fn read_by(lab: &Lab, subject: Subject, given: &Given<'_>, counts: &[usize]) -> Result<Vec<Value>> {
    drop_caches()?;
    let before = Meminfo::read()?;
    let script = "cat /large/* >/dev/null && echo read; exec cat";
    let mut values = Vec::new();
    let mut runs = Vec::new();
    for count in 1..=counts.iter().copied().max().unwrap_or(0) {
        let mut run = lab.run_given(subject, &lab.name(), given, &["sh", "-c", script])?;
        let (line, _) = run.line()?;
        ensure!(line == "read", "{line:?} came");
        runs.push(run);
        if counts.contains(&count) {
            let now = Meminfo::read()?;
            let mut row = |what: &str, now, before| {
                let what = format!("{count} have read all: {what}");
                let amount = mebibytes(now, before);
                values.push(Value::new(what, Unit::Mebibytes, amount));
            };
            row("memory", now.used_kib, before.used_kib);
            row("page cache", now.cached_kib, before.cached_kib);
        }
    }
    for run in &mut runs {
        run.end()?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_not_free() {
        let text = "MemTotal: 1000 kB\nMemFree:  300 kB\nMemAvailable: 700 kB\nCached: 5 kB\nSwapCached: 9 kB\n";
        let expected = Meminfo {
            used_kib: 700,
            cached_kib: 5,
            available_kib: 700,
        };
        assert_eq!(Meminfo::parse(text).unwrap(), expected);
        assert!(Meminfo::parse("MemTotal: 1 kB").is_err());
    }
}
