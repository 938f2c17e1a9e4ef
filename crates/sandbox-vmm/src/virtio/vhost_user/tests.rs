//! The front end against a back end that uses every buffer it is given, over a real session.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT, bitmap::BitmapMmapRegion,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{FrontEnd, FrontEndError};
use crate::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, Registers, WorkerThread};

const QUEUE_SIZE: u16 = 16;
const MEMORY_BYTES: usize = 1 << 20;
const DEADLINE: rustix::time::Timespec = rustix::time::Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

type BackendMemory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

/// Uses every buffer, writing nothing to it.
struct Consumer {
    queues: usize,
    memory: BackendMemory,
}

impl VhostUserBackendMut for Consumer {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<BackendMemory>;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE)
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::empty()).ok()
    }

    fn update_memory(&mut self, memory: BackendMemory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        let mut guard = vring.get_mut();
        let heads: Vec<u16> = guard
            .get_queue_mut()
            .iter(self.memory.memory())
            .unwrap()
            .map(|chain| chain.head_index())
            .collect();
        drop(guard);
        for head in heads {
            vring.add_used(head, 0).unwrap();
        }
        vring.signal_used_queue()
    }
}

/// A back end on a thread, and our end of its socket.
fn back_end(queues: usize) -> (UnixStream, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut listener = Listener::new(&path, true).unwrap();
    let socket = UnixStream::connect(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<BitmapMmapRegion>::new());
        let consumer = Arc::new(Mutex::new(Consumer {
            queues,
            memory: memory.clone(),
        }));
        let mut daemon = VhostUserDaemon::new("consumer".into(), consumer, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // The end of the session is an error to the daemon.
        let _ = daemon.wait();
        drop(dir);
    });
    (socket, thread)
}

fn shared_memory() -> GuestMemoryMmap {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY_BYTES as u64).unwrap();
    GuestMemoryMmap::from_ranges_with_files([(
        GuestAddress(0),
        MEMORY_BYTES,
        Some(FileOffset::new(file, 0)),
    )])
    .unwrap()
}

fn wait_readable(event: &EventFd) {
    let mut fds = [PollFd::from_borrowed_fd(
        crate::fd::borrow(event),
        PollFlags::IN,
    )];
    assert_eq!(poll(&mut fds, Some(&DEADLINE)).unwrap(), 1, "no interrupt");
}

struct Driver<'a> {
    mock: MockSplitQueue<'a, GuestMemoryMmap>,
    kick: EventFd,
    irq: EventFd,
    interrupt: Interrupt,
}

impl<'a> Driver<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            mock: MockSplitQueue::new(memory, QUEUE_SIZE),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap()),
            irq,
        }
    }

    fn activation(&self, memory: &GuestMemoryMmap) -> Activation {
        let queue: Queue = self.mock.create_queue().unwrap();
        Activation {
            memory: memory.clone(),
            queues: vec![
                Some(ActiveQueue {
                    queue,
                    kick: self.kick.try_clone().unwrap(),
                }),
                None,
            ],
            interrupt: self.interrupt.clone(),
            features: 1 << VIRTIO_F_VERSION_1,
            thread: WorkerThread::spawn("test", || {}).unwrap(),
            more_threads: Vec::new(),
        }
    }

    /// Hands over one buffer and waits until it is used, and the driver called. The back end may call without reason before that.
    fn round_trip(&self, number: u16) {
        let buffer = RawDescriptor::from(Descriptor::new(0x8000, 0x100, 0, 0));
        self.mock.add_desc_chains(&[buffer], 0).unwrap();
        self.kick.write(1).unwrap();
        let mut calls = 0;
        while u16::from_le(self.mock.used().idx().load()) != number || calls == 0 {
            wait_readable(&self.irq);
            calls += self.irq.read().unwrap();
        }
    }
}

#[test]
fn kick_reaches_back_end_and_its_call_interrupts_the_driver() {
    let (socket, thread) = back_end(2);
    let memory = shared_memory();
    let driver = Driver::new(&memory);
    let mut front_end = FrontEnd::open(socket, 2).unwrap();
    front_end.activate(driver.activation(&memory)).unwrap();
    driver.round_trip(1);
    front_end.reset();
    drop(front_end);
    thread.join().unwrap();
}

#[test]
fn device_comes_up_again_after_a_reset() {
    let (socket, thread) = back_end(2);
    let memory = shared_memory();
    let mut front_end = FrontEnd::open(socket, 2).unwrap();
    for _ in 0..2 {
        let driver = Driver::new(&memory);
        // A driver that begins anew has empty rings.
        driver.mock.avail().idx().store(0);
        driver.mock.used().idx().store(0);
        front_end.activate(driver.activation(&memory)).unwrap();
        driver.round_trip(1);
        assert!(!driver.interrupt.wants_reset());
        front_end.reset();
        assert!(!driver.interrupt.wants_reset());
    }
    drop(front_end);
    thread.join().unwrap();
}

#[test]
fn back_end_that_goes_away_puts_the_device_in_needs_reset() {
    let (socket, thread) = back_end(2);
    let cut = socket.try_clone().unwrap();
    let memory = shared_memory();
    let driver = Driver::new(&memory);
    let mut front_end = FrontEnd::open(socket, 2).unwrap();
    front_end.activate(driver.activation(&memory)).unwrap();
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    // The back end may have called without reason before that.
    while !driver.interrupt.wants_reset() {
        wait_readable(&driver.irq);
        driver.irq.read().unwrap();
    }
    front_end.reset();
    assert!(matches!(
        front_end.activate(driver.activation(&memory)),
        Err(ActivateError::Lost)
    ));
    thread.join().unwrap();
}

#[test]
fn back_end_with_too_few_queues_is_refused() {
    let (socket, thread) = back_end(1);
    assert!(matches!(
        FrontEnd::open(socket, 2),
        Err(FrontEndError::TooFewQueues { has: 1, needs: 2 })
    ));
    thread.join().unwrap();
}

#[test]
fn memory_that_is_in_no_file_is_refused() {
    let (socket, thread) = back_end(2);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let driver = Driver::new(&memory);
    let mut front_end = FrontEnd::open(socket, 2).unwrap();
    assert!(matches!(
        front_end.activate(driver.activation(&memory)),
        Err(ActivateError::Backend { .. })
    ));
    drop(front_end);
    thread.join().unwrap();
}

#[test]
fn silent_peer_that_hangs_up_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(
        FrontEnd::open(ours, 2),
        Err(FrontEndError::Refused { .. })
    ));
}
