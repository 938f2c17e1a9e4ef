//! Device nodes: the guest's, never the host's.
//!
//! A node is a number, and in the guest that number is another device: `254:16` is the second disk of whatever machine it is opened in. So
//! `linux.devices` may name what has the same number in every Linux and is the guest's to give (`Documentation/admin-guide/devices.txt`);
//! any other is refused. A container with all devices of its host, which engines make of a privileged one, gets those of the guest
//! that it may have, and the rest is left out, which the log says.

use serde_json::Value;

/// Character devices that mean in the guest what they mean on the host: null, zero, full, random, urandom, kmsg; tty, console, ptmx;
/// hwrng, tun, fuse.
const SAME: [(i64, i64); 12] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 183),
    (10, 200),
    (10, 229),
];

/// A device of the host's that the specification asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`linux.devices[{index}]` is {path:?}, the {kind} device {major}:{minor} of the host, which is another device in a virtual machine, or none; {instead}"
)]
pub(crate) struct DeviceError {
    index: usize,
    path: String,
    kind: &'static str,
    major: i64,
    minor: i64,
    instead: &'static str,
}

const INSTEAD_OF_BLOCK: &str = "leave it out: a disk of the host's can be had as a file system, by a mount of type ext4 or erofs";
const INSTEAD_OF_CHARACTER: &str = "leave it out: what can be had is /dev/fuse, /dev/net/tun, /dev/hwrng and what every container has";

/// Why a node cannot be, unless it can.
fn refusal(index: usize, device: &Value) -> Option<DeviceError> {
    let text = |member| device.get(member).and_then(Value::as_str).unwrap_or("");
    let number = |member| device.get(member).and_then(Value::as_i64).unwrap_or(0);
    let (major, minor) = (number("major"), number("minor"));
    let (kind, instead) = match text("type") {
        // A fifo has no number.
        "p" => return None,
        "b" => ("block", INSTEAD_OF_BLOCK),
        _ if SAME.contains(&(major, minor)) => return None,
        _ => ("character", INSTEAD_OF_CHARACTER),
    };
    Some(DeviceError {
        index,
        path: text("path").to_owned(),
        kind,
        major,
        minor,
        instead,
    })
}

/// Whether the container may use every device, as an engine's privileged ones: a rule that allows all, and no number or kind.
fn may_use_all(spec: &Value) -> bool {
    let rules = spec.pointer("/linux/resources/devices");
    let mut rules = rules.and_then(Value::as_array).into_iter().flatten();
    rules.any(|rule| {
        let is_null = |member| rule.get(member).is_none_or(Value::is_null);
        let kind = rule.get("type").and_then(Value::as_str);
        rule.get("allow").and_then(Value::as_bool) == Some(true)
            && kind.is_none_or(|kind| kind == "a")
            && is_null("major")
            && is_null("minor")
    })
}

/// Refuses nodes that are the host's, or takes them out of a container that has all.
///
/// # Errors
/// [`DeviceError`] names the first.
pub(crate) fn check(spec: &mut Value) -> Result<(), DeviceError> {
    let has_all = may_use_all(spec);
    let Some(devices) = spec
        .pointer_mut("/linux/devices")
        .and_then(Value::as_array_mut)
    else {
        return Ok(());
    };
    let indexed = devices.iter().enumerate();
    let refused: Vec<DeviceError> = indexed
        .filter_map(|(index, device)| refusal(index, device))
        .collect();
    match refused.first() {
        None => Ok(()),
        Some(first) if !has_all => Err(first.clone()),
        Some(first) => {
            tracing::info!(
                "{} devices of the host, such as {}, are left out of a privileged container: the virtual machine has others. \
                 `privileged_without_host_devices = true` in the engine's runtime class does the same",
                refused.len(),
                first.path
            );
            devices.retain(|device| refusal(0, device).is_none());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(kind: &str, major: i64, minor: i64) -> Value {
        json!({"path": format!("/dev/x{major}-{minor}"), "type": kind, "major": major, "minor": minor})
    }

    fn spec(devices: &[Value], rules: &Value) -> Value {
        json!({"linux": {"devices": devices, "resources": {"devices": rules}}})
    }

    #[test]
    fn devices_that_every_linux_has_are_taken_and_the_hosts_are_refused_by_their_field() {
        let null = || node("c", 1, 3);
        let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"}]);
        let taken: Vec<Value> = SAME
            .iter()
            .flat_map(|(major, minor)| [node("c", *major, *minor), node("u", *major, *minor)])
            .chain([json!({"path": "/dev/fifo", "type": "p"})])
            .collect();
        let mut good = spec(&taken, &rules);
        check(&mut good).unwrap();
        assert_eq!(good, spec(&taken, &rules));
        for (kind, major, minor, word) in [
            // The guest's disks, by the numbers of the host's.
            ("b", 8, 0, "block device 8:0"),
            ("b", 254, 16, "block device 254:16"),
            ("b", 1, 3, "block device 1:3"),
            // Its memory, its console, and what it has not.
            ("c", 1, 1, "character device 1:1"),
            ("c", 4, 64, "character device 4:64"),
            ("c", 10, 232, "character device 10:232"),
            ("c", 195, 0, "character device 195:0"),
        ] {
            let mut bad = spec(&[null(), node(kind, major, minor)], &rules);
            let error = check(&mut bad).unwrap_err().to_string();
            assert!(error.starts_with("`linux.devices[1]`"), "{error}");
            assert!(error.contains(word), "{error}");
        }
        check(&mut json!({"linux": {}})).unwrap();
    }

    #[test]
    fn privileged_container_goes_without_the_hosts_devices() {
        let fuse = || node("c", 10, 229);
        for rules in [
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]),
            json!([{"allow": true, "type": "a", "major": null, "minor": null, "access": "rwm"}]),
        ] {
            let all = [node("b", 8, 0), fuse(), node("c", 10, 232)];
            let mut privileged = spec(&all, &rules);
            check(&mut privileged).unwrap();
            assert_eq!(privileged, spec(&[fuse()], &rules));
        }
    }
}
