//! Reads that wait for the host's disk: the monitor's block device alone, driven from here.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;
use std::{io, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::{Advice, fadvise, fstatfs};
use sandbox_vmm::virtio::block::Block;
use sandbox_vmm::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice as _, WorkerThread};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lab::{About, Contender, Lab};
use crate::report::{Part, Unit, Value};

const ABOUT: About = About {
    name: "waiting",
    title: "Reads that wait for the disk",
    about: "A page at random of a file of 512 MiB of which the host has nothing in memory, so many at a time: time divided by pages. The host reads with as many threads; the monitor's \
            block device alone, without a guest, is given so many requests, once with the thread that it has where the host has no io_uring.",
    one_scale: true,
};

const FILE_MIB: usize = 512;
const PAGE: u64 = 4096;
/// Pages of a measurement.
const PAGES: usize = 1024;
const DEPTHS: [usize; 3] = [1, 8, 32];
const QUEUE_SIZE: u16 = 256;

/// Where things are in the driver's memory, one page for each request.
const HEADERS: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUSES: u64 = 0x30_0000;
/// Behind all of the ring of what is available, which the mock's own place for it is not.
const USED: u32 = 0x1_0000;
const MEMORY_BYTES: usize = 0x40_0000;

#[derive(Clone, Copy)]
enum Reader {
    Host,
    Thread,
    Ring,
}

const READERS: [(Reader, &str); 3] = [
    (Reader::Host, "host"),
    (Reader::Thread, "monitor, without io_uring"),
    (Reader::Ring, "monitor, with io_uring"),
];

pub(super) fn measure(lab: &Lab) -> Part {
    let path = lab.world().path().join("waiting");
    let file = write(&path).map_err(|error| format!("no file to read: {error:#}"));
    let contenders = READERS.map(|(reader, label)| Contender {
        label: label.to_owned(),
        obstacle: match (&file, reader) {
            (Err(error), _) => Some(error.clone()),
            (Ok(_), Reader::Ring) if !has_rings(&path) => {
                Some("this host does not let us use io_uring".to_owned())
            }
            (Ok(_), _) => None,
        },
    });
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let part = ABOUT.measure(contenders.into(), lab.turns(), |reader| {
        let file = file.as_ref().map_err(|error| anyhow!("{error}"))?;
        let mut values = Vec::new();
        for depth in DEPTHS {
            let pages = pages(&mut seed);
            fadvise(file, 0, None, Advice::DontNeed)?;
            let start = Instant::now();
            match READERS[reader].0 {
                Reader::Host => by_host(file, &pages, depth)?,
                Reader::Thread => by_device(device(&path)?.without_rings(), &pages, depth)?,
                Reader::Ring => by_device(device(&path)?, &pages, depth)?,
            }
            let each = start.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
            values.push(Value::new(
                format!("a page, {depth} at a time"),
                Unit::Microseconds,
                each,
            ));
        }
        Ok(values)
    });
    // Nothing that could fail is left of it.
    let _ = std::fs::remove_file(&path);
    part
}

/// Makes the file, of which nothing is a hole.
fn write(path: &Path) -> Result<File> {
    let file = File::create_new(path)?;
    if fstatfs(&file)?.f_type == libc::TMPFS_MAGIC {
        // It has nothing but what is in memory.
        let _ = std::fs::remove_file(path);
        return Err(anyhow!(
            "the state folders are on a tmpfs; set TMPDIR to a folder on a disk"
        ));
    }
    let mut state = 1;
    let chunk: Vec<u8> = std::iter::repeat_with(|| next(&mut state).to_le_bytes())
        .take((1 << 20) / 8)
        .flatten()
        .collect();
    for mebibyte in 0..FILE_MIB as u64 {
        file.write_all_at(&chunk, mebibyte << 20)?;
    }
    file.sync_all()?;
    let file = File::open(path)?;
    // Nobody reads ahead.
    fadvise(&file, 0, None, Advice::Random)?;
    Ok(file)
}

/// xorshift64 (Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn pages(state: &mut u64) -> Vec<u64> {
    let all = (FILE_MIB as u64) << 20 >> 12;
    (0..PAGES).map(|_| next(state) % all).collect()
}

fn device(path: &Path) -> Result<Block> {
    let file = File::open(path)?;
    fadvise(&file, 0, None, Advice::Random)?;
    Ok(Block::new("disk", file, true, "waiting", 1)?)
}

/// Whether its device has no thread for what waits.
fn has_rings(path: &Path) -> bool {
    device(path).is_ok_and(|device| device.more_threads().is_empty())
}

/// Reads with so many threads.
fn by_host(file: &File, pages: &[u64], threads: usize) -> Result<()> {
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mut page = [0; PAGE as usize];
                    for number in pages.iter().skip(first).step_by(threads) {
                        file.read_exact_at(&mut page, number * PAGE)?;
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Gives the device so many requests at a time, as a driver does.
fn by_device(mut device: Block, pages: &[u64], depth: usize) -> Result<()> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    let mock = MockSplitQueue::new(&memory, QUEUE_SIZE);
    let next = u16::try_from(VRING_DESC_F_NEXT)?;
    let write = u16::try_from(VRING_DESC_F_WRITE)?;
    let mut chains = Vec::new();
    for slot in 0..depth.min(pages.len()) as u64 {
        let first = u16::try_from(3 * slot)?;
        let of = |address, length, flags, next| {
            RawDescriptor::from(Descriptor::new(address, length, flags, next))
        };
        let at = |area| area + slot * PAGE;
        chains.push(of(at(HEADERS), 16, next, first + 1));
        chains.push(of(at(DATA), 4096, next | write, first + 2));
        chains.push(of(at(STATUSES), 1, write, 0));
    }
    let mut waiting = pages.iter();
    let mut ask = |slot: u64| -> Result<bool> {
        let Some(page) = waiting.next() else {
            return Ok(false);
        };
        // The rest of the header is zero: a read.
        let sector = GuestAddress(HEADERS + slot * PAGE + 8);
        memory.write_obj(page * (PAGE / 512), sector)?;
        memory.write_obj(0xff_u8, GuestAddress(STATUSES + slot * PAGE))?;
        Ok(true)
    };
    for slot in 0..chains.len() as u64 / 3 {
        ask(slot)?;
    }
    mock.build_multiple_desc_chains(&chains)?;

    let (irq, kick) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
    let thread = |(name, _): (String, _)| WorkerThread::spawn(&name, || {});
    let mut queue: Queue = mock.create_queue().context("no queue")?;
    queue.set_used_ring_address(Some(USED), Some(0));
    let queue = ActiveQueue {
        queue,
        kick: kick.try_clone()?,
    };
    device.activate(Activation {
        memory: memory.clone(),
        queues: vec![Some(queue)],
        interrupt: Interrupt::new(irq.try_clone()?),
        features: 0,
        thread: thread(device.thread())?,
        more_threads: device
            .more_threads()
            .into_iter()
            .map(thread)
            .collect::<io::Result<_>>()?,
    })?;
    kick.write(1)?;
    let (avail, used) = (mock.avail_addr().0, u64::from(USED));
    let mut available = u16::try_from(chains.len() / 3)?;
    let mut seen = 0_u16;
    while usize::from(seen) < pages.len() {
        irq.read()?;
        let done: u16 = memory.load(GuestAddress(used + 2), Ordering::Acquire)?;
        while seen != done {
            let entry = used + 4 + u64::from(seen % QUEUE_SIZE) * 8;
            let head: u32 = memory.read_obj(GuestAddress(entry))?;
            let slot = u64::from(head / 3);
            let status: u8 = memory.read_obj(GuestAddress(STATUSES + slot * PAGE))?;
            ensure!(status == 0, "the device says {status} to a read");
            seen += 1;
            if ask(slot)? {
                let entry = avail + 4 + u64::from(available % QUEUE_SIZE) * 2;
                memory.write_obj(u16::try_from(head)?, GuestAddress(entry))?;
                available += 1;
            }
        }
        memory.store(available, GuestAddress(avail + 2), Ordering::Release)?;
        kick.write(1)?;
    }
    device.reset();
    Ok(())
}
