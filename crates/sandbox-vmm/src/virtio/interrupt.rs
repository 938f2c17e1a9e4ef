//! The device's way to the driver: used-buffer and configuration-change notifications, and what the driver reads of them.
//!
//! The interrupt status always has the used-buffer bit: a driver looks at its rings when it has been interrupted, and finds something or
//! not. So there is nothing to set before such an interrupt, and nothing to clear when the driver acknowledges it. The bit for
//! changes of the configuration is exact:
//!
//! ```text
//! device:  space, generation and bit are put into the window ──> interrupt
//! driver:  reads the status, acknowledges what it read ──> the bit is cleared ──> reads the space
//! ```
//!
//! A change that comes before the bit is cleared is one that the driver has not read yet; one that comes afterwards sets it again.
//! What the transport and the device's threads both say is changed and put into the window under a lock, so that neither undoes what
//! the other said.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::AtomicAccess;
use vmm_sys_util::eventfd::EventFd;

use super::registers::{CONFIG_BYTES, Registers, register};

/// Bit of the interrupt status: the device used a buffer (VirtIO 1.3, 4.2.2).
pub(crate) const VIRTIO_MMIO_INT_VRING: u32 = 1;
/// Bit of the interrupt status: the configuration, or `DEVICE_NEEDS_RESET`, changed.
pub(crate) const VIRTIO_MMIO_INT_CONFIG: u32 = 2;
/// Bit of the device status: the device cannot go on (2.1).
pub(super) const DEVICE_NEEDS_RESET: u32 = 64;

#[derive(Debug)]
struct Line {
    said: Mutex<Said>,
    registers: Registers,
    irq: EventFd,
}

/// What the driver reads that the device's threads change too.
#[derive(Debug, Default)]
struct Said {
    /// The device status without [`DEVICE_NEEDS_RESET`].
    status: u32,
    needs_reset: bool,
    /// Whether the driver has not acknowledged a change of the configuration, or of `needs_reset`.
    changed: bool,
    /// Counts the changes of the configuration space.
    generation: u32,
}

/// A device's interrupt. Clones are the same interrupt; the transport keeps one and the device gets one
/// with each activation.
#[derive(Debug, Clone)]
pub struct Interrupt {
    line: Arc<Line>,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `irq`, which as a rule is registered with KVM, of the device whose driver reads
    /// `registers`.
    #[must_use]
    pub fn new(irq: EventFd, registers: Registers) -> Self {
        let interrupt = Self {
            line: Arc::new(Line {
                said: Mutex::default(),
                registers,
                irq,
            }),
        };
        interrupt.publish(&interrupt.lock());
        interrupt
    }

    /// A buffer was used and the driver wants to know.
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub(crate) fn signal_queue(&self) -> io::Result<()> {
        self.line.irq.write(1)
    }

    /// The configuration space changed: `field` is what is at `offset` from now on. It is one that a driver reads at once, so that no
    /// driver reads a part of a change; and at a multiple of its size.
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub fn signal_config<T: AtomicAccess>(&self, offset: u64, field: T) -> io::Result<()> {
        let mut said = self.lock();
        let at = register::CONFIG.saturating_add(offset);
        self.line.registers.store(at, field);
        // Afterwards, so that whoever read the former under the former generation finds another one (2.5.1).
        said.generation = said.generation.wrapping_add(1);
        said.changed = true;
        self.publish(&said);
        drop(said);
        self.line.irq.write(1)
    }

    /// The device cannot go on until it is reset (VirtIO 1.3, 2.1.2).
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub fn needs_reset(&self) -> io::Result<()> {
        let mut said = self.lock();
        said.needs_reset = true;
        said.changed = true;
        self.publish(&said);
        drop(said);
        self.line.irq.write(1)
    }

    /// The driver acknowledges bits of the interrupt status. That of used buffers alone need not come here.
    pub(crate) fn acknowledge(&self, bits: u32) {
        if bits & VIRTIO_MMIO_INT_CONFIG != 0 {
            let mut said = self.lock();
            said.changed = false;
            self.publish(&said);
        }
    }

    /// The device status is this, but for [`DEVICE_NEEDS_RESET`].
    pub(super) fn set_status(&self, status: u32) {
        let mut said = self.lock();
        said.status = status;
        self.publish(&said);
    }

    /// The configuration space is what `read` makes of zeroes. Unlike [`Self::signal_config`] this is no change of which a driver has to
    /// be told.
    pub(super) fn set_config(&self, read: impl FnOnce(&mut [u8])) {
        let mut space = [0; CONFIG_BYTES];
        // Under the lock, so that nothing older follows what a device's thread says meanwhile.
        let _said = self.lock();
        read(&mut space);
        let (words, _) = space.as_chunks::<4>();
        for (offset, word) in (register::CONFIG..).step_by(4).zip(words) {
            self.line.registers.store(offset, u32::from_le_bytes(*word));
        }
    }

    /// As after a device reset. The generation goes on, so that no driver mistakes new for old.
    pub fn reset(&self) {
        let mut said = self.lock();
        *said = Said {
            generation: said.generation,
            ..Said::default()
        };
        self.publish(&said);
    }

    /// Whether [`Self::needs_reset`] was called since the last [`Self::reset`].
    #[cfg(test)]
    pub(super) fn wants_reset(&self) -> bool {
        self.lock().needs_reset
    }

    /// What the driver reads.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.line.registers
    }

    /// The descriptor that raises the interrupt.
    #[must_use]
    pub fn irq(&self) -> &EventFd {
        &self.line.irq
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        // Nothing panics while it is held.
        self.line
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said is in the window before the lock is given back.
    fn publish(&self, said: &Said) {
        let bit = |set, bit| if set { bit } else { 0 };
        let status = said.status | bit(said.needs_reset, DEVICE_NEEDS_RESET);
        let interrupt = VIRTIO_MMIO_INT_VRING | bit(said.changed, VIRTIO_MMIO_INT_CONFIG);
        let registers = &self.line.registers;
        registers.store(register::CONFIG_GENERATION, said.generation);
        registers.store(register::STATUS, status);
        registers.store(register::INTERRUPT_STATUS, interrupt);
    }
}
