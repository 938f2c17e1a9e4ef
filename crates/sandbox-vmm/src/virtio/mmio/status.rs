//! The device status register (VirtIO 1.3, 2.1), as transitions between phases. See the diagram in [`super`].

use crate::virtio::interrupt::DEVICE_NEEDS_RESET;

/// Bits of the register.
pub(super) const ACKNOWLEDGE: u32 = 1;
pub(super) const DRIVER: u32 = 2;
pub(super) const DRIVER_OK: u32 = 4;
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const FAILED: u32 = 128;

/// How far the driver has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is known of a driver.
    Reset,
    /// It has seen the device.
    Acknowledged,
    /// It can drive it: features may be set.
    Driver,
    /// They are agreed on: queues may be set up.
    FeaturesOk,
    /// The device works.
    Running,
    /// The driver gave up.
    Failed {
        /// The register when it did.
        status: u32,
    },
}

/// What a write to the register does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// Nothing.
    Stay,
    /// Back to the beginning.
    Reset,
    /// On to the next.
    To(Phase),
}

impl Phase {
    /// What the driver reads, but for [`DEVICE_NEEDS_RESET`].
    pub(super) fn status(self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledged => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::Running => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            Self::Failed { status } => status | FAILED,
        }
    }

    /// The driver writes `written`. `acceptable` says whether its features are.
    ///
    /// One step at a time, and no bit may be taken back except all of them (2.1.1).
    pub(super) fn write(self, written: u32, acceptable: bool) -> Transition {
        if written == 0 {
            return Transition::Reset;
        }
        let now = self.status();
        if written & FAILED != 0 {
            return match self {
                Self::Failed { .. } => Transition::Stay,
                _ => Transition::To(Self::Failed { status: now }),
            };
        }
        let written = written & !DEVICE_NEEDS_RESET;
        if written & now != now {
            return Transition::Stay;
        }
        match (self, written & !now) {
            (Self::Reset, ACKNOWLEDGE) => Transition::To(Self::Acknowledged),
            (Self::Acknowledged, DRIVER) => Transition::To(Self::Driver),
            // 2.2.2: with features that are not ours, the bit stays clear and the driver sees it.
            (Self::Driver, FEATURES_OK) if acceptable => Transition::To(Self::FeaturesOk),
            (Self::FeaturesOk, DRIVER_OK) => Transition::To(Self::Running),
            _ => Transition::Stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The phases in order; what each needs is in those before it.
    const ORDER: [Phase; 5] = [
        Phase::Reset,
        Phase::Acknowledged,
        Phase::Driver,
        Phase::FeaturesOk,
        Phase::Running,
    ];

    proptest! {
        #[test]
        fn status_after_any_writes_never_skips_a_phase(
            writes in prop::collection::vec((0_u32..256, any::<bool>()), 0..64),
        ) {
            let mut phase = Phase::Reset;
            for (written, acceptable) in writes {
                let before = phase;
                match phase.write(written, acceptable) {
                    Transition::Stay => {}
                    Transition::Reset => phase = Phase::Reset,
                    Transition::To(next) => phase = next,
                }
                let place = |phase| ORDER.iter().position(|p| *p == phase);
                match (place(before), place(phase)) {
                    (Some(from), Some(to)) => {
                        prop_assert!(to == from || to == from + 1 || (to == 0 && written == 0));
                        if before == Phase::Driver && phase == Phase::FeaturesOk {
                            prop_assert!(acceptable);
                        }
                    }
                    (None, Some(to)) => prop_assert!(to == 0 && written == 0),
                    (_, None) => prop_assert!(phase.status() & FAILED != 0),
                }
            }
        }
    }

    #[test]
    fn features_that_are_not_ours_leave_features_ok_clear() {
        let written = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        assert_eq!(Phase::Driver.write(written, false), Transition::Stay);
        assert_eq!(
            Phase::Driver.write(written, true),
            Transition::To(Phase::FeaturesOk)
        );
    }
}
