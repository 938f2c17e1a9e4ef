//! Measures this runtime beside its peers: on one host, with one image, in alternation.
//!
//! `cargo xtask bench` builds everything and runs it. Nothing here fails because something is slow: it measures, and
//! `docs/spec.md` says what was promised. What cannot be measured on a host is in the report with the reason, and never
//! with a number.

mod exits;
mod family;
mod fixture;
mod host;
mod lab;
mod order;
mod parts;
mod report;
mod smaps;
mod stats;
mod strace;
mod subject;
mod timed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use sandbox_harness::{Driver, Setup, ending, leaks};

use host::Host;
use lab::{Lab, Plan};
use report::Report;

/// How long one command may take before it counts as hung. Emulated machines are slow, and some commands wait for nine others.
const LIMIT: Duration = Duration::from_secs(600);

/// Before the report on standard output, on the same line.
const REPORT_LINE: &str = "sandbox-bench-report: ";

/// Measures this runtime beside its peers.
#[derive(Debug, Parser)]
#[command(name = "sandbox-bench")]
struct Options {
    /// What "this runtime" means
    #[arg(long, value_enum, required_unless_present = "from")]
    driver: Option<DriverName>,
    /// The program that runs in containers
    #[arg(long, required_unless_present = "from")]
    probe: Option<PathBuf>,
    /// The folder of the programs that are measured [default: this program's own]
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// The folder for `results.md`, `results.json` and pictures; `-`: one line of JSON on standard output
    #[arg(long)]
    out: PathBuf,
    /// Write the report that is in this file, or behind its mark in one, and measure nothing; can be given several
    /// times, and of a part that several have, the last file's is taken
    #[arg(long, conflicts_with_all = ["driver", "probe"])]
    from: Vec<PathBuf>,
    /// Only this part; can be given several times
    #[arg(long = "only", value_name = "PART", value_parser = part_names())]
    only: Vec<String>,
    /// How often each subject is measured, after a run to warm up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How many are started at once, in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 20])]
    at_once: Vec<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverName {
    Kvm,
    Qemu,
}

fn part_names() -> clap::builder::PossibleValuesParser {
    parts::ALL
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .into()
}

fn main() -> Result<()> {
    let options = Options::parse();
    let report = match options.from.split_first() {
        Some((first, rest)) => rest
            .iter()
            .try_fold(read(first)?, |report, file| report.joined(read(file)?))?,
        None => measure(&options)?,
    };
    if options.out == Path::new("-") {
        println!("{REPORT_LINE}{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    report.write(&options.out)?;
    print!("{}", report.markdown());
    eprintln!("==> written to {}", options.out.display());
    Ok(())
}

/// A report from a file: `results.json`, or what was printed with `--out -`.
fn read(file: &Path) -> Result<Report> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let marked = text
        .lines()
        .find_map(|line| line.split_once(REPORT_LINE))
        .map(|(_, json)| json);
    serde_json::from_str(marked.unwrap_or(&text))
        .with_context(|| format!("{} has no report", file.display()))
}

fn measure(options: &Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "run it as root");
    let host = Host::look();
    let driver = match options.driver {
        Some(DriverName::Kvm) => Driver::Kvm,
        Some(DriverName::Qemu) => Driver::Qemu,
        None => bail!("--driver is missing"),
    };
    let probe = options.probe.as_ref().context("--probe is missing")?;
    let probe = std::fs::canonicalize(probe)
        .with_context(|| format!("{} is not built", probe.display()))?;
    // Named for what it is: a folder beside those of worlds.
    let image = std::env::temp_dir().join(format!("sandbox-bench-image-{}", std::process::id()));
    std::fs::create_dir(&image)?;
    let measured = measure_with(options, &host, driver, &probe, &image);
    let _ = std::fs::remove_dir_all(&image);
    measured
}

fn measure_with(
    options: &Options,
    host: &Host,
    driver: Driver,
    probe: &Path,
    image: &Path,
) -> Result<Report> {
    for ended in ending::begin()? {
        eprintln!("==> left by an earlier run, and ended: {ended}");
    }
    let before = leaks::machine();
    fixture::write_image(image, probe)?;
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()?
            .parent()
            .context("we are in a folder")?
            .to_owned(),
    };
    let lab = Lab::make(Plan {
        setup: Setup {
            binaries,
            demo: image.to_owned(),
            probe: probe.to_owned(),
            driver,
            at_once: options.at_once.iter().copied().max().unwrap_or(1),
            limit: LIMIT,
        },
        host: host.clone(),
        runs: options.runs.into(),
        at_once: options.at_once.clone(),
    })?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|one| one == name);
    let mut parts = Vec::new();
    for (name, part) in parts::ALL.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("==> measuring: {name}");
        parts.push(part(&lab));
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.clone(),
        driver: driver.name().to_owned(),
        storage: lab.storage(),
        parts,
    };
    // What was measured is not thrown away for what was left.
    if let Err(error) = lab.finish() {
        eprintln!("==> {error:#}");
    }
    for line in before.left().notes() {
        eprintln!("==> {line}");
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_consistent_and_know_every_part() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
        let parse = |arguments: &[&str]| {
            let all = [
                "sandbox-bench",
                "--driver",
                "kvm",
                "--probe",
                "/p",
                "--out",
                "-",
            ];
            Options::try_parse_from(all.iter().chain(arguments))
        };
        assert_eq!(parse(&[]).unwrap().at_once, [1, 5, 10, 20]);
        for (name, _) in parts::ALL {
            assert!(parse(&["--only", name]).is_ok());
        }
        assert!(parse(&["--only", "nothing"]).is_err());
        assert!(parse(&["--runs", "0"]).is_err());
        assert!(Options::try_parse_from(["sandbox-bench", "--out", "x"]).is_err());
    }

    #[test]
    fn report_is_found_behind_its_mark() {
        let path = std::env::temp_dir().join(format!("bench-report-{}", std::process::id()));
        let json = serde_json::to_string(&report::tests::report()).unwrap();
        for text in [format!("noise\n{REPORT_LINE}{json}\nmore\n"), json] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), report::tests::report());
        }
        std::fs::write(&path, "noise\n").unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
