use std::io::Write as _;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap};

use super::*;
use crate::memory::{Sharing, create, is_writable};

const PAGE: u64 = 4096;

fn memory_of() -> MemMib {
    MemMib::new(64).unwrap()
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn at(offset: u64, content: &[u8]) -> WindowFile {
    WindowFile {
        file: file(content),
        offset,
        bytes: content.len() as u64,
    }
}

fn map(bytes: u64, files: Vec<WindowFile>) -> Result<Window, WindowError> {
    Window::map(memory_of(), bytes, files)
}

fn memory_with(window: &Window) -> GuestMemoryMmap {
    create(memory_of(), Sharing::Private, Some(window), None).unwrap()
}

#[test]
fn files_are_where_they_were_put_and_zeroes_are_between() {
    let first = vec![1; 5000];
    let second = vec![2; 4096];
    let window = map(
        PMEM_ALIGNMENT,
        vec![
            at(PMEM_HEADER_BYTES, &first),
            at(PMEM_HEADER_BYTES + 3 * PAGE, &second),
        ],
    )
    .unwrap();
    let memory = memory_with(&window);
    let mut all = vec![0xff; usize::try_from(PMEM_ALIGNMENT).unwrap()];
    let start = GuestAddress(window.range().start);
    memory.read_slice(&mut all, start).unwrap();
    let mut expected = vec![0; all.len()];
    let header = usize::try_from(PMEM_HEADER_BYTES).unwrap();
    expected[header..header + 5000].fill(1);
    expected[header + 3 * 4096..header + 4 * 4096].fill(2);
    assert!(all == expected);
}

#[test]
fn mapping_is_shared_with_the_file() {
    use std::os::unix::fs::FileExt as _;
    let content = file(&[1; 4096]);
    let window = map(
        PMEM_ALIGNMENT,
        vec![WindowFile {
            file: content.try_clone().unwrap(),
            offset: PMEM_HEADER_BYTES,
            bytes: PAGE,
        }],
    )
    .unwrap();
    let memory = memory_with(&window);
    let place = GuestAddress(window.range().start + PMEM_HEADER_BYTES);
    assert_eq!(memory.read_obj::<u8>(place).unwrap(), 1);
    content.write_all_at(&[7], 0).unwrap();
    assert_eq!(memory.read_obj::<u8>(place).unwrap(), 7);
}

#[test]
fn window_is_memory_that_is_not_writable_and_ram_is() {
    let window = map(PMEM_ALIGNMENT, vec![at(PMEM_HEADER_BYTES, &[1])]).unwrap();
    let memory = memory_with(&window);
    let range = window.range();
    assert!(range.start >= layout::HOLE_END && range.start.is_multiple_of(PMEM_ALIGNMENT));
    let ram_end = memory_of().bytes();
    for (address, bytes, writable) in [
        (0, 16, true),
        (ram_end - 8, 8, true),
        // Where there is no memory nothing can be harmed.
        (ram_end, 8, true),
        (range.start, 1, false),
        (range.start - 8, 9, false),
        (range.start - 8, 8, true),
        (range.start + range.length - 1, 100, false),
        (range.start + range.length, 100, true),
        (0, u32::MAX, true),
        (u64::MAX, u32::MAX, true),
    ] {
        let is = is_writable(&memory, GuestAddress(address), bytes);
        assert_eq!(is, writable, "{bytes} at {address:#x}");
    }
    assert!(memory.address_in_range(GuestAddress(range.start)));
}

#[test]
fn places_that_are_none_are_refused() {
    let good = PMEM_HEADER_BYTES;
    for offsets in [
        vec![0],
        vec![good - PAGE],
        vec![good + 1],
        vec![PMEM_ALIGNMENT - PAGE],
        vec![PMEM_ALIGNMENT],
        vec![u64::MAX - PAGE + 1],
        vec![good, good],
        vec![good, good + PAGE],
        vec![good + 2 * PAGE, good],
    ] {
        let files = offsets.iter().map(|o| at(*o, &[1; 5000])).collect();
        assert!(
            matches!(map(PMEM_ALIGNMENT, files), Err(WindowError::Place { .. })),
            "{offsets:?}"
        );
    }
    let empty = WindowFile {
        file: file(&[]),
        offset: good,
        bytes: 0,
    };
    let refused = map(PMEM_ALIGNMENT, vec![empty]);
    assert!(matches!(refused, Err(WindowError::Place { .. })));
    let last = map(
        PMEM_ALIGNMENT,
        vec![at(PMEM_ALIGNMENT - 2 * PAGE, &[1; 5000])],
    );
    assert!(last.is_ok());
}

#[test]
fn sizes_that_are_none_and_too_many_files_are_refused() {
    for bytes in [0, PAGE, PMEM_ALIGNMENT + PAGE, MAX_BYTES + PMEM_ALIGNMENT] {
        assert!(matches!(
            map(bytes, Vec::new()),
            Err(WindowError::Size { .. })
        ));
    }
    let one = file(&[1]);
    let many = (0..=MAX_FILES as u64).map(|index| WindowFile {
        file: one.try_clone().unwrap(),
        offset: PMEM_HEADER_BYTES + index * PAGE,
        bytes: 1,
    });
    let refused = map(PMEM_ALIGNMENT, many.collect());
    assert!(matches!(refused, Err(WindowError::TooMany { .. })));
}

#[test]
fn file_that_is_or_becomes_too_short_is_named() {
    let short = WindowFile {
        bytes: 2 * PAGE,
        ..at(PMEM_HEADER_BYTES, &[1; 4096])
    };
    assert!(matches!(
        map(PMEM_ALIGNMENT, vec![short]),
        Err(WindowError::Short {
            index: 0,
            bytes: 4096,
            expected: 8192
        })
    ));
    let whole = at(PMEM_HEADER_BYTES, &[1; 4096]);
    let cut = at(PMEM_HEADER_BYTES + PAGE, &[2; 5000]);
    let handle = cut.file.try_clone().unwrap();
    let window = map(PMEM_ALIGNMENT, vec![whole, cut]).unwrap();
    assert_eq!(window.lost(), None);
    handle.set_len(4096).unwrap();
    let lost = LostFile {
        index: 1,
        bytes: 4096,
        expected: 5000,
    };
    assert_eq!(window.lost(), Some(lost));
}

#[test]
fn write_of_the_guest_is_counted_and_changes_no_answer() {
    let mut device = ReadOnly::new();
    for _ in 0..3 {
        device.write(8, &[1, 2, 3]);
    }
    assert_eq!(device.writes, 3);
    let mut data = [0xff; 4];
    device.read(8, &mut data);
    assert_eq!(data, [0xff; 4]);
}
