//! Volumes in memory: Kubernetes' `emptyDir` with `medium: Memory`.
//!
//! kubelet mounts a tmpfs of the host for each, and the engine hands it over as a bind mount. Were it shared, what is written there would be
//! memory of the host's, for which no limit in the guest holds. The guest gets a tmpfs of its own instead, with the host's size,
//! mode and owner; it is the pod's, so that a container that comes again finds what was there.
//!
//! | source of a bind mount | what becomes of it |
//! | --- | --- |
//! | `…/kubernetes.io~empty-dir/NAME`, a tmpfs with nothing in it when the first container has it | a tmpfs of the guest, for all containers of the pod |
//! | the same with something in it: it is somebody's on the host | shared, with all containers of the pod |
//! | `…/volume-subpaths/…`, where a part of a tmpfs is mounted that the guest has instead (`subPath`) | that part of the guest's; made if it is not there |

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use sandbox_protocol::GUEST_RUN_DIR;
use sandbox_protocol::agent::{Mount, Part};
use sandbox_protocol::limits::MAX_LASTING_MOUNTS;
use sandbox_runtime::cleanup::mount_root;

use super::binds::tmpfs_bytes;

/// The folder in which kubelet has a pod's volumes of the kind, by their names (kubernetes `pkg/volume/emptydir`).
const KIND: &str = "kubernetes.io~empty-dir";
/// The folder below which kubelet mounts what a `subPath` names (kubernetes `pkg/volume/util/subpath`).
const SUB_PATHS: &str = "volume-subpaths";

/// The volumes of a pod that are, or could have been, its guest's.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryVolumes {
    known: Vec<Volume>,
}

/// What was decided of one when the first container had it.
#[derive(Debug, Clone)]
struct Volume {
    /// Its place on the host.
    source: PathBuf,
    /// How the guest gets it; `None` when it is shared.
    step: Option<Mount>,
}

/// What a bind mount of such a volume becomes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InGuest {
    /// The step that makes the volume, if it is not there.
    pub(crate) volume: Mount,
    /// Of a part of it: which.
    pub(crate) part: Option<Part>,
}

impl MemoryVolumes {
    /// What of the guest's takes the place of a bind mount's source on the host, if that is such a volume.
    pub(crate) fn find(&mut self, source: &Path) -> Option<InGuest> {
        if is_of_kind(source) {
            let volume = self.whole(source)?;
            return Some(InGuest { volume, part: None });
        }
        let mut components = source.components();
        if !components.any(|name| name == Component::Normal(SUB_PATHS.as_ref())) {
            return None;
        }
        let folder = source.metadata().ok()?;
        let volume = self.volume_on(folder.dev())?;
        let path = mount_root(source)?;
        let path = path.strip_prefix("/").ok()?.to_str()?.to_owned();
        let part = Part {
            path,
            mode: folder.mode() & 0o7777,
            uid: folder.uid(),
            gid: folder.gid(),
            ..Default::default()
        };
        Some(InGuest {
            volume,
            part: Some(part),
        })
    }

    /// The step for a volume as a whole.
    fn whole(&mut self, source: &Path) -> Option<Mount> {
        let known = self.known.iter().find(|volume| volume.source == source);
        if let Some(volume) = known {
            return volume.step.clone();
        }
        let (folder, bytes) = mounted_tmpfs(source)?;
        let step = (self.known.len() < MAX_LASTING_MOUNTS && is_empty(source))
            .then(|| step(self.known.len(), &folder, bytes));
        self.known.push(Volume {
            source: source.to_owned(),
            step: step.clone(),
        });
        step
    }

    /// The step for the guest's volume whose tmpfs on the host has this number.
    fn volume_on(&self, device: u64) -> Option<Mount> {
        let mut volumes = self.known.iter();
        let of_guest = volumes.find(|volume| {
            let now = volume.source.metadata();
            volume.step.is_some() && now.is_ok_and(|folder| folder.dev() == device)
        });
        of_guest.and_then(|volume| volume.step.clone())
    }
}

fn is_of_kind(source: &Path) -> bool {
    source.parent().and_then(Path::file_name) == Some(KIND.as_ref())
}

/// The folder and the size of a tmpfs that is mounted exactly there.
fn mounted_tmpfs(source: &Path) -> Option<(Metadata, u64)> {
    let folder = source.metadata().ok()?;
    let above = source.parent()?.metadata().ok()?;
    if folder.dev() == above.dev() {
        return None;
    }
    Some((folder, tmpfs_bytes(source)?))
}

fn is_empty(source: &Path) -> bool {
    source
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_none())
}

/// Has the agent make the pod's volume of that number.
fn step(number: usize, folder: &Metadata, bytes: u64) -> Mount {
    let mut step = Mount {
        fstype: "tmpfs".to_owned(),
        // Of zero bytes is one without a limit, here as there (kernel `Documentation/filesystems/tmpfs.rst`).
        options: vec![
            format!("size={bytes}"),
            format!("mode={:o}", folder.mode() & 0o7777),
            format!("uid={}", folder.uid()),
            format!("gid={}", folder.gid()),
        ],
        target: format!("{GUEST_RUN_DIR}/volumes/{number}"),
        ..Default::default()
    };
    step.set_literal("tmpfs".to_owned());
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::binds::{BindError, BindProblem, Binds};
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use sandbox_runtime::Driver;
    use sandbox_runtime::rootfs::DeviceAllocator;
    use sandbox_runtime::share::SharePlan;
    use sandbox_types::ContainerId;
    use serde_json::{Value, json};
    use std::fs;

    /// A pod's folder as kubelet has it.
    struct Kubelet {
        folder: tempfile::TempDir,
        mounted: Vec<PathBuf>,
    }

    impl Kubelet {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                mounted: Vec::new(),
            }
        }

        fn place(&mut self, path: &str) -> PathBuf {
            let path = self.folder.path().join(path);
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn volume(&mut self, name: &str, options: &str) -> PathBuf {
            let path = self.place(&format!("volumes/{KIND}/{name}"));
            let kind = Some("tmpfs");
            mount(kind, &path, kind, MsFlags::empty(), Some(options)).unwrap();
            self.mounted.push(path.clone());
            path
        }

        fn sub_path(&mut self, volume: &Path, name: &str) -> PathBuf {
            let part = volume.join(name);
            fs::create_dir_all(&part).unwrap();
            let number = self.mounted.len();
            let path = self.place(&format!("{SUB_PATHS}/volume/container/{number}"));
            let none = None::<&str>;
            mount(Some(&part), &path, none, MsFlags::MS_BIND, none).unwrap();
            self.mounted.push(path.clone());
            path
        }
    }

    impl Drop for Kubelet {
        fn drop(&mut self) {
            for path in self.mounted.iter().rev() {
                umount2(path, MntFlags::MNT_DETACH).unwrap();
            }
        }
    }

    #[test]
    fn empty_tmpfs_of_kubelets_is_the_guests_with_its_size_mode_and_owner() {
        let mut kubelet = Kubelet::new();
        let source = kubelet.volume("cache", "size=8m,mode=2770,uid=5,gid=6");
        let other = kubelet.volume("other", "size=0");
        let mut volumes = MemoryVolumes::default();
        let found = volumes.find(&source).unwrap();
        assert_eq!(found.part, None);
        assert_eq!(found.volume.target, "/run/sandbox/volumes/0");
        assert_eq!(
            found.volume.options,
            ["size=8388608", "mode=2770", "uid=5", "gid=6"]
        );
        // What the host puts there later changes nothing.
        fs::write(source.join("file"), "").unwrap();
        assert_eq!(volumes.find(&source), Some(found));
        let other = volumes.find(&other).unwrap().volume;
        assert_eq!(other.target, "/run/sandbox/volumes/1");
        assert_eq!(other.options[0], "size=0");
    }

    #[test]
    fn what_is_somebodys_on_the_host_stays_shared() {
        let mut kubelet = Kubelet::new();
        let used = kubelet.volume("used", "");
        fs::write(used.join("file"), "").unwrap();
        let part = kubelet.sub_path(&used, "part");
        let disk = kubelet.place(&format!("volumes/{KIND}/disk"));
        let below = kubelet.volume("below", "");
        let below = below.join(KIND).join("folder");
        fs::create_dir_all(&below).unwrap();
        let secret = kubelet.place("volumes/kubernetes.io~secret/s");
        let mut volumes = MemoryVolumes::default();
        for source in [&used, &part, &disk, &below, &secret] {
            assert_eq!(volumes.find(source), None, "{}", source.display());
        }
        // Also for those that come when nothing is there any more.
        fs::remove_file(used.join("file")).unwrap();
        fs::remove_dir(used.join("part")).unwrap();
        assert_eq!(volumes.find(&used), None);
    }

    #[test]
    fn sub_path_is_a_part_of_the_volume_that_the_guest_has() {
        let mut kubelet = Kubelet::new();
        let source = kubelet.volume("cache", "mode=2777,gid=7");
        let mut volumes = MemoryVolumes::default();
        let whole = volumes.find(&source).unwrap().volume;
        let path = kubelet.sub_path(&source, "a b/c");
        let found = volumes.find(&path).unwrap();
        assert_eq!(found.volume, whole);
        let part = found.part.unwrap();
        assert_eq!((part.path.as_str(), part.gid), ("a b/c", 7));
        assert_eq!(
            part.mode,
            fs::metadata(source.join("a b/c")).unwrap().mode() & 0o7777
        );
        // One of another tmpfs, which is shared.
        let other = kubelet.volume("other", "");
        let path = kubelet.sub_path(&other, "a");
        assert_eq!(volumes.find(&path), None);
    }

    #[test]
    fn mounts_name_the_guests_volume_and_its_parts() {
        let mut kubelet = Kubelet::new();
        let source = kubelet.volume("shm", "");
        let bind = |source: &Path, options: &[&str]| json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": options});
        let container = ContainerId::new("c1").unwrap();
        let mut volumes = MemoryVolumes::default();
        let mut resolve = |mounts: &[Value]| {
            let mut share = SharePlan::new(&container);
            let mut spec = json!({ "mounts": mounts });
            let resolved = Binds {
                container: &container,
                bundle: Path::new("/"),
                share: &mut share,
                devices: &mut DeviceAllocator::new(Driver::Qemu),
                shm: Some("/run/sandbox/containers/p1/shm"),
                volumes: Some(&mut volumes),
            }
            .resolve(&mut spec)?;
            assert!(share.entries().is_empty());
            Ok::<_, BindError>((spec, resolved))
        };
        let mut out = bind(&source, &["rbind", "rshared"]);
        out["destination"] = "/out".into();
        let error = resolve(&[out]).err();
        assert!(matches!(error.unwrap().problem, BindProblem::Shared(_)));
        // Not the pod's shared memory, although it is mounted there.
        let (spec, resolved) = resolve(&[bind(&source, &["rbind", "ro"])]).unwrap();
        let volume = "/run/sandbox/volumes/0";
        assert_eq!(
            spec["mounts"],
            json!([bind(Path::new(volume), &["rbind", "ro"])])
        );
        assert_eq!(resolved.lasting[0].target, volume);
        assert_eq!(resolved.shm_bytes, None);
        assert!(resolved.parts.is_empty());

        let part = kubelet.sub_path(&source, "a");
        let (spec, resolved) = resolve(&[bind(&source, &[]), bind(&part, &[])]).unwrap();
        let place = "/run/sandbox/containers/c1/volumes/1";
        assert_eq!(spec["mounts"][1]["source"], place);
        let step = &resolved.parts[0];
        assert_eq!((step.literal(), step.target.as_str()), (volume, place));
        assert_eq!(step.part.path, "a");
    }

    #[test]
    fn volumes_of_a_pod_are_bounded() {
        let mut kubelet = Kubelet::new();
        let mut volumes = MemoryVolumes::default();
        let known = |number| Volume {
            source: PathBuf::from(format!("/{number}")),
            step: None,
        };
        volumes.known = (0..MAX_LASTING_MOUNTS).map(known).collect();
        let source = kubelet.volume("one-too-many", "");
        assert_eq!(volumes.find(&source), None);
    }
}
