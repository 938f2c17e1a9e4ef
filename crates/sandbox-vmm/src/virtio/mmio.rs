//! The memory-mapped transport, version 2 (VirtIO 1.3, 4.2), for one device of any kind.
//!
//! The device status (2.1) as a state machine; each arrow is a write to the status register:
//!
//! ```text
//!        ACKNOWLEDGE       DRIVER          FEATURES_OK          DRIVER_OK
//! Reset ───────────> Acknowledged ──> Driver ──────> FeaturesOk ──────> Running
//!   ^                                  (only if the features are ours)     │
//!   ├──────────────────────────── 0 ── any ────────────────────────────────┤
//!   └── 0 ── Failed <── FAILED, any ───────────────────────────────────────┘
//! ```
//!
//! `DEVICE_NEEDS_RESET` is not a state but a flag beside it, set by the device's [`Interrupt`]. Features can
//! be set in `Driver` only, queues in `FeaturesOk` only. Whatever does not fit is ignored, as real hardware
//! does. It has no shared memory regions and does not reset single queues.
//!
//! What the driver reads is in the device's [`registers`](super::registers) at any time; here is what its writes do.

mod status;
#[cfg(test)]
mod tests;

use std::io;

use sandbox_types::WithCauses;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::status::{Phase, Transition};
use super::registers::register;
use super::{Activation, ActiveQueue, Interrupt, VirtioDevice, WorkerThread};
use crate::bus::BusDevice;
use crate::{log, memory};

/// Offset of the register that notifies the device, for ioeventfds.
pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;
/// Offset of the register in which a driver acknowledges interrupts. Writes of [`VIRTIO_MMIO_INT_VRING`] to it have no effect.
///
/// [`VIRTIO_MMIO_INT_VRING`]: super::interrupt::VIRTIO_MMIO_INT_VRING
pub const INTERRUPT_ACK: u64 = register::INTERRUPT_ACK;

/// `virt`.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// No vendor is registered for us; the field is not used for matching.
const VENDOR: u32 = 0;
/// `VIRTIO_F_VERSION_1` (6).
const VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// Why a device cannot be put on the transport.
#[derive(Debug, thiserror::Error)]
pub enum MmioError {
    /// A queue size is no power of two, or too large.
    #[error("the device's queue {index} has {size} entries, which no queue can have")]
    QueueSize {
        /// Which queue.
        index: usize,
        /// Its size.
        size: u16,
    },
    /// The host gave no event descriptor.
    #[error("cannot make a queue's event descriptor")]
    Event {
        /// What the kernel said.
        source: io::Error,
    },
}

/// A device with its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    thread: WorkerThread,
    more_threads: Vec<WorkerThread>,
    phase: Phase,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    /// As the driver set them. The device gets copies.
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
}

impl MmioTransport {
    /// Registers for `device`, which reaches its driver through `interrupt` and has `thread` to itself.
    ///
    /// # Errors
    /// [`MmioError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
        thread: WorkerThread,
    ) -> Result<Self, MmioError> {
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for (index, &size) in device.queue_max_sizes().iter().enumerate() {
            queues.push(Queue::new(size).map_err(|_| MmioError::QueueSize { index, size })?);
            kicks.push(
                EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                    .map_err(|source| MmioError::Event { source })?,
            );
        }
        let transport = Self {
            device,
            memory,
            interrupt,
            thread,
            more_threads: Vec::new(),
            phase: Phase::Reset,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            kicks,
        };
        transport.publish_identity();
        transport.publish_config();
        transport.publish();
        Ok(transport)
    }

    /// Gives the device the threads that it asks for beside its first ([`VirtioDevice::more_threads`]).
    #[must_use]
    pub fn with_more_threads(mut self, threads: Vec<WorkerThread>) -> Self {
        self.more_threads = threads;
        self
    }

    /// The events of the queues, in order, to be raised by writes of their numbers to [`QUEUE_NOTIFY`].
    #[must_use]
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, if it may be set up now.
    fn queue_mut(&mut self) -> Option<&mut Queue> {
        if self.phase != Phase::FeaturesOk {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    /// What the driver reads follows what it has selected, and what it has done to the queue and to the device.
    fn publish(&self) {
        self.publish_selected();
        self.interrupt.set_status(self.phase.status());
    }

    fn publish_selected(&self) {
        let registers = self.interrupt.registers();
        let features = half(self.offered(), self.device_features_sel);
        let queue = self.queue();
        let most = queue.map_or(0, |queue| u32::from(queue.max_size()));
        let ready = queue.map_or(0, |queue| u32::from(queue.ready()));
        registers.store(register::DEVICE_FEATURES, features);
        registers.store(register::QUEUE_SIZE_MAX, most);
        registers.store(register::QUEUE_READY, ready);
    }

    /// What does not change.
    fn publish_identity(&self) {
        let registers = self.interrupt.registers();
        for (at, value) in [
            (register::MAGIC_VALUE, MAGIC),
            (register::VERSION, VERSION),
            (register::DEVICE_ID, self.device.device_type()),
            (register::VENDOR_ID, VENDOR),
        ] {
            registers.store(at, value);
        }
        // Length and base of the selected shared memory region: none exists (4.2.2).
        for at in (register::SHM_LEN_LOW..=register::SHM_BASE_HIGH).step_by(4) {
            registers.store(at, u32::MAX);
        }
    }

    fn publish_config(&self) {
        if !self.device.sees_config_reads() {
            self.interrupt
                .set_config(|space| self.device.read_config(0, space));
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.set_driver_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.set_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queue_mut() else {
            return;
        };
        match offset {
            // A size that is no size leaves the queue as it is.
            register::QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.phase != Phase::Driver {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            // The offered features end at bit 63: others can only be left alone.
            _ => {}
        }
    }

    /// What an ioeventfd does without an exit.
    fn notify(&self, value: u32) {
        let kick = usize::try_from(value)
            .ok()
            .and_then(|index| self.kicks.get(index));
        if let Some(kick) = kick {
            // A full counter means that the device has been told often enough.
            let _ = kick.write(1);
        }
    }

    fn set_status(&mut self, written: u32) {
        let acceptable =
            self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0;
        match self.phase.write(written, acceptable) {
            Transition::Stay => {}
            Transition::Reset => self.reset(),
            Transition::To(phase) => {
                self.phase = phase;
                if phase == Phase::Running {
                    // Before the device interrupts anybody.
                    self.publish();
                    self.activate();
                }
            }
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        // Where a back end has them too, it may have made them wait for a notification; it stands one too many.
        if !self.device.is_served_elsewhere() {
            for kick in &self.kicks {
                // Notifications of the old driver's; an empty counter is no error.
                let _ = kick.read();
            }
        }
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.phase = Phase::Reset;
        self.publish_config();
        self.publish_selected();
        // Last: another processor of the guest's may wait for a status of 0.
        self.interrupt.reset();
    }

    fn activate(&mut self) {
        let kind = self.device.device_type();
        let done = self
            .active_queues()
            .map_err(|error| format!("its queues cannot be used: {error}"))
            .and_then(|queues| {
                self.device
                    .activate(Activation {
                        memory: self.memory.clone(),
                        queues,
                        interrupt: self.interrupt.clone(),
                        features: self.driver_features,
                        thread: self.thread.clone(),
                        more_threads: self.more_threads.clone(),
                    })
                    .map_err(|error| WithCauses(&error).to_string())
            });
        if let Err(message) = done {
            log::guest(format_args!("virtio device of type {kind}: {message}"));
            if let Err(error) = self.interrupt.needs_reset() {
                log::guest(format_args!("virtio device of type {kind}: {error}"));
            }
        }
    }

    fn active_queues(&self) -> Result<Vec<Option<ActiveQueue>>, io::Error> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut active = Vec::with_capacity(self.queues.len());
        for (queue, kick) in self.queues.iter().zip(&self.kicks) {
            if !queue.ready() {
                active.push(None);
                continue;
            }
            let mut queue = Queue::try_from(queue.state()).map_err(io::Error::other)?;
            queue.set_event_idx(event_idx);
            if !queue.is_valid(&self.memory) {
                return Err(io::Error::other("a ring is not in guest memory"));
            }
            if !is_in_ram(&queue, &self.memory) {
                return Err(io::Error::other("a ring is in memory that is only read"));
            }
            active.push(Some(ActiveQueue {
                queue,
                kick: kick.try_clone()?,
            }));
        }
        Ok(active)
    }
}

impl BusDevice for MmioTransport {
    /// Only where the guest cannot read by itself.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(register::CONFIG) {
            Some(at) if self.device.sees_config_reads() => {
                data.fill(0);
                self.device.read_config(at, data);
            }
            _ => self.interrupt.registers().read(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            if matches!(
                self.phase,
                Phase::Driver | Phase::FeaturesOk | Phase::Running
            ) {
                self.device.write_config(at, data);
                self.publish_config();
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            // 4.2.2.2: the driver uses aligned 32-bit accesses only.
            self.write_register(offset, u32::from_le_bytes(word));
            self.publish();
        }
    }
}

/// Whether no ring of the queue touches memory that is only read. Their lengths are those of 2.7, with the fields for events.
fn is_in_ram(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let size = u32::from(queue.size());
    [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ]
    .into_iter()
    .all(|(address, bytes)| memory::is_writable(memory, GuestAddress(address), bytes))
}

/// Bits 0 to 31, or 32 to 63, of the features; there are no others.
fn half(features: u64, selected: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match selected {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}
