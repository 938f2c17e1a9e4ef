//! `containerd-shim-sandbox-v2`: containerd's shim for pods in micro-VMs.
//!
//! The shim contract is containerd's `docs/runtime-v2.md`. containerd (or `sandboxctl`, which speaks the same
//! contract) runs this program three ways, each in the container's bundle:
//!
//! | command | what it does |
//! | --- | --- |
//! | `start` | binds the task socket, starts the server, prints the socket's address ([`start`]) |
//! | `delete` | removes what a killed shim left, prints a `DeleteResponse` ([`delete`]) |
//! | none | the server itself: the task service in front of one virtual machine ([`server`]); it begins with what other shims have left ([`sweep`]) |
//!
//! `-v` prints the version, `-info` what the shim is ([`info`]). A library, so that what reads bytes of others can be tested with any:
//! [`untrusted`].

mod address;
mod bootstrap;
mod caller;
mod delete;
mod error;
mod events;
mod flags;
mod hooks;
mod info;
mod lifecycle;
mod log;
mod memory;
mod pod;
mod privileges;
mod program;
mod sandbox;
mod server;
mod spec;
mod start;
mod stats;
mod stdio;
mod sweep;
mod task;
#[doc(hidden)]
pub mod untrusted;

use std::process::ExitCode;

use error::ShimError;
use flags::{Command, Flags};
use sandbox_types::WithCauses;

/// What this program is called.
const NAME: &str = "containerd-shim-sandbox-v2";

fn run() -> Result<(), ShimError> {
    let flags = Flags::parse(std::env::args().skip(1))?;
    match flags.command {
        Command::Version => {
            println!(
                "{NAME}:\n  Version:  {}\n  Protocol: {}",
                env!("CARGO_PKG_VERSION"),
                sandbox_protocol::PROTOCOL_VERSION
            );
            Ok(())
        }
        Command::Info => info::print(),
        Command::Start => start::start(&flags),
        Command::Delete => delete::delete(&flags),
        Command::Serve => server::serve(&flags),
    }
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    memory::prepare();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {}", WithCauses(&error));
            ExitCode::FAILURE
        }
    }
}
