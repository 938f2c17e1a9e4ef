//! Both sides in any order: what is held stays bounded, and everything ends.

use std::net::Shutdown;

use proptest::prelude::*;

use super::*;

/// Guest ports in play, and clients of the host at the same time.
const GUEST_PORTS: u32 = 4;
const CLIENTS: usize = 6;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A client of the host's comes, and says where to or something else.
    Client(u32, bool),
    /// One writes, shuts down, reads or leaves.
    Write(usize, usize),
    Shut(usize, bool),
    Read(usize),
    Leave(usize),
    /// The guest sends a packet, to the port of one of the connections that it knows or to one where somebody listens.
    Guest(Packet),
    /// The guest takes what there is for it.
    Receive,
    /// What anybody waits for is overdue.
    Late,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    guest: u32,
    /// Which host port of those known; beyond them, the listener's.
    host: usize,
    op: u16,
    length: usize,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    let packet = (
        (0..GUEST_PORTS, 0..CLIENTS + 2),
        prop_oneof![6 => 1..8_u16, 1 => any::<u16>()],
        prop_oneof![Just(0_usize), 1..3000_usize],
        0..4_u32,
        prop_oneof![3 => Just(driver::GUEST_WINDOW), 1 => Just(0), 1 => any::<u32>()],
        prop_oneof![4 => Just(0_u32), 1 => any::<u32>()],
    );
    let packet = packet.prop_map(
        |((guest, host), op, length, flags, buf_alloc, fwd_cnt)| Packet {
            guest,
            host,
            op,
            length,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    );
    prop_oneof![
        3 => (0..GUEST_PORTS, prop::bool::weighted(0.9)).prop_map(|(port, whole)| Step::Client(port, whole)),
        2 => (client(), 1..20_000_usize).prop_map(|(client, count)| Step::Write(client, count)),
        1 => (client(), any::<bool>()).prop_map(|(client, write)| Step::Shut(client, write)),
        1 => client().prop_map(Step::Read),
        1 => client().prop_map(Step::Leave),
        8 => packet.prop_map(Step::Guest),
        4 => Just(Step::Receive),
        1 => Just(Step::Late),
    ]
}

struct Walk {
    driver: Driver,
    listener: UnixListener,
    clients: Vec<UnixStream>,
    /// Host ports that the guest heard of.
    known: Vec<u32>,
    gives_buffers: bool,
}

impl Walk {
    fn new(gives_buffers: bool) -> Self {
        let driver = match gives_buffers {
            true => Driver::new(),
            false => Driver::without_rx_buffers(),
        };
        let listener = driver.listen(PORT);
        listener.set_nonblocking(true).unwrap();
        Self {
            driver,
            listener,
            clients: Vec::new(),
            known: Vec::new(),
            gives_buffers,
        }
    }

    fn add(&mut self, client: UnixStream) {
        client.set_nonblocking(true).unwrap();
        self.clients.truncate(CLIENTS - 1);
        self.clients.insert(0, client);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Client(port, whole) => {
                let mut client = UnixStream::connect(self.driver.path()).unwrap();
                let line = format!("CONNECT {port}\n");
                let said = if whole { line.len() } else { line.len() / 2 };
                client.write_all(&line.as_bytes()[..said]).unwrap();
                self.add(client);
            }
            Step::Write(client, count) => {
                if let Some(mut client) = self.clients.get(client) {
                    let _ = client.write(&vec![0x5a; count]);
                }
            }
            Step::Shut(client, write) => {
                let how = if write {
                    Shutdown::Write
                } else {
                    Shutdown::Read
                };
                if let Some(client) = self.clients.get(client) {
                    let _ = client.shutdown(how);
                }
            }
            Step::Read(client) => {
                if let Some(mut client) = self.clients.get(client) {
                    let _ = client.read(&mut [0; 64 * 1024]);
                }
            }
            Step::Leave(client) => {
                if client < self.clients.len() {
                    self.clients.remove(client);
                }
            }
            Step::Guest(packet) => self.send(packet),
            Step::Receive if self.gives_buffers => self.receive(),
            Step::Receive => {}
            Step::Late => self.late(),
        }
        self.driver.serve();
        while let Ok((client, _)) = self.listener.accept() {
            self.add(client);
        }
    }

    fn send(&mut self, packet: Packet) {
        let host = self.known.get(packet.host).copied().unwrap_or(PORT);
        let header = Header {
            flags: packet.flags,
            buf_alloc: packet.buf_alloc,
            fwd_cnt: packet.fwd_cnt,
            ..driver::packet(packet.guest, host, Op::from(packet.op))
        };
        self.driver.send(&header, &vec![0xa5; packet.length]);
    }

    fn receive(&mut self) {
        for (header, _) in self.driver.receive() {
            if !self.known.contains(&header.src_port) && header.src_port != PORT {
                self.known.truncate(CLIENTS - 1);
                self.known.insert(0, header.src_port);
            }
        }
    }

    /// Time does not pass in a unit test: what is due is moved instead.
    fn late(&mut self) {
        let muxer = &mut self.driver.muxer;
        let past = Instant::now() - Duration::from_secs(1);
        for handshake in muxer.handshakes.values_mut() {
            handshake.deadline = past;
        }
        for (_, id) in std::mem::take(&mut muxer.deadlines) {
            if let Some((_, at)) = muxer
                .endpoints
                .get_mut(&id)
                .and_then(|it| it.deadline.as_mut())
            {
                *at = past;
            }
            muxer.deadlines.insert((past, id));
        }
        muxer.armed = None;
        muxer.arm_timer().unwrap();
        // The timer's shortest time.
        while !muxer.handshakes.is_empty() || !muxer.deadlines.is_empty() {
            let before = (muxer.handshakes.len(), muxer.deadlines.len());
            let mut fds = [rustix::event::PollFd::new(
                &*muxer,
                rustix::event::PollFlags::IN,
            )];
            let limit = rustix::time::Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1);
            muxer.process_host().unwrap();
            if (muxer.handshakes.len(), muxer.deadlines.len()) != before {
                break;
            }
        }
    }

    fn is_bounded(&self) -> Result<(), TestCaseError> {
        let muxer = &self.driver.muxer;
        let connections = muxer.connections();
        prop_assert!(connections <= MAX_CONNECTIONS);
        prop_assert!(muxer.by_ports.len() <= connections);
        prop_assert!(muxer.deadlines.len() <= connections);
        prop_assert!(
            muxer.queue.len() <= connections,
            "{} places for {connections}",
            muxer.queue.len()
        );
        prop_assert!(muxer.refusals.len() <= MAX_REFUSALS);
        prop_assert!(muxer.handshakes.len() <= MAX_HANDSHAKES);
        for endpoint in muxer.endpoints.values() {
            prop_assert!(endpoint.held() <= LARGE_WINDOW as usize, "{:?}", endpoint);
        }
        for (at, id) in &muxer.deadlines {
            let deadline = muxer.endpoints.get(id).and_then(|it| it.deadline);
            prop_assert_eq!(deadline.map(|(_, due)| due), Some(*at));
        }
        Ok(())
    }

    /// Everybody leaves: first the clients, then the guest.
    fn end(mut self) -> Result<(), TestCaseError> {
        self.clients.clear();
        self.driver.serve();
        let all: Vec<_> = self.driver.muxer.by_ports.keys().copied().collect();
        for ports in all {
            let reset = driver::packet(ports.guest, ports.host, Op::Rst);
            self.driver.send(&reset, b"");
        }
        self.driver.serve();
        let left: Vec<_> = self.driver.muxer.endpoints.values().collect();
        prop_assert!(left.is_empty(), "{:?}", left);
        prop_assert!(self.driver.muxer.by_ports.is_empty());
        prop_assert!(self.driver.muxer.deadlines.is_empty());
        prop_assert!(self.driver.muxer.queue.is_empty());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn both_sides_in_any_order_hold_no_more_than_they_may_and_end(
        gives_buffers in prop::bool::weighted(0.8),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut walk = Walk::new(gives_buffers);
        for step in steps {
            walk.take(step);
            walk.is_bounded()?;
        }
        walk.end()?;
    }
}

#[test]
fn clients_that_leave_a_guest_without_buffers_leave_no_place_in_the_queue() {
    let mut driver = Driver::without_rx_buffers();
    for _ in 0..100 {
        let mut client = UnixStream::connect(driver.path()).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        driver.serve();
        assert_eq!(driver.muxer.connections(), 1);
        drop(client);
        driver.serve();
    }
    assert_eq!(driver.muxer.connections(), 0);
    assert!(driver.muxer.queue.is_empty());
}
