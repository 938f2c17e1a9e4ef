//! A driver's requests, well-formed and not.

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use vm_memory::GuestAddress;

use super::request::MAX_REQUEST_BYTES;
use super::*;
use crate::virtio::answering::served::{self, descriptor};

const DATA: u64 = 0x10_0000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap()
}

fn serve(memory: &GuestMemoryMmap, chain: &[RawDescriptor]) -> u32 {
    served::serve(HostEntropy, memory, chain)
}

#[test]
fn buffer_is_filled_and_nothing_behind_it() {
    let memory = memory();
    let chain = [descriptor(DATA, 1000, VRING_DESC_F_WRITE)];
    assert_eq!(serve(&memory, &chain), 1000);
    let mut bytes = [0; 1064];
    memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    // The chance that 64 random bytes are all zero is that of guessing a 512-bit key.
    assert!(bytes[936..1000].iter().any(|byte| *byte != 0));
    assert!(bytes[1000..].iter().all(|byte| *byte == 0));
}

#[test]
fn buffer_over_the_limit_is_filled_up_to_it() {
    let memory = memory();
    let chain = [
        descriptor(DATA, 100, VRING_DESC_F_WRITE),
        descriptor(DATA + 0x1000, 0x20_0000, VRING_DESC_F_WRITE),
    ];
    assert_eq!(serve(&memory, &chain), MAX_REQUEST_BYTES);
}

#[test]
fn request_without_a_buffer_or_outside_memory_gets_nothing() {
    let memory = memory();
    for chain in [
        descriptor(DATA, 64, 0),
        descriptor(DATA, 0, VRING_DESC_F_WRITE),
        descriptor(u64::MAX - 10, 64, VRING_DESC_F_WRITE),
    ] {
        assert_eq!(serve(&memory, &[chain]), 0);
    }
}
