//! What is known of the pod's machine by the specification of its first container alone, and the machine's beginning before that
//! container is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_runtime::cleanup::SweepNote;
use sandbox_runtime::network::PodNetwork;
use sandbox_runtime::{Config, EarlyPlan, HeadStart, MachineSize, SandboxBasis};
use sandbox_types::WithCauses;

use super::Pod;
use crate::error::TaskError;
use crate::spec::role::Role;
use crate::spec::{BundleSpec, binds};
use crate::sweep;

impl Pod {
    /// What the machine is begun with, under a configuration that `spec` may still change.
    ///
    /// # Errors
    /// [`TaskError`] names what the specification gets wrong.
    pub(super) fn early_plan(
        &self,
        spec: &BundleSpec,
        role: &Role,
        bundle: &Path,
        config: &Config,
    ) -> Result<EarlyPlan, TaskError> {
        let annotations = spec.spec.annotations().iter().flatten();
        let config = config
            .with_annotations(annotations.map(|(name, value)| (name.as_str(), value.as_str())))?;
        let (memory, vcpus) = spec.machine(role, &config)?;
        let basis = SandboxBasis {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            config,
            size: MachineSize { memory, vcpus },
            cgroup: spec.cgroup()?,
            places: spec.places()?,
            sweep: self.sweep_note(spec, bundle),
        };
        Ok(EarlyPlan {
            basis,
            // The root may be, too, which only the call says.
            shares: *role == Role::Sandbox || binds::are_shared(&spec.value),
        })
    }

    /// What others need who clear the pod away, where its engine would not.
    fn sweep_note(&self, spec: &BundleSpec, bundle: &Path) -> Option<SweepNote> {
        sweep::is_needed(spec.spec.annotations().as_ref()).then(|| SweepNote {
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            socket: self.socket.clone(),
            bundles: vec![bundle.to_owned()],
        })
    }

    /// Begins the machine of the container in `bundle`, which nobody has asked for yet. Where that cannot be, [`Self::create`] says why.
    pub(crate) fn begin_early(self: &Arc<Self>, bundle: PathBuf) {
        let pod = Arc::clone(self);
        let find = move || match pod.find_early(&bundle) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::debug!("nothing is begun early: {}", WithCauses(&error));
                None
            }
        };
        self.state().head_start = Some(HeadStart::begin(find));
    }

    /// Nothing where the bundle is of no first container, or its machine has to wait for a network namespace.
    fn find_early(&self, bundle: &Path) -> Result<Option<EarlyPlan>, TaskError> {
        let spec = BundleSpec::read(bundle)?;
        let role = spec.role()?;
        match role {
            Role::Member(_) => return Ok(None),
            Role::Alone | Role::Sandbox => {}
        }
        if spec.network() == Some(PodNetwork::New) {
            return Ok(None);
        }
        let mut plan = self.early_plan(&spec, &role, bundle, &self.config)?;
        // Where something is in it already, nothing is mounted there, and it is shared.
        plan.shares |= has_entries(&spec.root(bundle));
        Ok(Some(plan))
    }

    /// Removes what was begun early, if no machine has been made of it.
    pub(super) async fn release_early(&self) {
        let begun = self.state().head_start.take();
        if let Some(begun) = begun {
            begun.release().await;
        }
    }
}

fn has_entries(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::caller::Caller;
    use crate::events::Publisher;

    fn pod() -> Arc<Pod> {
        Arc::new(Pod::to_test(Publisher::from_environment("ns")))
    }

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "annotations": {},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": "/default/c1",
                "resources": {"memory": {"limit": 268_435_456}, "cpu": {"cpus": "0"}},
                "namespaces": [{"type": "pid"}],
            },
        })
    }

    fn found(bundle: &Path, spec: &Value) -> Result<Option<EarlyPlan>, TaskError> {
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        pod().find_early(bundle)
    }

    #[test]
    fn early_plan_is_that_of_the_specification() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let plan = found(bundle.path(), &spec()).unwrap().unwrap();
        let overhead = Config::default().memory_overhead_mib;
        let EarlyPlan { basis, shares } = plan;
        assert_eq!(basis.size.memory.get(), 256 + overhead);
        assert_eq!(basis.cgroup.unwrap().to_string(), "/default/c1");
        assert_eq!(basis.places.cpus.unwrap().as_str(), "0");
        assert_eq!((basis.sweep, shares), (None, false));
    }

    #[test]
    fn early_plan_shares_memory_for_pods_binds_and_a_root_that_is_there() {
        let bundle = tempfile::tempdir().unwrap();
        let root = bundle.path().join("rootfs");
        let shares = |spec: &Value| found(bundle.path(), spec).unwrap().unwrap().shares;
        let bind = |options: &[&str]| {
            let mut spec = spec();
            spec["mounts"] =
                json!([{"destination": "/d", "type": "bind", "source": "/s", "options": options}]);
            spec
        };
        assert!(!shares(&spec()));
        assert!(shares(&bind(&["rbind"])));
        assert!(!shares(&bind(&["rbind", "x-sandbox.copy"])));
        let mut pod = spec();
        pod["annotations"]["io.kubernetes.cri-o.ContainerType"] = "sandbox".into();
        assert!(shares(&pod));
        let plan = found(bundle.path(), &pod).unwrap().unwrap();
        assert_eq!(plan.basis.sweep.unwrap().bundles, [bundle.path()]);
        fs::create_dir_all(root.join("bin")).unwrap();
        assert!(shares(&spec()));
    }

    #[test]
    fn nothing_is_begun_early_for_members_late_networks_and_bundles_without_a_specification() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(pod().find_early(bundle.path()).is_err());
        let mut member = spec();
        member["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "p1",
        });
        assert_eq!(found(bundle.path(), &member).unwrap(), None);
        let mut late = spec();
        late["linux"]["namespaces"] = json!([{"type": "network"}]);
        late["hooks"] = json!({"prestart": [{"path": "/bin/true"}]});
        assert_eq!(found(bundle.path(), &late).unwrap(), None);
    }

    #[tokio::test]
    async fn create_that_fails_early_releases_what_was_begun() {
        let bundle = tempfile::tempdir().unwrap();
        let pod = pod();
        pod.begin_early(bundle.path().to_owned());
        let request = containerd_shim_protos::api::CreateTaskRequest {
            id: "c1".to_owned(),
            bundle: "/nonexistent".to_owned(),
            ..Default::default()
        };
        let (caller, _waiting) = Caller::of_call();
        assert!(pod.create(request, &caller).await.is_err());
        assert!(pod.state().head_start.is_none());
        pod.begin_early(bundle.path().to_owned());
        pod.stop_sandbox().await.unwrap();
        assert!(pod.state().head_start.is_none());
    }
}
