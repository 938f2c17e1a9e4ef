//! What the shim tells the monitor, and what the monitor reports back.
//!
//! The monitor (`sandbox-vmm run`) is told in two steps, so that it can begin before all is known:
//!
//! ```text
//! runtime                                              monitor
//!    | spawn: MonitorConfig on CONFIG_FD  ------------>  enters its jail, makes the VM, maps memory, loads the kernel
//!    | MonitorRequest::Run, with descriptors  -------->  makes devices and vCPUs, and runs the guest
//!    | <---------------------------  MonitorEvent::Started
//! ```
//!
//! It is started with a [`MonitorConfig`] as JSON on descriptor [`CONFIG_FD`] (read to its end) and a connected Unix stream socket on
//! descriptor [`CONTROL_FD`]; the descriptors in that configuration are open, and named by number. It writes [`MonitorEvent`]s to the
//! control socket, one JSON object a line, and reads [`MonitorRequest`]s from it in the same form. The first of them is
//! [`MonitorRequest::Run`], and its descriptors come along with its first byte (`SCM_RIGHTS`, unix(7)), in one message: the
//! [`MachineDevices`] name each of them, once, by its place among them. When the socket reads end-of-file (the shim died, or wants it gone)
//! the monitor ends the guest, if there is one yet, and exits.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::{GuestCid, MacAddress, MemMib, VcpuCount};

/// Descriptor on which the monitor reads its [`MonitorConfig`].
pub const CONFIG_FD: i32 = 3;
/// Descriptor of the control socket.
pub const CONTROL_FD: i32 = 4;

/// The most devices of a machine, those that every machine has among them. Each has an interrupt line of its own: KVM's IO-APIC has 24, and
/// the first five are of others.
pub const MAX_DEVICES: usize = 19;

/// The most queue pairs of a network device: more than vCPUs are of no use, and each has a thread.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// The most queues of a block device. More would have fewer entries each than a large request takes.
pub const MAX_DISK_QUEUES: usize = 4;

/// The most descriptors of a [`MonitorRequest::Run`]: what the kernel passes in one message (`SCM_MAX_FD`, `include/net/scm.h`).
pub const MAX_PASSED_FDS: usize = 253;
/// The longest [`MonitorRequest::Run`], in bytes: several times what one with the most descriptors has, and less than a socket holds.
pub const MAX_RUN_BYTES: usize = 64 << 10;

/// A machine to build, as far as it is known before its devices. Descriptor numbers are those of the monitor process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm_fd: i32,
    /// An uncompressed ELF kernel with a PVH note, opened for reading.
    pub kernel_fd: i32,
    /// The kernel command line without the `virtio_mmio.device=` entries, which the monitor appends.
    pub command_line: String,
    /// Guest memory, from the start.
    pub memory: MemMib,
    /// What it may become ([`MonitorRequest::SetMemory`]). With more than `memory` there is a virtio-mem device.
    pub max_memory: MemMib,
    /// Processors. How many of them the kernel brings up by itself is its command line's to say (`maxcpus=`).
    pub vcpus: VcpuCount,
    /// Whether back ends of devices share guest memory, so that it has to be a file. Where there are [shares](MachineDevices::shares) after
    /// all, the monitor makes it one, and loads the kernel again.
    pub shared_memory: bool,
    /// A memory file that holds the guest's console, in the layout of [`console_ring`].
    pub console_fd: i32,
}

/// What else it takes to build the machine. Descriptors are named by their places among those that come with the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDevices {
    /// Block devices in the order in which the guest numbers them: `vda`, `vdb`, …
    pub block: Vec<BlockConfig>,
    /// A persistent memory device of files that are only read.
    pub pmem: Option<PmemConfig>,
    /// What the block devices may do together.
    pub disk_limits: DiskLimits,
    /// Network devices.
    pub net: Vec<NetConfig>,
    /// Shared directories, each served by a vhost-user back end.
    pub shares: Vec<ShareConfig>,
    /// The vsock device.
    pub vsock: VsockConfig,
    /// Offer a balloon device, through which pages that the guest frees go back to the host.
    pub free_page_reporting: bool,
}

/// A virtio block device over a raw file or block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The image, opened for reading, and for writing unless `read_only`.
    pub fd: usize,
    /// Offer `VIRTIO_BLK_F_RO` and refuse writes.
    pub read_only: bool,
    /// What the guest reads in `/sys/block/*/serial`; at most 20 bytes of ASCII (VirtIO 1.3, 5.2.6).
    pub serial: String,
    /// How many queues it has, from 1 to [`MAX_DISK_QUEUES`]: so many vCPUs read or write without waiting for each other.
    pub queues: usize,
}

/// What the ranges of a [`PmemConfig`], and its size, are multiples of, and where its address is: Linux adds memory of devices in units
/// of this on x86 (`SUBSECTION_SIZE`, `include/linux/mmzone.h`). Also a huge page.
pub const PMEM_ALIGNMENT: u64 = 2 << 20;
/// What begins a [`PmemConfig`]'s device, as zeroes: Linux looks for a partition table in the first bytes, and for other things in the
/// first 8 KiB (`drivers/nvdimm`), and what it finds must not be the word of a file.
pub const PMEM_HEADER_BYTES: u64 = 64 << 10;

/// A virtio-pmem device (VirtIO 1.3, 5.19): files, in one range of guest addresses, mapped from the host's page cache. The guest cannot
/// write to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// In the order of their offsets, without overlaps, the first one not before [`PMEM_HEADER_BYTES`]. What is between them reads as
    /// zeroes.
    pub files: Vec<PmemFileConfig>,
    /// The size of the whole device: a multiple of [`PMEM_ALIGNMENT`].
    pub bytes: u64,
}

/// A file in a [`PmemConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemFileConfig {
    /// The file, opened for reading.
    pub fd: usize,
    /// Where in the device it begins, in whole pages.
    pub offset: u64,
    /// How long it is; never 0. A shorter file is refused, and one that becomes shorter ends the machine when the guest reads there.
    pub bytes: u64,
}

/// How fast a sandbox's disks are served, all of them together; `None` is without limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes read and written in a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Requests of any kind in a second.
    pub operations_per_second: Option<NonZeroU64>,
}

/// A virtio network device (VirtIO 1.3, 5.1) over a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The queues of the tap, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and `IFF_MULTI_QUEUE` if they are several; at
    /// most [`MAX_QUEUE_PAIRS`]. The device has a pair of queues for each.
    pub fds: Vec<usize>,
    /// The hardware address that the device has at first.
    pub mac: MacAddress,
    /// The largest packet, without the Ethernet header, in bytes: at least 68.
    pub mtu: u16,
}

/// A virtio-fs device (VirtIO 1.3, 5.11) whose back end is a vhost-user server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// A Unix stream socket connected to the back end.
    pub fd: usize,
    /// The tag by which the guest mounts it; at most 36 bytes.
    pub tag: String,
}

/// The user-space vsock device. Firecracker's convention on the host: a connection to `path` says
/// `CONNECT <port>\n` and gets `OK <port>\n`; a connection that the guest opens to port `p` arrives at
/// `<path>_<p>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier.
    pub cid: GuestCid,
    /// A listening Unix stream socket bound to `path`.
    pub listener_fd: usize,
    /// Prefix of the sockets that guest-opened connections go to.
    pub path: String,
}

/// What the monitor is asked on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MonitorRequest {
    /// The machine is to have these devices, and to run. The first request, and no later one.
    Run {
        /// Which.
        devices: Box<MachineDevices>,
    },
    /// The guest is to have this much memory. What is above the maximum, or below what it had from the start, is taken for that.
    SetMemory {
        /// How much.
        memory: MemMib,
    },
}

/// What the monitor says on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum MonitorEvent {
    /// The machine is built; the vCPUs start now.
    Started {
        /// When the monitor's `main` began, `CLOCK_MONOTONIC` nanoseconds.
        process_ns: u64,
        /// When the first vCPU entered the guest, `CLOCK_MONOTONIC` nanoseconds.
        first_instruction_ns: u64,
    },
    /// The machine could not be built; the process exits.
    Failed {
        /// The whole error chain, for a person.
        message: String,
    },
    /// The guest has as much memory as it was last asked to have, and its driver is done with it. Whether its kernel found a use for the
    /// last of it, no device sees.
    MemorySet {
        /// How much.
        memory: MemMib,
    },
    /// A request cannot be done.
    Refused {
        /// Why, for a person.
        message: String,
    },
    /// The guest ended; the process exits.
    Exited {
        /// How.
        reason: GuestExit,
    },
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum GuestExit {
    /// The agent asked for power-off by writing [`POWER_OFF`] to port [`EXIT_PORT`].
    Shutdown,
    /// The guest kernel panicked: it reset the machine after `Kernel panic` on its console.
    Panic,
    /// The guest reset the machine for another reason.
    Reset,
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// KVM could not go on (`KVM_EXIT_FAIL_ENTRY`, `KVM_EXIT_INTERNAL_ERROR`, or the ioctl failed).
    KvmError {
        /// What KVM said.
        detail: String,
    },
    /// A file of a [`PmemConfig`] is no longer what it was, and the guest read where it is missing.
    FileLost {
        /// Its place in the configuration.
        index: u64,
        /// How many bytes it has now.
        bytes: u64,
        /// How many it should have.
        expected: u64,
    },
}

impl GuestExit {
    /// The monitor's process exit code for this end; 0 is a wanted shutdown.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Shutdown => 0,
            Self::Panic => 80,
            Self::Reset => 81,
            Self::TripleFault => 82,
            Self::KvmError { .. } => 83,
            Self::FileLost { .. } => FILE_LOST_EXIT_CODE,
        }
    }
}

/// The exit code of a monitor or back end one of whose threads made a system call that is not on its list. If even that could
/// not be done, `SIGSYS` ended it.
pub const VIOLATION_EXIT_CODE: u8 = 84;

/// The exit code of a monitor that, serving a device, read from a file of a [`PmemConfig`] where that is missing. There is no event then.
pub const FILE_LOST_EXIT_CODE: u8 = 85;

/// The exit code of a monitor one of whose devices a driver pointed at memory that the guest does not have at the time. There is no
/// event then.
pub const UNPLUGGED_EXIT_CODE: u8 = 86;

/// The I/O port through which the agent ends the machine. QEMU's `isa-debug-exit` device has the same
/// default, so one agent serves both drivers.
pub const EXIT_PORT: u16 = 0x501;
/// What the agent writes to [`EXIT_PORT`] for a clean power-off.
pub const POWER_OFF: u8 = 0x10;

/// The layout of the console's memory file, shared by the monitor that writes and the shim that reads after
/// the monitor is gone, however it went.
pub mod console_ring {
    /// Size of the whole file, in bytes.
    pub const FILE_BYTES: usize = HEADER_BYTES + DATA_BYTES;
    /// The header: a little-endian `u64` at offset 0 that counts all bytes ever written. The rest is zero.
    pub const HEADER_BYTES: usize = 64;
    /// Bytes kept. Byte number `n` of the console is at `HEADER_BYTES + n % DATA_BYTES`.
    pub const DATA_BYTES: usize = 64 * 1024;
}
