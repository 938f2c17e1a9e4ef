//! What every verb works with: where things are kept, and how they are opened.

use std::path::{Path, PathBuf};

use sandbox_image::{Image, Reference, Store, StoreError};
use sandbox_runtime::config::{Config, ConfigError};

use crate::container::{ContainerError, Containers, did_you_mean};
use crate::journal::Journal;
use crate::names;
use crate::volume::Volumes;

/// Why the program's own state is out of reach.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// Not root.
    #[error("running sandboxes needs root, and this is user {uid}; run it with sudo")]
    NotRoot { uid: u32 },
    /// The folder for state cannot be made.
    #[error("cannot create {}; choose another folder with --root", path.display())]
    Root {
        path: PathBuf,
        source: std::io::Error,
    },
    /// No such image.
    #[error(
        "there is no image {wanted}{}; get it with `sandboxctl pull {wanted}`, import one with `sandboxctl image import --name {wanted} PATH`, or see `sandboxctl image ls`",
        did_you_mean(near)
    )]
    NoImage { wanted: String, near: Vec<String> },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image store failed.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The containers' folder failed.
    #[error(transparent)]
    Containers(#[from] ContainerError),
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// Where things are kept.
#[derive(Debug, Clone)]
pub(crate) struct App {
    root: PathBuf,
    run_dir: Option<PathBuf>,
}

impl App {
    /// `root` and `run_dir` as they were given; relative ones are below the working directory.
    pub(crate) fn new(root: &Path, run_dir: Option<&Path>) -> Result<Self, AppError> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|source| AppError::Root {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            root: absolute(root)?,
            run_dir: run_dir.map(absolute).transpose()?,
        })
    }

    /// The folder of images and containers.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes `command`, which is this program, find the same things.
    pub(crate) fn pass_on(&self, command: &mut std::process::Command) {
        command.arg("--root").arg(&self.root);
        if let Some(run_dir) = &self.run_dir {
            command.arg("--run-dir").arg(run_dir);
        }
    }

    /// The journal of what happened to containers.
    pub(crate) fn journal(&self) -> Journal {
        Journal::new(&self.root)
    }

    /// Refuses anyone but root.
    pub(crate) fn require_root() -> Result<(), AppError> {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            Ok(())
        } else {
            Err(AppError::NotRoot { uid: uid.as_raw() })
        }
    }

    fn made_root(&self) -> Result<&Path, AppError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|source| AppError::Root {
                path: self.root.clone(),
                source,
            })?;
        Ok(&self.root)
    }

    /// The images.
    pub(crate) fn store(&self) -> Result<Store, AppError> {
        let keep = Config::load()?.keep_layer_blobs;
        Ok(self.leases()?.with_blobs(keep))
    }

    /// The images, to give up in them what a container used. That needs no configuration, so that a mistake in it does not stand in
    /// the way of a container's end.
    pub(crate) fn leases(&self) -> Result<Store, AppError> {
        Ok(Store::open(&self.made_root()?.join("images"))?)
    }

    /// Where the templates of writable layers are whose size somebody chose.
    pub(crate) fn scratch_folder(&self) -> Result<PathBuf, AppError> {
        Ok(self.made_root()?.join("scratch"))
    }

    /// The image of that name.
    pub(crate) fn image(&self, store: &Store, wanted: &Reference) -> Result<Image, AppError> {
        match store.resolve(wanted) {
            Err(StoreError::NotFound { .. }) => Err(AppError::NoImage {
                near: Self::images_like(store, wanted),
                wanted: wanted.to_string(),
            }),
            other => Ok(other?),
        }
    }

    /// Names of images that `wanted` could have been meant for.
    pub(crate) fn images_like(store: &Store, wanted: &Reference) -> Vec<String> {
        // A damaged neighbour only costs the hint.
        let known: Vec<String> = store
            .list()
            .unwrap_or_default()
            .images
            .iter()
            .map(|image| image.name.to_string())
            .collect();
        let wanted = wanted.to_string();
        names::near(&wanted, known.iter().map(String::as_str))
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// The containers.
    pub(crate) fn containers(&self) -> Result<Containers, AppError> {
        Ok(Containers::open(self.made_root()?)?)
    }

    /// The volumes.
    pub(crate) fn volumes(&self) -> Result<Volumes, AppError> {
        Ok(Volumes::below(self.made_root()?))
    }

    /// The configuration file's settings, as they are for a person at a shell: emulation is allowed.
    pub(crate) fn configuration(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load()?;
        config.allow_emulation = true;
        if let Some(run_dir) = &self.run_dir {
            config.run_dir.clone_from(run_dir);
        }
        Ok(config)
    }

    /// Where the socket of a container's shim is: a folder of its own, so that it can be removed without
    /// disturbing any other.
    pub(crate) fn socket_dir(config: &Config, id: &str) -> PathBuf {
        config.run_dir.join(format!("ctl-{}", names::short(id)))
    }
}
