//! Data that is held to a hash tree: a dm-verity device over a block device, or over a file by way of a loop device.
//!
//! ```text
//! block device, or file -> loop device \
//!                                       verity target (kernel) -> /dev/dm-N, mounted
//! root digest, from the host's message /
//! ```
//!
//! What the host does not say is in the superblock behind the data (cryptsetup `lib/verity/verity.c`, `struct verity_sb`). It need not
//! be believed: with another salt, or another number of blocks, the root does not come out. Algorithm and block size are fixed.
//!
//! Both devices go by themselves when the last mount of them is gone: the loop device by `LO_FLAGS_AUTOCLEAR`, the other by deferred
//! removal (kernel `Documentation/admin-guide/device-mapper/dm-init.rst` and `include/uapi/linux/dm-ioctl.h`).
#![expect(
    unsafe_code,
    reason = "the ioctls of the device mapper have no safe wrapper"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use sandbox_protocol::agent::Verity;

use super::loop_device::{self, Access, LoopError};

/// Bytes of a block of data and of hashes.
const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Bytes of the superblock.
const SUPERBLOCK_BYTES: usize = 512;
/// The longest salt.
const MAX_SALT_BYTES: usize = 256;

/// Why data cannot be held to its hash tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerityError {
    /// The host's message is not one.
    #[error(
        "the root digest has {digest} bytes and the hash tree is at byte {offset}; 32 bytes and a multiple of {BLOCK_BYTES} are needed"
    )]
    Request {
        /// Bytes of the digest.
        digest: usize,
        /// Where the tree is said to be.
        offset: u64,
    },
    /// There is no superblock, or one of another kind.
    #[error(
        "the superblock of the hash tree of {device} is damaged or of an unknown kind: {field}"
    )]
    Superblock {
        /// Where it was read.
        device: String,
        /// What is wrong.
        field: &'static str,
    },
    /// A file cannot be a device.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// A system call.
    #[error("cannot {action} {device}")]
    System {
        /// What was tried.
        action: &'static str,
        /// With what.
        device: String,
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, device: &str) -> impl FnOnce(io::Error) -> VerityError {
    let device = device.to_owned();
    move |source| VerityError::System {
        action,
        device,
        source,
    }
}

/// A device whose reads are checked. It is gone when this is dropped and nothing is mounted from it.
#[derive(Debug)]
pub(crate) struct Verified {
    control: File,
    name: String,
    /// Its node.
    pub(super) path: String,
}

impl Drop for Verified {
    fn drop(&mut self) {
        // What is mounted keeps it until then.
        let mut message = DmMessage::new(&self.name, DM_DEFERRED_REMOVE);
        if let Err(error) = message.send(&self.control, DM_DEV_REMOVE) {
            crate::log!("cannot remove the device {}: {error}", self.path);
        }
    }
}

/// What the superblock says.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    fn parse(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self, &'static str> {
        let field =
            |at: usize, length: usize| bytes.get(at..at.saturating_add(length)).unwrap_or_default();
        let number = |at: usize, length: usize| {
            field(at, length)
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let algorithm = field(32, 32);
        let salt_bytes = usize::try_from(number(80, 2)).unwrap_or(usize::MAX);
        let data_blocks = number(72, 8);
        if field(0, 8) != b"verity\0\0" {
            return Err("signature");
        }
        if number(8, 4) != 1 || number(12, 4) != 1 {
            return Err("version");
        }
        if algorithm
            .strip_prefix(b"sha256")
            .is_none_or(|rest| rest.iter().any(|byte| *byte != 0))
        {
            return Err("algorithm");
        }
        if number(64, 4) != BLOCK_BYTES || number(68, 4) != BLOCK_BYTES {
            return Err("block size");
        }
        if salt_bytes > MAX_SALT_BYTES {
            return Err("salt");
        }
        // The data is in front of it, and there is some.
        if data_blocks == 0 || data_blocks > u64::MAX / BLOCK_BYTES {
            return Err("number of blocks");
        }
        Ok(Self {
            data_blocks,
            salt: field(88, salt_bytes).to_vec(),
        })
    }
}

/// Makes a device of the data at `source`, a block device or a file, that gives nothing that was changed.
pub(super) fn open(source: &str, verity: &Verity) -> Result<Verified, VerityError> {
    if verity.root_hash.len() != 32 || !verity.hash_offset.is_multiple_of(BLOCK_BYTES) {
        return Err(VerityError::Request {
            digest: verity.root_hash.len(),
            offset: verity.hash_offset,
        });
    }
    let file = File::open(source).map_err(failed("open", source))?;
    let mut bytes = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut bytes, verity.hash_offset)
        .map_err(failed("read the hash tree of", source))?;
    let superblock = Superblock::parse(&bytes).map_err(|field| VerityError::Superblock {
        device: source.to_owned(),
        field,
    })?;
    let kind = file
        .metadata()
        .map_err(failed("examine", source))?
        .file_type();
    let (device, _held) = if kind.is_block_device() {
        (source.to_owned(), None)
    } else {
        let (path, held) = loop_device::attach(&file, source, Access::ReadOnly)?;
        (path, Some(held))
    };
    let hash_start = verity.hash_offset / BLOCK_BYTES + 1;
    let salt = match superblock.salt.as_slice() {
        [] => "-".to_owned(),
        salt => hex(salt),
    };
    // Kernel `Documentation/admin-guide/device-mapper/verity.rst`, "Construction Parameters".
    let table = format!(
        "1 {device} {device} {BLOCK_BYTES} {BLOCK_BYTES} {} {hash_start} sha256 {} {salt}",
        superblock.data_blocks,
        hex(&verity.root_hash)
    );
    create(&device, superblock.data_blocks, &table)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn create(device: &str, data_blocks: u64, table: &str) -> Result<Verified, VerityError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const CONTROL: &str = "/dev/mapper/control";
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(failed("open", CONTROL))?;
    let name = format!("verity-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut message = DmMessage::new(&name, DM_READONLY);
    message
        .send(&control, DM_DEV_CREATE)
        .map_err(failed("make a checked device of", device))?;
    let made = Verified {
        control,
        path: format!("/dev/dm-{}", rustix::fs::minor(message.dev)),
        name,
    };
    let sectors = data_blocks * (BLOCK_BYTES / SECTOR_BYTES);
    let mut message = DmMessage::new(&made.name, DM_READONLY);
    message.put_target("verity", sectors, table);
    message
        .send(&made.control, DM_TABLE_LOAD)
        .map_err(failed("hold to its hash tree", device))?;
    // Without the flag of suspension this resumes.
    DmMessage::new(&made.name, DM_READONLY)
        .send(&made.control, DM_DEV_SUSPEND)
        .map_err(failed("start checking", device))?;
    Ok(made)
}

// Kernel `include/uapi/linux/dm-ioctl.h`.
const DM_READONLY: u32 = 1 << 0;
const DM_DEFERRED_REMOVE: u32 = 1 << 17;
const DM_DEV_CREATE: u64 = 3;
const DM_DEV_REMOVE: u64 = 4;
const DM_DEV_SUSPEND: u64 = 6;
const DM_TABLE_LOAD: u64 = 9;
/// `struct dm_ioctl`, of which the number of a call has the size.
const HEADER_BYTES: u32 = 312;
const PARAMETER_BYTES: usize = 1024;

/// `struct dm_ioctl`, one `struct dm_target_spec`, and its parameters.
#[repr(C)]
struct DmMessage {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
    parameters: [u8; PARAMETER_BYTES],
}

const _: () = assert!(std::mem::offset_of!(DmMessage, sector_start) == HEADER_BYTES as usize);

/// Copies text into a field that stays terminated by a zero.
fn put(field: &mut [u8], text: &str) {
    let room = field.len().saturating_sub(1);
    for (to, from) in field.iter_mut().take(room).zip(text.bytes()) {
        *to = from;
    }
}

impl DmMessage {
    fn new(name: &str, flags: u32) -> Self {
        let mut message = Self {
            // The oldest that has all that is used here; the kernel takes what is not newer than itself.
            version: [4, 27, 0],
            data_size: u32::try_from(size_of::<Self>()).unwrap_or(HEADER_BYTES),
            data_start: HEADER_BYTES,
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
            sector_start: 0,
            length: 0,
            status: 0,
            next: 0,
            target_type: [0; 16],
            parameters: [0; PARAMETER_BYTES],
        };
        put(&mut message.name, name);
        message
    }

    fn put_target(&mut self, kind: &str, sectors: u64, parameters: &str) {
        self.target_count = 1;
        self.length = sectors;
        put(&mut self.target_type, kind);
        put(&mut self.parameters, parameters);
    }

    /// The kernel writes its answer over it.
    fn send(&mut self, control: &File, call: u64) -> io::Result<()> {
        let number = nix::request_code_readwrite!(0xfd, call, HEADER_BYTES);
        // SAFETY: the message has the layout of `struct dm_ioctl` with room behind it, and says in data_size how many bytes of
        // it the kernel may read and write, which are all its own.
        match unsafe {
            libc::ioctl(
                control.as_raw_fd(),
                number as libc::c_ulong,
                std::ptr::from_mut(self),
            )
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock() -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"verity\0\0");
        put(8, &[1, 0, 0, 0, 1]);
        put(32, b"sha256");
        put(64, &4096_u32.to_le_bytes());
        put(68, &4096_u32.to_le_bytes());
        put(72, &300_u64.to_le_bytes());
        put(80, &[3]);
        put(88, b"abc");
        bytes
    }

    #[test]
    fn superblock_says_how_many_blocks_and_which_salt() {
        assert_eq!(
            Superblock::parse(&superblock()),
            Ok(Superblock {
                data_blocks: 300,
                salt: b"abc".to_vec()
            })
        );
    }

    #[test]
    fn superblock_of_another_kind_is_refused_by_its_field() {
        for (at, byte, field) in [
            (0, b'V', "signature"),
            (8, 2, "version"),
            (12, 0, "version"),
            (38, b'x', "algorithm"),
            (32, b'm', "algorithm"),
            (65, 8, "block size"),
            (69, 8, "block size"),
            (81, 2, "salt"),
            (79, 255, "number of blocks"),
        ] {
            let mut bytes = superblock();
            bytes[at] = byte;
            assert_eq!(Superblock::parse(&bytes), Err(field), "byte {at}");
        }
    }

    #[test]
    fn request_that_is_none_is_refused_before_anything_is_opened() {
        for (bytes, offset) in [(31, 4096), (32, 4095)] {
            let verity = Verity {
                root_hash: vec![0; bytes],
                hash_offset: offset,
                ..Verity::default()
            };
            assert!(matches!(
                open("/nowhere", &verity),
                Err(VerityError::Request { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn superblock_of_any_bytes_is_read_or_refused(changes in prop::collection::vec((0..SUPERBLOCK_BYTES, any::<u8>()), 0..8)) {
            let mut bytes = superblock();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Ok(read) = Superblock::parse(&bytes) {
                prop_assert!(read.salt.len() <= MAX_SALT_BYTES && read.data_blocks > 0);
            }
        }
    }
}
