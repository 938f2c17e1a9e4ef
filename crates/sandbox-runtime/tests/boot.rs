//! Boots real sandboxes with the driver that this host can run, and ends them in every way.
//!
//! Needs root, the guest's artifacts, the monitor, and on a host without hardware virtualization QEMU; a test whose
//! needs are not met is skipped with the reason.

#![expect(
    clippy::unwrap_used,
    reason = "a test without libtest's attribute, which clippy would know it by"
)]

#[path = "boot/fixture.rs"]
mod fixture;
#[path = "boot/leaks.rs"]
mod leaks;

use std::process::ExitCode;

use fixture::{Fixture, Outcome, Root};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use sandbox_protocol::ROOT_VARIABLE;
use sandbox_protocol::agent::StreamKind;
use sandbox_runtime::{AgentError, DeathCause, Driver, Sandbox, SandboxError, SandboxEvent};
use sandbox_types::MemMib;
use sandbox_types::timeline::Phase;
use tokio::io::AsyncReadExt;

/// A test: given a place of its own, it does what its name says.
type Case = fn(&Fixture) -> Outcome;

const CASES: &[(&str, Case)] = &[
    (
        "container_from_layers_gives_its_output_and_exit_code",
        container_from_layers_gives_its_output_and_exit_code,
    ),
    (
        "container_from_a_host_overlay_gives_its_output_and_exit_code",
        container_from_a_host_overlay_gives_its_output_and_exit_code,
    ),
    (
        "container_from_more_layers_than_devices_gives_its_output_and_exit_code",
        container_from_more_layers_than_devices_gives_its_output_and_exit_code,
    ),
    ("disk_missing_is_named", disk_missing_is_named),
    (
        "sandbox_stopped_twice_is_gone_once",
        sandbox_stopped_twice_is_gone_once,
    ),
    (
        "sandbox_handle_dropped_leaves_nothing",
        sandbox_handle_dropped_leaves_nothing,
    ),
    (
        "start_dropped_while_booting_leaves_nothing",
        start_dropped_while_booting_leaves_nothing,
    ),
    (
        "monitor_killed_is_told_as_such",
        monitor_killed_is_told_as_such,
    ),
    (
        "helper_killed_is_told_as_such",
        helper_killed_is_told_as_such,
    ),
    (
        "guest_panic_is_told_with_the_console",
        guest_panic_is_told_with_the_console,
    ),
    (
        "agent_that_dies_is_told_as_such",
        agent_that_dies_is_told_as_such,
    ),
    (
        "guest_image_that_is_not_in_memory_is_read_from_its_disk",
        guest_image_that_is_not_in_memory_is_read_from_its_disk,
    ),
    ("boot_out_of_time_is_told", boot_out_of_time_is_told),
    ("name_in_use_is_refused", name_in_use_is_refused),
    (
        "head_start_is_gone_on_with_by_its_plan_alone",
        head_start_is_gone_on_with_by_its_plan_alone,
    ),
    (
        "head_start_whose_monitor_is_killed_is_done_without",
        head_start_whose_monitor_is_killed_is_done_without,
    ),
    (
        "head_start_that_nobody_wants_leaves_nothing",
        head_start_that_nobody_wants_leaves_nothing,
    ),
    (
        "shim_killed_leaves_what_cleanup_removes",
        shim_killed_leaves_what_cleanup_removes,
    ),
];

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(fixture::VICTIM_ENV) {
        return fixture::run_as_victim(path.as_ref());
    }
    let arguments = Arguments::from_args();
    let trials = CASES
        .iter()
        .map(|&(name, case)| Trial::ignorable_test(name, move || run(name, case)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(name: &str, case: Case) -> Result<Completion, Failed> {
    if let Some(reason) = fixture::obstacle() {
        return Ok(Completion::ignored_with(reason));
    }
    let fixture = Fixture::new(name)?;
    case(&fixture)?;
    fixture.check_nothing_left()?;
    Ok(Completion::Completed)
}

fn container_gives_its_output_and_exit_code(fixture: &Fixture, root: &Root) -> Outcome {
    fixture.run(async {
        let (sandbox, mut events) = Sandbox::start(fixture.plan(root), None).await?;
        let container = fixture.container();
        let agent = sandbox.agent();
        let script = "echo out; echo err >&2; echo kept > /kept && cat /kept; exit 42";
        agent
            .create_container(&fixture.create_request(root, &["/bin/sh", "-c", script]))
            .await?;
        let mut stdout = sandbox
            .open_stream(&container, None, StreamKind::STREAM_KIND_STDOUT)
            .await?;
        let mut stderr = sandbox
            .open_stream(&container, None, StreamKind::STREAM_KIND_STDERR)
            .await?;
        agent.start_process(&container, None).await?;
        let mut out = String::new();
        stdout.read_to_string(&mut out).await?;
        let mut err = String::new();
        stderr.read_to_string(&mut err).await?;
        assert_eq!(
            (out.as_str(), err.as_str()),
            ("out\nkept\n", "err\n"),
            "{:#?}",
            sandbox.console_tail()
        );
        let event = events.recv().await;
        let Some(SandboxEvent::ProcessExited {
            container: ended,
            exec: None,
            exit_status: 42,
            ..
        }) = event
        else {
            return Err(format!("not the exit of the container: {event:?}").into());
        };
        assert_eq!(ended, container);
        assert_eq!(
            agent.delete_process(&container, None).await?.exit_status,
            42
        );
        sandbox.stop().await?;
        assert_eq!(events.recv().await, None);
        Ok(())
    })
}

fn container_from_layers_gives_its_output_and_exit_code(fixture: &Fixture) -> Outcome {
    container_gives_its_output_and_exit_code(fixture, &fixture.layered_root(1)?)
}

fn container_from_more_layers_than_devices_gives_its_output_and_exit_code(
    fixture: &Fixture,
) -> Outcome {
    let count = fixture.driver().device_slots();
    container_gives_its_output_and_exit_code(fixture, &fixture.layered_root(count)?)
}

fn disk_missing_is_named(fixture: &Fixture) -> Outcome {
    let root = fixture.layered_root(1)?;
    std::fs::remove_file(fixture.path("layer0.erofs"))?;
    fixture.run(async {
        let error = match Sandbox::start(fixture.plan(&root), None).await {
            Err(SandboxError::Driver(error)) => error.to_string(),
            other => return Err(format!("not refused: {other:?}").into()),
        };
        assert!(error.contains("layer0.erofs"), "{error}");
        Ok(())
    })
}

fn container_from_a_host_overlay_gives_its_output_and_exit_code(fixture: &Fixture) -> Outcome {
    container_gives_its_output_and_exit_code(fixture, &fixture.overlay_root()?)?;
    let kept = std::fs::read_to_string(fixture.path("upper/kept"))?;
    assert_eq!(kept, "kept\n");
    Ok(())
}

fn sandbox_stopped_twice_is_gone_once(fixture: &Fixture) -> Outcome {
    let root = Root::none();
    fixture.run(async {
        let (sandbox, mut events) = Sandbox::start(fixture.plan(&root), None).await?;
        let phases: Vec<Phase> = sandbox.marks().iter().map(|mark| mark.phase).collect();
        assert_eq!(
            phases,
            [
                Phase::MonitorStarted,
                Phase::FirstInstruction,
                Phase::AgentStarted,
                Phase::AgentReady
            ]
        );
        assert!(sandbox.marks().is_sorted_by_key(|mark| mark.monotonic_ns));
        let (first, second) = tokio::join!(sandbox.stop(), sandbox.stop());
        first?;
        second?;
        sandbox.stop().await?;
        assert_eq!(events.recv().await, None);
        // The name is free again.
        let (again, _events) = Sandbox::start(fixture.plan(&root), None).await?;
        again.stop().await?;
        Ok(())
    })
}

fn sandbox_handle_dropped_leaves_nothing(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let (sandbox, mut events) = Sandbox::start(fixture.plan(&Root::none()), None).await?;
        drop(sandbox);
        // The channel closes when everything has been removed.
        assert_eq!(events.recv().await, None);
        Ok(())
    })
}

fn start_dropped_while_booting_leaves_nothing(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let start = Sandbox::start(fixture.plan(&Root::none()), None);
        let begun = fixture.folder_appears();
        tokio::select! {
            result = start => Err(format!("it came up: {result:?}").into()),
            () = begun => Ok::<(), fixture::Failure>(()),
        }?;
        fixture.folder_is_gone().await;
        Ok(())
    })
}

async fn death(
    mut events: tokio::sync::mpsc::Receiver<SandboxEvent>,
) -> Result<sandbox_runtime::SandboxDeath, fixture::Failure> {
    let event = tokio::time::timeout(fixture::PATIENCE, events.recv()).await?;
    match event {
        Some(SandboxEvent::Died(death)) => {
            assert_eq!(events.recv().await, None);
            Ok(death)
        }
        other => Err(format!("not a death: {other:?}").into()),
    }
}

fn monitor_killed_is_told_as_such(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let (sandbox, events) = Sandbox::start(fixture.plan(&Root::none()), None).await?;
        fixture::kill(sandbox.monitor_pid());
        let death = death(events).await?;
        assert_eq!(death.cause, DeathCause::MonitorKilled { signal: 9 });
        sandbox.stop().await?;
        Ok(())
    })
}

fn helper_killed_is_told_as_such(fixture: &Fixture) -> Outcome {
    let root = fixture.overlay_root()?;
    fixture.run(async {
        let (sandbox, events) = Sandbox::start(fixture.plan(&root), None).await?;
        fixture::kill(fixture.recorded_process("virtiofsd")?);
        let death = death(events).await?;
        let DeathCause::HelperEnded { name, how, .. } = &death.cause else {
            return Err(format!("not a helper's end: {death}").into());
        };
        assert_eq!(name, "virtiofsd");
        assert_eq!(how, "killed by signal 9 (SIGKILL)");
        sandbox.stop().await?;
        Ok(())
    })
}

fn guest_panic_is_told_with_the_console(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let mut plan = fixture.plan(&Root::none());
        plan.basis.config.kernel_arguments = "root=/dev/nonexistent".to_owned();
        match Sandbox::start(plan, None).await {
            Err(SandboxError::DiedBooting(death)) => {
                assert_eq!(death.cause, DeathCause::GuestPanic, "{death}");
                assert!(
                    death
                        .console_tail
                        .iter()
                        .any(|line| line.contains("Kernel panic")),
                    "{death}"
                );
                Ok(())
            }
            other => Err(format!("not a death while booting: {other:?}").into()),
        }
    })
}

/// The agent is told of a place where there is no image, or, under `qemu`, no device.
fn guest_image_that_is_not_in_memory_is_read_from_its_disk(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let mut plan = fixture.plan(&Root::none());
        plan.basis.config.kernel_arguments = format!("{ROOT_VARIABLE}=0+4096");
        let (sandbox, _events) = Sandbox::start(plan, None).await?;
        let console = sandbox.console_tail();
        assert!(
            console
                .iter()
                .any(|line| line.contains("is read from its disk")),
            "{console:?}"
        );
        sandbox.stop().await?;
        Ok(())
    })
}

fn agent_that_dies_is_told_as_such(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let mut plan = fixture.plan(&Root::none());
        // In its place a program that ends at once.
        plan.basis.config.image = Some(fixture.image_without_agent()?);
        match Sandbox::start(plan, None).await {
            Err(SandboxError::DiedBooting(death)) => {
                assert_eq!(death.cause, DeathCause::AgentDied, "{death}");
                Ok(())
            }
            other => Err(format!("not a death while booting: {other:?}").into()),
        }
    })
}

fn boot_out_of_time_is_told(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let mut plan = fixture.plan(&Root::none());
        plan.basis.config.boot_timeout_s = 0;
        match Sandbox::start(plan, None).await {
            Err(SandboxError::BootTimeout { .. }) => Ok(()),
            other => Err(format!("not out of time: {other:?}").into()),
        }
    })
}

fn name_in_use_is_refused(fixture: &Fixture) -> Outcome {
    fixture.run(async {
        let (sandbox, _events) = Sandbox::start(fixture.plan(&Root::none()), None).await?;
        match Sandbox::start(fixture.plan(&Root::none()), None).await {
            Err(SandboxError::AlreadyRunning { .. }) => {}
            other => return Err(format!("not refused: {other:?}").into()),
        }
        // The one that runs is none the worse.
        let processes = sandbox.agent().list_processes(&fixture.container()).await;
        assert!(
            matches!(processes, Err(AgentError::Refused { .. })),
            "{processes:?}"
        );
        sandbox.stop().await?;
        Ok(())
    })
}

/// The monitor that waits. There is none under the other driver.
async fn early_monitor(fixture: &Fixture) -> Result<u32, fixture::Failure> {
    let begun = tokio::time::timeout(fixture::PATIENCE, fixture.folder_appears());
    begun.await?;
    fixture.recorded_process("sandbox-vmm")
}

fn head_start_is_gone_on_with_by_its_plan_alone(fixture: &Fixture) -> Outcome {
    if fixture.driver() != Driver::Kvm {
        return Ok(());
    }
    let (own, shared) = (Root::none(), fixture.overlay_root()?);
    fixture.run(async {
        for (begun_of, root, same) in [
            (&own, &own, true),
            (&shared, &shared, true),
            // The monitor has it shared then.
            (&own, &shared, true),
            (&shared, &own, false),
        ] {
            let begun = Fixture::head_start(&fixture.plan(begun_of));
            let early = early_monitor(fixture).await?;
            let (sandbox, _events) = Sandbox::start(fixture.plan(root), Some(begun)).await?;
            assert_eq!(sandbox.monitor_pid() == early, same);
            sandbox.stop().await?;
        }
        let begun = Fixture::head_start(&fixture.plan(&own));
        let early = early_monitor(fixture).await?;
        let mut larger = fixture.plan(&own);
        let memory = &mut larger.basis.size.memory;
        *memory = MemMib::new(u64::from(memory.get()) + 64)?;
        let (sandbox, _events) = Sandbox::start(larger, Some(begun)).await?;
        assert_ne!(sandbox.monitor_pid(), early);
        sandbox.stop().await?;
        let begun = Fixture::head_start(&fixture.plan(&own));
        early_monitor(fixture).await?;
        let mut plan = fixture.plan(&own);
        plan.basis.config.image = Some(fixture.path("missing"));
        let failed = Sandbox::start(plan, Some(begun)).await;
        assert!(matches!(failed, Err(SandboxError::Driver(_))), "{failed:?}");
        Ok(())
    })
}

fn head_start_whose_monitor_is_killed_is_done_without(fixture: &Fixture) -> Outcome {
    if fixture.driver() != Driver::Kvm {
        return Ok(());
    }
    fixture.run(async {
        let plan = fixture.plan(&Root::none());
        let begun = Fixture::head_start(&plan);
        let early = early_monitor(fixture).await?;
        fixture::kill(early);
        fixture.processes_end(&fixture.recorded_processes()?)?;
        let (sandbox, _events) = Sandbox::start(plan, Some(begun)).await?;
        assert_ne!(sandbox.monitor_pid(), early);
        sandbox.stop().await?;
        Ok(())
    })
}

fn head_start_that_nobody_wants_leaves_nothing(fixture: &Fixture) -> Outcome {
    if fixture.driver() != Driver::Kvm {
        return Ok(());
    }
    fixture.run(async {
        let plan = fixture.plan(&Root::none());
        let begun = Fixture::head_start(&plan);
        early_monitor(fixture).await?;
        begun.release().await;
        assert!(!fixture.sandbox_dir().exists());
        let begun = Fixture::head_start(&plan);
        early_monitor(fixture).await?;
        drop(begun);
        fixture.folder_is_gone().await;
        // However far it is.
        Fixture::head_start(&plan).release().await;
        assert!(!fixture.sandbox_dir().exists());
        Ok(())
    })
}

fn shim_killed_leaves_what_cleanup_removes(fixture: &Fixture) -> Outcome {
    let root = fixture.overlay_root()?;
    let mut victim = fixture.start_victim(&root)?;
    let processes = fixture.recorded_processes()?;
    let expected = match fixture.driver() {
        Driver::Kvm => 2,
        Driver::Qemu => 3,
    };
    assert_eq!(processes.len(), expected, "{processes:?}");
    victim.kill()?;
    victim.wait()?;
    // Told to die with it, without anybody's help.
    fixture.processes_end(&processes)?;
    let removed = sandbox_runtime::cleanup::remove_sandbox(
        &fixture.config(),
        fixture::NAMESPACE,
        &fixture.id(),
    )?;
    assert_eq!(removed.mounts, [fixture.sandbox_dir().join("shared")]);
    Ok(())
}
