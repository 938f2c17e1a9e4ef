//! The OCI configuration that `sandboxctl run` makes, for a runtime that shares the host's kernel.

use std::path::Path;

use serde_json::{Value, json};

use crate::case::{Profile, Shares};
use crate::image::PROBE;

/// Where a mount is marked to be a copy, which only our own runtime makes.
const COPY: &str = "x-sandbox.copy";
/// The sets of capabilities of a process.
const SETS: [&str; 5] = [
    "bounding",
    "effective",
    "permitted",
    "inheritable",
    "ambient",
];

/// What this machine lets a container have.
#[derive(Debug, Clone)]
pub(crate) struct Grantable {
    /// Our own capabilities, as a set of bits (`CapBnd`).
    pub(crate) capabilities: u64,
    /// The highest limit of open files that we may set.
    pub(crate) open_files: u64,
}

/// Capabilities by the numbers of `include/uapi/linux/capability.h`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Grantable {
    /// Of this process.
    pub(crate) fn here() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let capabilities = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .unwrap_or(u64::MAX);
        let open_files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(1024, |(_, hard)| hard);
        let mut here = Self {
            capabilities,
            open_files,
        };
        if here.has("CAP_SYS_RESOURCE") {
            here.open_files = u64::MAX;
        }
        here
    }

    fn has(&self, capability: &str) -> bool {
        let name = capability.trim_start_matches("CAP_");
        CAPABILITIES
            .iter()
            .position(|known| *known == name)
            .is_none_or(|bit| self.capabilities & (1 << bit) != 0)
    }
}

/// Changes the configuration, as it came from `sandboxctl`, into what a container of this profile has under another
/// runtime: `name` is the container's, `root` its root file system.
pub(crate) fn adapt(
    mut spec: Value,
    profile: Profile,
    name: &str,
    root: &Path,
    shares: &Shares,
    grantable: &Grantable,
) -> Value {
    spec["root"]["path"] = root.to_string_lossy().into();
    spec["process"]["args"] = json!([PROBE, "serve"]);
    spec["process"]["terminal"] = false.into();
    spec["linux"]["cgroupsPath"] = format!("/{name}").into();
    spec["annotations"] = json!({});
    grant_only(&mut spec, grantable);
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        let has = |mount: &Value, option: &str| {
            let options = mount["options"].as_array();
            options.is_some_and(|options| options.iter().any(|one| one == option))
        };
        mounts.retain(|mount| !has(mount, COPY));
        mounts.retain(|mount| {
            let at = mount["destination"].as_str().unwrap_or_default();
            at != "/share" && at != "/share-ro"
        });
        mounts.push(bind(&shares.writable, "/share", "rw"));
        let access = if profile == Profile::Host { "rw" } else { "ro" };
        mounts.push(bind(&shares.read_only, "/share-ro", access));
        if profile == Profile::Host {
            mounts.push(json!({
                "destination": "/host",
                "type": "bind",
                "source": "/",
                "options": ["rbind", "ro", "rslave"],
            }));
        }
    }
    if profile == Profile::Host {
        spec["linux"]["namespaces"] = json!([{ "type": "mount" }]);
        if let Some(spec) = spec.as_object_mut() {
            // Names are the host's now, and stay what they are.
            spec.remove("hostname");
            spec.remove("domainname");
        }
    }
    spec
}

fn bind(source: &Path, destination: &str, access: &str) -> Value {
    json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", access, "rprivate"],
    })
}

/// Takes away what a runtime would fail to give, because we do not have it ourselves.
fn grant_only(spec: &mut Value, grantable: &Grantable) {
    for set in SETS {
        if let Some(capabilities) = spec["process"]["capabilities"][set].as_array_mut() {
            capabilities.retain(|one| grantable.has(one.as_str().unwrap_or_default()));
        }
    }
    for limit in spec["process"]["rlimits"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        for bound in ["hard", "soft"] {
            if limit["type"] == "RLIMIT_NOFILE"
                && limit[bound]
                    .as_u64()
                    .is_some_and(|value| value > grantable.open_files)
            {
                limit[bound] = grantable.open_files.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares {
            writable: "/w".into(),
            read_only: "/r".into(),
            errors: "/e".into(),
        }
    }

    fn made() -> Value {
        json!({
            "hostname": "x",
            "process": {
                "args": ["/probe"],
                "capabilities": { "bounding": ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"] },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 524_288, "soft": 1024 }],
            },
            "mounts": [
                { "destination": "/etc/hosts", "options": ["rw", "x-sandbox.copy"] },
                { "destination": "/proc" },
                { "destination": "/share", "source": "/elsewhere" },
            ],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] },
        })
    }

    fn adapted(profile: Profile, grantable: &Grantable) -> Value {
        adapt(
            made(),
            profile,
            "n",
            Path::new("/root"),
            &shares(),
            grantable,
        )
    }

    #[test]
    fn what_this_machine_cannot_grant_is_not_asked_for() {
        let poor = Grantable {
            capabilities: 1 << 21,
            open_files: 2000,
        };
        let spec = adapted(Profile::Granted, &poor);
        assert_eq!(
            spec["process"]["capabilities"]["bounding"],
            json!(["CAP_SYS_ADMIN"])
        );
        assert_eq!(spec["process"]["rlimits"][0]["hard"], 2000);
        assert_eq!(spec["process"]["rlimits"][0]["soft"], 1024);
    }

    #[test]
    fn read_only_share_is_writable_only_where_protection_is_off() {
        let rich = Grantable {
            capabilities: u64::MAX,
            open_files: u64::MAX,
        };
        let option = |profile| {
            let spec = adapted(profile, &rich);
            let mounts = spec["mounts"].as_array().unwrap().clone();
            let mount = mounts
                .into_iter()
                .find(|mount| mount["destination"] == "/share-ro");
            mount.unwrap()["options"][1].clone()
        };
        assert_eq!(option(Profile::Plain), "ro");
        assert_eq!(option(Profile::Granted), "ro");
        assert_eq!(option(Profile::Host), "rw");
        let namespaces = |profile| adapted(profile, &rich)["linux"]["namespaces"].clone();
        assert_eq!(namespaces(Profile::Plain).as_array().unwrap().len(), 2);
        assert_eq!(namespaces(Profile::Host), json!([{ "type": "mount" }]));
    }
}
