//! The verbs of containers that are left to themselves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::World;
use sandbox_harness::process::wait_until;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("verbs_of_a_container_from_run_to_rm", from_run_to_rm),
    ("verbs_created_container_is_started_twice", started_twice),
    (
        "verbs_killed_client_leaves_the_container_to_attach",
        killed_client,
    ),
    (
        "verbs_killed_attendant_is_noticed_and_cleared_away",
        killed_attendant,
    ),
    (
        "verbs_stop_and_restart_go_by_the_options_of_run",
        stopped_as_asked,
    ),
    (
        "verbs_stop_waits_for_a_start_under_way",
        stopped_while_starting,
    ),
    (
        "verbs_killed_shim_shows_as_exited_with_the_reason",
        killed_shim,
    ),
    (
        "verbs_container_with_a_damaged_state_is_shown_and_removed",
        damaged_state,
    ),
];

/// How long something may take that is about to happen.
const SOON: Duration = Duration::from_secs(180);

/// Ends by itself with 7 when it is asked to, and says so.
const POLITE: &str =
    "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.1; done";

/// Runs the command line, which is to say this and exit with 0.
pub(crate) fn run(world: &World, arguments: &[&str], stdout: &str) -> Result<()> {
    world
        .sandboxctl(arguments)?
        .expect_code(0)?
        .expect_stdout(stdout)?;
    Ok(())
}

fn detached(world: &World, name: &str) -> Result<()> {
    let made = world
        .sandboxctl(&[
            "run",
            "-d",
            "--name",
            name,
            "--group-add",
            "nogroup",
            "demo",
            "sh",
            "-c",
            POLITE,
        ])?
        .expect_code(0)?;
    let id = made.text();
    ensure!(
        id.trim().len() == 64 && id.trim().chars().all(|digit| digit.is_ascii_hexdigit()),
        "run -d printed {id:?}"
    );
    wait_until("its output in the log", SOON, || {
        let logs = world.sandboxctl(&["logs", name]).ok()?;
        (logs.text() == "out\n" && logs.stderr == "err\n").then_some(())
    })
}

fn from_run_to_rm(world: &World) -> Result<()> {
    detached(world, "one")?;
    look_at_logs(world)?;
    add_processes(world)?;
    hold_up(world)?;
    // What runs already is started as far as anybody can tell.
    run(world, &["start", "one"], "one\n")?;
    run(world, &["rename", "one", "two"], "")?;
    world
        .sandboxctl(&["rename", "two", "two"])?
        .expect_code(125)?
        .expect_stderr(&["two", "in use"])?;
    let follow = world.start(&["logs", "-f", "two"])?;
    let wait = world.start(&["wait", "two"])?;
    let stops = [
        world.start(&["stop", "-t", "120", "two"])?,
        world.start(&["stop", "-t", "120", "two"])?,
    ];
    for stop in stops {
        stop.finish()?.expect_code(0)?.expect_stdout("two\n")?;
    }
    follow
        .finish()?
        .expect_code(0)?
        .expect_stdout("out\nbye\n")?;
    wait.finish()?.expect_code(0)?.expect_stdout("7\n")?;
    let ps = world.sandboxctl(&["ps", "-a"])?.expect_code(0)?;
    ensure!(ps.text().contains("Exited (7)"), "ps -a: {}", ps.text());
    run(world, &["wait", "two"], "7\n")?;
    for (verb, word) in [
        ("attach", "exited"),
        ("kill", "exited"),
        ("pause", "exited"),
    ] {
        world
            .sandboxctl(&[verb, "two"])?
            .expect_code(125)?
            .expect_stderr(&["two", word])?;
    }
    world
        .sandboxctl(&["exec", "two", "true"])?
        .expect_code(125)?
        .expect_stderr(&["two", "not running", "sandboxctl start"])?;
    run(world, &["stop", "two"], "two\n")?;
    let pruned = world.sandboxctl(&["prune", "-f"])?.expect_code(0)?;
    ensure!(
        pruned.text().starts_with("Deleted Containers:\n")
            && pruned.text().contains("Total reclaimed"),
        "prune: {}",
        pruned.text()
    );
    what_happened(world)
}

fn look_at_logs(world: &World) -> Result<()> {
    run(world, &["logs", "--tail", "0", "one"], "")?;
    run(
        world,
        &["logs", "--since", "2000-01-01T00:00:00Z", "one"],
        "out\n",
    )?;
    run(
        world,
        &["logs", "--until", "2000-01-01T00:00:00Z", "one"],
        "",
    )?;
    let timed = world.sandboxctl(&["logs", "-t", "one"])?.expect_code(0)?;
    ensure!(
        timed.text().starts_with("20") && timed.text().ends_with("Z out\n"),
        "logs -t: {}",
        timed.text()
    );
    Ok(())
}

fn add_processes(world: &World) -> Result<()> {
    world
        .sandboxctl_with_input(
            &["exec", "-i", "one", "sh", "-c", "cat; echo no >&2; exit 3"],
            b"in\n",
        )?
        .expect_code(3)?
        .expect_stdout("in\n")?
        .expect_stderr(&["no"])?;
    let said = "echo $A; pwd; echo kept > /kept";
    run(
        world,
        &["exec", "-e", "A=b", "-w", "/tmp", "one", "sh", "-c", said],
        "b\n/tmp\n",
    )?;
    // Groups of the container's own stay with another user (docker).
    run(
        world,
        &["exec", "-u", "7:8", "one", "id", "-G"],
        "8 65534\n",
    )?;
    world
        .sandboxctl(&["exec", "one", "no-such-program"])?
        .expect_code(127)?
        .expect_stderr(&["no-such-program"])?;
    run(
        world,
        &["exec", "-d", "one", "sh", "-c", "echo x > /made"],
        "",
    )?;
    wait_until("what exec -d does", SOON, || {
        let seen = world.sandboxctl(&["exec", "one", "cat", "/made"]).ok()?;
        (seen.text() == "x\n").then_some(())
    })
}

fn hold_up(world: &World) -> Result<()> {
    run(world, &["pause", "one"], "one\n")?;
    let ps = world.sandboxctl(&["ps"])?.expect_code(0)?;
    ensure!(ps.text().contains("Paused"), "ps: {}", ps.text());
    for verb in [
        &["exec", "one", "true"][..],
        &["pause", "one"],
        &["attach", "one"],
    ] {
        world
            .sandboxctl(verb)?
            .expect_code(125)?
            .expect_stderr(&["one", "paused"])?;
    }
    run(world, &["unpause", "one"], "one\n")?;
    // Who attends the container hears of it from the shim, and notes it then; what comes next is noted by who does it.
    wait_until("that it is noted", SOON, || {
        let actions = actions(world).ok()?;
        actions.iter().any(|one| one == "unpause").then_some(())
    })
}

/// What happened so far, in order.
fn actions(world: &World) -> Result<Vec<String>> {
    let events = world
        .sandboxctl(&[
            "events", "--since", "0", "--until", "0s", "--format", "json",
        ])?
        .expect_code(0)?;
    events
        .text()
        .lines()
        .map(|line| -> Result<String> {
            let event: serde_json::Value = serde_json::from_str(line)?;
            Ok(event["Action"].as_str().context("an action")?.to_owned())
        })
        .collect()
}

fn what_happened(world: &World) -> Result<()> {
    let actions = actions(world)?;
    let mut rest = actions.iter();
    for wanted in [
        "create",
        "start",
        "exec_start",
        "pause",
        "unpause",
        "rename",
        "die",
        "destroy",
    ] {
        ensure!(
            rest.any(|action| action == wanted),
            "no {wanted} in its place in {actions:?}"
        );
    }
    Ok(())
}

fn started_twice(world: &World) -> Result<()> {
    let script = "cat /kept 2>/dev/null; echo kept >> /kept; cat; exit 5";
    // Where its ID cannot be written no container is made.
    let nowhere = ["create", "--cidfile", "/no/such/folder/cid", "demo", "true"];
    world
        .sandboxctl(&nowhere)?
        .expect_code(125)?
        .expect_stderr(&["/no/such/folder/cid"])?;
    run(world, &["ps", "-a", "-q"], "")?;
    let cidfile = world.path().join("cid");
    let cid = cidfile.to_string_lossy();
    let made = world
        .sandboxctl(&[
            "create",
            "-i",
            "--cidfile",
            &cid,
            "--name",
            "c",
            "demo",
            "sh",
            "-c",
            script,
        ])?
        .expect_code(0)?;
    ensure!(
        std::fs::read_to_string(&cidfile)? == made.text().trim(),
        "the cidfile"
    );
    let ps = world.sandboxctl(&["ps", "-a"])?.expect_code(0)?;
    ensure!(ps.text().contains("Created"), "ps -a: {}", ps.text());
    run(world, &["wait", "c"], "0\n")?;
    for expected in ["hello\n", "kept\nhello\n"] {
        world
            .sandboxctl_with_input(&["start", "-a", "-i", "c"], b"hello\n")?
            .expect_code(5)?
            .expect_stdout(expected)?;
    }
    run(world, &["logs", "c"], "hello\nkept\nhello\n")?;
    run(world, &["logs", "-n", "2", "c"], "kept\nhello\n")?;
    run(world, &["rm", "c"], "c\n")
}

fn killed_client(world: &World) -> Result<()> {
    let client = world.start_waiting(&["-i", "--rm", "--name", "orphan"])?;
    client.signal(Signal::SIGKILL)?;
    client.finish()?.expect_code(137)?;
    let ps = world.sandboxctl(&["ps"])?.expect_code(0)?;
    ensure!(ps.text().contains("Up"), "ps: {}", ps.text());
    // The end of this input is the end of the container's, and so of the container.
    world
        .sandboxctl_with_input(&["attach", "orphan"], b"still there\n")?
        .expect_code(0)?
        .expect_stdout("still there\n")?;
    Ok(())
}

fn killed_attendant(world: &World) -> Result<()> {
    detached(world, "lonely")?;
    world.kill_process(" attend ")?;
    let ps = world
        .sandboxctl(&["ps", "-a", "--no-trunc"])?
        .expect_code(0)?;
    ensure!(
        ps.text().contains("Exited (137)") && ps.text().contains("attended it"),
        "ps -a: {}",
        ps.text()
    );
    world.expect_no_process()?;
    run(world, &["start", "lonely"], "lonely\n")?;
    run(world, &["rm", "-f", "lonely"], "lonely\n")
}

fn stopped_while_starting(world: &World) -> Result<()> {
    let starting = world.start(&["run", "-d", "--name", "early", "demo", "sleep", "1000"])?;
    wait_until("that it is there", SOON, || {
        let ps = world.sandboxctl(&["ps", "-a", "-q"]).ok()?;
        (!ps.text().is_empty()).then_some(())
    })?;
    run(
        world,
        &["stop", "-t", "0", "early"],
        "early
",
    )?;
    starting.finish()?.expect_code(0)?;
    run(
        world,
        &["inspect", "-f", "{{.State.Status}}", "early"],
        "exited
",
    )?;
    run(
        world,
        &["rm", "early"],
        "early
",
    )
}

fn killed_shim(world: &World) -> Result<()> {
    detached(world, "orphan")?;
    let wait = world.start(&["wait", "orphan"])?;
    world.kill_process("containerd-shim-sandbox-v2")?;
    wait.finish()?.expect_code(0)?.expect_stdout("137\n")?;
    let ps = world
        .sandboxctl(&["ps", "-a", "--no-trunc"])?
        .expect_code(0)?;
    ensure!(
        ps.text().contains("Exited (137)") && ps.text().contains("shim"),
        "ps -a: {}",
        ps.text()
    );
    // Dead is, to docker, what could not be removed; this can.
    let state = "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}} {{.State.Dead}}";
    run(
        world,
        &["inspect", "-f", state, "orphan"],
        "exited 137 false false\n",
    )?;
    let reason = world.sandboxctl(&["inspect", "-f", "{{.State.Error}}", "orphan"])?;
    ensure!(reason.text().contains("shim"), "{}", reason.text());
    run(world, &["ps", "-a", "-q", "--filter", "status=dead"], "")?;
    let ended = [
        "ps",
        "-a",
        "--format",
        "{{.Names}}",
        "--filter",
        "exited=137",
    ];
    run(
        world, &ended, "orphan
",
    )?;
    run(world, &["logs", "orphan"], "out\n")?;
    world.expect_no_process()?;
    run(world, &["start", "orphan"], "orphan\n")?;
    run(world, &["rm", "-f", "orphan"], "orphan\n")
}

fn damaged_state(world: &World) -> Result<()> {
    detached(world, "cut")?;
    let id = world.sandboxctl(&["ps", "-q", "--no-trunc"])?.text();
    let id = id.trim();
    let folder = world.state_dir().join("containers").join(id);
    std::fs::write(folder.join("state.json"), "")?;
    let hint = format!("rm -f {}", &id[..12]);
    world
        .sandboxctl(&["ps", "-a"])?
        .expect_code(0)?
        .expect_stderr(&["is damaged", &hint])?;
    world
        .sandboxctl(&["rm", &id[..12]])?
        .expect_code(125)?
        .expect_stderr(&["is damaged", &hint])?;
    run(world, &["rm", "-f", &id[..12]], &format!("{}\n", &id[..12]))?;
    ensure!(!folder.exists(), "its folder is left");
    let leases = std::fs::read_dir(world.state_dir().join("images/leases"))?.count();
    ensure!(leases == 0, "{leases} leases are left");
    world.expect_no_process()
}

/// Says what it has of its options, and that it was asked to end, but does not.
const STUBBORN: &str = "trap 'echo asked' USR1; trap '' TERM; cat /proc/self/oom_score_adj /sys/fs/cgroup/cpu.weight; \
    echo up; while :; do sleep 0.1; done";

fn stopped_as_asked(world: &World) -> Result<()> {
    std::fs::write(world.path().join("labels"), "from=file\n")?;
    let options = "run -d --name s --entrypoint sh --stop-signal USR1 --stop-timeout 15 --restart no --annotation a=b \
        --label-file labels --pid private --uts private --cgroupns private --userns host --ipc private \
        --cpu-shares 512 --oom-score-adj 500 demo -c";
    let arguments: Vec<&str> = options.split_whitespace().chain([STUBBORN]).collect();
    world.sandboxctl(&arguments)?.expect_code(0)?;
    let starts = |times: usize| {
        wait_until("that it is up", SOON, || {
            let logs = world.sandboxctl(&["logs", "s"]).ok()?;
            (logs.text().matches("up\n").count() == times).then_some(logs.text())
        })
    };
    let first = starts(1)?;
    ensure!(first == "500\n20\nup\n", "{first}");
    let noted = "{{index .HostConfig.Annotations \"a\"}} {{.Config.StopTimeout}} {{.HostConfig.RestartPolicy.Name}} \
        {{index .Config.Labels \"from\"}} {{.Path}}";
    run(world, &["inspect", "-f", noted, "s"], "b 15 no file sh\n")?;
    // It is asked with the container's signal, killed when its time is up, and runs again.
    run(world, &["restart", "s"], "s\n")?;
    let second = starts(2)?;
    ensure!(second == "500\n20\nup\nasked\n500\n20\nup\n", "{second}");
    run(
        world,
        &["inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "s"],
        "true 0\n",
    )?;
    // What it says of other signals and times goes before that.
    run(world, &["stop", "-s", "TERM", "-t", "0", "s"], "s\n")?;
    run(
        world,
        &[
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.ExitCode}}",
            "s",
        ],
        "exited 137\n",
    )?;
    let logs = world.sandboxctl(&["logs", "-t", "--tail", "1", "s"])?;
    let (time, line) = logs
        .text()
        .split_once(' ')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .context("no time")?;
    ensure!(
        line == "up\n" && time.contains('T') && time.ends_with('Z'),
        "{time} {line}"
    );
    run(world, &["rm", "s"], "s\n")
}
