//! What was measured, and how it is shown: markdown, JSON and pictures.

mod picture;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::parts;
use crate::stats::Summary;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The version of this project that was measured.
    pub(crate) version: String,
    /// Where.
    pub(crate) host: Host,
    /// The driver that "this runtime" means.
    pub(crate) driver: String,
    /// The type of the file system that images and containers were on.
    pub(crate) storage: String,
    /// What was measured.
    pub(crate) parts: Vec<Part>,
}

/// Things that are measured together, of the same subjects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// What `--only` takes.
    pub(crate) name: String,
    /// When its measuring began (RFC 3339).
    pub(crate) date: String,
    /// What it is called above its table.
    pub(crate) title: String,
    /// How it was measured, in a few sentences.
    pub(crate) about: String,
    /// Who was measured; ratios are to the first that was.
    pub(crate) subjects: Vec<Measured>,
    /// What was measured.
    pub(crate) rows: Vec<Row>,
    /// One scale fits all bars of a unit in the picture.
    pub(crate) one_scale: bool,
}

/// Who was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// What it is called.
    pub(crate) label: String,
    /// Why there are no numbers of it, or fewer than there should be.
    pub(crate) problems: Vec<String>,
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What.
    pub(crate) what: String,
    /// In which unit.
    pub(crate) unit: Unit,
    /// Of each subject, in their order; none where it has no such thing or could not be measured.
    pub(crate) cells: Vec<Option<Cell>>,
}

/// What was measured of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// What is said of it.
    pub(crate) summary: Summary,
    /// Each run's, in their order.
    pub(crate) values: Vec<f64>,
}

/// A unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
    #[serde(rename = "KiB")]
    Kibibytes,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
    /// None: so many of them.
    #[serde(rename = "")]
    Count,
}

impl Unit {
    /// Its symbol.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Nanoseconds => "ns",
            Self::Kibibytes => "KiB",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::Count => "",
        }
    }
}

impl Row {
    /// The first subject that was measured: what the others are compared with.
    pub(crate) fn reference(&self) -> Option<(usize, &Summary)> {
        let measured = self.cells.iter().enumerate();
        measured
            .filter_map(|(subject, cell)| Some((subject, &cell.as_ref()?.summary)))
            .next()
    }
}

/// One value of one thing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Value {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
}

impl Value {
    /// So much of something.
    pub(crate) fn new(what: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self {
            what: what.into(),
            unit,
            value,
        }
    }

    /// So many of something.
    pub(crate) fn count(what: impl Into<String>, count: u64) -> Self {
        Self::new(what, Unit::Count, number(count))
    }

    /// How long something took.
    pub(crate) fn took(what: impl Into<String>, time: std::time::Duration) -> Self {
        Self::new(what, Unit::Milliseconds, time.as_secs_f64() * 1_000.0)
    }
}

/// Collects the values of a part. Rows are in the order in which they came first.
pub(crate) struct Board {
    part: Part,
    rows: Vec<(String, Unit)>,
    values: BTreeMap<(usize, usize), Vec<f64>>,
}

impl Board {
    /// For a part without rows.
    pub(crate) fn new(part: Part) -> Self {
        Self {
            part,
            rows: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    /// Takes in what was measured of a subject.
    pub(crate) fn add(&mut self, subject: usize, values: Vec<Value>) {
        for value in values {
            let known = self.rows.iter().position(|(what, _)| *what == value.what);
            let row = known.unwrap_or_else(|| {
                self.rows.push((value.what, value.unit));
                self.rows.len() - 1
            });
            let values = self.values.entry((row, subject)).or_default();
            values.push(value.value);
        }
    }

    /// Notes why something of a subject is missing.
    pub(crate) fn problem(&mut self, subject: usize, problem: String) {
        if let Some(subject) = self.part.subjects.get_mut(subject)
            && !subject.problems.contains(&problem)
        {
            subject.problems.push(problem);
        }
    }

    /// The part with its rows.
    pub(crate) fn finish(mut self) -> Part {
        let subjects = self.part.subjects.len();
        let mut values = self.values;
        let rows = self.rows.into_iter().enumerate();
        self.part.rows = rows
            .map(|(row, (what, unit))| Row {
                what,
                unit,
                cells: (0..subjects)
                    .map(|subject| {
                        let values = values.remove(&(row, subject))?;
                        let summary = Summary::of(&values)?;
                        Some(Cell { summary, values })
                    })
                    .collect(),
            })
            .collect();
        self.part
    }
}

/// As a number with a fraction; one that it cannot hold exactly is larger than anything that is counted here.
pub(crate) fn number(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// A number with three digits that say something.
pub(crate) fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

impl Report {
    /// The parts of both, in their usual order; of one that both have, the later's.
    ///
    /// # Errors
    /// When they are not of the same host, driver and version, and so cannot be compared.
    pub(crate) fn joined(mut self, later: Self) -> Result<Self> {
        let of = |report: &Self| {
            let storage = &report.storage;
            (
                report.version.clone(),
                report.host.clone(),
                report.driver.clone(),
                storage.clone(),
            )
        };
        ensure!(
            of(&self) == of(&later),
            "the report that is there is of another host, driver or version: write to another folder, or measure every part"
        );
        self.parts
            .retain(|part| later.parts.iter().all(|other| other.name != part.name));
        self.parts.extend(later.parts);
        let place = |part: &Part| {
            let mut names = parts::ALL.iter().map(|(name, _)| *name);
            names.position(|name| name == part.name)
        };
        self.parts.sort_by_key(place);
        Ok(self)
    }

    /// As markdown.
    pub(crate) fn markdown(&self) -> String {
        table::markdown(self)
    }

    /// Writes `results.md`, `results.json`, and a picture of every part that has numbers.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: String, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for part in self.parts.iter().filter(|part| !part.rows.is_empty()) {
            write(picture_name(part), picture::draw(part))?;
        }
        let json = serde_json::to_string_pretty(self)?;
        write("results.json".to_owned(), json + "\n")?;
        write("results.md".to_owned(), self.markdown())
    }
}

fn picture_name(part: &Part) -> String {
    format!("{}.svg", part.name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::HostKind;

    /// Two subjects that were measured, one that could not be.
    pub(crate) fn part() -> Part {
        let subject = |label: &str| Measured {
            label: label.to_owned(),
            problems: Vec::new(),
        };
        let mut board = Board::new(Part {
            name: "start".to_owned(),
            date: "2026-01-02T03:04:05Z".to_owned(),
            title: "Start".to_owned(),
            about: "From the command to its output.".to_owned(),
            subjects: vec![subject("runc"), subject("sandbox"), subject("a <b> | c")],
            rows: Vec::new(),
            one_scale: true,
        });
        let time = |what: &str, value| Value::new(what, Unit::Milliseconds, value);
        board.add(0, vec![time("first output", 30.0)]);
        board.add(
            1,
            vec![time("first output", 90.0), time("agent ready", 60.0)],
        );
        board.add(0, vec![time("first output", 32.0)]);
        board.add(
            1,
            vec![time("first output", 96.0), time("agent ready", 64.0)],
        );
        board.problem(2, "it is not installed".to_owned());
        board.problem(2, "it is not installed".to_owned());
        board.finish()
    }

    pub(crate) fn report() -> Report {
        Report {
            version: "0.1.0".to_owned(),
            host: Host {
                kernel: "6.12.0".to_owned(),
                cpu: "A Processor".to_owned(),
                cpus: 2,
                memory_mib: 4096,
                kind: HostKind::Emulated,
                kvm_obstacle: None,
            },
            driver: "kvm".to_owned(),
            storage: "ext4".to_owned(),
            parts: vec![part()],
        }
    }

    #[test]
    fn board_keeps_values_of_a_thing_together_in_the_order_of_runs() {
        let part = part();
        let row = &part.rows[0];
        assert_eq!(row.what, "first output");
        assert_eq!(row.cells[0].as_ref().unwrap().values, [30.0, 32.0]);
        assert_eq!(row.cells[1].as_ref().unwrap().values, [90.0, 96.0]);
        assert_eq!(row.cells[2], None);
        // runc has no agent, which is no problem of it.
        assert_eq!(part.rows[1].cells[0], None);
        assert!(part.subjects[0].problems.is_empty());
        assert_eq!(part.subjects[2].problems, ["it is not installed"]);
    }

    #[test]
    fn reference_is_the_first_that_was_measured() {
        let part = part();
        assert_eq!(part.rows[0].reference().unwrap().0, 0);
        assert_eq!(part.rows[1].reference().unwrap().0, 1);
    }

    #[test]
    fn numbers_have_three_digits() {
        let texts = [1234.5, 99.96, 12.34, 9.999, 1.234, 0.0456, 0.0].map(shown);
        assert_eq!(texts, ["1234", "100", "12.3", "10.0", "1.23", "0.046", "0"]);
    }

    #[test]
    fn joined_reports_have_each_part_once_the_later_one() {
        let named = |name: &str, date: &str| {
            let mut one = report();
            one.parts[0].name = name.to_owned();
            one.parts[0].date = date.to_owned();
            one
        };
        let both = named("memory", "first")
            .joined(named("start", "first"))
            .unwrap();
        let all = both.joined(named("memory", "second")).unwrap();
        let parts: Vec<_> = all
            .parts
            .iter()
            .map(|part| (part.name.as_str(), part.date.as_str()))
            .collect();
        assert_eq!(parts, [("start", "first"), ("memory", "second")]);
    }

    #[test]
    fn reports_of_two_hosts_are_not_joined() {
        let mut other = report();
        other.host.cpu = "Another".to_owned();
        assert!(report().joined(other).is_err());
        let mut other = report();
        other.driver = "qemu".to_owned();
        assert!(report().joined(other).is_err());
    }

    #[test]
    fn report_survives_json() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
    }
}
