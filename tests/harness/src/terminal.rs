//! A real terminal for a program under test: a private tmux server, typed into and read like a person would.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::wait_until;
use crate::world::World;

/// Each terminal has a server of its own, which speaks of nothing else.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// One terminal of a world. Dropped, it is closed with everything in it.
pub struct Terminal {
    server: String,
    limit: Duration,
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Terminal {
    /// Opens a terminal of this size that runs `sandboxctl` with these arguments, and shows its exit code as
    /// `exit=N` when it ends.
    ///
    /// # Errors
    /// When tmux is not there.
    pub fn open(world: &World, columns: u16, rows: u16, arguments: &[&str]) -> Result<Self> {
        Self::run(world, columns, rows, &world.sandboxctl_command(arguments))
    }

    /// Opens a terminal as [`Self::open`], for another program.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn run(world: &World, columns: u16, rows: u16, command: &Command) -> Result<Self> {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| quote(&word.to_string_lossy()))
            .collect();
        let script = format!("{}; echo exit=$?; cat", words.join(" "));
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let server = world.path().join(format!("tmux{number}"));
        let server = server.display().to_string();
        let mut tmux = Command::new("tmux");
        world.adopt(&mut tmux);
        let status = tmux
            .args(["-f", "/dev/null", "-S", &server, "new-session", "-d"])
            .args([
                "-x",
                &columns.to_string(),
                "-y",
                &rows.to_string(),
                "sh",
                "-c",
                &script,
            ])
            .env("TERM", "xterm")
            .env_remove("TMUX")
            .status()
            .context("cannot start tmux")?;
        if !status.success() {
            bail!("tmux failed: {status}");
        }
        Ok(Self {
            server,
            limit: world.setup().limit,
        })
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .args(["-S", &self.server])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!(
                "tmux {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Types text as it is.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses a key by tmux's name: `Enter`, `C-c`, `C-d`.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Gives the window another size.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.tmux(&[
            "resize-window",
            "-x",
            &columns.to_string(),
            "-y",
            &rows.to_string(),
        ])
        .map(drop)
    }

    /// What it shows.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until a line of the screen, its trailing blanks removed, satisfies `wanted`.
    ///
    /// # Errors
    /// With the screen, when it does not in time.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        self.wait_for_screen(what, |screen| {
            screen.lines().any(|line| wanted(line.trim_end()))
        })
    }

    /// Waits until the whole screen satisfies `wanted`.
    ///
    /// # Errors
    /// With the screen, when it does not in time.
    pub fn wait_for_screen(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, self.limit, || {
            wanted(&self.screen().ok()?).then_some(())
        })
        .with_context(|| format!("the screen shows:\n{}", self.screen().unwrap_or_default()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
