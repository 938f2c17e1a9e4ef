//! The guest's driver: two rings in memory, and the few lines of code that use them.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::super::super::protocol::{Header, Op, VIRTIO_VSOCK_TYPE_STREAM, VMADDR_CID_HOST};
use super::super::super::service::{Notify, serve};
use super::super::{Muxer, MuxerConfig};

/// `VRING_DESC_F_NEXT` and `VRING_DESC_F_WRITE`, which the bindings have as `u32`.
pub(super) const DESC_F_NEXT: u16 = 1;
pub(super) const DESC_F_WRITE: u16 = 2;
pub(super) const GUEST_CID: u64 = 3;
/// Entries of a ring.
pub(super) const RING: u16 = 64;
/// `buf_alloc` of the guest's packets.
pub(super) const GUEST_WINDOW: u32 = 64 * 1024;
/// A receive buffer, header included, as that of Linux.
const RX_BUFFER: u32 = 4096;
/// Room for one transmit packet.
pub(super) const TX_BUFFER: u32 = 80 * 1024;
const TX_RING_AT: u32 = 0x2_0000;
const RX_RING_AT: u32 = 0x1_0000;
const RX_BUFFERS_AT: u64 = 0x10_0000;
pub(super) const TX_BUFFERS_AT: u64 = 0x20_0000;
const MEMORY: usize = 16 << 20;

/// A packet from guest port `guest` to host port `host`.
pub(super) fn packet(guest: u32, host: u32, op: Op) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: VMADDR_CID_HOST,
        src_port: guest,
        dst_port: host,
        len: 0,
        socket_type: VIRTIO_VSOCK_TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: GUEST_WINDOW,
        fwd_cnt: 0,
    }
}

/// A packet of the connection that `request` asked for.
pub(super) fn reply(request: &Header, op: Op) -> Header {
    packet(request.dst_port, request.src_port, op)
}

/// A muxer with a guest.
pub(super) struct Driver {
    pub(super) mem: GuestMemoryMmap,
    pub(super) muxer: Muxer,
    pub(super) rx: Queue,
    pub(super) tx: Queue,
    rx_seen: u16,
    pub(super) tx_next: u16,
    pub(super) notified: Notify,
    directory: tempfile::TempDir,
}

impl Driver {
    pub(super) fn new() -> Self {
        let mut driver = Self::without_rx_buffers();
        for index in 0..RING {
            driver.offer_rx(index);
        }
        driver
    }

    pub(super) fn without_rx_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let muxer = Muxer::new(MuxerConfig {
            guest_cid: sandbox_types::GuestCid::new(GUEST_CID).unwrap(),
            listener: UnixListener::bind(&path).unwrap(),
            path,
        })
        .unwrap();
        let mem: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let queue = |at| {
            // Not the crate's mock queue: its used ring lies on top of its available ring.
            let mut queue = Queue::new(RING).unwrap();
            queue.set_desc_table_address(Some(at), None);
            queue.set_avail_ring_address(Some(at + 0x4000), None);
            queue.set_used_ring_address(Some(at + 0x8000), None);
            queue.set_ready(true);
            assert!(queue.is_valid(&mem));
            queue
        };
        let (rx, tx) = (queue(RX_RING_AT), queue(TX_RING_AT));
        Self {
            mem,
            muxer,
            rx,
            tx,
            rx_seen: 0,
            tx_next: 0,
            notified: Notify::default(),
            directory,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// Listens for guest connections to `port`.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v_{port}"))).unwrap()
    }

    pub(super) fn offer_rx(&mut self, index: u16) {
        let address = RX_BUFFERS_AT + u64::from(index) * u64::from(RX_BUFFER);
        let flags = DESC_F_WRITE;
        let descriptor = Descriptor::new(address, RX_BUFFER, flags, 0);
        put_descriptor(&self.mem, &self.rx, index, descriptor);
        make_available(&self.mem, &self.rx, index);
    }

    /// Puts a packet in the transmit ring, in one descriptor, and makes the muxer take it when the ring is full.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..*header
        };
        self.send_raw(&header, payload);
    }

    /// As [`Self::send`], with the header as it is.
    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        let bytes = [&header.encode(), payload].concat();
        self.send_scattered(&bytes, &[bytes.len()], 0);
    }

    /// Puts bytes in the transmit ring, cut into descriptors of those sizes.
    pub(super) fn send_scattered(&mut self, bytes: &[u8], sizes: &[usize], flags: u16) {
        if usize::from(self.tx_next) + sizes.len() > usize::from(RING) {
            self.serve();
            self.tx_next = 0;
        }
        let head = self.tx_next;
        let mut at = 0;
        for (index, size) in sizes.iter().enumerate() {
            let slot = self.tx_next;
            self.tx_next += 1;
            let address = TX_BUFFERS_AT + u64::from(slot) * u64::from(TX_BUFFER);
            self.mem
                .write_slice(&bytes[at..at + size], GuestAddress(address))
                .unwrap();
            at += size;
            let last = index + 1 == sizes.len();
            let flags = flags | if last { 0 } else { DESC_F_NEXT };
            let length = u32::try_from(*size).unwrap();
            let descriptor = Descriptor::new(address, length, flags, self.tx_next);
            put_descriptor(&self.mem, &self.tx, slot, descriptor);
        }
        make_available(&self.mem, &self.tx, head);
    }

    /// Lets the muxer work until it has nothing more to do.
    pub(super) fn serve(&mut self) {
        loop {
            let notify = serve(&mut self.muxer, &self.mem, &mut self.rx, &mut self.tx).unwrap();
            self.notified.rx |= notify.rx;
            self.notified.tx |= notify.tx;
            if !notify.again && !self.host_has_more() {
                break;
            }
        }
    }

    /// What the owner of the rings would be woken up by.
    fn host_has_more(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.muxer, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() > 0
    }

    /// Lets the muxer work, and takes the packets that it had for the guest, until there are none.
    pub(super) fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.serve();
            let before = packets.len();
            self.take_used(&mut packets);
            if packets.len() == before {
                return packets;
            }
        }
    }

    /// Takes the packets in the used ring and offers their buffers again.
    pub(super) fn take_used(&mut self, packets: &mut Vec<(Header, Vec<u8>)>) {
        let used = GuestAddress(self.rx.used_ring());
        let index: u16 = self.mem.read_obj(used.unchecked_add(2)).unwrap();
        while self.rx_seen != index {
            let element = used.unchecked_add(4 + 8 * u64::from(self.rx_seen % RING));
            let head: u32 = self.mem.read_obj(element).unwrap();
            let length: u32 = self.mem.read_obj(element.unchecked_add(4)).unwrap();
            let buffer = GuestAddress(RX_BUFFERS_AT + u64::from(head) * u64::from(RX_BUFFER));
            let mut bytes = vec![0; length as usize];
            self.mem.read_slice(&mut bytes, buffer).unwrap();
            let (header, payload) = bytes.split_first_chunk::<{ Header::BYTES }>().unwrap();
            let header = Header::decode(header);
            assert_eq!(header.len as usize, payload.len());
            packets.push((header, payload.to_vec()));
            self.rx_seen = self.rx_seen.wrapping_add(1);
            self.offer_rx(u16::try_from(head).unwrap());
        }
    }
}

pub(super) fn put_descriptor(
    mem: &GuestMemoryMmap,
    queue: &Queue,
    index: u16,
    descriptor: Descriptor,
) {
    let at = GuestAddress(queue.desc_table() + 16 * u64::from(index));
    mem.write_obj(RawDescriptor::from(descriptor), at).unwrap();
}

pub(super) fn make_available(mem: &GuestMemoryMmap, queue: &Queue, head: u16) {
    let ring = GuestAddress(queue.avail_ring());
    let index: u16 = mem.read_obj(ring.unchecked_add(2)).unwrap();
    mem.write_obj(head, ring.unchecked_add(4 + 2 * u64::from(index % RING)))
        .unwrap();
    mem.write_obj(index.wrapping_add(1), ring.unchecked_add(2))
        .unwrap();
}
