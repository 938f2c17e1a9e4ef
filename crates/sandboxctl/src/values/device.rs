//! `--device`: what the guest's kernel has to give.
//!
//! Devices of the host cannot be passed into a virtual machine by making a node of the same number: the
//! number would mean a device of the guest's. So only devices that the guest itself has are taken, and of these only
//! those that are meant for programs.

/// Why a device was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    /// A device of the host's, or one that no container gets.
    #[error(
        "{path} is a device of this host, and a container's virtual machine has other devices; what can be given is {}",
        KNOWN.map(|device| device.path).join(", ")
    )]
    NotInGuest { path: String },
    /// Not in docker's form.
    #[error("{value:?} is not a device; write PATH[:PATH-IN-CONTAINER[:rwm]], such as /dev/fuse")]
    Malformed { value: String },
}

/// A character device of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestDevice {
    pub(crate) path: &'static str,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) mode: u32,
}

/// What the guest's kernel has for programs (linux `Documentation/admin-guide/devices.txt`), beside what every
/// container has.
pub(crate) const KNOWN: [GuestDevice; 3] = [
    GuestDevice {
        path: "/dev/fuse",
        major: 10,
        minor: 229,
        mode: 0o666,
    },
    GuestDevice {
        path: "/dev/net/tun",
        major: 10,
        minor: 200,
        mode: 0o666,
    },
    GuestDevice {
        path: "/dev/hwrng",
        major: 10,
        minor: 183,
        mode: 0o600,
    },
];

/// What every container has anyway.
const ALWAYS: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

/// A device that a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// None for one that every container has.
    pub(crate) guest: Option<GuestDevice>,
    /// As it was asked for.
    pub(crate) source: String,
    /// Where it appears.
    pub(crate) path: String,
    /// `r`, `w`, `m`.
    pub(crate) access: String,
}

/// `PATH[:PATH-IN-CONTAINER][:rwm]`.
pub(crate) fn device(value: &str) -> Result<Device, DeviceError> {
    let malformed = || DeviceError::Malformed {
        value: value.to_owned(),
    };
    let is_access =
        |text: &str| !text.is_empty() && text.chars().all(|c| matches!(c, 'r' | 'w' | 'm'));
    let parts: Vec<&str> = value.split(':').collect();
    let (source, path, access) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, second] if is_access(second) => (*source, *source, *second),
        [source, path] => (*source, *path, "rwm"),
        [source, path, access] if is_access(access) => (*source, *path, *access),
        _ => return Err(malformed()),
    };
    if !source.starts_with('/') || !path.starts_with("/dev/") || path.contains("/../") {
        return Err(malformed());
    }
    let guest = KNOWN.into_iter().find(|device| device.path == source);
    if guest.is_none() && !(ALWAYS.contains(&source) && source == path) {
        return Err(DeviceError::NotInGuest {
            path: source.to_owned(),
        });
    }
    Ok(Device {
        guest,
        source: source.to_owned(),
        path: path.to_owned(),
        access: access.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_of_the_guest_is_taken() {
        let fuse = device("/dev/fuse").unwrap();
        assert_eq!(
            (fuse.path.as_str(), fuse.access.as_str()),
            ("/dev/fuse", "rwm")
        );
        let other = device("/dev/net/tun:/dev/tun0:rw").unwrap();
        assert_eq!(
            (other.path.as_str(), other.access.as_str()),
            ("/dev/tun0", "rw")
        );
        assert_eq!(other.guest.unwrap().minor, 200);
        assert_eq!(device("/dev/fuse:r").unwrap().access, "r");
        assert_eq!(device("/dev/null").unwrap().guest, None);
    }

    #[test]
    fn device_of_the_host_is_refused_and_named() {
        for text in [
            "/dev/sda",
            "/dev/kvm",
            "/dev/vda:/dev/fuse",
            "/dev/null:/dev/x",
        ] {
            let error = device(text).unwrap_err().to_string();
            assert!(error.contains("/dev/fuse"), "{error}");
        }
        for text in [
            "fuse",
            "/dev/fuse:x",
            "/dev/fuse:/tmp/x",
            "/dev/fuse:/dev/a:q",
            "",
        ] {
            assert!(
                matches!(device(text), Err(DeviceError::Malformed { .. })),
                "{text}"
            );
        }
    }
}
