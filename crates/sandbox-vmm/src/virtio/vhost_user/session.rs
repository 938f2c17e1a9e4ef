//! The requests of a session, in the order that the vhost-user protocol wants.

use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::FrontEndError;
use crate::virtio::{ActivateError, ActiveQueue};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// The features that the monitor passes through: how the rings work.
const RING_FEATURES: u64 = (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

/// A negotiated session.
pub(super) struct Session {
    frontend: Frontend,
    /// Another descriptor of the session's socket, to watch.
    socket: UnixStream,
    offered: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("socket", &self.socket)
            .field("offered", &self.offered)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Takes ownership of the back end and agrees on the protocol.
    pub(super) fn open(socket: UnixStream, queues: usize) -> Result<Self, FrontEndError> {
        let refused = |action| move |source| FrontEndError::Refused { action, source };
        let host = |action| move |source| FrontEndError::Host { action, source };
        let watched = socket
            .try_clone()
            .map_err(host("duplicate a back end's socket"))?;
        let needs = u64::try_from(queues).unwrap_or(u64::MAX);
        let mut frontend = Frontend::from_stream(socket, needs);
        frontend
            .set_owner()
            .map_err(refused("take us as its owner"))?;
        let offered = frontend
            .get_features()
            .map_err(refused("name its features"))?;
        if offered & VERSION_1 == 0 {
            return Err(FrontEndError::Legacy { features: offered });
        }
        if offered & protocol_features_bit() != 0 {
            let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
            let agreed = wanted
                & frontend
                    .get_protocol_features()
                    .map_err(refused("name its protocol features"))?;
            frontend
                .set_protocol_features(agreed)
                .map_err(refused("accept the protocol features"))?;
            if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            if agreed.contains(VhostUserProtocolFeatures::MQ) {
                let has = frontend
                    .get_queue_num()
                    .map_err(refused("say how many queues it serves"))?;
                if has < needs {
                    return Err(FrontEndError::TooFewQueues { has, needs: queues });
                }
            }
        }
        Ok(Self {
            frontend,
            socket: watched,
            offered,
        })
    }

    /// What of the back end's offer concerns the rings.
    pub(super) fn ring_features(&self) -> u64 {
        self.offered & RING_FEATURES
    }

    /// A descriptor to watch for the back end's end.
    pub(super) fn peer(&self) -> Result<UnixStream, ActivateError> {
        self.socket
            .try_clone()
            .map_err(|source| ActivateError::Host {
                action: "duplicate a back end's socket",
                source,
            })
    }

    /// Says what the driver accepted and where guest memory is, but for what is only read: there is no file of it that could be handed
    /// over. A driver that names such memory is refused by the back end.
    pub(super) fn share(
        &mut self,
        accepted: u64,
        memory: &GuestMemoryMmap,
    ) -> Result<(), ActivateError> {
        let features =
            (accepted & RING_FEATURES) | VERSION_1 | (self.offered & protocol_features_bit());
        self.frontend
            .set_features(features)
            .map_err(backend("accept the driver's features"))?;
        let regions = memory
            .iter()
            .filter(|region| crate::memory::is_ram(region))
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(backend("map guest memory, which is in no memory file"))?;
        self.frontend
            .set_mem_table(&regions)
            .map_err(backend("map guest memory"))?;
        Ok(())
    }

    /// Hands over one queue.
    pub(super) fn start_queue(
        &mut self,
        index: usize,
        active: &ActiveQueue,
        call: &EventFd,
        memory: &GuestMemoryMmap,
    ) -> Result<(), ActivateError> {
        let queue = &active.queue;
        // Rings are named by their addresses in this process (vhost-user, "Ring addresses").
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host_address(memory, queue.desc_table())?,
            used_ring_addr: host_address(memory, queue.used_ring())?,
            avail_ring_addr: host_address(memory, queue.avail_ring())?,
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend
            .set_vring_num(index, queue.size())
            .map_err(backend("accept a queue's size"))?;
        frontend
            .set_vring_addr(index, &addresses)
            .map_err(backend("accept a queue's addresses"))?;
        frontend
            .set_vring_base(index, queue.next_avail())
            .map_err(backend("accept a queue's position"))?;
        frontend
            .set_vring_call(index, call)
            .map_err(backend("accept a queue's call event"))?;
        frontend
            .set_vring_kick(index, &active.kick)
            .map_err(backend("accept a queue's kick event"))?;
        if self.offered & protocol_features_bit() != 0 {
            frontend
                .set_vring_enable(index, true)
                .map_err(backend("enable a queue"))?;
        }
        Ok(())
    }

    /// Takes one queue back: the answer to `VHOST_USER_GET_VRING_BASE` comes when the back end has stopped.
    pub(super) fn stop_queue(&mut self, index: usize) -> Result<(), FrontEndError> {
        let refused = |action| move |source| FrontEndError::Refused { action, source };
        if self.offered & protocol_features_bit() != 0 {
            self.frontend
                .set_vring_enable(index, false)
                .map_err(refused("disable a queue"))?;
        }
        self.frontend
            .get_vring_base(index)
            .map_err(refused("stop a queue"))?;
        Ok(())
    }
}

fn protocol_features_bit() -> u64 {
    VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

fn backend(action: &'static str) -> impl FnOnce(vhost::Error) -> ActivateError {
    move |source| ActivateError::Backend { action, source }
}

/// Where the guest's address `guest` is in this process.
fn host_address(memory: &GuestMemoryMmap, guest: u64) -> Result<u64, ActivateError> {
    memory
        .get_host_address(GuestAddress(guest))
        .ok()
        .and_then(|pointer| u64::try_from(pointer.addr()).ok())
        .ok_or(ActivateError::Backend {
            action: "accept a ring outside guest memory",
            source: vhost::Error::InvalidGuestMemory,
        })
}
