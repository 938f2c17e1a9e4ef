//! The verbs that look at containers, change their limits, and copy files; templates, filters, completion and manual.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use serde_json::Value;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("observe_running_container_is_shown_and_changed", shown),
    ("observe_cp_goes_both_ways_by_dockers_rules", copied),
    (
        "observe_cp_reaches_a_container_that_does_not_run",
        copied_asleep,
    ),
    ("observe_lists_are_printed_as_asked", formats),
    ("observe_help_is_made_from_the_definitions", help),
    ("observe_shell_completes_names", completed),
    ("observe_logs_are_kept_as_far_as_asked", rotated),
];

fn said(world: &World, arguments: &[&str]) -> Result<String> {
    Ok(world.sandboxctl(arguments)?.expect_code(0)?.text())
}

fn is(found: &str, expected: &str) -> Result<()> {
    ensure!(
        found.trim_end() == expected,
        "{found:?} instead of {expected:?}"
    );
    Ok(())
}

fn shown(world: &World) -> Result<()> {
    let options =
        "--name seen -i --memory 128m --pids-limit 64 --label tier=web --stop-signal INT -e A=b";
    let running = world.start_waiting(&options.split(' ').collect::<Vec<_>>())?;

    let template = "{{.Name}} {{.State.Status}} {{.State.Running}} {{.HostConfig.Memory}} {{index .Config.Labels \"tier\"}} \
        {{.Sandbox.Driver}} {{json .Args}} {{.Config.StopSignal}} {{join .Config.Env \";\"}}";
    let inspected = said(world, &["inspect", "-f", template, "seen"])?;
    let driver = world.setup().driver.name();
    ensure!(
        inspected.starts_with(&format!(
            "/seen running true 134217728 web {driver} [\"-c\",\"echo up; cat\"] 2 "
        )) && inspected.contains("A=b"),
        "{inspected}"
    );
    let whole: Value = serde_json::from_str(&said(world, &["inspect", "seen"])?)?;
    ensure!(
        whole[0]["Sandbox"]["Memory"].as_u64() > Some(134_217_728),
        "{whole}"
    );
    let image = said(
        world,
        &["inspect", "-f", "{{.Os}}/{{.Architecture}}", "demo"],
    )?;
    is(&image, "linux/amd64")?;
    world
        .sandboxctl(&["inspect", "sene"])?
        .expect_code(125)?
        .expect_stderr(&["did you mean \"seen\""])?;
    world
        .sandboxctl(&["inspect", "-f", "{{.State.Statsu}}", "seen"])?
        .expect_code(125)?
        .expect_stderr(&["did you mean \"Status\""])?;

    let line = "{{.Names}}\\t{{.State}} {{.Label \"tier\"}}";
    for (filter, expected) in [
        ("name=^se", "seen\trunning web"),
        ("label=tier=web", "seen\trunning web"),
        ("label=tier=db", ""),
        ("status=exited", ""),
        ("ancestor=demo", "seen\trunning web"),
    ] {
        let found = said(world, &["ps", "-f", filter, "--format", line])?;
        is(&found, expected).with_context(|| filter.to_owned())?;
    }
    let table = said(world, &["ps", "--format", "table {{.Names}}\\t{{.Status}}"])?;
    ensure!(
        table.starts_with("NAMES") && table.contains("Up "),
        "{table}"
    );
    let id = said(world, &["ps", "-q", "--no-trunc"])?;
    ensure!(id.trim_end().len() == 64, "{id:?}");

    let top = said(world, &["top", "seen", "-o", "pid,args"])?;
    ensure!(top.starts_with("PID") && top.contains("cat"), "{top}");
    let stats = |format: &str| said(world, &["stats", "--no-stream", "--format", format, "seen"]);
    let before = stats("{{.Name}} {{.MemUsage}}")?;
    ensure!(
        before.starts_with("seen ") && before.trim_end().ends_with("/ 128 MiB"),
        "{before}"
    );
    is(
        &said(
            world,
            &["update", "--memory", "96m", "--pids-limit", "32", "seen"],
        )?,
        "seen",
    )?;
    let after = stats("{{.MemUsage}}")?;
    ensure!(after.trim_end().ends_with("/ 96.0 MiB"), "{after}");
    let noted = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}";
    is(
        &said(world, &["inspect", "-f", noted, "seen"])?,
        "100663296 32",
    )?;
    world
        .sandboxctl(&["update", "--memory", "64g", "--memory-swap", "-1", "seen"])?
        .expect_code(125)?
        .expect_stderr(&["machine can have"])?;
    is(&said(world, &["port", "seen"])?, "")?;
    let info = said(
        world,
        &["info", "--format", "{{.ContainersRunning}} {{.Images}}"],
    )?;
    is(&info, "1 1")?;

    world.sandboxctl(&["kill", "seen"])?.expect_code(0)?;
    running.finish()?.expect_code(137)?;
    let ended = "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}";
    is(
        &said(world, &["inspect", "-f", ended, "seen"])?,
        "exited 137 0",
    )?;
    // Nor are limits noted that it could not be started with.
    world
        .sandboxctl(&["update", "--memory-reservation", "1g", "seen"])?
        .expect_code(125)?
        .expect_stderr(&["--memory-reservation is above --memory"])?;
    is(
        &said(world, &["ps", "-q", "-f", "exited=137", "--format", "json"])?,
        id.trim_end().get(..12).unwrap_or_default(),
    )?;
    world.sandboxctl(&["rm", "seen"])?.expect_code(0)?;
    Ok(())
}

fn copied(world: &World) -> Result<()> {
    let here = world.path();
    fs::create_dir_all(here.join("tree/sub"))?;
    fs::write(here.join("tree/sub/f"), "content\n")?;
    symlink("sub/f", here.join("tree/link"))?;
    fs::write(here.join("large"), vec![b'x'; 3 << 20])?;
    let running = world.start_waiting(&["--name", "box", "-i"])?;
    let cp = |words: &str| -> Result<()> {
        let arguments: Vec<&str> = ["cp"].into_iter().chain(words.split(' ')).collect();
        world
            .sandboxctl(&arguments)?
            .expect_code(0)
            .with_context(|| words.to_owned())?;
        Ok(())
    };
    cp("tree box:/new")?;
    cp("tree box:/tmp")?;
    cp("tree/. box:/tmp")?;
    cp("large box:/tmp/larger")?;
    cp("box:/new out")?;
    is(&fs::read_to_string(here.join("out/sub/f"))?, "content")?;
    ensure!(fs::read_link(here.join("out/link"))?.as_os_str() == "sub/f");
    cp("box:/tmp/tree/sub out")?;
    is(&fs::read_to_string(here.join("out/sub/f"))?, "content")?;
    cp("-L box:/tmp/link followed")?;
    is(&fs::read_to_string(here.join("followed"))?, "content")?;
    // In a folder it has the name that was asked for.
    cp("-L box:/tmp/link out")?;
    ensure!(!fs::symlink_metadata(here.join("out/link"))?.is_symlink());
    is(&fs::read_to_string(here.join("out/link"))?, "content")?;
    cp("box:tmp/larger larger")?;
    ensure!(fs::read(here.join("larger"))?.len() == 3 << 20);
    // Through a pipe, from one place in the container to another.
    let tar = world
        .sandboxctl(&["cp", "box:/new/sub", "-"])?
        .expect_code(0)?;
    world
        .sandboxctl_with_input(&["cp", "-", "box:/home"], &tar.stdout)?
        .expect_code(0)?;
    cp("box:/home/sub/f piped")?;
    is(&fs::read_to_string(here.join("piped"))?, "content")?;
    for (words, part) in [
        (&["cp", "box:/none", "x"][..], "none"),
        (&["cp", "tree", "box:/etc/passwd"], "which is a file"),
        (&["cp", "large", "box:/none/"], "no folder"),
        (&["cp", "large", "box:/none/x"], "none"),
        (&["cp", "none", "box:/x"], "none"),
        (&["cp", "a", "b"], "CONTAINER:PATH"),
    ] {
        world
            .sandboxctl(words)?
            .expect_code(125)
            .with_context(|| format!("{words:?}"))?
            .expect_stderr(&[part])?;
    }
    world.sandboxctl(&["kill", "box"])?.expect_code(0)?;
    running.finish()?.expect_code(137)?;
    world.sandboxctl(&["rm", "box"])?.expect_code(0)?;
    Ok(())
}

fn copied_asleep(world: &World) -> Result<()> {
    let here = world.path();
    fs::create_dir_all(here.join("tree"))?;
    fs::write(here.join("tree/f"), "content\n")?;
    let state = |name: &str| -> Result<String> {
        let template =
            "{{.State.Status}} {{.State.ExitCode}} {{.State.StartedAt}} {{.State.FinishedAt}}";
        said(world, &["inspect", "-f", template, name])
    };
    // One that ended: what it wrote is there, and its program does not run again.
    let script = "date > /ran-at; echo told; exit 3";
    let run = world.sandboxctl(&["run", "--name", "ended", "demo", "sh", "-c", script])?;
    run.expect_code(3)?;
    let before = state("ended")?;
    said(world, &["cp", "ended:/ran-at", "first"])?;
    said(world, &["cp", "tree", "ended:/new"])?;
    said(world, &["cp", "ended:/new/f", "back"])?;
    is(&fs::read_to_string(here.join("back"))?, "content")?;
    said(world, &["cp", "ended:/ran-at", "second"])?;
    ensure!(fs::read(here.join("first"))? == fs::read(here.join("second"))?);
    is(&state("ended")?, before.trim_end())?;
    is(&said(world, &["logs", "ended"])?, "told")?;

    // One that was never started, and is afterwards.
    said(
        world,
        &["create", "--name", "fresh", "demo", "cat", "/in/f"],
    )?;
    said(world, &["cp", "tree/.", "fresh:/in"])?;
    ensure!(state("fresh")?.starts_with("created "));
    is(&said(world, &["start", "-a", "fresh"])?, "content")?;

    // A failure leaves nothing either.
    world
        .sandboxctl(&["cp", "ended:/none", "x"])?
        .expect_code(125)?
        .expect_stderr(&["none"])?;
    said(world, &["rm", "ended", "fresh"])?;
    Ok(())
}

fn formats(world: &World) -> Result<()> {
    let images = said(
        world,
        &["images", "--format", "{{.Repository}}:{{.Tag}} {{.Layers}}"],
    )?;
    is(&images, "demo:latest 1")?;
    let image: Value = serde_json::from_str(&said(world, &["image", "ls", "--format", "json"])?)?;
    ensure!(image["Repository"] == "demo", "{image}");

    // A program that is not there: the container says so afterwards.
    said(
        world,
        &["create", "--name", "odd", "demo", "no-such-program"],
    )?;
    world
        .sandboxctl(&["start", "odd"])?
        .expect_stderr(&["no-such-program"])?;
    is(
        &said(world, &["inspect", "-f", "{{.State.ExitCode}}", "odd"])?,
        "127",
    )?;
    let since = "--since=1h";
    let shown = said(
        world,
        &[
            "events",
            since,
            "--until",
            "0s",
            "--format",
            "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}",
        ],
    )?;
    ensure!(
        shown.lines().any(|line| line == "container create odd"),
        "{shown}"
    );
    said(world, &["rm", "odd"])?;
    Ok(())
}

fn help(world: &World) -> Result<()> {
    let version = said(world, &["version", "--format", "{{.Client.Version}}"])?;
    ensure!(version.contains('.'), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = said(world, &["completion", shell])?;
        ensure!(script.contains("SANDBOXCTL_COMPLETE"), "{shell}: {script}");
    }
    said(world, &["man", "man1"])?;
    let page = fs::read_to_string(world.path().join("man1/sandboxctl-run.1"))?;
    ensure!(
        page.contains("cap\\-drop"),
        "the page of run has no --cap-drop"
    );
    world
        .sandboxctl(&["ps", "--format", "{{.Names"])?
        .expect_code(125)?
        .expect_stderr(&["is not closed"])?;
    Ok(())
}

/// What a shell is told that asks to complete the last of these words, as the script for bash does.
fn completions(world: &World, words: &[&str]) -> Result<Vec<String>> {
    let mut command = world.command("sandboxctl");
    let last = words.len() - 1;
    command
        .env("SANDBOXCTL_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", last.to_string())
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "true")
        .env("_CLAP_IFS", "\n")
        .arg("--")
        .args(words);
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect())
}

fn completed(world: &World) -> Result<()> {
    said(world, &["create", "--name", "completed", "demo"])?;
    said(world, &["create", "--name", "other", "demo"])?;
    for (words, expected) in [
        (&["sandboxctl", "inspect", "comp"][..], &["completed"][..]),
        (&["sandboxctl", "rm", "other", "comp"], &["completed"]),
        (&["sandboxctl", "exec", "-i", "oth"], &["other"]),
        (&["sandboxctl", "run", "--rm", "dem"], &["demo:latest"]),
        (&["sandboxctl", "unpa"], &["unpause"]),
        (&["sandboxctl", "rm", "nothing-like-it"], &[]),
    ] {
        let found = completions(world, words)?;
        ensure!(found == expected, "{words:?}: {found:?}");
    }
    said(world, &["rm", "completed", "other"])?;
    Ok(())
}

fn rotated(world: &World) -> Result<()> {
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i + 1)); done";
    let options = ["--log-opt", "max-size=16k", "--log-opt", "max-file=2"];
    let arguments = [
        &["run", "--name", "chatty"][..],
        &options,
        &["demo", "sh", "-c", script],
    ]
    .concat();
    let printed = said(world, &arguments)?;
    ensure!(
        printed.lines().count() == 3000,
        "{}",
        printed.lines().count()
    );
    let kept = said(world, &["logs", "chatty"])?;
    let lines: Vec<&str> = kept.lines().collect();
    // The newest are kept, without a gap, and no more than was asked for.
    ensure!(lines.len() > 100 && lines.len() < 1500, "{}", lines.len());
    let first = 3000 - lines.len();
    for (number, line) in (first..).zip(&lines) {
        ensure!(
            *line == format!("line {number}"),
            "{line} instead of {number}"
        );
    }
    for (option, part) in [
        ("max-size=0", "more than nothing"),
        ("max-file=x", "max-file"),
        ("mode=fast", "mode"),
    ] {
        world
            .sandboxctl(&["create", "--log-opt", option, "demo"])?
            .expect_code(125)?
            .expect_stderr(&[part])?;
    }
    said(world, &["rm", "chatty"])?;
    Ok(())
}
