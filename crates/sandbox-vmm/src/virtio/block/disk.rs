//! The raw file behind a block device.
#![expect(
    unsafe_code,
    reason = "preadv, preadv2 and pwritev move bytes between the file and guest memory, which has no Rust references"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::GuestMemoryMmap;

use super::error::BlockError;
use super::request::Range;
use crate::virtio::chain::{Segment, total, write_over};
use crate::virtio::vectors::Vectors;

/// The unit of addresses and sizes, whatever the disk's own (VirtIO 1.3, 5.2.4).
const SECTOR_BYTES: u64 = 512;
/// The longest serial number (5.2.6).
const SERIAL_BYTES: usize = 20;

/// How a range becomes a hole.
pub(super) const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// A disk image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: Vec<u8>,
    /// The file can say that a read would have to wait.
    tells: AtomicBool,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    /// As far as nothing has to be waited for.
    InAtOnce,
    Out,
}

impl Disk {
    /// A disk of the whole sectors of `file`.
    ///
    /// # Errors
    /// [`BlockError::Serial`] or [`BlockError::Size`].
    pub fn new(mut file: File, read_only: bool, serial: &str) -> Result<Self, BlockError> {
        if serial.len() > SERIAL_BYTES || !serial.is_ascii() {
            return Err(BlockError::Serial {
                serial: serial.to_owned(),
            });
        }
        // Unlike the metadata, this also knows the size of a block device.
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| BlockError::Size { source })?;
        Ok(Self {
            file,
            sectors: bytes / SECTOR_BYTES,
            read_only,
            serial: serial.as_bytes().to_vec(),
            tells: AtomicBool::new(true),
        })
    }

    /// How many sectors it has.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads from `sector` on, and says how many bytes.
    ///
    /// # Errors
    /// [`BlockError`]; parts may have been read.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        sector: u64,
        data: &VecDeque<Segment>,
    ) -> Result<u32, BlockError> {
        let bytes = total(data);
        let offset = self.check(sector, bytes)?;
        self.transfer(memory, offset, data, Direction::In)?;
        // More is only possible with a disk of that size in one request; the length is a hint then.
        Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// As [`Self::read`], unless the host would have to be waited for: then nothing is said, and the host has begun to
    /// read. Where the file cannot tell, it is waited for.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_at_once(
        &self,
        memory: &GuestMemoryMmap,
        sector: u64,
        data: &VecDeque<Segment>,
    ) -> Result<Option<u32>, BlockError> {
        if !self.tells.load(Ordering::Relaxed) {
            return self.read(memory, sector, data).map(Some);
        }
        let bytes = total(data);
        let offset = self.check(sector, bytes)?;
        let all = self.transfer(memory, offset, data, Direction::InAtOnce)?;
        Ok(all.then(|| u32::try_from(bytes).unwrap_or(u32::MAX)))
    }

    /// Whether nothing is ever written to it.
    #[must_use]
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Writes from `sector` on.
    ///
    /// # Errors
    /// [`BlockError`]; parts may have been written.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        sector: u64,
        data: &VecDeque<Segment>,
    ) -> Result<(), BlockError> {
        self.check_writable()?;
        let offset = self.check(sector, total(data))?;
        self.transfer(memory, offset, data, Direction::Out)?;
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`BlockError::Disk`].
    pub fn flush(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(BlockError::flush)
    }

    /// Turns the ranges into holes, which read as zeroes.
    ///
    /// # Errors
    /// [`BlockError`]; [`BlockError::Unsupported`] if the file cannot have holes, or for flags without
    /// a meaning (5.2.6.2).
    pub(crate) fn punch(&self, ranges: &[Range], allowed_flags: u32) -> Result<(), BlockError> {
        for range in ranges {
            let (offset, bytes) = self.hole(*range, allowed_flags)?;
            fallocate(&self.file, HOLE, offset, bytes)
                .map_err(|errno| BlockError::hole(errno.into()))?;
        }
        Ok(())
    }

    /// Where the range is in the file, and how long it is, in bytes.
    ///
    /// # Errors
    /// As [`Self::punch`].
    pub(super) fn hole(&self, range: Range, allowed_flags: u32) -> Result<(u64, u64), BlockError> {
        self.check_writable()?;
        if range.flags & !allowed_flags != 0 {
            return Err(BlockError::Unsupported);
        }
        let bytes = u64::from(range.sectors) * SECTOR_BYTES;
        Ok((self.check(range.sector, bytes)?, bytes))
    }

    /// Writes the serial number, with zeroes up to 20 bytes.
    ///
    /// # Errors
    /// [`BlockError::Memory`].
    pub(crate) fn write_serial(
        &self,
        memory: &GuestMemoryMmap,
        data: &VecDeque<Segment>,
    ) -> Result<u32, BlockError> {
        let mut id = [0; SERIAL_BYTES];
        for (to, from) in id.iter_mut().zip(&self.serial) {
            *to = *from;
        }
        let written = write_over(memory, data.iter().copied(), &id).map_err(BlockError::Memory)?;
        Ok(u32::try_from(written).unwrap_or(0))
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }

    /// The offset of `sector`, if whole sectors of `bytes` bytes from it on are on the disk.
    ///
    /// # Errors
    /// [`BlockError::PartialSector`] or [`BlockError::OutOfRange`].
    pub(super) fn check(&self, sector: u64, bytes: u64) -> Result<u64, BlockError> {
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(BlockError::PartialSector { bytes });
        }
        let end = sector.checked_add(bytes / SECTOR_BYTES);
        match (end, sector.checked_mul(SECTOR_BYTES)) {
            (Some(end), Some(offset)) if end <= self.sectors => Ok(offset),
            _ => Err(BlockError::OutOfRange {
                sector,
                bytes,
                sectors: self.sectors,
            }),
        }
    }

    /// Moves all bytes, and says whether it did. Segments are checked to be in guest memory before the first byte moves.
    fn transfer(
        &self,
        memory: &GuestMemoryMmap,
        mut offset: u64,
        data: &VecDeque<Segment>,
        direction: Direction,
    ) -> Result<bool, BlockError> {
        let mut vectors =
            Vectors::of_guest(memory, data.iter().copied()).map_err(BlockError::Memory)?;
        while !vectors.as_slice().is_empty() {
            let Some(moved) = self.once(&vectors, offset, direction)? else {
                return Ok(false);
            };
            offset = offset.saturating_add(moved as u64);
            vectors.advance(moved);
        }
        Ok(true)
    }

    /// One system call, at least one byte; nothing if that would have to wait and is not to.
    fn once(
        &self,
        vectors: &Vectors<'_>,
        offset: u64,
        direction: Direction,
    ) -> Result<Option<usize>, BlockError> {
        let failed = match direction {
            Direction::In | Direction::InAtOnce => BlockError::read,
            Direction::Out => BlockError::write,
        };
        let vectors = vectors.as_slice();
        let count = i32::try_from(vectors.len()).unwrap_or(i32::MAX);
        let at = i64::try_from(offset).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut now = direction == Direction::InAtOnce;
        loop {
            let call: Vectored = match direction {
                Direction::Out => libc::pwritev,
                _ if now => read_now,
                _ => libc::preadv,
            };
            // SAFETY: `Vectors` are whole ranges of guest memory, which they keep, and nothing has a reference to.
            let moved = unsafe { call(self.file.as_raw_fd(), vectors.as_ptr(), count, at) };
            match usize::try_from(moved) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(moved) => return Ok(Some(moved)),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINTR) => {}
                        Some(libc::EAGAIN) if now => return Ok(None),
                        // A file system that does not know the flag, or a kernel that does not know the call.
                        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) if now => {
                            self.tells.store(false, Ordering::Relaxed);
                            now = false;
                        }
                        _ => return Err(failed(error)),
                    }
                }
            }
        }
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

type Vectored = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize;

/// `preadv2` with `RWF_NOWAIT` (readv(2)), for which not every C library has a function.
///
/// # Safety
/// The vectors are memory that may be written to.
unsafe extern "C" fn read_now(
    file: i32,
    vectors: *const libc::iovec,
    count: i32,
    offset: i64,
) -> isize {
    let [file, count, flags] = [file, count, libc::RWF_NOWAIT].map(i64::from);
    // The offset's upper half, which 64-bit kernels ignore.
    let upper: i64 = 0;
    // SAFETY: the caller vouches for the vectors; all else are numbers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            file,
            vectors,
            count,
            offset,
            upper,
            flags,
        )
    };
    // A count of bytes, or -1.
    isize::try_from(moved).unwrap_or(-1)
}
