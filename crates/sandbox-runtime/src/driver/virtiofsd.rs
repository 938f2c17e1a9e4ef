//! virtiofsd: one process per sandbox, for both drivers.

use std::path::{Path, PathBuf};

use super::{DriverError, MachineRequest};
use crate::process::{Launch, Process};

/// Starts the server of the sandbox's shared folder, as what of it `folder` is. It listens before this returns.
pub(super) fn start(
    request: &mut MachineRequest<'_>,
    folder: &Path,
) -> Result<(PathBuf, Process), DriverError> {
    let (path, listener) = request.bind("fs.sock")?;
    let config = &request.basis.config;
    let mut launch = Launch::new("virtiofsd", config.virtiofsd_path()?);
    if let Some(jail) = request.basis.jail {
        let limits = jail.virtiofsd(open_files_hard_limit(), config.share_file_handles);
        launch.jail_by(&config.monitor_path()?, limits, request.basis.dir)?;
    }
    let fd = launch.pass(&listener)?;
    launch
        .arg(format!("--fd={fd}"))
        .arg("--shared-dir")
        .arg(folder)
        .arg("--sandbox=namespace")
        .arg("--cache=auto")
        // overlayfs refuses /proc, /sys and /dev on announced submounts.
        .arg("--no-announce-submounts")
        .arg("--xattr")
        // A device node in a shared folder would be a device of the host's for whoever can enter it there.
        .arg("--modcaps=-mknod")
        .arg(format!(
            "--inode-file-handles={}",
            if config.share_file_handles {
                "prefer"
            } else {
                "never"
            }
        ))
        .arg("--log-level=error")
        // Raising the hard limit takes CAP_SYS_RESOURCE, which a container has not; ours is raised to it instead.
        .arg(format!("--rlimit-nofile={}", open_files_hard_limit()));
    let plan = request.plan;
    if !plan.shares_later && plan.shared.iter().all(|entry| entry.read_only) {
        // The mounts are; this says it once more.
        launch.arg("--readonly");
    }
    let process = launch.spawn()?;
    request.record.add_process(process.name(), process.pid())?;
    Ok((path, process))
}

/// The most descriptors a process may have without privilege; virtiofsd keeps one per file that the guest knows, where it may not or
/// cannot open files by handles.
fn open_files_hard_limit() -> u64 {
    const ENOUGH: u64 = 1_000_000;
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .maximum
        .unwrap_or(ENOUGH)
        .min(ENOUGH)
}
