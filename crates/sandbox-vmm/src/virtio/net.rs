//! Network device over a tap (VirtIO 1.3, 5.1).
//!
//! One pair of queues and one thread for both. Header and frame pass between the rings and the tap as they are: the host's
//! kernel is the one that checks headers and does checksums and segments. A frame is copied once on its way.
//!
//! ```text
//! guest ── transmit chain ──> frame ──> tap        malformed: dropped, the chain is used
//! guest <── receive chains ── frame <── tap        no chain: the frame waits, and the tap is not read
//! ```
//!
//! Members: the device; [`request`], the parser; [`tap`], the tap; [`error`]. No control queue: the host switches by
//! interface and not by address, so there is nothing to filter.

pub mod error;
pub mod request;
pub mod tap;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox_types::MacAddress;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::error::NetError;
use self::request::{
    Buffer, HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, copy_frame, set_num_buffers,
};
use self::tap::{OFFLOAD_CSUM, OFFLOAD_TSO4, OFFLOAD_TSO6, Tap};
use super::worker::WorkerTask;
use super::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice, Worker};
use crate::log;
use crate::seccomp::ThreadKind;

/// The least MTU (5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// Entries in each queue.
const QUEUE_SIZE: u16 = 256;
/// Frames that go one way before it is looked whether the other way, or the end, waits.
const BURST: usize = 64;

/// What the worker's descriptors are called.
const RX: u64 = 0;
const TX: u64 = 1;
const TAP: u64 = 2;
const AGAIN: u64 = 3;

#[derive(Debug)]
enum State {
    /// The tap waits for a driver.
    Idle(Tap),
    /// The thread has it.
    Active(Worker<NetTask>),
    /// The thread was lost with it.
    Broken,
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    mac: MacAddress,
    mtu: u16,
    link_up: Arc<AtomicBool>,
    state: State,
    name: String,
}

impl Net {
    /// A device over `tap`. `name` is that of its thread.
    ///
    /// # Errors
    /// [`NetError::Mtu`].
    pub fn new(name: &str, tap: Tap, mac: MacAddress, mtu: u16) -> Result<Self, NetError> {
        if mtu < MIN_MTU {
            return Err(NetError::Mtu { mtu });
        }
        Ok(Self {
            mac,
            mtu,
            link_up: Arc::new(AtomicBool::new(true)),
            state: State::Idle(tap),
            name: name.to_owned(),
        })
    }

    /// `virtio_net_config` (5.1.4).
    fn config(&self) -> [u8; 12] {
        let [a, b, c, d, e, f] = self.mac.bytes();
        let status = match self.link_up.load(Ordering::Acquire) {
            true => u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1),
            false => 0,
        };
        let [s0, s1] = status.to_le_bytes();
        let [p0, p1] = 1_u16.to_le_bytes();
        let [m0, m1] = self.mtu.to_le_bytes();
        [a, b, c, d, e, f, s0, s1, p0, p1, m0, m1]
    }
}

/// What the tap may give the driver.
fn offload(features: u64) -> u32 {
    let has = |bit: u32| features & (1 << bit) != 0;
    let mut offload = 0;
    if has(VIRTIO_NET_F_GUEST_CSUM) {
        offload |= OFFLOAD_CSUM;
        // 5.1.3.1: segments need checksums.
        if has(VIRTIO_NET_F_GUEST_TSO4) {
            offload |= OFFLOAD_TSO4;
        }
        if has(VIRTIO_NET_F_GUEST_TSO6) {
            offload |= OFFLOAD_TSO6;
        }
    }
    offload
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn thread(&self) -> (String, ThreadKind) {
        (self.name.clone(), ThreadKind::Net)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        ]
        .into_iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let [rx, tx] = activation.take_queues()?;
        let host = |action| move |source| ActivateError::Host { action, source };
        let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(host("make the network worker's event"))?;
        let tap = match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(tap) => tap,
            other => {
                self.state = other;
                return Err(ActivateError::Lost);
            }
        };
        // A tap whose interface is gone does not take it, and then gives nothing either.
        if let Err(error) = tap.set_offload(offload(activation.features)) {
            log::guest(format_args!("{}: cannot set offloads: {error}", self.name));
        }
        let task = NetTask {
            tap,
            rx,
            tx,
            memory: activation.memory,
            interrupt: activation.interrupt.clone(),
            again,
            mergeable: activation.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
            held: VecDeque::new(),
            received: Box::new([0; MAX_FRAME_BYTES]),
            waiting: None,
            sent: Box::new([0; MAX_FRAME_BYTES]),
            link_up: Arc::clone(&self.link_up),
        };
        self.state = State::Active(Worker::start(
            &activation.thread,
            task,
            activation.interrupt,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Active(worker) => worker
                .stop()
                .map_or(State::Broken, |task| State::Idle(task.tap)),
            other => other,
        };
    }
}

/// The thread's part.
#[derive(Debug)]
struct NetTask {
    tap: Tap,
    rx: ActiveQueue,
    tx: ActiveQueue,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    /// Set when a burst ended before there was nothing more to do.
    again: EventFd,
    /// Whether a frame may be in several buffers.
    mergeable: bool,
    /// Buffers that wait for a frame; never more than the queue has.
    held: VecDeque<Buffer>,
    received: Box<[u8; MAX_FRAME_BYTES]>,
    /// The length of the frame in `received` that waits for buffers.
    waiting: Option<usize>,
    sent: Box<[u8; MAX_FRAME_BYTES]>,
    link_up: Arc<AtomicBool>,
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
        vec![
            (crate::fd::borrow(&self.rx.kick), RX),
            (crate::fd::borrow(&self.tx.kick), TX),
            (self.tap.as_fd(), TAP),
            (crate::fd::borrow(&self.again), AGAIN),
        ]
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
            AGAIN => self.again.read(),
            _ => Ok(0),
        };
        let mut more = false;
        if number != TX {
            more |= self.receive()?;
        }
        if matches!(number, TX | AGAIN) {
            more |= self.transmit()?;
        }
        if more {
            self.again.write(1).map_err(NetError::Again)?;
        }
        Ok(())
    }
}

impl NetTask {
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
                match copy_frame(chain, &self.memory, &mut self.sent) {
                    Ok(length) => {
                        let frame = self.sent.get(..length).unwrap_or_default();
                        // A frame that the host does not take is lost, as on any network.
                        if let Err(error) = self.tap.write(frame) {
                            log::guest(format_args!("net: a frame is lost: {error}"));
                        }
                    }
                    Err(error) => log::guest(format_args!("net: {}", crate::error_chain(&error))),
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
            let length = match self.waiting {
                Some(length) => length,
                None if left == 0 => break true,
                None => {
                    left -= 1;
                    match self.next_frame() {
                        Some(length) => length,
                        None => break false,
                    }
                }
            };
            self.waiting = None;
            match self.place(length)? {
                Placed::Done => placed = true,
                Placed::Dropped => log::guest(format_args!(
                    "net: a frame of {length} bytes does not fit the receive buffers"
                )),
                Placed::Later => {
                    self.waiting = Some(length);
                    break false;
                }
            }
        };
        if placed {
            self.notify(RX)?;
        }
        Ok(more)
    }

    /// Reads a frame from the tap.
    fn next_frame(&mut self) -> Option<usize> {
        loop {
            match self.tap.read(self.received.as_mut_slice()) {
                Ok(length) if length >= MIN_FRAME_BYTES => return Some(length),
                // End of file, which a tap does not have.
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {}
            }
            // The interface was removed; it does not come back under this descriptor.
            if self.link_up.swap(false, Ordering::AcqRel) {
                log::guest(format_args!("net: the tap is gone; the link is down"));
                if let Err(error) = self.interrupt.signal_config() {
                    log::guest(format_args!("net: cannot interrupt the driver: {error}"));
                }
            }
            return None;
        }
    }

    /// Copies the frame of `length` bytes in `received` to the guest.
    fn place(&mut self, length: usize) -> Result<Placed, NetError> {
        let needed = u64::try_from(length).unwrap_or(u64::MAX);
        let mut room: u64 = self.held.iter().map(Buffer::bytes).sum();
        while self.held.is_empty() || (self.mergeable && room < needed) {
            if self.held.len() >= usize::from(QUEUE_SIZE) {
                return Ok(Placed::Dropped);
            }
            let Some(buffer) = self.next_buffer()? else {
                return Ok(Placed::Later);
            };
            room = room.saturating_add(buffer.bytes());
            self.held.push_back(buffer);
        }
        let count = if self.mergeable {
            let mut sum = 0_u64;
            let fits = |buffer: &Buffer| {
                let before = sum;
                sum = sum.saturating_add(buffer.bytes());
                before < needed
            };
            self.held.iter().map(fits).take_while(|used| *used).count()
        } else {
            1
        };
        if !self.mergeable && self.held.front().is_some_and(|only| only.bytes() < needed) {
            return Ok(Placed::Dropped);
        }
        set_num_buffers(
            self.received.as_mut_slice(),
            u16::try_from(count).unwrap_or(u16::MAX),
        );
        let mut rest = self.received.get(..length).unwrap_or_default();
        let mut whole = true;
        for buffer in self.held.drain(..count) {
            // The driver gets every buffer back, one that it cannot be written to with nothing in it.
            let used = match buffer.fill(&self.memory, rest) {
                Ok(used) => used,
                Err(error) => {
                    whole = false;
                    log::guest(format_args!("net: {}", crate::error_chain(&error)));
                    0
                }
            };
            rest = rest.get(used..).unwrap_or_default();
            self.rx
                .queue
                .add_used(
                    &self.memory,
                    buffer.head,
                    u32::try_from(used).unwrap_or(u32::MAX),
                )
                .map_err(NetError::Ring)?;
        }
        debug_assert!(!whole || rest.is_empty());
        Ok(Placed::Done)
    }

    /// Takes a buffer from the ring. What is none goes back; no more of that than the queue has in one go.
    fn next_buffer(&mut self) -> Result<Option<Buffer>, NetError> {
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
            match Buffer::parse(chain) {
                Ok(buffer) => return Ok(Some(buffer)),
                Err(error) => {
                    log::guest(format_args!("net: {}", crate::error_chain(&error)));
                    queue
                        .add_used(&self.memory, head, 0)
                        .map_err(NetError::Ring)?;
                }
            }
        }
        // Not now: another pass goes on.
        self.again.write(1).map_err(NetError::Again)?;
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

const _: () = assert!(HEADER_BYTES < MIN_FRAME_BYTES);
