//! A queue's thread.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use sandbox_types::WithCauses;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::disk::Disk;
use super::error::BlockError;
use super::lane::{Lane, Ring};
use super::pace::Turnstile;
use super::request::{FLAG_UNMAP, Operation, Request};
use crate::log;
use crate::virtio::worker::WorkerTask;
use crate::virtio::{ActiveQueue, Interrupt, QueueError};

/// What the worker's descriptors are called.
pub(super) const KICK: u64 = 0;
pub(super) const TIMER: u64 = 1;
pub(super) const LANE: u64 = 2;

/// So many requests are served before the lane is looked at: a driver that keeps the ring filled with what is done at once delays what waits by no
/// more than that.
pub(super) const LOOK_EVERY: usize = 32;

/// Why no more of a ring is served for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// There is nothing in it.
    Empty,
    /// The disk's limits.
    Limited,
    /// The lane takes no more.
    Full,
}

/// What a queue is served with beside its thread, whichever driver has it.
#[derive(Debug)]
pub(super) struct Kit {
    /// Where the disks are limited.
    pub(super) turnstile: Option<Turnstile>,
    /// Where the host has io_uring.
    pub(super) ring: Option<Ring>,
}

/// The thread's part.
#[derive(Debug)]
pub(super) struct BlockTask {
    pub(super) disk: Arc<Disk>,
    pub(super) turnstile: Option<Turnstile>,
    /// Without one, everything is waited for.
    pub(super) lane: Option<Lane>,
    pub(super) queue: ActiveQueue,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Interrupt,
}

impl WorkerTask for BlockTask {
    type Error = BlockError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let kick = crate::fd::borrow(&self.queue.kick);
        let timer = self.turnstile.as_ref().map(|it| (it.as_fd(), TIMER));
        let lane = self.lane.as_ref().map(|it| (it.as_fd(), LANE));
        std::iter::once((kick, KICK))
            .chain(timer)
            .chain(lane)
            .collect()
    }

    fn ready(&mut self, number: u64) -> Result<(), BlockError> {
        match number {
            LANE => {
                self.lane.iter().for_each(Lane::rewind);
                self.hand_back()?;
            }
            TIMER => self.turnstile.iter().for_each(Turnstile::rewind),
            // Level-triggered: an empty counter only means that someone was faster.
            _ => drop(self.queue.kick.read()),
        }
        loop {
            let queue = &mut self.queue.queue;
            queue
                .disable_notification(&self.memory)
                .map_err(QueueError::Ring)?;
            let stop = self.serve_available()?;
            self.hand_back()?;
            match stop {
                Stop::Empty => {}
                // The timer goes on with what is in the ring, so that no notification is needed.
                Stop::Limited => return Ok(()),
                // So does the lane, if nobody has taken all that it has done by now: then nothing would ever be heard of it.
                Stop::Full if self.is_full() => return Ok(()),
                Stop::Full => continue,
            }
            let queue = &mut self.queue.queue;
            if !queue
                .enable_notification(&self.memory)
                .map_err(QueueError::Ring)?
            {
                return Ok(());
            }
        }
    }

    fn stopped(&mut self) {
        self.lane.iter_mut().for_each(Lane::settle);
    }
}

impl BlockTask {
    /// What the next driver's queue is served with.
    pub(super) fn into_kit(self) -> Kit {
        Kit {
            turnstile: self.turnstile,
            ring: self.lane.and_then(Lane::into_ring),
        }
    }

    /// Serves what is in the ring until it is empty, or the rest has to wait.
    fn serve_available(&mut self) -> Result<Stop, BlockError> {
        let mut count = 0_usize;
        loop {
            if count == LOOK_EVERY {
                self.hand_back()?;
                count = 0;
            }
            count += 1;
            if let Some(turnstile) = &self.turnstile
                && !turnstile.admits()?
            {
                return Ok(Stop::Limited);
            }
            if self.is_full() {
                self.hand_back()?;
                if self.is_full() {
                    return Ok(Stop::Full);
                }
            }
            let memory = &self.memory;
            let queue = &mut self.queue.queue;
            let Some(chain) = queue.iter(memory).map_err(QueueError::Ring)?.next() else {
                return Ok(Stop::Empty);
            };
            let head = chain.head_index();
            let used = match Request::parse(chain, memory) {
                Ok(request) => {
                    if let Some(turnstile) = &self.turnstile {
                        turnstile.passed(request.operation.data_bytes());
                    }
                    match &mut self.lane {
                        Some(lane) => match serve_at_once(&self.disk, memory, &request) {
                            Some(used) => used,
                            None => {
                                lane.take(&self.disk, memory, head, request)?;
                                continue;
                            }
                        },
                        None => serve(&self.disk, memory, &request),
                    }
                }
                Err(error) => {
                    log::guest(format_args!("block: {}", WithCauses(&error)));
                    0
                }
            };
            self.used(head, used)?;
        }
    }

    /// A driver may make the same buffers available again before they were used, so that the queue's size bounds nothing.
    fn is_full(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::is_full)
    }

    /// Gives the driver back what the lane has done, and has it begin what it took.
    fn hand_back(&mut self) -> Result<(), BlockError> {
        loop {
            while let Some((head, used)) = self.lane.as_mut().and_then(Lane::done) {
                self.used(head, used)?;
            }
            let Some(lane) = &mut self.lane else {
                return Ok(());
            };
            // Some of what begins is done at once.
            if !lane.begin(&self.disk)? {
                return Ok(());
            }
        }
    }

    fn used(&mut self, head: u16, bytes: u32) -> Result<(), BlockError> {
        Ok(self
            .queue
            .give_back(&self.memory, head, bytes, &self.interrupt)?)
    }
}

/// As [`serve`], of a request for which the host's disk need not be waited for: a read of what the host has in memory, and a write, which goes
/// there. Otherwise nothing is done.
pub(super) fn serve_at_once(
    disk: &Disk,
    memory: &GuestMemoryMmap,
    request: &Request,
) -> Option<u32> {
    match &request.operation {
        Operation::In { sector, data } => {
            let read = disk.read_at_once(memory, *sector, data).transpose()?;
            Some(finish(memory, request, read))
        }
        Operation::Flush if !disk.is_read_only() => None,
        Operation::Discard { .. } | Operation::WriteZeroes { .. } => None,
        Operation::Flush
        | Operation::Out { .. }
        | Operation::GetId { .. }
        | Operation::Unsupported { .. } => Some(serve(disk, memory, request)),
    }
}

/// Does a request, writes its status, and says how many bytes were written.
pub(super) fn serve(disk: &Disk, memory: &GuestMemoryMmap, request: &Request) -> u32 {
    let done = match &request.operation {
        Operation::In { sector, data } => disk.read(memory, *sector, data),
        Operation::Out { sector, data } => disk.write(memory, *sector, data).map(|()| 0),
        Operation::Flush => disk.flush().map(|()| 0),
        Operation::GetId { data } => disk.write_serial(memory, data),
        Operation::Discard { ranges } => disk.punch(ranges, 0).map(|()| 0),
        Operation::WriteZeroes { ranges } => disk.punch(ranges, FLAG_UNMAP).map(|()| 0),
        Operation::Unsupported { .. } => Err(BlockError::Unsupported),
    };
    finish(memory, request, done)
}

/// Writes the status of a request that came to this end, and says how many bytes were written.
pub(super) fn finish(
    memory: &GuestMemoryMmap,
    request: &Request,
    done: Result<u32, BlockError>,
) -> u32 {
    let (status, written) = match done {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(BlockError::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(error) => {
            log::guest(format_args!("block: {}", WithCauses(&error)));
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    let status = u8::try_from(status).unwrap_or(1);
    match memory.write_obj(status, request.status) {
        Ok(()) => written.saturating_add(1),
        // The driver gets no status, as it gave no place for one.
        Err(_) => 0,
    }
}
