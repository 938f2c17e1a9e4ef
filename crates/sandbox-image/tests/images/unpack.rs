//! What is kept of a layer, seen in the unpacked folder and in the EROFS image.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use sandbox_image::layer::unpack;
use sandbox_image::{LayerError, Limits};
use tar::EntryType;
use tempfile::TempDir;

use crate::build::{Entry, LayerBytes, Layout, check, new_store, tar};
use crate::{Needs, test};

pub(crate) fn unpacked(entries: &[Entry]) -> Result<TempDir, LayerError> {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tar(entries);
    unpack(&mut bytes.as_slice(), folder.path(), &Limits::default())?;
    Ok(folder)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "metadata_of_every_kind_of_entry_is_kept",
            Needs::Root,
            metadata_is_kept,
        ),
        test(
            "whiteouts_become_what_overlayfs_reads",
            Needs::Root,
            whiteouts,
        ),
        test(
            "whiteout_and_entry_of_one_layer_keep_the_entry",
            Needs::Root,
            whiteout_with_entry,
        ),
        test("duplicate_names_last_wins", Needs::Root, duplicates),
        test("hard_links_share_an_inode", Needs::Root, hard_links),
        test("long_names_gnu_and_pax_are_kept", Needs::Root, long_names),
        test(
            "symlinked_parent_is_followed_within_the_layer",
            Needs::Root,
            symlinked_parent,
        ),
        test(
            "missing_parents_get_known_modes",
            Needs::Root,
            missing_parents,
        ),
        test("gnu_sparse_file_has_its_holes_filled", Needs::Root, sparse),
        test(
            "erofs_image_mounts_and_overlays_with_everything_kept",
            Needs::RootAnd(&["mkfs.erofs", "mount"]),
            erofs_image,
        ),
    ]
}

fn rich() -> Vec<Entry> {
    // A version 2 capability: cap_net_raw, effective.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    vec![
        Entry {
            mode: 0o750,
            mtime: 5,
            ..Entry::folder("dir/")
        },
        Entry {
            mode: 0o4755,
            owner: (1000, 3_000_000_000),
            ..Entry::file("dir/setuid", "x")
        }
        .pax("mtime", b"1234567890.123456789")
        .pax("SCHILY.xattr.security.capability", &capability)
        .pax("SCHILY.xattr.user.note", b"hello")
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .pax("SCHILY.xattr.security.selinux", b"label"),
        Entry {
            owner: (7, 8),
            ..Entry::symlink("dir/link", "/etc/../passwd")
        },
        Entry {
            device: (1, 3),
            mode: 0o666,
            ..Entry::new(EntryType::Char, "null")
        },
        Entry {
            device: (8, 1),
            ..Entry::new(EntryType::Block, "sda1")
        },
        Entry {
            // Five seconds before 1970, as tar(1) writes it.
            mtime: (-5_i64).cast_unsigned(),
            ..Entry::new(EntryType::Fifo, "pipe")
        },
        Entry::link("dir/again", "dir/setuid"),
        Entry {
            mode: 0o1777,
            ..Entry::folder("./")
        },
    ]
}

fn check_rich(root: &Path) -> Result<(), String> {
    let stat = |name: &str| {
        std::fs::symlink_metadata(root.join(name)).map_err(|error| format!("{name}: {error}"))
    };
    let dir = stat("dir")?;
    check(
        dir.mode() & 0o7777 == 0o750 && dir.mtime() == 5,
        "folder's mode and time",
    )?;
    let old = stat("pipe")?.mtime();
    check(old == 0, format!("a time before 1970 is {old}"))?;
    let file = stat("dir/setuid")?;
    check(file.mode() & 0o7777 == 0o4755, "setuid")?;
    check((file.uid(), file.gid()) == (1000, 3_000_000_000), "owner")?;
    check(
        (file.mtime(), file.mtime_nsec()) == (1_234_567_890, 123_456_789),
        "time",
    )?;
    check(
        file.nlink() == 2 && stat("dir/again")?.ino() == file.ino(),
        "hard link",
    )?;
    let path = root.join("dir/setuid");
    check(
        xattr(&path, "security.capability").is_some_and(|value| value.len() == 20),
        "capability",
    )?;
    check(
        xattr(&path, "user.note").as_deref() == Some(b"hello"),
        "user attribute",
    )?;
    check(
        xattr(&path, "trusted.overlay.redirect").is_none(),
        "overlay attribute came through",
    )?;
    check(
        xattr(&path, "security.selinux").is_none(),
        "label came through",
    )?;
    let link = stat("dir/link")?;
    check(
        (link.uid(), link.gid()) == (7, 8) && link.mtime() == 1_000_000_000,
        "link's owner and time",
    )?;
    let target = std::fs::read_link(root.join("dir/link")).map_err(|error| error.to_string())?;
    check(target == Path::new("/etc/../passwd"), "link's target")?;
    let null = stat("null")?;
    check(
        null.file_type().is_char_device() && null.rdev() == 0x103,
        "character device",
    )?;
    check(null.permissions().mode() & 0o777 == 0o666, "device's mode")?;
    let disk = stat("sda1")?;
    check(
        disk.file_type().is_block_device() && disk.rdev() == 0x801,
        "block device",
    )?;
    check(stat("pipe")?.file_type().is_fifo(), "fifo")?;
    check(stat("")?.mode() & 0o7777 == 0o1777, "root's mode")
}

fn metadata_is_kept() -> Result<(), String> {
    let folder = unpacked(&rich()).map_err(|error| error.to_string())?;
    check_rich(folder.path())
}

fn whiteouts() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::folder("a"),
        Entry::file("a/.wh..wh..opq", ""),
        Entry::file("a/.wh.gone", ""),
        Entry::file(".wh.b", ""),
        Entry::file("new/.wh..wh..opq", ""),
        Entry::file(".wh..wh.plnk", ""),
    ])
    .map_err(|error| error.to_string())?;
    let root = folder.path();
    check(
        xattr(&root.join("a"), "trusted.overlay.opaque").as_deref() == Some(b"y"),
        "opaque",
    )?;
    check(
        xattr(&root.join("new"), "trusted.overlay.opaque").as_deref() == Some(b"y"),
        "opaque without entry",
    )?;
    check(
        is_whiteout(&root.join("a/gone")) && is_whiteout(&root.join("b")),
        "whiteout",
    )?;
    check(
        std::fs::read_dir(root).unwrap().count() == 3,
        "an aufs note came through",
    )
}

fn whiteout_with_entry() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::file("kept", "1"),
        Entry::file(".wh.kept", ""),
        Entry::file(".wh.dir", ""),
        Entry::folder("dir"),
        Entry::file("dir/x", "2"),
        Entry::folder("dir2"),
        Entry::file(".wh.dir2", ""),
        Entry::file(".wh.dir3", ""),
        Entry::file("dir3/x", "3"),
        Entry::file(".wh.file", ""),
        Entry::file("file", "4"),
    ])
    .map_err(|error| error.to_string())?;
    let root = folder.path();
    for (name, content) in [
        ("kept", "1"),
        ("dir/x", "2"),
        ("dir3/x", "3"),
        ("file", "4"),
    ] {
        check(
            std::fs::read(root.join(name)).is_ok_and(|data| data == content.as_bytes()),
            name,
        )?;
    }
    for name in ["dir", "dir2", "dir3"] {
        check(
            xattr(&root.join(name), "trusted.overlay.opaque").is_some(),
            format!("{name} hides nothing"),
        )?;
    }
    Ok(())
}

fn duplicates() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::file("a", "first"),
        Entry::link("b", "a"),
        Entry::file("a", "second"),
        Entry::folder("d/e/f"),
        Entry::file("d", "file instead of folder"),
        Entry::symlink("s", "b"),
        Entry::folder("s"),
        Entry::file("s/in", "x"),
    ])
    .map_err(|error| error.to_string())?;
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    check(
        read("a") == "second" && read("b") == "first",
        "replaced file changed its other name",
    )?;
    check(read("d").starts_with("file"), "file instead of folder")?;
    check(read("s/in") == "x", "folder instead of link")
}

fn hard_links() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::folder("bin"),
        Entry::file("bin/busybox", "x"),
        Entry::link("bin/sh", "/bin/busybox"),
        Entry::symlink("usr", "bin"),
        Entry::link("ls", "./usr/busybox"),
        Entry::link("bin/busybox", "bin/busybox"),
        Entry::symlink("l", "/etc/passwd"),
        Entry::link("l2", "l"),
    ])
    .map_err(|error| error.to_string())?;
    let metadata = |name: &str| std::fs::symlink_metadata(folder.path().join(name)).unwrap();
    check(metadata("bin/busybox").nlink() == 3, "count of names")?;
    check(
        metadata("ls").ino() == metadata("bin/sh").ino(),
        "one inode",
    )?;
    check(metadata("l2").is_symlink(), "link to a link")
}

fn long_names() -> Result<(), String> {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let folder = unpacked(&[
        Entry::file(&long, "gnu"),
        Entry::file("short", "pax").pax("path", format!("{}/pax", "p".repeat(180)).as_bytes()),
        Entry::symlink("link", &"t/".repeat(300)),
    ])
    .map_err(|error| error.to_string())?;
    let root = folder.path();
    check(root.join(&long).is_file(), "GNU name")?;
    check(
        root.join(format!("{}/pax", "p".repeat(180))).is_file(),
        "PAX name",
    )?;
    check(!root.join("short").exists(), "the name that PAX replaces")?;
    let target = std::fs::read_link(root.join("link")).unwrap();
    check(target.as_os_str().len() == 600, "GNU link target")
}

fn symlinked_parent() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::folder("usr/lib"),
        Entry::symlink("lib", "/usr/lib"),
        Entry::file("lib/a", "x"),
        Entry::symlink("up", "../../../../usr"),
        Entry::file("up/lib/b", "x"),
        Entry::symlink("dangling", "/var/new"),
        Entry::file("dangling/c", "x"),
    ])
    .map_err(|error| error.to_string())?;
    for name in ["usr/lib/a", "usr/lib/b", "var/new/c"] {
        let stat = std::fs::symlink_metadata(folder.path().join(name));
        check(stat.is_ok_and(|stat| stat.is_file()), name)?;
    }
    Ok(())
}

fn missing_parents() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::file("tmp/x", ""),
        Entry::file("root/x", ""),
        Entry::file("a/b/x", ""),
    ])
    .map_err(|error| error.to_string())?;
    for (name, mode) in [
        ("tmp", 0o1777),
        ("root", 0o700),
        ("a", 0o755),
        ("a/b", 0o755),
    ] {
        let stat = std::fs::metadata(folder.path().join(name)).unwrap();
        check(
            stat.mode() & 0o7777 == mode && stat.mtime() == 0,
            format!("{name}: {:o}", stat.mode()),
        )?;
    }
    Ok(())
}

fn sparse() -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
    let output = Command::new("tar")
        .args(["--format=gnu", "--sparse", "-cf", "-", "sparse"])
        .current_dir(folder.path())
        .output()
        .map_err(|error| format!("tar: {error}"))?;
    check(
        output.status.success() && output.stdout.len() < 1 << 20,
        "tar made no sparse archive",
    )?;
    let to = tempfile::tempdir().unwrap();
    unpack(&mut output.stdout.as_slice(), to.path(), &Limits::default())
        .map_err(|error| error.to_string())?;
    let data = std::fs::read(to.path().join("sparse")).unwrap();
    check(
        data.len() == 3 << 20 && &data[1 << 20..][..4] == b"data",
        "contents",
    )
}

/// A mount that ends with the value.
struct Mount(TempDir);

impl Mount {
    fn new(arguments: &[&str]) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(arguments)
            .arg(folder.path())
            .output()
            .map_err(|error| error.to_string())?;
        check(
            output.status.success(),
            String::from_utf8_lossy(&output.stderr),
        )?;
        Ok(Self(folder))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn erofs_image() -> Result<(), String> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let (_folder, store) = new_store();
    let lower = LayerBytes::plain(&[
        Entry::file("gone", "1"),
        Entry::folder("opaque"),
        Entry::file("opaque/old", "2"),
        Entry::file("stays", "3"),
    ]);
    let mut upper = rich();
    upper.extend([
        Entry::file(".wh.gone", ""),
        Entry::folder("opaque"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "4"),
    ]);
    let layout = Layout::of(&[lower, LayerBytes::plain(&upper)], "latest");
    let name = "demo".parse().unwrap();
    let image = store
        .import(layout.path(), Some(&name))
        .map_err(|error| crate::build::chain(&error))?
        .image;
    check(image.layers.len() == 2, "layers")?;
    for layer in &image.layers {
        let fsck = Command::new("fsck.erofs")
            .arg(&layer.erofs_path)
            .output()
            .map_err(|error| error.to_string())?;
        check(fsck.status.success(), "fsck.erofs")?;
    }
    if !filesystems.contains("erofs") {
        return Ok(());
    }
    let mounts: Vec<Mount> = image
        .layers
        .iter()
        .map(|layer| {
            Mount::new(&[
                "-t",
                "erofs",
                "-o",
                "loop,ro",
                &layer.erofs_path.display().to_string(),
            ])
        })
        .collect::<Result<_, _>>()?;
    check_rich(mounts[1].0.path())?;
    let options = format!(
        "lowerdir={}:{}",
        mounts[1].0.path().display(),
        mounts[0].0.path().display()
    );
    let merged = Mount::new(&["-t", "overlay", "-o", &options, "overlay"])?;
    let root = merged.0.path();
    check(!root.join("gone").exists(), "whiteout hides nothing")?;
    check(
        root.join("stays").exists() && root.join("opaque/new").exists(),
        "files of both layers",
    )?;
    check(
        !root.join("opaque/old").exists(),
        "opaque folder hides nothing",
    )
}
