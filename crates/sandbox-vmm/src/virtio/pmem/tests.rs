//! A driver's requests, well-formed and not.

use std::fs::File;
use std::io::Write as _;

use sandbox_types::MemMib;
use sandbox_types::monitor::{PMEM_ALIGNMENT, PMEM_HEADER_BYTES};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use vm_memory::GuestAddress;

use super::*;
use crate::memory::window::{Window, WindowFile};
use crate::memory::{Sharing, create};
use crate::virtio::VirtioDevice as _;
use crate::virtio::answering::served::{self, descriptor};

const REQUEST: u64 = 0x10_0000;
const RESPONSE: u64 = 0x10_1000;
const UNTOUCHED: u32 = 0x5555_5555;

fn window() -> Window {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&[0; 4096]).unwrap();
    let file = WindowFile {
        file,
        offset: PMEM_HEADER_BYTES,
        bytes: 4096,
    };
    Window::map(MemMib::new(64).unwrap(), PMEM_ALIGNMENT, vec![file]).unwrap()
}

/// Serves one chain for a request of that kind, and says what the used ring has for it and what the answer is.
fn serve_in(window: &Window, kind: u32, chain: &[RawDescriptor]) -> (u32, u32) {
    let memory = &create(
        MemMib::new(64).unwrap(),
        Sharing::Private,
        Some(window),
        None,
    )
    .unwrap();
    memory.write_obj(kind, GuestAddress(REQUEST)).unwrap();
    memory.write_obj(UNTOUCHED, GuestAddress(RESPONSE)).unwrap();
    let config = [0; CONFIG_BYTES];
    let used = served::serve(Flushes { config }, memory, chain);
    (used, memory.read_obj(GuestAddress(RESPONSE)).unwrap())
}

fn serve(kind: u32, chain: &[RawDescriptor]) -> (u32, u32) {
    serve_in(&window(), kind, chain)
}

#[test]
fn flush_is_done() {
    let chain = [
        descriptor(REQUEST, 4, 0),
        descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
    ];
    assert_eq!(serve(request::FLUSH, &chain), (4, 0));
}

#[test]
fn request_in_pieces_is_read_and_bytes_beyond_it_are_not_written() {
    let chain = [
        descriptor(REQUEST, 1, 0),
        descriptor(REQUEST + 1, 100, 0),
        descriptor(RESPONSE, 400, VRING_DESC_F_WRITE),
        descriptor(RESPONSE + 0x1000, 4, VRING_DESC_F_WRITE),
    ];
    assert_eq!(serve(request::FLUSH, &chain), (4, 0));
}

#[test]
fn request_of_another_kind_fails() {
    let chain = [
        descriptor(REQUEST, 4, 0),
        descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
    ];
    assert_eq!(serve(1, &chain), (4, u32::MAX));
}

#[test]
fn chain_that_is_no_request_gets_no_answer() {
    let window = window();
    let read_only = window.range().start;
    for chain in [
        vec![descriptor(REQUEST, 4, 0)],
        vec![descriptor(RESPONSE, 4, VRING_DESC_F_WRITE)],
        vec![
            descriptor(REQUEST, 3, 0),
            descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
        ],
        vec![
            descriptor(REQUEST, 4, 0),
            descriptor(RESPONSE, 3, VRING_DESC_F_WRITE),
        ],
        vec![
            descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
            descriptor(REQUEST, 4, 0),
        ],
        vec![
            descriptor(u64::MAX - 3, 4, 0),
            descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
        ],
        vec![
            descriptor(REQUEST, 4, 0),
            descriptor(u64::MAX - 3, 4, VRING_DESC_F_WRITE),
        ],
        // Where it would write if the monitor's own mapping were not a boundary.
        vec![
            descriptor(REQUEST, 4, 0),
            descriptor(read_only, 4, VRING_DESC_F_WRITE),
        ],
        vec![
            descriptor(REQUEST, 4, 0),
            descriptor(read_only - 2, 4, VRING_DESC_F_WRITE),
        ],
    ] {
        assert_eq!(serve_in(&window, request::FLUSH, &chain), (0, UNTOUCHED));
    }
}

#[test]
fn request_is_read_from_memory_that_is_only_read() {
    let window = window();
    let chain = [
        descriptor(window.range().start, 4, 0),
        descriptor(RESPONSE, 4, VRING_DESC_F_WRITE),
    ];
    // The header is zeroes, and so is a flush.
    assert_eq!(serve_in(&window, UNTOUCHED, &chain), (4, 0));
}

#[test]
fn configuration_says_where_and_how_large() {
    let device = Pmem::new(BusRange {
        start: 0x1_4000_0000,
        length: 0x20_0000,
    });
    let mut config = [0xff; 20];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], 0x1_4000_0000_u64.to_le_bytes());
    assert_eq!(config[8..16], 0x20_0000_u64.to_le_bytes());
    assert_eq!(config[16..], [0xff; 4]);
}
