//! Where the guest's port and memory-mapped accesses go.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A device that the guest reads and writes. Accesses come from vCPU threads, one at a time.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` of the device's range. `data` comes in as the value of an
    /// access that nobody answers.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusRange {
    /// The first.
    pub start: u64,
    /// How many; at least 1.
    pub length: u64,
}

impl BusRange {
    /// The last address.
    fn last(self) -> u64 {
        self.start.saturating_add(self.length.saturating_sub(1))
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last())
    }
}

/// Why a device was not put on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or ends behind the last address.
    #[error("{range} is no range of addresses")]
    NoRange {
        /// It.
        range: BusRange,
    },
    /// Something is there.
    #[error("a device at {range} would overlap one at {existing}")]
    Overlap {
        /// The new one.
        range: BusRange,
        /// The old one.
        existing: BusRange,
    },
}

type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Devices by address. Complete before the first vCPU runs.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (BusRange, SharedDevice)>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.devices.values().map(|(range, _)| range);
        f.debug_list().entries(ranges).finish()
    }
}

impl Bus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn insert(
        &mut self,
        range: BusRange,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        if range.length == 0 || range.start.checked_add(range.length - 1).is_none() {
            return Err(BusError::NoRange { range });
        }
        // The last device that begins at or before our end is the only one that can overlap.
        let neighbour = self.devices.range(..=range.last()).next_back();
        if let Some((_, (existing, _))) = neighbour
            && existing.last() >= range.start
        {
            return Err(BusError::Overlap {
                range,
                existing: *existing,
            });
        }
        self.devices.insert(range.start, (range, device));
        Ok(())
    }

    /// Passes a read on. Without a device, or over its end, every bit reads as 1.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            device.read(offset, data);
        }
    }

    /// Passes a write on. Without a device, or over its end, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &SharedDevice)> {
        let (start, (range, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= range.length).then_some((offset, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Last(Option<(u64, Vec<u8>)>);

    impl BusDevice for Last {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = Some((offset, data.to_vec()));
        }
    }

    fn range(start: u64, length: u64) -> BusRange {
        BusRange { start, length }
    }

    #[test]
    fn access_within_a_range_reaches_its_device_at_the_offset() {
        let mut bus = Bus::new();
        let device = Arc::new(Mutex::new(Last::default()));
        bus.insert(range(0x1000, 0x10), device.clone()).unwrap();
        bus.write(0x1008, &[1, 2]);
        assert_eq!(device.lock().unwrap().0, Some((8, vec![1, 2])));
        let mut data = [0; 2];
        bus.read(0x100e, &mut data);
        assert_eq!(data, [0xe, 0xe]);
    }

    #[test]
    fn access_outside_or_over_the_end_reads_ones_and_writes_nothing() {
        let mut bus = Bus::new();
        let device = Arc::new(Mutex::new(Last::default()));
        bus.insert(range(0x1000, 0x10), device.clone()).unwrap();
        for address in [0, 0xfff, 0x100f, 0x1010, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff, 0xff], "{address:#x}");
            bus.write(address, &[1, 2]);
        }
        assert_eq!(device.lock().unwrap().0, None);
    }

    #[test]
    fn device_over_another_is_refused() {
        let mut bus = Bus::new();
        let device = || Arc::new(Mutex::new(Last::default()));
        bus.insert(range(0x1000, 0x10), device()).unwrap();
        for taken in [range(0xfff, 2), range(0x100f, 1), range(0, u64::MAX)] {
            assert!(matches!(
                bus.insert(taken, device()),
                Err(BusError::Overlap { .. })
            ));
        }
        assert!(bus.insert(range(5, 0), device()).is_err());
        bus.insert(range(0x1010, 1), device()).unwrap();
        bus.insert(range(0xfff, 1), device()).unwrap();
    }
}
