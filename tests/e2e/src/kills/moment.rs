//! Who is killed, and when.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox_harness::leaks::{self, Process};
use sandbox_harness::process::wait_until;
use sandbox_harness::{Driver, World};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Shim,
    Machine,
    Virtiofsd,
    VsockBackEnd,
}

impl Victim {
    /// What is in its command line, and in that of whoever is about to become it.
    pub(super) fn part(self, world: &World) -> &'static str {
        match self {
            Self::Shim => "containerd-shim-sandbox-v2",
            Self::Machine => world.setup().driver.monitor(),
            Self::Virtiofsd => "virtiofsd",
            Self::VsockBackEnd => "sandbox-vmm vsock-backend",
        }
    }

    pub(super) fn processes(self, world: &World) -> Vec<Process> {
        let part = self.part(world);
        let mut all = leaks::processes(world.path());
        all.retain(|process| process.command.contains(part));
        all
    }

    /// What an error has in it that names the victim. Nobody is left to name the shim.
    pub(super) fn named(self) -> Option<&'static str> {
        match self {
            Self::Shim => None,
            Self::Machine => Some("monitor was killed"),
            Self::Virtiofsd => Some("virtiofsd"),
            Self::VsockBackEnd => Some("vsock"),
        }
    }
}

/// When it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before anything is asked for, once what the shim begins by itself is there.
    Waiting,
    /// Between Create's call and its answer, once this is there.
    Creating(Sign),
    /// Before the Start of what was created; or while it is on its way.
    Created,
    /// While the container runs, and somebody waits for its end.
    Running,
    /// While a process is added, or is there.
    Executing,
    /// Between Delete's call and its answer.
    Stopping,
}

/// By what it is seen how far Create is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The sandbox's folder.
    Folder,
    /// A process.
    Process(Victim),
}

impl When {
    /// Whether the driver has a machine that waits.
    pub(super) fn machine_waits(world: &World) -> bool {
        world.setup().driver == Driver::Kvm
    }
}

impl Sign {
    pub(super) fn wait(self, world: &World) -> Result<()> {
        wait_until(&format!("{self:?}"), world.setup().limit, || {
            let is_there = match self {
                Self::Folder => fs::read_dir(world.run_dir()).ok()?.next().is_some(),
                Self::Process(victim) => !victim.processes(world).is_empty(),
            };
            is_there.then_some(())
        })
    }
}

/// Chooses pauses (Marsaglia's xorshift).
pub(super) struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    pub(super) fn new() -> Result<Self> {
        let seed = match std::env::var("SANDBOX_TEST_SEED") {
            Ok(seed) => seed.parse().context("SANDBOX_TEST_SEED is a number")?,
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                u64::from(now.subsec_nanos())
            }
        };
        // It must not be zero.
        Ok(Self {
            seed,
            state: seed | 1 << 63,
        })
    }

    fn pause(&mut self, among: &[u64]) -> Duration {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let count = u64::try_from(among.len()).unwrap_or(1).max(1);
        let index = usize::try_from(self.state % count).unwrap_or(0);
        Duration::from_millis(among.get(index).copied().unwrap_or(0))
    }

    /// After what is the matter of a moment.
    pub(super) fn short(&mut self) -> Duration {
        self.pause(&[0, 20, 50, 100, 200])
    }

    /// After the beginning of a boot, which takes a few seconds; the container is made thereafter.
    pub(super) fn boot(&mut self) -> Duration {
        self.pause(&[0, 50, 200, 800, 1600, 2400, 3200])
    }

    pub(super) fn within(&self, when: When, pause: Duration) -> String {
        format!("{when:?} and {pause:?} (SANDBOX_TEST_SEED={})", self.seed)
    }
}

/// Kills every process of the victim's, the first of them first.
pub(super) fn kill_now(world: &World, victim: Victim) -> Vec<Process> {
    let found = victim.processes(world);
    for process in &found {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    found
}
