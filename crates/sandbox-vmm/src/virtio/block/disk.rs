//! The raw file behind a block device.
#![expect(
    unsafe_code,
    reason = "preadv and pwritev move bytes between the file and guest memory, which has no Rust references"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap};

use super::error::BlockError;
use super::request::Range;
use crate::virtio::chain::{Segment, total};

/// The unit of addresses and sizes, whatever the disk's own (VirtIO 1.3, 5.2.4).
const SECTOR_BYTES: u64 = 512;
/// The longest serial number (5.2.6).
const SERIAL_BYTES: usize = 20;

/// A disk image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: Vec<u8>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy)]
enum Direction {
    ToGuest,
    ToFile,
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
        &mut self,
        memory: &GuestMemoryMmap,
        sector: u64,
        data: &VecDeque<Segment>,
    ) -> Result<u32, BlockError> {
        let bytes = total(data);
        let offset = self.check(sector, bytes)?;
        self.transfer(memory, offset, data, Direction::ToGuest)?;
        // More is only possible with a disk of that size in one request; the length is a hint then.
        Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// Writes from `sector` on.
    ///
    /// # Errors
    /// [`BlockError`]; parts may have been written.
    pub fn write(
        &mut self,
        memory: &GuestMemoryMmap,
        sector: u64,
        data: &VecDeque<Segment>,
    ) -> Result<(), BlockError> {
        self.check_writable()?;
        let offset = self.check(sector, total(data))?;
        self.transfer(memory, offset, data, Direction::ToFile)
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`BlockError::Disk`].
    pub fn flush(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(|source| BlockError::Disk {
            action: "flush",
            source,
        })
    }

    /// Turns the ranges into holes, which read as zeroes.
    ///
    /// # Errors
    /// [`BlockError`]; [`BlockError::Unsupported`] if the file cannot have holes, or for flags without
    /// a meaning (5.2.6.2).
    pub fn punch(&self, ranges: &[Range], allowed_flags: u32) -> Result<(), BlockError> {
        self.check_writable()?;
        for range in ranges {
            if range.flags & !allowed_flags != 0 {
                return Err(BlockError::Unsupported);
            }
            let bytes = u64::from(range.sectors) * SECTOR_BYTES;
            let offset = self.check(range.sector, bytes)?;
            if bytes == 0 {
                continue;
            }
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&self.file, how, offset, bytes).map_err(|errno| match errno {
                Errno::OPNOTSUPP | Errno::NOSYS => BlockError::Unsupported,
                errno => BlockError::Disk {
                    action: "punch a hole into",
                    source: errno.into(),
                },
            })?;
        }
        Ok(())
    }

    /// Writes the serial number, with zeroes up to 20 bytes.
    ///
    /// # Errors
    /// [`BlockError::Memory`].
    pub fn write_serial(
        &self,
        memory: &GuestMemoryMmap,
        data: &VecDeque<Segment>,
    ) -> Result<u32, BlockError> {
        let mut id = [0; SERIAL_BYTES];
        for (to, from) in id.iter_mut().zip(&self.serial) {
            *to = *from;
        }
        let mut rest = id.as_slice();
        for segment in data {
            let room = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at(room.min(rest.len()));
            memory
                .write_slice(part, segment.address)
                .map_err(BlockError::Memory)?;
            rest = after;
        }
        Ok(u32::try_from(id.len().saturating_sub(rest.len())).unwrap_or(0))
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }

    /// The offset of `sector`, if whole sectors of `bytes` bytes from it on are on the disk.
    fn check(&self, sector: u64, bytes: u64) -> Result<u64, BlockError> {
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

    /// Moves all bytes. Segments are checked to be in guest memory before the first byte moves.
    fn transfer(
        &self,
        memory: &GuestMemoryMmap,
        mut offset: u64,
        data: &VecDeque<Segment>,
        direction: Direction,
    ) -> Result<(), BlockError> {
        let mut guards = Vec::with_capacity(data.len());
        for segment in data {
            let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let slice = memory
                .get_slice(segment.address, length)
                .map_err(BlockError::Memory)?;
            guards.push((slice.ptr_guard_mut(), length));
        }
        let mut vectors: VecDeque<libc::iovec> = guards
            .iter()
            .map(|(guard, length)| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: *length,
            })
            .collect();
        while !vectors.is_empty() {
            let moved = self.once(vectors.make_contiguous(), offset, direction)?;
            offset = offset.saturating_add(moved as u64);
            advance(&mut vectors, moved);
        }
        Ok(())
    }

    /// One system call, at least one byte.
    fn once(
        &self,
        vectors: &[libc::iovec],
        offset: u64,
        direction: Direction,
    ) -> Result<usize, BlockError> {
        let (action, call) = match direction {
            Direction::ToGuest => ("read", libc::preadv as Vectored),
            Direction::ToFile => ("write", libc::pwritev as Vectored),
        };
        let failed = |source| BlockError::Disk { action, source };
        let count = i32::try_from(vectors.len()).unwrap_or(i32::MAX);
        let at = i64::try_from(offset).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        loop {
            // SAFETY: every vector is a range of guest memory that `get_slice` found whole and whose guard
            // lives in the caller; other threads and the guest may access it at the same time, which is
            // why no reference to it exists.
            let moved = unsafe { call(self.file.as_raw_fd(), vectors.as_ptr(), count, at) };
            match usize::try_from(moved) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(moved) => return Ok(moved),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(failed(error));
                    }
                }
            }
        }
    }
}

type Vectored = unsafe extern "C" fn(i32, *const libc::iovec, i32, i64) -> isize;

/// Removes the first `moved` bytes.
fn advance(vectors: &mut VecDeque<libc::iovec>, mut moved: usize) {
    while let Some(first) = vectors.front_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            return;
        }
        moved -= first.iov_len;
        vectors.pop_front();
    }
}
