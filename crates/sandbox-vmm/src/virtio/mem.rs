//! Memory device (VirtIO 1.3, 5.15, virtio-mem): memory that the guest gets while it runs.
//!
//! The guest is told how much it is to have of a range of addresses ([`MemorySize::request`]), and asks for blocks of it itself. It gets
//! no more than that, whichever blocks it asks for; what it does not have of the range it cannot reach
//! ([`Later`](crate::memory::later::Later)), and gives back whatever it likes.
//!
//! Whether its kernel has come to use what it has been given, no request says. The device tells the driver once more of a change
//! when the last block has been given, and takes the driver's looking at it for the answer. So it has to see the driver look.
//!
//! Members: the device; [`blocks`], its state; [`request`], the parser; [`error`].

pub mod blocks;
pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

pub use self::blocks::MemorySize;
use self::blocks::REQUESTED;
use self::error::MemError;
use self::request::Request;
use super::answering::{Answering, Answers};
use super::{Interrupt, copy_config};
use crate::seccomp::ThreadKind;

/// The driver reaches for nothing that it has not plugged (5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// The memory device. What the guest has, it keeps when the device is reset (5.15.6.2): its driver begins with giving it back.
pub type Mem = Answering<Plugging>;

impl Mem {
    /// A device that gives what `size` is told to, and waits for a driver.
    #[must_use]
    pub fn new(size: MemorySize) -> Self {
        Self::idle(Plugging { size })
    }
}

/// Gives blocks and takes them back.
#[derive(Debug, Clone)]
pub struct Plugging {
    size: MemorySize,
}

impl Answers for Plugging {
    const DEVICE: &'static str = "memory";
    const TYPE: u32 = VIRTIO_ID_MEM;
    const THREAD: (&'static str, ThreadKind) = ("mem", ThreadKind::Mem);
    const NEEDED: Option<(u32, &'static str)> = Some((
        VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
        "VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE",
    ));
    const SEES_CONFIG_READS: bool = true;
    type Refusal = MemError;

    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, MemError> {
        let request = Request::parse(chain, memory)?;
        let response = self.size.lock().serve(&request, memory);
        request.answer(memory, response)
    }

    fn read_config(&self, offset: u64, data: &mut [u8], active: bool) {
        let mut blocks = self.size.lock();
        copy_config(&blocks.config(), offset, data);
        let end = offset.saturating_add(data.len() as u64);
        if active && offset < REQUESTED.end && end > REQUESTED.start {
            blocks.has_been_read();
        }
    }

    fn begin(&self, interrupt: &Interrupt) {
        self.size.lock().interrupt = Some(interrupt.clone());
    }

    fn end(&self) {
        self.size.lock().interrupt = None;
    }
}
