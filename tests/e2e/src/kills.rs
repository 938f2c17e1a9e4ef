//! A process is killed at a moment of create, start, exec or delete: the call comes back in bounded time and says what ended,
//! and nothing is left once the caller has done what containerd does then.
//!
//! Each case is a row of a table: one victim, at every moment. A moment within a call is a sign (a process or a folder that
//! is there) and a pause after it. The pauses are chosen by a seed; a failure names it, and `SANDBOX_TEST_SEED` sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use containerd_shim_protos::api::DeleteResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::Message as _;
use sandbox_harness::containerd::{Containerd, RUNTIME};
use sandbox_harness::leaks::{self, Process};
use sandbox_harness::process::{self, wait_until};
use sandbox_harness::shim::{Output, Shim, delete_command};
use sandbox_harness::{Driver, World, bundle};
use serde_json::{Value, json};

use crate::Case;
use crate::network::Net;

/// Victims that are the driver's.
pub(crate) const DRIVERS: &[Case] = &[
    (
        "kill_machine_at_any_moment_is_named_and_leaves_nothing",
        machine,
    ),
    (
        "kill_device_helpers_at_any_moment_is_named_and_leaves_nothing",
        helpers,
    ),
];

/// The others.
pub(crate) const CASES: &[Case] = &[
    (
        "kill_shim_at_any_moment_leaves_nothing_after_its_delete",
        shim,
    ),
    (
        "kill_guest_at_any_moment_is_named_and_leaves_nothing",
        guest,
    ),
    (
        "kill_containerd_at_any_moment_leaves_nothing_after_its_restart",
        containerd,
    ),
];

/// What counts as bounded, for one call: far above what any takes here, and below what a person would wait.
const BOUND: Duration = Duration::from_secs(60);
/// What a container does that is to be killed.
const WAITS: &str = "echo up; sleep 1000";
/// Has the guest's kernel panic, which is how the agent ends: nothing in the guest can kill its first process.
const PANIC: &str = "echo c > /proc/sysrq-trigger";

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Shim,
    Machine,
    Virtiofsd,
    VsockBackEnd,
}

impl Victim {
    /// What is in its command line, and in that of whoever is about to become it.
    fn part(self, world: &World) -> &'static str {
        match self {
            Self::Shim => "containerd-shim-sandbox-v2",
            Self::Machine => world.setup().driver.monitor(),
            Self::Virtiofsd => "virtiofsd",
            Self::VsockBackEnd => "sandbox-vmm vsock-backend",
        }
    }

    fn processes(self, world: &World) -> Vec<Process> {
        let part = self.part(world);
        let mut all = leaks::processes(world.path());
        all.retain(|process| process.command.contains(part));
        all
    }

    /// What an error has in it that names the victim. Nobody is left to name the shim.
    fn named(self) -> Option<&'static str> {
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
enum When {
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
enum Sign {
    /// The sandbox's folder.
    Folder,
    /// A process.
    Process(Victim),
}

impl Sign {
    fn wait(self, world: &World) -> Result<()> {
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
struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    fn new() -> Result<Self> {
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
    fn short(&mut self) -> Duration {
        self.pause(&[0, 20, 50, 100, 200])
    }

    /// After the beginning of a boot, which takes a few seconds; the container is made thereafter.
    fn boot(&mut self) -> Duration {
        self.pause(&[0, 50, 200, 800, 1600, 2400, 3200])
    }

    fn within(&self, when: When, pause: Duration) -> String {
        format!("{when:?} and {pause:?} (SANDBOX_TEST_SEED={})", self.seed)
    }
}

/// A call that is under way, on a thread of its own.
struct Call<T> {
    what: &'static str,
    answer: Receiver<Result<T>>,
}

impl<T: Send + 'static> Call<T> {
    fn start(what: &'static str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
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
    fn answer(self) -> Result<Result<T>> {
        self.answer
            .recv_timeout(BOUND)
            .map_err(|_| anyhow!("{} was not answered within {BOUND:?}", self.what))
    }
}

/// Kills every process of the victim's, the first of them first.
fn kill_now(world: &World, victim: Victim) -> Vec<Process> {
    let found = victim.processes(world);
    for process in &found {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    found
}

/// Requires of a call that failed that it says why. Returns what it brought otherwise.
fn judge<T>(what: &str, answer: Result<T>, named: Option<&str>) -> Result<Option<T>> {
    let error = match answer {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    // Not the whole error: the shim's log is in it.
    let cause = error.root_cause();
    let text = cause.to_string();
    ensure!(!text.contains("panicked"), "{what}: {text}");
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

/// A container in a shim of its own.
struct Cell {
    id: String,
    folder: PathBuf,
    shim: Arc<Shim>,
    /// The output is read by us to the end of the cell.
    output: Option<Output>,
}

impl Cell {
    fn start(world: &World, id: String, spec: &Value) -> Result<Self> {
        let folder = bundle::make(world, &id, spec)?;
        let shim = Arc::new(Shim::start(world, &id, &folder)?);
        Ok(Self {
            id,
            folder,
            shim,
            output: None,
        })
    }

    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Shim, &str) -> Result<T> + Send + 'static,
    ) -> Call<T> {
        let (shim, id) = (Arc::clone(&self.shim), self.id.clone());
        Call::start(what, move || work(&shim, &id))
    }

    fn run(&mut self) -> Result<()> {
        let mut output = self.shim.run(&self.id, false)?;
        ensure!(output.line()? == "up");
        self.output = Some(output);
        Ok(())
    }

    fn kill_all(&self) -> Result<()> {
        self.signal(Signal::SIGKILL, true)?;
        self.shim.wait(&self.id, "")?;
        Ok(())
    }

    fn signal(&self, signal: Signal, all: bool) -> Result<()> {
        let request = containerd_shim_protos::api::KillRequest {
            id: self.id.clone(),
            signal: (signal as i32).cast_unsigned(),
            all,
            ..Default::default()
        };
        self.shim.tasks().kill(Shim::context(), &request)?;
        Ok(())
    }

    /// Does what it takes to be at the moment, kills there, and judges the call that this came in between.
    fn strike(&mut self, world: &World, victim: Victim, when: When, pause: Duration) -> Result<()> {
        let named = victim.named();
        match when {
            When::Creating(sign) => {
                let call = self.call("Create", |shim, id| shim.create(id, false));
                sign.wait(world)?;
                thread::sleep(pause);
                kill_now(world, victim);
                self.output = judge("Create", call.answer()?, named)?;
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
    fn end(&self) -> Result<()> {
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
    fn end_without_shim(&self, world: &World) -> Result<()> {
        let mut delete = delete_command(world, &self.id, &self.folder);
        let deleted = process::run(&mut delete, b"", BOUND)?.expect_code(0)?;
        let answer = DeleteResponse::parse_from_bytes(&deleted.stdout)?;
        ensure!(answer.exit_status == 137, "{answer:?}");
        Ok(())
    }

    /// Nothing of it is left, but for the bundle, which is the caller's.
    fn expect_nothing_left(self, world: &World) -> Result<()> {
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

/// One victim at several moments, each with a container of its own.
fn row(
    world: &World,
    net: Option<&Net>,
    victim: Victim,
    dice: &mut Dice,
    moments: &[When],
) -> Result<()> {
    for (index, &when) in moments.iter().enumerate() {
        let pause = match when {
            When::Creating(Sign::Process(Victim::Machine)) => dice.boot(),
            _ => dice.short(),
        };
        let id = format!("{victim:?}{index}").to_lowercase();
        let spec = match net {
            Some(net) => net.spec(WAITS),
            None => bundle::spec(&["/bin/busybox", "sh", "-c", WAITS]),
        };
        let mut cell = Cell::start(world, id, &spec)?;
        let done = cell
            .strike(world, victim, when, pause)
            .and_then(|()| match victim {
                Victim::Shim => cell.end_without_shim(world),
                _ => cell.end(),
            });
        let log = cell.shim.log();
        done.and_then(|()| cell.expect_nothing_left(world))
            .and_then(|()| net.map_or(Ok(()), Net::expect_untouched))
            .with_context(|| {
                let moment = dice.within(when, pause);
                format!("{victim:?} killed when {moment}; the shim's log:\n{log}")
            })?;
    }
    Ok(())
}

/// Once Create has begun to make what the machine needs, and thrice while this boots and the container is made.
const WHILE_CREATING: [When; 4] = [
    When::Creating(Sign::Folder),
    When::Creating(Sign::Process(Victim::Machine)),
    When::Creating(Sign::Process(Victim::Machine)),
    When::Creating(Sign::Process(Victim::Machine)),
];
const LATER: [When; 4] = [
    When::Created,
    When::Running,
    When::Executing,
    When::Stopping,
];

fn shim(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let moments = [
        WHILE_CREATING.as_slice(),
        &[When::Creating(Sign::Process(Victim::Virtiofsd))],
        &LATER,
    ]
    .concat();
    row(world, Some(&net), Victim::Shim, &mut Dice::new()?, &moments)
}

fn machine(world: &World) -> Result<()> {
    let net = Net::filled()?;
    // Its folder is no sign of it.
    let moments = [&WHILE_CREATING[1..], &LATER].concat();
    row(
        world,
        Some(&net),
        Victim::Machine,
        &mut Dice::new()?,
        &moments,
    )
}

fn helpers(world: &World) -> Result<()> {
    let victims: &[Victim] = match world.setup().driver {
        Driver::Kvm => &[Victim::Virtiofsd],
        Driver::Qemu => &[Victim::Virtiofsd, Victim::VsockBackEnd],
    };
    let mut dice = Dice::new()?;
    for &victim in victims {
        let first = [
            When::Creating(Sign::Process(victim)),
            When::Creating(Sign::Process(Victim::Machine)),
        ];
        let moments = [first.as_slice(), &LATER].concat();
        row(world, None, victim, &mut dice, &moments)?;
    }
    Ok(())
}

/// The guest's end comes from inside, so each moment has its own way to it. While it boots, the agent's end is the test
/// `failure_agent_that_never_announces_is_named`'s.
fn guest(world: &World) -> Result<()> {
    let cell = |id: &str, script: &str, hook: bool| {
        let mut spec = bundle::spec(&["/bin/busybox", "sh", "-c", script]);
        if hook {
            let args = ["sh", "-c", PANIC];
            spec["hooks"] = json!({"startContainer": [{"path": "/bin/busybox", "args": args}]});
        }
        Cell::start(world, id.to_owned(), &spec)
    };
    let panicked = Some("guest kernel panicked");
    let end = |what: &str, cell: Cell, done: Result<()>| {
        let log = cell.shim.log();
        done.and_then(|()| cell.end())
            .and_then(|()| cell.expect_nothing_left(world))
            .with_context(|| format!("the guest ended {what}; the shim's log:\n{log}"))
    };
    let killed = |status: Option<u32>| {
        ensure!(matches!(status, None | Some(137)), "ended with {status:?}");
        Ok(())
    };

    let mut starting = cell("starting", WAITS, true)?;
    starting.output = Some(starting.shim.create(&starting.id, false)?);
    let call = starting.call("Start", |shim, id| shim.start_process(id, ""));
    let done = call.answer().and_then(|answer| {
        let started = judge("Start", answer, panicked)?;
        ensure!(started.is_none(), "it started");
        Ok(())
    });
    end("during Start", starting, done)?;

    let mut running = cell("running", &format!("sleep 2; {PANIC}; sleep 1000"), false)?;
    running.output = Some(running.shim.run(&running.id, false)?);
    let call = running.call("Wait", |shim, id| shim.wait(id, ""));
    let done = call
        .answer()
        .and_then(|answer| killed(judge("Wait", answer, panicked)?));
    end("while its container ran", running, done)?;

    let mut executing = cell("executing", WAITS, false)?;
    executing.run()?;
    let call = executing.call("Exec", |shim, id| {
        let _output = shim.exec(id, "e", &bundle::process(&["sh", "-c", PANIC]))?;
        shim.wait(id, "e")
    });
    let done = call
        .answer()
        .and_then(|answer| killed(judge("Exec", answer, panicked)?));
    end("during Exec", executing, done)?;

    // Its last act, when it is asked to end.
    let script = format!("trap '{PANIC}' TERM; echo up; while :; do sleep 1000 & wait $!; done");
    let mut stopping = cell("stopping", &script, false)?;
    stopping.run()?;
    let waiting = stopping.call("Wait", |shim, id| shim.wait(id, ""));
    let done = judge("Kill", stopping.signal(Signal::SIGTERM, false), panicked)
        .and_then(|_| waiting.answer())
        .and_then(|answer| killed(judge("Wait", answer, panicked)?));
    end("when its container was to stop", stopping, done)
}

fn containerd(world: &World) -> Result<()> {
    let mut containerd = Containerd::start(world)?;
    let image = containerd.import_demo(world)?;
    let mut dice = Dice::new()?;
    let creating = When::Creating(Sign::Process(Victim::Machine));
    let moments = [
        creating,
        creating,
        When::Running,
        When::Executing,
        When::Stopping,
    ];
    for (index, when) in moments.into_iter().enumerate() {
        let pause = match when {
            When::Creating(_) => dice.boot(),
            _ => dice.short(),
        };
        containerd_killed(
            world,
            &mut containerd,
            image,
            &format!("c{index}"),
            when,
            pause,
        )
        .with_context(|| {
            let moment = dice.within(when, pause);
            format!(
                "containerd killed when {moment}; its log:\n{}",
                containerd.log()
            )
        })?;
    }
    Ok(())
}

/// Kills containerd at a moment of a container's life, starts it again, and removes the container as a person would.
fn containerd_killed(
    world: &World,
    containerd: &mut Containerd,
    image: &str,
    name: &str,
    when: When,
    pause: Duration,
) -> Result<()> {
    let script = "echo up; while :; do sleep 1; done";
    let run = ["run", "--runtime", RUNTIME, image, name, "sh", "-c", script];
    let mut callers = vec![containerd.start_ctr(&run)?];
    match when {
        When::Creating(sign) => sign.wait(world)?,
        _ => drop(callers[0].wait_for_line("up")?),
    }
    match when {
        When::Executing => {
            let exec = ["task", "exec", "--exec-id", "e", name, "sleep", "1000"];
            callers.push(containerd.start_ctr(&exec)?);
        }
        When::Stopping => {
            containerd
                .ctr(&["task", "kill", "--all", "--signal", "SIGKILL", name])?
                .expect_code(0)?;
            callers.push(containerd.start_ctr(&["task", "rm", name])?);
        }
        When::Creating(_) | When::Created | When::Running => {}
    }
    thread::sleep(pause);
    containerd.kill();
    for caller in callers {
        // How long it takes to see that containerd is gone is ctr's affair.
        let _ = caller.signal(Signal::SIGKILL);
        let _ = caller.finish();
    }
    containerd.restart()?;
    if when == When::Running {
        let tasks = containerd.ctr(&["task", "ls"])?.expect_code(0)?;
        ensure!(tasks.text().contains("RUNNING"), "{}", tasks.text());
    }
    let mut last = String::new();
    wait_until("containerd lets go", BOUND, || {
        let _ = containerd.ctr(&["task", "rm", "--force", name]);
        let removed = containerd.ctr(&["container", "rm", name]).ok()?;
        last = removed.stderr;
        (removed.code == 0).then_some(())
    })
    .with_context(|| format!("{name} cannot be removed: {last}"))?;
    let victims = [Victim::Shim, Victim::Machine, Victim::Virtiofsd];
    let mut left = Vec::new();
    wait_until("nothing but containerd is left", BOUND, || {
        let processes = victims.iter().flat_map(|victim| victim.processes(world));
        left = processes.map(|process| process.command).collect();
        let files = fs::read_dir(world.run_dir())
            .into_iter()
            .flatten()
            .flatten();
        left.extend(files.map(|file| file.path().display().to_string()));
        left.is_empty().then_some(())
    })
    .with_context(|| format!("left: {left:?}"))
}
