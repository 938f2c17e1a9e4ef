//! What is done at a start for pods of other shims, which were killed, and whose engine does not call `delete`: the same as that would have
//! done ([`crate::delete`]). Which those are: [`SweepNote`].

use std::collections::HashMap;
use std::path::PathBuf;

use sandbox_runtime::Config;
use sandbox_runtime::cleanup::{Orphan, SweepNote, orphans};
use sandbox_types::WithCauses;

use crate::hooks::due::{self, Due};
use crate::spec::role;

/// Whether nobody would clear a pod away whose shim is killed, by the annotations of its first container. The others' engines do, when they
/// see the end or are started again, and may want what is left until then, such as the console's last lines.
pub(crate) fn is_needed(annotations: Option<&HashMap<String, String>>) -> bool {
    role::is_of_crio(annotations)
}

/// Clears away what of other pods is left in this configuration's runtime folder; `own` is that of this one. What fails is logged, and tried
/// again at the next start.
pub(crate) async fn sweep(config: Config, own: PathBuf) {
    for orphan in orphans(&config, &own) {
        clear_away(orphan).await;
    }
}

async fn clear_away(orphan: Orphan) {
    let SweepNote {
        namespace,
        id,
        bundles,
        ..
    } = orphan.note().clone();
    // Taken before it is given up: the pod could be started again in the same bundles, and have hooks for its own end there.
    let last: Vec<Due> = bundles.iter().filter_map(|one| due::take(one)).collect();
    let removed = tokio::task::spawn_blocking(move || orphan.remove()).await;
    // Whatever is left of the containers does not run any more.
    for hooks in last {
        hooks.run().await;
    }
    match removed {
        Ok(Ok(removed)) => tracing::info!(
            "cleared away pod {id} of namespace {namespace}, whose shim was killed: {} processes, {} mounts",
            removed.processes.len(),
            removed.mounts.len()
        ),
        Ok(Err(error)) => tracing::error!(
            "something is left of pod {id} of namespace {namespace}, whose shim was killed: {}",
            WithCauses(&error)
        ),
        // It panicked, or we are ending.
        Err(error) => tracing::error!("pod {id} of namespace {namespace} is left: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::Hooks;
    use serde_json::json;
    use std::fs;

    #[test]
    fn only_pods_of_crio_are_swept() {
        let with = |names: &[&str]| {
            let all = names
                .iter()
                .map(|&name| (name.to_owned(), "sandbox".to_owned()));
            is_needed(Some(&all.collect()))
        };
        let (containerd, crio) = (
            "io.kubernetes.cri.container-type",
            "io.kubernetes.cri-o.ContainerType",
        );
        assert!(with(&[crio]));
        // containerd hands annotations of the pod through, if it is told to.
        assert!(!with(&[containerd, crio]));
        assert!(!with(&[containerd]));
        assert!(!is_needed(None));
    }

    #[tokio::test]
    async fn orphan_goes_with_its_socket_and_its_containers_last_hooks_run() {
        let host = tempfile::tempdir().unwrap();
        let config = Config {
            run_dir: host.path().join("run"),
            ..Config::default()
        };
        let id = sandbox_types::SandboxId::new("p1").unwrap();
        let dir = config.sandbox_dir("default", &id);
        let socket = host.path().join("socket");
        let bundle = host.path().join("bundle");
        let out = host.path().join("out");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir(&bundle).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let script = format!("echo ran >> {}", out.display());
        let spec = json!({"ociVersion": "1.0.2", "hooks": {"poststop": [
            {"path": "/bin/sh", "args": ["sh", "-c", script]},
        ]}});
        let spec = serde_json::from_value(spec).unwrap();
        let hooks = Hooks::of(&spec, "p1", &bundle).unwrap();
        hooks.begin(&bundle).unwrap();
        let note = json!({"namespace": "default", "id": "p1", "socket": socket, "bundles": [bundle, "/nonexistent"]});
        fs::write(dir.join("sweep.json"), note.to_string()).unwrap();

        // Not that of the pod itself.
        sweep(config.clone(), dir.clone()).await;
        assert!(dir.exists() && socket.exists() && !out.exists());
        let other = host.path().join("other");
        sweep(config.clone(), other.clone()).await;
        assert!(!dir.exists() && !socket.exists());
        assert_eq!(fs::read_to_string(&out).unwrap(), "ran\n");
        sweep(config, other).await;
        assert_eq!(fs::read_to_string(&out).unwrap(), "ran\n");
    }
}
