//! Everything a container needs before its shim starts: checks, its folder, and what is in it.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use sandbox_image::{HashTree, Image, Layer, Reference, Store, scratch};
use sandbox_protocol::bundle::{LOG_FILE, SPEC_FILE};
use sandbox_runtime::config::{Config, Hypervisor, sibling_program};
use sandbox_runtime::{Driver, host};
use sandbox_types::ContainerId;

use super::{Begins, Kind, RunError};
use crate::app::{App, AppError};
use crate::cli::{ContainerOptions, HypervisorChoice, MakeArgs, PullOptions};
use crate::container::{Attended, Containers, NewContainer};
use crate::launch::{CONFIG_FILE, Launch, TIMELINE_FILE};
use crate::names;
use crate::network::{self, NetworkPlan};
use crate::settings::{Attachment, Settings};
use crate::shim::{PROGRAM, RootMount};
use crate::spec::{self, Request};
use crate::volume::Volumes;
use crate::{image, kernel, terminal};

/// What was checked before anything is made.
pub(super) struct Plan {
    pub(super) id: ContainerId,
    pub(super) config: Config,
    pub(super) shim_program: PathBuf,
    pub(super) scratch: PathBuf,
    pub(super) store: Store,
    pub(super) image: Image,
    /// What each layer is held to, where that is wanted.
    pub(super) verity: Option<Vec<HashTree>>,
    pub(super) spec: Spec,
    /// The options, with what the image adds to them.
    pub(super) options: ContainerOptions,
    pub(super) settings: Settings,
    pub(super) volumes: Volumes,
    /// Files of the bundle that the container gets copies of, and what is in them.
    pub(super) files: [(&'static str, String); 3],
    /// What the container is attached to.
    pub(super) network: Option<NetworkPlan>,
}

/// Refuses what can be refused before the image is there, and makes the file for the container's identifier, if there is to be one.
pub(super) fn check_caller(args: &MakeArgs, kind: Kind) -> Result<Option<Cidfile>, RunError> {
    if args.tty && args.interactive && kind.begins == Begins::Attached && !terminal::on_stdin() {
        return Err(RunError::NotATerminal);
    }
    args.cidfile.as_deref().map(Cidfile::create).transpose()
}

/// A file of the caller's for the container's identifier. It is made first of all, so that no container is made whose identifier cannot
/// be written; if none is, it is removed again.
pub(super) struct Cidfile {
    path: PathBuf,
    file: File,
    written: Cell<bool>,
}

impl Cidfile {
    fn create(path: &Path) -> Result<Self, RunError> {
        let file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => RunError::CidfileExists {
                path: path.to_owned(),
            },
            _ => failed("create", path)(error),
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: Cell::new(false),
        })
    }

    pub(super) fn write(&self, id: &ContainerId) -> Result<(), RunError> {
        use std::io::Write as _;
        (&self.file)
            .write_all(id.as_str().as_bytes())
            .map_err(failed("write", &self.path))?;
        self.written.set(true);
        Ok(())
    }
}

impl Drop for Cidfile {
    fn drop(&mut self) {
        if !self.written.get() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The image to run, and the store that it is in.
pub(super) struct FoundImage {
    store: Store,
    image: Image,
}

/// Finds it, pulled first where the options say so.
pub(super) fn find_image(
    app: &App,
    wanted: &Reference,
    options: &PullOptions,
) -> Result<FoundImage, RunError> {
    let store = app.store()?;
    let image = image::for_run(app, &store, wanted, options)?;
    Ok(FoundImage { store, image })
}

/// Checks everything that can be checked, and makes nothing.
pub(super) fn plan(
    app: &App,
    args: &MakeArgs,
    kind: Kind,
    FoundImage { store, image }: FoundImage,
) -> Result<Plan, RunError> {
    let id = names::random_id().map_err(|source| RunError::Files {
        action: "read",
        path: PathBuf::from("/dev/urandom"),
        source,
    })?;
    let defaults = oci_spec::image::Config::default();
    let image_config = image.config.config().as_ref().unwrap_or(&defaults);
    let image_name = image.name.to_string();
    let mut options = args.container.clone();
    spec::add_image_volumes(&mut options, image_config)?;
    let bundle = app.containers()?.folder_of(&id);
    let volumes = app.volumes()?;
    let (mut config, notice) = configuration(app, args)?;
    let network = network::plan(&config, &id, &args.container)?;
    let resolver = network
        .as_ref()
        .map_or(String::new(), |_| network::resolver());
    if options.dns.is_empty() && spec::name_servers_are_the_hosts_own(&resolver) {
        eprintln!(
            "sandboxctl: the container has no name server: those of this host are on a loopback address, which is not reached from a container; name one with --dns"
        );
    }
    let request = Request {
        id: &id,
        bundle: &bundle,
        image_name: &image_name,
        image: image_config,
        options: &options,
        command: &args.program.command,
        terminal: args.tty.then(terminal::size),
        volumes: &volumes,
        network: network.as_ref().map(|plan| spec::RequestedNetwork {
            namespace: &plan.namespace,
            resolver: &resolver,
        }),
        caller_variable: &|name| std::env::var(name).ok(),
    };
    let spec = spec::generate(&request)?;
    let files = spec::files(&request).map(|(name, _, text)| (name, text));
    if let Some(vcpus) = spec::vcpus(&args.container)? {
        config.vcpus = vcpus;
    }
    config.socket_dir = App::socket_dir(&config, &id);
    check_size(&config, args)?;
    let attachment = Attachment {
        interactive: args.interactive,
        tty: args.tty,
        detached: kind.begins == Begins::Detached,
        remove: kind.remove,
        cidfile: args.cidfile.as_deref(),
        network: network.as_ref(),
    };
    let settings = Settings::new(&request, &spec, &attachment, &config)?;
    kernel::check(&config.kernel_path()?)?;
    config.image_path()?;
    let shim_program = sibling_program(PROGRAM)?;
    let scratch = match spec::storage_bytes(&args.container) {
        Some(bytes) => scratch::template(&app.scratch_folder()?, bytes)?,
        None => config.scratch_path()?,
    };
    // Only once nothing stands in the way: it is no part of an error.
    if let Some(notice) = notice {
        eprintln!("sandboxctl: {notice}");
    }
    let verity = (args.verity || config.layer_verity)
        .then(|| hash_trees(&store, &image))
        .transpose()?;
    Ok(Plan {
        verity,
        options,
        id: ContainerId::new(id)?,
        shim_program,
        scratch,
        config,
        store,
        image,
        spec,
        settings,
        volumes: volumes.clone(),
        files,
        network,
    })
}

/// The configuration file's settings, and over them the command line's.
///
/// With it comes the line to show when the guest is emulated without having been asked for.
fn configuration(app: &App, args: &MakeArgs) -> Result<(Config, Option<String>), RunError> {
    let mut config = app.configuration()?;
    match args.hypervisor {
        Some(HypervisorChoice::Auto) => config.hypervisor = Hypervisor::Auto,
        Some(HypervisorChoice::Kvm) => config.hypervisor = Hypervisor::Kvm,
        Some(HypervisorChoice::Qemu) => config.hypervisor = Hypervisor::Qemu,
        None => {}
    }
    if let Some(path) = &args.kernel {
        kernel::check(path)?;
        config.kernel = Some(std::path::absolute(path).map_err(|source| RunError::Files {
            action: "find",
            path: path.clone(),
            source,
        })?);
    }
    let (driver, notice) = host::choose_driver(&config)?;
    // The shim need not look again.
    config.hypervisor = match driver {
        Driver::Kvm => Hypervisor::Kvm,
        Driver::Qemu => Hypervisor::Qemu,
    };
    Ok((config, notice))
}

/// Whether a machine of the size that the limits ask for can be made at all.
fn check_size(config: &Config, args: &MakeArgs) -> Result<(), RunError> {
    if let Some(bytes) = args.container.memory {
        spec::machine_memory(bytes, config.memory_overhead_mib).map_err(RunError::MachineSize)?;
    }
    Ok(())
}

/// Makes the container's folder, and takes its image's layers for it.
pub(super) fn register(
    containers: &Containers,
    plan: &Plan,
    args: &MakeArgs,
    kind: Kind,
) -> Result<Attended, RunError> {
    let command = plan
        .spec
        .process()
        .as_ref()
        .and_then(|process| process.args().clone())
        .unwrap_or_default();
    let attended = containers.create(NewContainer {
        id: plan.id.clone(),
        name: args.name.as_ref(),
        image: plan.image.name.to_string(),
        image_digest: plan.image.digest.to_string(),
        command,
        labels: plan.settings.config.labels.clone(),
        auto_remove: kind.remove,
        // Until it is made, or runs.
        keep: false,
    })?;
    Ok(attended)
}

/// Fills the container's folder.
pub(super) fn fill(attended: &Attended, plan: &Plan, args: &MakeArgs) -> Result<(), RunError> {
    let folder = attended.folder().to_owned();
    plan.store
        .lease(&plan.id, &plan.image)
        .map_err(AppError::from)?;
    let writable = folder.join("rw.ext4");
    scratch::clone_template(&plan.scratch, &writable)?;
    let kept = match attended.container.record.auto_remove {
        true => Kept::UntilItEnds,
        false => Kept::UntilItIsRemoved,
    };

    let timeline = folder.join(TIMELINE_FILE);
    let mut config = plan.config.clone();
    config.timeline = Some(timeline.clone());
    let config_path = folder.join(CONFIG_FILE);
    let text = config.to_toml()?;
    write(&config_path, text.as_bytes())?;
    write(&folder.join(SPEC_FILE), &serde_json::to_vec(&plan.spec)?)?;
    for (name, text) in &plan.files {
        write(&folder.join(name), text.as_bytes())?;
    }
    plan.settings.save(&folder)?;
    spec::make_sources(&plan.options, &plan.volumes)?;
    // containerd makes these two: where the shim logs, and where a root file system of the host's goes.
    write(&folder.join(LOG_FILE), b"")?;
    let root = folder.join("rootfs");
    fs::create_dir(&root).map_err(failed("create", &root))?;

    let launch = Launch {
        shim_program: plan.shim_program.clone(),
        socket_dir: config.socket_dir.clone(),
        rootfs: root_mounts(&plan.image, plan.verity.as_deref(), &writable, kept)?,
        stdin: args.interactive,
        stdin_once: plan.settings.config.stdin_once,
        terminal: args.tty,
        log: args.log_options(),
        network: plan.network.clone(),
    };
    Ok(launch.save(&folder)?)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RunError + 'a {
    move |source| RunError::Files {
        action,
        path: path.to_owned(),
        source,
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), RunError> {
    fs::write(path, content).map_err(failed("write", path))
}

/// The hash trees of an image's layers.
fn hash_trees(store: &Store, image: &Image) -> Result<Vec<HashTree>, RunError> {
    let tree = |layer: &Layer| store.hash_tree(image, layer.diff_id);
    let trees: Result<Vec<HashTree>, _> = image.layers.iter().map(tree).collect();
    Ok(trees.map_err(AppError::from)?)
}

/// A layer, held to its hash tree if there is one.
fn layer_mount(layer: &Layer, verity: Option<&HashTree>) -> RootMount {
    let mut mount = RootMount {
        kind: "erofs".to_owned(),
        source: layer.erofs_path.to_string_lossy().into_owned(),
        options: vec!["ro".to_owned(), "loop".to_owned()],
    };
    if let Some(tree) = verity {
        mount.kind = "dmverity/erofs".to_owned();
        mount.options.extend([
            format!("X-containerd.dmverity.roothash={}", tree.root),
            format!("X-containerd.dmverity.hash-offset={}", tree.offset),
        ]);
    }
    mount
}

/// How long what a container writes is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Also after the host went down.
    UntilItIsRemoved,
    /// With `--rm`.
    UntilItEnds,
}

/// The writable layer's file, mounted.
fn writable_mount(file: &Path, kept: Kept) -> RootMount {
    // What is deleted in it takes no room on the host.
    let mut options = vec!["rw", "loop", "discard"];
    if kept == Kept::UntilItEnds {
        // It is not read again after the host went down, so that nothing has to wait for the host's disk (ext4(5)).
        options.push("nobarrier");
    }
    RootMount {
        kind: "ext4".to_owned(),
        source: file.to_string_lossy().into_owned(),
        options: options.into_iter().map(str::to_owned).collect(),
    }
}

/// The image's layers below a writable one, in the form of containerd's EROFS snapshotter
/// (`plugins/snapshots/erofs`).
fn root_mounts(
    image: &Image,
    verity: Option<&[HashTree]>,
    writable: &Path,
    kept: Kept,
) -> Result<Vec<RootMount>, RunError> {
    let top = image
        .layers
        .len()
        .checked_sub(1)
        .ok_or_else(|| RunError::NoLayers {
            image: image.name.to_string(),
        })?;
    let upper = image.layers.len();
    let mut mounts: Vec<RootMount> = image
        .layers
        .iter()
        .enumerate()
        .map(|(n, layer)| layer_mount(layer, verity.and_then(|trees| trees.get(n))))
        .collect();
    mounts.push(writable_mount(writable, kept));
    mounts.push(RootMount {
        kind: "format/mkdir/overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("X-containerd.mkdir.path={{{{ mount {upper} }}}}/upper:0755"),
            format!("X-containerd.mkdir.path={{{{ mount {upper} }}}}/work:0755"),
            format!("workdir={{{{ mount {upper} }}}}/work"),
            format!("upperdir={{{{ mount {upper} }}}}/upper"),
            format!("lowerdir={{{{ overlay {top} 0 }}}}"),
        ],
    });
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn image(layers: usize) -> Image {
        Image {
            name: "demo".parse().unwrap(),
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            config: oci_spec::image::ImageConfiguration::default(),
            layers: (0..layers)
                .map(|n| sandbox_image::Layer {
                    diff_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
                    erofs_path: format!("/store/{n}.erofs").into(),
                    size: 1,
                })
                .collect(),
            created: None,
            imported: SystemTime::UNIX_EPOCH,
            size: 1,
        }
    }

    #[test]
    fn root_mounts_are_layers_then_writable_then_overlay() {
        let mounts = root_mounts(
            &image(2),
            None,
            Path::new("/c/rw.ext4"),
            Kept::UntilItIsRemoved,
        )
        .unwrap();
        let kinds: Vec<_> = mounts.iter().map(|mount| mount.kind.as_str()).collect();
        assert_eq!(kinds, ["erofs", "erofs", "ext4", "format/mkdir/overlay"]);
        assert_eq!(mounts[0].source, "/store/0.erofs");
        assert_eq!(mounts[2].source, "/c/rw.ext4");
        assert_eq!(mounts[2].options, ["rw", "loop", "discard"]);
        assert_eq!(
            mounts[3].options,
            [
                "X-containerd.mkdir.path={{ mount 2 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 2 }}/work:0755",
                "workdir={{ mount 2 }}/work",
                "upperdir={{ mount 2 }}/upper",
                "lowerdir={{ overlay 1 0 }}",
            ]
        );
    }

    #[test]
    fn image_of_as_many_layers_as_are_stored_can_be_run() {
        let most = sandbox_image::Limits::default().layers;
        let mounts = root_mounts(
            &image(most),
            None,
            Path::new("/c/rw.ext4"),
            Kept::UntilItIsRemoved,
        )
        .unwrap();
        assert!(mounts.len() <= sandbox_runtime::rootfs::MAX_MOUNTS);
    }

    #[test]
    fn layers_with_hash_trees_are_held_to_them() {
        let tree = |n: u8| HashTree {
            root: format!("{n:02x}").repeat(32),
            offset: u64::from(n) * 4096,
        };
        let mounts = root_mounts(
            &image(2),
            Some(&[tree(1), tree(2)]),
            Path::new("/rw"),
            Kept::UntilItEnds,
        )
        .unwrap();
        assert_eq!(mounts[1].kind, "dmverity/erofs");
        assert_eq!(mounts[1].source, "/store/1.erofs");
        let root = format!("X-containerd.dmverity.roothash={}", "02".repeat(32));
        let offset = "X-containerd.dmverity.hash-offset=8192";
        assert_eq!(mounts[1].options, ["ro", "loop", root.as_str(), offset]);
        assert_eq!(mounts[2].kind, "ext4");
    }

    #[test]
    fn layer_that_goes_with_the_containers_end_does_not_wait_for_the_hosts_disk() {
        let mount = writable_mount(Path::new("/rw"), Kept::UntilItEnds);
        assert_eq!(mount.options, ["rw", "loop", "discard", "nobarrier"]);
    }

    #[test]
    fn file_for_the_identifier_is_there_before_the_container_and_goes_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cid");
        drop(Cidfile::create(&path).unwrap());
        assert!(!path.exists());
        let id: ContainerId = "a".parse().unwrap();
        Cidfile::create(&path).unwrap().write(&id).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a");
        assert!(matches!(
            Cidfile::create(&path),
            Err(RunError::CidfileExists { .. })
        ));
        assert!(Cidfile::create(&folder.path().join("no/cid")).is_err());
    }

    #[test]
    fn image_without_layers_is_refused() {
        assert!(matches!(
            root_mounts(&image(0), None, Path::new("/rw"), Kept::UntilItEnds),
            Err(RunError::NoLayers { .. })
        ));
    }

    #[test]
    fn memory_that_no_machine_has_is_refused() {
        assert_eq!(spec::machine_memory(6 << 20, 96).unwrap().get(), 102);
        assert_eq!(spec::machine_memory((6 << 20) + 1, 96).unwrap().get(), 103);
        assert!(spec::machine_memory(1 << 40, 96).is_err());
    }
}
