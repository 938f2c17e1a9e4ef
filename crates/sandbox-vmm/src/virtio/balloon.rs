//! Balloon device (VirtIO 1.3, 5.5), for free page reporting: the guest names pages that it does not use, and the host takes
//! them back until they are touched again.
//!
//! Nothing is ever asked of the driver: the size that its balloon is to have is 0. A driver that inflates it all the same gives
//! its pages up as it says. What a driver says of pages that it does use after all harms nobody but itself: they read as
//! zeroes, to it and to the devices, which copy what they read.
//!
//! Linux reports free blocks of 2 MiB and more, two seconds after there are some (Linux: `mm/page_reporting.c`). That is also a huge
//! page of the host's. Smaller blocks, which our guests report for a while after a start, break one up ([`Reclaim`]).
//!
//! Members: the device; [`request`], the parser; [`error`].

pub mod error;
pub mod request;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use sandbox_types::WithCauses;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use self::error::BalloonError;
use super::worker::WorkerTask;
use super::{
    ActivateError, Activation, ActiveQueue, Interrupt, QueueError, VirtioDevice, Worker,
    copy_config,
};
use crate::log;
use crate::memory::RamPages;
use crate::memory::reclaim::Reclaim;
use crate::seccomp::ThreadKind;

/// Entries in each queue. Linux reports 32 ranges at a time, and does without reporting where there is no room for them.
const QUEUE_SIZE: u16 = 64;
/// The requests of one queue that are served before other events are looked at.
const MAX_REQUESTS: u16 = QUEUE_SIZE;
/// The driver reports free pages (5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// The offset of `actual` in `struct virtio_balloon_config` (5.5.4). What comes after it belongs to features that are not offered.
const ACTUAL: u64 = 4;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Pages that go into the balloon.
    Inflate,
    /// Pages that come back out of it.
    Deflate,
    /// Pages that are free at the moment.
    Report,
}

/// The queues by number (5.5.2). Without statistics and hints, two numbers stay empty, and the reporting queue is number 4. Linux,
/// and after it QEMU, leave out the empty numbers, so that it is number 2. Both are served.
const PURPOSES: [Option<Purpose>; 5] = [
    Some(Purpose::Inflate),
    Some(Purpose::Deflate),
    Some(Purpose::Report),
    None,
    Some(Purpose::Report),
];

#[derive(Debug)]
enum State {
    /// Waits for a driver. What has been taken back outlives drivers, as what the process has mapped does.
    Idle(Reclaim),
    Active(Worker<BalloonTask>),
    /// The worker was lost.
    Broken,
}

/// The balloon device.
#[derive(Debug)]
pub struct Balloon {
    state: State,
    /// How large the driver says its balloon is, in pages.
    actual: [u8; 4],
}

impl Balloon {
    /// A device that waits for a driver.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Idle(Reclaim::default()),
            actual: [0; 4],
        }
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("balloon".to_owned(), ThreadKind::Balloon)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; PURPOSES.len()]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // How large it is to be, before how large it is.
        let [a, b, c, d] = self.actual;
        copy_config(&[0, 0, 0, 0, a, b, c, d], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // 5.5.4: all that the driver may write, and at once.
        if let (ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.actual = actual;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let reclaim = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(reclaim) => reclaim,
            other => {
                self.state = other;
                return Err(ActivateError::Lost);
            }
        };
        let reporting = activation.features & (1 << VIRTIO_BALLOON_F_REPORTING) != 0;
        let queues = PURPOSES.into_iter().zip(activation.queues);
        let queues = queues.filter_map(|(purpose, queue)| Some((purpose?, queue?)));
        let queues = queues.filter(|(purpose, _)| *purpose != Purpose::Report || reporting);
        let task = BalloonTask {
            queues: queues.collect(),
            memory: activation.memory,
            reclaim,
            interrupt: activation.interrupt.clone(),
        };
        let worker = Worker::start(&activation.thread, task, activation.interrupt)?;
        self.state = State::Active(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.actual = [0; 4];
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Active(worker) => match worker.stop() {
                Some(task) => State::Idle(task.reclaim),
                None => State::Broken,
            },
            other => other,
        };
    }
}

/// The thread's part.
#[derive(Debug)]
struct BalloonTask {
    queues: Vec<(Purpose, ActiveQueue)>,
    memory: GuestMemoryMmap,
    reclaim: Reclaim,
    interrupt: Interrupt,
}

impl WorkerTask for BalloonTask {
    type Error = BalloonError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let queues = (0..).zip(&self.queues);
        queues
            .map(|(number, (_, queue))| (crate::fd::borrow(&queue.kick), number))
            .collect()
    }

    fn ready(&mut self, number: u64) -> Result<(), BalloonError> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let Some((purpose, active)) = self.queues.get_mut(index) else {
            return Ok(());
        };
        // Level-triggered: an empty counter only means that someone was faster.
        let _ = active.kick.read();
        let memory = &self.memory;
        for _ in 0..MAX_REQUESTS {
            let queue = &mut active.queue;
            let Some(chain) = queue.iter(memory).map_err(QueueError::Ring)?.next() else {
                if queue
                    .enable_notification(memory)
                    .map_err(QueueError::Ring)?
                {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            if let Err(error) = serve(*purpose, chain, memory, &mut self.reclaim) {
                log::guest(format_args!("balloon: {}", WithCauses(&error)));
            }
            // Nothing is written into the buffers.
            active.give_back(memory, head, 0, &self.interrupt)?;
        }
        // There may be more. A full counter says so already.
        match active.kick.write(1) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                Err(BalloonError::Later(error))
            }
            _ => Ok(()),
        }
    }
}

/// Does what one request asks for.
fn serve(
    purpose: Purpose,
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    reclaim: &mut Reclaim,
) -> Result<(), BalloonError> {
    let pages: Vec<RamPages> = match purpose {
        Purpose::Inflate => request::parse_inflate(chain, memory)?,
        Purpose::Report => request::parse_report(chain, memory)?,
        // They come back by being touched.
        Purpose::Deflate => return Ok(()),
    };
    for range in pages {
        reclaim.take(memory, range).map_err(BalloonError::Host)?;
    }
    Ok(())
}
