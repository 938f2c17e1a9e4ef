//! Which layers are mapped into the guest, and where: behind the guest image, from which the agent runs.
//!
//! All of it is one virtio-pmem device, which costs the guest a `struct page` of 64 bytes for each page of 4 KiB, whether it is read
//! or not: 16 MiB for each GiB, of the guest's own memory and from the start. So there is a limit that goes with the guest's memory, and
//! layers beyond it are read through block devices instead, which cost nothing until they are read.
//!
//! The device is cut into partitions by the agent, one for the image and one for each layer, so that each is mounted as a file system of
//! its own.

use std::fs;
use std::path::{Path, PathBuf};

use sandbox_protocol::agent;
use sandbox_types::MemMib;
use sandbox_types::monitor::{PMEM_ALIGNMENT, PMEM_HEADER_BYTES};

/// Bytes of layers for each byte of the guest's memory: at this limit `struct page`s take a 32nd of that.
const BYTES_PER_MEMORY_BYTE: u64 = 2;
/// The monitor's limit (`sandbox_vmm::memory::window::MAX_BYTES`).
const MAX_BYTES: u64 = 64 << 30;
/// The monitor's limit (`MAX_FILES`), below that of a disk's partitions in Linux (255).
const MAX_FILES: usize = 128;
/// What a layer begins at a multiple of, unless it is large enough to have a huge page.
const PAGE: u64 = 4096;

/// A layer's file, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedLayer {
    /// The file, on the host.
    pub path: PathBuf,
    /// Where in the device it begins: whole pages.
    pub offset: u64,
    /// How long the file is.
    pub bytes: u64,
    /// The number of its partition, from 1.
    pub partition: u32,
}

impl MappedLayer {
    /// Where it is, for the agent.
    pub(crate) fn guest_range(&self) -> agent::PmemRange {
        agent::PmemRange {
            partition: self.partition,
            offset: self.offset,
            bytes: self.bytes.next_multiple_of(PAGE),
            ..Default::default()
        }
    }
}

/// Where the guest image is in the device of a guest with that much memory. None if it is no file: whoever opens it will say so.
pub(crate) fn place_of_image(memory: MemMib, image: &Path) -> Option<MappedLayer> {
    LayerWindow::new(memory).add(image)
}

/// The size of a device of which this is the last, in bytes.
#[must_use]
pub(crate) fn device_bytes(last: &MappedLayer) -> u64 {
    (last.offset + last.bytes).next_multiple_of(PMEM_ALIGNMENT)
}

/// The places that are taken.
#[derive(Debug, Clone)]
pub(super) struct LayerWindow {
    limit: u64,
    end: u64,
    count: u32,
}

impl LayerWindow {
    /// For a guest with that much memory and that image.
    pub(super) fn behind(memory: MemMib, image: &Path) -> Self {
        let mut window = Self::new(memory);
        window.add(image);
        window
    }

    fn new(memory: MemMib) -> Self {
        let limit = memory.bytes().saturating_mul(BYTES_PER_MEMORY_BYTE);
        Self {
            limit: limit.min(MAX_BYTES),
            end: PMEM_HEADER_BYTES,
            count: 0,
        }
    }

    /// A place for the file at `path`. None if there is no room, or it is no file (a block device, or nothing at all: whoever opens it
    /// will say so).
    pub(super) fn add(&mut self, path: &Path) -> Option<MappedLayer> {
        let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let bytes = file.len();
        let alignment = match bytes {
            0 => return None,
            1..PMEM_ALIGNMENT => PAGE,
            _ => PMEM_ALIGNMENT,
        };
        let offset = self.end.checked_next_multiple_of(alignment)?;
        let end = offset
            .checked_add(bytes)?
            .checked_next_multiple_of(PAGE)
            .filter(|end| *end <= self.limit)?;
        let partition = self.count + 1;
        if usize::try_from(partition).is_ok_and(|number| number > MAX_FILES) {
            return None;
        }
        self.end = end;
        self.count = partition;
        Some(MappedLayer {
            path: path.to_owned(),
            offset,
            bytes,
            partition,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandbox_protocol::ROOT_PARTITION;

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn window() -> LayerWindow {
        LayerWindow::new(MemMib::new(64).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn layers_of_any_size_have_places_of_their_own(sizes in prop::collection::vec(0_u64..8 << 20, 0..40)) {
            let mut window = window();
            let mut layers: Vec<MappedLayer> = Vec::new();
            for bytes in sizes {
                let file = file(bytes);
                let Some(layer) = window.add(file.path()) else {
                    prop_assert!(bytes == 0 || window.end + bytes + PMEM_ALIGNMENT > window.limit);
                    continue;
                };
                prop_assert_eq!(layer.bytes, bytes);
                prop_assert!(layer.offset.is_multiple_of(PAGE));
                let before = layers.last().map_or(PMEM_HEADER_BYTES, |last| last.offset + last.bytes);
                prop_assert!(before <= layer.offset);
                layers.push(layer);
            }
            if let Some(last) = layers.last() {
                let device = device_bytes(last);
                prop_assert!(device.is_multiple_of(PMEM_ALIGNMENT) && device <= window.limit);
            }
            let numbers: Vec<_> = layers.iter().map(|layer| layer.partition).collect();
            let expected: Vec<_> = (1..).take(layers.len()).collect();
            prop_assert_eq!(numbers, expected);
        }
    }

    #[test]
    fn layer_beyond_the_limit_has_no_place_and_a_smaller_one_after_it_has() {
        let mut window = window();
        assert!(window.add(file(127 << 20).path()).is_none());
        let large = window.add(file(125 << 20).path()).unwrap();
        assert_eq!(large.offset, PMEM_ALIGNMENT);
        assert!(window.add(file(2 << 20).path()).is_none());
        assert!(window.add(file(1 << 20).path()).is_some());
    }

    #[test]
    fn image_is_the_first_and_layers_follow() {
        let memory = MemMib::new(64).unwrap();
        let image = file(3 << 20);
        let placed = place_of_image(memory, image.path()).unwrap();
        assert_eq!(
            (placed.partition, placed.offset),
            (ROOT_PARTITION, PMEM_ALIGNMENT)
        );
        let layer = LayerWindow::behind(memory, image.path())
            .add(file(1).path())
            .unwrap();
        assert_eq!(
            (layer.partition, layer.offset),
            (2, placed.offset + placed.bytes)
        );
        // Without an image there are only layers.
        let none = Path::new("/nowhere");
        assert!(place_of_image(memory, none).is_none());
        let layer = LayerWindow::behind(memory, none)
            .add(file(1).path())
            .unwrap();
        assert_eq!((layer.partition, layer.offset), (1, PMEM_HEADER_BYTES));
    }

    #[test]
    fn what_is_no_file_has_no_place() {
        for path in ["/dev/null", "/proc", "/nowhere"] {
            assert!(window().add(Path::new(path)).is_none(), "{path}");
        }
        assert!(window().add(file(0).path()).is_none());
    }

    #[test]
    fn files_are_as_many_as_the_monitor_maps() {
        let mut window = window();
        let file = file(1);
        for number in 1..=MAX_FILES {
            let layer = window.add(file.path()).unwrap();
            assert_eq!(usize::try_from(layer.partition).unwrap(), number);
        }
        assert!(window.add(file.path()).is_none());
    }
}
