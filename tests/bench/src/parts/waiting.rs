//! Reads that wait for the host's disk: the monitor's block device alone, driven from here.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{io, thread};

use anyhow::{Result, anyhow, ensure};
use rustix::fs::{Advice, fadvise};
use sandbox_vmm::virtio::block::Block;
use sandbox_vmm::virtio::{
    Activation, ActiveQueue, Interrupt, Registers, VirtioDevice as _, WorkerThread,
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fixture;
use crate::lab::{About, Contender, Lab};
use crate::report::{Part, Unit, Value};

const ABOUT: About = About {
    name: "waiting",
    title: "Reads that wait for the disk",
    about: "A page at random of a file of 512 MiB of which the host has nothing in memory, so many at a time: time divided by pages. The host reads with as many threads; the monitor's \
            block device alone, without a guest, is given so many requests, once with the thread that it has where the host has no io_uring. Beside flushes: somebody else writes \
            pages to the file, and makes each durable.",
    one_scale: true,
};

const FILE_MIB: usize = 512;
const PAGE: u64 = PAGE_BYTES as u64;
const PAGE_BYTES: usize = 4096;
/// Pages of a measurement.
const PAGES: usize = 1024;
/// How many at a time, and whether beside flushes.
const WAYS: [(usize, bool); 4] = [(1, false), (8, false), (32, false), (8, true)];
const QUEUE_SIZE: u16 = 256;

/// Where things are in the driver's memory: the rings, behind the descriptors, and a page for each request.
const AVAILABLE: u64 = 16 * QUEUE_SIZE as u64;
const USED: u32 = 0x1_0000;
const HEADERS: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUSES: u64 = 0x30_0000;
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
    let file = write(lab, &path).map_err(|error| format!("no file to read: {error:#}"));
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
    let mut seed = 0;
    let part = ABOUT.measure(contenders.into(), lab.turns(), |reader| {
        let file = file.as_ref().map_err(|error| anyhow!("{error}"))?;
        let mut values = Vec::new();
        for way in WAYS {
            seed += 1;
            let pages = pages(seed);
            fadvise(file, 0, None, Advice::DontNeed)?;
            let start = Instant::now();
            match READERS[reader].0 {
                Reader::Host => by_host(file, &pages, way)?,
                Reader::Thread => Driver::new(device(&path)?.without_rings(), way)?.read(&pages)?,
                Reader::Ring => Driver::new(device(&path)?, way)?.read(&pages)?,
            }
            let each = start.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
            let beside = if way.1 { ", beside flushes" } else { "" };
            let what = format!("a page, {} at a time{beside}", way.0);
            values.push(Value::new(what, Unit::Microseconds, each));
        }
        Ok(values)
    });
    // Nothing that could fail is left of it.
    let _ = std::fs::remove_file(&path);
    part
}

/// Makes the file, of which nothing is a hole.
fn write(lab: &Lab, path: &Path) -> Result<File> {
    ensure!(
        lab.storage() != "tmpfs",
        "the state folders are on a tmpfs; set TMPDIR to a folder on a disk"
    );
    let file = File::create_new(path)?;
    let chunk = fixture::noise(1 << 20, 0);
    for mebibyte in 0..FILE_MIB as u64 {
        file.write_all_at(&chunk, mebibyte << 20)?;
    }
    file.sync_all()?;
    opened(path)
}

/// The file, of which nobody reads ahead.
fn opened(path: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    fadvise(&file, 0, None, Advice::Random)?;
    Ok(file)
}

/// Numbers of pages of the file, others for each seed.
fn pages(seed: u64) -> Vec<u64> {
    let all = (FILE_MIB as u64) << 20 >> 12;
    let bytes = fixture::noise(PAGES * size_of::<u64>(), seed);
    let (numbers, _) = bytes.as_chunks();
    numbers
        .iter()
        .map(|number| u64::from_le_bytes(*number) % all)
        .collect()
}

fn device(path: &Path) -> Result<Block> {
    Ok(Block::new("disk", opened(path)?, false, "waiting", 1)?)
}

/// Whether its device has no thread for what waits.
fn has_rings(path: &Path) -> bool {
    device(path).is_ok_and(|device| device.more_threads().is_empty())
}

/// Reads with so many threads.
fn by_host(file: &File, pages: &[u64], (threads, beside_flushes): (usize, bool)) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let page = [0x5a; PAGE_BYTES];
            let mut at = 0;
            while beside_flushes && !over.load(Ordering::Relaxed) {
                file.write_all_at(&page, at * PAGE)?;
                file.sync_data()?;
                at += 1;
            }
            io::Result::Ok(())
        });
        let readers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mut page = [0; PAGE_BYTES];
                    for number in pages.iter().skip(first).step_by(threads) {
                        file.read_exact_at(&mut page, number * PAGE)?;
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        let ends: Vec<_> = readers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        over.store(true, Ordering::Relaxed);
        for end in ends.into_iter().chain([writer.join()]) {
            end.map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// A driver of the device, with as many requests under way as it has slots: of three descriptors each.
struct Driver {
    device: Block,
    memory: GuestMemoryMmap,
    irq: EventFd,
    kick: EventFd,
    /// Slots that read, and whether the one behind them writes and flushes in turn.
    readers: u16,
    beside_flushes: bool,
    available: u16,
    written: u64,
}

impl Driver {
    /// Sets the device up.
    fn new(mut device: Block, (readers, beside_flushes): (usize, bool)) -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
        let mut queue = Queue::new(QUEUE_SIZE)?;
        queue.set_size(QUEUE_SIZE);
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(u32::try_from(AVAILABLE)?), Some(0));
        queue.set_used_ring_address(Some(USED), Some(0));
        queue.set_ready(true);
        let (irq, kick) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
        let queue = ActiveQueue {
            queue,
            kick: kick.try_clone()?,
        };
        let thread = |(name, _): (String, _)| WorkerThread::spawn(&name, || {});
        let more = device.more_threads().into_iter().map(thread);
        device.activate(Activation {
            memory: memory.clone(),
            queues: vec![Some(queue)],
            interrupt: Interrupt::new(irq.try_clone()?, Registers::alone()?),
            features: 0,
            thread: thread(device.thread())?,
            more_threads: more.collect::<io::Result<_>>()?,
        })?;
        Ok(Self {
            device,
            memory,
            irq,
            kick,
            readers: u16::try_from(readers)?,
            beside_flushes,
            available: 0,
            written: 0,
        })
    }

    /// Reads the pages, of which there are more than slots.
    fn read(mut self, pages: &[u64]) -> Result<()> {
        let mut pages = pages.iter().copied();
        for (slot, page) in (0..self.readers).zip(&mut pages) {
            self.ask(slot, VIRTIO_BLK_T_IN, page)?;
        }
        if self.beside_flushes {
            self.ask(self.readers, VIRTIO_BLK_T_OUT, 0)?;
        }
        let mut seen = 0_u16;
        let mut reading = self.readers;
        while reading > 0 {
            self.tell()?;
            self.irq.read()?;
            let index = GuestAddress(u64::from(USED) + 2);
            let done: u16 = self.memory.load(index, Ordering::Acquire)?;
            while seen != done {
                let entry = u64::from(USED) + 4 + u64::from(seen % QUEUE_SIZE) * 8;
                let head: u32 = self.memory.read_obj(GuestAddress(entry))?;
                seen = seen.wrapping_add(1);
                let slot = u16::try_from(head / 3)?;
                self.check(slot)?;
                if slot == self.readers {
                    self.write_or_flush(slot)?;
                } else if let Some(page) = pages.next() {
                    self.ask(slot, VIRTIO_BLK_T_IN, page)?;
                } else {
                    reading -= 1;
                }
            }
        }
        self.device.reset();
        Ok(())
    }

    fn write_or_flush(&mut self, slot: u16) -> Result<()> {
        self.written += 1;
        match self.written % 2 {
            1 => self.ask(slot, VIRTIO_BLK_T_FLUSH, 0),
            _ => self.ask(slot, VIRTIO_BLK_T_OUT, self.written / 2),
        }
    }

    /// Makes the slot's request available: `kind`, of a page.
    fn ask(&mut self, slot: u16, kind: u32, page: u64) -> Result<()> {
        let at = |area| GuestAddress(area + u64::from(slot) * PAGE);
        let next = u16::try_from(VRING_DESC_F_NEXT)?;
        let write = u16::try_from(VRING_DESC_F_WRITE)?;
        let data = match kind {
            VIRTIO_BLK_T_IN => next | write,
            _ => next,
        };
        self.memory.write_obj(u64::from(kind), at(HEADERS))?;
        let sector = GuestAddress(at(HEADERS).0 + 8);
        self.memory.write_obj(page * (PAGE / 512), sector)?;
        self.memory.write_obj(0xff_u8, at(STATUSES))?;
        let head = 3 * slot;
        // A flush has no data.
        let length = if kind == VIRTIO_BLK_T_FLUSH { 0 } else { 4096 };
        let chain = [
            (at(HEADERS), 16, next),
            (at(DATA), length, data),
            (at(STATUSES), 1, write),
        ];
        for (place, (address, length, flags)) in (head..).zip(chain) {
            let descriptor = Descriptor::new(address.0, length, flags, place + 1);
            let place = GuestAddress(u64::from(place) * 16);
            self.memory.write_obj(descriptor, place)?;
        }
        let entry = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(entry))?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Tells the device of all that is available.
    fn tell(&self) -> Result<()> {
        let index = GuestAddress(AVAILABLE + 2);
        self.memory
            .store(self.available, index, Ordering::Release)?;
        Ok(self.kick.write(1)?)
    }

    fn check(&self, slot: u16) -> Result<()> {
        let status = GuestAddress(STATUSES + u64::from(slot) * PAGE);
        let status: u8 = self.memory.read_obj(status)?;
        ensure!(status == 0, "the device says {status} to a request");
        Ok(())
    }
}
