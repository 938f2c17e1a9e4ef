//! A vhost-user back end that answers with any bytes: the front end takes or refuses them, and never waits for what is not there.
//! Shared by the fuzz target and the replay of its corpus.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use sandbox_vmm::virtio::vhost_user::FrontEnd;
use sandbox_vmm::virtio::{Activation, ActiveQueue, Interrupt, Registers, WorkerThread};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUES: u32 = 2;
const QUEUE_SIZE: u16 = 16;
const MEMORY_BYTES: usize = 1 << 16;
const HEADER: usize = 12;
/// After this time without a request the back end is gone: the front end waits for more of an answer.
const PATIENCE: Duration = Duration::from_millis(20);

/// The requests that are answered in any case (vhost-user, "Front-end message types").
const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
/// Flags of a message: the version, that it is an answer, and that one is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        now
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u32 {
        let mut bytes = [0; 4];
        let taken = self.take(4);
        bytes[..taken.len()].copy_from_slice(taken);
        u32::from_le_bytes(bytes)
    }
}

/// The answer of a back end that works.
fn good(request: u32) -> Vec<u8> {
    let value: u64 = match request {
        GET_FEATURES => 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28,
        // Several queues, and acknowledgements.
        GET_PROTOCOL_FEATURES => 1 | 1 << 3,
        GET_QUEUE_NUM => QUEUES.into(),
        // Of an acknowledgement: no error.
        _ => 0,
    };
    value.to_le_bytes().to_vec()
}

fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let header = [request, flags, size].map(u32::to_le_bytes).concat();
    [header.as_slice(), payload].concat()
}

fn answer(mut peer: UnixStream, program: &[u8]) {
    let mut rest = Bytes(program);
    let mut header = [0; HEADER];
    while peer.read_exact(&mut header).is_ok() {
        let mut fields = Bytes(&header);
        let (request, flags, size) = (fields.word(), fields.word(), fields.word());
        let mut payload = vec![0; size as usize & 0xffff];
        if peer.read_exact(&mut payload).is_err() {
            return;
        }
        let answered = [
            GET_FEATURES,
            GET_VRING_BASE,
            GET_PROTOCOL_FEATURES,
            GET_QUEUE_NUM,
        ];
        let kind = rest.byte();
        let wanted = answered.contains(&request) || flags & NEED_REPLY != 0;
        if !wanted && kind < 0xf0 {
            continue;
        }
        let said = match kind % 6 {
            0 | 1 => message(request, VERSION | REPLY, 8, &good(request)),
            2 => message(request, VERSION | REPLY, 8, rest.take(8)),
            3 => {
                let (flags, size) = (rest.word(), rest.word() % 0x2000);
                message(request, flags, size, rest.take(size as usize))
            }
            4 => {
                let count = usize::from(rest.byte());
                rest.take(count).to_vec()
            }
            _ => return,
        };
        if peer.write_all(&said).is_err() {
            return;
        }
    }
}

fn activation(memory: &GuestMemoryMmap) -> Result<Activation, String> {
    static THREAD: OnceLock<Result<WorkerThread, String>> = OnceLock::new();
    let spawn = || WorkerThread::spawn("calls", || {}).map_err(text);
    let thread = THREAD.get_or_init(spawn).clone()?;
    let event = || EventFd::new(EFD_NONBLOCK).map_err(text);
    let mut queues = Vec::new();
    for index in 0..QUEUES {
        let mut queue = Queue::new(QUEUE_SIZE).map_err(text)?;
        let base = index * 0x4000;
        queue.set_desc_table_address(Some(base), None);
        queue.set_avail_ring_address(Some(base + 0x1000), None);
        queue.set_used_ring_address(Some(base + 0x2000), None);
        queue.set_ready(true);
        let kick = event()?;
        queues.push(Some(ActiveQueue { queue, kick }));
    }
    let registers = Registers::alone().map_err(|error| error.to_string())?;
    Ok(Activation {
        memory: memory.clone(),
        queues,
        interrupt: Interrupt::new(event()?, registers),
        features: 1 << 32,
        thread,
        more_threads: Vec::new(),
    })
}

/// A session with a back end that answers as `program` says.
///
/// # Errors
/// If there is no session for want of something else.
pub(crate) fn check(program: &[u8]) -> Result<(), String> {
    let file = tempfile::tempfile().map_err(text)?;
    file.set_len(MEMORY_BYTES as u64).map_err(text)?;
    let region = (
        GuestAddress(0),
        MEMORY_BYTES,
        Some(FileOffset::new(file, 0)),
    );
    let memory = GuestMemoryMmap::from_ranges_with_files([region]).map_err(text)?;
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    theirs.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let says = program.to_vec();
    let peer = thread::spawn(move || answer(theirs, &says));
    if let Ok(mut front) = FrontEnd::open(ours, QUEUES as usize) {
        // Twice: what a reset left may be used again, or is lost.
        for _ in 0..2 {
            let came_up = front.activate(activation(&memory)?).is_ok();
            front.reset();
            if !came_up && front.activate(activation(&memory)?).is_ok() {
                return Err("a session that broke came up again".to_owned());
            }
        }
    }
    peer.join().map_err(|_| "the back end panicked".to_owned())
}
