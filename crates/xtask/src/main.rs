//! All automation of the project: `cargo xtask --help`.

mod bench;
mod cache;
mod demo;
mod fuzz;
mod guest;
mod kernel;
mod packages;
mod reproducible;
mod shell;
mod structure;
mod testhost;
mod tests;
mod userland;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

/// Sets up, builds, checks and tests the sandbox runtime.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages that are missing.
    Setup {
        /// Those of the tests too.
        #[arg(long)]
        tests: bool,
    },
    /// Build the guest kernel, the guest image and the other parts in `target/artifacts/`.
    Guest,
    /// Build everything: the workspace and the guest.
    Build,
    /// Make the demo image, an OCI layout, in `target/demo`.
    Demo,
    /// Make the newer user land of the tests, a Debian testing with newer engines, in `target/userland`.
    Userland,
    /// Set up, build, and run a container in a micro-VM.
    Run,
    /// Set up, build, and run every test that can run here.
    Test {
        /// Only the suite of this name, or else the suites whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Set up, build, and measure this runtime beside its peers: a table, JSON and pictures.
    Bench(bench::BenchArgs),
    /// Build the guest image's agent a second time, in another folder, and compare the two to the byte.
    Reproducible,
    /// Run the fuzz targets, one after the other.
    Fuzz {
        /// Seconds for each.
        #[arg(long, default_value_t = 60)]
        time: u64,
        /// Only these.
        targets: Vec<String>,
    },
    /// Check the direction of dependencies and the sizes of files.
    Structure,
    /// Check format, lints and structure.
    Lint,
    /// Run a command of this machine inside a throwaway virtual machine that has KVM.
    Testhost {
        /// Seconds after which it is ended.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Memory of the machine, in MiB.
        #[arg(long, default_value_t = testhost::MEMORY_MIB)]
        memory: u32,
        /// Processors of the machine.
        #[arg(long, default_value_t = 1)]
        cpus: u8,
        /// Environment variables to carry over, by name.
        #[arg(long = "env")]
        environment: Vec<String>,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

/// The root of the checkout that this program was built from.
pub(crate) fn project_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
}

/// Where the product's programs are after [`build`].
pub(crate) fn binaries() -> PathBuf {
    project_root().join("target/release")
}

/// Builds the workspace and the guest.
pub(crate) fn build() -> Result<()> {
    shell::run(
        shell::cargo()
            .args(["build", "--release", "--workspace", "--exclude", "xtask"])
            .current_dir(project_root()),
    )?;
    guest::build()
}

/// Requires root for what makes virtual machines, before anything takes minutes.
fn need_root(what: &str) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "`{what}` needs root: it installs packages and starts virtual machines. Where sudo is: `sudo -E env PATH=$PATH {what}`"
    );
    Ok(())
}

/// Requires paths that make, the kernel's build and compiler flags in variables can take.
fn need_plain_paths(paths: &[&Path]) -> Result<()> {
    for path in paths {
        let text = path.to_string_lossy();
        ensure!(
            !text.contains(char::is_whitespace),
            "`{text}` has a space in it, which the kernel's build cannot take: move the checkout, or name another cache with XDG_CACHE_HOME"
        );
    }
    Ok(())
}

fn run_demo() -> Result<()> {
    need_root("make run")?;
    packages::for_run()?;
    build()?;
    let layout = demo::build()?;
    let sandboxctl = binaries().join("sandboxctl");
    shell::step("importing the demo image");
    shell::run(
        Command::new(&sandboxctl)
            .args(["image", "import", "--name", "demo"])
            .arg(layout),
    )?;
    shell::step("sandboxctl run --rm --network none demo sh -c '…'");
    println!("host:      kernel {}", shell::read("uname", &["-r"])?);
    println!(
        "host:      PID 1 is {}",
        std::fs::read_to_string("/proc/1/comm")?.trim()
    );
    shell::run(Command::new(&sandboxctl).args([
        "run",
        "--rm",
        "--network",
        "none",
        "--timings",
        "demo",
        "sh",
        "-c",
        "echo \"container: kernel $(uname -r)\"; echo \"container: PID 1 is $(cat /proc/1/comm)\"; true",
    ]))
}

fn main() -> Result<ExitCode> {
    // What is built is for others too: the jail's users, and who the caches are shared with.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let task = Arguments::parse().task;
    need_plain_paths(&[project_root(), &cache::root().unwrap_or_default()])?;
    match task {
        Task::Setup { tests: false } => packages::for_run()?,
        Task::Setup { tests: true } => packages::for_test()?,
        Task::Guest => guest::build()?,
        Task::Build => build()?,
        Task::Demo => println!("{}", demo::build()?.display()),
        Task::Userland => println!("{}", userland::build()?.display()),
        Task::Run => run_demo()?,
        Task::Test { only } => {
            need_root("make test")?;
            return tests::run(only.as_deref());
        }
        Task::Bench(arguments) => {
            need_root("cargo xtask bench")?;
            bench::run(&arguments)?;
        }
        Task::Reproducible => return reproducible::run(),
        Task::Fuzz { time, targets } => fuzz::run(time, &targets)?,
        Task::Structure => structure::check()?,
        Task::Lint => lint()?,
        Task::Testhost {
            timeout,
            memory,
            cpus,
            environment,
            command,
        } => {
            let code = testhost::run(&testhost::Options {
                command,
                timeout: Duration::from_secs(timeout),
                memory_mib: memory,
                cpus,
                env: environment,
            })?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lint() -> Result<()> {
    shell::step("format");
    shell::run(
        shell::cargo()
            .args(["fmt", "--all", "--check"])
            .current_dir(project_root()),
    )
    .context("run `cargo fmt --all`")?;
    structure::check()?;
    shell::step("lints");
    shell::run(
        shell::cargo()
            .args([
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ])
            .current_dir(project_root()),
    )
}

#[cfg(test)]
mod plain_paths {
    use super::*;

    #[test]
    fn path_with_a_space_is_refused_by_name() {
        need_plain_paths(&[Path::new("/a/b")]).unwrap();
        let error = need_plain_paths(&[Path::new("/a"), Path::new("/my code")]).unwrap_err();
        assert!(error.to_string().starts_with("`/my code` has a space"));
    }
}
