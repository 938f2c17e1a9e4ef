//! What is done to the processes of a container.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use sandbox_protocol::agent::{AddProcessRequest, StreamKind};
use sandbox_runtime::agent::ListedProcess;
use sandbox_runtime::cgroup::Places;
use sandbox_runtime::{AgentError, Sandbox};
use sandbox_types::timeline::Phase;
use sandbox_types::{ContainerId, ExecId, WithCauses};

use super::create::wanted;
use super::{Contents, DRAIN, Pod, Process, ProcessKey, ProcessView};
use crate::delete::KILLED;
use crate::error::TaskError;
use crate::hooks::{When, due};
use crate::lifecycle::{Exit, Lifecycle};
use crate::spec::size::{Demand, LimitSum};
use crate::spec::{exec_process, update};
use crate::stdio::{OpenStdio, StdioPaths, drain};
use crate::{program, stats};

const SIGKILL: u32 = 9;
/// How long the killed process that holds the machine may take to end before the machine is ended for it, unsynced. Its kernel does nothing
/// but give its memory back meanwhile, and wait for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// The same for the first process of another container of the pod. The others go on, so a disk that is slow to take what was written is
/// waited for longer.
const MEMBER_KILL_PATIENCE: Duration = Duration::from_secs(120);

/// The processes of a container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// As the guest numbers and describes them.
    Guest(Vec<ListedProcess>),
    /// What there is of them on the host: the machine's process.
    Machine(u32),
}

impl Pod {
    /// Joins the caller's ends of a process's streams to the agent's.
    pub(super) async fn attach(
        &self,
        sandbox: &Arc<Sandbox>,
        container: &ContainerId,
        exec: Option<&ExecId>,
        open: OpenStdio,
        process: &mut Process,
    ) -> Result<(), TaskError> {
        for program in open.loggers {
            process.copying.logger(program);
        }
        for (kind, sink) in [
            (StreamKind::STREAM_KIND_STDOUT, open.stdout),
            (StreamKind::STREAM_KIND_STDERR, open.stderr),
        ] {
            let Some(sink) = sink else { continue };
            let stream = sandbox.open_stream(container, exec, kind).await?;
            let marks = Arc::clone(sandbox);
            let is_init = exec.is_none();
            process.copying.output(stream, sink, move || {
                if is_init {
                    marks.mark(Phase::FirstOutput);
                }
            });
        }
        if let Some(fifo) = open.stdin {
            let kind = StreamKind::STREAM_KIND_STDIN;
            let stream = sandbox.open_stream(container, exec, kind).await?;
            process.copying.input(stream, fifo);
        }
        Ok(())
    }

    /// Adds a process to a running container; it waits to be started.
    ///
    /// # Errors
    /// [`TaskError`]; nothing of the process is left then.
    pub(crate) async fn exec(&self, request: &ExecProcessRequest) -> Result<(), TaskError> {
        let key = ProcessKey::new(&request.id, &request.exec_id)?;
        let exec = key.exec.clone().ok_or_else(|| TaskError::NotFound {
            what: "an exec without id".into(),
        })?;
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process_json = exec_process(&request.spec.value, request.terminal)?;
        let program = program::of_exec(&request.spec.type_url)?;
        let sandbox = self.sandbox()?;
        {
            let mut state = self.state();
            let container = state.container(&key.container)?;
            container.init.lifecycle.must_run("add a process to")?;
            if container.execs.contains_key(&exec) {
                return Err(TaskError::AlreadyExists {
                    what: key.to_string(),
                });
            }
            container
                .execs
                .insert(exec.clone(), Process::new(stdio.clone()));
        }
        let add = AddProcessRequest {
            container_id: key.container.to_string(),
            exec_id: exec.to_string(),
            process_json,
            stdio: Some(wanted(&stdio)).into(),
            program: program.into(),
            ..Default::default()
        };
        if let Err(error) = sandbox.agent().add_process(&add).await {
            // One that was refused is not there.
            if !matches!(error, AgentError::Refused { .. }) {
                self.forget_in_guest(&sandbox, &key.container, Some(&exec))
                    .await;
            }
            if let Ok(container) = self.state().container(&key.container) {
                container.execs.remove(&exec);
            }
            return Err(self.reason_for(error.into()).await);
        }
        self.publisher.send(&TaskExecAdded {
            container_id: key.container.to_string(),
            exec_id: exec.to_string(),
            ..Default::default()
        });
        Ok(())
    }

    /// Starts a created process.
    ///
    /// # Errors
    /// [`TaskError`]; a program that cannot be run is told apart by its status. Nothing is added to a container that is paused, as with runc.
    pub(crate) async fn start(self: &Arc<Self>, key: &ProcessKey) -> Result<u32, TaskError> {
        let sandbox = self.sandbox()?;
        let stdio = {
            let mut state = self.state();
            state.process(key)?;
            if key.exec.is_some() {
                let init = &state.container(&key.container)?.init;
                init.lifecycle
                    .must_not_be_paused("start a process beside")?;
            }
            let process = state.process(key)?;
            process.start()?;
            process.stdio.clone()
        };
        match self.start_reserved(&sandbox, key, &stdio).await {
            Ok(()) => {
                let pid = sandbox.monitor_pid();
                if key.exec.is_none() {
                    sandbox.mark(Phase::ContainerStarted);
                    let hooks = self.state().container(&key.container)?.hooks.clone();
                    hooks.run_all(When::Running, Some(pid)).await;
                }
                self.change(key, |process| process.lifecycle.started());
                Ok(pid)
            }
            Err(error) => {
                // Unless it was refused it may run, and nobody would know of it.
                if !matches!(error, TaskError::Agent(AgentError::Refused { .. }))
                    && let Err(error) = self.kill(key, SIGKILL, false).await
                {
                    tracing::debug!("{key}, which did not start: {}", WithCauses(&error));
                }
                let error = self.reason_for(error).await;
                let status = error
                    .start_failure()
                    .map_or(255, |failure| u32::from(failure.exit_code()));
                let exit = Exit::now(status);
                self.change(key, |process| {
                    process.lifecycle.failed(exit);
                    process.exit.send_replace(process.lifecycle.exit());
                    Vec::new()
                });
                Err(error)
            }
        }
    }

    async fn start_reserved(
        &self,
        sandbox: &Arc<Sandbox>,
        key: &ProcessKey,
        stdio: &StdioPaths,
    ) -> Result<(), TaskError> {
        // The streams of a container were joined when it was made.
        if key.exec.is_some() {
            let mut joined = Process::new(stdio.clone());
            let open = stdio.open(&self.identity(key)).await?;
            self.attach(
                sandbox,
                &key.container,
                key.exec.as_ref(),
                open,
                &mut joined,
            )
            .await?;
            self.state().process(key)?.copying = joined.copying;
        } else {
            // Some callers fill the pod's network namespace only now.
            sandbox.look_at_network_again().await?;
        }
        sandbox
            .agent()
            .start_process(&key.container, key.exec.as_ref())
            .await?;
        Ok(())
    }

    /// What is known of a process.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn view(&self, key: &ProcessKey) -> Result<ProcessView, TaskError> {
        let mut state = self.state();
        let bundle = state.container(&key.container)?.bundle.clone();
        let process = state.process(key)?;
        Ok(ProcessView {
            lifecycle: process.lifecycle,
            stdio: process.stdio.clone(),
            bundle,
        })
    }

    /// Returns when the process has ended.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) async fn wait(&self, key: &ProcessKey) -> Result<Exit, TaskError> {
        let mut exit = self.state().process(key)?.exit.subscribe();
        let gone = || TaskError::NotFound {
            what: key.to_string(),
        };
        let exit = *exit.wait_for(Option::is_some).await.map_err(|_| gone())?;
        exit.ok_or_else(gone)
    }

    /// Sends a signal to a process, or to all of the container's; an exec is signalled alone.
    ///
    /// SIGKILL for the first process of a container needs no guest that does what it is told. Where the agent does not answer, the machine is
    /// ended, and so it is if nothing ends in time, whatever the agent says ([`KILL_PATIENCE`], [`MEMBER_KILL_PATIENCE`]): engines kill the
    /// other containers of a pod before the one that holds it, and stop at the first error. A container that is paused can be killed.
    ///
    /// # Errors
    /// [`TaskError`]; a process that has ended is not found, as with other runtimes.
    pub(crate) async fn kill(
        self: &Arc<Self>,
        key: &ProcessKey,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        {
            let mut state = self.state();
            let lifecycle = state.process(key)?.lifecycle;
            match key.exec {
                // It waits in the guest; an exec that was not started is nowhere.
                None => lifecycle.must_live("signal")?,
                Some(_) => lifecycle.must_have_begun("signal")?,
            }
        }
        let sandbox = self.sandbox()?;
        if signal == 0 {
            // kill(2): whether it is there. CRI-O asks so before each exec.
            return Ok(());
        }
        let sent = sandbox
            .agent()
            .signal_process(
                &key.container,
                key.exec.as_ref(),
                signal,
                all && key.exec.is_none(),
            )
            .await;
        let is_final = signal == SIGKILL && key.exec.is_none();
        match sent {
            Err(error) if is_final && !matches!(error, AgentError::Refused { .. }) => {
                tracing::warn!("{key} was to be killed: {}", WithCauses(&error));
                self.end_without_the_guest().await;
                Ok(())
            }
            answered => {
                if is_final {
                    tokio::spawn(Arc::clone(self).see_to_its_end(key.clone()));
                }
                match answered {
                    Ok(()) => Ok(()),
                    Err(error) => Err(self.reason_for(error.into()).await),
                }
            }
        }
    }

    /// Ends the machine if a process that was killed does not end. One that is deleted meanwhile has.
    async fn see_to_its_end(self: Arc<Self>, key: ProcessKey) {
        let Ok(mut exit) = self.state().process(&key).map(|it| it.exit.subscribe()) else {
            return;
        };
        let patience = match self.holds_machine(&key) {
            true => KILL_PATIENCE,
            false => MEMBER_KILL_PATIENCE,
        };
        let ended = exit.wait_for(Option::is_some);
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::warn!("{key} was killed and has not ended");
            self.end_without_the_guest().await;
        }
    }

    /// Ends the machine, and with it everything in the pod, as its guest does not.
    pub(super) async fn end_without_the_guest(&self) {
        tracing::warn!("pod {}: its machine is ended", self.id);
        if let Err(error) = self.stop_sandbox().await {
            tracing::error!("pod {}: {}", self.id, WithCauses(&error));
        }
        self.all_killed();
        self.sandbox_ended(KILLED);
    }

    /// Whether the machine goes with this process: it is the first of the only container, or of the pod's sandbox.
    pub(super) fn holds_machine(&self, key: &ProcessKey) -> bool {
        key.exec.is_none()
            && match &self.state().contents {
                Contents::One => true,
                Contents::Pod(sandbox) => *sandbox == key.container,
            }
    }

    /// Removes an ended (or never started) process, after its output has been delivered. With its only container, or
    /// the pod's sandbox, the machine goes too, and with it every process that still runs.
    ///
    /// # Errors
    /// [`TaskError`] when it runs, or what was the machine's cannot be removed.
    pub(crate) async fn delete(&self, key: &ProcessKey) -> Result<Exit, TaskError> {
        let removal = Arc::clone(&self.state().process(key)?.removal);
        // Until the end. Neither is it started meanwhile.
        let _alone = removal.lock().await;
        let pid = self.pid();
        let (outputs, lifecycle) = {
            let mut state = self.state();
            let process = state.process(key)?;
            process.lifecycle.may_delete()?;
            let outputs = process.copying.take_outputs();
            (outputs, process.lifecycle)
        };
        if matches!(lifecycle, Lifecycle::Stopped(_)) {
            drain(outputs, DRAIN).await;
        } else {
            outputs.iter().for_each(tokio::task::JoinHandle::abort);
        }
        if self.holds_machine(key) {
            // The agent ends what is left and syncs; there is nothing to remove one by one.
            self.stop_sandbox().await?;
            self.all_killed();
        } else if let Ok(sandbox) = self.sandbox() {
            if let Err(error) = sandbox
                .agent()
                .delete_process(&key.container, key.exec.as_ref())
                .await
            {
                tracing::warn!(
                    "{key} was not removed from the guest: {}",
                    WithCauses(&error)
                );
            }
            if key.exec.is_none()
                && let Err(error) = sandbox.unshare(&key.container).await
            {
                tracing::warn!(
                    "{key} is still shared with the guest: {}",
                    WithCauses(&error)
                );
            }
        }
        let bundle = {
            let mut state = self.state();
            match &key.exec {
                None => state.containers.remove(&key.container).map(|c| c.bundle),
                Some(exec) => {
                    state.container(&key.container)?.execs.remove(exec);
                    None
                }
            }
        };
        if let Some(bundle) = bundle {
            if let Ok(sandbox) = self.sandbox() {
                self.place(&sandbox).await;
            }
            due::run(&bundle).await;
        }
        let exit = lifecycle.exit().unwrap_or_else(|| Exit::now(KILLED));
        self.announce_delete(key, pid, exit);
        Ok(exit)
    }

    /// Sets the size of a process's terminal. One that has none has no size to set, which is no error, as in
    /// containerd's own shim.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(crate) async fn resize(
        &self,
        key: &ProcessKey,
        columns: u32,
        rows: u32,
    ) -> Result<(), TaskError> {
        {
            let mut state = self.state();
            let process = state.process(key)?;
            process.lifecycle.must_live("resize the terminal of")?;
            if !process.stdio.terminal {
                return Ok(());
            }
        }
        let sandbox = self.sandbox()?;
        sandbox
            .agent()
            .resize_terminal(&key.container, key.exec.as_ref(), columns, rows)
            .await?;
        Ok(())
    }

    /// The caller has written all of the process's input.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(crate) async fn close_stdin(&self, key: &ProcessKey) -> Result<(), TaskError> {
        let (input, lifecycle) = {
            let mut state = self.state();
            let process = state.process(key)?;
            (process.copying.close_stdin(), process.lifecycle)
        };
        let Some(input) = input else { return Ok(()) };
        if lifecycle.exit().is_some() {
            return Ok(());
        }
        let sandbox = self.sandbox()?;
        // The process may take as long as it likes to read what is in the fifo, or never read it: the answer does not
        // wait for that.
        let key = key.clone();
        tokio::spawn(async move {
            let _ = input.await;
            let closed = sandbox
                .agent()
                .close_stdin(&key.container, key.exec.as_ref())
                .await;
            if let Err(error) = closed {
                tracing::debug!("closing the input of {key}: {}", WithCauses(&error));
            }
        });
        Ok(())
    }

    /// The container's processes. The guest is not needed for an answer: containerd that is started again takes a shim without one, or
    /// with an empty one, for the rest of a start that came to nothing, and removes it with its pod.
    ///
    /// # Errors
    /// [`TaskError::NotFound`] when there is no such container.
    pub(crate) async fn list(&self, container: &ContainerId) -> Result<Listed, TaskError> {
        self.state().container(container)?;
        // The shim's own where there is no machine any more.
        let machine = match self.pid() {
            0 => Listed::Machine(std::process::id()),
            pid => Listed::Machine(pid),
        };
        let Ok(sandbox) = self.sandbox() else {
            return Ok(machine);
        };
        // `docker top` gives the numbers to the host's ps, where those of the guest's are somebody else's.
        if sandbox.makes_network() {
            return Ok(machine);
        }
        Ok(match sandbox.agent().list_processes(container).await {
            Ok(processes) if processes.is_empty() => machine,
            Ok(processes) => Listed::Guest(processes),
            Err(error) => {
                tracing::debug!("the processes of {container}: {}", WithCauses(&error));
                machine
            }
        })
    }

    /// What a container uses and may use.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(crate) async fn stats(&self, container: &ContainerId) -> Result<Metrics, TaskError> {
        self.state().container(container)?;
        let sandbox = self.sandbox()?;
        match sandbox.agent().container_stats(container).await {
            Ok(values) => Ok(stats::metrics(values)),
            Err(error) => Err(self.reason_for(error.into()).await),
        }
    }

    /// Changes the limits of a container. The machine grows first, where they need it to; it can so far.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(crate) async fn update(
        &self,
        container: &ContainerId,
        resources_json: Vec<u8>,
    ) -> Result<(), TaskError> {
        let _alone = self.updating.lock().await;
        let (before, places, is_one) = {
            let mut state = self.state();
            let is_one = state.contents == Contents::One;
            let of = state.container(container)?;
            of.init.lifecycle.must_live("change the limits of")?;
            (of.demand, of.places.clone(), is_one)
        };
        let places = update::places(&resources_json, &places, &Places::of_host())?;
        let resources_json = match is_one {
            true => resources_json,
            false => update::of_member(&resources_json)?,
        };
        let sandbox = self.sandbox()?;
        let most = sandbox.most();
        let resources = update::check(&resources_json, most.memory, most.vcpus)?;
        let demand = before.updated(Some(&resources));
        let (sum_before, sum_after) = {
            let mut state = self.state();
            let before = LimitSum::of(state.demands());
            state.claimed.insert(container.clone(), demand);
            (before, LimitSum::of(state.demands()))
        };
        let updated = async {
            update::check_sum(sum_before, sum_after, most.memory, most.vcpus)?;
            self.make_room(&sandbox, container, demand).await?;
            let call = sandbox
                .agent()
                .update_container(container, resources_json)
                .await;
            Ok(call?)
        };
        let updated = updated.await;
        {
            let mut state = self.state();
            state.claimed.remove(container);
            if let (Ok(()), Ok(of)) = (&updated, state.container(container)) {
                of.demand = demand;
                of.places = places;
            }
        }
        match updated {
            Ok(()) => {
                self.place(&sandbox).await;
                Ok(())
            }
            Err(error) => Err(self.reason_for(error).await),
        }
    }

    /// Makes the machine as large as its containers need, `container` with `demand` among them, as far as it can grow. Until the caller takes
    /// it off [`State::claimed`](super::State), others count with that demand too.
    pub(super) async fn make_room(
        &self,
        sandbox: &Sandbox,
        container: &ContainerId,
        demand: Demand,
    ) -> Result<(), TaskError> {
        let (memory_mib, vcpus) = {
            let mut state = self.state();
            state.claimed.insert(container.clone(), demand);
            let config = state.config.as_ref().unwrap_or(&self.config);
            Demand::sum(state.demands(), config)
        };
        let grown = sandbox.grow(memory_mib, vcpus).await?;
        if memory_mib > u64::from(grown.memory.get()) || vcpus > u64::from(grown.vcpus.get()) {
            tracing::warn!(
                "the containers of pod {} may use {memory_mib} MiB and {vcpus} vCPUs, its machine has {} and {} vCPUs and does not grow any further",
                self.id,
                grown.memory,
                grown.vcpus
            );
        }
        self.state().size = Some(grown);
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`TaskError`] unless it runs.
    pub(crate) async fn pause(&self, key: &ProcessKey) -> Result<(), TaskError> {
        self.state().process(key)?.lifecycle.must_run("pause")?;
        let sandbox = self.sandbox()?;
        if let Err(error) = sandbox.agent().pause(&key.container).await {
            // It counts as running, so that nobody would thaw what was frozen of it.
            if let Err(error) = sandbox.agent().resume(&key.container).await {
                tracing::debug!("{key} was not paused: {}", WithCauses(&error));
            }
            return Err(self.reason_for(error.into()).await);
        }
        self.state().process(key)?.lifecycle.pause()?;
        let container_id = key.container.to_string();
        self.publisher.send(&TaskPaused {
            container_id,
            ..Default::default()
        });
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// [`TaskError`] unless it is paused.
    pub(crate) async fn resume(&self, key: &ProcessKey) -> Result<(), TaskError> {
        let mut next = self.state().process(key)?.lifecycle;
        next.resume()?;
        let sandbox = self.sandbox()?;
        // Before anything in it looks at the time again.
        if let Err(error) = sandbox.agent().set_clock().await {
            tracing::warn!("the guest's clock is not set: {}", WithCauses(&error));
        }
        if let Err(error) = sandbox.agent().resume(&key.container).await {
            return Err(self.reason_for(error.into()).await);
        }
        self.state().process(key)?.lifecycle.resume()?;
        let container_id = key.container.to_string();
        self.publisher.send(&TaskResumed {
            container_id,
            ..Default::default()
        });
        Ok(())
    }
}
