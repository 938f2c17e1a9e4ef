//! The command line of networks.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use crate::format::{self, Format};
use crate::network::{Subnet, subnet};
use crate::values;

/// What to do with networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Make a network
    Create(NetworkCreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(NetworkLsArgs),
    /// Show everything about networks
    Inspect(NetworkInspectArgs),
    /// Remove networks that no container uses
    #[command(visible_alias = "remove")]
    Rm(NetworkRmArgs),
}

/// `network create`.
#[derive(Debug, Args)]
pub(crate) struct NetworkCreateArgs {
    /// The addresses of its containers [default: a free range of 10.232.0.0/16]
    #[arg(long, value_name = "RANGE", value_parser = subnet)]
    pub(crate) subnet: Vec<Subnet>,
    /// The bridge's own address [default: the first of the range]
    #[arg(long, value_name = "ADDRESS", requires = "subnet")]
    pub(crate) gateway: Vec<IpAddr>,
    /// Give containers IPv6 addresses as well
    #[arg(long)]
    pub(crate) ipv6: bool,
    /// The largest packet, in bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    pub(crate) mtu: Option<u32>,
    /// Note something about the network
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub(crate) label: Vec<(String, String)>,
    /// Its name
    #[arg(value_name = "NETWORK")]
    pub(crate) name: String,
}

/// `network ls`.
#[derive(Debug, Args)]
pub(crate) struct NetworkLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT", value_parser = format::format, default_value = "table")]
    pub(crate) format: Format,
}

/// `network inspect`.
#[derive(Debug, Args)]
pub(crate) struct NetworkInspectArgs {
    /// How to print: json, or a template
    #[arg(short, long, value_name = "FORMAT", value_parser = format::format)]
    pub(crate) format: Option<Format>,
    /// The networks
    #[arg(value_name = "NETWORK", required = true)]
    pub(crate) names: Vec<String>,
}

/// `network rm`.
#[derive(Debug, Args)]
pub(crate) struct NetworkRmArgs {
    /// The networks
    #[arg(value_name = "NETWORK", required = true)]
    pub(crate) names: Vec<String>,
}
