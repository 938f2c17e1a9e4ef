//! Block device over a raw file (VirtIO 1.3, 5.2).
//!
//! One queue and one thread, which does one request after the other, and a second one for those that have to wait for the host's disk, so that
//! they hold nobody else up. Writes are durable after a flush; there
//! is no write-through mode. Where the sandbox's disks are limited, requests stay in the ring until they may pass.
//! Members: the device; [`request`], the parser; [`disk`], the file; `lane`, what waits; [`pace`], the limits; [`error`].

pub mod disk;
pub mod error;
mod lane;
pub mod pace;
pub mod request;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use self::disk::Disk;
use self::error::BlockError;
use self::lane::Lane;
use self::pace::{DiskPace, Turnstile};
use self::request::{FLAG_UNMAP, MAX_RANGES, Operation, Request};
use super::worker::WorkerTask;
use super::{ActivateError, Activation, ActiveQueue, Interrupt, QueueError, VirtioDevice, Worker};
use crate::log;
use crate::seccomp::ThreadKind;

/// Entries in the queue.
const QUEUE_SIZE: u16 = 256;
/// Data descriptors in a request: the queue without header and status.
const SEG_MAX: u32 = 254;
/// Sectors in one range of a discard or write-zeroes request: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// What the worker's descriptors are called.
const KICK: u64 = 0;
const TIMER: u64 = 1;
const LANE: u64 = 2;
/// Discard in units of a page.
const DISCARD_ALIGNMENT: u32 = 8;

#[derive(Debug)]
enum State {
    /// The disk waits for a driver.
    Idle(Arc<Disk>, Option<Turnstile>),
    /// The thread has it.
    Active(Worker<BlockTask>),
    /// The thread was lost with it.
    Broken,
}

/// The block device.
#[derive(Debug)]
pub struct Block {
    read_only: bool,
    config: [u8; 60],
    state: State,
    name: String,
}

impl Block {
    /// A device over `file`. `name` is that of its thread, `serial` what the driver can ask for.
    ///
    /// # Errors
    /// [`BlockError::Serial`] or [`BlockError::Size`].
    pub fn new(name: &str, file: File, read_only: bool, serial: &str) -> Result<Self, BlockError> {
        let disk = Disk::new(file, read_only, serial)?;
        Ok(Self {
            read_only,
            config: config_space(disk.sectors()),
            state: State::Idle(Arc::new(disk), None),
            name: name.to_owned(),
        })
    }

    /// Limits it, before a driver activates it, together with others of the same pace.
    ///
    /// # Errors
    /// [`BlockError::Timer`].
    pub fn with_pace(mut self, pace: DiskPace) -> Result<Self, BlockError> {
        if let State::Idle(_, turnstile) = &mut self.state {
            *turnstile = Some(Turnstile::new(pace)?);
        }
        Ok(self)
    }
}

/// `virtio_blk_config` (5.2.4).
fn config_space(sectors: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let ranges = u32::try_from(MAX_RANGES).unwrap_or(1).to_le_bytes();
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &ranges);
    put(44, &DISCARD_ALIGNMENT.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &ranges);
    put(56, &[1]);
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn thread(&self) -> (String, ThreadKind) {
        (self.name.clone(), ThreadKind::Block)
    }

    fn more_threads(&self) -> Vec<(String, ThreadKind)> {
        vec![(format!("{}-wait", self.name), ThreadKind::Block)]
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH;
        features |= if self.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let [queue] = activation.take_queues()?;
        let lane = match activation.more_threads.pop() {
            Some(thread) => Some(Lane::new(thread).map_err(|source| ActivateError::Host {
                action: "make the event of a disk's waiting requests",
                source,
            })?),
            None => None,
        };
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(disk, turnstile) => {
                let task = BlockTask {
                    disk,
                    turnstile,
                    lane,
                    queue,
                    memory: activation.memory,
                    interrupt: activation.interrupt.clone(),
                };
                let worker = Worker::start(&activation.thread, task, activation.interrupt)?;
                self.state = State::Active(worker);
                Ok(())
            }
            other => {
                self.state = other;
                Err(ActivateError::Lost)
            }
        }
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            // With the task goes its lane, which waits for what is under way.
            State::Active(worker) => worker
                .stop()
                .map_or(State::Broken, |task| State::Idle(task.disk, task.turnstile)),
            other => other,
        };
    }
}

/// The thread's part.
#[derive(Debug)]
struct BlockTask {
    disk: Arc<Disk>,
    turnstile: Option<Turnstile>,
    /// Without one, everything is waited for.
    lane: Option<Lane>,
    queue: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
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
            LANE => self.hand_back()?,
            TIMER => self.turnstile.iter().for_each(Turnstile::rewind),
            // Level-triggered: an empty counter only means that someone was faster.
            _ => drop(self.queue.kick.read()),
        }
        loop {
            let queue = &mut self.queue.queue;
            queue
                .disable_notification(&self.memory)
                .map_err(QueueError::Ring)?;
            if !self.serve_available()? {
                // The timer or the lane goes on with what is in the ring, so that no notification is needed.
                return Ok(());
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
}

impl BlockTask {
    /// Serves what is in the ring, and says whether that is all: the rest has to wait.
    fn serve_available(&mut self) -> Result<bool, BlockError> {
        loop {
            if let Some(turnstile) = &self.turnstile
                && !turnstile.admits()?
            {
                return Ok(false);
            }
            // A driver may make the same buffers available again before they were used.
            if self.lane.as_ref().is_some_and(Lane::is_full) {
                return Ok(false);
            }
            let memory = &self.memory;
            let queue = &mut self.queue.queue;
            let Some(chain) = queue.iter(memory).map_err(QueueError::Ring)?.next() else {
                return Ok(true);
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
                    log::guest(format_args!("block: {}", crate::error_chain(&error)));
                    0
                }
            };
            self.used(head, used)?;
        }
    }

    /// Gives the driver back what the lane has done.
    fn hand_back(&mut self) -> Result<(), BlockError> {
        if let Some(lane) = &self.lane {
            lane.rewind();
        }
        while let Some((head, used)) = self.lane.as_mut().and_then(Lane::done) {
            self.used(head, used)?;
        }
        Ok(())
    }

    fn used(&mut self, head: u16, bytes: u32) -> Result<(), BlockError> {
        Ok(self
            .queue
            .give_back(&self.memory, head, bytes, &self.interrupt)?)
    }
}

/// As [`serve`], of a request for which the host's disk need not be waited for: a read of what the host has in memory, and a write, which goes
/// there. Otherwise nothing is done.
fn serve_at_once(disk: &Disk, memory: &GuestMemoryMmap, request: &Request) -> Option<u32> {
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
fn serve(disk: &Disk, memory: &GuestMemoryMmap, request: &Request) -> u32 {
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
fn finish(memory: &GuestMemoryMmap, request: &Request, done: Result<u32, BlockError>) -> u32 {
    let (status, written) = match done {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(BlockError::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(error) => {
            log::guest(format_args!("block: {}", crate::error_chain(&error)));
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
