//! A container with its shim, from Create to Shutdown.

use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;

use sandbox_runtime::{Config, cleanup};
use sandbox_types::SandboxId;
use sandbox_types::timeline::Phase;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::prepare::Bundle;
use super::{DRAIN_IDLE, Death, Ended, RunError};
use crate::cli::RunArgs;
use crate::report;
use crate::shim::{NAMESPACE, RpcError, RpcFailure, Shim};
use crate::signals::{Resizes, Signals};
use crate::stdio::{Input, OutputEnd, Outputs, duplicate};
use crate::terminal::{self, RawMode};
use crate::timings::monotonic_ns;

/// `SIGKILL`.
const KILL: u32 = 9;
/// 128 and `SIGPIPE`: how a program ends whose output nobody reads.
const BROKEN_PIPE: u8 = 141;
/// Lines of the shim's log that are shown when it died.
const LOG_LINES: usize = 10;

/// A shim and the container that it is to run.
pub(super) struct Session<'a> {
    shim: Shim,
    bundle: &'a Bundle,
    args: &'a RunArgs,
    outputs: Outputs,
    input: Option<Input>,
    raw_mode: Option<RawMode>,
    wait: Option<JoinHandle<Result<u32, RpcError>>>,
    /// When Create had answered, `CLOCK_MONOTONIC`.
    created_ns: Option<u64>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shim: Shim, bundle: &'a Bundle, args: &'a RunArgs) -> Self {
        Self {
            shim,
            bundle,
            args,
            outputs: Outputs::new(),
            input: None,
            raw_mode: None,
            wait: None,
            created_ns: None,
        }
    }

    fn id(&self) -> &str {
        &self.bundle.shim.id
    }

    /// Creates and starts the container, unless a signal comes before.
    pub(super) async fn begin(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        tokio::select! {
            result = self.create_and_start() => result,
            signal = signals.next() => {
                self.raw_mode = None;
                Err(RunError::Interrupted { signal })
            }
        }
    }

    async fn create_and_start(&mut self) -> Result<(), RunError> {
        let bundle = self.bundle;
        self.open_outputs()?;
        let created = self.shim.tasks.create(
            &bundle.shim.id,
            &bundle.shim.bundle,
            &bundle.rootfs,
            &bundle.fifos,
        );
        if let Err(error) = self.answered(created).await {
            return Err(self.explain(error).await);
        }
        self.created_ns = Some(monotonic_ns());
        let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
        self.wait = Some(tokio::spawn(async move { tasks.wait(&id).await }));
        if self.args.tty && terminal::on_stdin() && self.args.interactive {
            self.raw_mode = Some(RawMode::enter().map_err(stdio("terminal"))?);
        }
        if let Some(path) = &bundle.fifos.stdin {
            let from = duplicate(io::stdin()).map_err(stdio("stdin"))?;
            self.input = Some(Input::copy(path, from).map_err(stdio("stdin"))?);
        }
        match self.answered(self.shim.tasks.start(self.id())).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.raw_mode = None;
                Err(self.explain(error).await)
            }
        }
    }

    /// Before Create, so that the shim finds a reader when it opens its ends.
    fn open_outputs(&mut self) -> Result<(), RunError> {
        let fifos = &self.bundle.fifos;
        let to = duplicate(io::stdout()).map_err(stdio("stdout"))?;
        self.outputs
            .copy(&fifos.stdout, to, "stdout")
            .map_err(stdio("stdout"))?;
        if let Some(path) = &fifos.stderr {
            let to = duplicate(io::stderr()).map_err(stdio("stderr"))?;
            self.outputs
                .copy(path, to, "stderr")
                .map_err(stdio("stderr"))?;
        }
        Ok(())
    }

    /// The answer to a call, or that none will come because the shim has ended.
    async fn answered<T>(
        &self,
        call: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.shim.ended() => Err(RpcError {
                call: "answer",
                failure: RpcFailure::Unanswered,
                message: String::new(),
            }),
        }
    }

    /// What a failed call means: the sandbox died, the shim died, or just what the shim said.
    async fn explain(&self, error: RpcError) -> RunError {
        if let RpcFailure::Program(failure) = error.failure {
            return RunError::Program {
                failure,
                program: self.bundle.program.clone(),
                image: self.args.image.to_string(),
                message: error.message,
            };
        }
        let folder = &self.bundle.shim.bundle;
        if let Some(death) = Death::read(folder) {
            return RunError::SandboxDied { death };
        }
        // A connection breaks a moment before its process is seen to have ended.
        if error.failure == RpcFailure::Unanswered
            && timeout(Duration::from_secs(2), self.shim.ended())
                .await
                .is_ok()
        {
            return RunError::ShimDied {
                pid: self.shim.record.pid,
                log: last_lines(&folder.join("log")),
                console: self.console_tail(),
            };
        }
        error.into()
    }

    /// What the guest printed last, as a killed shim left it.
    fn console_tail(&self) -> Vec<String> {
        let config = Config::from_file(&self.bundle.shim.bundle.join("sandbox.toml"));
        match (config, SandboxId::new(self.id())) {
            (Ok(config), Ok(id)) => cleanup::console_tail(&config, NAMESPACE, &id),
            _ => Vec::new(),
        }
    }

    /// Passes on signals, sizes and input until the process has ended and its outputs were read.
    pub(super) async fn attend(&mut self, signals: &mut Signals) -> Result<Ended, RunError> {
        let mut broken = None;
        let status = self.until_exit(signals, &mut broken).await;
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                // What the container wrote last still is in the fifos.
                self.drain(signals).await;
                self.raw_mode = None;
                return Err(self.explain(error).await);
            }
        };
        if broken.is_none() {
            broken = self.drain(signals).await;
        }
        self.raw_mode = None;
        if let Some(death) = Death::read(&self.bundle.shim.bundle) {
            return Err(RunError::SandboxDied { death });
        }
        match broken {
            None => Ok(Ended {
                code: u8::try_from(status).unwrap_or(u8::MAX),
            }),
            Some(error) if is_hang_up(&error) => Ok(Ended { code: BROKEN_PIPE }),
            Some(error) => Err(RunError::Output(error)),
        }
    }

    async fn until_exit(
        &mut self,
        signals: &mut Signals,
        broken: &mut Option<io::Error>,
    ) -> Result<u32, RpcError> {
        let mut wait = self.wait.take();
        let mut resizes = match self.args.tty.then(Resizes::catch).transpose() {
            Ok(resizes) => resizes,
            Err(error) => {
                report::warn(&error);
                None
            }
        };
        // The size may have changed since it was written into the configuration.
        if resizes.is_some() {
            self.resize().await;
        }
        loop {
            tokio::select! {
                status = joined(&mut wait) => return status,
                () = self.shim.ended() => return Err(RpcError {
                    call: "wait for the container",
                    failure: RpcFailure::Unanswered,
                    message: String::new(),
                }),
                signal = signals.next() => self.forward(signal).await,
                () = next_resize(&mut resizes) => self.resize().await,
                end = self.outputs.next_end(), if self.outputs.are_open() => {
                    if let OutputEnd::Broken(error) = end {
                        *broken = Some(error);
                        self.forward(KILL).await;
                    }
                }
                held = input_end(&mut self.input) => {
                    self.input = None;
                    let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
                    tokio::spawn(async move {
                        // An ended container has no input to close.
                        let _ = tasks.close_stdin(&id).await;
                        drop(held);
                    });
                }
            }
        }
    }

    async fn forward(&self, signal: u32) {
        let sent = self.shim.tasks.kill(self.id(), signal, false).await;
        if let Err(error) = sent
            && !matches!(error.failure, RpcFailure::NotFound | RpcFailure::Unanswered)
        {
            report::warn(&error);
        }
    }

    async fn resize(&self) {
        let (columns, rows) = terminal::size();
        // The container may have ended; a wrong size is no reason to stop.
        let _ = self.shim.tasks.resize(self.id(), columns, rows).await;
    }

    /// Waits until the outputs have ended; gives the error if one could not be written.
    async fn drain(&mut self, signals: &mut Signals) -> Option<io::Error> {
        let began = Instant::now();
        let idle = |outputs: &Outputs| outputs.idle().min(began.elapsed());
        while self.outputs.are_open() {
            let left = DRAIN_IDLE.saturating_sub(idle(&self.outputs));
            tokio::select! {
                end = self.outputs.next_end() => {
                    if let OutputEnd::Broken(error) = end {
                        return Some(error);
                    }
                }
                // Nobody waits for what a slow reader does not take.
                _ = signals.next() => return None,
                () = sleep(left.max(Duration::from_millis(10))) => {
                    if idle(&self.outputs) >= DRAIN_IDLE {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The phases that were seen from here.
    pub(super) fn marks(&self) -> impl Iterator<Item = (Phase, u64)> {
        [
            (Phase::ContainerCreated, self.created_ns),
            (Phase::FirstOutput, self.outputs.first_byte_ns()),
        ]
        .into_iter()
        .filter_map(|(phase, at)| Some((phase, at?)))
    }

    /// Removes the container from the shim, and ends the shim.
    pub(super) async fn finish(&mut self) -> Result<(), ()> {
        let deleted = self.answered(self.shim.tasks.delete(self.id())).await;
        if let Err(error) = &deleted {
            report::warn(error);
        }
        let ended = self.shim.end().await;
        if let Err(error) = &ended {
            report::warn(error);
        }
        if deleted.is_ok() && ended.is_ok() {
            Ok(())
        } else {
            Err(())
        }
    }

    /// Ends the shim at once, with whatever it runs.
    pub(super) async fn abandon(&mut self) {
        self.raw_mode = None;
        if let Err(error) = self.shim.kill().await {
            report::warn(&error);
        }
    }
}

fn stdio(stream: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Stdio { stream, source }
}

async fn joined(wait: &mut Option<JoinHandle<Result<u32, RpcError>>>) -> Result<u32, RpcError> {
    let lost = || RpcError {
        call: "wait for the container",
        failure: RpcFailure::Unanswered,
        message: String::new(),
    };
    match wait {
        Some(wait) => wait.await.unwrap_or_else(|_| Err(lost())),
        None => Err(lost()),
    }
}

async fn next_resize(resizes: &mut Option<Resizes>) {
    match resizes {
        Some(resizes) => resizes.next().await,
        None => std::future::pending().await,
    }
}

async fn input_end(input: &mut Option<Input>) -> Option<fs::File> {
    match input {
        Some(input) => input.end().await,
        None => std::future::pending().await,
    }
}

/// Whether whoever read our output just went away.
fn is_hang_up(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn last_lines(path: &Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(LOG_LINES))
        .map(|line| (*line).to_owned())
        .collect()
}
