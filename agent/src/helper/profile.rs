//! The system call filter that a container's profile describes (OCI runtime spec, "Seccomp").
//!
//! Made here and not by libcontainer for two things in which runc differs from it:
//!
//! - What is newer than the profile is answered with `ENOSYS` and not with the profile's own errno, so that a C library tries what
//!   was there before (see [`stub`]).
//! - `SCMP_CMP_MASKED_EQ` compares what `value` leaves of an argument with `valueTwo`; libcontainer has them the other way around.

mod stub;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;

use self::stub::Instruction;

/// Why a profile's filter cannot be installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    /// libseccomp refused a part of it.
    #[error("libseccomp does not take {what}")]
    Refused {
        /// Which part.
        what: String,
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// An error number that no system call can return.
    #[error("{errno} is no error number")]
    Errno {
        /// As the profile has it.
        errno: u32,
    },
    /// The filter could not be read back from libseccomp.
    #[error("cannot read the filter back")]
    Export(#[source] io::Error),
    /// The kernel refused it.
    #[error("the kernel does not take the filter")]
    Kernel(#[source] io::Error),
}

fn refused(
    what: impl Into<String>,
) -> impl FnOnce(libseccomp::error::SeccompError) -> ProfileError {
    let what = what.into();
    move |source| ProfileError::Refused { what, source }
}

/// A profile's filter, ready to be installed.
pub(super) enum Filter {
    /// With what goes before it.
    Program {
        program: Vec<Instruction>,
        /// As seccomp(2) has them.
        flags: nix::libc::c_ulong,
    },
    /// Nothing has to go before it.
    Whole(ScmpFilterContext),
}

impl Filter {
    /// Makes it. This takes a descriptor and a file, which limits of the process may forbid.
    pub(super) fn new(profile: &LinuxSeccomp) -> Result<Self, ProfileError> {
        let filter = filter(profile)?;
        let Some(newest) = newest(profile).filter(|_| denies_by_errno(profile)) else {
            return Ok(Self::Whole(filter));
        };
        let mut program = stub::program(newest);
        program.extend(exported(&filter)?);
        let flags = flags(profile);
        Ok(Self::Program { program, flags })
    }

    /// Installs it for this thread.
    pub(super) fn install(&self) -> Result<(), ProfileError> {
        match self {
            Self::Program { program, flags } => {
                stub::install(program, *flags).map_err(ProfileError::Kernel)
            }
            Self::Whole(filter) => filter.load().map_err(refused("the profile")),
        }
    }
}

/// Whether what the profile does not know would get an errno other than `ENOSYS`.
fn denies_by_errno(profile: &LinuxSeccomp) -> bool {
    let enosys = u32::try_from(nix::libc::ENOSYS).ok();
    profile.default_action() == LinuxSeccompAction::ScmpActErrno
        && profile.default_errno_ret() != enosys
}

/// The largest number among the system calls that the profile names.
fn newest(profile: &LinuxSeccomp) -> Option<u32> {
    let rules = profile.syscalls().iter().flatten();
    let names = rules.flat_map(LinuxSyscall::names);
    names.filter_map(|name| number(name)).max()
}

/// libseccomp has numbers below zero for what an architecture does not have.
fn number(name: &str) -> Option<u32> {
    let call = ScmpSyscall::from_name_by_arch(name, ScmpArch::X8664).ok()?;
    u32::try_from(i32::from(call)).ok()
}

fn filter(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, ProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter =
        ScmpFilterContext::new(default).map_err(refused("the profile's default action"))?;
    // Whether there may be new privileges is the process's own matter.
    filter
        .set_ctl_nnp(false)
        .map_err(refused("a filter that leaves no-new-privileges alone"))?;
    for flag in profile.flags().iter().flatten() {
        set_flag(&mut filter, *flag).map_err(refused(format!("the flag {flag:?}")))?;
    }
    for arch in profile.architectures().iter().flatten() {
        let known = match arch {
            Arch::ScmpArchX86 => ScmpArch::X86,
            Arch::ScmpArchX32 => ScmpArch::X32,
            // The native one is in every filter, and the others are never met.
            _ => continue,
        };
        filter
            .add_arch(known)
            .map_err(refused(format!("the architecture {arch:?}")))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // It says nothing then, which libseccomp takes for a mistake.
        if action != default {
            add_rule(&mut filter, rule, action)?;
        }
    }
    Ok(filter)
}

fn set_flag(
    filter: &mut ScmpFilterContext,
    flag: LinuxSeccompFilterFlag,
) -> Result<(), libseccomp::error::SeccompError> {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => filter.set_ctl_log(true).map(|_| ()),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => filter.set_ctl_ssb(true).map(|_| ()),
        // There is one thread, and no listener.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Ok(()),
    }
}

/// The same as bits of seccomp(2).
fn flags(profile: &LinuxSeccomp) -> nix::libc::c_ulong {
    let flags = profile.flags().iter().flatten();
    flags.fold(0, |bits, flag| {
        bits | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => nix::libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                nix::libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, ProfileError> {
    let number = errno.unwrap_or(nix::libc::EPERM.unsigned_abs());
    let wrong = |_| ProfileError::Errno { errno: number };
    Ok(match action {
        LinuxSeccompAction::ScmpActErrno => {
            ScmpAction::Errno(i32::from(i16::try_from(number).map_err(wrong)?))
        }
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(number).map_err(wrong)?)
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn add_rule(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    action: ScmpAction,
) -> Result<(), ProfileError> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let compared: Vec<_> = arguments.iter().map(comparison).collect();
    let places: HashSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    for name in rule.names() {
        // Which unknown names matter was found out when the spec was taken.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let refused = || refused(format!("the rule for {name}"));
        if places.len() == compared.len() {
            filter
                .add_rule_conditional(action, call, &compared)
                .map_err(refused())?;
            continue;
        }
        // One rule compares an argument once: several are as many rules, of which one is enough (as with runc).
        for one in &compared {
            filter
                .add_rule_conditional(action, call, std::slice::from_ref(one))
                .map_err(refused())?;
        }
    }
    Ok(())
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let place = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    let operator = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let masked = ScmpCompareOp::MaskedEqual(argument.value());
            return ScmpArgCompare::new(place, masked, argument.value_two().unwrap_or(0));
        }
    };
    ScmpArgCompare::new(place, operator, argument.value())
}

/// The filter's program, as libseccomp would load it.
fn exported(filter: &ScmpFilterContext) -> Result<Vec<Instruction>, ProfileError> {
    let file = rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC)
        .map_err(|errno| ProfileError::Export(errno.into()))?;
    filter
        .export_bpf(&file)
        .map_err(refused("a request for the program"))?;
    let mut file = File::from(file);
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(ProfileError::Export)?;
    Ok(stub::parse(&bytes))
}

#[cfg(test)]
mod tests;
