//! From the mounts of a Create request to devices, shares and steps in the guest.
//!
//! What containerd 2's snapshotters hand over, and what becomes of it:
//!
//! | mount | becomes |
//! | --- | --- |
//! | `erofs`, `ext4` of an image file | a block device, mounted in the guest by its serial number |
//! | `erofs` of a file, where layers are mapped into the guest ([`window`]) | a part of the guest's persistent memory device |
//! | `erofs`, when there are more of them than room for devices | a file in the shared folder, mounted in the guest from there |
//! | `ext4`, when the machine is running and gets no more devices | a file in the shared folder, of which the guest makes a loop device |
//! | `dmverity/erofs` | the same, with what is read held to a hash tree by the guest |
//! | `format/…`, `mkdir/…` in front of a type | options filled in here ([`template`]), directories made in the guest |
//! | `tmpfs`, `overlay` over earlier mounts | a mount in the guest |
//! | `overlay` or `bind` of host directories, alone | an entry of the shared folder ([`crate::share`]) |
//! | none | the root of the specification, as an entry of the shared folder |
//!
//! Mount `n` is at `/run/sandbox/containers/<id>/mounts/<n>` in the guest, the last one at
//! `/run/sandbox/containers/<id>/rootfs`; a root that is shared is where the shared folder is mounted.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use sandbox_protocol::{GUEST_RUN_DIR, agent};
use sandbox_types::{ContainerId, MemMib};

use crate::config::Config;
use crate::driver::Driver;
use crate::sandbox::BlockDevice;
use crate::share::{SharePlan, SharedSource, is_read_only};

pub mod template;
mod verity;
pub mod window;

pub use template::TemplateError;
use template::{EarlierMount, expand};
use verity::VERITY_OPTION;
use window::{LayerWindow, MappedLayer};

/// The most mounts of one container.
pub const MAX_MOUNTS: usize = 128;

/// How a container's root is put together.
#[derive(Debug, Clone, PartialEq)]
pub struct RootfsPlan {
    /// Disks to attach.
    pub block: Vec<BlockDevice>,
    /// Layers to map, in the order of their places.
    pub layers: Vec<MappedLayer>,
    /// Steps for the agent, in order.
    pub guest_mounts: Vec<agent::Mount>,
    /// The root in the guest.
    pub root_path: String,
}

/// Names a machine's devices, and counts them against what it has room for.
#[derive(Debug, Clone)]
pub struct DeviceAllocator {
    taken: usize,
    has_share: bool,
    driver: Driver,
    window: Option<LayerWindow>,
    is_running: bool,
}

impl DeviceAllocator {
    /// For a machine of that driver that has only what every machine has.
    #[must_use]
    pub fn new(driver: Driver) -> Self {
        Self {
            taken: 0,
            has_share: false,
            driver,
            window: None,
            is_running: false,
        }
    }

    /// For a pod's running machine, which gets no more devices: everything comes through the one that all of it shares.
    #[must_use]
    pub fn of_running(driver: Driver) -> Self {
        Self {
            taken: driver.device_slots(),
            has_share: true,
            driver,
            window: None,
            is_running: true,
        }
    }

    /// Lets layers be mapped into the guest, where the driver can and `config` says so, which takes a device; the guest has that
    /// much memory.
    #[must_use]
    pub fn with_window(mut self, config: &Config, memory: MemMib) -> Self {
        if self.driver == Driver::Kvm && config.image_dax {
            // Without one nothing starts, and whoever opens it says so.
            let image = config.image_path().unwrap_or_default();
            self.window = Some(LayerWindow::behind(memory, &image));
            self.taken += 1;
        }
        self
    }

    /// Maps a layer, if it is a file for which there is room.
    fn map_layer(&mut self, path: &Path) -> Option<MappedLayer> {
        self.window.as_mut()?.add(path)
    }

    /// Takes the one device that everything shared comes through.
    ///
    /// # Errors
    /// [`RootfsError::TooManyDevices`] when there is no room for it.
    pub fn take_share(&mut self) -> Result<(), RootfsError> {
        if !self.has_share {
            self.take()?;
            self.has_share = true;
        }
        Ok(())
    }

    /// Takes the network devices of a pod.
    ///
    /// # Errors
    /// [`RootfsError::TooManyDevices`].
    pub fn take_network(&mut self, count: usize) -> Result<(), RootfsError> {
        (0..count).try_for_each(|_| self.take().map(drop))
    }

    /// How many more there is room for.
    fn room(&self) -> usize {
        self.driver.device_slots().saturating_sub(self.taken)
    }

    /// Whether the machine runs already, and so gets no more devices.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Takes a device, and returns its number.
    ///
    /// # Errors
    /// [`RootfsError::TooManyDevices`].
    pub fn take(&mut self) -> Result<usize, RootfsError> {
        let limit = self.driver.device_slots();
        if self.taken >= limit {
            return Err(RootfsError::TooManyDevices {
                driver: self.driver,
                limit,
            });
        }
        let number = self.taken;
        self.taken += 1;
        Ok(number)
    }
}

/// Why mounts cannot become a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootfsError {
    /// One of them cannot.
    #[error("rootfs mount {index} ({fstype} of {source_name:?}): {reason}")]
    Mount {
        /// Which.
        index: usize,
        /// Its type.
        fstype: String,
        /// Its source.
        source_name: String,
        /// What is wrong.
        reason: MountProblem,
    },
    /// More devices than the machine has room for.
    #[error(
        "the container needs more devices than the {limit} that a machine of the {driver} driver has room for"
    )]
    TooManyDevices {
        /// The driver.
        driver: Driver,
        /// Its room, without what every machine has.
        limit: usize,
    },
    /// More mounts than any snapshotter sends.
    #[error("{count} rootfs mounts are more than {MAX_MOUNTS}")]
    TooManyMounts {
        /// How many.
        count: usize,
    },
}

/// What is wrong with one mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountProblem {
    /// A type or transformer that is not known.
    #[error(
        "{0:?} is not supported; erofs, ext4, tmpfs, overlay and bind are, with format/, mkdir/ and dmverity/"
    )]
    UnknownType(String),
    /// An option that is not supported.
    #[error("option {0:?} is not supported")]
    UnsupportedOption(String),
    /// An overlay in the guest over a folder of the host's.
    #[error(
        "option {0:?} names a folder of the host's beside images; give the EROFS snapshotter a `default_size`, so that the writable layer is an image too"
    )]
    HostDirectory(String),
    /// The source must be an absolute path.
    #[error("its source must be an absolute path")]
    RelativeSource,
    /// A host directory beside other mounts.
    #[error("host directories can be a root only by themselves, not together with other mounts")]
    HostMountNotAlone,
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A hash tree that is not fully told.
    #[error(
        "dmverity/ takes {VERITY_OPTION}roothash= with 64 hexadecimal digits and {VERITY_OPTION}hash-offset= with a multiple of 4096, in front of erofs"
    )]
    Verity,
    /// A directory to make.
    #[error(
        "{0:?} is no directory that can be made: PATH[:MODE[:UID:GID]], PATH below {GUEST_RUN_DIR}"
    )]
    Mkdir(String),
}

/// Where everything of a container is, in the guest.
fn container_dir(container: &ContainerId) -> String {
    format!("{GUEST_RUN_DIR}/containers/{container}")
}

/// Plans the root of `container` from `mounts`; without any, it is the folder `root` of the host. What it needs of the host's folders is added to `share`, whose step the
/// agent must carry out first.
///
/// # Errors
/// [`RootfsError`] names the mount and what is wrong with it.
pub fn plan_rootfs(
    container: &ContainerId,
    mounts: &[Mount],
    next_device: &mut DeviceAllocator,
    share: &mut SharePlan,
    root: &Path,
) -> Result<RootfsPlan, RootfsError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(RootfsError::TooManyMounts {
            count: mounts.len(),
        });
    }
    let dir = container_dir(container);
    let mut plan = RootfsPlan {
        block: Vec::new(),
        layers: Vec::new(),
        guest_mounts: Vec::new(),
        root_path: format!("{dir}/rootfs"),
    };
    match mounts {
        [] => {
            let source = SharedSource::Path {
                path: root.to_owned(),
                recursive: true,
                follows_host: false,
            };
            plan.root_path =
                share.add("root", "root.path".to_owned(), source, false, next_device)?;
        }
        [only] if is_host_mount(&only.type_) => {
            let read_only = is_read_only(&only.options);
            let source = match only.type_.as_str() {
                "overlay" => SharedSource::Overlay {
                    options: only.options.clone(),
                },
                kind => SharedSource::Path {
                    path: PathBuf::from(&only.source),
                    recursive: kind == "rbind" || only.options.iter().any(|o| o == "rbind"),
                    follows_host: false,
                },
            };
            plan.root_path = share.add(
                "root",
                "rootfs[0]".to_owned(),
                source,
                read_only,
                next_device,
            )?;
        }
        _ => {
            let mapped: Vec<_> = mounts
                .iter()
                .map(|mount| match mount.type_.as_str() {
                    "erofs" => next_device.map_layer(Path::new(&mount.source)),
                    _ => None,
                })
                .collect();
            let devices = mounts
                .iter()
                .zip(&mapped)
                .filter(|(mount, mapped)| match mount.type_.as_str() {
                    "erofs" => mapped.is_none(),
                    kind => matches!(kind, "dmverity/erofs" | "ext4"),
                })
                .count();
            let layers = if devices > next_device.room() {
                // It is needed in any case, and counts.
                next_device.take_share()?;
                Layers::Files
            } else {
                Layers::Devices
            };
            let mut earlier = Vec::new();
            for ((index, mount), mapped) in mounts.iter().enumerate().zip(mapped) {
                let target = if index + 1 == mounts.len() {
                    plan.root_path.clone()
                } else {
                    format!("{dir}/mounts/{index}")
                };
                let step = Step {
                    mount,
                    target,
                    mapped,
                    layers,
                };
                step.plan(&mut plan, &mut earlier, next_device, share)
                    .map_err(|problem| match problem {
                        StepError::Mount(reason) => RootfsError::Mount {
                            index,
                            fstype: mount.type_.clone(),
                            source_name: mount.source.clone(),
                            reason,
                        },
                        StepError::Devices(error) => error,
                    })?;
            }
        }
    }
    Ok(plan)
}

/// A mount's own problem, or one of the whole machine.
enum StepError {
    Mount(MountProblem),
    Devices(RootfsError),
}

impl From<MountProblem> for StepError {
    fn from(problem: MountProblem) -> Self {
        Self::Mount(problem)
    }
}

fn is_host_mount(fstype: &str) -> bool {
    matches!(fstype, "overlay" | "bind" | "rbind")
}

/// The transformers in front of a type.
struct Transformers<'a> {
    format: bool,
    mkdir: bool,
    verity: bool,
    fstype: &'a str,
}

fn parse_type(text: &str) -> Result<Transformers<'_>, MountProblem> {
    let mut found = Transformers {
        format: false,
        mkdir: false,
        verity: false,
        fstype: text,
    };
    while let Some((transformer, rest)) = found.fstype.split_once('/') {
        match transformer {
            "format" => found.format = true,
            "mkdir" => found.mkdir = true,
            "dmverity" => found.verity = true,
            _ => return Err(MountProblem::UnknownType(text.to_owned())),
        }
        found.fstype = rest;
    }
    Ok(found)
}

/// The option by which the mkdir transformer is told what to make.
const MKDIR_OPTION: &str = "X-containerd.mkdir.path=";
/// Options for containerd, not for a file system.
const CONTAINERD_OPTION: &str = "X-containerd.";

/// How the read-only layers that are not mapped reach the guest.
#[derive(Debug, Clone, Copy)]
enum Layers {
    /// Each as a device.
    Devices,
    /// As files in the shared folder.
    Files,
}

/// One mount of the request, on its way to a step in the guest.
struct Step<'a> {
    mount: &'a Mount,
    target: String,
    mapped: Option<MappedLayer>,
    layers: Layers,
}

impl Step<'_> {
    fn plan(
        self,
        plan: &mut RootfsPlan,
        earlier: &mut Vec<EarlierMount>,
        next_device: &mut DeviceAllocator,
        share: &mut SharePlan,
    ) -> Result<(), StepError> {
        let mount = self.mount;
        let kind = parse_type(&mount.type_)?;
        let fill_in = |text: &str| -> Result<String, MountProblem> {
            if kind.format {
                Ok(expand(text, earlier)?)
            } else {
                Ok(text.to_owned())
            }
        };
        let mut step = agent::Mount {
            fstype: kind.fstype.to_owned(),
            target: self.target.clone(),
            ..Default::default()
        };
        let mut source = None;
        let mut is_image = true;
        let read_only = kind.fstype == "erofs" || mount.options.iter().any(|option| option == "ro");
        let as_file = match kind.fstype {
            "erofs" => matches!(self.layers, Layers::Files),
            // The guest makes a device of it, which a running machine cannot be given.
            _ => next_device.is_running(),
        };
        match kind.fstype {
            "erofs" if self.mapped.is_some() => {
                if let Some(layer) = self.mapped {
                    step.set_pmem(layer.guest_range());
                    step.options.extend(["ro", "dax=always"].map(str::to_owned));
                    plan.layers.push(layer);
                }
            }
            "erofs" | "ext4" if !Path::new(&mount.source).is_absolute() => {
                return Err(MountProblem::RelativeSource.into());
            }
            "erofs" | "ext4" if as_file => {
                let index = earlier.len();
                step.set_literal(share_file(mount, index, read_only, share, next_device)?);
                if read_only {
                    step.options.push("ro".to_owned());
                }
            }
            "erofs" | "ext4" => {
                let serial = format!("disk{}", next_device.take().map_err(StepError::Devices)?);
                step.set_block_serial(serial.clone());
                if read_only {
                    step.options.push("ro".to_owned());
                }
                plan.block.push(BlockDevice {
                    path: PathBuf::from(&mount.source),
                    read_only,
                    serial,
                });
            }
            // An overlay that names nothing of the guest names directories of the host.
            "overlay" if !kind.format => return Err(MountProblem::HostMountNotAlone.into()),
            "tmpfs" | "overlay" => {
                source = Some(fill_in(&mount.source)?);
                is_image = false;
                step.set_literal(kind.fstype.to_owned());
            }
            "bind" | "rbind" => return Err(MountProblem::HostMountNotAlone.into()),
            _ => return Err(MountProblem::UnknownType(mount.type_.clone()).into()),
        }
        if kind.verity {
            step.verity = Some(verity::of_options(kind.fstype, &mount.options)?).into();
        }
        for option in &mount.options {
            let option = fill_in(option)?;
            if kind.verity && option.starts_with(VERITY_OPTION) {
                continue;
            }
            if let Some(directory) = option.strip_prefix(MKDIR_OPTION) {
                if !kind.mkdir {
                    return Err(MountProblem::UnsupportedOption(option).into());
                }
                step.mkdir.push(parse_directory(directory)?);
            } else if option.starts_with(CONTAINERD_OPTION) || option.starts_with("device=") {
                return Err(MountProblem::UnsupportedOption(option).into());
            } else if kind.fstype == "overlay" && names_host_directory(&option) {
                return Err(MountProblem::HostDirectory(option).into());
            } else if !is_image || !matches!(option.as_str(), "loop" | "ro" | "rw") {
                step.options.push(option);
            }
        }
        plan.guest_mounts.push(step);
        earlier.push(EarlierMount {
            mount_point: self.target,
            source,
        });
        Ok(())
    }
}

/// Where an image file is in the guest that comes through the shared folder; `index` is the number of mounts before it, a name that no
/// other has.
fn share_file(
    mount: &Mount,
    index: usize,
    read_only: bool,
    share: &mut SharePlan,
    next_device: &mut DeviceAllocator,
) -> Result<String, StepError> {
    let source = SharedSource::Path {
        path: PathBuf::from(&mount.source),
        recursive: false,
        follows_host: false,
    };
    share
        .add(
            &format!("layers/{index}"),
            format!("rootfs[{index}]"),
            source,
            read_only,
            next_device,
        )
        .map_err(StepError::Devices)
}

/// Whether an option of an overlay in the guest names a folder that is none of what was mounted for it.
fn names_host_directory(option: &str) -> bool {
    let Some((name, folders)) = option.split_once('=') else {
        return false;
    };
    let in_guest = |folder: &str| {
        let below = folder.strip_prefix(GUEST_RUN_DIR);
        below.is_some_and(|rest| rest.starts_with('/'))
    };
    matches!(name, "lowerdir" | "upperdir" | "workdir") && !folders.split(':').all(in_guest)
}

/// `PATH[:MODE[:UID:GID]]`, mode in octal and 0700 by default.
fn parse_directory(text: &str) -> Result<agent::Directory, MountProblem> {
    let bad = || MountProblem::Mkdir(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let (path, mode, owner) = match parts.as_slice() {
        [path] => (path, None, None),
        [path, mode] => (path, Some(mode), None),
        [path, mode, uid, gid] => (path, Some(mode), Some((uid, gid))),
        _ => return Err(bad()),
    };
    let below = path
        .strip_prefix(GUEST_RUN_DIR)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(bad)?;
    if below
        .split('/')
        .any(|component| matches!(component, "" | "." | ".."))
    {
        return Err(bad());
    }
    let mode = match mode {
        None => 0o700,
        Some(octal) => u32::from_str_radix(octal, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(bad)?,
    };
    let (uid, gid) = match owner {
        None => (0, 0),
        Some((uid, gid)) => (
            uid.parse().map_err(|_| bad())?,
            gid.parse().map_err(|_| bad())?,
        ),
    };
    Ok(agent::Directory {
        path: (*path).to_owned(),
        mode,
        uid,
        gid,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
