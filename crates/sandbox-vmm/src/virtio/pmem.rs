//! Persistent memory device (VirtIO 1.3, 5.19): tells the driver where in its memory the files of a
//! [`Window`](crate::memory::window::Window) are.
//!
//! What the driver reads, it reads without the device. Its one queue takes flush requests, with nothing to be done for them, because
//! nothing can be written. Neither `VIRTIO_PMEM_F_SHMEM_REGION` is offered, nor shared memory regions.
//!
//! Members: the device; [`request`], the parser; [`error`].

pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

use self::error::PmemError;
use self::request::Request;
use super::answering::{Answering, Answers};
use super::copy_config;
use crate::bus::BusRange;
use crate::seccomp::ThreadKind;

/// `virtio_pmem_config` (5.19.4): `start` and `size`.
const CONFIG_BYTES: usize = 16;

/// The persistent memory device.
pub type Pmem = Answering<Flushes>;

impl Pmem {
    /// A device over these addresses of the guest's, which waits for a driver.
    #[must_use]
    pub fn new(range: BusRange) -> Self {
        let mut config = [0; CONFIG_BYTES];
        let (start, size) = config.split_at_mut(CONFIG_BYTES / 2);
        start.copy_from_slice(&range.start.to_le_bytes());
        size.copy_from_slice(&range.length.to_le_bytes());
        Self::idle(Flushes { config })
    }
}

/// Says where the memory is, and has nothing to flush.
#[derive(Debug, Clone)]
pub struct Flushes {
    config: [u8; CONFIG_BYTES],
}

impl Answers for Flushes {
    const DEVICE: &'static str = "pmem";
    const TYPE: u32 = VIRTIO_ID_PMEM;
    const THREAD: (&'static str, ThreadKind) = ("pmem", ThreadKind::Pmem);
    type Refusal = PmemError;

    fn answer(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, PmemError> {
        Request::parse(chain, memory)?.answer(memory)
    }

    fn read_config(&self, offset: u64, data: &mut [u8], _active: bool) {
        copy_config(&self.config, offset, data);
    }
}

impl Request {
    /// Answers it, and says how many bytes were written.
    fn answer(&self, memory: &GuestMemoryMmap) -> Result<u32, PmemError> {
        memory
            .write_slice(&self.result().to_le_bytes(), self.response)
            .map_err(PmemError::Memory)?;
        Ok(request::RESPONSE_BYTES)
    }
}
