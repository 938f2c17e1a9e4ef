//! What is measured: one module for each part.

mod at_once;
mod boot;
mod compute;
mod counts;
mod disk;
mod exec;
mod files;
mod memory;
mod network;
mod noise;
mod page_cache;
mod start;
mod stdio;
mod storage;
mod task;
mod waiting;

use std::time::Duration;

use crate::lab::Lab;
use crate::report::Part;
use crate::subject::{Runtime, Subject, Way};

/// Until ten seconds after a start a guest gives back what that has used and no longer needs, each time two seconds later.
const SETTLES: Duration = Duration::from_secs(14);

/// A part's name, and how it is measured.
type Entry = (&'static str, fn(&Lab) -> Part);

/// Every part, in the order of the report.
pub(crate) const ALL: &[Entry] = &[
    ("start", start::measure),
    ("task", task::measure),
    ("exec", exec::measure),
    ("at-once", at_once::measure),
    ("boot", boot::measure),
    ("stdio", stdio::measure),
    ("memory", memory::measure),
    ("web-servers", memory::measure_servers),
    ("compute", compute::measure),
    ("storage", storage::measure),
    ("files", files::measure),
    ("page-cache", page_cache::measure),
    ("disk", disk::measure),
    ("waiting", waiting::measure),
    ("network", network::measure),
    ("counts", counts::measure),
    ("noise", noise::measure),
];

/// Who is reached from a command line; what others are compared with comes first.
const COMMANDS: [Subject; 3] = [
    Subject::new(Way::Command, Runtime::Runc),
    Subject::new(Way::Command, Runtime::Sandbox),
    Subject::new(Way::Command, Runtime::QemuMicrovm),
];

/// Who is reached through one containerd.
const ENGINES: [Subject; 2] = [
    Subject::new(Way::Containerd, Runtime::Runc),
    Subject::new(Way::Containerd, Runtime::Sandbox),
];

/// Whose shim is called.
const SHIMS: [Subject; 3] = [
    Subject::new(Way::Task, Runtime::Runc),
    Subject::new(Way::Task, Runtime::Sandbox),
    Subject::new(Way::Task, Runtime::QemuMicrovm),
];

/// Who is compared with the host itself.
const BESIDE_THE_HOST: [Subject; 4] = [
    Subject::new(Way::Command, Runtime::Host),
    Subject::new(Way::Command, Runtime::Runc),
    Subject::new(Way::Command, Runtime::Sandbox),
    Subject::new(Way::Command, Runtime::QemuMicrovm),
];

/// The way by command line, and the one through containerd.
fn commands_and_engines() -> Vec<Subject> {
    [&COMMANDS[..], &ENGINES[..]].concat()
}
