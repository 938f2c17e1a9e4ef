//! Which blocks the guest has, and how many it is to have.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox_types::{MemMib, WithCauses};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::RefusedError;
use super::request::{
    BlockState, Request, Response, VIRTIO_MEM_REQ_PLUG, VIRTIO_MEM_REQ_STATE,
    VIRTIO_MEM_REQ_UNPLUG, VIRTIO_MEM_REQ_UNPLUG_ALL,
};
use crate::log;
use crate::memory::later::Later;
use crate::virtio::Interrupt;

/// Bytes of `virtio_mem_config` (5.15.4).
pub(super) const CONFIG_BYTES: usize = 56;
/// Where `requested_size` is in it.
pub(super) const REQUESTED: Range<u64> = 48..56;

/// The blocks of a device, which it shares with whoever says how many the guest is to have.
#[derive(Debug)]
pub(super) struct Blocks {
    later: Later,
    /// For each whether the guest has it.
    plugged: Vec<bool>,
    /// In bytes.
    plugged_bytes: u64,
    requested_bytes: u64,
    /// What the driver has last said to use, in bytes.
    settled_bytes: u64,
    /// The way to the driver, while there is one.
    pub(super) interrupt: Option<Interrupt>,
    settled: Arc<EventFd>,
}

impl Blocks {
    fn new(later: Later) -> io::Result<Self> {
        Ok(Self {
            later,
            plugged: vec![false; later.blocks()],
            plugged_bytes: 0,
            requested_bytes: 0,
            settled_bytes: 0,
            interrupt: None,
            settled: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        })
    }

    /// The configuration space.
    pub(super) fn config(&self) -> [u8; CONFIG_BYTES] {
        let range = self.later.range();
        let words = [
            self.later.block(),
            // No node, and padding.
            0,
            range.start,
            range.bytes,
            // All of it may be used, up to the size that is requested.
            range.bytes,
            self.plugged_bytes,
            self.requested_bytes,
        ];
        let mut config = [0; CONFIG_BYTES];
        let (places, _) = config.as_chunks_mut::<8>();
        for (place, word) in places.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        config
    }

    /// The driver has read what it is to have. It does so when it has been told of a change, and is done with the one before: Linux
    /// does all that in one work item (`virtio_mem_run_wq`).
    pub(super) fn has_been_read(&mut self) {
        let is_new = self.settled_bytes != self.requested_bytes;
        if is_new && self.plugged_bytes == self.requested_bytes {
            self.settled_bytes = self.requested_bytes;
            // A full counter says so already.
            let _ = self.settled.write(1);
        }
    }

    fn tell_driver(&self) {
        if let Some(interrupt) = &self.interrupt
            && let Err(error) = interrupt.signal_config(REQUESTED.start, self.requested_bytes)
        {
            log::guest(format_args!("memory: cannot interrupt the driver: {error}"));
        }
    }

    /// Does what a request asks for, and says what to answer.
    pub(super) fn serve(&mut self, request: &Request, memory: &GuestMemoryMmap) -> Response {
        let done = match request.kind {
            VIRTIO_MEM_REQ_PLUG => self.plug(request, memory),
            VIRTIO_MEM_REQ_UNPLUG => self.unplug(request, memory),
            VIRTIO_MEM_REQ_UNPLUG_ALL => self.unplug_all(memory),
            VIRTIO_MEM_REQ_STATE => self.state(request),
            kind => Err(RefusedError::Unknown { kind }),
        };
        match done {
            Ok(response) => response,
            Err(error) => {
                log::guest(format_args!("memory: {}", WithCauses(&error)));
                match error {
                    RefusedError::TooMuch { .. } => Response::Nack,
                    _ => Response::Error,
                }
            }
        }
    }

    /// The blocks by number.
    fn range(&self, request: &Request) -> Result<Range<usize>, RefusedError> {
        let (address, count) = (request.address, request.count);
        let refused = RefusedError::Range { address, count };
        let Some(offset) = address.checked_sub(self.later.range().start) else {
            return Err(refused);
        };
        let block = self.later.block();
        let first = usize::try_from(offset / block).unwrap_or(usize::MAX);
        let range = first..first.saturating_add(count.into());
        match offset.is_multiple_of(block) && !range.is_empty() && range.end <= self.plugged.len() {
            true => Ok(range),
            false => Err(refused),
        }
    }

    /// The blocks by number, all of which the guest has, or none.
    fn range_that_is(
        &self,
        plugged: bool,
        request: &Request,
    ) -> Result<Range<usize>, RefusedError> {
        let range = self.range(request)?;
        let (address, count) = (request.address, request.count);
        match self.states(range.clone()).contains(&!plugged) {
            true => Err(RefusedError::State { address, count }),
            false => Ok(range),
        }
    }

    fn states(&self, range: Range<usize>) -> &[bool] {
        self.plugged.get(range).unwrap_or_default()
    }

    /// Where blocks are, in bytes.
    fn place(&self, range: &Range<usize>) -> (u64, u64) {
        let bytes = |count: usize| self.later.block().saturating_mul(count as u64);
        (bytes(range.start), bytes(range.len()))
    }

    fn plug(
        &mut self,
        request: &Request,
        memory: &GuestMemoryMmap,
    ) -> Result<Response, RefusedError> {
        let range = self.range_that_is(false, request)?;
        let (offset, bytes) = self.place(&range);
        let plugged = self.plugged_bytes.saturating_add(bytes);
        if plugged > self.requested_bytes {
            let requested = self.requested_bytes;
            return Err(RefusedError::TooMuch { plugged, requested });
        }
        let given = self.later.give(memory, offset, bytes);
        // Also if only a part is: all counts that the guest may reach.
        self.set(range.clone(), true);
        if let Err(error) = given {
            self.take(range, memory)?;
            return Err(RefusedError::Host(error));
        }
        if self.plugged_bytes == self.requested_bytes {
            // So that the driver looks again when it has done with this.
            self.tell_driver();
        }
        Ok(Response::Ack)
    }

    fn unplug(
        &mut self,
        request: &Request,
        memory: &GuestMemoryMmap,
    ) -> Result<Response, RefusedError> {
        let range = self.range_that_is(true, request)?;
        self.take(range, memory)?;
        Ok(Response::Ack)
    }

    fn unplug_all(&mut self, memory: &GuestMemoryMmap) -> Result<Response, RefusedError> {
        self.take(0..self.plugged.len(), memory)?;
        Ok(Response::Ack)
    }

    fn take(&mut self, range: Range<usize>, memory: &GuestMemoryMmap) -> Result<(), RefusedError> {
        let (offset, bytes) = self.place(&range);
        // What the guest may still reach counts, or it could get as much again elsewhere.
        self.later
            .close(memory, offset, bytes)
            .map_err(RefusedError::Host)?;
        self.set(range, false);
        self.later
            .discard(memory, offset, bytes)
            .map_err(RefusedError::Host)
    }

    fn state(&self, request: &Request) -> Result<Response, RefusedError> {
        let range = self.range(request)?;
        let states = self.states(range);
        let state = match (states.contains(&true), states.contains(&false)) {
            (true, true) => BlockState::Mixed,
            (true, false) => BlockState::Plugged,
            (false, _) => BlockState::Unplugged,
        };
        Ok(Response::State(state))
    }

    fn set(&mut self, range: Range<usize>, plugged: bool) {
        for state in self.plugged.get_mut(range).unwrap_or_default() {
            *state = plugged;
        }
        let count = self.plugged.iter().filter(|plugged| **plugged).count();
        self.plugged_bytes = self.later.block().saturating_mul(count as u64);
    }
}

/// How much memory a guest has that has a memory device, and is to have.
#[derive(Debug, Clone)]
pub struct MemorySize {
    blocks: Arc<Mutex<Blocks>>,
    settled: Arc<EventFd>,
    later: Later,
    /// What it has from the start.
    first: MemMib,
}

impl MemorySize {
    /// `first`, and nothing of what it may get `later`.
    ///
    /// # Errors
    /// Without an event descriptor.
    pub fn new(first: MemMib, later: Later) -> io::Result<Self> {
        let blocks = Blocks::new(later)?;
        Ok(Self {
            settled: Arc::clone(&blocks.settled),
            blocks: Arc::new(Mutex::new(blocks)),
            later,
            first,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Blocks> {
        // A panic while the lock was held ends the machine.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is to have `memory` in all, in whole blocks and within its bounds.
    pub fn request(&self, memory: MemMib) {
        let more = memory.bytes().saturating_sub(self.first.bytes());
        let more = more.min(self.later.range().bytes);
        let mut blocks = self.lock();
        blocks.requested_bytes = more.next_multiple_of(self.later.block());
        // Also if nothing is to change: that is an answer too.
        blocks.settled_bytes = u64::MAX;
        blocks.tell_driver();
    }

    /// Readable when [`Self::take_settled`] has something to say.
    #[must_use]
    pub fn settled(&self) -> &EventFd {
        &self.settled
    }

    /// What the guest has in all, if it has come to have what it is to have since this was last asked.
    #[must_use]
    pub(crate) fn take_settled(&self) -> Option<MemMib> {
        self.settled.read().ok()?;
        let more = self.lock().plugged_bytes >> 20;
        // Within the bounds of a machine, as what it is made of is.
        MemMib::new(u64::from(self.first.get()).saturating_add(more)).ok()
    }
}
