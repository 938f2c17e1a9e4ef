mod driver;
mod flow;
mod hostile;
mod walk;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use driver::{Driver, GUEST_CID, packet, reply};

use super::super::protocol::{
    Op, SHUTDOWN_BOTH, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, VIRTIO_VSOCK_SHUTDOWN_F_SEND,
    VMADDR_CID_HOST,
};
use super::*;

const PORT: u32 = 5000;

/// A guest-opened connection from guest port `guest`, and the host's end of it.
fn guest_connects(driver: &mut Driver, listener: &UnixListener, guest: u32) -> UnixStream {
    driver.send(&packet(guest, PORT, Op::Request), b"");
    let answers = driver.receive();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0.op, Op::Response);
    listener.accept().unwrap().0
}

/// A host client's connection to guest port `guest`; the guest accepts.
fn host_connects(driver: &mut Driver, guest: u32) -> (UnixStream, Header) {
    let mut client = UnixStream::connect(driver.path()).unwrap();
    writeln!(client, "CONNECT {guest}").unwrap();
    let asked = driver.receive();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let request = asked[0].0;
    assert_eq!((request.op, request.dst_port), (Op::Request, guest));
    driver.send(&reply(&request, Op::Response), b"");
    driver.serve();
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(
        line,
        *format!("OK {}\n", request.src_port).as_bytes(),
        "the host port"
    );
    (client, request)
}

#[test]
fn guest_connect_with_listener_echoes_both_ways() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    driver.send(&packet(1025, PORT, Op::Rw), b"ping");
    driver.serve();
    let mut got = [0; 4];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    host.write_all(b"pong").unwrap();
    let received = driver.receive();
    assert_eq!(received.len(), 1);
    let (header, payload) = &received[0];
    assert_eq!(
        (header.src_cid, header.dst_cid),
        (VMADDR_CID_HOST, GUEST_CID)
    );
    assert_eq!((header.src_port, header.dst_port), (PORT, 1025));
    assert_eq!((header.op, header.fwd_cnt), (Op::Rw, 4));
    assert_eq!(payload, b"pong");
}

#[test]
fn guest_connect_without_listener_is_refused() {
    let mut driver = Driver::new();
    driver.send(&packet(1025, PORT, Op::Request), b"");
    let answers = driver.receive();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0.op, Op::Rst);
    assert_eq!((answers[0].0.src_port, answers[0].0.dst_port), (PORT, 1025));
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn host_connect_accepted_keeps_bytes_sent_behind_the_request() {
    let mut driver = Driver::new();
    let mut client = UnixStream::connect(driver.path()).unwrap();
    client.write_all(b"CONNECT 1024\nearly").unwrap();
    let asked = driver.receive();
    driver.send(&reply(&asked[0].0, Op::Response), b"");
    let data = driver.receive();
    assert_eq!(data.len(), 1);
    assert_eq!(data[0].1, b"early");
}

#[test]
fn host_connect_refused_by_the_guest_ends_the_client() {
    let mut driver = Driver::new();
    let mut client = UnixStream::connect(driver.path()).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let asked = driver.receive();
    driver.send(&reply(&asked[0].0, Op::Rst), b"");
    driver.serve();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn host_connects_twice_use_different_ports() {
    let mut driver = Driver::new();
    let (_first, one) = host_connects(&mut driver, 1024);
    let (_second, two) = host_connects(&mut driver, 1024);
    assert_ne!(one.src_port, two.src_port);
}

#[test]
fn host_half_close_lets_the_guest_go_on() {
    let mut driver = Driver::new();
    let (mut client, request) = host_connects(&mut driver, 1024);
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let received = driver.receive();
    assert_eq!(received.len(), 2, "{received:?}");
    assert_eq!(received[0].1, b"question");
    assert_eq!(received[1].0.op, Op::Shutdown);
    assert_eq!(received[1].0.flags, VIRTIO_VSOCK_SHUTDOWN_F_SEND);
    driver.send(&reply(&request, Op::Rw), b"answer");
    driver.send(
        &Header {
            flags: SHUTDOWN_BOTH,
            ..reply(&request, Op::Shutdown)
        },
        b"",
    );
    let last = driver.receive();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].0.op, Op::Rst);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn guest_half_close_lets_the_host_go_on() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    driver.send(&packet(1025, PORT, Op::Rw), b"question");
    driver.send(
        &Header {
            flags: VIRTIO_VSOCK_SHUTDOWN_F_SEND,
            ..packet(1025, PORT, Op::Shutdown)
        },
        b"",
    );
    driver.serve();
    let mut question = Vec::new();
    host.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    host.write_all(b"answer").unwrap();
    drop(host);
    let received = driver.receive();
    assert_eq!(received[0].1, b"answer");
    assert_eq!(
        received[1..].iter().map(|(h, _)| h.op).collect::<Vec<_>>(),
        [Op::Shutdown, Op::Rst]
    );
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn guest_stopping_to_receive_ends_the_host_writer() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    driver.send(
        &Header {
            flags: VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE,
            ..packet(1025, PORT, Op::Shutdown)
        },
        b"",
    );
    driver.serve();
    assert_eq!(
        host.write(b"x").unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

#[test]
fn host_closing_tells_the_guest_and_frees_on_its_reset() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    drop(guest_connects(&mut driver, &listener, 1025));
    let told = driver.receive();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].0.op, told[0].0.flags),
        (Op::Shutdown, SHUTDOWN_BOTH)
    );
    assert_eq!(driver.muxer.connections(), 1);
    driver.send(&packet(1025, PORT, Op::Rst), b"");
    driver.serve();
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn device_reset_closes_every_host_socket() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    let (mut client, _) = host_connects(&mut driver, 1024);
    let mut waiting = UnixStream::connect(driver.path()).unwrap();
    driver.serve();
    driver.muxer.reset();
    for stream in [&mut host, &mut client, &mut waiting] {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert!(!driver.muxer.has_pending_rx());
}

#[test]
fn path_without_room_for_a_port_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    let path = PathBuf::from("/".repeat(97));
    let error = Muxer::new(MuxerConfig {
        guest_cid: GuestCid::new(3).unwrap(),
        listener,
        path,
    })
    .unwrap_err();
    assert!(matches!(
        error,
        VsockError::PathTooLong {
            length: 97,
            limit: 96,
            ..
        }
    ));
}
