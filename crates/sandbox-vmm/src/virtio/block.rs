//! Block device over a raw file (VirtIO 1.3, 5.2).
//!
//! As many queues as it is made with, so that vCPUs that read or write at the same time do not wait for one copying thread. Each has a thread, which does
//! one request after the other, and a lane for those that have to wait for the host's disk, so that they hold nobody else up. Writes are
//! durable after a flush; there is no write-through mode. Where the sandbox's disks are limited, requests stay in the ring until they may pass.
//!
//! Members: the device; [`request`], the parser; [`disk`], the file; `task`, a queue's thread; `lane`, what waits; [`pace`], the limits; [`error`].

pub mod disk;
pub mod error;
mod lane;
pub(crate) mod pace;
pub mod request;
mod task;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::sync::Arc;

use sandbox_types::monitor::MAX_DISK_QUEUES;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::disk::Disk;
use self::error::BlockError;
use self::lane::{Lane, Ring, ThreadLane};
use self::pace::{DiskPace, Turnstile};
use self::request::MAX_RANGES;
use self::task::{BlockTask, Kit};
use super::{ActivateError, Activation, VirtioDevice, Worker, WorkerThread};
use crate::seccomp::ThreadKind;

/// Entries in all queues together: for each, the driver has memory.
const ENTRIES: u16 = 256;
/// Sectors in one range of a discard or write-zeroes request: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Discard in units of a page.
const DISCARD_ALIGNMENT: u32 = 8;

#[derive(Debug)]
enum State {
    /// Nobody drives the disk. A kit for each queue.
    Idle(Vec<Kit>),
    /// The threads of the queues that the driver has set up, and the kits of the others.
    Active(Vec<Worker<BlockTask>>, Vec<Kit>),
    /// A thread was lost.
    Broken,
}

/// The block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; 60],
    state: State,
    name: String,
    queue_sizes: Vec<u16>,
    /// Lanes that are threads: where the host has no io_uring.
    lane_threads: usize,
}

impl Block {
    /// A device over `file` with so many queues. `name` is that of its first thread, `serial` what the driver can ask for.
    ///
    /// # Errors
    /// [`BlockError::Serial`], [`BlockError::Queues`] or [`BlockError::Size`].
    pub fn new(
        name: &str,
        file: File,
        read_only: bool,
        serial: &str,
        queues: usize,
    ) -> Result<Self, BlockError> {
        if !(1..=MAX_DISK_QUEUES).contains(&queues) {
            return Err(BlockError::Queues { count: queues });
        }
        let disk = Disk::new(file, read_only, serial)?;
        let share = u16::try_from(queues.next_power_of_two()).unwrap_or(ENTRIES);
        let queue_sizes = vec![ENTRIES / share; queues];
        let kits: Vec<_> = std::iter::repeat_with(|| Kit {
            turnstile: None,
            ring: Ring::new().ok(),
        })
        .take(queues)
        .collect();
        Ok(Self {
            config: config_space(disk.sectors(), &queue_sizes),
            disk: Arc::new(disk),
            lane_threads: kits.iter().filter(|kit| kit.ring.is_none()).count(),
            state: State::Idle(kits),
            name: name.to_owned(),
            queue_sizes,
        })
    }

    /// Has threads for what waits, as on a host that has no io_uring. For comparison.
    #[must_use]
    pub fn without_rings(mut self) -> Self {
        if let State::Idle(kits) = &mut self.state {
            kits.iter_mut().for_each(|kit| kit.ring = None);
            self.lane_threads = kits.len();
        }
        self
    }

    /// Limits it, before a driver activates it, together with others of the same pace.
    ///
    /// # Errors
    /// [`BlockError::Timer`].
    pub(crate) fn with_pace(mut self, pace: &DiskPace) -> Result<Self, BlockError> {
        if let State::Idle(kits) = &mut self.state {
            for kit in kits {
                kit.turnstile = Some(Turnstile::new(pace.clone())?);
            }
        }
        Ok(self)
    }

    /// Starts the threads of the queues that the driver has set up.
    fn start(
        &self,
        mut activation: Activation,
        kits: &mut Vec<Kit>,
        workers: &mut Vec<Worker<BlockTask>>,
    ) -> Result<(), ActivateError> {
        let usable = match activation.features & (1 << VIRTIO_BLK_F_MQ) {
            0 => 1,
            _ => self.queue_sizes.len(),
        };
        let queues = std::mem::take(&mut activation.queues);
        let more = activation.more_threads.len();
        let mut lane_threads = activation
            .more_threads
            .split_off(more.saturating_sub(self.lane_threads));
        let threads = std::iter::once(&activation.thread).chain(&activation.more_threads);
        for ((index, queue), thread) in queues.into_iter().enumerate().take(usable).zip(threads) {
            // A driver may leave out queues that it is not going to use, but for the first.
            let queue = match queue {
                Some(queue) => queue,
                None if index == 0 => return Err(ActivateError::QueueDisabled { index }),
                None => continue,
            };
            let kit = kits.pop().ok_or(ActivateError::Lost)?;
            let lane = match kit.ring {
                Some(ring) => Some(Lane::Ring(ring)),
                None => lane_threads.pop().map(lane_of_thread).transpose()?,
            };
            let task = BlockTask {
                disk: Arc::clone(&self.disk),
                turnstile: kit.turnstile,
                lane,
                queue,
                memory: activation.memory.clone(),
                interrupt: activation.interrupt.clone(),
            };
            workers.push(Worker::start(thread, task, activation.interrupt.clone())?);
        }
        Ok(())
    }
}

fn lane_of_thread(thread: WorkerThread) -> Result<Lane, ActivateError> {
    let lane = ThreadLane::new(thread).map_err(|source| ActivateError::Host {
        action: "make the event of a disk's waiting requests",
        source,
    })?;
    Ok(Lane::Thread(lane))
}

/// `virtio_blk_config` (5.2.4).
fn config_space(sectors: u64, queue_sizes: &[u16]) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in config.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let ranges = u32::try_from(MAX_RANGES).unwrap_or(1).to_le_bytes();
    put(0, &sectors.to_le_bytes());
    // Data descriptors in a request: a queue without header and status.
    let segments = queue_sizes.iter().min().map_or(1, |least| least - 2);
    put(12, &u32::from(segments).to_le_bytes());
    put(
        34,
        &u16::try_from(queue_sizes.len()).unwrap_or(1).to_le_bytes(),
    );
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
        let queues = (1..self.queue_sizes.len()).map(|queue| format!("{}.{queue}", self.name));
        let lanes = (0..self.lane_threads).map(|lane| format!("{}-wait{lane}", self.name));
        queues
            .chain(lanes)
            .map(|name| (name, ThreadKind::Block))
            .collect()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH;
        features |= if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        if self.queue_sizes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut kits = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(kits) => kits,
            other => {
                self.state = other;
                return Err(ActivateError::Lost);
            }
        };
        let mut workers = Vec::with_capacity(kits.len());
        let started = self.start(activation, &mut kits, &mut workers);
        // Those that were started are stopped by the reset.
        self.state = State::Active(workers, kits);
        started
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Active(workers, mut kits) => {
                let stopped: Vec<_> = workers.into_iter().map(Worker::stop).collect();
                kits.extend(stopped.into_iter().flatten().map(BlockTask::into_kit));
                match kits.len() == self.queue_sizes.len() {
                    true => State::Idle(kits),
                    false => State::Broken,
                }
            }
            other => other,
        };
    }
}
