//! A lane that is the kernel's (io_uring(7)).
//!
//! The ring is made before the monitor confines itself. It reads into vectors, makes what was written durable, and changes what of a
//! file is allocated; the kernel refuses anything else, and any change of the ring (`IORING_REGISTER_RESTRICTIONS`,
//! io_uring_register(2)). They are what a disk's thread may do also without it.
//!
//! ```text
//! taken ──begin──> in the kernel ──> done
//!   ^                    │
//!   └── a part is done ──┘
//! ```
#![expect(
    unsafe_code,
    reason = "the kernel takes entries that refer to guest memory, which has no Rust references"
)]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use sandbox_types::WithCauses;
use slab::Slab;
use vm_memory::GuestMemoryMmap;

use super::Done;
use crate::virtio::block::disk::{Disk, HOLE};
use crate::virtio::block::error::BlockError;
use crate::virtio::block::request::{FLAG_UNMAP, Operation, Range, Request};
use crate::virtio::block::task::finish;
use crate::virtio::chain::{skip, total};
use crate::virtio::vectors::Vectors;

/// The most requests under way. A disk that does several at a time is as fast as it can be with that many.
const ENTRIES: u32 = 64;
/// The most threads that the kernel starts for what it cannot do without waiting: on files and disks, and on anything else, of which there is
/// nothing.
const MAX_WORKERS: [u32; 2] = [16, 1];

/// The lane. Dropped, it waits until nothing reaches the guest's memory any more.
pub(in crate::virtio::block) struct Ring {
    kernel: Box<IoUring>,
    /// What an entry's user data is the key to.
    under_way: Slab<UnderWay>,
    /// Those that are to begin, or to go on.
    to_begin: Vec<usize>,
    in_kernel: usize,
    done: VecDeque<Done>,
    /// The kernel refused what it had no reason to refuse: it may still do what it was given at any time. Nothing is asked of it any more.
    broken: bool,
}

/// A request, and how far it is.
#[derive(Debug)]
struct UnderWay {
    head: u16,
    request: Request,
    /// Keeps it mapped until the kernel is done with it.
    memory: GuestMemoryMmap,
    /// Bytes of a read, ranges of a list; of a flush, whether it is done.
    passed: u64,
}

impl Ring {
    /// One that takes nothing but what a disk asks for.
    ///
    /// # Errors
    /// What the kernel says that has no io_uring, or one of before Linux 5.10, or does not let this process use it.
    pub(in crate::virtio::block) fn new() -> io::Result<Self> {
        let kernel = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        // Otherwise the vectors would have to outlive the request.
        if !kernel.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let submitter = kernel.submitter();
        // Without it (before Linux 5.15), it is four for each processor.
        let _ = submitter.register_iowq_max_workers(&mut MAX_WORKERS.clone());
        let allowed = [
            opcode::Readv::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self {
            kernel: Box::new(kernel),
            under_way: Slab::new(),
            to_begin: Vec::new(),
            in_kernel: 0,
            done: VecDeque::new(),
            broken: false,
        })
    }

    /// Has the kernel do whatever this is, and returns what it says.
    #[cfg(test)]
    pub(in crate::virtio::block) fn force(&mut self, entry: &squeue::Entry) -> i32 {
        // SAFETY: it is a test's, which keeps what it refers to.
        unsafe { self.kernel.submission().push(entry) }.unwrap();
        enter(&mut self.kernel, 1).unwrap();
        self.kernel.completion().next().unwrap().result()
    }

    /// Leaves no room for entries.
    #[cfg(test)]
    pub(in crate::virtio::block) fn fill(&mut self) {
        let mut entries = self.kernel.submission();
        // SAFETY: it refers to nothing.
        while unsafe { entries.push(&opcode::Nop::new().build()) }.is_ok() {}
    }

    /// Tries to change the ring.
    #[cfg(test)]
    pub(in crate::virtio::block) fn add_file(&self, file: &impl AsRawFd) -> io::Result<()> {
        let files = [file.as_raw_fd()];
        self.kernel.submitter().register_files(&files)
    }

    /// No more is taken until something is done.
    pub(super) fn is_full(&self) -> bool {
        self.under_way.len() >= ENTRIES as usize
    }

    /// Takes a request, to begin with [`Self::begin`].
    pub(super) fn take(&mut self, memory: &GuestMemoryMmap, head: u16, request: Request) {
        let under_way = UnderWay {
            head,
            request,
            memory: memory.clone(),
            passed: 0,
        };
        let is_over = under_way.is_over();
        let key = self.under_way.insert(under_way);
        match is_over {
            true => self.end(key, Ok(())),
            false => self.to_begin.push(key),
        }
    }

    /// Has the kernel begin with what was taken, and go on with what is done in part; says whether there was any.
    ///
    /// # Errors
    /// [`BlockError::Ring`].
    pub(super) fn begin(&mut self, disk: &Disk) -> Result<bool, BlockError> {
        let keys = std::mem::take(&mut self.to_begin);
        if keys.is_empty() {
            return Ok(false);
        }
        // What entries refer to that the kernel has not yet read.
        let mut kept = Vec::with_capacity(keys.len());
        let mut refused = Vec::new();
        let mut given = Ok(());
        let mut entries = self.kernel.submission();
        for key in keys {
            let Some(under_way) = self.under_way.get(key) else {
                continue;
            };
            match under_way.next(disk) {
                Ok((entry, vectors)) => {
                    kept.push(vectors);
                    // SAFETY: the vectors are whole ranges of guest memory, which stays mapped as long as the request is in
                    // `under_way`. They themselves are kept until the kernel has read them (`IORING_FEAT_SUBMIT_STABLE`).
                    let pushed = unsafe { entries.push(&entry.user_data(key as u64)) };
                    // There are no more requests than entries.
                    if pushed.is_err() {
                        given = Err(BlockError::Ring(io::ErrorKind::StorageFull.into()));
                        break;
                    }
                    self.in_kernel += 1;
                }
                Err(error) => refused.push((key, error)),
            }
        }
        drop(entries);
        if let Err(error) = given.and_then(|()| enter(&mut self.kernel, 0)) {
            // Entries that it has not taken refer to these, and it may take them yet.
            std::mem::forget(kept);
            self.abandon();
            return Err(error);
        }
        drop(kept);
        for (key, error) in refused {
            self.end(key, Err(error));
        }
        Ok(true)
    }

    /// The next request that is done.
    pub(super) fn done(&mut self) -> Option<Done> {
        self.look();
        self.done.pop_front()
    }

    /// Whether the kernel does what it is asked: a later driver's requests may be given to it.
    pub(super) fn is_sound(&self) -> bool {
        !self.broken
    }

    /// Forgets all requests, of which nobody knows what becomes. What the kernel may still write to stays mapped.
    fn abandon(&mut self) {
        self.broken = true;
        self.in_kernel = 0;
        std::mem::forget(std::mem::take(&mut self.under_way));
    }

    /// Waits until nothing is in the kernel, and forgets all requests.
    pub(super) fn settle(&mut self) {
        while self.in_kernel > 0 {
            if let Err(error) = enter(&mut self.kernel, 1) {
                eprintln!("sandbox-vmm: {}", WithCauses(&error));
                self.abandon();
                break;
            }
            self.look();
        }
        self.to_begin.clear();
        self.done.clear();
        self.under_way.clear();
    }

    /// Takes what the kernel has done.
    fn look(&mut self) {
        loop {
            let Some(entry) = self.kernel.completion().next() else {
                return;
            };
            self.in_kernel = self.in_kernel.saturating_sub(1);
            // It was a key.
            let key = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(under_way) = self.under_way.get_mut(key) else {
                continue;
            };
            match under_way.pass(entry.result()) {
                Ok(()) if under_way.is_over() => self.end(key, Ok(())),
                Ok(()) => self.to_begin.push(key),
                Err(error) => self.end(key, Err(error)),
            }
        }
    }

    fn end(&mut self, key: usize, result: Result<(), BlockError>) {
        let Some(under_way) = self.under_way.try_remove(key) else {
            return;
        };
        let written = match under_way.request.operation {
            // More is only possible with a disk of that size in one request; the length is a hint then.
            Operation::In { .. } => u32::try_from(under_way.passed).unwrap_or(u32::MAX),
            _ => 0,
        };
        let result = result.map(|()| written);
        let used = finish(&under_way.memory, &under_way.request, result);
        self.done.push_back((under_way.head, used));
    }
}

/// Gives the kernel all entries, and waits until so many are done.
fn enter(kernel: &mut IoUring, wait_for: usize) -> Result<(), BlockError> {
    loop {
        match kernel.submit_and_wait(wait_for) {
            Ok(_) if kernel.submission().is_empty() => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // A signal, or no memory at this moment.
                Some(libc::EINTR | libc::EAGAIN) => {}
                _ => return Err(BlockError::Ring(error)),
            },
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.settle();
    }
}

impl AsFd for Ring {
    /// Readable as long as the kernel has done something that nobody has taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl UnderWay {
    /// What the kernel is to do next, and what the entry refers to.
    fn next(&self, disk: &Disk) -> Result<(squeue::Entry, Vectors<'_>), BlockError> {
        let file = Fd(disk.as_fd().as_raw_fd());
        match &self.request.operation {
            Operation::In { sector, data } => {
                let offset = disk.check(*sector, total(data))?;
                let rest = skip(data.iter().copied(), self.passed);
                let vectors = Vectors::of_guest(&self.memory, rest).map_err(BlockError::Memory)?;
                let pieces = vectors.as_slice();
                let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
                let entry = opcode::Readv::new(file, pieces.as_ptr(), count)
                    .offset(offset.saturating_add(self.passed));
                Ok((entry.build(), vectors))
            }
            Operation::Flush => {
                let entry = opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC);
                Ok((entry.build(), Vectors::with_capacity(0)))
            }
            Operation::Discard { ranges } => self.hole(disk, ranges, 0),
            Operation::WriteZeroes { ranges } => self.hole(disk, ranges, FLAG_UNMAP),
            // They wait for nothing.
            Operation::Out { .. } | Operation::GetId { .. } | Operation::Unsupported { .. } => {
                Err(BlockError::Unsupported)
            }
        }
    }

    /// The next range of a list that becomes a hole.
    fn hole(
        &self,
        disk: &Disk,
        ranges: &[Range],
        allowed_flags: u32,
    ) -> Result<(squeue::Entry, Vectors<'_>), BlockError> {
        let at = usize::try_from(self.passed).unwrap_or(usize::MAX);
        let range = ranges.get(at).ok_or(BlockError::Unsupported)?;
        let (offset, bytes) = disk.hole(*range, allowed_flags)?;
        let entry = opcode::Fallocate::new(Fd(disk.as_fd().as_raw_fd()), bytes)
            .offset(offset)
            .mode(HOLE.bits().cast_signed());
        Ok((entry.build(), Vectors::with_capacity(0)))
    }

    /// The kernel has done so much: what the system call would return, with the error's number below zero.
    fn pass(&mut self, result: i32) -> Result<(), BlockError> {
        let failed = match self.request.operation {
            Operation::In { .. } => BlockError::read,
            Operation::Flush => BlockError::flush,
            _ => BlockError::hole,
        };
        let reads = matches!(self.request.operation, Operation::In { .. });
        match u64::try_from(result) {
            Ok(0) if reads => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(moved) if reads => self.passed = self.passed.saturating_add(moved),
            Ok(_) => self.passed = self.passed.saturating_add(1),
            Err(_) => match result.saturating_neg() {
                // It goes on where it was.
                libc::EINTR | libc::EAGAIN => {}
                errno => return Err(failed(io::Error::from_raw_os_error(errno))),
            },
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let all = match &self.request.operation {
            Operation::In { data, .. } => total(data),
            Operation::Discard { ranges } | Operation::WriteZeroes { ranges } => {
                ranges.len() as u64
            }
            _ => 1,
        };
        self.passed >= all
    }
}
