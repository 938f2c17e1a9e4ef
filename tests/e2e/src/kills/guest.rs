//! The guest ends. That comes from inside, so each moment has its own way to it.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::{World, bundle};
use serde_json::json;

use super::cell::{Cell, judge};
use super::{WAITS, told};

/// Has the guest's kernel panic, which is how the agent ends: nothing in the guest can kill its first process.
const PANIC: &str = "echo c > /proc/sysrq-trigger";

/// At every moment but one: while it boots, the agent's end is the test
/// `failure_agent_that_never_announces_is_named`'s.
pub(super) fn row(world: &World) -> Result<()> {
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
        let done = done
            .and_then(|()| cell.end())
            .and_then(|()| cell.expect_nothing_left(world));
        told(done, &format!("the guest ended {what}"), || log)
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
