//! From what the first request names to the parts of a machine.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::FileType;
use sandbox_types::MemMib;
use sandbox_types::monitor::{BlockConfig, MachineDevices, NetConfig, PmemConfig};

use crate::fd::{Passed, PassedError};
use crate::machine::LoadedMachine;
use crate::memory::later::Later;
use crate::memory::window::{Window, WindowError, WindowFile};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::error::BlockError;
use crate::virtio::block::pace::DiskPace;
use crate::virtio::fs::{FsDevice, FsError};
use crate::virtio::mem::{Mem, MemorySize};
use crate::virtio::net::Net;
use crate::virtio::net::error::NetError;
use crate::virtio::net::tap::Tap;
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::vsock::{MuxerConfig, Vsock, VsockError};

/// Why the devices cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    /// A descriptor that is not there, or not wanted.
    #[error(transparent)]
    Descriptor(#[from] PassedError),
    /// A disk.
    #[error("disk {index} ({serial:?})")]
    Block {
        /// Its place in the request.
        index: usize,
        /// Its serial number.
        serial: String,
        /// What is wrong.
        source: BlockError,
    },
    /// Persistent memory.
    #[error("persistent memory")]
    Pmem(#[from] WindowError),
    /// The memory device.
    #[error("the memory device has no event descriptor")]
    Mem {
        /// What the kernel said.
        source: io::Error,
    },
    /// A network device.
    #[error("network device {index}")]
    Net {
        /// Its place in the request.
        index: usize,
        /// What is wrong.
        source: NetError,
    },
    /// A shared directory.
    #[error("shared directory {tag:?}")]
    Share {
        /// Its tag.
        tag: String,
        /// What is wrong.
        source: FsError,
    },
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
}

/// The devices, and the memory beside that which is there from the start.
pub(super) struct Devices {
    /// In the order in which the guest finds them.
    pub(super) all: Vec<Box<dyn VirtioDevice>>,
    pub(super) window: Option<Window>,
    pub(super) later: Option<Later>,
    /// How much memory the guest is to have, where that can change.
    pub(super) size: Option<MemorySize>,
    /// How long the longest file is that a device writes.
    pub(super) file_bytes: u64,
}

impl Devices {
    /// Makes those that the request names, of its descriptors.
    pub(super) fn make(
        loaded: &LoadedMachine,
        request: MachineDevices,
        mut passed: Passed,
    ) -> Result<Self, DevicesError> {
        let mut all: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let pace = DiskPace::new(&request.disk_limits);
        let mut file_bytes = 0;
        for (index, disk) in request.block.iter().enumerate() {
            let fd = passed.take(disk.fd, "a disk")?;
            if !disk.read_only {
                file_bytes = file_bytes.max(regular_file_bytes(&fd));
            }
            all.push(Box::new(block(index, disk, fd, pace.as_ref())?));
        }
        let window = match &request.pmem {
            Some(pmem) => Some(window(&mut passed, loaded.memory(), pmem)?),
            None => None,
        };
        if let Some(window) = &window {
            all.push(Box::new(Pmem::new(window.range())));
        }
        all.push(Box::new(Rng::new()));
        if request.free_page_reporting {
            all.push(Box::new(Balloon::new()));
        }
        let later = loaded.later(window.as_ref().map_or(0, |window| window.range().length));
        let size = match later {
            Some(later) => {
                let size = MemorySize::new(loaded.memory(), later);
                Some(size.map_err(|source| DevicesError::Mem { source })?)
            }
            None => None,
        };
        if let Some(size) = &size {
            all.push(Box::new(Mem::new(size.clone())));
        }
        let listener = passed.take(request.vsock.listener_fd, "the vsock listener")?;
        all.push(Box::new(Vsock::new(MuxerConfig {
            guest_cid: request.vsock.cid,
            listener: UnixListener::from(listener),
            path: PathBuf::from(request.vsock.path),
        })?));
        for (index, net) in request.net.iter().enumerate() {
            all.push(Box::new(network(&mut passed, index, net)?));
        }
        for share in request.shares {
            let tag = share.tag;
            let fd = passed.take(share.fd, "a vhost-user back end")?;
            match FsDevice::new(&tag, UnixStream::from(fd)) {
                Ok(device) => all.push(Box::new(device)),
                Err(source) => return Err(DevicesError::Share { tag, source }),
            }
        }
        passed.finish()?;
        Ok(Self {
            all,
            window,
            later,
            size,
            file_bytes,
        })
    }
}

/// How long a file is; 0 of one that is no regular file, and so cannot become longer.
fn regular_file_bytes(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd)
        .ok()
        .filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
        .and_then(|stat| u64::try_from(stat.st_size).ok())
        .unwrap_or(0)
}

fn network(passed: &mut Passed, index: usize, net: &NetConfig) -> Result<Net, DevicesError> {
    let mut queues = Vec::with_capacity(net.fds.len());
    for fd in &net.fds {
        queues.push(File::from(passed.take(*fd, "a queue of a tap")?));
    }
    queues
        .into_iter()
        .map(Tap::new)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|taps| Net::new(&format!("net{index}"), taps, net.mac, net.mtu))
        .map_err(|source| DevicesError::Net { index, source })
}

fn window(passed: &mut Passed, memory: MemMib, pmem: &PmemConfig) -> Result<Window, DevicesError> {
    let mut files = Vec::with_capacity(pmem.files.len());
    for file in &pmem.files {
        files.push(WindowFile {
            file: File::from(passed.take(file.fd, "a file for persistent memory")?),
            offset: file.offset,
            bytes: file.bytes,
        });
    }
    Ok(Window::map(memory, pmem.bytes, files)?)
}

fn block(
    index: usize,
    disk: &BlockConfig,
    fd: OwnedFd,
    pace: Option<&DiskPace>,
) -> Result<Block, DevicesError> {
    // Linux's name of the disk: there are fewer than 26.
    let letter = u8::try_from(index)
        .ok()
        .and_then(|index| b'a'.checked_add(index))
        .map_or('?', char::from);
    Block::new(
        &format!("vd{letter}"),
        File::from(fd),
        disk.read_only,
        &disk.serial,
        disk.queues,
    )
    .and_then(|block| match pace {
        Some(pace) => block.with_pace(pace),
        None => Ok(block),
    })
    .map_err(|source| DevicesError::Block {
        index,
        serial: disk.serial.clone(),
        source,
    })
}
