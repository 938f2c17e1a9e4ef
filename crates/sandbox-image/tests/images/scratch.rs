//! The writable layer: what `mke2fs` makes is valid, small, and survives cloning.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Completion, Failed, Trial};
use sandbox_image::scratch::{clone_template, create_template};

use crate::build::{chain, check};
use crate::{Needs, test};

/// The smallest, and the default.
const SIZES: [u64; 2] = [16 << 20, 8 << 30];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "template_is_valid_sparse_and_clones",
            Needs::Programs(&["mke2fs", "e2fsck"]),
            template,
        ),
        Trial::ignorable_test(
            "clone_shares_blocks_where_the_file_system_can",
            || match Xfs::mount() {
                Err(reason) => Ok(Completion::ignored_with(reason)),
                Ok(xfs) => shared_blocks(&xfs)
                    .map(|()| Completion::Completed)
                    .map_err(Failed::from),
            },
        ),
    ]
}

/// A file system that can share blocks between files (XFS), in a file, mounted until this is dropped.
struct Xfs {
    folder: tempfile::TempDir,
}

impl Xfs {
    /// Or why there is none here.
    fn mount() -> Result<Self, String> {
        let xfs = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let (image, point) = (xfs.folder.path().join("image"), xfs.point());
        // The smallest that mkfs.xfs makes is 300 MiB.
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(512 << 20))
            .unwrap();
        std::fs::create_dir(&point).unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            let output = Command::new(program)
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .args(arguments)
                .output()
                .map_err(|_| format!("{program} is not installed"))?;
            let text = String::from_utf8_lossy(&output.stderr);
            check(
                output.status.success(),
                format!("{program}: {}", text.trim()),
            )
        };
        run("mkfs.xfs", &[Path::new("-q"), &image])?;
        run(
            "mount",
            &[Path::new("-o"), Path::new("loop"), &image, &point],
        )?;
        Ok(xfs)
    }

    fn point(&self) -> PathBuf {
        self.folder.path().join("point")
    }

    fn free_bytes(&self) -> u64 {
        let point = std::fs::File::open(self.point()).unwrap();
        rustix::fs::fsync(&point).unwrap();
        let stat = rustix::fs::statvfs(self.point()).unwrap();
        stat.f_bfree * stat.f_frsize
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        // It is not there where mounting it failed.
        let _ = Command::new("umount").arg(self.point()).output();
    }
}

fn shared_blocks(xfs: &Xfs) -> Result<(), String> {
    const BYTES: u64 = 64 << 20;
    let (template, clone, copy) = (
        xfs.point().join("template"),
        xfs.point().join("clone"),
        xfs.point().join("copy"),
    );
    let content = vec![7; usize::try_from(BYTES).unwrap()];
    let write = |path: &Path| {
        std::fs::write(path, &content).unwrap();
        std::fs::File::open(path)
            .and_then(|file| file.sync_all())
            .unwrap();
    };
    write(&template);
    let before = xfs.free_bytes();
    clone_template(&template, &clone).map_err(|error| chain(&error))?;
    let taken = before.saturating_sub(xfs.free_bytes());
    check(taken < BYTES / 8, format!("a clone took {taken} bytes"))?;
    // The control: a second file of that size takes that much.
    write(&copy);
    let taken = before.saturating_sub(xfs.free_bytes());
    check(taken >= BYTES, format!("a copy took {taken} bytes"))?;
    // Shared, and still each its own.
    std::fs::write(&template, "changed").unwrap();
    check(
        std::fs::read(&clone).unwrap() == content,
        "the clone changed with the template",
    )
}

fn sound(path: &Path) -> Result<(), String> {
    let program = if Path::new("/usr/sbin/e2fsck").exists() {
        "/usr/sbin/e2fsck"
    } else {
        "e2fsck"
    };
    let output = Command::new(program)
        .arg("-fn")
        .arg(path)
        .output()
        .map_err(|error| error.to_string())?;
    check(
        output.status.success(),
        String::from_utf8_lossy(&output.stdout),
    )
}

/// Whether an ext4 file system has a journal (`s_feature_compat`, kernel `Documentation/filesystems/ext4/super.rst`).
fn has_journal(path: &Path) -> bool {
    const FEATURES: u64 = 1024 + 0x5c;
    const HAS_JOURNAL: u32 = 0x4;
    let mut features = [0; 4];
    let file = std::fs::File::open(path).unwrap();
    file.read_exact_at(&mut features, FEATURES).unwrap();
    u32::from_le_bytes(features) & HAS_JOURNAL != 0
}

fn template() -> Result<(), String> {
    SIZES.into_iter().try_for_each(template_of)
}

fn template_of(size: u64) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let (template, clone) = (folder.path().join("template"), folder.path().join("clone"));
    create_template(&template, size).map_err(|error| chain(&error))?;
    clone_template(&template, &clone).map_err(|error| chain(&error))?;
    for path in [&template, &clone] {
        let stat = std::fs::metadata(path).unwrap();
        let allocated = stat.blocks() * 512;
        check(
            stat.len() == size && allocated < 1 << 20,
            format!("{allocated} bytes allocated"),
        )?;
        sound(path)?;
        check(has_journal(path), "no journal")?;
    }
    check(
        std::fs::read_dir(folder.path()).unwrap().count() == 2,
        "leftovers",
    )
}
