//! A network namespace in the place of the host's: bridges, forwarding and iptables rules of a test are that namespace's.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::process;

/// How long `ip` may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A namespace with a loopback device. Dropped, it is removed, with what is in it.
pub struct HostNet {
    name: String,
}

fn ip(words: &[&str]) -> Result<String> {
    let finished = process::run(Command::new("ip").args(words), b"", LIMIT)?;
    Ok(finished.expect_code(0)?.text())
}

impl HostNet {
    /// Makes one.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            name: format!("sbtest-{}-{number}-net", std::process::id()),
        };
        ip(&["netns", "add", &net.name])?;
        net.ip(&["link", "set", "lo", "up"])?;
        Ok(net)
    }

    /// Runs `ip` for it; returns what that printed.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, words: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], words].concat())
    }

    /// Waits until what `ip` prints for it has not `part` in it: the kernel takes interfaces away in its own time.
    ///
    /// # Errors
    /// With what is left.
    pub fn wait_without(&self, words: &[&str], part: &str) -> Result<()> {
        let mut last = String::new();
        process::wait_until(&format!("no {part:?} in ip {words:?}"), LIMIT, || {
            last = self.ip(words).ok()?;
            (!last.contains(part)).then_some(())
        })
        .with_context(|| format!("there is {last}"))
    }

    /// The path that holds it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command that runs in it what `plain` runs; the environment is for the caller to set.
    #[must_use]
    pub fn command(&self, plain: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .arg(plain.get_program())
            .args(plain.get_args());
        command
    }

    /// Does something in it, on a thread of its own.
    ///
    /// # Errors
    /// What `work` returns, or that the namespace cannot be entered.
    pub fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = File::open(self.path())?;
        let within = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::spawn(within)
            .join()
            .map_err(|_| anyhow!("the thread in the namespace panicked"))?
    }
}

impl Drop for HostNet {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}
