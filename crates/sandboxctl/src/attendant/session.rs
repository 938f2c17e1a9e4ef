//! A container with its shim, from Create to Shutdown.

use std::future::Future;
use std::io;
use std::path::Path;

use sandbox_protocol::bundle::LOG_FILE;
use sandbox_runtime::{Config, cleanup};
use sandbox_types::SandboxId;
use sandbox_types::timeline::Phase;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::clients::{Broadcast, Clients, Wish};
use super::events::ShimEvent;
use crate::attach::protocol::Report;
use crate::container::Container;
use crate::journal::Journal;
use crate::launch::{CONFIG_FILE, Launch};
use crate::report;
use crate::run::{Death, RunError};
use crate::shim::{NAMESPACE, RpcError, RpcFailure, Shim};
use crate::stdio::{Fifos, Outputs, exec_folder, open_fifo, read_for_nobody};
use crate::timings::monotonic_ns;

/// Lines of the shim's log that are shown when it died.
const LOG_LINES: usize = 10;
/// How long a container whose process has ended may keep an output open without writing to it.
const DRAIN_IDLE: Duration = Duration::from_secs(10);

/// A shim and the container that it is to run.
pub(super) struct Session<'a> {
    shim: Shim,
    container: &'a Container,
    launch: &'a Launch,
    fifos: &'a Fifos,
    journal: Journal,
    outputs: Outputs,
    wait: Option<JoinHandle<Result<u32, RpcError>>>,
    events: mpsc::UnboundedReceiver<ShimEvent>,
    out_of_memory: bool,
    /// When Create had answered, `CLOCK_MONOTONIC`.
    created_ns: Option<u64>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        shim: Shim,
        container: &'a Container,
        launch: &'a Launch,
        fifos: &'a Fifos,
        journal: Journal,
        events: mpsc::UnboundedReceiver<ShimEvent>,
    ) -> Self {
        Self {
            shim,
            container,
            launch,
            fifos,
            journal,
            outputs: Outputs::new(),
            wait: None,
            events,
            out_of_memory: false,
            created_ns: None,
        }
    }

    fn id(&self) -> &str {
        self.container.record.id.as_str()
    }

    /// Creates and starts the container, unless a signal comes before.
    pub(super) async fn begin(
        &mut self,
        clients: &mut Clients,
        broadcasts: (Broadcast, Broadcast),
    ) -> Result<(), RunError> {
        unless_interrupted(clients, self.create(broadcasts)).await?;
        clients.tell(Report::Created);
        unless_interrupted(clients, self.start()).await
    }

    async fn create(&mut self, (stdout, stderr): (Broadcast, Broadcast)) -> Result<(), RunError> {
        // Before Create, so that the shim finds a reader when it opens its ends.
        open_fifo(&self.fifos.stdout)
            .and_then(|fifo| self.outputs.copy(fifo, stdout, "stdout"))
            .map_err(failed_stream("stdout"))?;
        if let Some(path) = &self.fifos.stderr {
            open_fifo(path)
                .and_then(|fifo| self.outputs.copy(fifo, stderr, "stderr"))
                .map_err(failed_stream("stderr"))?;
        }
        let created = self.shim.tasks.create(
            self.id(),
            &self.container.folder,
            &self.launch.rootfs,
            Some(self.fifos),
        );
        if let Err(error) = self.answered(created).await {
            return Err(self.explain(error).await);
        }
        self.created_ns = Some(monotonic_ns());
        Ok(())
    }

    async fn start(&mut self) -> Result<(), RunError> {
        let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
        self.wait = Some(tokio::spawn(async move { tasks.wait(&id, "").await }));
        match self.answered(self.shim.tasks.start(self.id(), "")).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// The answer to a call, or that none will come because the shim has ended.
    async fn answered<T>(
        &self,
        call: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.shim.ended() => Err(unanswered("answer")),
        }
    }

    /// What a failed call means: the sandbox died, the shim died, or just what the shim said.
    async fn explain(&self, error: RpcError) -> RunError {
        let record = &self.container.record;
        if let RpcFailure::Program(failure) = error.failure {
            return RunError::Program {
                failure,
                program: record.command.first().cloned().unwrap_or_default(),
                image: record.image.clone(),
                message: error.message,
            };
        }
        let folder = &self.container.folder;
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
                pid: self.shim.record.process.pid,
                log: last_lines(&folder.join(LOG_FILE)),
                console: self.console_tail(),
            };
        }
        error.into()
    }

    /// What the guest printed last, as a killed shim left it.
    fn console_tail(&self) -> Vec<String> {
        let config = Config::from_file(&self.container.folder.join(CONFIG_FILE));
        match (config, SandboxId::new(self.id())) {
            (Ok(config), Ok(id)) => cleanup::console_tail(&config, NAMESPACE, &id),
            _ => Vec::new(),
        }
    }

    /// Passes on signals, sizes and the end of input until the process has ended and its outputs were read.
    pub(super) async fn attend(&mut self, clients: &mut Clients) -> Result<u32, RunError> {
        let status = self.until_exit(clients).await;
        // What the container wrote last still is in the fifos.
        self.drain(clients).await;
        let status = match status {
            Ok(status) => status,
            Err(error) => return Err(self.explain(error).await),
        };
        match Death::read(&self.container.folder) {
            Some(death) => Err(RunError::SandboxDied { death }),
            None => Ok(status),
        }
    }

    async fn until_exit(&mut self, clients: &mut Clients) -> Result<u32, RpcError> {
        let mut wait = self.wait.take();
        loop {
            tokio::select! {
                status = joined(&mut wait) => return status,
                () = self.shim.ended() => return Err(unanswered("wait for the container")),
                wish = clients.next() => self.grant(wish).await,
                Some(event) = self.events.recv() => self.note(event),
                _ = self.outputs.next_end(), if self.outputs.are_open() => {}
            }
        }
    }

    async fn grant(&self, wish: Wish) {
        match wish {
            Wish::Signal(signal) => {
                let sent = self.shim.tasks.kill(self.id(), signal, false).await;
                if let Err(error) = sent
                    && !matches!(error.failure, RpcFailure::NotFound | RpcFailure::Unanswered)
                {
                    report::warn(&error);
                }
            }
            Wish::Resize(columns, rows) => {
                // The container may have ended; a wrong size is no reason to stop.
                let _ = self.shim.tasks.resize(self.id(), "", columns, rows).await;
            }
            Wish::CloseInput => {
                let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
                tokio::spawn(async move {
                    // An ended container has no input to close.
                    let _ = tasks.close_stdin(&id, "").await;
                });
            }
            Wish::Adopt(exec) => self.adopt(exec),
        }
    }

    /// Takes a process over whose client has left it, or was killed: what it writes is read, for nobody, or it would stand still, and its input ends,
    /// as docker's does where it has no terminal. In the end it is forgotten.
    fn adopt(&self, exec: String) {
        let Some(folder) = exec_folder(&self.container.folder, &exec) else {
            return;
        };
        // With a terminal it has but one output, and its input may be somebody's once more.
        let errors = folder.join("stderr");
        let ends_input = errors.exists();
        for path in [folder.join("stdout"), errors] {
            match open_fifo(&path).and_then(read_for_nobody) {
                // Its client was killed before it had any, or after its end.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => report::warn(&error),
                Ok(()) => {}
            }
        }
        let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
        tokio::spawn(async move {
            // One that was never started, or has ended. It goes with the container otherwise.
            if tasks.delete(&id, &exec).await.is_err() {
                if ends_input {
                    // It may have none. Before it ends, what its client wrote is to be read, which may take its time.
                    let (tasks, id, exec) = (tasks.clone(), id.clone(), exec.clone());
                    tokio::spawn(async move { tasks.close_stdin(&id, &exec).await });
                }
                let _ = tasks.wait(&id, &exec).await;
                let _ = tasks.delete(&id, &exec).await;
            }
            let _ = std::fs::remove_dir_all(folder);
        });
    }

    fn note(&mut self, event: ShimEvent) {
        // As it is called now.
        let Some(container) = self.container.reload() else {
            return;
        };
        let note = |action: &str, more: &[(&str, String)]| {
            self.journal.note(&container.record, action, more);
        };
        match event {
            ShimEvent::OutOfMemory => {
                self.out_of_memory = true;
                note("oom", &[]);
            }
            ShimEvent::Paused => note("pause", &[]),
            ShimEvent::Resumed => note("unpause", &[]),
            ShimEvent::ExecStarted { exec } => note("exec_start", &[("execID", exec)]),
            ShimEvent::ExecEnded { exec, code } => {
                note(
                    "exec_die",
                    &[("execID", exec.clone()), ("exitCode", code.to_string())],
                );
                self.forget_detached(exec);
            }
        }
    }

    /// Nobody waits for a process that was added with `exec -d`.
    fn forget_detached(&self, exec: String) {
        if exec.starts_with(crate::exec::DETACHED) {
            let (tasks, id) = (self.shim.tasks.clone(), self.id().to_owned());
            tokio::spawn(async move {
                // It goes with the container otherwise.
                let _ = tasks.delete(&id, &exec).await;
            });
        }
    }

    /// Waits until the outputs have ended.
    async fn drain(&mut self, clients: &mut Clients) {
        let began = Instant::now();
        let idle = |outputs: &Outputs| outputs.idle().min(began.elapsed());
        while self.outputs.are_open() {
            let left = DRAIN_IDLE.saturating_sub(idle(&self.outputs));
            tokio::select! {
                _ = self.outputs.next_end() => {}
                // Nobody waits for what a slow reader does not take.
                wish = clients.next() => if let Wish::Signal(_) = wish {
                    return;
                },
                () = sleep(left.max(Duration::from_millis(10))) => {
                    if idle(&self.outputs) >= DRAIN_IDLE {
                        return;
                    }
                }
            }
        }
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
        let deleted = self.answered(self.shim.tasks.delete(self.id(), "")).await;
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
        if let Err(error) = self.shim.kill().await {
            report::warn(&error);
        }
    }

    /// Whether the guest's kernel killed for want of memory. Asked once the shim has ended, and so told everything.
    pub(super) fn out_of_memory(&mut self) -> bool {
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
        self.out_of_memory
    }
}

/// The work's result, unless somebody wants it to stop before. Other wishes are kept for after it: input may well have
/// ended before the process runs that is to read it.
async fn unless_interrupted(
    clients: &mut Clients,
    work: impl Future<Output = Result<(), RunError>>,
) -> Result<(), RunError> {
    tokio::pin!(work);
    let mut kept = Vec::new();
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            wish = clients.next() => match wish {
                Wish::Signal(signal) => break Err(RunError::Interrupted { signal }),
                later => kept.push(later),
            },
        }
    };
    clients.keep(kept);
    result
}

fn unanswered(call: &'static str) -> RpcError {
    RpcError {
        call,
        failure: RpcFailure::Unanswered,
        message: String::new(),
    }
}

fn failed_stream(stream: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Stdio { stream, source }
}

async fn joined(wait: &mut Option<JoinHandle<Result<u32, RpcError>>>) -> Result<u32, RpcError> {
    let lost = || unanswered("wait for the container");
    match wait {
        Some(wait) => wait.await.unwrap_or_else(|_| Err(lost())),
        None => Err(lost()),
    }
}

fn last_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(LOG_LINES))
        .map(|line| (*line).to_owned())
        .collect()
}
