//! File systems on disks: images and block devices of the host's that a mount names by the file system's type, as for mount(8).
//!
//! Each becomes a disk of the machine, which the agent mounts, and the container's mount a bind of that. A writable one is
//! nobody else's as long as the machine runs. Disks cannot be added to a running machine, so later containers of a pod have none.

use std::path::{Path, PathBuf};

use sandbox_protocol::{GUEST_RUN_DIR, agent};
use sandbox_runtime::BlockDevice;
use sandbox_runtime::rootfs::{DeviceAllocator, RootfsError};
use sandbox_types::ContainerId;
use serde_json::{Value, json};

use super::binds::options_of;

/// The types of file systems that the guest's kernel has for disks.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];
/// What holds for the mount in the container, and not for the file system (mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS").
const OF_THE_MOUNT: [&str; 13] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "relatime",
    "nodiratime",
    "private",
    "rprivate",
];

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("`mounts[{index}]` ({fstype} of {source_name:?})")]
pub(crate) struct DiskError {
    /// Which mount of the spec.
    pub(crate) index: usize,
    /// The file system's type.
    pub(crate) fstype: String,
    /// Its source.
    pub(crate) source_name: String,
    /// What is wrong with it.
    #[source]
    pub(crate) problem: DiskProblem,
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskProblem {
    /// It is looked up on the host.
    #[error("its source must be the absolute path of an image file or block device of the host's")]
    Source,
    /// The machine is there already.
    #[error(
        "the pod's machine is running and gets no more disks; give the disk to the container that it is started for, or mount it on the host and share the folder"
    )]
    Running,
    /// No room for the device.
    #[error(transparent)]
    Device(Box<RootfsError>),
}

/// The disks of a container, and what the agent does with them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Disks {
    pub(crate) block: Vec<BlockDevice>,
    pub(crate) guest_mounts: Vec<agent::Mount>,
}

/// Takes the disks out of the mounts of `spec`, and has these name what the agent makes of them.
///
/// # Errors
/// [`DiskError`] names the mount.
pub(crate) fn resolve(
    spec: &mut Value,
    container: &ContainerId,
    devices: &mut DeviceAllocator,
) -> Result<Disks, DiskError> {
    let mut disks = Disks::default();
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        let text = |field: &str| mount.get(field).and_then(Value::as_str).unwrap_or_default();
        let Some(fstype) = FILE_SYSTEMS
            .into_iter()
            .find(|known| *known == text("type"))
        else {
            continue;
        };
        let options = options_of(mount);
        // Options that say so make it a bind, whatever its type is.
        if options.iter().any(|one| one == "bind" || one == "rbind") {
            continue;
        }
        let source = PathBuf::from(text("source"));
        let error = |problem| DiskError {
            index,
            fstype: fstype.to_owned(),
            source_name: source.display().to_string(),
            problem,
        };
        if !source.is_absolute() {
            return Err(error(DiskProblem::Source));
        }
        if devices.is_running() {
            return Err(error(DiskProblem::Running));
        }
        let number = devices
            .take()
            .map_err(|full| error(DiskProblem::Device(Box::new(full))))?;
        let target = format!("{GUEST_RUN_DIR}/containers/{container}/disks/{index}");
        let disk = Disk {
            fstype,
            read_only: fstype == "erofs" || options.iter().any(|one| one == "ro"),
            serial: format!("disk{number}"),
        };
        disks.guest_mounts.push(disk.step(&target, &options));
        *mount = bind_of(mount, &target, &options, disk.read_only);
        disks.block.push(BlockDevice {
            path: source,
            read_only: disk.read_only,
            serial: disk.serial,
        });
    }
    Ok(disks)
}

struct Disk {
    fstype: &'static str,
    read_only: bool,
    serial: String,
}

impl Disk {
    /// The agent's part: the file system, with its own options.
    fn step(&self, target: &str, options: &[String]) -> agent::Mount {
        let own = options
            .iter()
            .filter(|one| one.as_str() != "loop" && !OF_THE_MOUNT.contains(&one.as_str()));
        let read_only = self.read_only.then(|| "ro".to_owned());
        let mut step = agent::Mount {
            fstype: self.fstype.to_owned(),
            options: own.cloned().chain(read_only).collect(),
            target: target.to_owned(),
            ..Default::default()
        };
        step.set_block_serial(self.serial.clone());
        step
    }
}

/// The container's part: the mounted file system, at the mount's place.
fn bind_of(mount: &Value, target: &str, options: &[String], read_only: bool) -> Value {
    let of_the_mount = options
        .iter()
        .map(String::as_str)
        .filter(|one| OF_THE_MOUNT.contains(one) && !matches!(*one, "ro" | "rw"));
    let access = if read_only { "ro" } else { "rw" };
    let options: Vec<&str> = ["bind", access].into_iter().chain(of_the_mount).collect();
    let mut bind = mount.clone();
    bind["type"] = json!("bind");
    bind["source"] = json!(Path::new(target));
    bind["options"] = json!(options);
    bind
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_runtime::Driver;

    fn resolved(mount: Value, devices: &mut DeviceAllocator) -> Result<(Value, Disks), DiskError> {
        let mut spec = json!({ "mounts": [{"destination": "/proc", "type": "proc"}, mount] });
        let container = ContainerId::new("c1").unwrap();
        let disks = resolve(&mut spec, &container, devices)?;
        Ok((spec["mounts"][1].take(), disks))
    }

    fn new() -> DeviceAllocator {
        DeviceAllocator::new(Driver::Qemu)
    }

    #[test]
    fn disk_is_mounted_by_the_agent_and_bound_by_the_container() {
        let mount = json!({"destination": "/data", "type": "ext4", "source": "/srv/disk.img",
            "options": ["nosuid", "loop", "data=journal", "rprivate"]});
        let (mount, disks) = resolved(mount, &mut new()).unwrap();
        let target = "/run/sandbox/containers/c1/disks/1";
        assert_eq!(
            mount,
            json!({"destination": "/data", "type": "bind", "source": target, "options": ["bind", "rw", "nosuid", "rprivate"]})
        );
        let step = &disks.guest_mounts[0];
        assert_eq!(
            (step.fstype.as_str(), step.target.as_str()),
            ("ext4", target)
        );
        assert_eq!(step.options, ["data=journal"]);
        assert_eq!(step.block_serial(), disks.block[0].serial);
        assert_eq!(disks.block[0].path, Path::new("/srv/disk.img"));
        assert!(!disks.block[0].read_only);
    }

    #[test]
    fn read_only_holds_for_the_disk_the_file_system_and_the_mount() {
        for (fstype, options) in [("ext4", json!(["ro"])), ("erofs", json!([]))] {
            let mount =
                json!({"destination": "/d", "type": fstype, "source": "/i", "options": options});
            let (mount, disks) = resolved(mount, &mut new()).unwrap();
            assert!(disks.block[0].read_only);
            assert_eq!(disks.guest_mounts[0].options, ["ro"]);
            assert_eq!(mount["options"], json!(["bind", "ro"]));
        }
    }

    #[test]
    fn other_mounts_stay_as_they_are() {
        let others = [
            json!({"destination": "/d", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/d", "type": "ext4", "source": "/f", "options": ["rbind"]}),
            json!({"destination": "/d", "type": 7}),
        ];
        for mount in others {
            let (after, disks) = resolved(mount.clone(), &mut new()).unwrap();
            assert_eq!((after, disks), (mount, Disks::default()));
        }
    }

    #[test]
    fn disk_that_cannot_be_had_is_named_with_the_reason() {
        let disk = |source| json!({"destination": "/d", "type": "ext4", "source": source});
        let error = resolved(disk("disk.img"), &mut new()).unwrap_err();
        assert!(matches!(error.problem, DiskProblem::Source));
        assert_eq!(error.to_string(), "`mounts[1]` (ext4 of \"disk.img\")");
        let mut running = DeviceAllocator::of_running(Driver::Kvm);
        let error = resolved(disk("/disk.img"), &mut running).unwrap_err();
        assert!(matches!(error.problem, DiskProblem::Running));
        let mut full = new();
        while full.take().is_ok() {}
        let error = resolved(disk("/disk.img"), &mut full).unwrap_err();
        assert!(matches!(error.problem, DiskProblem::Device(_)));
    }
}
