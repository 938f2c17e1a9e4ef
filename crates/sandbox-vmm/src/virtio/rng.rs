//! Entropy device (VirtIO 1.3, 5.4): the guest's buffers filled from the host's random number generator.
//!
//! Members: the device; [`request`], the parser; [`error`].

pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use self::error::RngError;
use self::request::Request;
use super::answering::{Answering, Answers};
use crate::seccomp::ThreadKind;

/// The entropy device.
pub type Rng = Answering<HostEntropy>;

impl Rng {
    /// A device that waits for a driver.
    #[must_use]
    pub fn new() -> Self {
        Self::idle(HostEntropy)
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

/// Fills buffers.
#[derive(Debug, Clone)]
pub struct HostEntropy;

impl Answers for HostEntropy {
    const DEVICE: &'static str = "rng";
    const TYPE: u32 = VIRTIO_ID_RNG;
    const THREAD: (&'static str, ThreadKind) = ("rng", ThreadKind::Rng);
    type Refusal = RngError;

    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, RngError> {
        fill(memory, &Request::parse(chain)?)
    }
}

/// Fills the request's segments and says how many bytes that were.
fn fill(memory: &GuestMemoryMmap, request: &Request) -> Result<u32, RngError> {
    let mut written = 0_u32;
    for segment in &request.segments {
        let mut left = segment.length;
        while left > 0 {
            let mut block = [0_u8; 256];
            let wanted = usize::try_from(left)
                .unwrap_or(block.len())
                .min(block.len());
            let part = block.get_mut(..wanted).unwrap_or_default();
            let count = getrandom(&mut *part, GetRandomFlags::empty())
                .map_err(|errno| RngError::Host(errno.into()))?;
            let address = segment
                .address
                .0
                .wrapping_add(u64::from(segment.length - left));
            memory
                .write_slice(
                    part.get(..count).unwrap_or_default(),
                    vm_memory::GuestAddress(address),
                )
                .map_err(RngError::Memory)?;
            let count = u32::try_from(count).unwrap_or(left).min(left);
            left -= count;
            written = written.saturating_add(count);
        }
    }
    Ok(written)
}
