//! A sandbox that is begun before all is known of it.
//!
//! ```text
//! begin ──> being made ──┬──> made ──┬── taken by a sandbox whose plan it serves
//!                        │           └── released, or dropped, or taken by one of another plan ──┐
//!                        └──> failed ──────────────────────────────────────────────────────────> removed
//! ```
//!
//! It wins time and decides nothing: what fails here is tried again, and reported, by the start of the sandbox.

use sandbox_types::WithCauses;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::SandboxError;
use super::ground::{EarlyPlan, Ground};
use crate::driver::{BegunMachine, Driver};
use crate::host::choose_driver;

/// The beginning of a sandbox of the `kvm` driver: its folder, control group and jail, and its monitor, which loads the kernel and waits.
///
/// Dropping it ends the monitor and removes everything, in a task of its own; [`Self::release`] waits for that. Where the process is
/// killed meanwhile, [`remove_sandbox`](crate::cleanup::remove_sandbox) removes it, as a whole sandbox.
#[derive(Debug)]
pub struct HeadStart {
    /// To be sent to when it is wanted; it is removed when this is dropped.
    wanted: oneshot::Sender<()>,
    made: JoinHandle<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    plan: EarlyPlan,
    ground: Ground,
}

impl HeadStart {
    /// Begins what `find` finds, which may take its time: it is not called on the runtime's own thread. There is nothing in a head start
    /// for which it finds nothing, or for which another driver is chosen. The same holds for the runtime as for
    /// [`Sandbox::start`](super::Sandbox::start).
    #[must_use]
    pub fn begin(find: impl FnOnce() -> Option<EarlyPlan> + Send + 'static) -> Self {
        Self::begin_under_kvm(move || find().filter(is_for_kvm))
    }

    fn begin_under_kvm(find: impl FnOnce() -> Option<EarlyPlan> + Send + 'static) -> Self {
        let (wanted, is_wanted) = oneshot::channel();
        Self {
            wanted,
            made: tokio::spawn(make(find, is_wanted)),
        }
    }

    /// Ends it, and waits until nothing is left.
    pub async fn release(self) {
        drop(self.wanted);
        // It panicked, or the runtime is ending: then there is nobody to tell.
        let _ = self.made.await;
    }

    /// What was made of `plan`. If there is nothing, or of another plan, nothing is left when this returns, which has to be waited for.
    pub(super) async fn take(self, plan: Option<&EarlyPlan>) -> Option<Ground> {
        let Some(plan) = plan else {
            self.release().await;
            return None;
        };
        // It may have failed.
        let _ = self.wanted.send(());
        let mut made = self.made.await.ok().flatten()?;
        let machine = made.ground.machine.as_mut();
        let waits = machine.is_some_and(|machine| !machine.has_ended());
        if waits && made.plan.serves(plan) {
            return Some(made.ground);
        }
        let machine = made.ground.machine.as_ref();
        let reason = machine.map(BegunMachine::last_words).unwrap_or_default();
        tracing::debug!(waits, reason, "the head start is of no use to the sandbox");
        release(made.ground).await;
        None
    }
}

fn is_for_kvm(plan: &EarlyPlan) -> bool {
    matches!(choose_driver(&plan.basis.config), Ok((Driver::Kvm, _)))
}

async fn make(
    find: impl FnOnce() -> Option<EarlyPlan> + Send + 'static,
    wanted: oneshot::Receiver<()>,
) -> Option<Made> {
    // It waits for the folder and the control group. The monitor is not started there: it ends with the thread that starts it.
    let made = tokio::task::spawn_blocking(move || {
        let plan = find()?;
        match Ground::claim(&plan.basis, Driver::Kvm) {
            Ok(mut ground) => {
                let furnished = ground.furnish(&plan.basis);
                Some((Made { plan, ground }, furnished))
            }
            Err(error) => {
                report(&error);
                None
            }
        }
    });
    let (mut made, furnished) = made.await.ok().flatten()?;
    match furnished.and_then(|()| made.ground.begin_machine(&made.plan)) {
        Ok(()) if wanted.await.is_ok() => return Some(made),
        Ok(()) => {}
        Err(error) => report(&error),
    }
    release(made.ground).await;
    None
}

fn report(error: &SandboxError) {
    let error: &dyn std::error::Error = error;
    tracing::debug!(error, "no head start");
}

async fn release(ground: Ground) {
    if let Err(leak) = ground.release().await {
        tracing::error!(error = %WithCauses(&leak), "a head start left something behind");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use sandbox_types::{MemMib, SandboxId};

    use super::*;
    use crate::cgroup::Places;
    use crate::config::Config;
    use crate::sandbox::{MachineSize, SandboxBasis};

    /// One whose kernel is missing.
    fn plan(folder: &Path) -> EarlyPlan {
        let config = Config {
            run_dir: folder.join("run"),
            kernel: Some(folder.join("missing")),
            jail: false,
            ..Config::default()
        };
        let size = MachineSize {
            memory: config.memory().unwrap(),
            vcpus: config.vcpu_count().unwrap(),
        };
        let basis = SandboxBasis {
            id: SandboxId::new("box").unwrap(),
            namespace: "ns".to_owned(),
            config,
            size,
            cgroup: None,
            places: Places::default(),
            sweep: None,
        };
        EarlyPlan {
            basis,
            shares: false,
        }
    }

    #[tokio::test]
    async fn head_start_that_fails_leaves_nothing_and_is_no_ground() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path());
        let dir = plan.basis.dir();
        let was_there = Arc::new(AtomicBool::new(false));
        let found = plan.clone();
        let looked = Arc::clone(&was_there);
        let begun = HeadStart::begin_under_kvm(move || {
            looked.store(true, Ordering::Relaxed);
            Some(found)
        });
        assert!(begun.take(Some(&plan)).await.is_none());
        assert!(was_there.load(Ordering::Relaxed));
        // Made, and removed again.
        assert!(dir.parent().unwrap().exists() && !dir.exists());
        HeadStart::begin_under_kvm(move || Some(plan))
            .release()
            .await;
        assert!(!dir.exists());
    }

    #[test]
    fn plan_serves_its_own_and_one_that_shares_after_all() {
        let own = plan(Path::new("/x"));
        let shares = EarlyPlan {
            shares: true,
            ..own.clone()
        };
        let mut larger = shares.clone();
        let memory = &mut larger.basis.size.memory;
        *memory = MemMib::new(u64::from(memory.get()) + 1).unwrap();
        assert!(own.serves(&own) && shares.serves(&shares) && own.serves(&shares));
        assert!(!shares.serves(&own) && !own.serves(&larger) && !shares.serves(&larger));
    }

    #[tokio::test]
    async fn head_start_of_nothing_is_no_ground() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path());
        let begun = HeadStart::begin_under_kvm(|| None);
        assert!(begun.take(Some(&plan)).await.is_none());
        HeadStart::begin_under_kvm(|| None).release().await;
        assert!(
            HeadStart::begin_under_kvm(|| None)
                .take(None)
                .await
                .is_none()
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
