//! The mounts of the shared folder.

#![expect(unsafe_code, reason = "mount_setattr(2) has no wrapper")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use sandbox_types::ContainerId;

use super::{ENTRIES, FOLDER, SERVED, SharedEntry, SharedSource, below};
use crate::cleanup::{CleanupError, Record, mounts_below};

/// File systems that are a view of the host's kernel, by their magic numbers (statfs(2)).
const KERNEL_FILE_SYSTEMS: &[(u64, &str)] = &[
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x0000_1cd1, "devpts"),
    (0x1980_0202, "mqueue"),
];

/// hugetlbfs, by its magic number (statfs(2)).
const HUGE_PAGES: u64 = 0x9584_58f6;

/// A part of the host's file system cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
#[error("`{field}`: {} cannot be shared with the sandbox", path.display())]
pub struct ShareError {
    /// The field of the caller's request.
    pub field: String,
    /// What it names.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub problem: ShareProblem,
}

/// Why a part of the host's file system cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareProblem {
    /// A socket, fifo or device.
    #[error(
        "it is a {0}; only folders and regular files can be shared, a virtual machine has no way to the other end of a {0}"
    )]
    Special(&'static str),
    /// A view of the host's kernel.
    #[error(
        "it is on the host's {0} file system, which shows the host's kernel; mount a {0} of the sandbox's own (type \"{0}\") instead"
    )]
    Kernel(&'static str),
    /// The host's huge pages.
    #[error(
        "it is on the host's hugetlbfs file system, whose pages cannot be mapped in a virtual machine; leave it out, or share a folder in memory (tmpfs)"
    )]
    HugePages,
    /// The host's devices.
    #[error("it holds the host's devices; the sandbox has devices of its own")]
    Devices,
    /// The system refused.
    #[error("cannot {action} it")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> ShareProblem {
    move |errno| ShareProblem::System {
        action,
        source: errno.into(),
    }
}

/// The mounted folder of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct ShareMounts {
    folder: PathBuf,
    /// Where entries are mounted. By its path something else would be meant once it is unmounted, and what is added then would be off
    /// record; in this nothing can be mounted any more.
    entries: Arc<OwnedFd>,
}

impl ShareMounts {
    /// Makes the folder, with nothing in it. What is mounted when an error comes back is on record.
    pub(crate) fn make(dir: &Path, record: &mut Record) -> Result<Self, ShareMountError> {
        let folder = dir.join(FOLDER);
        let failed = |source: io::Error| ShareMountError::Folder {
            path: dir.join(FOLDER),
            source,
        };
        fs::create_dir(&folder).map_err(failed)?;
        record.add_mount(&folder)?;
        let entries = mount_folder(&folder).map_err(failed)?;
        Ok(Self {
            folder,
            entries: Arc::new(entries),
        })
    }

    /// Adds entries, also while the guest sees the folder; refused once it has been unmounted. What was added when an error comes back goes
    /// with [`Self::remove`], or with the folder. Takes as long as the file systems of the entries.
    pub(crate) fn add(&self, entries: &[SharedEntry]) -> Result<(), ShareError> {
        entries.iter().try_for_each(|entry| {
            let path = match &entry.source {
                SharedSource::Path { path, .. } => path.clone(),
                SharedSource::Overlay { .. } => PathBuf::from("overlay"),
            };
            add(self.entries.as_fd(), entry).map_err(|problem| ShareError {
                field: entry.field.clone(),
                path,
                problem,
            })
        })
    }

    /// Takes away every entry of a container; having none is no error. What the guest still has open stays open
    /// there, and is seen nowhere else.
    pub(crate) fn remove(&self, container: &ContainerId) -> Result<(), CleanupError> {
        let folder = self.folder.join(ENTRIES);
        for path in self.mounted(container) {
            // Whoever is in it need not be waited for: what is mounted in it goes with it.
            below::parent(self.entries.as_fd(), &path)
                .and_then(|(parent, name)| unmount(&below::path_of(&parent).join(name)))
                .map_err(|source| CleanupError::Mount {
                    path: folder.join(&path),
                    source,
                })?;
        }
        let name = container.as_str();
        below::remove(self.entries.as_fd(), name.as_ref()).map_err(|source| CleanupError::Folder {
            path: folder.join(name),
            source,
        })
    }

    /// Where the entries of a container are mounted, below the folder of entries. What is mounted below them in turn may be in a folder that the
    /// guest writes to, and is not among it.
    fn mounted(&self, container: &ContainerId) -> Vec<PathBuf> {
        // Its own path is the host's alone. What is in it is compared, and not looked up.
        let Ok(folder) = fs::canonicalize(self.folder.join(ENTRIES)) else {
            return Vec::new();
        };
        let mut found: Vec<_> = mounts_below(&folder)
            .iter()
            .filter_map(|path| path.strip_prefix(&folder).ok())
            .filter(|path| path.starts_with(container.as_str()))
            .map(Path::to_owned)
            .collect();
        // What is above another comes before it.
        found.sort();
        found.dedup_by(|path, above| path.starts_with(above));
        found
    }

    /// What virtiofsd is to serve: the entries, in a folder that cannot be written to by it.
    pub(crate) fn served(&self) -> PathBuf {
        self.folder.join(SERVED)
    }
}

/// Mounts what [`super`] describes, with no entry yet, and opens the folder of entries.
fn mount_folder(folder: &Path) -> io::Result<OwnedFd> {
    let none = None::<&str>;
    // What is bound below has it from here. Nobody who follows a path on it is led off it by a link.
    let flags = MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC
        | MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);
    let data = "mode=0711,size=1m,nr_inodes=4k";
    mount(Some("sandbox"), folder, Some("tmpfs"), flags, Some(data))?;
    // Out of the group of whoever shares what it is mounted on: what is mounted in it is seen nowhere else.
    mount(none, folder, none, MsFlags::MS_PRIVATE, none)?;
    let (entries, served) = (folder.join(ENTRIES), folder.join(SERVED));
    fs::create_dir(&entries)?;
    fs::create_dir(&served)?;
    // It holds only mount points. A container's root that is mapped to another user goes through it in the guest;
    // here nobody does, because the folder above is root's alone.
    fs::set_permissions(&entries, fs::Permissions::from_mode(0o711))?;
    mount(Some(&entries), &entries, none, MsFlags::MS_BIND, none)?;
    // A group of its own: that of what is served, here and in the namespace of the virtiofsd that is yet to start.
    mount(none, &entries, none, MsFlags::MS_SHARED, none)?;
    let tree = rustix::mount::open_tree(
        CWD,
        &entries,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let attributes = Attributes {
        read_only: true,
        follows_host: true,
    };
    set_attributes(tree.as_fd(), attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, &served, flags)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(&entries, flags, Mode::empty())?)
}

/// The shared folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShareMountError {
    /// One of its entries.
    #[error(transparent)]
    Entry(#[from] ShareError),
    /// Itself.
    #[error("cannot mount the sandbox's shared folder {}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be recorded.
    #[error(transparent)]
    Record(#[from] CleanupError),
}

fn add(entries: BorrowedFd<'_>, entry: &SharedEntry) -> Result<(), ShareProblem> {
    let place = |is_folder| {
        below::make(entries, &entry.path, is_folder).map_err(|source| ShareProblem::System {
            action: "make a place for",
            source,
        })
    };
    let attributes = Attributes {
        read_only: entry.read_only,
        follows_host: matches!(
            entry.source,
            SharedSource::Path {
                follows_host: true,
                ..
            }
        ),
    };
    match &entry.source {
        SharedSource::Path {
            path, recursive, ..
        } => {
            let tree = clone_tree(path, *recursive)?;
            let is_folder = check_source(path, tree.as_fd())?;
            let place = place(is_folder)?;
            set_attributes(tree.as_fd(), attributes).map_err(|source| ShareProblem::System {
                action: "protect",
                source,
            })?;
            rustix::mount::move_mount(
                tree.as_fd(),
                "",
                place,
                "",
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
            )
            .map_err(system("mount"))
        }
        SharedSource::Overlay { options } => {
            let MountOptions { flags, data } = parse_options(options);
            let place = place(true)?;
            // The options of many layers are longer than fsconfig(2) takes.
            mount(
                Some("overlay"),
                &below::path_of(&place),
                Some("overlay"),
                flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                Some(data.as_str()),
            )
            .map_err(|errno| ShareProblem::System {
                action: "mount",
                source: errno.into(),
            })
        }
    }
}

/// A detached copy of the mounts at and, if asked for, below a path. A symbolic link is followed.
fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, ShareProblem> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags).map_err(system("open"))
}

/// Why nothing on a file system of this magic number can be shared.
fn problem_of(magic: u64) -> Option<ShareProblem> {
    let known = KERNEL_FILE_SYSTEMS.iter();
    let mut known = known.filter(|(number, _)| *number == magic);
    match known.next() {
        Some((_, name)) => Some(ShareProblem::Kernel(name)),
        None => (magic == HUGE_PAGES).then_some(ShareProblem::HugePages),
    }
}

/// Whether the source, already open, is a folder; refuses what cannot be shared.
fn check_source(path: &Path, tree: BorrowedFd<'_>) -> Result<bool, ShareProblem> {
    let stat = rustix::fs::fstat(tree).map_err(system("look at"))?;
    let special = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => None,
        FileType::Socket => Some("socket"),
        FileType::Fifo => Some("fifo"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("device"),
        _ => Some("file of an unknown kind"),
    };
    if let Some(kind) = special {
        return Err(ShareProblem::Special(kind));
    }
    let magic = rustix::fs::fstatfs(tree).map_err(system("look at"))?.f_type;
    if let Some(problem) = problem_of(u64::try_from(magic).unwrap_or_default()) {
        return Err(problem);
    }
    if fs::canonicalize(path).is_ok_and(|path| path == Path::new("/dev")) {
        return Err(ShareProblem::Devices);
    }
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// What is set on every mount of an entry.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    read_only: bool,
    /// What is mounted in the source later appears in it, and nothing the other way.
    follows_host: bool,
}

/// Sets the attributes on a detached tree, whole or not at all (mount_setattr(2)).
fn set_attributes(tree: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let read_only = if attributes.read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    let propagation = if attributes.follows_host {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    let attr = libc::mount_attr {
        attr_set: read_only | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string and the structure has the size that is given; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Options of fstab told apart into flags, and data for the file system.
#[derive(Debug, PartialEq, Eq)]
struct MountOptions {
    flags: MsFlags,
    data: String,
}

/// Flag options, whether they set or clear, as containerd's `core/mount` has them.
fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "atime" => (false, MsFlags::MS_NOATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "defaults" => (true, MsFlags::empty()),
        "dev" => (false, MsFlags::MS_NODEV),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "mand" => (true, MsFlags::MS_MANDLOCK),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "nodev" => (true, MsFlags::MS_NODEV),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "nomand" => (false, MsFlags::MS_MANDLOCK),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "suid" => (false, MsFlags::MS_NOSUID),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        _ => return None,
    })
}

fn parse_options(options: &[String]) -> MountOptions {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match flag(option) {
            Some((true, bits)) => flags |= bits,
            Some((false, bits)) => flags &= !bits,
            None => data.push(option.as_str()),
        }
    }
    MountOptions {
        flags,
        data: data.join(","),
    }
}

/// Undoes every mount at `target`; one that is busy is detached. No mount there is no error.
pub(crate) fn unmount(target: &Path) -> io::Result<bool> {
    let mut undone = false;
    loop {
        let result = match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::Error::EBUSY) => {
                umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            }
            other => other,
        };
        match result {
            Ok(()) => undone = true,
            // Not a mount point (any more), or not there at all.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(undone),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether the options of a mount say that nothing is to be written: the last word counts.
#[must_use]
pub fn is_read_only(options: &[String]) -> bool {
    parse_options(options).flags.contains(MsFlags::MS_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn file_systems_that_mean_nothing_in_a_guest_are_told_by_their_magic() {
        for (magic, name) in [(0x9fa0, "proc"), (0x9584_58f6, "hugetlbfs")] {
            let problem = problem_of(magic).unwrap().to_string();
            assert!(problem.contains(name), "{problem}");
        }
        // tmpfs, ext4.
        for magic in [0x0102_1994, 0xef53] {
            assert!(problem_of(magic).is_none());
        }
    }

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn options_are_told_apart_into_flags_and_data() {
        let parsed = parse_options(&options(&[
            "ro",
            "nosuid",
            "lowerdir=/a:/b",
            "index=off",
            "rbind",
        ]));
        assert_eq!(
            parsed.flags,
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC
        );
        assert_eq!(parsed.data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn options_later_flag_wins() {
        assert!(parse_options(&options(&["ro", "rw"])).flags.is_empty());
        assert_eq!(
            parse_options(&options(&["rw", "ro"])).flags,
            MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn unmount_of_what_is_not_mounted_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        // Without privilege the kernel says EPERM before it looks.
        match unmount(&gone) {
            Ok(undone) => assert!(!undone),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    /// None without privilege, as nothing can be mounted then.
    fn make(dir: &Path) -> Option<ShareMounts> {
        match ShareMounts::make(dir, &mut Record::new(dir)) {
            Ok(mounts) => Some(mounts),
            Err(ShareMountError::Folder { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn entry(path: &str, source: &Path) -> SharedEntry {
        SharedEntry {
            path: path.into(),
            field: "mounts[0].source".to_owned(),
            source: SharedSource::Path {
                path: source.to_owned(),
                recursive: true,
                follows_host: false,
            },
            read_only: false,
        }
    }

    fn mounted_tmpfs(at: &Path) {
        fs::create_dir_all(at).unwrap();
        let none = None::<&str>;
        mount(Some("test"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    }

    fn action(error: &ShareError) -> &'static str {
        match error.problem {
            ShareProblem::System { action, .. } => action,
            _ => "",
        }
    }

    #[test]
    fn shared_folder_that_was_unmounted_takes_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let Some(mounts) = make(dir.path()) else {
            return;
        };
        let container = ContainerId::new("c1").unwrap();
        let entries = [entry("c1/mounts/0", source.path())];
        mounts.add(&entries).unwrap();
        fs::write(source.path().join("f"), "").unwrap();
        for seen in [mounts.served(), mounts.folder.join(ENTRIES)] {
            assert!(seen.join("c1/mounts/0/f").exists(), "{}", seen.display());
        }
        mounts.remove(&container).unwrap();
        assert!(!mounts.served().join("c1").exists());
        mounts.add(&entries).unwrap();
        assert!(unmount(&mounts.folder).unwrap());
        assert_eq!(mounts_below(dir.path()), Vec::<PathBuf>::new());
        mounts.remove(&container).unwrap();
        let error = mounts.add(&entries).unwrap_err();
        assert_eq!(action(&error), "mount", "{error}");
        assert!(!mounts.served().join("c1").exists());
        assert!(source.path().join("f").exists());
    }

    #[test]
    fn served_folder_is_read_only_and_its_entries_are_what_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        mounted_tmpfs(&source.path().join("inner"));
        let Some(mounts) = make(dir.path()) else {
            return;
        };
        let read_only = SharedEntry {
            read_only: true,
            ..entry("c1/mounts/1", source.path())
        };
        let entries = [entry("c1/mounts/0", source.path()), read_only];
        mounts.add(&entries).unwrap();
        let served = mounts.served();
        let mode = fs::metadata(&served).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o711);
        for made in ["new", "c1/new", "c1/mounts/new", "c1/mounts/1/new"] {
            let error = fs::create_dir(served.join(made)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{made}");
        }
        let moved = fs::rename(served.join("c1"), served.join("c2")).unwrap_err();
        assert_eq!(moved.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let linked = std::os::unix::fs::symlink("/", served.join("link")).unwrap_err();
        assert_eq!(linked.kind(), io::ErrorKind::ReadOnlyFilesystem);
        fs::write(served.join("c1/mounts/0/new"), "").unwrap();
        fs::write(served.join("c1/mounts/0/inner/new"), "").unwrap();
        assert!(source.path().join("inner/new").exists());
        // Both go with one of them in use.
        let busy = fs::File::open(served.join("c1/mounts/0/inner/new")).unwrap();
        mounts.remove(&ContainerId::new("c1").unwrap()).unwrap();
        assert!(!served.join("c1").exists());
        drop(busy);
        assert!(source.path().join("inner/new").exists());
        assert!(unmount(&mounts.folder).unwrap());
        assert!(unmount(&source.path().join("inner")).unwrap());
    }

    #[test]
    fn link_in_place_of_a_container_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let Some(mounts) = make(dir.path()) else {
            return;
        };
        fs::write(source.path().join("f"), "").unwrap();
        mounts.add(&[entry("c1/root", source.path())]).unwrap();
        let folder = mounts.folder.join(ENTRIES);
        fs::rename(folder.join("c1"), folder.join("away")).unwrap();
        for path in ["root", "mounts/0"] {
            mounted_tmpfs(&other.path().join(path));
        }
        fs::write(other.path().join("root/kept"), "").unwrap();
        std::os::unix::fs::symlink(other.path(), folder.join("c1")).unwrap();
        let before = mounts_below(other.path());
        for path in ["c1/root", "c1/mounts/1"] {
            let error = mounts.add(&[entry(path, source.path())]).unwrap_err();
            assert_eq!(action(&error), "make a place for", "{error}");
        }
        let overlay = SharedEntry {
            source: SharedSource::Overlay {
                options: vec![format!(
                    "lowerdir={}:{}",
                    source.path().display(),
                    dir.path().display()
                )],
            },
            ..entry("c1/root", source.path())
        };
        let error = mounts.add(&[overlay]).unwrap_err();
        assert_eq!(action(&error), "make a place for", "{error}");
        mounts.remove(&ContainerId::new("c1").unwrap()).unwrap();
        assert_eq!(mounts_below(other.path()), before);
        assert!(other.path().join("root/kept").exists());
        assert!(!other.path().join("mounts/1").exists());
        assert!(!folder.join("c1").is_symlink());
        // What it was goes with the folder.
        assert!(unmount(&mounts.folder).unwrap());
        for path in before {
            assert!(unmount(&path).unwrap());
        }
    }

    proptest! {
        #[test]
        fn options_that_are_no_flag_are_all_data(list in prop::collection::vec("[a-z]{1,6}=[a-z/]{0,6}", 0..6)) {
            let parsed = parse_options(&list);
            prop_assert!(parsed.flags.is_empty());
            prop_assert_eq!(parsed.data, list.join(","));
        }
    }
}
