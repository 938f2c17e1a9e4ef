//! The file system device (VirtIO 1.3, 5.11): a shared directory of the host's.
//!
//! Requests are FUSE messages that the monitor never sees: a vhost-user back end serves the queues, through
//! the [front end](super::vhost_user). The monitor knows the tag by which the guest mounts the directory.
//!
//! The notification queue (`VIRTIO_FS_F_NOTIFICATION`) is not offered.

mod error;

use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::vhost_user::FrontEnd;
use super::{ActivateError, Activation, VirtioDevice, copy_config};

pub(crate) use error::FsError;

use crate::seccomp::ThreadKind;

/// Bytes of the tag in the configuration space (VirtIO 1.3, 5.11.4), unused ones zero.
pub(crate) const TAG_BYTES: usize = 36;
/// Queues for ordinary requests.
const REQUEST_QUEUES: u32 = 1;
/// The high-priority queue, and the request queues.
const QUEUE_MAX_SIZES: [u16; 2] = [128, 1024];
/// The tag and `num_request_queues`.
const CONFIG_BYTES: usize = TAG_BYTES + 4;

/// A file system device.
#[derive(Debug)]
pub(crate) struct FsDevice {
    config: [u8; CONFIG_BYTES],
    front_end: FrontEnd,
}

impl FsDevice {
    /// A device with this tag, served by the back end at the other end of `backend`.
    ///
    /// # Errors
    /// [`FsError`] for a tag that does not fit, or a back end that does not.
    pub(crate) fn new(tag: &str, backend: UnixStream) -> Result<Self, FsError> {
        let config = config_space(tag)?;
        let front_end = FrontEnd::open(backend, QUEUE_MAX_SIZES.len())?;
        Ok(Self { config, front_end })
    }
}

fn config_space(tag: &str) -> Result<[u8; CONFIG_BYTES], FsError> {
    if tag.is_empty() || tag.len() > TAG_BYTES || tag.contains('\0') {
        return Err(FsError::Tag {
            tag: tag.to_owned(),
        });
    }
    let mut config = [0; CONFIG_BYTES];
    let (name, queues) = config.split_at_mut(TAG_BYTES);
    for (to, from) in name.iter_mut().zip(tag.bytes()) {
        *to = from;
    }
    queues.copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
    Ok(config)
}

impl VirtioDevice for FsDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn thread(&self) -> (String, ThreadKind) {
        ("fs".to_owned(), ThreadKind::VhostUser)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn features(&self) -> u64 {
        self.front_end.ring_features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn is_served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.front_end.activate(activation)
    }

    fn reset(&mut self) {
        self.front_end.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_space_has_the_padded_tag_and_one_request_queue() {
        let config = config_space("data").unwrap();
        assert_eq!(&config[..5], b"data\0");
        assert!(config[5..TAG_BYTES].iter().all(|byte| *byte == 0));
        assert_eq!(&config[TAG_BYTES..], &[1, 0, 0, 0]);
    }

    #[test]
    fn tag_that_does_not_fit_is_refused() {
        assert!(config_space(&"t".repeat(TAG_BYTES)).is_ok());
        for tag in ["", "a\0b", &"t".repeat(TAG_BYTES + 1)] {
            assert!(matches!(config_space(tag), Err(FsError::Tag { .. })));
        }
    }
}
