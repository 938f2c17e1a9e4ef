//! What a seccomp profile must be for the filter to mean what it says.

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

use super::SpecError;

pub(super) fn check(profile: &LinuxSeccomp) -> Result<(), SpecError> {
    let allows = |action| {
        matches!(
            action,
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog
        )
    };
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SpecError::SeccompNotify);
    }
    for rule in profile.syscalls().iter().flatten() {
        if rule.action() == LinuxSeccompAction::ScmpActNotify {
            return Err(SpecError::SeccompNotify);
        }
        // Unknown names are skipped when the filter is made. In an allow list that denies them; in a deny list
        // it would let them through.
        if allows(profile.default_action()) && !allows(rule.action()) {
            for name in rule.names() {
                if ScmpSyscall::from_name(name).is_err() {
                    return Err(SpecError::UnknownSyscall { name: name.clone() });
                }
            }
        }
    }
    Ok(())
}
