//! The command line of everything that has to do with volumes.

use clap::{Args, Subcommand};

use crate::format::{self, Format};
use crate::values;
use crate::values::mounts::VolumeName;
use crate::volume::{VolumeFilter, volume_filter};

/// `volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// Show everything about volumes, as JSON
    Inspect(VolumeInspectArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Remove all volumes without a name that no container has
    Prune(VolumePruneArgs),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(VolumeRmArgs),
}

/// `volume create`.
#[derive(Debug, Args)]
pub(crate) struct VolumeCreateArgs {
    /// What keeps it; only local
    #[arg(short, long, value_name = "DRIVER", default_value = "local", value_parser = ["local"])]
    pub(crate) driver: String,
    /// Note something about it
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub(crate) label: Vec<(String, String)>,
    /// The name [default: a random one]
    #[arg(value_name = "VOLUME")]
    pub(crate) name: Option<VolumeName>,
}

/// `volume inspect`.
#[derive(Debug, Args)]
pub(crate) struct VolumeInspectArgs {
    /// How to print: json, or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<Format>,
    /// Names of volumes
    #[arg(value_name = "VOLUME", required = true)]
    pub(crate) names: Vec<VolumeName>,
}

/// `volume ls`.
#[derive(Debug, Args)]
pub(crate) struct VolumeLsArgs {
    /// Print only names
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show only these: dangling=BOOL, name=PART, label=KEY[=VALUE]
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = volume_filter)]
    pub(crate) filter: Vec<VolumeFilter>,
    /// How to print: table, json, a Go template, or `table` and a template
    #[arg(long, value_name = "FORMAT", value_parser = format::format, default_value = "table")]
    pub(crate) format: Format,
}

/// `volume prune`.
#[derive(Debug, Args)]
pub(crate) struct VolumePruneArgs {
    /// Remove those with a name, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `volume rm`.
#[derive(Debug, Args)]
pub(crate) struct VolumeRmArgs {
    /// Say nothing of volumes that are not there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names of volumes
    #[arg(value_name = "VOLUME", required = true)]
    pub(crate) names: Vec<VolumeName>,
}
