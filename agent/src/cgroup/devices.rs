//! Device rules: a BPF program attached to the container's group.
//!
//! libcontainer would attach one with rules of its own added that open `/dev/console`, which in a guest is the line
//! on which the guest speaks to its host, and `/dev/net/tun`. So it is given no rules, and the agent attaches a
//! program before the group has a process.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use libcgroups::v2::devices::bpf::{BpfError, prog};
use libcgroups::v2::devices::emulator::Emulator;
use libcgroups::v2::devices::program::{Program, ProgramError};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

/// Why device rules cannot be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A rule makes no sense.
    #[error("the device rules cannot be understood")]
    Rules(#[from] ProgramError),
    /// One of the agent's own could not be made.
    #[error("the default device rules cannot be made")]
    Defaults(#[from] oci_spec::OciSpecError),
    /// The kernel refused the program.
    #[error("the kernel refused the device rules")]
    Bpf(#[from] BpfError),
    /// The group cannot be opened.
    #[error("cannot open the control group")]
    Group(#[from] std::io::Error),
}

/// Character devices that every container may use: null, zero, full, random, urandom, tty, ptmx.
const ALLOWED: [(i64, i64); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
/// Pseudo-terminals.
const PTS_MAJOR: i64 = 136;
/// Devices that end in the guest's console: `/dev/console`, and serial lines (majors 4 and 5 of the kernel's
/// `Documentation/admin-guide/devices.txt`; 4 also has the virtual consoles, which the guest has none of).
const CONSOLE: [(i64, Option<i64>); 2] = [(5, Some(1)), (4, None)];

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, oci_spec::OciSpecError> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind)
        .access(access);
    if let Some(major) = major {
        rule = rule.major(major);
    }
    if let Some(minor) = minor {
        rule = rule.minor(minor);
    }
    rule.build()
}

/// The rules of a container in the order in which later ones win, and what holds where none matches.
fn rules(asked: &[LinuxDeviceCgroup]) -> Result<Emulator, oci_spec::OciSpecError> {
    let mut all = Emulator::with_default_allow(false);
    for rule in asked {
        all.add_rule(rule);
    }
    // Making a node is not using it.
    all.add_rule(&rule(true, LinuxDeviceType::C, None, None, "m")?);
    all.add_rule(&rule(true, LinuxDeviceType::B, None, None, "m")?);
    for (major, minor) in ALLOWED {
        all.add_rule(&rule(
            true,
            LinuxDeviceType::C,
            Some(major),
            Some(minor),
            "rwm",
        )?);
    }
    all.add_rule(&rule(
        true,
        LinuxDeviceType::C,
        Some(PTS_MAJOR),
        None,
        "rwm",
    )?);
    for (major, minor) in CONSOLE {
        all.add_rule(&rule(false, LinuxDeviceType::C, Some(major), minor, "rw")?);
    }
    Ok(all)
}

/// Puts the rules of the spec, and the agent's own, into force for the group at `path`, which has none yet.
pub(super) fn apply(path: &Path, asked: &[LinuxDeviceCgroup]) -> Result<(), DeviceError> {
    let rules = rules(asked)?;
    let program = Program::from_rules(&rules.rules, rules.default_allow)?;
    let group = File::open(path)?;
    // The binding passes the text on as it is.
    let program = owned(prog::load("Apache\0", program.bytecodes())?);
    Ok(prog::attach(program.as_raw_fd(), group.as_raw_fd())?)
}

#[expect(
    unsafe_code,
    reason = "libcgroups hands descriptors out as bare numbers, for the caller to close"
)]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: `fd` was just opened by libcgroups, which keeps no record of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_is_denied_after_everything_that_was_asked_for() {
        let asked = [rule(true, LinuxDeviceType::C, Some(5), Some(1), "rwm").unwrap()];
        let all = rules(&asked).unwrap();
        assert!(!all.default_allow);
        let last = all
            .rules
            .iter()
            .rev()
            .find(|rule| rule.major() == Some(5) && rule.minor() == Some(1));
        assert!(!last.unwrap().allow());
    }

    #[test]
    fn rule_for_all_devices_changes_what_holds_where_none_matches() {
        let asked = [rule(true, LinuxDeviceType::A, None, None, "rwm").unwrap()];
        assert!(rules(&asked).unwrap().default_allow);
    }
}
