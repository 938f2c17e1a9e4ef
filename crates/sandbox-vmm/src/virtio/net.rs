//! Network device over a tap (VirtIO 1.3, 5.1).
//!
//! A pair of queues for each queue of the tap, and a thread for each pair, so that vCPUs that send or receive at the same time
//! do not wait for one copying thread. Header and frame pass between the rings and the tap as they are: the host's
//! kernel is the one that checks headers and does checksums and segments, and the one that copies frames, between its own
//! buffers and guest memory.
//!
//! ```text
//! guest ── transmit chain ──> tap        malformed: dropped, the chain is used
//! guest <── receive chains ── tap        no chain: the tap is not read; too few: the rest of the frame waits
//! guest ── control chain ──> how many pairs it uses: the tap's other queues are detached, as often as is good for the host
//! ```
//!
//! Members: the device; [`task`], a pair's thread; [`pairs`], the tap's queues; [`request`] and [`control`], the parsers;
//! [`tap`], a queue of the tap; [`error`]. With one pair there is no control queue: the host switches by interface and
//! not by address, so there is nothing to filter.

pub mod control;
pub mod error;
mod pairs;
pub mod request;
pub mod tap;
mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox_types::MacAddress;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub use sandbox_types::monitor::MAX_QUEUE_PAIRS as MAX_PAIRS;

use self::error::NetError;
use self::pairs::Pairs;
use self::tap::{OFFLOAD_CSUM, OFFLOAD_TSO4, OFFLOAD_TSO6, Tap};
use self::task::{ControlQueue, NetTask, QUEUE_SIZE};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice, Worker};
use crate::log;
use crate::seccomp::ThreadKind;

/// The least MTU (5.1.4.1).
pub(crate) const MIN_MTU: u16 = 68;

#[derive(Debug)]
enum State {
    /// The tap waits for a driver.
    Idle,
    /// The threads have it.
    Active(Vec<Worker<NetTask>>),
    /// A thread was lost.
    Broken,
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    mac: MacAddress,
    mtu: u16,
    link_up: Arc<AtomicBool>,
    pairs: Arc<Pairs>,
    state: State,
    name: String,
    queue_sizes: Vec<u16>,
}

impl Net {
    /// A device over the queues of a tap. `name` is that of its first thread.
    ///
    /// # Errors
    /// [`NetError::Mtu`] or [`NetError::Queues`].
    pub fn new(name: &str, queues: Vec<Tap>, mac: MacAddress, mtu: u16) -> Result<Self, NetError> {
        if mtu < MIN_MTU {
            return Err(NetError::Mtu { mtu });
        }
        let count = queues.len();
        let rings = match count {
            1 => 2,
            2..=MAX_PAIRS => count.saturating_mul(2).saturating_add(1),
            _ => return Err(NetError::Queues { count }),
        };
        Ok(Self {
            mac,
            mtu,
            link_up: Arc::new(AtomicBool::new(true)),
            pairs: Arc::new(Pairs::new(queues)?),
            state: State::Idle,
            name: name.to_owned(),
            queue_sizes: vec![QUEUE_SIZE; rings],
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
        let [p0, p1] = u16::try_from(self.pairs.len()).unwrap_or(1).to_le_bytes();
        let [m0, m1] = self.mtu.to_le_bytes();
        [a, b, c, d, e, f, s0, s1, p0, p1, m0, m1]
    }

    /// Starts the threads of the pairs that the driver has set up. The first comes last, because it is the one that attaches and
    /// detaches the others' queues as the driver asks.
    fn start(
        &self,
        activation: Activation,
        layout: Layout,
        workers: &mut Vec<Worker<NetTask>>,
    ) -> Result<(), ActivateError> {
        let threads = std::iter::once(&activation.thread).chain(&activation.more_threads);
        let usable = layout.pairs.len();
        let mut control = layout.control.map(|queue| ControlQueue { queue, usable });
        let pairs: Vec<_> = (0..).zip(threads).zip(layout.pairs).collect();
        for ((pair, thread), [rx, tx]) in pairs.into_iter().rev() {
            let Some(lane) = self.pairs.get(pair) else {
                return Err(ActivateError::Lost);
            };
            let wake = &lane.wake;
            let of_pair = (pair, Arc::clone(lane));
            let mut task = NetTask::new(Arc::clone(&self.pairs), of_pair, [rx, tx], &activation);
            if pair == 0 {
                task = task.with_link(Arc::clone(&self.link_up));
                task.control = control.take();
                // Every queue is watched by now.
                if self.pairs.may_change() {
                    self.say(self.pairs.set(1));
                } else {
                    task.detaches_later = true;
                    // Its thread waits for when it may. A full counter wakes as well.
                    let _ = wake.write(1);
                }
            }
            workers.push(Worker::start(thread, task, activation.interrupt.clone())?);
        }
        Ok(())
    }

    fn say(&self, set: std::io::Result<()>) {
        // A tap whose interface is gone does not take it, and then gives nothing either.
        if let Err(error) = set {
            log::guest(format_args!(
                "{}: cannot attach or detach the tap's queues: {error}",
                self.name
            ));
        }
    }
}

/// Which queue is what (5.1.2).
#[derive(Debug)]
struct Layout {
    /// Receive and transmit queue of each pair that can be used.
    pairs: Vec<[ActiveQueue; 2]>,
    control: Option<ActiveQueue>,
}

impl Layout {
    /// Of a device with `offered` pairs. Without `VIRTIO_NET_F_MQ` there is one, and the control queue comes right behind it.
    fn of(activation: &mut Activation, offered: usize) -> Result<Self, ActivateError> {
        let has = |bit: u32| activation.features & (1 << bit) != 0;
        let (many, controlled) = (has(VIRTIO_NET_F_MQ), has(VIRTIO_NET_F_CTRL_VQ));
        let mut queues = std::mem::take(&mut activation.queues).into_iter();
        let mut first = || queues.next().flatten();
        let rx = first().ok_or(ActivateError::QueueDisabled { index: 0 })?;
        let tx = first().ok_or(ActivateError::QueueDisabled { index: 1 })?;
        let mut pairs = vec![[rx, tx]];
        let mut complete = true;
        for _ in 1..if many { offered } else { 1 } {
            // A driver may leave out pairs that it is not going to use.
            match (queues.next().flatten(), queues.next().flatten()) {
                (Some(rx), Some(tx)) if complete => pairs.push([rx, tx]),
                _ => complete = false,
            }
        }
        let control = queues.next().flatten().filter(|_| controlled);
        Ok(Self { pairs, control })
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

    fn more_threads(&self) -> Vec<(String, ThreadKind)> {
        (1..self.pairs.len())
            .map(|pair| (format!("{}.{pair}", self.name), ThreadKind::Net))
            .collect()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let several: &[u32] = match self.pairs.len() {
            1 => &[],
            _ => &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ],
        };
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
        .iter()
        .chain(several)
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if !matches!(self.state, State::Idle) {
            return Err(ActivateError::Lost);
        }
        let layout = Layout::of(&mut activation, self.pairs.len())?;
        // A tap whose interface is gone does not take it, and then gives nothing either.
        if let Some(lane) = self.pairs.get(0)
            && let Err(error) = lane.tap.set_offload(offload(activation.features))
        {
            log::guest(format_args!("{}: cannot set offloads: {error}", self.name));
        }
        let mut workers = Vec::with_capacity(layout.pairs.len());
        let started = self.start(activation, layout, &mut workers);
        // Those that were started are stopped by the reset.
        self.state = State::Active(workers);
        started
    }

    fn reset(&mut self) {
        let workers = match std::mem::replace(&mut self.state, State::Broken) {
            State::Active(workers) => workers,
            other => {
                self.state = other;
                return;
            }
        };
        let stopped: Vec<_> = workers.into_iter().map(Worker::stop).collect();
        if stopped.iter().all(Option::is_some) {
            self.state = State::Idle;
            self.say(self.pairs.attach_all());
        }
    }
}

const _: () = assert!(request::HEADER_BYTES < request::MIN_FRAME_BYTES);
