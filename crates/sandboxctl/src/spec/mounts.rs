//! Everything that is mounted in the container: docker's mounts, small files that `sandboxctl` writes, and what the
//! options ask for.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::Mount;
use rustix::fs::OFlags;
use sandbox_protocol::extensions::FILL_OPTION;

use super::{Request, SpecError, defaults, files};
use crate::cli::ContainerOptions;
use crate::values::mounts::{
    self, Bind, Block, DiskFileSystem, MountError, Source, Submounts, Tmpfs,
};
use crate::values::namespaces::Ipc;
use crate::volume::Volumes;

/// docker's mounts, then the small files and what the options ask for, in the order of their depth, so that none hides
/// another: `-v DIR:/etc` comes before `/etc/hosts` (docker's order). What the options put at the same place replaces any of the
/// others.
pub(super) fn mounts(request: &Request<'_>) -> Result<Vec<Mount>, SpecError> {
    let options = request.options;
    let mut mounts = defaults::mounts(options.shm_size, options.privileged)?;
    if options.ipc == Some(Ipc::None) {
        mounts.retain(|mount| mount.destination() != Path::new("/dev/shm"));
    }
    let mut later = files::mounts(request)?;
    let asked = asked(request)?;
    let kept = |mount: &Mount| {
        let mut places = asked.iter().map(Mount::destination);
        places.all(|place| place != mount.destination())
    };
    mounts.retain(kept);
    later.retain(kept);
    later.extend(asked);
    later.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(later);
    Ok(mounts)
}

/// What the options ask for; no two at one place.
fn asked(request: &Request<'_>) -> Result<Vec<Mount>, SpecError> {
    let options = request.options;
    let mut found = Vec::new();
    for bind in binds(options) {
        found.push(bind_mount(bind, request.volumes)?);
    }
    for disk in disks(options) {
        found.push(disk_mount(disk)?);
    }
    for tmpfs in tmpfs(options) {
        let words: Vec<&str> = tmpfs.options.iter().map(String::as_str).collect();
        found.push(defaults::mount(&tmpfs.target, "tmpfs", "tmpfs", &words)?);
    }
    let mut places = HashSet::new();
    for mount in &found {
        if !places.insert(mount.destination()) {
            return Err(SpecError::Mount(MountError::Twice {
                path: mount.destination().display().to_string(),
            }));
        }
    }
    Ok(found)
}

/// Adds a volume without a name for each place that the image keeps data at, unless the options put something there (docker).
pub(crate) fn add_image_volumes(
    options: &mut ContainerOptions,
    image: &ImageConfig,
) -> Result<(), SpecError> {
    for path in image.volumes().iter().flatten() {
        let place = mounts::target(path).map_err(SpecError::ImageVolume)?;
        let taken = binds(options).any(|bind| bind.target == place)
            || disks(options).any(|disk| disk.target == place)
            || tmpfs(options).any(|tmpfs| tmpfs.target == place);
        if !taken {
            let bind = Bind::anonymous(&place).map_err(SpecError::Mount)?;
            options.volume.push(bind);
        }
    }
    Ok(())
}

/// The binds and volumes of `-v` and `--mount`.
pub(crate) fn binds(options: &ContainerOptions) -> impl Iterator<Item = &Bind> {
    let long = options.mount.iter().filter_map(|mount| match mount {
        mounts::Mount::Bind(bind) => Some(bind),
        mounts::Mount::Tmpfs(_) | mounts::Mount::Block(_) => None,
    });
    options.volume.iter().chain(long)
}

/// The file systems in memory of `--tmpfs` and `--mount`.
pub(crate) fn tmpfs(options: &ContainerOptions) -> impl Iterator<Item = &Tmpfs> {
    let long = options.mount.iter().filter_map(|mount| match mount {
        mounts::Mount::Tmpfs(tmpfs) => Some(tmpfs),
        mounts::Mount::Bind(_) | mounts::Mount::Block(_) => None,
    });
    options.tmpfs.iter().chain(long)
}

/// The disks of `--mount`.
fn disks(options: &ContainerOptions) -> impl Iterator<Item = &Block> {
    options.mount.iter().filter_map(|mount| match mount {
        mounts::Mount::Block(block) => Some(block),
        mounts::Mount::Bind(_) | mounts::Mount::Tmpfs(_) => None,
    })
}

/// A path as the specification has it.
fn text_of(path: &Path) -> Result<&str, SpecError> {
    let wrong = || MountError::Source {
        path: path.display().to_string(),
    };
    path.to_str().ok_or_else(wrong).map_err(SpecError::Mount)
}

fn disk_mount(disk: &Block) -> Result<Mount, SpecError> {
    let source = text_of(&disk.source)?;
    let fstype = match disk.fstype {
        Some(fstype) => fstype,
        None => file_system_of(&disk.source)?,
    };
    let access = if disk.read_only { "ro" } else { "rw" };
    let options = [access, "rprivate"];
    Ok(defaults::mount(
        &disk.target,
        fstype.name(),
        source,
        &options,
    )?)
}

/// What is on a disk, by its superblock.
fn file_system_of(disk: &Path) -> Result<DiskFileSystem, SpecError> {
    let cannot_read = |source| SpecError::BindSource {
        path: disk.to_owned(),
        source,
    };
    // Nobody is waited for at the other end of a fifo.
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(disk)
        .map_err(cannot_read)?;
    for known in DiskFileSystem::all() {
        let (at, magic) = known.magic();
        let mut found = vec![0; magic.len()];
        match file.read_exact_at(&mut found, at) {
            Ok(()) if found == magic => return Ok(known),
            // A smaller file, or something that has no places.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(cannot_read(error)),
        }
    }
    Err(SpecError::NoFileSystem {
        path: disk.to_owned(),
    })
}

fn bind_mount(bind: &Bind, volumes: &Volumes) -> Result<Mount, SpecError> {
    let path = match &bind.source {
        Source::Host(path) => path.clone(),
        Source::Volume(name) | Source::Anonymous(name) => volumes.data(name),
    };
    let source = text_of(&path)?;
    let mut words = vec![
        match bind.submounts {
            Submounts::Shown => "rbind",
            Submounts::Hidden => "bind",
        },
        if bind.read_only { "ro" } else { "rw" },
        "rprivate",
    ];
    // The guest does it, and cannot where it must not write.
    if bind.fills && !bind.read_only && !matches!(bind.source, Source::Host(_)) {
        words.push(FILL_OPTION);
    }
    Ok(defaults::mount(&bind.target, "bind", source, &words)?)
}

/// Whether the sources that are not made are there.
pub(super) fn check_sources(options: &ContainerOptions) -> Result<(), SpecError> {
    for bind in binds(options) {
        let Source::Host(path) = &bind.source else {
            continue;
        };
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && bind.make_source => {}
            Err(source) => {
                return Err(SpecError::BindSource {
                    path: path.clone(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Makes the missing folders that `-v` names, and the missing volumes. The container's settings must have been written.
pub(crate) fn make_sources(options: &ContainerOptions, volumes: &Volumes) -> Result<(), SpecError> {
    for bind in binds(options) {
        match &bind.source {
            Source::Host(path) if bind.make_source && !path.exists() => {
                fs::create_dir_all(path).map_err(|source| SpecError::BindSource {
                    path: path.clone(),
                    source,
                })?;
            }
            Source::Host(_) => {}
            Source::Volume(name) => {
                volumes
                    .create(Some(name), BTreeMap::new())
                    .map_err(Box::new)?;
            }
            Source::Anonymous(name) => {
                volumes.create_anonymous(name).map_err(Box::new)?;
            }
        }
    }
    Ok(())
}
