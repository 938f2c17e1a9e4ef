//! What a driver reads of a device: its registers and its configuration space, as memory that the guest reads by itself.
//!
//! ```text
//! 0x000  registers (VirtIO 1.3, 4.2.2)            written by the transport, and by the device's Interrupt
//! 0x100  configuration space, and zeroes behind   likewise
//! 0x200  the next device's
//! ```
//!
//! The windows of all devices follow each other in a few pages ([`RegisterPages`]), which the machine makes a memory slot of KVM's that is
//! only read. A guest's read of it is one of memory, and takes none of the monitor's time; its write leaves it as for any device, and
//! meets the ioeventfds on the way. What a write changes is in the window before the guest goes on. Where KVM has no such slots, reads
//! reach the transport, which copies the same bytes from here.
//!
//! The pages are written by the monitor only, and nothing that it does depends on what is in them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sandbox_types::monitor::MAX_DEVICES;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

/// The registers (4.2.2).
pub(super) mod register {
    pub(in crate::virtio) const MAGIC_VALUE: u64 = 0x000;
    pub(in crate::virtio) const VERSION: u64 = 0x004;
    pub(in crate::virtio) const DEVICE_ID: u64 = 0x008;
    pub(in crate::virtio) const VENDOR_ID: u64 = 0x00c;
    pub(in crate::virtio) const DEVICE_FEATURES: u64 = 0x010;
    pub(in crate::virtio) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(in crate::virtio) const DRIVER_FEATURES: u64 = 0x020;
    pub(in crate::virtio) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(in crate::virtio) const QUEUE_SEL: u64 = 0x030;
    pub(in crate::virtio) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(in crate::virtio) const QUEUE_SIZE: u64 = 0x038;
    pub(in crate::virtio) const QUEUE_READY: u64 = 0x044;
    pub(in crate::virtio) const QUEUE_NOTIFY: u64 = 0x050;
    pub(in crate::virtio) const INTERRUPT_STATUS: u64 = 0x060;
    pub(in crate::virtio) const INTERRUPT_ACK: u64 = 0x064;
    pub(in crate::virtio) const STATUS: u64 = 0x070;
    pub(in crate::virtio) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(in crate::virtio) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(in crate::virtio) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(in crate::virtio) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(in crate::virtio) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(in crate::virtio) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(in crate::virtio) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(in crate::virtio) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(in crate::virtio) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(in crate::virtio) const CONFIG: u64 = 0x100;
}

/// Bytes of a device's window. The longest configuration space of a device has 60.
pub const WINDOW_BYTES: usize = 0x200;
/// The most a configuration space has.
pub(super) const CONFIG_BYTES: usize = WINDOW_BYTES / 2;
const _: () = assert!(register::CONFIG + CONFIG_BYTES as u64 == WINDOW_BYTES as u64);
const PAGE_BYTES: usize = 4096;

/// No pages for registers.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {bytes} bytes for devices' registers")]
pub struct RegistersError {
    /// How many were asked for.
    pub bytes: usize,
    /// Why.
    pub source: MmapRegionError,
}

/// The windows of a machine's devices.
#[derive(Debug, Clone)]
pub struct RegisterPages {
    pages: Arc<MmapRegion>,
}

impl RegisterPages {
    /// Whole pages of zeroes, with a window for each of [`MAX_DEVICES`].
    ///
    /// # Errors
    /// [`RegistersError`].
    pub fn new() -> Result<Self, RegistersError> {
        Self::of(MAX_DEVICES)
    }

    fn of(windows: usize) -> Result<Self, RegistersError> {
        let bytes = (windows * WINDOW_BYTES).next_multiple_of(PAGE_BYTES);
        let pages = MmapRegion::new(bytes).map_err(|source| RegistersError { bytes, source })?;
        Ok(Self {
            pages: Arc::new(pages),
        })
    }

    /// The window with this number, counted from 0.
    #[must_use]
    pub fn window(&self, index: usize) -> Registers {
        Registers {
            pages: Arc::clone(&self.pages),
            start: index.saturating_mul(WINDOW_BYTES),
        }
    }

    /// As memory. It is unmapped with the last copy of this and the last window.
    #[must_use]
    pub fn region(&self) -> &MmapRegion {
        &self.pages
    }
}

/// A device's window. Clones are the same.
#[derive(Clone)]
pub struct Registers {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registers({:#x})", self.start)
    }
}

impl Registers {
    /// A window that no other device's is beside.
    ///
    /// # Errors
    /// [`RegistersError`].
    pub fn alone() -> Result<Self, RegistersError> {
        Ok(RegisterPages::of(1)?.window(0))
    }

    /// Puts a value there, which a driver that reads as much at once sees as it was or as it is. What is not at a multiple of its
    /// size, or outside, is put nowhere.
    pub(super) fn store<T: AtomicAccess>(&self, offset: u64, value: T) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if offset <= WINDOW_BYTES - size_of::<T>() {
            let at = self.start.saturating_add(offset);
            // Constants, and what devices name of their own configuration spaces.
            let _ = self
                .pages
                .as_volatile_slice()
                .store(value, at, Ordering::Release);
        }
    }

    /// Copies what a driver reads from `offset` on. Behind the end are zeroes.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let count = data.len().min(WINDOW_BYTES.saturating_sub(offset));
        let at = self.start.saturating_add(offset);
        if let Some(data) = data.get_mut(..count) {
            // It is inside.
            let _ = self.pages.as_volatile_slice().read_slice(data, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(registers: &Registers, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        registers.read(offset, &mut data);
        data
    }

    #[test]
    fn every_device_has_a_window_in_whole_pages() {
        let pages = RegisterPages::new().unwrap();
        let bytes = pages.region().size();
        assert!(bytes.is_multiple_of(PAGE_BYTES) && bytes >= MAX_DEVICES * WINDOW_BYTES);
        let last = pages.window(MAX_DEVICES - 1);
        last.store(0x1fc, 7_u32);
        assert_eq!(words(&last, 0x1fc), [7, 0, 0, 0]);
    }

    #[test]
    fn window_is_its_own_and_nothing_is_behind_it() {
        let pages = RegisterPages::new().unwrap();
        let [first, second] = [pages.window(0), pages.window(1)];
        second.store(0, 0x0403_0201_u32);
        first.store(0x1fc, 0x0807_0605_u32);
        first.store(0x200, u32::MAX);
        first.store(0x1fc, u64::MAX);
        first.store(u64::MAX, u32::MAX);
        assert_eq!(words(&first, 0x1fe), [7, 8, 0, 0]);
        assert_eq!(words(&first, 0x200), [0; 4]);
        assert_eq!(words(&first, u64::MAX), [0; 4]);
        assert_eq!(words(&second, 0), [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(words(&second, 1), [2, 3]);
    }

    #[test]
    fn value_at_no_multiple_of_its_size_is_put_nowhere() {
        let registers = Registers::alone().unwrap();
        registers.store(2, u32::MAX);
        registers.store(1, u16::MAX);
        assert_eq!(words(&registers, 0), [0; 8]);
        registers.store(2, u16::MAX);
        assert_eq!(words(&registers, 0), [0, 0, 255, 255]);
    }
}
