//! What sandboxes take of the host's memory: idle ones, and web servers.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use sandbox_harness::bundle::PROBE;

use super::SETTLES;
use super::network::Wire;
use crate::family::{family, is_there, role};
use crate::lab::{About, Contender, Lab, Root, Task, tool};
use crate::order::Turns;
use crate::report::{Part, Unit, Value};
use crate::smaps::{self, Kind, Memory};
use crate::subject::{Runtime, Subject, Way};

const IDLE: About = About {
    name: "memory",
    title: "Memory of sandboxes",
    about: "So many containers that sleep, all of one image; then `smaps` of every process that exists because of them, divided by their number. Proportional: a page that n processes share \
            counts as 1/n. Private: what nobody else has. Memory of the guest's is part of the monitor's. Page tables, sockets and the host's page cache are in no process's `smaps` and not \
            counted; neither is containerd.",
    one_scale: true,
};

const SERVERS: About = About {
    name: "web-servers",
    title: "Memory of web servers",
    about: "So many containers that serve a file of their image by HTTP, each on a network of its own, and have answered one request; then the sets of all their processes, read as those of idle ones are.",
    one_scale: true,
};

/// The most of each, whatever else is measured with more at once.
const MOST: usize = 10;
/// What they serve.
const SITE: &str = "/data/tree/0";
/// Memory does not scatter as times do.
const MAX_RUNS: usize = 3;
/// Two readings this far apart, with a difference of less than a hundredth, are of something that is idle.
const APART: Duration = Duration::from_secs(2);
/// Else the last one counts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who starts them.
#[derive(Debug, Clone, Copy)]
enum Starter {
    /// An engine, by calls to the shim.
    Shim(Runtime, Root),
    /// `sandboxctl run -d`.
    Sandboxctl,
}

const STARTERS: [(Starter, &str); 5] = [
    (Starter::Shim(Runtime::Runc, Root::Image), ""),
    (Starter::Shim(Runtime::Sandbox, Root::Image), ""),
    (
        Starter::Shim(Runtime::Sandbox, Root::Folder),
        ", folder as root",
    ),
    (Starter::Sandboxctl, ", sandboxctl run -d"),
    (Starter::Shim(Runtime::QemuMicrovm, Root::Image), ""),
];

impl Starter {
    fn subject(self) -> Subject {
        match self {
            Self::Shim(runtime, _) => Subject::new(Way::Task, runtime),
            Self::Sandboxctl => Subject::new(Way::Command, Runtime::Sandbox),
        }
    }
}

pub(super) fn measure(lab: &Lab) -> Part {
    let counts = counts(lab.at_once());
    measure_each(lab, &IDLE, &STARTERS, |starter| {
        let mut values = Vec::new();
        for count in &counts {
            values.extend(idle(lab, starter, *count)?);
        }
        Ok(values)
    })
}

pub(super) fn measure_servers(lab: &Lab) -> Part {
    let counts = counts(lab.at_once());
    // Without an engine's plugins `sandboxctl` would make a bridge of the whole host's.
    let starters: Vec<_> = STARTERS
        .into_iter()
        .filter(|(starter, _)| matches!(starter, Starter::Shim(..)))
        .collect();
    measure_each(lab, &SERVERS, &starters, |starter| {
        match (starter, counts.last()) {
            (Starter::Shim(runtime, root), Some(most)) => servers(lab, runtime, root, *most),
            _ => Ok(Vec::new()),
        }
    })
}

/// Measures what these have started, by turns.
fn measure_each(
    lab: &Lab,
    about: &About,
    starters: &[(Starter, &str)],
    measure: impl Fn(Starter) -> Result<Vec<Value>>,
) -> Part {
    let contenders = starters
        .iter()
        .map(|(starter, how)| Contender {
            label: format!("{}{how}", starter.subject().label(lab.driver())),
            obstacle: lab.obstacle(starter.subject()),
        })
        .collect();
    let turns = Turns::at_once(lab.runs().min(MAX_RUNS));
    about.measure(contenders, turns, |index| measure(starters[index].0))
}

/// How many at a time; the last is how many web servers. Memory needs no more than [`MOST`] to show what they share.
fn counts(at_once: &[usize]) -> Vec<usize> {
    let few: BTreeSet<usize> = at_once.iter().map(|count| *count.min(&MOST)).collect();
    few.into_iter().collect()
}

/// Containers that sleep. Dropped without [`Sleepers::end`] they are left to the world.
enum Sleepers {
    Tasks(Vec<Task>),
    Names(Vec<String>),
}

impl Sleepers {
    fn start(lab: &Lab, starter: Starter, count: usize) -> Result<Self> {
        match starter {
            Starter::Shim(runtime, root) => (0..count)
                .map(|_| Ok(lab.start_task(runtime, root)?.0))
                .collect::<Result<_>>()
                .map(Self::Tasks),
            Starter::Sandboxctl => (0..count)
                .map(|_| {
                    let name = lab.name();
                    let run = ["run", "-d", "--name", &name, "demo", "sleep", "100000"];
                    tool(&mut lab.sandboxctl(starter.subject(), &run), lab.limit())?;
                    Ok(name)
                })
                .collect::<Result<_>>()
                .map(Self::Names),
        }
    }

    fn end(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Tasks(tasks) => tasks.into_iter().try_for_each(|task| task.end().map(drop)),
            Self::Names(names) => names.iter().try_for_each(|name| {
                let mut command: Command =
                    lab.sandboxctl(Starter::Sandboxctl.subject(), &["rm", "-f", name]);
                tool(&mut command, lab.limit()).map(drop)
            }),
        }
    }
}

fn idle(lab: &Lab, starter: Starter, count: usize) -> Result<Vec<Value>> {
    let before = pids(lab);
    let sleepers = Sleepers::start(lab, starter, count)?;
    let values = measured(lab, &before).map(|parts| table(&parts, count, "idle"));
    sleepers.end(lab)?;
    values
}

fn servers(lab: &Lab, runtime: Runtime, root: Root, count: usize) -> Result<Vec<Value>> {
    let before = pids(lab);
    let mut servers = Vec::with_capacity(count);
    for _ in 0..count {
        let wire = Wire::new(lab)?;
        let spec = wire.spec(&[PROBE, "web", &wire.port(), SITE])?;
        let (task, _) = lab.start_task_of(runtime, root, &spec)?;
        wire.get("/0")?;
        servers.push((task, wire));
    }
    let values = measured(lab, &before).map(|parts| table(&parts, count, "web servers"));
    for (task, _wire) in servers {
        task.end()?;
    }
    values
}

fn pids(lab: &Lab) -> BTreeSet<i32> {
    family(lab).into_iter().map(|one| one.pid).collect()
}

/// What everything takes that was not there before, after it has had time to settle, once it stays the same.
fn measured(lab: &Lab, before: &BTreeSet<i32>) -> Result<Reading> {
    std::thread::sleep(SETTLES);
    steady(|| proportional(lab, before))?;
    reading(lab, before)
}

/// Waits until little changes.
fn steady(mut read: impl FnMut() -> Result<u64>) -> Result<()> {
    let begun = Instant::now();
    let mut last = read()?;
    loop {
        std::thread::sleep(APART);
        let now = read()?;
        if last.abs_diff(now) * 100 <= now || begun.elapsed() > PATIENCE {
            return Ok(());
        }
        last = now;
    }
}

/// The proportional sets of everything that was not there before, in KiB.
fn proportional(lab: &Lab, before: &BTreeSet<i32>) -> Result<u64> {
    let processes = family(lab).into_iter();
    processes
        .filter(|process| !before.contains(&process.pid))
        .map(|process| match smaps::total(process.pid) {
            Err(_) if !is_there(process.pid) => Ok(0),
            read => Ok(read?.proportional_kib),
        })
        .sum()
}

/// Memory by what a process does and what its mapping is.
type Reading = BTreeMap<(&'static str, Kind), Memory>;

fn reading(lab: &Lab, before: &BTreeSet<i32>) -> Result<Reading> {
    let mut sums = Reading::new();
    for process in family(lab) {
        if before.contains(&process.pid) {
            continue;
        }
        let (role, owner) = role(&process.command);
        let parts = match smaps::split(process.pid, owner) {
            Ok(parts) => parts,
            // It has ended since it was listed.
            Err(_) if !is_there(process.pid) => continue,
            Err(error) => return Err(error.context(format!("of {role}: {}", process.command))),
        };
        for (kind, memory) in parts {
            *sums.entry((role, kind)).or_default() += memory;
        }
    }
    Ok(sums)
}

fn mebibytes(kib: u64, count: usize) -> f64 {
    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
    let count = u32::try_from(count).unwrap_or(1).max(1);
    f64::from(kib) / 1024.0 / f64::from(count)
}

/// Rows for so many of what they do: sums, by process, and for one alone by mapping too.
fn table(reading: &Reading, count: usize, doing: &str) -> Vec<Value> {
    let mut values = Vec::new();
    let mut row = |what: &str, memory: Memory| {
        for (set, kib) in [
            ("proportional", memory.proportional_kib),
            ("private", memory.private_kib),
        ] {
            let what = format!("{count} {doing}, each: {what}, {set}");
            values.push(Value::new(what, Unit::Mebibytes, mebibytes(kib, count)));
        }
    };
    let sum = |wanted: &dyn Fn(&'static str, Kind) -> bool| {
        let mut sum = Memory::default();
        for (_, memory) in reading
            .iter()
            .filter(|((role, kind), _)| wanted(role, *kind))
        {
            sum += *memory;
        }
        sum
    };
    row("all", sum(&|_, _| true));
    row("all but guest memory", sum(&|_, kind| kind != Kind::Guest));
    let roles: BTreeSet<&'static str> = reading.keys().map(|(role, _)| *role).collect();
    for role in roles {
        row(role, sum(&|of, _| of == role));
    }
    if count == 1 {
        for ((role, kind), memory) in reading {
            row(&format!("{role}: {}", kind.label()), *memory);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_at_once_as_far_as_they_say_something_new() {
        assert_eq!(counts(&[1, 5, 10, 20]), [1, 5, 10]);
        assert_eq!(counts(&[20, 1]), [1, 10]);
        assert!(counts(&[]).is_empty());
    }

    #[test]
    fn memory_of_several_is_divided_and_the_guests_is_apart() {
        let memory = |kib| Memory {
            proportional_kib: kib,
            private_kib: kib / 2,
        };
        let reading = Reading::from([
            (("monitor", Kind::Guest), memory(40 << 10)),
            (("monitor", Kind::Program), memory(4 << 10)),
            (("shim", Kind::Anonymous), memory(6 << 10)),
        ]);
        let of = |count, what: &str| {
            let values = table(&reading, count, "idle");
            let found = values.into_iter().find(|value| value.what == what);
            found.map(|value| value.value)
        };
        let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-9;
        assert!(near(of(5, "5 idle, each: all, proportional"), 10.0));
        assert!(near(
            of(5, "5 idle, each: all but guest memory, private"),
            1.0
        ));
        assert!(near(of(1, "1 idle, each: monitor, private"), 22.0));
        assert!(near(
            of(1, "1 idle, each: monitor: guest memory, proportional"),
            40.0
        ));
        assert_eq!(
            of(5, "5 idle, each: monitor: guest memory, proportional"),
            None
        );
    }
}
