//! `-t`: a shell that a person can use.

use anyhow::Result;
use sandbox_harness::World;
use sandbox_harness::terminal::Terminal;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("tty_shell_echoes_interrupts_resizes_and_ends", shell),
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

fn no_terminal(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "-i", "-t", "demo", "sh"])?
        .expect_code(125)?
        .expect_stderr(&["terminal"])?;
    Ok(())
}
