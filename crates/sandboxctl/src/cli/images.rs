//! The command line of everything that has to do with images.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sandbox_image::Reference;

use super::Format;

/// `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Take an image into the store from an OCI layout (a folder or a tar) or a docker archive
    Import(ImportArgs),
    /// List the images in the store
    #[command(visible_alias = "list")]
    Ls(ImageLsArgs),
    /// Remove images from the store
    Rm(ImageRmArgs),
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
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// `image rm`.
#[derive(Debug, Args)]
pub(crate) struct ImageRmArgs {
    /// Names or IDs of images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<Reference>,
}
