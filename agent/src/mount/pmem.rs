//! The guest's persistent memory device, which has one image layer behind the other. Each is made a partition, so that it can be mounted.
//!
//! The kernel looks for no partitions itself: the device begins with zeroes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use sandbox_protocol::agent::PmemRange;

use crate::sys::{PartitionChange, change_partition};

/// The buses of persistent memory. The attribute `wait_probe` of one is read to its end when all that is on it has been looked at
/// (kernel `drivers/nvdimm/core.c`).
const BUSES: &str = "/sys/bus/nd/devices";
/// The only such device that a machine has.
const DISK: &str = "/dev/pmem0";

/// Why there is no part of the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemError {
    /// The kernel knows of none.
    #[error(
        "the guest kernel found no persistent memory, as which the image's layers come; it takes CONFIG_VIRTIO_PMEM, \
         CONFIG_BLK_DEV_PMEM and CONFIG_FS_DAX, or `image_dax = false` in the configuration"
    )]
    NoDevice(#[source] io::Error),
    /// It cannot be made a partition.
    #[error("cannot make bytes {offset} to {end} of {DISK} its partition {number}")]
    Partition {
        /// The first.
        offset: u64,
        /// The one behind the last.
        end: u64,
        /// Its number.
        number: u32,
        #[source]
        source: io::Error,
    },
}

/// A part of the device. It is no longer one when this is dropped, unless it is in use then.
#[derive(Debug)]
pub(crate) struct Partition {
    disk: File,
    number: i32,
}

impl Partition {
    /// Makes a part of the device a partition.
    pub(crate) fn make(range: &PmemRange) -> Result<Self, PmemError> {
        wait_for_devices(Path::new(BUSES)).map_err(PmemError::NoDevice)?;
        let disk = File::open(DISK).map_err(PmemError::NoDevice)?;
        let failed = |source| PmemError::Partition {
            offset: range.offset,
            end: range.offset.saturating_add(range.bytes),
            number: range.partition,
            source,
        };
        let signed = |value: u64| {
            i64::try_from(value).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))
        };
        let number = i32::try_from(range.partition)
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let change = PartitionChange::Add {
            start: signed(range.offset)?,
            length: signed(range.bytes)?,
        };
        change_partition(disk.as_fd(), number, change).map_err(failed)?;
        Ok(Self { disk, number })
    }

    /// Its device node.
    pub(crate) fn node(&self) -> String {
        format!("{DISK}p{}", self.number)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        if let Err(error) =
            change_partition(self.disk.as_fd(), self.number, PartitionChange::Remove)
        {
            crate::log!("cannot remove {}: {error}", self.node());
        }
    }
}

/// Waits until the kernel has looked at every device of these buses, which it does beside starting this program.
fn wait_for_devices(buses: &Path) -> io::Result<()> {
    for entry in fs::read_dir(buses)? {
        let attribute = entry?.path().join("wait_probe");
        match fs::read(attribute) {
            Ok(_) => {}
            // What is on a bus is listed beside it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buses_are_waited_for_and_what_is_on_them_is_passed_over() {
        let buses = tempfile::tempdir().unwrap();
        fs::create_dir(buses.path().join("region0")).unwrap();
        let bus = buses.path().join("ndbus0");
        fs::create_dir(&bus).unwrap();
        fs::write(bus.join("wait_probe"), "1\n").unwrap();
        wait_for_devices(buses.path()).unwrap();
        fs::remove_file(bus.join("wait_probe")).unwrap();
        // One that cannot be read.
        fs::create_dir(bus.join("wait_probe")).unwrap();
        assert!(wait_for_devices(buses.path()).is_err());
        assert!(wait_for_devices(&buses.path().join("none")).is_err());
    }

    #[test]
    fn kernel_without_the_device_is_told_what_it_takes() {
        let error = PmemError::NoDevice(io::ErrorKind::NotFound.into()).to_string();
        assert!(error.contains("CONFIG_VIRTIO_PMEM") && error.contains("image_dax"));
    }
}
