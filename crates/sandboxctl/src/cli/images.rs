//! The command line of everything that has to do with images.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use sandbox_image::{Platform, Reference};

use super::{InspectArgs, ObjectKind};
use crate::format::{self, Format};

/// `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Show the layers and steps that images were made by
    History(HistoryArgs),
    /// Take an image into the store from an OCI layout (a folder or a tar) or a docker archive
    Import(ImportArgs),
    /// Show everything about images, as JSON
    Inspect(ImageInspectArgs),
    /// Take all images of an archive into the store
    Load(LoadArgs),
    /// List the images in the store
    #[command(visible_alias = "list")]
    Ls(ImageLsArgs),
    /// Remove images that no container uses
    Prune(ImagePruneArgs),
    /// Get an image from its registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// Remove images from the store
    Rm(ImageRmArgs),
    /// Write images into an archive
    Save(SaveArgs),
    /// Give an image a further name
    Tag(TagArgs),
}

/// What docker has at the top level too.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageShortcut {
    /// Show the layers and steps that images were made by
    History(HistoryArgs),
    /// List the images in the store
    Images(ImageLsArgs),
    /// Take all images of an archive into the store
    Load(LoadArgs),
    /// Keep credentials for a registry
    Login(LoginArgs),
    /// Forget the credentials for a registry
    Logout(LogoutArgs),
    /// Get an image from its registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// Remove images from the store
    Rmi(ImageRmArgs),
    /// Write images into an archive
    Save(SaveArgs),
    /// Give an image a further name
    Tag(TagArgs),
}

/// When an image is asked for in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Every time
    Always,
    /// If it is not in the store
    Missing,
    /// Not at all
    Never,
}

/// Of verbs that need an image.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct PullOptions {
    /// When to get the image from its registry
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing, help_heading = "Image")]
    pub(crate) pull: PullPolicy,
    /// Refuse an image that is not for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", help_heading = "Image")]
    pub(crate) platform: Option<Platform>,
}

/// `pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Print only the image's name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Get the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// The image's name, with its tag or digest
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Reference,
}

/// `push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Print only the image's digest
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The image's name, which says where to
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Reference,
}

/// `load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive or OCI layout [default: standard input]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,
    /// Print only the images' names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What an archive looks like inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArchiveChoice {
    /// An OCI layout, which docker can load too; digests stay
    Oci,
    /// What old versions of docker write: plain layers, no manifest
    Docker,
}

/// `save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What the archive looks like inside
    #[arg(long, value_enum, default_value_t = ArchiveChoice::Oci)]
    pub(crate) format: ArchiveChoice,
    /// Names or IDs of images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<Reference>,
}

/// `tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The image's name or ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Reference,
    /// The further name
    #[arg(value_name = "NAME")]
    pub(crate) name: Reference,
}

/// `image inspect`.
#[derive(Debug, Args)]
pub(crate) struct ImageInspectArgs {
    /// How to print: json, or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<format::Format>,
    /// Names or IDs of images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

impl ImageInspectArgs {
    /// The same as `inspect --type image`.
    pub(crate) fn to_inspect(&self) -> InspectArgs {
        InspectArgs {
            format: self.format.clone(),
            kind: Some(ObjectKind::Image),
            names: self.images.clone(),
        }
    }
}

/// `image history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Do not shorten the steps
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// The image's name or ID
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Reference,
}

/// `image prune`.
#[derive(Debug, Args)]
pub(crate) struct ImagePruneArgs {
    /// Remove every image that no container uses, not only those without a tag
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Instead, delete what layers came as: images stay and run, but cannot be pushed or saved any more
    #[arg(long, conflicts_with = "all")]
    pub(crate) blobs: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The user's name
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// The password; other users of this machine can see it while this runs
    #[arg(
        short,
        long,
        value_name = "PASSWORD",
        conflicts_with = "password_stdin"
    )]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// The registry, as in image names
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
}

/// `logout`.
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry, as in image names
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    pub(crate) registry: String,
}

/// `image import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Name the image, instead of the names it brings along
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Reference>,
    /// Print only the image's ID
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// A folder or a file
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

/// `image ls`.
#[derive(Debug, Args)]
pub(crate) struct ImageLsArgs {
    /// Print only IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Shorten nothing
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// How to print: table, json, a Go template, or `table` and a template
    #[arg(long, value_name = "FORMAT", value_parser = format::format, default_value = "table")]
    pub(crate) format: Format,
}

/// `image rm`.
#[derive(Debug, Args)]
pub(crate) struct ImageRmArgs {
    /// Take all names from an image that is given by its ID, also while containers that do not run use it; one that is not there is no failure
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or IDs of images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<Reference>,
}
