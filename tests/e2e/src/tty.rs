//! `-t`: a shell that a person can use.

use anyhow::{Result, ensure};
use sandbox_harness::process::wait_until;
use sandbox_harness::terminal::Terminal;
use sandbox_harness::{World, leaks};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("tty_shell_echoes_interrupts_resizes_and_ends", shell),
    ("tty_keys_detach_and_exec_has_a_terminal", detach),
    ("tty_hung_up_leaves_the_container_to_attach", hung_up),
    ("tty_keys_leave_an_exec_that_goes_on", exec_left),
    ("tty_without_a_terminal_is_refused", no_terminal),
];

fn shell(world: &World) -> Result<()> {
    let terminal = Terminal::open(world, 90, 30, &["run", "--rm", "-i", "-t", "demo", "sh"])?;
    terminal.wait_for("a prompt", |line| line.ends_with('#'))?;
    terminal.type_text("stty size; tty")?;
    terminal.press("Enter")?;
    terminal.wait_for("the first size", |line| line == "30 90")?;
    terminal.wait_for("a terminal", |line| line.starts_with("/dev/"))?;
    terminal.resize(70, 20)?;
    terminal
        .type_text("while [ \"$(stty size)\" != '20 70' ]; do sleep 0.1; done; echo re''sized")?;
    terminal.press("Enter")?;
    terminal.wait_for("the new size", |line| line == "resized")?;
    terminal.type_text("echo wait''ing; cat")?;
    terminal.press("Enter")?;
    terminal.wait_for("cat runs", |line| line == "waiting")?;
    terminal.press("C-c")?;
    terminal.wait_for_screen("the next prompt", |screen| {
        screen.trim_end().ends_with("^C\n/ #")
    })?;
    terminal.type_text("echo code=$?")?;
    terminal.press("Enter")?;
    terminal.wait_for("Ctrl-C ended cat", |line| line == "code=130")?;
    terminal.type_text("(exit 5)")?;
    terminal.press("Enter")?;
    // While the command runs the terminal is in another mode, in which Ctrl-D means something else.
    terminal.wait_for_screen("the next prompt", |screen| {
        screen.trim_end().ends_with("# (exit 5)\n/ #")
    })?;
    terminal.press("C-d")?;
    terminal.wait_for("Ctrl-D ended the shell", |line| line.contains("exit=5"))?;
    Ok(())
}

fn detach(world: &World) -> Result<()> {
    let keys = ["--detach-keys", "ctrl-x"];
    let mut arguments = vec!["run", "-i", "-t", "--name", "d"];
    arguments.extend(keys);
    arguments.extend(["demo", "sh"]);
    let first = Terminal::open(world, 80, 24, &arguments)?;
    first.wait_for("a prompt", |line| line.ends_with('#'))?;
    first.press("C-x")?;
    first.wait_for("that it was left alone", |line| line.contains("exit=0"))?;
    let ps = world.sandboxctl(&["ps"])?.expect_code(0)?;
    ensure!(ps.text().contains("Up"), "ps: {}", ps.text());

    let again = Terminal::open(world, 70, 20, &["attach", keys[0], keys[1], "d"])?;
    again.press("Enter")?;
    again.wait_for("a prompt", |line| line.ends_with('#'))?;
    // Asked until it is seen: the size goes another way than what is typed.
    again.type_text("while [ \"$(stty size)\" != '20 70' ]; do sleep 0.1; done; echo re''sized")?;
    again.press("Enter")?;
    again.wait_for("the new client's size", |line| line == "resized")?;
    let exec = Terminal::open(world, 60, 10, &["exec", "-i", "-t", "d", "sh"])?;
    exec.wait_for("a prompt", |line| line.ends_with('#'))?;
    exec.type_text("stty size; exit 3")?;
    exec.press("Enter")?;
    exec.wait_for("its own size", |line| line == "10 60")?;
    exec.wait_for("its own code", |line| line.contains("exit=3"))?;
    again.type_text("exit 4")?;
    again.press("Enter")?;
    again.wait_for("the container's code", |line| line.contains("exit=4"))?;
    world.sandboxctl(&["rm", "d"])?.expect_code(0)?;
    Ok(())
}

fn exec_left(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "-d", "--name", "e", "demo", "sleep", "1000"])?
        .expect_code(0)?;
    let keys = ["exec", "-i", "-t", "--detach-keys", "ctrl-x", "e", "sh"];
    let terminal = Terminal::open(world, 80, 24, &keys)?;
    terminal.wait_for("a prompt", |line| line.ends_with('#'))?;
    // More than fits into what is between it and a reader; short enough for what is said next to be on its line.
    let script = "until [ -e /go ]; do sleep 1; done; yes | head -c 1000000; >/done";
    terminal.type_text(script)?;
    terminal.press("Enter")?;
    terminal.press("C-x")?;
    terminal.wait_for("that it was left alone", |line| line.contains("exit=0"))?;
    let inside = |words: &[&str]| world.sandboxctl(&[&["exec", "e"], words].concat());
    inside(&["touch", "/go"])?.expect_code(0)?;
    wait_until("that it went on", world.setup().limit, || {
        let seen = inside(&["test", "-e", "/done"]).ok()?;
        (seen.code == 0).then_some(())
    })?;
    world.sandboxctl(&["rm", "-f", "e"])?.expect_code(0)?;
    Ok(())
}

fn hung_up(world: &World) -> Result<()> {
    let run = ["run", "-i", "-t", "--name", "h", "demo", "sh"];
    let start = ["start", "-a", "-i", "h"];
    for (verb, arguments) in [
        ("run", &run[..]),
        ("attach", &["attach", "h"]),
        ("start", &start),
    ] {
        let terminal = Terminal::open(world, 80, 24, arguments)?;
        if verb == "attach" {
            terminal.press("Enter")?;
        }
        terminal.wait_for("a prompt", |line| line.ends_with('#'))?;
        // With its server goes the terminal.
        drop(terminal);
        let client = format!("sandboxctl {verb}");
        wait_until("that the client has left", world.setup().limit, || {
            let mut processes = leaks::processes(world.path()).into_iter();
            let is_there = processes.any(|process| process.command.contains(&client));
            (!is_there).then_some(())
        })?;
        world.sandboxctl(&["exec", "h", "true"])?.expect_code(0)?;
        if verb == "attach" {
            world
                .sandboxctl(&["stop", "-t", "0", "h"])?
                .expect_code(0)?;
        }
    }
    world.sandboxctl(&["rm", "-f", "h"])?.expect_code(0)?;
    Ok(())
}

fn no_terminal(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "-i", "-t", "demo", "sh"])?
        .expect_code(125)?
        .expect_stderr(&["terminal"])?;
    world
        .sandboxctl(&["run", "-d", "-i", "-t", "--name", "t", "demo", "sh"])?
        .expect_code(0)?;
    world
        .sandboxctl(&["attach", "t"])?
        .expect_code(125)?
        .expect_stderr(&["not a TTY", "--no-stdin"])?;
    // Refused at once: it was not touched.
    world.sandboxctl(&["exec", "t", "true"])?.expect_code(0)?;
    world.sandboxctl(&["rm", "-f", "t"])?.expect_code(0)?;
    Ok(())
}
