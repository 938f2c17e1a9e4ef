//! Capabilities (capabilities(7)). Sets of them have a bit each.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::JailError;

/// For `map_err`.
fn failed(action: &'static str) -> impl FnOnce(Errno) -> JailError {
    move |errno| JailError::Capabilities {
        action,
        source: errno.into(),
    }
}

/// Takes all but these out of the bounding set, so that no program that is executed can have them.
///
/// # Errors
/// [`JailError::Capabilities`].
pub fn bound(keep: u64) -> Result<(), JailError> {
    for number in 0..u64::BITS {
        let bit = 1 << number;
        let capability = CapabilitySet::from_bits_retain(bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if keep & bit == 0 => remove_capability_from_bounding_set(capability)
                .map_err(failed("take them out of the bounding set"))?,
            Ok(_) => {}
            // Beyond the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(failed("look at the bounding set")(errno)),
        }
    }
    Ok(())
}

/// Gives up all but these, of those that it has, for good, and hands none on.
///
/// # Errors
/// [`JailError::Capabilities`].
pub fn give_up(keep: u64) -> Result<(), JailError> {
    clear_ambient_capability_set().map_err(failed("clear the ambient set"))?;
    let has = capabilities(None).map_err(failed("look at them"))?;
    let kept = has.permitted & CapabilitySet::from_bits_retain(keep);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(failed("set them"))
}
