//! One container in a shim of its own, what is called of it, and its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use containerd_shim_protos::api::{DeleteResponse, KillRequest};
use nix::sys::signal::Signal;
use protobuf::Message as _;
use sandbox_harness::process::{self, wait_until};
use sandbox_harness::shim::{Output, Shim, delete_command};
use sandbox_harness::{World, bundle};
use serde_json::Value;

use super::BOUND;
use super::moment::{Sign, Victim, When, kill_now};

/// A call that is under way, on a thread of its own.
pub(super) struct Call<T> {
    what: &'static str,
    answer: Receiver<Result<T>>,
}

impl<T: Send + 'static> Call<T> {
    pub(super) fn start(
        what: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Self {
        let (sender, answer) = channel();
        thread::spawn(move || {
            let _ = sender.send(work());
        });
        Self { what, answer }
    }

    /// What it came back with.
    ///
    /// # Errors
    /// When it does not come back in time.
    pub(super) fn answer(self) -> Result<Result<T>> {
        self.answer
            .recv_timeout(BOUND)
            .map_err(|_| anyhow!("{} was not answered within {BOUND:?}", self.what))
    }
}

/// Requires of a call that failed that it says why. Returns what it brought otherwise.
pub(super) fn judge<T>(what: &str, answer: Result<T>, named: Option<&str>) -> Result<Option<T>> {
    let error = match answer {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    // Not the whole error: the shim's log is in it.
    let cause = error.root_cause();
    let text = cause.to_string();
    ensure!(!says_that_we_panicked(&text), "{what}: {text}");
    if let Some(named) = named {
        let status = match cause.downcast_ref() {
            Some(ttrpc::Error::RpcStatus(status)) => status,
            _ => return Err(error.context(format!("{what}: not the shim's answer"))),
        };
        ensure!(
            status.message().contains(named),
            "{what} failed and does not say {named:?}: {}",
            status.message()
        );
    }
    Ok(None)
}

/// Whether a program of ours has panicked. What is left of virtiofsd does when half of it is killed before it is in its namespaces, and its
/// last words are in the error.
fn says_that_we_panicked(text: &str) -> bool {
    text.split("panicked at ").skip(1).any(|place| {
        let file = place.split(':').next().unwrap_or_default();
        !file.contains("/virtiofsd-")
    })
}

/// A container in a shim of its own.
pub(super) struct Cell {
    pub(super) id: String,
    folder: PathBuf,
    pub(super) shim: Arc<Shim>,
    /// The output is read by us to the end of the cell.
    pub(super) output: Option<Output>,
}

impl Cell {
    pub(super) fn start(world: &World, id: String, spec: &Value) -> Result<Self> {
        let folder = bundle::make(world, &id, spec)?;
        let shim = Arc::new(Shim::start(world, &id, &folder)?);
        Ok(Self {
            id,
            folder,
            shim,
            output: None,
        })
    }

    pub(super) fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Shim, &str) -> Result<T> + Send + 'static,
    ) -> Call<T> {
        let (shim, id) = (Arc::clone(&self.shim), self.id.clone());
        Call::start(what, move || work(&shim, &id))
    }

    pub(super) fn run(&mut self) -> Result<()> {
        let mut output = self.shim.run(&self.id, false)?;
        ensure!(output.line()? == "up");
        self.output = Some(output);
        Ok(())
    }

    pub(super) fn kill_all(&self) -> Result<()> {
        self.signal(Signal::SIGKILL, true)?;
        self.shim.wait(&self.id, "")?;
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal, all: bool) -> Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            signal: (signal as i32).cast_unsigned(),
            all,
            ..Default::default()
        };
        self.shim.tasks().kill(Shim::context(), &request)?;
        Ok(())
    }

    /// Does what it takes to be at the moment, kills there, and judges the call that this came in between.
    pub(super) fn strike(
        &mut self,
        world: &World,
        victim: Victim,
        when: When,
        pause: Duration,
    ) -> Result<()> {
        let named = victim.named();
        match when {
            When::Waiting => {
                if When::machine_waits(world) {
                    Sign::Process(Victim::Machine).wait(world)?;
                }
                thread::sleep(pause);
                ensure!(!kill_now(world, victim).is_empty(), "nothing to kill");
                if victim != Victim::Shim {
                    // It is done without.
                    self.run()?;
                    self.kill_all()?;
                }
            }
            When::Creating(sign) => {
                let call = self.call("Create", |shim, id| shim.create(id, false));
                sign.wait(world)?;
                thread::sleep(pause);
                kill_now(world, victim);
                self.output = judge("Create", call.answer()?, named)?;
                if self.output.is_some() {
                    // One that waited since before the call, and was done without; or nothing was there to kill.
                    kill_now(world, victim);
                }
            }
            When::Created => {
                self.output = Some(self.shim.create(&self.id, false)?);
                ensure!(!kill_now(world, victim).is_empty(), "nothing to kill");
                thread::sleep(pause);
                let call = self.call("Start", |shim, id| shim.start_process(id, ""));
                judge("Start", call.answer()?, named)?;
            }
            When::Running => {
                self.run()?;
                let call = self.call("Wait", |shim, id| shim.wait(id, ""));
                thread::sleep(pause);
                ensure!(!kill_now(world, victim).is_empty(), "nothing to kill");
                let status = judge("Wait", call.answer()?, named)?;
                ensure!(matches!(status, None | Some(137)), "ended with {status:?}");
            }
            When::Executing => {
                self.run()?;
                let call = self.call("Exec", |shim, id| {
                    let process = bundle::process(&["sleep", "1000"]);
                    let _output = shim.exec(id, "e", &process)?;
                    shim.wait(id, "e")
                });
                thread::sleep(pause);
                ensure!(!kill_now(world, victim).is_empty(), "nothing to kill");
                let status = judge("Exec", call.answer()?, named)?;
                ensure!(matches!(status, None | Some(137)), "ended with {status:?}");
            }
            When::Stopping => {
                self.run()?;
                self.kill_all()?;
                let call = self.call("Delete", |shim, id| shim.delete(id, ""));
                thread::sleep(pause);
                kill_now(world, victim);
                judge("Delete", call.answer()?, named)?;
            }
        }
        Ok(())
    }

    /// What containerd does when the shim is there and something of it failed: it deletes the container, if it was made, and
    /// ends the shim.
    pub(super) fn end(&self) -> Result<()> {
        let waited = self.call("Wait", |shim, id| shim.wait(id, "")).answer()?;
        if let Ok(status) = &waited {
            ensure!(*status != 0, "a container that was killed ended with 0");
        }
        let deleted = self
            .call("Delete", |shim, id| shim.delete(id, ""))
            .answer()?;
        for (what, answer) in [("Wait", waited.map(drop)), ("Delete", deleted)] {
            // It was not created, or is deleted already.
            judge(what, answer, Some("does not exist in this pod"))?;
        }
        self.call("Shutdown", Shim::shutdown).answer()?
    }

    /// What containerd does when the shim is not there any more.
    pub(super) fn end_without_shim(&self, world: &World) -> Result<()> {
        let mut delete = delete_command(world, &self.id, &self.folder);
        let deleted = process::run(&mut delete, b"", BOUND)?.expect_code(0)?;
        let answer = DeleteResponse::parse_from_bytes(&deleted.stdout)?;
        ensure!(answer.exit_status == 137, "{answer:?}");
        Ok(())
    }

    /// Nothing of it is left, but for the bundle, which is the caller's.
    pub(super) fn expect_nothing_left(self, world: &World) -> Result<()> {
        let address = fs::read_to_string(self.folder.join("address"))?;
        let socket = Path::new(address.trim_start_matches("unix://"));
        wait_until("the shim's socket is removed", BOUND, || {
            (!socket.exists()).then_some(())
        })?;
        world.expect_nothing_left()?;
        drop(self.output);
        fs::remove_dir_all(&self.folder).context("the bundle cannot be removed")
    }
}
