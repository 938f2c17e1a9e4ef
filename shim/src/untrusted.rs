//! What the shim reads of others, tried as a whole: for tests that throw any bytes at it (`tests/fuzz`).
//!
//! Each function does with the bytes what the shim does before there is a machine, and says what must never be. That the bytes are
//! refused is fine.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};
use sandbox_protocol::GUEST_RUN_DIR;
use sandbox_protocol::bundle::SPEC_FILE;
use sandbox_protocol::extensions::COPY_OPTION;
use sandbox_runtime::config::OVERRIDABLE;
use sandbox_runtime::rootfs::DeviceAllocator;
use sandbox_runtime::share::SharePlan;
use sandbox_runtime::{Config, Driver};
use sandbox_types::{ContainerId, MemMib, VcpuCount};

use crate::bootstrap::Bootstrap;
use crate::flags::Flags;
use crate::hooks::Hooks;
use crate::program;
use crate::spec::binds::Binds;
use crate::spec::check::Namespaces;
use crate::spec::disks;
use crate::spec::{BundleSpec, exec_process, update};

/// As `config.json` of a container on its own.
///
/// # Errors
/// If what goes to the agent means something of the host's: a namespace, or the source of a bind mount.
pub fn specification(json: &[u8]) -> Result<(), String> {
    let Ok(mut spec) = BundleSpec::from_json(json.to_vec(), Path::new(SPEC_FILE)) else {
        return Ok(());
    };
    let annotations = spec.spec.annotations().clone().unwrap_or_default();
    let config = Config {
        pod_overrides: OVERRIDABLE.iter().map(|key| (*key).to_owned()).collect(),
        pod_override_paths: vec!["/usr/bin/*".to_owned()],
        ..Config::default()
    };
    // Each for itself: that one is refused hides nothing of the next.
    let role = spec.role();
    let config = config
        .with_annotations(
            annotations
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        )
        .unwrap_or(config);
    if let Ok(role) = &role {
        drop(spec.machine(role, &config));
    }
    drop(program::of_container(Some(&annotations)));
    drop(Hooks::of(&spec.spec, "c1", Path::new("/bundle")));
    drop(spec.cgroup());
    let _ = spec.network();
    if spec.adapt(&mut Namespaces::default()).is_err() || !share(&mut spec)? {
        return Ok(());
    }
    let sent = spec.to_json().map_err(|error| error.to_string())?;
    stays_in_the_guest(&sent)
}

/// Gives the bind mounts their sources in the guest; whether there are such.
fn share(spec: &mut BundleSpec) -> Result<bool, String> {
    // Files that are to be copied would be read.
    if spec.value.to_string().contains(COPY_OPTION) {
        return Ok(false);
    }
    let container = ContainerId::new("c1").map_err(|error| error.to_string())?;
    let binds = Binds {
        container: &container,
        bundle: Path::new("/bundle"),
        share: &mut SharePlan::new(&container),
        devices: &mut DeviceAllocator::new(Driver::Kvm),
        shm: None,
        volumes: None,
    };
    if binds.resolve(&mut spec.value).is_err() {
        return Ok(false);
    }
    let mut devices = DeviceAllocator::new(Driver::Kvm);
    Ok(disks::resolve(&mut spec.value, &container, &mut devices).is_ok())
}

/// Looks at a specification as the agent gets it.
fn stays_in_the_guest(json: &[u8]) -> Result<(), String> {
    let spec: Spec = serde_json::from_slice(json)
        .map_err(|error| format!("it was taken, and is no specification then: {error}"))?;
    let is_bind = |mount: &&Mount| {
        let mut options = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind") || options.any(|o| o == "bind" || o == "rbind")
    };
    for mount in spec.mounts().iter().flatten().filter(is_bind) {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        if !source.starts_with(GUEST_RUN_DIR) {
            return Err(format!("a bind mount of {} is left", source.display()));
        }
    }
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        let path = namespace.path().as_deref().unwrap_or(Path::new(""));
        if namespace.typ() != LinuxNamespaceType::Network && !path.as_os_str().is_empty() {
            return Err(format!("the namespace {} is left", path.display()));
        }
    }
    Ok(())
}

/// As the process of an exec.
///
/// # Errors
/// If it is taken, but is not one with the call's terminal then.
pub fn process(json: &[u8]) -> Result<(), String> {
    for terminal in [false, true] {
        let Ok(sent) = exec_process(json, terminal) else {
            continue;
        };
        let process: Process = serde_json::from_slice(&sent)
            .map_err(|error| format!("it was taken, and is no process then: {error}"))?;
        if process.terminal() != Some(terminal) {
            return Err(format!("its terminal is {:?}", process.terminal()));
        }
    }
    Ok(())
}

/// As new limits of a running container: there is nothing but that it is taken or refused.
pub fn limits(json: &[u8]) {
    if let (Ok(memory), Ok(vcpus)) = (MemMib::new(256), VcpuCount::new(2)) {
        drop(update::check(json, memory, vcpus));
    }
}

/// As what a caller of `start` says on standard input.
///
/// # Errors
/// If it is taken, but cannot be answered, or two callers get the same answer of different kinds.
pub fn bootstrap(input: &[u8]) -> Result<(), String> {
    let line = "-namespace ns -id pod1 -address /a start";
    let flags = Flags::parse(line.split(' ').map(str::to_owned)).map_err(|e| e.to_string())?;
    let mut answers = HashSet::new();
    for max_version in [None, Some("3"), Some("none")] {
        if let Ok(bootstrap) = Bootstrap::parse(input, &flags, max_version) {
            let answer = bootstrap
                .answer("unix:///s")
                .map_err(|error| error.to_string())?;
            answers.insert(answer);
        }
    }
    // A message for all, or JSON for who understands it and the address for the others.
    match answers.len() {
        0..=2 => Ok(()),
        count => Err(format!("{count} answers")),
    }
}

#[cfg(test)]
#[path = "../../tests/fuzz/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn all_kinds(json: &[u8]) -> Result<(), String> {
        limits(json);
        process(json)?;
        specification(json)
    }

    #[test]
    fn corpus_of_specifications_is_taken_or_refused() {
        assert_eq!(corpus::replay("specification", 8, all_kinds), Ok(()));
    }

    #[test]
    fn corpus_of_bootstraps_is_taken_or_refused() {
        assert_eq!(corpus::replay("bootstrap", 8, bootstrap), Ok(()));
    }

    /// The seeds that are JSON, whatever else they are.
    fn seeds() -> Vec<Value> {
        let inputs = corpus::inputs("specification").unwrap();
        inputs
            .iter()
            .filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok())
            .collect()
    }

    /// All values in a document, of which each is asked for by its number.
    fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
        match value {
            Value::Array(members) => members.iter_mut().find_map(|member| nth(member, left)),
            Value::Object(members) => members.values_mut().find_map(|member| nth(member, left)),
            _ => None,
        }
    }

    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(members) => members.iter().map(count).sum(),
            Value::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }

    /// What a value becomes: something else, or itself in another shape.
    fn changed(value: &Value, how: u8, number: i64, text: &str) -> Value {
        match how % 10 {
            0 => Value::Null,
            1 => json!(number),
            2 => json!(text),
            3 => json!([]),
            4 => json!({}),
            5 => json!([value.clone()]),
            // An object as the array of its members, and the other way around.
            6 => match value {
                Value::Object(members) => members.values().cloned().collect(),
                Value::Array(members) => json!({ "type": members }),
                other => json!({ "path": other }),
            },
            7 => json!(true),
            8 => json!([value.clone(), value.clone()]),
            _ => json!(f64::from(how) / 3.0),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_start_are_taken_or_refused(input in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(bootstrap(&input), Ok(()));
        }

        #[test]
        fn specification_changed_anywhere_is_taken_or_refused(
            seed in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<i64>(), "\\PC{0,8}"), 1..5),
        ) {
            let mut seeds = seeds();
            let mut document = seeds.swap_remove(seed.index(seeds.len()));
            for (place, how, number, text) in changes {
                let mut place = place.index(count(&document));
                if let Some(value) = nth(&mut document, &mut place) {
                    *value = changed(value, how, number, &text);
                }
            }
            prop_assert_eq!(all_kinds(document.to_string().as_bytes()), Ok(()));
        }
    }
}
