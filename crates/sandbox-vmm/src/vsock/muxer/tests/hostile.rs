//! A guest, or a host client, that does not keep to the rules.

use virtio_queue::QueueT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::driver::{
    DESC_F_NEXT, DESC_F_WRITE, RING, TX_BUFFER, TX_BUFFERS_AT, make_available, put_descriptor,
};
use super::*;
use crate::vsock::service::serve;

#[test]
fn packet_from_another_source_is_dropped() {
    let mut driver = Driver::new();
    driver.send(
        &Header {
            src_cid: GUEST_CID + 1,
            ..packet(1025, PORT, Op::Request)
        },
        b"",
    );
    assert!(driver.receive().is_empty());
    assert_eq!(driver.muxer.refused().malformed, 1);
}

#[test]
fn packet_for_another_machine_or_of_another_type_is_refused() {
    let mut driver = Driver::new();
    let _listener = driver.listen(PORT);
    let request = packet(1025, PORT, Op::Request);
    driver.send(
        &Header {
            dst_cid: 7,
            ..request
        },
        b"",
    );
    driver.send(
        &Header {
            socket_type: 2,
            ..request
        },
        b"",
    );
    let answers = driver.receive();
    assert_eq!(answers.len(), 2);
    assert_eq!((answers[0].0.op, answers[0].0.src_cid), (Op::Rst, 7));
    assert_eq!((answers[1].0.op, answers[1].0.socket_type), (Op::Rst, 2));
}

#[test]
fn packet_of_no_connection_is_refused_and_a_reset_is_not() {
    let mut driver = Driver::new();
    for op in [
        Op::Rw,
        Op::Response,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::Unknown(99),
    ] {
        driver.send(&packet(1025, PORT, op), b"");
        assert_eq!(driver.receive()[0].0.op, Op::Rst);
    }
    driver.send(&packet(1025, PORT, Op::Rst), b"");
    assert!(driver.receive().is_empty());
}

#[test]
fn packet_with_a_length_that_lies_is_dropped() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let _host = guest_connects(&mut driver, &listener, 1025);
    for len in [5, 65_537, u32::MAX] {
        driver.send_raw(
            &Header {
                len,
                ..packet(1025, PORT, Op::Rw)
            },
            b"four",
        );
    }
    driver.serve();
    assert_eq!(driver.muxer.refused().malformed, 3);
    assert_eq!(driver.muxer.connections(), 1);
}

#[test]
fn packet_in_bad_buffers_is_dropped() {
    let mut driver = Driver::new();
    let header = packet(1025, PORT, Op::Rw).encode();
    // Short of a header; writable by the device; too many descriptors; outside of memory.
    driver.send_scattered(&header, &[43], 0);
    driver.send_scattered(&header, &[44], DESC_F_WRITE);
    driver.send_scattered(&header, &[1; 33], 0);
    let slot = driver.tx_next;
    for address in [1 << 40, u64::MAX - 10] {
        let descriptor = virtio_queue::desc::split::Descriptor::new(address, 44, 0, 0);
        put_descriptor(&driver.mem, &driver.tx, slot, descriptor);
        make_available(&driver.mem, &driver.tx, slot);
        driver.serve();
    }
    assert_eq!(driver.muxer.refused().malformed, 5);
    assert!(driver.receive().is_empty());
}

#[test]
fn descriptor_loop_ends() {
    let mut driver = Driver::new();
    let descriptor =
        virtio_queue::desc::split::Descriptor::new(TX_BUFFERS_AT, TX_BUFFER, DESC_F_NEXT, 0);
    put_descriptor(&driver.mem, &driver.tx, 0, descriptor);
    make_available(&driver.mem, &driver.tx, 0);
    driver.serve();
    assert_eq!(driver.muxer.refused().malformed, 1);
}

#[test]
fn receive_buffer_that_is_unfit_is_handed_back_unused() {
    let mut driver = Driver::without_rx_buffers();
    driver.send(&packet(1025, PORT, Op::Request), b"");
    for length in [0u32, 44] {
        let flags = DESC_F_WRITE;
        let descriptor = virtio_queue::desc::split::Descriptor::new(0x10_0000, length, flags, 0);
        put_descriptor(&driver.mem, &driver.rx, 0, descriptor);
        make_available(&driver.mem, &driver.rx, 0);
        driver.serve();
    }
    let used: u16 = driver
        .mem
        .read_obj(GuestAddress(driver.rx.used_ring()).unchecked_add(2))
        .unwrap();
    assert_eq!(used, 2);
    assert!(driver.muxer.has_pending_rx(), "the answer still waits");
}

#[test]
fn available_index_out_of_range_is_a_corrupt_ring() {
    for broken in ["rx", "tx"] {
        let mut driver = Driver::new();
        driver.send(&packet(1025, PORT, Op::Request), b"");
        let ring = if broken == "rx" {
            &driver.rx
        } else {
            &driver.tx
        };
        let at = GuestAddress(ring.avail_ring()).unchecked_add(2);
        driver.mem.write_obj(RING * 2 + 1, at).unwrap();
        let error = serve(
            &mut driver.muxer,
            &driver.mem,
            &mut driver.rx,
            &mut driver.tx,
        )
        .unwrap_err();
        assert!(
            matches!(error, VsockError::CorruptRing { queue, .. } if queue == broken),
            "{error}"
        );
    }
}

#[test]
fn head_out_of_range_is_a_corrupt_ring() {
    let mut driver = Driver::new();
    make_available(&driver.mem, &driver.tx, RING);
    let error = serve(
        &mut driver.muxer,
        &driver.mem,
        &mut driver.rx,
        &mut driver.tx,
    )
    .unwrap_err();
    assert!(matches!(error, VsockError::CorruptRing { queue: "tx", .. }));
}

#[test]
fn refusals_without_receive_buffers_are_bounded() {
    let mut driver = Driver::without_rx_buffers();
    for guest in 0..1000 {
        driver.send(&packet(guest, PORT, Op::Rw), b"");
    }
    driver.serve();
    assert_eq!(driver.muxer.refusals.len(), MAX_REFUSALS);
    assert_eq!(driver.muxer.refused().answers, 744);
}

#[test]
fn flood_of_connections_is_bounded_and_refused() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .unwrap();
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    listener.set_nonblocking(true).unwrap();
    let mut hosts = Vec::new();
    let mut accepted = 0;
    let mut refused = 0;
    let extra = 50;
    for guest in 0..(u32::try_from(MAX_CONNECTIONS).unwrap() + extra) {
        driver.send(&packet(guest, PORT, Op::Request), b"");
        for (header, _) in driver.receive() {
            match header.op {
                Op::Response => accepted += 1,
                Op::Rst => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        hosts.extend(listener.accept());
    }
    assert_eq!(accepted, MAX_CONNECTIONS);
    assert_eq!(refused, extra);
    drop(hosts);
    for (header, _) in driver.receive() {
        driver.send(&reply(&header, Op::Rst), b"");
    }
    driver.serve();
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn guest_reusing_ports_of_a_connection_is_reset() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    driver.send(&packet(1025, PORT, Op::Request), b"");
    assert_eq!(driver.receive()[0].0.op, Op::Rst);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    guest_connects(&mut driver, &listener, 1025);
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let mut driver = Driver::new();
    let mut silent: Vec<_> = (0..3 * MAX_HANDSHAKES)
        .map(|_| UnixStream::connect(driver.path()).unwrap())
        .collect();
    while driver.muxer.handshakes.len() < MAX_HANDSHAKES {
        driver.serve();
    }
    host_connects(&mut driver, 1024);
    assert_eq!(driver.muxer.handshakes.len(), MAX_HANDSHAKES - 1);
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest is gone");
}

#[test]
fn garbage_client_is_dropped_at_once() {
    let mut driver = Driver::new();
    let mut client = UnixStream::connect(driver.path()).unwrap();
    client.write_all(b"HELLO\n").unwrap();
    driver.serve();
    // Closed with bytes unread, which the client may see as a reset.
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(driver.muxer.refused().clients, 1);
}

#[test]
fn guest_reset_of_a_request_that_timed_out_is_harmless() {
    let mut driver = Driver::new();
    let mut client = UnixStream::connect(driver.path()).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = driver.receive()[0].0;
    // Time does not pass in a unit test: the deadline is moved instead.
    let (at, id) = driver.muxer.deadlines.pop_first().unwrap();
    driver
        .muxer
        .deadlines
        .insert((at - Duration::from_secs(60), id));
    let now = Instant::now();
    driver.muxer.accepting_again = Some(now);
    driver.muxer.armed = None;
    let answers = loop {
        let answers = driver.receive();
        if !answers.is_empty() {
            break answers;
        }
    };
    assert_eq!(answers[0].0.op, Op::Rst);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    driver.send(&reply(&request, Op::Rst), b"");
    assert!(driver.receive().is_empty());
    assert_eq!(driver.muxer.connections(), 0);
}
