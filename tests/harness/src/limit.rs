//! A limit for a whole test, so that one that hangs says where, and the others still run.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use crate::World;
use crate::leaks;

/// Runs `test` in `world`, for at most `limit`.
///
/// # Errors
/// What the test returns. When it has not ended by `limit`, what its processes waited for; they are killed, which ends most
/// tests, and one that goes on all the same is left to itself.
pub fn within<F>(limit: Duration, world: World, test: F) -> Result<()>
where
    F: FnOnce(World) -> Result<()> + Send + 'static,
{
    let folder = world.path().to_owned();
    wait(limit, &folder, &start(world, test))
}

/// Starts it.
fn start<F>(world: World, test: F) -> Receiver<Result<()>>
where
    F: FnOnce(World) -> Result<()> + Send + 'static,
{
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let _ = ended.send(test(world));
    });
    end
}

fn wait(limit: Duration, folder: &Path, end: &Receiver<Result<()>>) -> Result<()> {
    match end.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected) => bail!("the test panicked; its message is above"),
        Err(RecvTimeoutError::Timeout) => {
            let processes = waiting(folder);
            leaks::kill_all(folder);
            let outcome = match end.recv_timeout(Duration::from_secs(60)) {
                Ok(Ok(())) => "nothing is wrong".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "nothing: it still runs".to_owned(),
            };
            Err(anyhow!(
                "the test had not ended after {} s; its processes then:\n{processes}\nafter they were killed it said: {outcome}",
                limit.as_secs()
            ))
        }
    }
}

/// Each thread of the world's processes, and the kernel function that it sleeps in (proc(5), `wchan`).
fn waiting(world: &Path) -> String {
    let mut lines = Vec::new();
    for process in leaks::processes(world) {
        lines.push(format!("  {} {}", process.pid, process.command));
        let threads = fs::read_dir(format!("/proc/{}/task", process.pid));
        for thread in threads.into_iter().flatten().flatten() {
            let read = |name: &str| {
                fs::read_to_string(thread.path().join(name))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            lines.push(format!("    {}: {}", read("comm"), read("wchan")));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::leaks::WORLD_VARIABLE;
    use crate::process::wait_until;

    #[test]
    fn test_that_hangs_is_ended_and_says_where() {
        let world = World::without_programs();
        let folder = world.path().to_owned();
        let end = start(world, |world| {
            let status = Command::new("sleep")
                .arg("600")
                .env(WORLD_VARIABLE, world.path())
                .status()?;
            bail!("sleep ended: {status}")
        });
        wait_until("sleep", Duration::from_secs(60), || {
            let all = leaks::processes(&folder);
            all.iter()
                .any(|process| process.command == "sleep 600")
                .then_some(())
        })
        .unwrap();
        let error = wait(Duration::ZERO, &folder, &end).unwrap_err().to_string();
        assert!(error.contains("sleep 600"), "{error}");
        assert!(error.contains("sleep ended: signal: 9"), "{error}");
    }

    #[test]
    fn what_the_test_says_is_passed_on() {
        within(Duration::from_secs(60), World::without_programs(), |_| {
            Ok(())
        })
        .unwrap();
        let error = within(Duration::from_secs(60), World::without_programs(), |_| {
            bail!("no")
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
