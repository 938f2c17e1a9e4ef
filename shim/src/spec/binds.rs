//! Bind mounts of the host's folders and files.
//!
//! | option | what becomes of the source |
//! | --- | --- |
//! | `x-sandbox.copy` | a regular file, read here and sent to the agent, which makes it in the guest |
//! | a volume in memory, in a pod | a `tmpfs` of the guest, which is the pod's ([`MemoryVolumes`]) |
//! | any other `tmpfs` of the host for `/dev/shm`, in a pod | a `tmpfs` of the guest, of the same size: the pod's where the container shares the pod's ipc namespace, else its own |
//! | any other bind | an entry of the sandbox's shared folder ([`sandbox_runtime::share`]) |
//!
//! In the spec the source becomes a path of the guest. `ro` holds for the whole tree and on the host's side. Of the
//! propagation options `slave` and `rslave` let later mounts of the host through; `shared` and `rshared` would let the
//! guest's mounts out, which a virtual machine cannot do.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sandbox_protocol::extensions::{COPY_OPTION, FILL_OPTION, MAX_COPIED_FILE_BYTES};
use sandbox_protocol::{GUEST_RUN_DIR, agent};
use sandbox_runtime::rootfs::{DeviceAllocator, RootfsError};
use sandbox_runtime::share::{SharePlan, SharedSource, is_read_only};
use sandbox_types::ContainerId;
use serde_json::Value;

use super::memory_volumes::{InGuest, MemoryVolumes};

/// The most bind mounts of one container.
const MAX_BINDS: usize = 1024;

/// Why a bind mount cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("`mounts[{index}]` (bind of {source_name:?})")]
pub(crate) struct BindError {
    /// Which mount of the spec.
    pub(crate) index: usize,
    /// Its source.
    pub(crate) source_name: String,
    /// What is wrong with it.
    #[source]
    pub(crate) problem: BindProblem,
}

/// What is wrong with a bind mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindProblem {
    /// There is no source.
    #[error("a bind mount needs a source")]
    NoSource,
    /// The guest's mounts were to appear on the host.
    #[error(
        "{0:?} would let mounts made in the sandbox appear on the host, which a virtual machine cannot do; use rslave or rprivate"
    )]
    Shared(String),
    /// Not a regular file.
    #[error("only a regular file, not a link, can be copied into the sandbox")]
    NotRegular,
    /// Too much to copy.
    #[error(
        "the files that are copied into the sandbox are larger than {MAX_COPIED_FILE_BYTES} bytes; share it instead (without {COPY_OPTION})"
    )]
    TooLarge,
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// More than a container can have.
    #[error("more than {MAX_BINDS} bind mounts")]
    TooMany,
    /// No room for the device.
    #[error(transparent)]
    Device(Box<RootfsError>),
}

/// The options of a mount.
pub(super) fn options_of(mount: &Value) -> Vec<String> {
    let options = mount.get("options").and_then(Value::as_array);
    options
        .into_iter()
        .flatten()
        .filter_map(|option| option.as_str().map(str::to_owned))
        .collect()
}

fn is_bind(mount: &Value, options: &[String]) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || options.iter().any(|o| o == "bind" || o == "rbind")
}

/// Whether a container that is no pod's has a bind mount of which the source is shared with the guest.
pub(crate) fn are_shared(spec: &Value) -> bool {
    let mounts = spec.get("mounts").and_then(Value::as_array);
    mounts.into_iter().flatten().any(|mount| {
        let options = options_of(mount);
        is_bind(mount, &options) && !options.iter().any(|option| option == COPY_OPTION)
    })
}

/// One mount of the spec.
struct Mount<'a> {
    value: &'a mut Value,
    options: Vec<String>,
}

impl<'a> Mount<'a> {
    /// `None` when it is no bind mount.
    fn bind(value: &'a mut Value) -> Option<Self> {
        let options = options_of(value);
        is_bind(value, &options).then_some(Self { value, options })
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// The option by which mounts of the guest's would appear on the host.
    fn propagates(&self) -> Option<&'static str> {
        ["shared", "rshared"].into_iter().find(|o| self.has(o))
    }

    fn source(&self) -> Option<&str> {
        self.value
            .get("source")
            .and_then(Value::as_str)
            .filter(|source| !source.is_empty())
    }

    /// The size of what is to be the container's shared memory, if that is what it is.
    fn shm_bytes(&self, source: &Path) -> Option<u64> {
        let destination = self.value.get("destination").and_then(Value::as_str)?;
        (destination == SHM).then(|| tmpfs_bytes(source)).flatten()
    }

    /// Names the source as the guest has it.
    fn rewrite(&mut self, guest_path: String) {
        self.options.retain(|option| option != COPY_OPTION);
        self.value["options"] = self.options.clone().into();
        self.value["source"] = guest_path.into();
    }
}

/// What the bind mounts of a container need.
pub(crate) struct Binds<'a> {
    pub(crate) container: &'a ContainerId,
    pub(crate) bundle: &'a Path,
    pub(crate) share: &'a mut SharePlan,
    pub(crate) devices: &'a mut DeviceAllocator,
    /// Where in the guest the container's shared memory is, when its engine's is not taken.
    pub(crate) shm: Option<&'a str>,
    /// The volumes in memory of the pod, if it is one's.
    pub(crate) volumes: Option<&'a mut MemoryVolumes>,
}

/// What the bind mounts of a container have become, beside the changed spec.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// The files to copy into the guest.
    pub(crate) files: Vec<agent::File>,
    /// `shm` is used, in the place of a file system of this many bytes; zero for one without a limit.
    pub(crate) shm_bytes: Option<u64>,
    /// The volumes that the guest may fill, as the host has them.
    pub(crate) filled: Vec<PathBuf>,
    /// What the agent mounts for the pod.
    pub(crate) lasting: Vec<agent::Mount>,
    /// What the agent mounts for the container, of that.
    pub(crate) parts: Vec<agent::Mount>,
}

impl Resolved {
    /// Has the agent mount what is needed of a volume for mount `index` of the container. Returns where that is in the guest.
    fn add_volume(&mut self, volume: InGuest, container: &ContainerId, index: usize) -> String {
        let InGuest { volume, part } = volume;
        let whole = volume.target.clone();
        self.lasting.push(volume);
        let Some(part) = part else {
            return whole;
        };
        let mut step = agent::Mount {
            options: vec!["bind".to_owned()],
            target: format!("{GUEST_RUN_DIR}/containers/{container}/volumes/{index}"),
            part: Some(part).into(),
            ..Default::default()
        };
        step.set_literal(whole);
        let target = step.target.clone();
        self.parts.push(step);
        target
    }
}

/// Where shared memory is in a container (shm_overview(7)).
pub(crate) const SHM: &str = "/dev/shm";
/// `statfs.f_type` of a tmpfs (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The size of the tmpfs at a path, in bytes; `None` when there is none.
pub(super) fn tmpfs_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statfs(path).ok()?;
    if u64::try_from(stat.f_type).ok()? != TMPFS_MAGIC {
        return None;
    }
    Some(
        stat.f_blocks
            .saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0)),
    )
}

impl Binds<'_> {
    /// Gives every bind mount of `spec` a source in the guest.
    ///
    /// # Errors
    /// [`BindError`] names the mount.
    pub(crate) fn resolve(mut self, spec: &mut Value) -> Result<Resolved, BindError> {
        let mut resolved = Resolved::default();
        let mut bytes_left = MAX_COPIED_FILE_BYTES;
        let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
        let binds = mounts
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, value)| Some((index, Mount::bind(value)?)));
        for (count, (index, mut mount)) in binds.enumerate() {
            let name = mount.source().unwrap_or_default().to_owned();
            let error = |problem| BindError {
                index,
                source_name: name.clone(),
                problem,
            };
            if count >= MAX_BINDS {
                return Err(error(BindProblem::TooMany));
            }
            let source = mount
                .source()
                .map(|source| self.bundle.join(source))
                .ok_or_else(|| error(BindProblem::NoSource))?;
            if mount.has(COPY_OPTION) {
                let path = format!(
                    "{GUEST_RUN_DIR}/containers/{}/files/{index}",
                    self.container
                );
                let file = copied(&source, path.clone(), bytes_left).map_err(error)?;
                bytes_left = bytes_left.saturating_sub(file.content.len() as u64);
                resolved.files.push(file);
                mount.rewrite(path);
            } else if let Some(volume) = self.volume(&source, &mount) {
                mount.rewrite(resolved.add_volume(volume, self.container, index));
            } else if let (Some(shm), Some(bytes)) = (self.shm, mount.shm_bytes(&source)) {
                resolved.shm_bytes = Some(bytes);
                mount.rewrite(shm.to_owned());
            } else {
                if mount.has(FILL_OPTION) {
                    resolved.filled.push(source.clone());
                }
                let path = self.shared(index, source, &mount).map_err(error)?;
                mount.rewrite(path);
            }
        }
        Ok(resolved)
    }

    /// What of the guest's is mounted in the place of a pod's volume in memory.
    fn volume(&mut self, source: &Path, mount: &Mount<'_>) -> Option<InGuest> {
        match mount.propagates() {
            // Refused below.
            Some(_) => None,
            None => self.volumes.as_mut()?.find(source),
        }
    }

    fn shared(
        &mut self,
        index: usize,
        path: PathBuf,
        mount: &Mount<'_>,
    ) -> Result<String, BindProblem> {
        if let Some(option) = mount.propagates() {
            return Err(BindProblem::Shared(option.to_owned()));
        }
        let source = SharedSource::Path {
            path,
            recursive: mount.has("rbind"),
            follows_host: mount.has("rslave") || mount.has("slave"),
        };
        self.share
            .add(
                &format!("mounts/{index}"),
                format!("mounts[{index}].source"),
                source,
                is_read_only(&mount.options) || mount.has("rro"),
                self.devices,
            )
            .map_err(|error| BindProblem::Device(Box::new(error)))
    }
}

/// Reads a small file of the caller's.
fn copied(source: &Path, path: String, limit: u64) -> Result<agent::File, BindProblem> {
    // Neither a link nor a fifo gets us to somewhere else, or to wait.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(source);
    let file = match file {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(BindProblem::NotRegular);
        }
        // A socket.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            return Err(BindProblem::NotRegular);
        }
        other => other.map_err(BindProblem::Read)?,
    };
    let metadata = file.metadata().map_err(BindProblem::Read)?;
    if !metadata.is_file() {
        return Err(BindProblem::NotRegular);
    }
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(BindProblem::Read)?;
    if content.len() as u64 > limit {
        return Err(BindProblem::TooLarge);
    }
    Ok(agent::File {
        path,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        content,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_runtime::Driver;
    use serde_json::json;

    fn resolve(
        bundle: &Path,
        mounts: Value,
    ) -> Result<(Value, Vec<agent::File>, SharePlan), BindError> {
        let container = ContainerId::new("c1").unwrap();
        let mut share = SharePlan::new(&container);
        let mut spec = json!({ "mounts": mounts });
        let resolved = Binds {
            container: &container,
            bundle,
            share: &mut share,
            devices: &mut DeviceAllocator::new(Driver::Qemu),
            shm: None,
            volumes: None,
        }
        .resolve(&mut spec)?;
        Ok((spec["mounts"].take(), resolved.files, share))
    }

    fn problem(source: &Path, options: &[&str]) -> BindProblem {
        let mounts =
            json!([{"destination": "/d", "type": "bind", "source": source, "options": options}]);
        resolve(Path::new("/bundle"), mounts).err().unwrap().problem
    }

    #[test]
    fn shared_memory_of_a_pod_is_the_guests() {
        let container = ContainerId::new("c1").unwrap();
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let bind = |to: &str| json!({"destination": to, "type": "bind", "source": folder.path(), "options": ["rbind"]});
        let mut spec = json!({ "mounts": [bind("/dev/shm"), bind("/data")] });
        let mut share = SharePlan::new(&container);
        let resolved = Binds {
            container: &container,
            bundle: Path::new("/"),
            share: &mut share,
            devices: &mut DeviceAllocator::new(Driver::Qemu),
            shm: Some("/run/sandbox/containers/p1/shm"),
            volumes: None,
        }
        .resolve(&mut spec)
        .unwrap();
        assert_eq!(resolved.shm_bytes, tmpfs_bytes(Path::new("/dev/shm")));
        assert_eq!(
            spec["mounts"][0]["source"],
            "/run/sandbox/containers/p1/shm"
        );
        assert_eq!(share.entries().len(), 1);
        assert_eq!(tmpfs_bytes(Path::new("/proc")), None);
    }

    #[test]
    fn binds_get_sources_in_the_guest_and_other_mounts_stay() {
        let proc = json!({"destination": "/proc", "type": "proc", "source": "proc"});
        let mounts = json!([
            proc,
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro", "rslave"]},
            {"destination": "/here", "source": "here", "options": ["bind"]},
        ]);
        let (mounts, files, share) = resolve(Path::new("/bundle"), mounts).unwrap();
        assert!(files.is_empty());
        assert_eq!(mounts[0], proc);
        let guest = "/run/sandbox/containers/c1/shared/c1/mounts";
        assert_eq!(mounts[1]["source"], format!("{guest}/1"));
        assert_eq!(mounts[1]["options"], json!(["rbind", "ro", "rslave"]));
        assert_eq!(mounts[2]["source"], format!("{guest}/2"));
        let wanted = [
            ("/srv", true, true, true),
            ("/bundle/here", false, false, false),
        ];
        assert_eq!(share.entries().len(), wanted.len());
        for (entry, (path, recursive, follows_host, read_only)) in
            share.entries().iter().zip(wanted)
        {
            assert_eq!(
                entry.source(),
                &SharedSource::Path {
                    path: path.into(),
                    recursive,
                    follows_host
                }
            );
            assert_eq!(entry.is_read_only(), read_only);
        }
    }

    #[test]
    fn copied_file_goes_with_its_mode_and_without_a_share() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        std::fs::write(&file, "127.0.0.1 localhost\n").unwrap();
        let mounts = json!([{"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["bind", COPY_OPTION, "ro"]}]);
        let (mounts, files, share) = resolve(Path::new("/bundle"), mounts).unwrap();
        assert!(share.entries().is_empty() && share.guest_mount().is_none());
        assert_eq!(mounts[0]["options"], json!(["bind", "ro"]));
        assert_eq!(mounts[0]["source"], files[0].path);
        assert_eq!(files[0].path, "/run/sandbox/containers/c1/files/0");
        assert_eq!(files[0].content, b"127.0.0.1 localhost\n");
        assert_eq!(
            files[0].mode,
            std::fs::metadata(&file).unwrap().mode() & 0o7777
        );
    }

    #[test]
    fn copy_of_what_is_not_a_small_regular_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let big = File::create(at("big")).unwrap();
        big.set_len(MAX_COPIED_FILE_BYTES + 1).unwrap();
        for name in ["link", "fifo", "socket", "."] {
            let problem = problem(&at(name), &[COPY_OPTION]);
            assert!(
                matches!(problem, BindProblem::NotRegular),
                "{name}: {problem:?}"
            );
        }
        assert!(matches!(
            problem(&at("big"), &[COPY_OPTION]),
            BindProblem::TooLarge
        ));
        assert!(matches!(
            problem(&at("none"), &[COPY_OPTION]),
            BindProblem::Read(_)
        ));
    }

    #[test]
    fn copied_files_are_bounded_together() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join("half");
        let file = File::create(&half).unwrap();
        file.set_len(MAX_COPIED_FILE_BYTES / 2 + 1).unwrap();
        let mount =
            json!({"destination": "/d", "type": "bind", "source": half, "options": [COPY_OPTION]});
        let error = resolve(Path::new("/"), json!([mount, mount]))
            .err()
            .unwrap();
        assert_eq!(error.index, 1);
        assert!(matches!(error.problem, BindProblem::TooLarge));
    }

    #[test]
    fn propagation_out_of_the_guest_is_refused() {
        for option in ["shared", "rshared"] {
            assert!(matches!(
                problem(Path::new("/srv"), &["rbind", option]),
                BindProblem::Shared(_)
            ));
        }
        assert!(matches!(
            problem(Path::new(""), &["rbind"]),
            BindProblem::NoSource
        ));
    }
}
