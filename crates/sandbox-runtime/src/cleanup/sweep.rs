//! Sandboxes of killed servers that nobody is going to clear away: their engines never call `delete`.
//!
//! Such a sandbox has a note in its folder of what it takes to clear it away, beside the record of what it made. Whoever starts a server
//! looks for folders with a note whose claim ([`FolderClaim`]) is free, claims them, and removes them as [`remove_sandbox`] does:
//!
//! | meanwhile | why nothing is taken away from it |
//! | --- | --- |
//! | a server lives | it has the claim |
//! | a server makes its folder | it writes the note when it has the claim; without a note a folder is left alone |
//! | a server has been started for the same sandbox, and has not made its folder | it listens at the socket that the note names |
//! | a `delete`, or another sweep, clears the same folder away | one has the claim; the other does not find the folder when it gets it |
//! | a server is started, or makes its folder, while the same sandbox's old one is cleared away | it waits for the claim |
//!
//! What is not found this way: a server killed before it wrote the note leaves an empty folder, or its socket alone. It writes the note when it
//! begins to serve, where it begins its sandbox then ([`HeadStart`](crate::HeadStart)), or with the first container. The next server of the
//! same sandbox takes both over.
//!
//! [`remove_sandbox`]: super::remove_sandbox

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use sandbox_types::SandboxId;
use serde::{Deserialize, Serialize};

use super::claim::{Attempt, FolderClaim};
use super::{CleanupError, Removed, read_record, remove_dir, write_record};
use crate::config::Config;

const NOTE_FILE: &str = "sweep.json";
/// No more folders are looked at in one sweep, so that a start never waits long for it. What is there beyond is found when others have gone.
const MAX_FOLDERS: usize = 4096;
/// No more are cleared away in one sweep. Each is an open descriptor until then.
const MAX_ORPHANS: usize = 16;

/// What it takes to clear away a sandbox whose server was killed, beside what is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepNote {
    /// The namespace that the identifier is unique in.
    pub namespace: String,
    /// The sandbox.
    pub id: SandboxId,
    /// Where its server listens.
    pub socket: PathBuf,
    /// Bundles of its containers in which something is due when they have ended.
    pub bundles: Vec<PathBuf>,
}

impl SweepNote {
    /// Leaves the note in a sandbox's folder, which is claimed.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CleanupError> {
        write_record(&dir.join(NOTE_FILE), self)
    }

    /// The note in a sandbox's folder.
    fn read(dir: &Path) -> Result<Option<Self>, CleanupError> {
        read_record(&dir.join(NOTE_FILE))
    }

    /// Adds a bundle to the note in a sandbox's folder, where there is one.
    pub(crate) fn add_bundle(dir: &Path, bundle: &Path) -> Result<(), CleanupError> {
        let Some(mut note) = Self::read(dir)? else {
            return Ok(());
        };
        if note.bundles.iter().all(|noted| noted != bundle) {
            note.bundles.push(bundle.to_owned());
            note.write(dir)?;
        }
        Ok(())
    }
}

/// A sandbox whose server is dead, and which nobody else clears away as long as this lives.
#[derive(Debug)]
pub struct Orphan {
    dir: PathBuf,
    note: SweepNote,
    _claim: FolderClaim,
}

impl Orphan {
    /// What was noted of it.
    #[must_use]
    pub fn note(&self) -> &SweepNote {
        &self.note
    }

    /// Clears it away, as [`remove_sandbox`](super::remove_sandbox). Blocks until its processes are gone.
    ///
    /// # Errors
    /// As there.
    pub fn remove(self) -> Result<Removed, CleanupError> {
        remove_dir(&self.dir)
    }

    /// None unless there is a note, and its server is dead.
    fn claim(config: &Config, dir: PathBuf) -> Option<Self> {
        // Where the engine calls `delete` this is all that is asked of a sandbox.
        if !dir.join(NOTE_FILE).exists() {
            return None;
        }
        let Ok(Attempt::Taken(claim)) = FolderClaim::try_take(&dir) else {
            return None;
        };
        let note = match SweepNote::read(&dir) {
            Ok(note) => note?,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a sandbox of a killed shim is left as it is");
                return None;
            }
        };
        let is_its_own = config.sandbox_dir(&note.namespace, &note.id) == dir;
        let is_dead = || {
            release_socket(&note.socket).unwrap_or_else(|error| {
                // Its folder can go all the same.
                tracing::warn!("cannot remove {}: {error}", note.socket.display());
                true
            })
        };
        (is_its_own && is_dead()).then_some(Self {
            dir,
            note,
            _claim: claim,
        })
    }
}

/// Claims the sandboxes whose servers are dead and which nobody else is going to clear away, but for the one in the folder `own`, and removes
/// their sockets. They are free again, for another sweep, when they are dropped. Blocks no longer than a few system calls take for each folder.
#[must_use]
pub fn orphans(config: &Config, own: &Path) -> Vec<Orphan> {
    // Nothing has run here yet.
    let Ok(entries) = std::fs::read_dir(&config.run_dir) else {
        return Vec::new();
    };
    entries
        .take(MAX_FOLDERS)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|dir| dir != own)
        .filter_map(|dir| Orphan::claim(config, dir))
        .take(MAX_ORPHANS)
        .collect()
}

/// Removes a socket at which nobody listens; false where somebody does. To be called with the claim of the folder: who starts a
/// server at an old socket waits for that.
///
/// # Errors
/// When it cannot be removed. Nobody listens at it then.
pub fn release_socket(socket: &Path) -> io::Result<bool> {
    if is_served(socket) {
        return Ok(false);
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

/// Whether somebody listens at a socket. Does not wait for who does not take connections.
#[must_use]
pub fn is_served(socket: &Path) -> bool {
    let connected = || -> Result<(), Errno> {
        let address = SocketAddrUnix::new(socket)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&ours, &address)
    };
    !matches!(connected(), Err(Errno::CONNREFUSED | Errno::NOENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cleanup::remove_sandbox;
    use std::os::unix::net::UnixListener;
    use std::time::{Duration, Instant};

    const NAMESPACE: &str = "default";

    /// A runtime folder, and sandboxes in it.
    struct Host {
        folder: tempfile::TempDir,
        config: Config,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = Config {
                run_dir: folder.path().join("run"),
                ..Config::default()
            };
            Self { folder, config }
        }

        fn id(name: &str) -> SandboxId {
            SandboxId::new(name).unwrap()
        }

        fn dir(&self, name: &str) -> PathBuf {
            self.config.sandbox_dir(NAMESPACE, &Self::id(name))
        }

        fn socket(&self, name: &str) -> PathBuf {
            self.folder.path().join(format!("{name}.sock"))
        }

        /// The folder of a sandbox with a note, its socket, and the claim of who made it.
        fn make(&self, name: &str) -> (UnixListener, FolderClaim) {
            let dir = self.dir(name);
            std::fs::create_dir_all(&dir).unwrap();
            let claim = FolderClaim::of_left(&dir).unwrap();
            let note = SweepNote {
                namespace: NAMESPACE.to_owned(),
                id: Self::id(name),
                socket: self.socket(name),
                bundles: vec![format!("/bundles/{name}").into()],
            };
            note.write(&dir).unwrap();
            (UnixListener::bind(self.socket(name)).unwrap(), claim)
        }

        fn orphans(&self) -> Vec<Orphan> {
            orphans(&self.config, &self.dir("own"))
        }

        /// Those of these names, which are all. They are waited for: a program that another test starts has our descriptors for a
        /// moment, and so claims that have just been given up.
        fn find(&self, names: &[&str]) -> Vec<Orphan> {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let mut found = self.orphans();
                found.sort_by(|one, other| one.note.id.cmp(&other.note.id));
                let ids: Vec<&str> = found.iter().map(|one| one.note.id.as_str()).collect();
                if ids == names {
                    return found;
                }
                assert!(Instant::now() < deadline, "{ids:?} are not {names:?}");
            }
        }
    }

    #[test]
    fn sandboxes_of_dead_servers_are_found_and_removed_and_of_live_ones_kept() {
        let host = Host::new();
        assert!(host.orphans().is_empty());
        drop(host.make("a"));
        drop(host.make("b"));
        let live = host.make("live");
        // The sandbox of who sweeps is made anew by itself.
        drop(host.make("own"));
        drop(host.find(&["a", "b"]));
        assert!(!host.socket("a").exists());
        // They were given back.
        for orphan in host.find(&["a", "b"]) {
            assert_eq!(orphan.note().namespace, NAMESPACE);
            assert_eq!(orphan.remove().unwrap(), Removed::default());
        }
        assert!(host.orphans().is_empty());
        assert!(!host.dir("a").exists() && !host.dir("b").exists());
        assert!(host.dir("live").exists() && host.socket("live").exists());
        assert!(host.dir("own").exists() && host.socket("own").exists());
        drop(live);
        drop(host.find(&["live"]));
    }

    #[test]
    fn sandbox_without_a_note_is_left_to_its_engine() {
        let host = Host::new();
        let dir = host.dir("a");
        std::fs::create_dir_all(&dir).unwrap();
        assert!(host.orphans().is_empty());
        // Nor does a container that is added leave one.
        SweepNote::add_bundle(&dir, Path::new("/bundles/m")).unwrap();
        assert!(!dir.join(NOTE_FILE).exists());
    }

    #[test]
    fn sandbox_that_is_being_started_again_is_left_alone() {
        let host = Host::new();
        let (listener, claim) = host.make("a");
        // Its server has died, and another has been started at its socket.
        drop(claim);
        assert!(host.orphans().is_empty());
        assert!(host.socket("a").exists());
        // It made no sandbox, and has died too.
        drop(listener);
        drop(host.find(&["a"]));
    }

    #[test]
    fn socket_is_removed_where_nobody_listens_and_kept_where_somebody_does() {
        let host = Host::new();
        let socket = host.socket("a");
        // Bound is not listening.
        let address = SocketAddrUnix::new(&socket).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let bound = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&bound, &address).unwrap();
        assert!(release_socket(&socket).unwrap() && !socket.exists());
        assert!(release_socket(&socket).unwrap());
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(!release_socket(&socket).unwrap() && socket.exists());
        // What is there and cannot be removed.
        let folder = host.socket("folder");
        std::fs::create_dir(&folder).unwrap();
        assert!(release_socket(&folder).is_err() && folder.exists());
    }

    #[test]
    fn two_sweeps_at_once_find_each_sandbox_once() {
        let host = Host::new();
        let names = ["a", "b", "c"];
        for name in names {
            drop(host.make(name));
        }
        let first = host.find(&names);
        assert!(host.orphans().is_empty());
        drop(first);
        let found = std::thread::scope(|scope| {
            let sweeps: Vec<_> = (0..8).map(|_| scope.spawn(|| host.orphans())).collect();
            // Kept until all have looked.
            let all: Vec<_> = sweeps.into_iter().map(|one| one.join().unwrap()).collect();
            all.iter().map(Vec::len).sum::<usize>()
        });
        assert!(found <= names.len(), "{found}");
        drop(host.find(&names));
    }

    #[test]
    fn delete_waits_for_a_sweep_and_finds_nothing_after_it() {
        let host = Host::new();
        drop(host.make("a"));
        let orphan = host.find(&["a"]).remove(0);
        std::thread::scope(|scope| {
            let delete =
                scope.spawn(|| remove_sandbox(&host.config, NAMESPACE, &Host::id("a")).unwrap());
            assert_eq!(orphan.remove().unwrap(), Removed::default());
            assert_eq!(delete.join().unwrap(), Removed::default());
        });
        assert!(!host.dir("a").exists());
    }

    #[test]
    fn note_of_another_sandbox_or_of_nothing_is_not_followed() {
        let host = Host::new();
        drop(host.make("a"));
        let odd = host.config.run_dir.join("odd");
        std::fs::create_dir(&odd).unwrap();
        std::fs::copy(host.dir("a").join(NOTE_FILE), odd.join(NOTE_FILE)).unwrap();
        let broken = host.config.run_dir.join("broken");
        std::fs::create_dir(&broken).unwrap();
        std::fs::write(broken.join(NOTE_FILE), "not json").unwrap();
        std::fs::write(host.config.run_dir.join("file"), "").unwrap();
        drop(host.find(&["a"]));
    }

    #[test]
    fn bundles_are_added_to_the_note_once() {
        let host = Host::new();
        let made = host.make("a");
        for _ in 0..2 {
            SweepNote::add_bundle(&host.dir("a"), Path::new("/bundles/m")).unwrap();
        }
        drop(made);
        let found = host.find(&["a"]);
        assert_eq!(
            found[0].note().bundles,
            [PathBuf::from("/bundles/a"), PathBuf::from("/bundles/m")]
        );
    }
}
