//! The device's way to the driver: used-buffer and configuration-change notifications.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Bit of the interrupt status: the device used a buffer (VirtIO 1.3, 4.2.2).
pub const VIRTIO_MMIO_INT_VRING: u32 = 1;
/// Bit of the interrupt status: the configuration, or `DEVICE_NEEDS_RESET`, changed.
pub const VIRTIO_MMIO_INT_CONFIG: u32 = 2;

#[derive(Debug)]
struct Line {
    status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    irq: EventFd,
}

/// A device's interrupt. Clones are the same interrupt; the transport keeps one and the device gets one
/// with each activation.
#[derive(Debug, Clone)]
pub struct Interrupt {
    line: Arc<Line>,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `irq`, which as a rule is registered with KVM.
    #[must_use]
    pub fn new(irq: EventFd) -> Self {
        Self {
            line: Arc::new(Line {
                status: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                config_generation: AtomicU32::new(0),
                irq,
            }),
        }
    }

    /// A buffer was used and the driver wants to know.
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub fn signal_queue(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// The configuration space changed.
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub fn signal_config(&self) -> io::Result<()> {
        self.line.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// The device cannot go on until it is reset (VirtIO 1.3, 2.1.2).
    ///
    /// # Errors
    /// What `write` on the event descriptor says.
    pub fn needs_reset(&self) -> io::Result<()> {
        self.line.needs_reset.store(true, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// What the driver reads as the interrupt status, and has acknowledged by that.
    ///
    /// A driver reads it once for each interrupt, and acknowledges what it has read (VirtIO 1.3, 4.2.2) before it looks at the
    /// rings. If that is done here, in one step, the write that says so means nothing any more, and nobody has to wait for it.
    #[must_use]
    pub fn take_status(&self) -> u32 {
        self.line.status.swap(0, Ordering::AcqRel)
    }

    /// Whether [`Self::needs_reset`] was called since the last [`Self::reset`].
    #[must_use]
    pub fn wants_reset(&self) -> bool {
        self.line.needs_reset.load(Ordering::Acquire)
    }

    /// Counts the changes of the configuration space.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.line.config_generation.load(Ordering::Acquire)
    }

    /// As after a device reset. The generation goes on, so that no driver mistakes new for old.
    pub fn reset(&self) {
        self.line.needs_reset.store(false, Ordering::Release);
        self.line.status.store(0, Ordering::Release);
    }

    /// The descriptor that raises the interrupt.
    #[must_use]
    pub fn irq(&self) -> &EventFd {
        &self.line.irq
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.line.status.fetch_or(bit, Ordering::AcqRel);
        self.line.irq.write(1)
    }
}
