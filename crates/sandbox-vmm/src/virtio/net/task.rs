//! What the thread of one pair of queues does.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox_types::WithCauses;
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_OK};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::control::{Command, ControlRequest};
use super::error::NetError;
use super::pairs::{Lane, Pairs};
use super::request::{
    Buffer, HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, frame_of, set_num_buffers,
};
use crate::log;
use crate::virtio::chain::{skip, write_over};
use crate::virtio::vectors::Vectors;
use crate::virtio::worker::WorkerTask;
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// Entries in each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Frames that go one way before it is looked whether the other way, or the end, waits.
const BURST: usize = 64;

/// Pieces of guest memory that one call reads into: the kernel takes 1024 (`UIO_MAXIOV`), of which two are ours.
const MAX_PIECES: usize = 1022;

/// Where `status` is in `struct virtio_net_config` (VirtIO 1.3, 5.1.4).
const STATUS: u64 = 6;
/// A status without `VIRTIO_NET_S_LINK_UP`, nor anything else.
const LINK_DOWN: u16 = 0;

/// What the worker's descriptors are called.
const RX: u64 = 0;
const TX: u64 = 1;
const TAP: u64 = 2;
/// Set when a burst ended before there was nothing more to do, and when the pair is used from now on.
const AGAIN: u64 = 3;
const CONTROL: u64 = 4;
/// The next change of what is attached may be made.
const TIMER: u64 = 5;

/// The thread's part.
#[derive(Debug)]
pub(super) struct NetTask {
    pairs: Arc<Pairs>,
    /// Which pair it serves.
    pair: usize,
    lane: Arc<Lane>,
    rx: ActiveQueue,
    tx: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    /// The control queue, of the first pair's thread.
    pub(super) control: Option<ControlQueue>,
    /// All queues are attached still, though the driver has asked for none but the first yet.
    pub(super) detaches_later: bool,
    /// Whether a frame may be in several buffers.
    mergeable: bool,
    /// Buffers that wait for a frame; never more than the queue has.
    held: VecDeque<Buffer>,
    /// The header of the frame that was read last.
    header: [u8; HEADER_BYTES],
    /// What the buffers had no room for.
    spill: Box<[u8; MAX_FRAME_BYTES]>,
    /// A frame that waits for more buffers.
    waiting: Option<Frame>,
    /// What is told when the tap is gone; the first pair's thread is the one that tells.
    link_up: Option<Arc<AtomicBool>>,
}

/// The control queue.
#[derive(Debug)]
pub(super) struct ControlQueue {
    pub(super) queue: ActiveQueue,
    /// How many pairs the driver has set up.
    pub(super) usable: usize,
}

/// A frame that was read from the tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    /// Its length, with the header.
    length: usize,
    /// How much of that is in the held buffers, if the header is counted as if it were; the rest is in `spill`.
    placed: usize,
}

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    /// It is in the guest.
    Done,
    /// It can never be.
    Dropped,
    /// It has to wait for buffers.
    Later,
}

impl WorkerTask for NetTask {
    type Error = NetError;

    fn watched(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        let mut watched = vec![
            (crate::fd::borrow(&self.rx.kick), RX),
            (crate::fd::borrow(&self.tx.kick), TX),
            (self.lane.tap.as_fd(), TAP),
            (crate::fd::borrow(&self.lane.wake), AGAIN),
        ];
        if let Some(control) = &self.control {
            watched.push((crate::fd::borrow(&control.queue.kick), CONTROL));
        }
        if self.pair == 0 {
            watched.push((self.pairs.timer(), TIMER));
        }
        watched
    }

    /// The tap stays readable while there is no buffer for what it has.
    fn edge_triggered(&self, number: u64) -> bool {
        number == TAP
    }

    fn ready(&mut self, number: u64) -> Result<(), NetError> {
        // An empty counter only means that someone was faster.
        let _ = match number {
            RX => self.rx.kick.read(),
            TX => self.tx.kick.read(),
            AGAIN => self.lane.wake.read(),
            CONTROL => self
                .control
                .as_ref()
                .map_or(Ok(0), |it| it.queue.kick.read()),
            _ => Ok(0),
        };
        let mut more = false;
        if number == TIMER {
            self.pairs.rewind();
        }
        if matches!(number, CONTROL | AGAIN | TIMER) {
            more |= self.obey_driver()?;
        }
        if matches!(number, RX | TAP | AGAIN) {
            more |= self.receive()?;
        }
        if matches!(number, TX | AGAIN) {
            more |= self.transmit()?;
        }
        if more {
            self.lane.wake.write(1).map_err(NetError::Again)?;
        }
        Ok(())
    }
}

impl NetTask {
    /// Serves a pair, with nothing yet for the driver to control and nobody to tell.
    pub(super) fn new(
        pairs: Arc<Pairs>,
        (pair, lane): (usize, Arc<Lane>),
        [rx, tx]: [ActiveQueue; 2],
        activation: &Activation,
    ) -> Self {
        Self {
            pairs,
            pair,
            lane,
            rx,
            tx,
            memory: activation.memory.clone(),
            interrupt: activation.interrupt.clone(),
            control: None,
            detaches_later: false,
            mergeable: activation.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
            held: VecDeque::new(),
            header: [0; HEADER_BYTES],
            spill: Box::new([0; MAX_FRAME_BYTES]),
            waiting: None,
            link_up: None,
        }
    }

    /// Lets it tell that the tap is gone.
    pub(super) fn with_link(mut self, link_up: Arc<AtomicBool>) -> Self {
        self.link_up = Some(link_up);
        self
    }

    /// Does what the driver asks for in the control queue, and says whether there may be more. What may not be done yet stays in the queue, and the
    /// timer goes on with it.
    fn obey_driver(&mut self) -> Result<bool, NetError> {
        if self.detaches_later {
            if !self.pairs.admits_change()? {
                return Ok(false);
            }
            self.detaches_later = false;
            if let Err(error) = set(&self.pairs, 1) {
                log::guest(format_args!("net: {}", WithCauses(&error)));
            }
        }
        let Some(control) = &mut self.control else {
            return Ok(false);
        };
        let (memory, queue) = (&self.memory, &mut control.queue.queue);
        // One request after the other, each of which the driver waits for.
        queue.disable_notification(memory).map_err(NetError::Ring)?;
        if !self.pairs.admits_change()? {
            return Ok(false);
        }
        let Some(chain) = queue.iter(memory).map_err(NetError::Ring)?.next() else {
            return queue.enable_notification(memory).map_err(NetError::Ring);
        };
        let head = chain.head_index();
        let used = match ControlRequest::parse(chain, memory) {
            Ok(request) => {
                let done = request
                    .command
                    .and_then(|command| obey(&self.pairs, control.usable, &command));
                let answer = match done {
                    Ok(()) => VIRTIO_NET_OK,
                    Err(error) => {
                        log::guest(format_args!("net: {}", WithCauses(&error)));
                        VIRTIO_NET_ERR
                    }
                };
                let answer = u8::try_from(answer).unwrap_or(1);
                // A driver that gives no place for the answer gets none.
                u32::from(memory.write_obj(answer, request.ack).is_ok())
            }
            Err(error) => {
                log::guest(format_args!("net: {}", WithCauses(&error)));
                0
            }
        };
        queue.add_used(memory, head, used).map_err(NetError::Ring)?;
        if queue.needs_notification(memory).map_err(NetError::Ring)? {
            self.interrupt.signal_queue().map_err(NetError::Interrupt)?;
        }
        Ok(true)
    }

    /// Sends what the guest has, and says whether there may be more.
    fn transmit(&mut self) -> Result<bool, NetError> {
        let mut left = BURST;
        loop {
            let queue = &mut self.tx.queue;
            queue
                .disable_notification(&self.memory)
                .map_err(NetError::Ring)?;
            while left > 0 {
                let queue = &mut self.tx.queue;
                let Some(chain) = queue.iter(&self.memory).map_err(NetError::Ring)?.next() else {
                    break;
                };
                left -= 1;
                let head = chain.head_index();
                match frame_of(chain, &self.memory) {
                    Ok(frame) => {
                        // A frame that the host does not take is lost, as on any network.
                        if let Err(error) = self.lane.tap.write(&frame) {
                            log::guest(format_args!("net: a frame is lost: {error}"));
                        }
                    }
                    Err(error) => log::guest(format_args!("net: {}", WithCauses(&error))),
                }
                let queue = &mut self.tx.queue;
                queue
                    .add_used(&self.memory, head, 0)
                    .map_err(NetError::Ring)?;
            }
            let more = left == 0
                || self
                    .tx
                    .queue
                    .enable_notification(&self.memory)
                    .map_err(NetError::Ring)?;
            if left == 0 || !more {
                if left < BURST {
                    self.notify(TX)?;
                }
                return Ok(more);
            }
        }
    }

    /// Gives the guest what the tap has, and says whether there may be more.
    fn receive(&mut self) -> Result<bool, NetError> {
        let mut left = BURST;
        let mut placed = false;
        let more = loop {
            let frame = match self.waiting.take() {
                Some(frame) => frame,
                None if left == 0 => break true,
                None => {
                    left -= 1;
                    match self.next_frame()? {
                        Some(frame) => frame,
                        None => break false,
                    }
                }
            };
            match self.place(frame)? {
                Placed::Done => placed = true,
                Placed::Dropped => log::guest(format_args!(
                    "net: a frame of {} bytes does not fit the receive buffers",
                    frame.length
                )),
                Placed::Later => {
                    self.waiting = Some(frame);
                    break false;
                }
            }
        };
        if placed {
            self.notify(RX)?;
        }
        Ok(more)
    }

    /// Reads a frame from the tap into the buffers that there are. Without any, the tap keeps it.
    fn next_frame(&mut self) -> Result<Option<Frame>, NetError> {
        while self.pairs.is_active(self.pair) {
            if self.hold(MAX_FRAME_BYTES)? < HEADER_BYTES {
                return Ok(None);
            }
            let header = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
            let segments = self.held.iter().flat_map(Buffer::segments);
            let mut room = HEADER_BYTES;
            let mut vectors = Vectors::with_capacity(self.held.len().saturating_add(2));
            vectors.add_own(&mut self.header);
            for segment in skip(segments, header).take(MAX_PIECES) {
                vectors
                    .add_guest(&self.memory, segment)
                    .map_err(NetError::Memory)?;
                room = room.saturating_add(usize::try_from(segment.length).unwrap_or(usize::MAX));
            }
            let spill = MAX_FRAME_BYTES.saturating_sub(room);
            vectors.add_own(self.spill.get_mut(..spill).unwrap_or_default());
            match self.lane.tap.read(&vectors) {
                Ok(length) if length >= MIN_FRAME_BYTES => {
                    let placed = length.min(room);
                    return Ok(Some(Frame { length, placed }));
                }
                // End of file, which a tap does not have.
                Ok(0) => self.lose_link(),
                Ok(_) => continue,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => {}
                    Some(libc::EFAULT) => {
                        log::guest(format_args!("net: a frame is lost: {error}"));
                        self.give_back()?;
                        continue;
                    }
                    _ => self.lose_link(),
                },
            }
            break;
        }
        Ok(None)
    }

    /// The interface was removed, and does not come back under this descriptor; or the queue was just detached.
    fn lose_link(&self) {
        let was_up = |link: &Arc<AtomicBool>| link.swap(false, Ordering::AcqRel);
        if self.link_up.as_ref().is_some_and(was_up) {
            log::guest(format_args!("net: the tap is gone; the link is down"));
            if let Err(error) = self.interrupt.signal_config(STATUS, LINK_DOWN) {
                log::guest(format_args!("net: cannot interrupt the driver: {error}"));
            }
        }
    }

    /// Takes buffers from the ring until a frame of `bytes` bytes fits, and says how many do.
    fn hold(&mut self, bytes: usize) -> Result<usize, NetError> {
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut room: u64 = self.held.iter().map(Buffer::bytes).sum();
        let most = match self.mergeable {
            true => usize::from(QUEUE_SIZE),
            false => 1,
        };
        while room < wanted && self.held.len() < most {
            let Some(buffer) = self.next_buffer()? else {
                break;
            };
            room = room.saturating_add(buffer.bytes());
            self.held.push_back(buffer);
        }
        Ok(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// Gives the guest a frame with all the buffers that it is in.
    fn place(&mut self, frame: Frame) -> Result<Placed, NetError> {
        let spilled = frame.length.saturating_sub(frame.placed);
        if spilled > 0 && self.hold(frame.length)? < frame.length {
            let full = self.held.len() >= usize::from(QUEUE_SIZE);
            return Ok(match self.mergeable && !full {
                true => Placed::Later,
                false => Placed::Dropped,
            });
        }
        let mut left = u64::try_from(frame.length).unwrap_or(u64::MAX);
        let used = |buffer: &Buffer| {
            let used = left.min(buffer.bytes());
            left = left.saturating_sub(used);
            (used > 0).then(|| u32::try_from(used).unwrap_or(u32::MAX))
        };
        let used: Vec<u32> = self.held.iter().map_while(used).collect();
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        set_num_buffers(&mut self.header, count);
        let segments = || self.held.iter().flat_map(Buffer::segments);
        write_over(&self.memory, segments(), &self.header).map_err(NetError::Memory)?;
        if spilled > 0 {
            let placed = u64::try_from(frame.placed).unwrap_or(u64::MAX);
            let rest = self.spill.get(..spilled).unwrap_or_default();
            write_over(&self.memory, skip(segments(), placed), rest).map_err(NetError::Memory)?;
        }
        for (buffer, used) in self.held.drain(..used.len()).zip(used) {
            self.rx
                .queue
                .add_used(&self.memory, buffer.head, used)
                .map_err(NetError::Ring)?;
        }
        Ok(Placed::Done)
    }

    /// Gives the driver back the held buffers, with nothing in them.
    fn give_back(&mut self) -> Result<(), NetError> {
        for buffer in self.held.drain(..) {
            self.rx
                .queue
                .add_used(&self.memory, buffer.head, 0)
                .map_err(NetError::Ring)?;
        }
        self.notify(RX)
    }

    /// Takes a buffer from the ring. What is none goes back; no more of that than the queue has in one go.
    fn next_buffer(&mut self) -> Result<Option<Buffer>, NetError> {
        // A frame's only buffer has room for the header.
        let least = match self.mergeable {
            true => 1,
            false => u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX),
        };
        for _ in 0..QUEUE_SIZE {
            let queue = &mut self.rx.queue;
            let Some(chain) = queue.iter(&self.memory).map_err(NetError::Ring)?.next() else {
                if queue
                    .enable_notification(&self.memory)
                    .map_err(NetError::Ring)?
                {
                    continue;
                }
                return Ok(None);
            };
            let head = chain.head_index();
            match Buffer::parse(chain, &self.memory, least) {
                Ok(buffer) => return Ok(Some(buffer)),
                Err(error) => {
                    log::guest(format_args!("net: {}", WithCauses(&error)));
                    queue
                        .add_used(&self.memory, head, 0)
                        .map_err(NetError::Ring)?;
                }
            }
        }
        // Not now: another pass goes on.
        self.lane.wake.write(1).map_err(NetError::Again)?;
        Ok(None)
    }

    fn notify(&mut self, queue: u64) -> Result<(), NetError> {
        let queue = match queue {
            RX => &mut self.rx.queue,
            _ => &mut self.tx.queue,
        };
        if queue
            .needs_notification(&self.memory)
            .map_err(NetError::Ring)?
        {
            self.interrupt.signal_queue().map_err(NetError::Interrupt)?;
        }
        Ok(())
    }
}

/// Does a command of a driver that has set up `usable` pairs.
fn obey(pairs: &Pairs, usable: usize, command: &Command) -> Result<(), NetError> {
    let Command::SetPairs(count) = *command;
    let wanted = usize::from(count);
    if wanted == 0 || wanted > usable {
        return Err(NetError::Pairs {
            pairs: count,
            usable,
        });
    }
    set(pairs, wanted)
}

fn set(pairs: &Pairs, count: usize) -> Result<(), NetError> {
    pairs.set(count).map_err(|source| NetError::Tap {
        action: "attach or detach a queue of",
        source,
    })
}
