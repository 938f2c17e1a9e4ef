//! Credit, back-pressure and fairness.

use super::*;

/// Bytes that differ from their neighbours at every power-of-two distance.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
        .collect()
}

#[test]
fn guest_credit_exhausted_stops_and_recovers() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    driver.send(
        &Header {
            buf_alloc: 100,
            ..packet(1025, PORT, Op::Request)
        },
        b"",
    );
    driver.receive();
    let mut host = listener.accept().unwrap().0;
    host.write_all(&pattern(250)).unwrap();
    let received = driver.receive();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].1.len(), 100);
    assert_eq!(received[1].0.op, Op::CreditRequest);
    let mut all = received[0].1.clone();
    for fwd_cnt in [100, 200] {
        driver.send(
            &Header {
                buf_alloc: 100,
                fwd_cnt,
                ..packet(1025, PORT, Op::CreditUpdate)
            },
            b"",
        );
        all.extend(driver.receive().into_iter().flat_map(|(_, data)| data));
    }
    assert_eq!(all, pattern(250));
}

/// Sends until the guest's credit is used up; returns the bytes sent.
fn fill_window(driver: &mut Driver, window: u32) -> Vec<u8> {
    let sent = pattern(window as usize);
    for chunk in sent.chunks(16 * 1024) {
        driver.send(&packet(1025, PORT, Op::Rw), chunk);
    }
    driver.serve();
    sent
}

/// A host socket that is full, so that everything the guest sends is held by the muxer.
fn stalled(driver: &mut Driver, listener: &UnixListener) -> (UnixStream, Vec<u8>, u32) {
    let host = guest_connects(driver, listener, 1025);
    let mut sent = Vec::new();
    loop {
        driver.send(&packet(1025, PORT, Op::Rw), &pattern(16 * 1024));
        sent.extend(pattern(16 * 1024));
        let told = driver.receive();
        driver.send(&packet(1025, PORT, Op::CreditRequest), b"");
        let (answer, _) = driver.receive().pop().unwrap();
        let forwarded = answer.fwd_cnt as usize;
        drop(told);
        if forwarded < sent.len() {
            let held = sent.len() - forwarded;
            return (host, sent, answer.buf_alloc - u32::try_from(held).unwrap());
        }
    }
}

#[test]
fn host_not_reading_holds_one_window_and_loses_nothing() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let (mut host, mut sent, room) = stalled(&mut driver, &listener);
    sent.extend(fill_window(&mut driver, room));
    assert_eq!(driver.muxer.connections(), 1, "all of it was allowed");
    driver.send(
        &Header {
            flags: SHUTDOWN_BOTH,
            ..packet(1025, PORT, Op::Shutdown)
        },
        b"",
    );
    assert_eq!(driver.receive().last().unwrap().0.op, Op::Rst);
    assert_eq!(driver.muxer.connections(), 1, "it drains");
    let mut got: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = host.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        got.extend(&chunk[..count]);
        driver.serve();
    }
    assert_eq!(got.len(), sent.len());
    assert!(got == sent);
    assert_eq!(driver.muxer.connections(), 0);
}

#[test]
fn guest_ignoring_its_credit_is_reset() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let (mut host, _, room) = stalled(&mut driver, &listener);
    fill_window(&mut driver, room);
    assert!(driver.receive().is_empty());
    driver.send(&packet(1025, PORT, Op::Rw), b"x");
    assert_eq!(driver.receive()[0].0.op, Op::Rst);
    assert_eq!(driver.muxer.connections(), 0);
    std::io::copy(&mut host, &mut std::io::sink()).unwrap();
}

#[test]
fn host_reading_again_gives_the_guest_credit() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let (mut host, sent, _) = stalled(&mut driver, &listener);
    host.set_nonblocking(true).unwrap();
    let mut got = vec![0; sent.len()];
    let mut at = 0;
    while at < got.len() {
        match host.read(&mut got[at..]) {
            Ok(count) => at += count,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        driver.serve();
    }
    assert!(got == sent);
    driver.send(&packet(1025, PORT, Op::CreditRequest), b"");
    let (update, _) = driver.receive().pop().unwrap();
    assert_eq!(update.op, Op::CreditUpdate);
    assert_eq!(update.fwd_cnt as usize, sent.len());
}

/// 20 MiB from the guest, then its shutdown; the host reads in step.
#[test]
fn guest_stream_of_20_mib_arrives_whole_after_its_shutdown() {
    const TOTAL: usize = 20 << 20;
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let host = guest_connects(&mut driver, &listener, 1025);
    host.set_nonblocking(true).unwrap();
    let sent = pattern(TOTAL);
    let mut got: Vec<u8> = Vec::with_capacity(TOTAL);
    let mut window = (LARGE_WINDOW as usize, 0usize);
    let mut at = 0;
    let mut chunk = vec![0; 256 * 1024];
    let mut shut = false;
    loop {
        while at < TOTAL {
            let free = window.0 - (at - window.1);
            let count = (48 * 1024).min(TOTAL - at).min(free);
            if count == 0 {
                break;
            }
            driver.send(&packet(1025, PORT, Op::Rw), &sent[at..at + count]);
            at += count;
        }
        if at == TOTAL && !shut {
            shut = true;
            driver.send(
                &Header {
                    flags: VIRTIO_VSOCK_SHUTDOWN_F_SEND,
                    ..packet(1025, PORT, Op::Shutdown)
                },
                b"",
            );
        }
        for (header, _) in driver.receive() {
            window = (header.buf_alloc as usize, header.fwd_cnt as usize);
        }
        match (&host).read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => got.extend(&chunk[..count]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(got == sent);
}

/// 20 MiB from the host, then its end; the guest gives credit as it reads.
#[test]
fn host_stream_of_20_mib_arrives_whole_before_its_shutdown() {
    const TOTAL: usize = 20 << 20;
    let mut driver = Driver::new();
    let (client, request) = host_connects(&mut driver, 1024);
    client.set_nonblocking(true).unwrap();
    let sent = pattern(TOTAL);
    let mut got: Vec<u8> = Vec::with_capacity(TOTAL);
    let mut at = 0;
    'all: loop {
        if at < TOTAL {
            at += (&client).write(&sent[at..]).unwrap_or(0);
            if at == TOTAL {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
        }
        for (header, data) in driver.receive() {
            got.extend(data);
            if header.op == Op::Shutdown {
                assert_eq!(header.flags, VIRTIO_VSOCK_SHUTDOWN_F_SEND);
                break 'all;
            }
        }
        driver.send(
            &Header {
                fwd_cnt: u32::try_from(got.len()).unwrap(),
                ..reply(&request, Op::CreditUpdate)
            },
            b"",
        );
    }
    assert!(got == sent);
}

#[test]
fn connections_with_data_take_turns() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut hosts: Vec<_> = (0..4)
        .map(|i| guest_connects(&mut driver, &listener, 2000 + i))
        .collect();
    for host in &mut hosts {
        host.write_all(&pattern(16 * 1024)).unwrap();
    }
    let order: Vec<_> = driver.receive().iter().map(|(h, _)| h.dst_port).collect();
    for turn in order.chunks_exact(4).take(3) {
        let mut ports = turn.to_vec();
        ports.sort_unstable();
        assert_eq!(ports, [2000, 2001, 2002, 2003], "{order:?}");
    }
}

#[test]
fn receive_ring_without_buffers_keeps_data_until_there_are_some() {
    let mut driver = Driver::without_rx_buffers();
    let listener = driver.listen(PORT);
    driver.send(&packet(1025, PORT, Op::Request), b"");
    driver.serve();
    assert!(driver.muxer.has_pending_rx());
    let mut host = listener.accept().unwrap().0;
    host.write_all(b"hello").unwrap();
    driver.offer_rx(0);
    let received = driver.receive();
    assert_eq!(
        received.iter().map(|(h, _)| h.op).collect::<Vec<_>>(),
        [Op::Response, Op::Rw]
    );
    assert_eq!(received[1].1, b"hello");
    assert!(driver.notified.rx && driver.notified.tx);
}

#[test]
fn payload_in_many_descriptors_arrives_in_order() {
    let mut driver = Driver::new();
    let listener = driver.listen(PORT);
    let mut host = guest_connects(&mut driver, &listener, 1025);
    let data = pattern(20_000);
    let header = Header {
        len: 20_000,
        ..packet(1025, PORT, Op::Rw)
    };
    let bytes = [&header.encode()[..], &data].concat();
    // The header itself is cut too.
    driver.send_scattered(&bytes, &[20, 30, 4096, 4096, 4096, 7706], 0);
    driver.serve();
    let mut got = vec![0; data.len()];
    host.read_exact(&mut got).unwrap();
    assert!(got == data);
}
