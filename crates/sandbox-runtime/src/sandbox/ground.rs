//! What a sandbox stands on: what is made first, of what is known before its disks, shares and network are.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use sandbox_types::SandboxId;

use super::{MachineSize, SandboxError, SandboxPlan};
use crate::cgroup::{self, CgroupPath, Limits, Places};
use crate::cleanup::{self, Attempt, CleanupError, FolderClaim, Record, SweepNote};
use crate::config::Config;
use crate::driver::{BegunMachine, Driver, MachineBasis};
use crate::jail::SandboxJail;
use crate::vsock;

/// How often a folder is made that others clear away at the same time.
const MAKE_ATTEMPTS: usize = 4;
/// How long the removal is waited for: others wait for it to be told of the sandbox's end.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is known of a sandbox from the start, and decides what is made first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxBasis {
    /// Its identifier.
    pub id: SandboxId,
    /// The namespace (containerd's) that the identifier is unique in.
    pub namespace: String,
    /// The configuration.
    pub config: Config,
    /// What its machine begins with.
    pub size: MachineSize,
    /// Where its control group on the host is to be; without a place it has none of its own.
    pub cgroup: Option<CgroupPath>,
    /// Where on the host it is to run at first; it takes a control group ([`Sandbox::place`](super::Sandbox::place)).
    pub places: Places,
    /// What is noted for [`orphans`](crate::cleanup::orphans), where nobody else clears the sandbox away if this process is killed.
    pub sweep: Option<SweepNote>,
}

impl SandboxBasis {
    /// The sandbox's folder.
    pub(super) fn dir(&self) -> PathBuf {
        self.config.sandbox_dir(&self.namespace, &self.id)
    }
}

/// What a sandbox is begun with, before there is a [`SandboxPlan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyPlan {
    /// What the sandbox's plan is to have.
    pub basis: SandboxBasis,
    /// Something of the host's file system is shared with the guest, or may be later, so that its memory has to be shared too. Not to know
    /// of it yet costs a few milliseconds ([`Self::serves`]).
    pub shares: bool,
}

impl EarlyPlan {
    /// That of a sandbox.
    pub(super) fn of(plan: &SandboxPlan) -> Self {
        Self {
            basis: plan.basis.clone(),
            shares: plan.shares(),
        }
    }

    /// Whether what was begun with this is of use to a sandbox with `other`. The monitor makes memory shared that is not, but not the reverse.
    pub(super) fn serves(&self, other: &Self) -> bool {
        self.basis == other.basis && (other.shares || !self.shares)
    }
}

/// The folder, the control group and the jail of a sandbox, and what has been begun of its machine. To be given up by
/// [`Self::release`]: what is dropped leaves what is on record.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) dir: PathBuf,
    /// What its machine may become, by what the host has outside its control group.
    pub(super) most: MachineSize,
    pub(super) record: Record,
    /// What its processes are jailed in; outlives them.
    pub(super) jail: Option<SandboxJail>,
    pub(super) machine: Option<BegunMachine>,
    /// The folder is ours, and to be removed by us: there may be another sandbox of the same name.
    claim: Option<FolderClaim>,
}

impl Ground {
    /// Makes the folder, and nothing else.
    pub(super) fn claim(basis: &SandboxBasis, driver: Driver) -> Result<Self, SandboxError> {
        let dir = basis.dir();
        let claim = make_dir(&dir)?;
        Ok(Self {
            most: basis.size.most(driver, &basis.config),
            record: Record::new(&dir),
            jail: None,
            machine: None,
            claim: Some(claim),
            dir,
        })
    }

    /// Makes what belongs into the folder, and enters the control group.
    pub(super) fn furnish(&mut self, basis: &SandboxBasis) -> Result<(), SandboxError> {
        if let Some(note) = &basis.sweep {
            note.write(&self.dir)?;
        }
        // Before anything that its memory is to be charged for.
        if let Some(path) = &basis.cgroup {
            let limits = Limits::new(basis.size.memory, basis.size.vcpus, &basis.config);
            cgroup::enter(path, limits, &basis.places, &self.dir)?;
        }
        let ports = vsock::ports(&self.dir);
        let folder = ports.parent().unwrap_or(&self.dir);
        make_open(folder)?;
        self.jail = SandboxJail::make(&basis.config, &self.dir, folder)?;
        Ok(())
    }

    /// Begins the machine, of the `kvm` driver. Must run on a thread that lives as long as the machine should.
    pub(super) fn begin_machine(&mut self, plan: &EarlyPlan) -> Result<(), SandboxError> {
        let basis = MachineBasis {
            config: &plan.basis.config,
            size: plan.basis.size,
            most: self.most,
            shared_memory: plan.shares,
            dir: &self.dir,
            jail: self.jail.as_ref(),
            namespace: None,
        };
        self.machine = Some(BegunMachine::begin(basis, &mut self.record)?);
        Ok(())
    }

    /// Kills what has been begun, and removes everything, within [`REMOVE_TIMEOUT`]. Other processes have ended.
    pub(super) async fn release(mut self) -> Result<(), Arc<CleanupError>> {
        if let Some(machine) = &mut self.machine {
            machine.kill().await;
        }
        // Nobody runs as its user any more.
        self.jail = None;
        let (claim, dir) = (self.claim.take(), self.dir.clone());
        // It waits for processes and file systems, so not on the runtime's own thread.
        let removal = tokio::task::spawn_blocking(move || {
            // It is held until the folder is gone.
            claim.map_or(Ok(()), |_claim| cleanup::remove_dir(&dir).map(drop))
        });
        match tokio::time::timeout(REMOVE_TIMEOUT, removal).await {
            Ok(Ok(removed)) => removed.map_err(Arc::new),
            // It panicked, or the runtime is ending: then there is nobody to tell.
            Ok(Err(_)) => Ok(()),
            // It goes on all the same.
            Err(_elapsed) => Err(Arc::new(CleanupError::Unfinished {
                path: self.dir,
                limit: REMOVE_TIMEOUT,
            })),
        }
    }
}

/// Makes the sandbox's folder, readable by its owner only, and claims it. What a sandbox of the same name left is removed first,
/// unless it lives.
fn make_dir(dir: &Path) -> Result<FolderClaim, SandboxError> {
    let error = |source| SandboxError::RunDir {
        path: dir.to_owned(),
        source,
    };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    for _ in 0..MAKE_ATTEMPTS {
        let is_new = match rustix::fs::mkdir(dir, rustix::fs::Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) if cleanup::has_live_process(dir) => break,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(error(errno.into())),
        };
        match FolderClaim::take(dir).map_err(error)? {
            Attempt::Taken(claim) if is_new => return Ok(claim),
            // Still held while it is removed.
            Attempt::Taken(_claim) => drop(cleanup::remove_dir(dir)?),
            Attempt::Held => break,
            // Somebody has cleared it away.
            Attempt::Missing => {}
        }
    }
    Err(SandboxError::AlreadyRunning {
        dir: dir.to_owned(),
    })
}

/// Makes a folder which others may enter: the sandbox's own lets nobody as far as here.
fn make_open(folder: &Path) -> Result<(), SandboxError> {
    let error = |source| SandboxError::RunDir {
        path: folder.to_owned(),
        source,
    };
    std::fs::create_dir(folder).map_err(error)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_that_was_left_is_made_anew_and_one_that_is_held_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run/box");
        let first = make_dir(&dir).unwrap();
        std::fs::write(dir.join("left"), "").unwrap();
        let refused = make_dir(&dir).unwrap_err();
        assert!(
            matches!(refused, SandboxError::AlreadyRunning { .. }),
            "{refused}"
        );
        drop(first);
        let _second = make_dir(&dir).unwrap();
        assert!(!dir.join("left").exists());
    }
}
