//! Container runtimes, each driven by its own program.

mod class;
mod runc;
mod sandbox;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use crate::case::{Profile, Shares};
use crate::image;
use crate::session::{Commands, Session, SessionError};
use crate::spec::Grantable;

pub use class::ContainerdClass;
pub use runc::Runc;
pub use sandbox::Sandbox;

/// Makes the OCI configuration of a container with these options of `sandboxctl run`.
pub type SpecSource<'a> = &'a dyn Fn(&[String]) -> Result<Value, String>;

/// Why a container cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It cannot be used here at all.
    #[error("{0}")]
    Unusable(String),
    /// Its files cannot be made.
    #[error("cannot make {}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no configuration for it.
    #[error("cannot make the container's configuration: {0}")]
    Spec(String),
    /// It does not answer.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Starts containers with a probe in them.
pub trait Runtime {
    /// What it is called in reports.
    fn name(&self) -> &str;

    /// Why it cannot be used on this machine, if it cannot.
    fn obstacle(&self) -> Option<String>;

    /// Starts a container and waits for its probe.
    #[doc(hidden)]
    fn start(&self, container: &Container<'_>) -> Result<Started, RuntimeError>;
}

/// What a container is made from.
pub struct Container<'a> {
    pub(crate) name: String,
    pub(crate) profile: Profile,
    /// A folder of its own.
    pub(crate) folder: PathBuf,
    pub(crate) shares: Shares,
    pub(crate) probe: &'a Path,
    /// The root file system of containers that share it: those of the profile without protection.
    pub(crate) common_root: &'a Path,
    pub(crate) spec: SpecSource<'a>,
    pub(crate) grantable: &'a Grantable,
    pub(crate) stop: &'static AtomicBool,
}

/// A container that answers.
pub struct Started(pub(crate) Session);

/// The options of `sandboxctl run` that make a profile.
pub(crate) fn options(profile: Profile, shares: &Shares) -> Vec<String> {
    let mut options = vec![
        "--network=none".to_owned(),
        format!("--volume={}:/share", shares.writable.display()),
        format!("--volume={}:/share-ro:ro", shares.read_only.display()),
    ];
    match profile {
        Profile::Plain => {}
        Profile::Granted | Profile::Host => options.push("--privileged".to_owned()),
        Profile::Limited => {
            options.push(format!("--memory={}m", Profile::MEMORY_MIB));
            options.push(format!("--pids-limit={}", Profile::PROCESSES));
        }
    }
    options
}

impl Container<'_> {
    /// Its root file system, for runtimes that take a folder.
    pub(crate) fn root(&self) -> Result<PathBuf, RuntimeError> {
        if self.profile == Profile::Host {
            return Ok(self.common_root.to_owned());
        }
        let root = self.folder.join("rootfs");
        image::write_folder(&root, self.probe).map_err(|source| RuntimeError::Files {
            path: root.clone(),
            source,
        })?;
        Ok(root)
    }

    /// Writes its bundle.
    pub(crate) fn bundle(&self) -> Result<PathBuf, RuntimeError> {
        let root = self.root()?;
        let made = (self.spec)(&options(self.profile, &self.shares)).map_err(RuntimeError::Spec)?;
        let spec = crate::spec::adapt(
            made,
            self.profile,
            &self.name,
            &root,
            &self.shares,
            self.grantable,
        );
        let path = self.folder.join("config.json");
        fs::write(&path, spec.to_string()).map_err(|source| RuntimeError::Files {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    /// The container that `command` starts, to which `added` and a command line add a process.
    pub(crate) fn session(
        &self,
        command: Command,
        added: Command,
        removal: Vec<Command>,
    ) -> Result<Started, RuntimeError> {
        let errors = self.shares.errors.clone();
        let commands = Commands { added, removal };
        Ok(Started(Session::start(
            command, commands, errors, self.stop,
        )?))
    }
}

/// Whether a program is on the PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
