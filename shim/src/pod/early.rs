//! What is known of the pod's machine by the specification of its first container alone, and the machine's beginning before that
//! container is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_runtime::cleanup::SweepNote;
use sandbox_runtime::network::PodNetwork;
use sandbox_runtime::{Config, EarlyPlan, HeadStart};

use super::Pod;
use crate::error::{TaskError, chain};
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
        Ok(EarlyPlan {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            config,
            memory,
            vcpus,
            cgroup: spec.cgroup()?,
            sweep: self.sweep_note(spec, bundle),
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
                tracing::debug!("nothing is begun early: {}", chain(&error));
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
        self.early_plan(&spec, &role, bundle, &self.config)
            .map(Some)
    }

    /// Removes what was begun early, if no machine has been made of it.
    pub(super) async fn release_early(&self) {
        let begun = self.state().head_start.take();
        if let Some(begun) = begun {
            begun.release().await;
        }
    }
}
