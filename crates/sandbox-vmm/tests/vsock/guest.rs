//! The guest of `tests/vsock_guest.rs`: PID 1 of a machine that has nothing but a vsock device. Built by
//! that test with rustc alone, static, so the few C functions it needs are declared here.
//!
//! It announces itself at host port 1000 and then serves the ports below.

#[path = "pattern.rs"]
mod pattern;

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex};

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const Address, length: u32) -> c_int;
    fn bind(fd: c_int, address: *const Address, length: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *mut Address, length: *mut u32) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
}

/// `struct sockaddr_vm`.
#[repr(C)]
#[derive(Default)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: u32,
}

const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const SHUT_WR: c_int = 1;
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;

fn check(value: c_int) -> io::Result<c_int> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

fn vsock() -> io::Result<File> {
    // SAFETY: no memory operands; the new descriptor has no other owner.
    unsafe { Ok(File::from_raw_fd(check(socket(AF_VSOCK, SOCK_STREAM, 0))?)) }
}

fn address(cid: u32, port: u32) -> Address {
    Address {
        family: AF_VSOCK as u16,
        port,
        cid,
        ..Address::default()
    }
}

fn dial(port: u32) -> io::Result<File> {
    let stream = vsock()?;
    let to = address(CID_HOST, port);
    // SAFETY: the address is of the size that is passed.
    check(unsafe { connect(stream.as_raw_fd(), &to, size_of::<Address>() as u32) })?;
    Ok(stream)
}

fn finish_writing(stream: &File) {
    // SAFETY: no memory operands.
    let _ = unsafe { shutdown(stream.as_raw_fd(), SHUT_WR) };
}

/// Serves a port, each connection on a thread of its own.
fn serve(port: u32, service: fn(File) -> io::Result<()>) {
    let listener = vsock().expect("socket");
    let at = address(CID_ANY, port);
    // SAFETY: the address is of the size that is passed.
    check(unsafe { bind(listener.as_raw_fd(), &at, size_of::<Address>() as u32) }).expect("bind");
    // SAFETY: no memory operands.
    check(unsafe { listen(listener.as_raw_fd(), 256) }).expect("listen");
    std::thread::spawn(move || {
        loop {
            // SAFETY: no address is asked for.
            let fd = check(unsafe {
                accept(
                    listener.as_raw_fd(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            })
            .expect("accept");
            // SAFETY: the new descriptor has no other owner.
            let stream = unsafe { File::from_raw_fd(fd) };
            std::thread::spawn(move || {
                if let Err(error) = service(stream) {
                    eprintln!("guest: port {port}: {error}");
                }
            });
        }
    });
}

/// Port 1: everything back, then the end.
fn echo(mut stream: File) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        stream.write_all(&buffer[..count])?;
    }
    finish_writing(&stream);
    Ok(())
}

/// The first line: a number. Read byte by byte, so that what follows stays in the stream.
fn number(mut stream: &File) -> io::Result<u64> {
    let mut line = String::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return line.parse().map_err(io::Error::other);
        }
        line.push(byte[0].into());
    }
}

/// Port 2: takes the announced amount of the pattern to the end and answers how it was.
fn sink(mut stream: File) -> io::Result<()> {
    let total = number(&stream)?;
    let answer = pattern::expect(&stream, total);
    write!(stream, "{}", answer.err().unwrap_or("ok".into()))
}

/// Port 3: sends as much of the pattern as it is asked for.
fn source(stream: File) -> io::Result<()> {
    let total = number(&stream)?;
    pattern::send(&stream, total)
}

static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Port 4: as port 2, but reads nothing before somebody connects to port 5.
fn late_sink(stream: File) -> io::Result<()> {
    let mut open = GATE.0.lock().unwrap();
    while !*open {
        open = GATE.1.wait(open).unwrap();
    }
    drop(open);
    sink(stream)
}

fn open_gate(_stream: File) -> io::Result<()> {
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    Ok(())
}

/// Port 6: lines `PORT BYTES`: connects there, sends so much, ends, and expects all of it back.
fn caller(stream: File) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let mut words = line
            .split(' ')
            .map(|word| word.parse::<u64>().expect("a number"));
        let (port, total) = (
            words.next().expect("port") as u32,
            words.next().expect("bytes"),
        );
        let answer = call(port, total).err().unwrap_or("ok".into());
        writeln!(answers, "{answer}")?;
    }
    Ok(())
}

fn call(port: u32, total: u64) -> Result<(), String> {
    let stream = dial(port).map_err(|error| format!("connect: {:?}", error.kind()))?;
    let writer = stream.try_clone().map_err(|error| error.to_string())?;
    let sending = std::thread::spawn(move || {
        let sent = pattern::send(&writer, total);
        finish_writing(&writer);
        sent
    });
    pattern::expect(&stream, total)?;
    sending
        .join()
        .expect("the sender")
        .map_err(|error| error.to_string())
}

/// Port 7: reads and forgets, then says how much.
fn discard(mut stream: File) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0u64;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return write!(stream, "{total}");
        }
        total += count as u64;
    }
}

/// Port 8: sends so many zeroes.
fn zeroes(mut stream: File) -> io::Result<()> {
    let mut left = number(&stream)? as usize;
    let buffer = vec![0; 256 * 1024];
    while left > 0 {
        let count = left.min(buffer.len());
        stream.write_all(&buffer[..count])?;
        left -= count;
    }
    Ok(())
}

/// Port 9: power-off, by the port that the agent uses.
fn power_off(_stream: File) -> io::Result<()> {
    let port = File::options().write(true).open("/dev/port")?;
    port.write_all_at(&[0x10], 0x501)
}

fn main() {
    // SAFETY: all strings are terminated; no data. A kernel with `CONFIG_DEVTMPFS_MOUNT` did it already.
    let _ = unsafe {
        mount(
            c"dev".as_ptr(),
            c"/dev".as_ptr(),
            c"devtmpfs".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    serve(1, echo);
    serve(2, sink);
    serve(3, source);
    serve(4, late_sink);
    serve(5, open_gate);
    serve(6, caller);
    serve(7, discard);
    serve(8, zeroes);
    serve(9, power_off);
    let ready = dial(1000).expect("host port 1000");
    (&ready).write_all(b"ready").expect("announce");
    // Init must not end; the host keeps this connection open.
    let _ = (&ready).read(&mut [0]);
    loop {
        std::thread::park();
    }
}
