//! Who is attached to the container: their control connections, and the ends of their streams.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::mpsc;

use crate::attach::protocol::{self, Outcome, Report, Request, Streams};
use crate::logs::{Log, LogStream};
use crate::stdio::{Sink, Transfer, pump};

/// Where one stream of the container goes to besides the log.
#[derive(Debug, Clone)]
struct Readers(Arc<Mutex<Option<Vec<Arc<File>>>>>);

impl Readers {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Option<Vec<Arc<File>>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One more. Once the stream has ended its end is all that it gets.
    fn add(&self, reader: OwnedFd) {
        self.with(|readers| {
            if let Some(readers) = readers {
                readers.push(Arc::new(File::from(reader)));
            }
        });
    }
}

/// One stream of the container, copied to its log and to whoever reads it. A reader that does not take it holds up
/// the container; one that went away is forgotten.
pub(super) struct Broadcast {
    log: Option<LogStream>,
    readers: Readers,
}

impl Sink for Broadcast {
    fn take(&mut self, from: &File, transfer: &mut Transfer) -> io::Result<Option<usize>> {
        let Some(bytes) = transfer.read(from)? else {
            return Ok(None);
        };
        if let Some(log) = &mut self.log {
            log.take(bytes);
        }
        // Not locked while writing: others may come meanwhile.
        let readers = self.readers.with(|readers| readers.clone());
        for reader in readers.unwrap_or_default() {
            let mut file = &*reader;
            if io::Write::write_all(&mut file, bytes).is_err() {
                self.readers.with(|readers| {
                    if let Some(readers) = readers {
                        readers.retain(|other| !Arc::ptr_eq(other, &reader));
                    }
                });
            }
        }
        Ok(Some(bytes.len()))
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        self.readers.with(|readers| *readers = None);
    }
}

/// What a connection brought.
enum News {
    Joined(UnixStream, Streams),
    Said(Request),
    InputRead,
    Gone,
}

/// What a client wants to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Signal(u32),
    Resize(u16, u16),
    /// The container's input is to end.
    CloseInput,
    /// Nobody else any more reads what this added process writes, or waits for its end.
    Adopt(String),
}

/// Where what clients type goes.
pub(super) struct ContainerInput {
    /// Open at the shim's end too.
    pub(super) fifo: File,
    /// It ends with the first client's that says so. Else only the container ends it.
    pub(super) once: bool,
}

struct Client {
    connection: UnixStream,
    /// It has said that there is no more input…
    input_ended: bool,
    /// …and all that it wrote was read.
    input_read: bool,
    /// The process that it added, and has not removed.
    exec: Option<String>,
}

/// Everyone who is attached.
pub(super) struct Clients {
    news: mpsc::UnboundedReceiver<(u64, News)>,
    sender: mpsc::UnboundedSender<(u64, News)>,
    clients: HashMap<u64, Client>,
    stdout: Readers,
    stderr: Readers,
    input: Option<ContainerInput>,
    /// What everybody was told last.
    told: Option<Report>,
    /// Wishes that were heard too early.
    kept: VecDeque<Wish>,
}

/// The identifier of the client that the attendant was started with.
const OWNER: u64 = 0;

impl Clients {
    /// Only whoever started the attendant.
    pub(super) fn new(owner: UnixStream, input: Option<ContainerInput>) -> io::Result<Self> {
        let (sender, news) = mpsc::unbounded_channel();
        let mut clients = Self {
            news,
            sender,
            clients: HashMap::new(),
            stdout: Readers::new(),
            stderr: Readers::new(),
            input,
            told: None,
            kept: VecDeque::new(),
        };
        // It has said what it wants before this process was started.
        let connection = owner.try_clone()?;
        let (streams, lines) = protocol::receive_attach(owner)?;
        clients.join(OWNER, connection, streams);
        listen(OWNER, lines, clients.sender.clone())?;
        Ok(clients)
    }

    /// Lets others in at `path`.
    pub(super) fn open(&self, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let sender = self.sender.clone();
        thread::Builder::new()
            .name("attach".to_owned())
            .spawn(move || {
                for (id, connection) in (OWNER + 1..).zip(listener.incoming()) {
                    let Ok(connection) = connection else { return };
                    let sender = sender.clone();
                    // What cannot be served is hung up on.
                    let _ = thread::Builder::new().spawn(move || welcome(id, connection, &sender));
                }
            })
            .map(drop)
    }

    /// Where the container's output and error go.
    pub(super) fn broadcasts(&self, log: Option<&Arc<Log>>) -> (Broadcast, Broadcast) {
        let broadcast = |readers: &Readers, name| Broadcast {
            log: log.map(|log| LogStream::new(Arc::clone(log), name)),
            readers: readers.clone(),
        };
        (
            broadcast(&self.stdout, "stdout"),
            broadcast(&self.stderr, "stderr"),
        )
    }

    /// Tells everyone, now and who comes later.
    pub(super) fn tell(&mut self, report: Report) {
        self.clients.retain(|_, client| {
            // What one added is yet to be taken over.
            protocol::send(&client.connection, &report).is_ok() || client.exec.is_some()
        });
        self.told = Some(report);
    }

    /// Tells everyone how it ended, also who has come since the last wish was heard.
    pub(super) fn end(&mut self, outcome: Outcome) {
        while let Ok((id, news)) = self.news.try_recv() {
            // There is nothing left to be wished for.
            let _ = self.take(id, news);
        }
        self.tell(Report::Ended(outcome));
    }

    /// The next wish. Cancelling this loses none.
    pub(super) async fn next(&mut self) -> Wish {
        if let Some(wish) = self.kept.pop_front() {
            return wish;
        }
        loop {
            let Some((id, news)) = self.news.recv().await else {
                // There is a sender in `self`.
                return std::future::pending().await;
            };
            if let Some(wish) = self.take(id, news) {
                return wish;
            }
        }
    }

    /// Has these come again, before any other.
    pub(super) fn keep(&mut self, wishes: impl IntoIterator<Item = Wish>) {
        self.kept.extend(wishes);
    }

    fn take(&mut self, id: u64, news: News) -> Option<Wish> {
        match news {
            News::Joined(connection, streams) => {
                self.join(id, connection, streams);
                None
            }
            News::Gone => {
                let client = self.clients.remove(&id)?;
                client.exec.map(Wish::Adopt)
            }
            News::Said(Request::Attach { .. }) => None,
            News::Said(Request::Signal(signal)) => Some(Wish::Signal(signal)),
            News::Said(Request::Resize(columns, rows)) => Some(Wish::Resize(columns, rows)),
            News::Said(Request::Attends(exec)) => {
                self.clients.get_mut(&id)?.exec = Some(exec);
                None
            }
            News::Said(Request::Released) => {
                self.clients.get_mut(&id)?.exec = None;
                None
            }
            News::Said(Request::InputEnded) => {
                let client = self.clients.get_mut(&id)?;
                client.input_ended = true;
                self.end_of_input(id)
            }
            News::InputRead => {
                let client = self.clients.get_mut(&id)?;
                client.input_read = true;
                self.end_of_input(id)
            }
        }
    }

    /// What the end of a client's input means to the container, once all of it was read.
    fn end_of_input(&self, id: u64) -> Option<Wish> {
        let client = self.clients.get(&id)?;
        let once = self.input.as_ref().is_some_and(|input| input.once);
        (once && client.input_ended && client.input_read).then_some(Wish::CloseInput)
    }

    fn join(&mut self, id: u64, connection: UnixStream, streams: Streams) {
        if let Some(reader) = streams.stdout {
            self.stdout.add(reader);
        }
        if let Some(reader) = streams.stderr {
            self.stderr.add(reader);
        }
        // One that went away meanwhile may still have said something.
        let hears = match &self.told {
            Some(report) => protocol::send(&connection, report).is_ok(),
            None => true,
        };
        if hears
            && let Some(from) = streams.stdin
            && let Some(to) = self
                .input
                .as_ref()
                .and_then(|input| input.fifo.try_clone().ok())
        {
            let sender = self.sender.clone();
            // Without a thread its input goes nowhere.
            let _ = thread::Builder::new()
                .name("stdin".to_owned())
                .spawn(move || {
                    let _ = pump(&File::from(from), &to, None);
                    let _ = sender.send((id, News::InputRead));
                });
        }
        let client = Client {
            connection,
            input_ended: false,
            input_read: false,
            exec: None,
        };
        self.clients.insert(id, client);
    }
}

fn welcome(id: u64, connection: UnixStream, sender: &mpsc::UnboundedSender<(u64, News)>) {
    let Ok(writer) = connection.try_clone() else {
        return;
    };
    if let Ok((streams, lines)) = protocol::receive_attach(connection) {
        let _ = sender.send((id, News::Joined(writer, streams)));
        // Then there is nobody to be heard, who may still read.
        let _ = listen(id, lines, sender.clone());
    }
}

/// Hears a client to its end, on a thread of its own.
fn listen<R: io::Read + Send + 'static>(
    id: u64,
    mut lines: protocol::Lines<R>,
    sender: mpsc::UnboundedSender<(u64, News)>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("client".to_owned())
        .spawn(move || {
            while let Some(request) = lines.next() {
                let _ = sender.send((id, News::Said(request)));
            }
            let _ = sender.send((id, News::Gone));
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(once: bool) -> (Clients, UnixStream) {
        let (client, attendant) = UnixStream::pair().unwrap();
        protocol::send_attach(&client, &Streams::default()).unwrap();
        let fifo = File::open("/dev/null").unwrap();
        let input = Some(ContainerInput { fifo, once });
        (Clients::new(attendant, input).unwrap(), client)
    }

    #[test]
    fn input_that_is_once_ends_when_a_client_said_so_and_all_was_read() {
        for [first, second] in [
            [News::InputRead, News::Said(Request::InputEnded)],
            [News::Said(Request::InputEnded), News::InputRead],
        ] {
            let (mut clients, _client) = clients(true);
            assert_eq!(clients.take(OWNER, first), None);
            assert_eq!(clients.take(OWNER, second), Some(Wish::CloseInput));
        }
    }

    #[test]
    fn who_came_when_nobody_heard_wishes_any_more_is_told_how_it_ended() {
        let (mut clients, _owner) = clients(false);
        let (late, connection) = UnixStream::pair().unwrap();
        let joined = News::Joined(connection, Streams::default());
        clients.sender.send((OWNER + 1, joined)).unwrap();
        let outcome = Outcome {
            code: 3,
            ..Outcome::default()
        };
        clients.end(outcome.clone());
        let said = protocol::Lines::new(late).next();
        assert_eq!(said, Some(Report::Ended(outcome)));
    }

    #[test]
    fn process_of_a_client_that_went_away_without_a_word_is_adopted() {
        for (released, wish) in [(false, Some(Wish::Adopt("1f".to_owned()))), (true, None)] {
            let (mut clients, _client) = clients(false);
            let said = News::Said(Request::Attends("1f".to_owned()));
            assert_eq!(clients.take(OWNER, said), None);
            if released {
                assert_eq!(clients.take(OWNER, News::Said(Request::Released)), None);
            }
            assert_eq!(clients.take(OWNER, News::Gone), wish);
        }
    }

    #[test]
    fn input_that_is_not_once_outlives_a_clients() {
        let (mut clients, _client) = clients(false);
        assert_eq!(clients.take(OWNER, News::InputRead), None);
        let said = News::Said(Request::InputEnded);
        assert_eq!(clients.take(OWNER, said), None);
    }
}
