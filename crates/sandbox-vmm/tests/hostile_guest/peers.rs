//! Who the guest can connect to: one that sends back what it gets, one that never reads, and one that calls back.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::net::Shutdown as Both;

/// The ports, as `guest/packet.rs` has them.
const ECHO_PORT: u32 = 1000;
const DEAF_PORT: u32 = 1001;
const CALL_PORT: u32 = 1003;
const GUEST_PORT: u32 = 52;

/// Listeners of a machine whose sockets begin with `vsock.sock` in a folder.
pub(crate) struct Peers {
    listeners: Vec<(UnixListener, Option<JoinHandle<()>>)>,
}

impl Peers {
    pub(crate) fn listen(folder: &Path) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for (port, serve) in [
            (ECHO_PORT, echo as fn(UnixListener, PathBuf)),
            (DEAF_PORT, hold),
            (CALL_PORT, call_back),
        ] {
            let listener = UnixListener::bind(folder.join(format!("vsock.sock_{port}")))?;
            let theirs = listener.try_clone()?;
            let device = folder.join("vsock.sock");
            listeners.push((listener, Some(thread::spawn(move || serve(theirs, device)))));
        }
        Ok(Self { listeners })
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for (listener, thread) in &mut self.listeners {
            // Ends its thread's waiting; one that panicked has said so.
            let _ = rustix::net::shutdown(&*listener, Both::Both);
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn echo(listener: UnixListener, _device: PathBuf) {
    for stream in listener.incoming().map_while(Result::ok) {
        // Ends with the connection, at the latest when the monitor does.
        thread::spawn(move || {
            let Ok(mut back) = stream.try_clone() else {
                return;
            };
            let _ = io::copy(&mut &stream, &mut back);
            let _ = back.shutdown(Shutdown::Both);
        });
    }
}

fn hold(listener: UnixListener, _device: PathBuf) {
    let _held: Vec<UnixStream> = listener.incoming().map_while(Result::ok).collect();
}

fn call_back(listener: UnixListener, device: PathBuf) {
    for stream in listener.incoming().map_while(Result::ok) {
        if let Err(error) = call(&device) {
            eprintln!("the guest was called: {error}");
        }
        drop(stream);
    }
}

/// Calls the guest, says something, and hears it again.
fn call(device: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(device)?;
    writeln!(stream, "CONNECT {GUEST_PORT}")?;
    let mut answer = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    stream.write_all(b"a word..")?;
    let mut again = [0; 8];
    answer.read_exact(&mut again)?;
    if !line.starts_with("OK ") || again != *b"a word.." {
        return Err(io::Error::other("it answers something else"));
    }
    stream.shutdown(Shutdown::Write)
}
