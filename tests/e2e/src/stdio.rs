//! Bytes in, bytes out: none lost, none added.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::World;
use sandbox_harness::process::wait_until;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("stdin_reaches_the_container_and_its_end_too", stdin),
    (
        "stdin_of_20_mib_through_cat_comes_back_byte_for_byte",
        big_cat,
    ),
    ("stdout_of_8_mib_before_exit_is_not_lost", big_tail),
    ("stdout_and_stderr_stay_apart", apart),
    ("stdin_without_i_is_empty", no_stdin),
    (
        "stdin_of_a_detached_container_outlives_what_is_attached",
        guests_input,
    ),
    ("stdout_closed_by_its_reader_ends_the_run", reader_gone),
    (
        "stdout_closed_by_its_reader_leaves_what_was_attached",
        guest_reader_gone,
    ),
    (
        "stdout_closed_by_its_reader_or_a_killed_client_leaves_an_exec",
        exec_left_alone,
    ),
    ("signal_int_and_term_reach_the_container", signals),
];

fn stdin(world: &World) -> Result<()> {
    world
        .sandboxctl_with_input(&["run", "--rm", "-i", "demo", "cat"], b"hello\n")?
        .expect_code(0)?
        .expect_stdout("hello\n")?;
    Ok(())
}

/// Bytes that no repetition, reordering or loss leaves as they are.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn big_cat(world: &World) -> Result<()> {
    let sent = noise(20 << 20);
    let finished = world
        .sandboxctl_with_input(&["run", "--rm", "-i", "demo", "cat"], &sent)?
        .expect_code(0)?;
    ensure!(
        finished.stdout.len() == sent.len(),
        "{} bytes came back",
        finished.stdout.len()
    );
    ensure!(finished.stdout == sent, "the bytes differ");
    Ok(())
}

fn big_tail(world: &World) -> Result<()> {
    let script = "head -c 8388608 /dev/zero | tr '\\0' x; printf end";
    let finished = world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", script])?
        .expect_code(0)?;
    ensure!(
        finished.stdout.len() == 8_388_608 + 3,
        "{} bytes arrived",
        finished.stdout.len()
    );
    ensure!(finished.stdout.ends_with(b"xend"), "the tail is wrong");
    Ok(())
}

fn apart(world: &World) -> Result<()> {
    let finished = world
        .sandboxctl(&["run", "--rm", "demo", "sh", "-c", "echo out; echo err >&2"])?
        .expect_code(0)?
        .expect_stdout("out\n")?;
    ensure!(
        finished.stderr.ends_with("err\n"),
        "standard error is {:?}",
        finished.stderr
    );
    Ok(())
}

fn no_stdin(world: &World) -> Result<()> {
    world
        .sandboxctl_with_input(&["run", "--rm", "demo", "wc", "-c"], b"not for you")?
        .expect_code(0)?
        .expect_stdout("0\n")?;
    Ok(())
}

fn guests_input(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "-d", "-i", "--name", "k", "demo", "cat"])?
        .expect_code(0)?;
    let mut attached = Vec::new();
    // The second shows that the end of the first one's was not the container's.
    for line in ["one", "two"] {
        let mut client = world.start(&["attach", "k"])?;
        client.write(format!("{line}\n").as_bytes())?;
        client.close_stdin();
        client.wait_for_line(line)?;
        attached.push(client);
    }
    world.sandboxctl(&["rm", "-f", "k"])?.expect_code(0)?;
    for client in attached {
        let code = client.finish()?.code;
        ensure!(code == 137 || code == 125, "exit code {code}");
    }
    Ok(())
}

fn reader_gone(world: &World) -> Result<()> {
    first_line(world, &["run", "--rm", "demo", "yes"])
}

fn guest_reader_gone(world: &World) -> Result<()> {
    let script = "while :; do echo y; sleep 0.1; done";
    world
        .sandboxctl(&["create", "--name", "w", "demo", "sh", "-c", script])?
        .expect_code(0)?;
    for verb in [&["start", "-a", "w"][..], &["attach", "w"]] {
        first_line(world, verb)?;
        let ps = world.sandboxctl(&["ps"])?.expect_code(0)?;
        ensure!(ps.text().contains("Up"), "after {verb:?}: {}", ps.text());
    }
    world.sandboxctl(&["rm", "-f", "w"])?.expect_code(0)?;
    Ok(())
}

fn exec_left_alone(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "-d", "--name", "x", "demo", "sleep", "1000"])?
        .expect_code(0)?;
    let inside = |words: &[&str]| world.sandboxctl(&[&["exec", "x"], words].concat());
    let comes = |file: &str| {
        wait_until(file, world.setup().limit, || {
            let seen = inside(&["test", "-e", file]).ok()?;
            (seen.code == 0).then_some(())
        })
    };
    // More than fits into what is between it and a reader, both ways out.
    let much = "until [ -e /go ]; do sleep 0.1; done; \
        head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; touch /done";
    let script = format!("echo up; {much}");
    let mut writer = world.start(&["exec", "x", "sh", "-c", &script])?;
    let mut reader = world.start(&["exec", "-i", "x", "sh", "-c", "echo up; cat; touch /ended"])?;
    for client in [&mut writer, &mut reader] {
        client.wait_for_line("up")?;
        client.signal(Signal::SIGKILL)?;
    }
    for client in [writer, reader] {
        client.finish()?.expect_code(137)?;
    }
    comes("/ended")?;
    inside(&["touch", "/go"])?.expect_code(0)?;
    comes("/done")?;
    // Nobody reads on, and nobody was killed.
    let script = "while [ -e /done ]; do echo y; sleep 0.1; done; \
        head -c 1000000 /dev/zero; touch /last";
    first_line(world, &["exec", "x", "sh", "-c", script])?;
    inside(&["rm", "/done"])?.expect_code(0)?;
    comes("/last")?;
    // Of none is anything left.
    let containers = world.state_dir().join("containers");
    wait_until("that all were removed", world.setup().limit, || {
        let mut folders = fs::read_dir(&containers).ok()?.flatten();
        let is_empty = |folder: fs::DirEntry| {
            let execs = fs::read_dir(folder.path().join("exec"));
            execs.is_ok_and(|mut execs| execs.next().is_none())
        };
        folders.any(is_empty).then_some(())
    })?;
    world.sandboxctl(&["rm", "-f", "x"])?.expect_code(0)?;
    Ok(())
}

/// Reads one line of what `arguments` print, which must be `y`, and closes the pipe.
fn first_line(world: &World, arguments: &[&str]) -> Result<()> {
    let mut command = world.sandboxctl_command(arguments);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    command = std::process::Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{} | head -n 1", words.join(" ")));
    world.adopt(&mut command);
    sandbox_harness::process::run(&mut command, b"", world.setup().limit)?
        .expect_code(0)?
        .expect_stdout("y\n")?;
    Ok(())
}

fn signals(world: &World) -> Result<()> {
    for (signal, name, code) in [(Signal::SIGINT, "INT", 3), (Signal::SIGTERM, "TERM", 4)] {
        let script = format!(
            "trap 'echo got {name}; exit {code}' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let mut running = world.start(&["run", "--rm", "demo", "sh", "-c", &script])?;
        running.wait_for_line("ready")?;
        running.signal(signal)?;
        running.wait_for_line(&format!("got {name}"))?;
        running.finish()?.expect_code(code)?;
    }
    Ok(())
}
