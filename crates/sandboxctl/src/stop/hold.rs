//! Who has hold of a container: waiting for who has, having it end the container, and taking hold.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::StopError;
use crate::attach::protocol::{self, Lines, Outcome, Report, Request, Streams};
use crate::container::{Attended, Container, ContainerError, Containers, Status};
use crate::launch::Launch;
use crate::look::{Seen, look};
use crate::shim::{Shim, kill_recorded};
use crate::signals::KILL;
use crate::watch::Watch;

/// How long a killed container may take to end, with its attendant. The longest that is well: a guest that does not do what it is told
/// is given up by its shim after 30 s (`KILL_PATIENCE` of the shim's), an output that somebody holds open by the attendant after 10 s, and
/// then the shim and the network are cleared away, which takes seconds where machines are emulated.
pub(super) const CONCLUDE: Duration = Duration::from_secs(60);
/// How long whoever has hold of a container that has ended may take to let go.
pub(super) const RELEASE: Duration = Duration::from_secs(20);
/// How often it is looked, while waiting for that, whether somebody has started the container.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The container once it is not being made or started any more, however that went; none if it is gone then.
pub(crate) async fn until_started(container: Container) -> Option<Container> {
    if container.record.status != Status::Creating {
        return Some(container);
    }
    // The thread ends with the start or with us.
    let waiting = tokio::task::spawn_blocking(move || {
        let watch = Watch::new(&container.folder).ok()?;
        loop {
            let now = container.reload()?;
            if now.record.status != Status::Creating || !now.is_attended() {
                return Some(now);
            }
            watch.wait().ok()?;
        }
    });
    waiting.await.ok().flatten()
}

/// Waits until nobody attends the container any more: it has ended, its state is written, and what it had is cleared away. What the
/// attendant said of its end is returned, if it was still to be heard.
pub(super) async fn until_ended(container: &Container) -> Option<Outcome> {
    let container = container.clone();
    // The thread ends with the attendant or with us.
    let waiting = tokio::task::spawn_blocking(move || {
        let outcome = hear_out(&container);
        // Who came before it listens, or when it does not any more, waits all the same.
        wait_for_release(&container);
        outcome
    });
    waiting.await.ok().flatten()
}

/// Whether nobody attends the container any more before this time, or ever, has passed.
pub(super) async fn ends_within(time: Option<Duration>, container: &Container) -> bool {
    match time {
        Some(time) => timeout(time, until_ended(container)).await.is_ok(),
        None => {
            until_ended(container).await;
            true
        }
    }
}

/// Listens to the attendant until it hangs up.
fn hear_out(container: &Container) -> Option<Outcome> {
    let socket = Launch::load(&container.folder).ok()?.attach_socket();
    let connection = UnixStream::connect(socket).ok()?;
    protocol::send_attach(&connection, &Streams::default()).ok()?;
    let mut lines = Lines::new(connection);
    let mut outcome = None;
    while let Some(report) = lines.next() {
        if let Report::Ended(how) = report {
            outcome = Some(how);
        }
    }
    outcome
}

/// Who is to end a container.
pub(crate) enum Executioner {
    /// Its shim, which answers.
    Shim(Shim),
    /// Its attendant: the container is not there yet, or the shim is not known.
    Attendant,
    /// Its shim does not answer.
    Nobody,
}

impl Executioner {
    /// Who ends a container that looks like this.
    pub(super) fn of(seen: &Seen, shim: Option<Shim>) -> Self {
        match (seen, shim) {
            (Seen::Running { .. } | Seen::Paused | Seen::Unanswering { .. }, Some(shim)) => {
                Self::Shim(shim)
            }
            (Seen::Unanswering { .. }, None) => Self::Nobody,
            _ => Self::Attendant,
        }
    }
}

/// Ends a container that is made, started or attended. Its attendant clears away what it had, and is killed only if it does not.
pub(crate) async fn end(container: &Container, by: Executioner) -> Result<(), StopError> {
    let told = match &by {
        Executioner::Shim(shim) => {
            let id = container.record.id.as_str();
            shim.tasks.kill(id, KILL, true).await.is_ok()
        }
        Executioner::Attendant | Executioner::Nobody => false,
    };
    if !matches!(by, Executioner::Nobody) {
        let ending = async {
            // What cannot be killed is not there: not yet, or not any more.
            if !told {
                interrupt(container).await;
            }
            until_released(container).await
        };
        if matches!(timeout(CONCLUDE, ending).await, Ok(Ok(()))) {
            return Ok(());
        }
    }
    let now = || {
        container
            .reload()
            .unwrap_or_else(|| container.clone())
            .record
    };
    if let Some(shim) = now().shim {
        kill_recorded(shim.process).await?;
        // The attendant sees that, and clears away.
        if timeout(RELEASE, until_released(container)).await.is_ok() {
            return Ok(());
        }
    }
    if let Some(attendant) = now().attendant {
        kill_recorded(attendant).await?;
    }
    Ok(())
}

/// Has the attendant kill the container as soon as it listens, or undo its start.
async fn interrupt(container: &Container) {
    let container = container.clone();
    // The thread ends with the attendant or with us.
    let telling = tokio::task::spawn_blocking(move || {
        let Ok(watch) = Watch::new(&container.folder) else {
            return;
        };
        // It is about to listen when its files change.
        while container.is_attended() && kill_over_attendant(&container).is_err() {
            if watch.wait().is_err() {
                return;
            }
        }
    });
    let _ = telling.await;
}

fn kill_over_attendant(container: &Container) -> io::Result<()> {
    let launch = Launch::load(&container.folder).map_err(io::Error::other)?;
    let connection = UnixStream::connect(launch.attach_socket())?;
    protocol::send_attach(&connection, &Streams::default())?;
    protocol::send(&connection, &Request::Signal(KILL))
}

/// Takes hold of a container that nobody should attend any more; none if it is gone. One that somebody starts meanwhile is left to
/// them, which is [`StopError::StillLive`].
pub(crate) async fn hold(
    containers: &Containers,
    container: &Container,
) -> Result<Option<Attended>, StopError> {
    let name = || container.record.name.to_string();
    let begun = Instant::now();
    let mut released = until_released(container);
    loop {
        match containers.take(container) {
            // Others who wait may have it for a moment.
            Ok(None) => {}
            Err(ContainerError::NotFound { .. }) => return Ok(None),
            taken => return Ok(taken?),
        }
        if let Some(now) = container.reload()
            && now.record.status.is_live()
        {
            let seen = look(&now).await.0;
            if matches!(seen, Seen::Creating | Seen::Running { .. } | Seen::Paused) {
                return Err(StopError::StillLive {
                    name: name(),
                    state: seen.word(),
                });
            }
        }
        if begun.elapsed() >= RELEASE {
            return Err(StopError::Held { name: name() });
        }
        if timeout(LOOK_AGAIN, &mut released).await.is_ok() {
            released = until_released(container);
        }
    }
}

/// Waits until nobody attends the container, or it is gone. The thread ends with whoever attends it or with us.
fn until_released(container: &Container) -> JoinHandle<()> {
    let container = container.clone();
    tokio::task::spawn_blocking(move || wait_for_release(&container))
}

fn wait_for_release(container: &Container) {
    // Shared, so that those who wait do not wait for each other. A folder that is not there is nobody's.
    if let Ok(folder) = File::open(&container.folder) {
        let _ = folder.lock_shared();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::container::tests::made;
    use crate::logs::LogOptions;

    #[tokio::test]
    async fn start_under_way_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let mut attended = made(&Containers::open(root.path()).unwrap());
        let container = attended.container.clone();
        let waiting = tokio::spawn(until_started(container));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        attended
            .update(|record| record.status = Status::Running { started: 1 })
            .unwrap();
        let found = waiting.await.unwrap();
        let status = found.unwrap().record.status;
        assert_eq!(status, Status::Running { started: 1 });
    }

    #[tokio::test]
    async fn start_that_nobody_goes_on_with_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let attended = made(&Containers::open(root.path()).unwrap());
        let container = attended.container.clone();
        drop(attended);
        let found = until_started(container).await.unwrap();
        assert_eq!(found.record.status, Status::Creating);
    }

    /// A container whose attendant is to be spoken to at a socket of this folder.
    fn launched(folder: &std::path::Path, attended: &Attended) -> UnixListener {
        let launch = Launch {
            shim_program: "/no/such/shim".into(),
            socket_dir: folder.join("sockets"),
            rootfs: Vec::new(),
            stdin: false,
            stdin_once: false,
            terminal: false,
            log: LogOptions::default(),
            network: None,
        };
        fs::create_dir(&launch.socket_dir).unwrap();
        launch.save(attended.folder()).unwrap();
        UnixListener::bind(launch.attach_socket()).unwrap()
    }

    #[tokio::test]
    async fn start_that_is_to_end_is_undone_by_its_attendant() {
        let root = tempfile::tempdir().unwrap();
        let attended = made(&Containers::open(root.path()).unwrap());
        let container = attended.container.clone();
        let listener = launched(root.path(), &attended);
        let attendant = std::thread::spawn(move || {
            let (_, mut lines) = protocol::receive_attach(listener.accept().unwrap().0).unwrap();
            let said = lines.next();
            drop(attended);
            said
        });
        end(&container, Executioner::Attendant).await.unwrap();
        assert_eq!(attendant.join().unwrap(), Some(Request::Signal(KILL)));
    }

    #[tokio::test]
    async fn all_who_wait_for_a_container_get_it_in_the_end() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::open(root.path()).unwrap();
        let mut attended = made(&containers);
        attended
            .update(|record| record.status = Status::Created)
            .unwrap();
        let container = attended.container.clone();
        let all = (0..4).map(|_| {
            let (containers, container) = (containers.clone(), container.clone());
            // Which lets go of it again.
            tokio::spawn(async move { hold(&containers, &container).await.unwrap().is_some() })
        });
        let all: Vec<_> = all.collect();
        tokio::task::yield_now().await;
        drop(attended);
        for one in all {
            assert!(one.await.unwrap());
        }
    }
}
