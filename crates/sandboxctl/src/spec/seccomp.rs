//! Profiles of system calls, in docker's format (moby `profiles/seccomp`), an OCI `linux.seccomp` object
//! whose rules may depend on capabilities, architectures and the kernel's version, or in the OCI's own, which is the
//! same with `architectures` and `flags` and without conditions.
//!
//! The built-in profile is an allow list after docker's. It differs in two points: `socketcall`, the 32-bit
//! multiplexer, is not in it, because behind it a filter cannot see which family a socket is of; and what docker
//! allows only from some kernel on is allowed outright, because the guest's kernel is newer.

use std::path::{Path, PathBuf};
use std::{fs, io};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;

/// The profile of a container that asks for no other.
const BUILTIN: &str = include_str!("seccomp.json");
/// A profile is some tens of kilobytes.
const MAX_PROFILE_BYTES: u64 = 4 << 20;
/// The version of the guest's kernel, which rules may ask for.
const KERNEL: (u32, u32) = (6, 12);
/// What docker calls the guest's architecture.
const ARCHITECTURE: &str = "amd64";

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// The file cannot be read.
    #[error("cannot read the seccomp profile {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is too large to be one.
    #[error("{} is no seccomp profile: it has more than {} MiB", path.display(), MAX_PROFILE_BYTES >> 20)]
    TooLarge { path: PathBuf },
    /// The file is not one.
    #[error("{} is not a seccomp profile in docker's format", path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// Something that cannot be had from the guest.
    #[error("the seccomp profile {} has {what}; take it out of the profile", path.display())]
    Unsupported { path: PathBuf, what: &'static str },
    /// Both ways of saying the same.
    #[error(
        "the seccomp profile {} has both \"architectures\" and \"archMap\"; keep one of them",
        path.display()
    )]
    TwoArchitectures { path: PathBuf },
    /// A profile for other machines.
    #[error(
        "the seccomp profile {} is not for the guest's architecture; add SCMP_ARCH_X86_64",
        path.display()
    )]
    OtherArchitecture { path: PathBuf },
    /// A rule without system calls.
    #[error("a rule of the seccomp profile names no system call")]
    NoNames,
    /// The parts do not make a filter.
    #[error("cannot put the seccomp filter together")]
    Build(#[from] OciSpecError),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

/// An architecture and those whose system calls its kernel takes as well.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The form that rules had once.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

impl Condition {
    fn has_capability(wanted: &str, held: &Capabilities) -> bool {
        let bare = wanted.strip_prefix("CAP_").unwrap_or(wanted);
        held.iter().any(|one: &Capability| one.to_string() == bare)
    }

    fn kernel_is_enough(&self) -> Option<bool> {
        let (major, minor) = self.min_kernel.as_deref()?.split_once('.')?;
        Some(KERNEL >= (major.parse().ok()?, minor.parse().ok()?))
    }

    /// As `includes`: everything that is named must hold.
    fn all_hold(&self, held: &Capabilities) -> bool {
        (self.arches.is_empty() || self.arches.iter().any(|arch| arch == ARCHITECTURE))
            && self
                .caps
                .iter()
                .all(|name| Self::has_capability(name, held))
            && self.kernel_is_enough() != Some(false)
    }

    /// As `excludes`: anything that is named and holds.
    fn any_holds(&self, held: &Capabilities) -> bool {
        self.arches.iter().any(|arch| arch == ARCHITECTURE)
            || self
                .caps
                .iter()
                .any(|name| Self::has_capability(name, held))
            || self.kernel_is_enough() == Some(true)
    }
}

/// The built-in profile for a process with these capabilities.
pub(super) fn builtin(held: &Capabilities) -> Result<LinuxSeccomp, SeccompError> {
    parse(BUILTIN, Path::new("the built-in profile"), held)
}

/// The profile in the file at `path`, for a process with these capabilities.
pub(super) fn from_file(path: &Path, held: &Capabilities) -> Result<LinuxSeccomp, SeccompError> {
    let read = |source| SeccompError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(read)?.len() > MAX_PROFILE_BYTES {
        return Err(SeccompError::TooLarge {
            path: path.to_owned(),
        });
    }
    parse(&fs::read_to_string(path).map_err(read)?, path, held)
}

fn parse(text: &str, path: &Path, held: &Capabilities) -> Result<LinuxSeccomp, SeccompError> {
    let profile: Profile =
        serde_json::from_str(text).map_err(|source| SeccompError::Malformed {
            path: path.to_owned(),
            source,
        })?;
    if profile.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(SeccompError::Unsupported {
            path: path.to_owned(),
            what: "a listenerPath, a supervisor that cannot be reached from the guest",
        });
    }
    let architectures = architectures(profile.architectures, profile.arch_map, path)?;
    let rules = profile
        .syscalls
        .unwrap_or_default()
        .into_iter()
        .filter(|rule| rule.includes.all_hold(held) && !rule.excludes.any_holds(held))
        .map(resolve)
        .collect::<Result<Vec<_>, _>>()?;
    let mut filter = LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .architectures(architectures)
        .syscalls(rules)
        .build()?;
    filter
        .set_default_errno_ret(profile.default_errno_ret)
        .set_flags(profile.flags.filter(|flags| !flags.is_empty()));
    Ok(filter)
}

/// The guest's architecture and what goes with it. A profile that lists none is for all.
fn architectures(
    listed: Option<Vec<Arch>>,
    map: Option<Vec<ArchMap>>,
    path: &Path,
) -> Result<Vec<Arch>, SeccompError> {
    let given = match (
        listed.filter(|list| !list.is_empty()),
        map.filter(|map| !map.is_empty()),
    ) {
        (Some(_), Some(_)) => {
            return Err(SeccompError::TwoArchitectures {
                path: path.to_owned(),
            });
        }
        (Some(listed), None) => listed,
        (None, Some(map)) => map
            .into_iter()
            .find(|entry| entry.architecture == "SCMP_ARCH_X86_64")
            .map(|entry| {
                let others = entry.sub_architectures.unwrap_or_default();
                std::iter::once(Arch::ScmpArchX86_64)
                    .chain(others)
                    .collect()
            })
            .unwrap_or_default(),
        (None, None) => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
    };
    if given.contains(&Arch::ScmpArchX86_64) {
        Ok(given)
    } else {
        Err(SeccompError::OtherArchitecture {
            path: path.to_owned(),
        })
    }
}

fn resolve(rule: Rule) -> Result<LinuxSyscall, SeccompError> {
    let names: Vec<String> = rule.names.into_iter().chain(rule.name).collect();
    if names.is_empty() {
        return Err(SeccompError::NoNames);
    }
    let mut resolved = LinuxSyscallBuilder::default()
        .names(names)
        .action(rule.action)
        .build()?;
    resolved.set_errno_ret(rule.errno_ret);
    resolved.set_args(rule.args.filter(|args| !args.is_empty()));
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(filter: &LinuxSeccomp, name: &str) -> Vec<LinuxSyscall> {
        filter
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| {
                rule.action() == LinuxSeccompAction::ScmpActAllow
                    && rule.names().iter().any(|one| one == name)
            })
            .cloned()
            .collect()
    }

    fn held(capabilities: &[Capability]) -> Capabilities {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn builtin_refuses_what_is_not_listed() {
        let filter = builtin(&held(&[Capability::Chown])).unwrap();
        assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActErrno);
        for name in ["read", "execve", "openat", "futex"] {
            assert_eq!(allows(&filter, name).len(), 1, "{name}");
        }
        for name in [
            "mount",
            "bpf",
            "reboot",
            "init_module",
            "unshare",
            "keyctl",
            "io_uring_setup",
            "socketcall",
        ] {
            assert!(allows(&filter, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn builtin_refuses_vsock_whatever_the_capabilities() {
        for capabilities in [held(&[]), held(&[Capability::SysAdmin])] {
            let filter = builtin(&capabilities).unwrap();
            let rules = allows(&filter, "socket");
            assert_eq!(rules.len(), 1);
            let json = serde_json::to_value(&rules[0]).unwrap();
            assert_eq!(json["args"][0]["value"], 40);
            assert_eq!(json["args"][0]["op"], "SCMP_CMP_NE");
        }
    }

    #[test]
    fn builtin_follows_capabilities() {
        let filter = builtin(&held(&[Capability::SysAdmin])).unwrap();
        assert_eq!(allows(&filter, "mount").len(), 1);
        let clone = allows(&filter, "clone");
        assert!(clone.len() == 1 && clone[0].args().is_none());
        let filter = builtin(&held(&[])).unwrap();
        let clone = allows(&filter, "clone");
        assert!(clone.len() == 1 && clone[0].args().is_some());
    }

    #[test]
    fn profile_conditions_are_dockers() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [{ "architecture": "SCMP_ARCH_X86_64", "subArchitectures": [] }],
            "syscalls": [
                { "names": ["a"], "action": "SCMP_ACT_ERRNO", "includes": { "arches": ["s390x"] } },
                { "names": ["b"], "action": "SCMP_ACT_ERRNO", "includes": { "arches": ["amd64", "x32"] } },
                { "names": ["c"], "action": "SCMP_ACT_ERRNO", "includes": { "minKernel": "99.1" } },
                { "names": ["d"], "action": "SCMP_ACT_ERRNO", "includes": { "minKernel": "4.8" }, "args": [] },
                { "name": "e", "action": "SCMP_ACT_ERRNO", "excludes": { "caps": ["CAP_CHOWN"] } }
            ]
        }"#;
        let filter = parse(text, Path::new("x"), &held(&[Capability::Chown])).unwrap();
        let names: Vec<_> = filter
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names().clone())
            .collect();
        assert_eq!(names, ["b", "d"]);
    }

    #[test]
    fn profile_of_the_ocis_is_taken_as_it_is() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW" }]
        }"#;
        let filter = parse(text, Path::new("x"), &held(&[])).unwrap();
        assert_eq!(
            filter.architectures().as_deref(),
            Some(&[Arch::ScmpArchX86_64][..])
        );
        assert_eq!(filter.default_errno_ret(), Some(38));
        assert_eq!(filter.flags().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn profile_of_what_the_guest_has_not_is_refused_with_a_reason() {
        let parse = |rest: &str| {
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rest}}}"#);
            super::parse(&text, Path::new("x"), &held(&[])).unwrap_err()
        };
        assert!(matches!(
            parse(r#""architectures":["SCMP_ARCH_AARCH64"]"#),
            SeccompError::OtherArchitecture { .. }
        ));
        assert!(matches!(
            parse(r#""archMap":[{"architecture":"SCMP_ARCH_AARCH64"}]"#),
            SeccompError::OtherArchitecture { .. }
        ));
        assert!(matches!(
            parse(
                r#""architectures":["SCMP_ARCH_X86_64"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]"#
            ),
            SeccompError::TwoArchitectures { .. }
        ));
        assert!(matches!(
            parse(r#""listenerPath":"/run/x""#),
            SeccompError::Unsupported { .. }
        ));
    }

    #[test]
    fn profile_that_is_none_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"defaultAction":"NO"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}"#,
        ] {
            assert!(parse(text, Path::new("x"), &held(&[])).is_err(), "{text}");
        }
        assert!(matches!(
            from_file(Path::new("/none"), &held(&[])),
            Err(SeccompError::Read { .. })
        ));
    }
}
