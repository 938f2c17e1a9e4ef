//! The guest's side of the muxer: the two rings.

use std::collections::VecDeque;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::super::endpoint::{Filled, Ports};
use super::super::error::VsockError;
use super::super::packet::{RxPacket, TxPacket};
use super::super::protocol::{Header, Op, VIRTIO_VSOCK_TYPE_STREAM, VMADDR_CID_HOST};
use super::{MAX_CONNECTIONS, MAX_REFUSALS, Muxer, Progress};
use crate::log;

/// Packets moved in one call, each direction.
const PACKETS: usize = 256;

impl Muxer {
    /// Takes packets of the guest's out of the transmit ring.
    ///
    /// # Errors
    /// [`VsockError::CorruptRing`].
    pub(crate) fn process_tx(
        &mut self,
        mem: &GuestMemoryMmap,
        queue: &mut Queue,
    ) -> Result<Progress, VsockError> {
        let mut progress = Progress::default();
        for _ in 0..PACKETS {
            let Some(chain) = pop(mem, queue, "tx")? else {
                return Ok(progress);
            };
            let head = chain.head_index();
            match TxPacket::parse(mem, chain) {
                Ok(packet) => self.guest_packet(&packet),
                Err(error) => self.malformed(format_args!("a packet is none: {error}")),
            }
            // VirtIO 1.3, 2.7.8.2: nothing was written to the buffer.
            queue
                .add_used(mem, head, 0)
                .map_err(VsockError::ring("tx"))?;
            progress.used = true;
        }
        progress.more = true;
        Ok(progress)
    }

    fn guest_packet(&mut self, packet: &TxPacket<'_>) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid {
            // 5.10.6.4.1: only the guest's own identifier may be its source.
            let source = header.src_cid;
            return self.malformed(format_args!("a packet is from machine {source}"));
        }
        if header.dst_cid != VMADDR_CID_HOST || header.socket_type != VIRTIO_VSOCK_TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        if let Some(id) = self.by_ports.get(&ports).copied() {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.guest_packet(packet);
            }
            self.review(id);
        } else if header.op != Op::Request
            || !self.has_room()
            || self
                .connect(ports, header.buf_alloc, header.fwd_cnt)
                .is_err()
        {
            self.refuse(header);
        }
    }

    fn has_room(&self) -> bool {
        let has_room = self.endpoints.len() < MAX_CONNECTIONS;
        if !has_room {
            log::guest(format_args!(
                "vsock: a connection over {MAX_CONNECTIONS} is refused"
            ));
        }
        has_room
    }

    fn malformed(&mut self, what: std::fmt::Arguments<'_>) {
        self.refused.malformed = self.refused.malformed.saturating_add(1);
        log::guest(format_args!("vsock: {what}"));
    }

    /// Answers a packet of no connection with `RST` (5.10.6.4.1), unless it is one itself.
    fn refuse(&mut self, header: &Header) {
        if header.op == Op::Rst {
            return;
        }
        self.refused.unknown = self.refused.unknown.saturating_add(1);
        if self.refusals.len() < MAX_REFUSALS {
            self.refusals.push_back(header.refusal());
        } else {
            self.refused.answers = self.refused.answers.saturating_add(1);
            log::guest(format_args!(
                "vsock: an answer is dropped: {MAX_REFUSALS} wait for receive buffers"
            ));
        }
    }

    /// Puts packets for the guest in the receive ring, for as long as it has buffers.
    ///
    /// # Errors
    /// [`VsockError::CorruptRing`], or [`VsockError::System`] when the timer fails.
    pub(crate) fn process_rx(
        &mut self,
        mem: &GuestMemoryMmap,
        queue: &mut Queue,
    ) -> Result<Progress, VsockError> {
        let progress = self.fill_buffers(mem, queue)?;
        // Packets to the guest are what sets its time limits.
        self.arm_timer()?;
        Ok(progress)
    }

    fn fill_buffers(
        &mut self,
        mem: &GuestMemoryMmap,
        queue: &mut Queue,
    ) -> Result<Progress, VsockError> {
        let mut progress = Progress::default();
        for _ in 0..PACKETS {
            if !self.has_pending_rx() {
                return Ok(progress);
            }
            let Some(chain) = pop(mem, queue, "rx")? else {
                return Ok(progress);
            };
            let head = chain.head_index();
            let used = match RxPacket::parse(mem, chain) {
                Ok(buffer) => match self.fill(&buffer) {
                    Filled::Bytes(used) => used,
                    Filled::Nothing => {
                        queue.go_to_previous_position();
                        return Ok(progress);
                    }
                },
                Err(error) => {
                    self.malformed(format_args!("a receive buffer is none: {error}"));
                    0
                }
            };
            queue
                .add_used(mem, head, used)
                .map_err(VsockError::ring("rx"))?;
            progress.used = true;
        }
        progress.more = self.has_pending_rx();
        Ok(progress)
    }

    /// Fills one buffer from the connection whose turn it is, or the next that has something to say.
    fn fill(&mut self, buffer: &RxPacket<'_>) -> Filled {
        if let Some(header) = self.refusals.pop_front() {
            return Filled::Bytes(buffer.finish(&header));
        }
        while let Some(id) = VecDeque::pop_front(&mut self.queue) {
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            endpoint.queued = false;
            let filled = endpoint.fill(self.guest_cid, buffer);
            self.review(id);
            if filled != Filled::Nothing {
                return filled;
            }
        }
        Filled::Nothing
    }
}

/// The next chain of a ring, or `None` when the driver has put no more in.
fn pop<'m>(
    mem: &'m GuestMemoryMmap,
    queue: &mut Queue,
    name: &'static str,
) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, VsockError> {
    Ok(queue.iter(mem).map_err(VsockError::ring(name))?.next())
}
