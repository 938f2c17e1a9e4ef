//! The user-space vsock device (VirtIO 1.3, 5.10): streams between guest ports and Unix sockets.
//!
//! Host side, Firecracker's convention: a client connects to a listening Unix socket, writes
//! `CONNECT <guest port>\n`, and reads `OK <host port>\n` once the guest has accepted; from then on the
//! socket is the stream. A stream that the guest opens to host port `p` becomes a connection to
//! `<path>_<p>`; with nobody there, the guest's connect is refused.
//!
//! Members:
//! - [`protocol`]: the constants and the packet header;
//! - [`packet`]: descriptor chains as packets, copied once where a decision hangs on them;
//! - [`connection`]: the life of one stream as a pure state machine;
//! - [`endpoint`]: a connection together with its host socket and the bytes that wait for it;
//! - [`handshake`]: the `CONNECT` line;
//! - [`muxer`]: all connections, the host's epoll and the two rings; no threads;
//! - [`service`]: one pass over both rings, notifications included, for whoever owns the rings;
//! - [`device`]: the muxer on a worker thread, as a device of our monitor;
//! - [`backend`]: the muxer as a vhost-user back end, for QEMU.
//!
//! It does not offer `SOCK_SEQPACKET` (5.10.3), and never writes to the event queue: that is only for
//! a device that lost its connections while the guest lives, as after a migration.

pub mod backend;
mod backlog;
mod connection;
mod device;
mod endpoint;
mod error;
mod handshake;
mod muxer;
mod packet;
mod protocol;
mod service;

pub use device::Vsock;
pub use error::VsockError;
pub use handshake::{HandshakeError, MAX_LINE_BYTES, read_port};
pub use muxer::MuxerConfig;
