use proptest::prelude::*;

use super::*;

const WINDOW: u32 = 1000;
const SEND: u32 = VIRTIO_VSOCK_SHUTDOWN_F_SEND;
const RECEIVE: u32 = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE;

fn guest(op: Op) -> GuestPacket {
    GuestPacket {
        op,
        len: 0,
        flags: 0,
        buf_alloc: 4096,
        fwd_cnt: 0,
    }
}

fn data(len: u32) -> Event {
    Event::Guest(GuestPacket {
        len,
        ..guest(Op::Rw)
    })
}

fn shutdown(flags: u32) -> Event {
    Event::Guest(GuestPacket {
        flags,
        ..guest(Op::Shutdown)
    })
}

/// A connection that the guest opened, in [`Phase::Open`].
fn open() -> Connection {
    let mut connection = Connection::from_guest(WINDOW, 4096, 0);
    assert_eq!(connection.next(true), Some(Outgoing::Response));
    assert_eq!(
        connection.handle(Event::Sent(Outgoing::Response)),
        Actions::default()
    );
    assert_eq!(connection.phase(), Phase::Open);
    connection
}

/// Puts what is due in the ring.
fn send(connection: &mut Connection, readable: bool) -> (Option<Outgoing>, Actions) {
    let outgoing = connection.next(readable);
    let actions = outgoing
        .map(|o| connection.handle(Event::Sent(o)))
        .unwrap_or_default();
    (outgoing, actions)
}

#[test]
fn host_request_accepted_greets_the_client() {
    let mut connection = Connection::to_guest(WINDOW);
    assert_eq!(send(&mut connection, true).0, Some(Outgoing::Request));
    assert_eq!(connection.waits_for(), Some(Wait::Response));
    assert_eq!(
        connection.next(true),
        None,
        "no data before the guest accepts"
    );
    let actions = connection.handle(Event::Guest(guest(Op::Response)));
    assert!(actions.greet);
    assert_eq!(connection.waits_for(), None);
    assert_eq!(connection.next(true), Some(Outgoing::Data { max: 4096 }));
}

#[test]
fn host_request_refused_closes_without_greeting() {
    let mut connection = Connection::to_guest(WINDOW);
    send(&mut connection, false);
    let actions = connection.handle(Event::Guest(guest(Op::Rst)));
    assert!(actions.close && !actions.greet);
}

#[test]
fn host_request_unanswered_resets_the_guest() {
    let mut connection = Connection::to_guest(WINDOW);
    send(&mut connection, false);
    let actions = connection.handle(Event::TimedOut);
    assert!(
        actions.shutdown_read && actions.shutdown_write,
        "the client sees the end"
    );
    let (outgoing, actions) = send(&mut connection, false);
    assert_eq!(outgoing, Some(Outgoing::Reset));
    assert!(actions.close);
}

#[test]
fn host_client_gone_before_the_guest_knows_leaves_no_trace() {
    let mut connection = Connection::to_guest(WINDOW);
    assert!(connection.handle(Event::HostReaderGone).close);
    assert_eq!(connection.next(true), None);
}

#[test]
fn host_eof_half_closes_and_the_other_way_goes_on() {
    let mut connection = open();
    connection.handle(Event::HostEof);
    assert_eq!(
        send(&mut connection, true).0,
        Some(Outgoing::Shutdown { flags: SEND })
    );
    assert_eq!(connection.phase(), Phase::Open);
    assert!(connection.handle(data(10)).deliver);
    connection.handle(Event::Forwarded(10));
    let actions = connection.handle(shutdown(SEND));
    assert!(actions.shutdown_write);
    let (outgoing, actions) = send(&mut connection, true);
    assert_eq!(outgoing, Some(Outgoing::Reset));
    assert!(actions.close);
}

#[test]
fn guest_half_close_waits_for_buffered_bytes() {
    let mut connection = open();
    assert!(connection.handle(data(10)).deliver);
    let actions = connection.handle(shutdown(SEND));
    assert!(!actions.shutdown_write, "ten bytes are not out yet");
    assert!(!connection.handle(Event::Forwarded(9)).shutdown_write);
    assert!(connection.handle(Event::Forwarded(1)).shutdown_write);
    assert_eq!(connection.next(true), Some(Outgoing::Data { max: 4096 }));
}

#[test]
fn guest_close_frees_the_guest_and_drains_to_the_host() {
    let mut connection = open();
    assert!(connection.handle(data(10)).deliver);
    let actions = connection.handle(shutdown(SHUTDOWN_BOTH));
    assert!(actions.shutdown_read && !actions.shutdown_write);
    let (outgoing, actions) = send(&mut connection, true);
    assert_eq!(outgoing, Some(Outgoing::Reset));
    assert!(!actions.close, "ten bytes are not out yet");
    let actions = connection.handle(Event::Forwarded(10));
    assert!(actions.shutdown_write && actions.close);
}

#[test]
fn host_gone_tells_the_guest_and_waits_for_its_reset() {
    let mut connection = open();
    connection.handle(data(10));
    assert!(connection.handle(Event::HostReaderGone).discard);
    connection.handle(Event::HostEof);
    assert_eq!(
        send(&mut connection, false).0,
        Some(Outgoing::Shutdown {
            flags: SHUTDOWN_BOTH
        })
    );
    assert_eq!(connection.waits_for(), Some(Wait::Reset));
    assert_eq!(
        connection.handle(data(5)),
        Actions::default(),
        "late data is ignored"
    );
    assert!(connection.handle(Event::Guest(guest(Op::Rst))).close);
}

#[test]
fn host_gone_and_guest_silent_resets_after_the_time_limit() {
    let mut connection = open();
    connection.handle(Event::HostReaderGone);
    connection.handle(Event::HostEof);
    send(&mut connection, false);
    connection.handle(Event::TimedOut);
    let (outgoing, actions) = send(&mut connection, false);
    assert_eq!(outgoing, Some(Outgoing::Reset));
    assert!(actions.close);
}

#[test]
fn guest_sending_more_than_its_credit_is_reset() {
    let mut connection = open();
    assert!(connection.handle(data(WINDOW)).deliver);
    let actions = connection.handle(data(1));
    assert!(actions.discard && actions.shutdown_read && actions.shutdown_write && !actions.deliver);
    assert_eq!(connection.next(true), Some(Outgoing::Reset));
}

#[test]
fn guest_acknowledging_what_it_never_got_is_reset() {
    let mut connection = open();
    connection.handle(Event::Guest(GuestPacket {
        fwd_cnt: 1,
        ..guest(Op::CreditUpdate)
    }));
    assert_eq!(connection.next(true), Some(Outgoing::Reset));
}

#[test]
fn guest_data_after_its_shutdown_is_reset() {
    let mut connection = open();
    connection.handle(shutdown(SEND));
    assert!(!connection.handle(data(1)).deliver);
    assert_eq!(connection.next(true), Some(Outgoing::Reset));
}

#[test]
fn guest_request_for_an_open_connection_is_reset() {
    let mut connection = open();
    connection.handle(Event::Guest(guest(Op::Request)));
    assert_eq!(connection.next(true), Some(Outgoing::Reset));
}

#[test]
fn guest_credit_used_up_asks_once_and_goes_on_with_an_update() {
    let mut connection = open();
    connection.handle(Event::Sent(Outgoing::Data { max: 4096 }));
    assert_eq!(send(&mut connection, true).0, Some(Outgoing::CreditRequest));
    assert_eq!(connection.next(true), None);
    connection.handle(Event::Guest(guest(Op::CreditUpdate)));
    assert_eq!(
        connection.next(true),
        None,
        "an update without credit is not asked about again"
    );
    connection.handle(Event::Guest(GuestPacket {
        fwd_cnt: 96,
        ..guest(Op::CreditUpdate)
    }));
    assert_eq!(connection.next(true), Some(Outgoing::Data { max: 96 }));
}

#[test]
fn guest_shrinking_its_buffer_below_what_is_under_way_stalls_only() {
    let mut connection = open();
    connection.handle(Event::Sent(Outgoing::Data { max: 4096 }));
    connection.handle(Event::Guest(GuestPacket {
        buf_alloc: 10,
        ..guest(Op::CreditUpdate)
    }));
    assert_eq!(connection.phase(), Phase::Open);
    assert_eq!(connection.next(true), Some(Outgoing::CreditRequest));
}

#[test]
fn host_taking_a_quarter_of_the_window_tells_the_guest() {
    let mut connection = open();
    connection.handle(data(WINDOW));
    connection.handle(Event::Forwarded(WINDOW / 4 - 1));
    assert_eq!(connection.next(false), None);
    connection.handle(Event::Forwarded(1));
    assert_eq!(send(&mut connection, false).0, Some(Outgoing::CreditUpdate));
    assert_eq!(connection.own_credit(), (WINDOW, WINDOW / 4));
}

#[test]
fn guest_asking_for_credit_is_answered() {
    let mut connection = open();
    connection.handle(Event::Guest(guest(Op::CreditRequest)));
    assert_eq!(send(&mut connection, false).0, Some(Outgoing::CreditUpdate));
    assert_eq!(connection.next(false), None);
}

#[test]
fn guest_refusing_to_receive_ends_the_host_direction() {
    let mut connection = open();
    assert!(connection.handle(shutdown(RECEIVE)).shutdown_read);
    assert_eq!(connection.next(true), None);
    assert!(connection.handle(data(1)).deliver);
}

#[test]
fn credit_counters_wrap() {
    let mut credit = Credit::new(WINDOW);
    credit.peer_says(WINDOW, 0).unwrap();
    for _ in 0..(u32::MAX / WINDOW + 10) {
        credit.receive(WINDOW).unwrap();
        assert!(credit.receive(1).is_err());
        credit.forwarded(WINDOW);
        credit.sent(WINDOW);
        assert_eq!(credit.available(), 0);
        credit.peer_says(WINDOW, credit.tx_cnt()).unwrap();
        assert_eq!(credit.available(), WINDOW);
    }
}

impl Credit {
    fn tx_cnt(&self) -> u32 {
        // A window of any size reveals it: what is available is `tx_cnt` short of the window.
        let mut copy = *self;
        let mut low = 0u32;
        if copy.peer_says(u32::MAX, 0).is_ok() {
            low = u32::MAX - copy.available();
        }
        low
    }
}

fn arbitrary_event() -> impl Strategy<Value = Event> {
    let op = prop_oneof![
        8 => Just(Op::Rw),
        2 => Just(Op::Shutdown),
        2 => Just(Op::CreditUpdate),
        1 => Just(Op::CreditRequest),
        1 => Just(Op::Response),
        1 => Just(Op::Request),
        1 => Just(Op::Rst),
        1 => (8u16..).prop_map(Op::Unknown),
    ];
    prop_oneof![
        10 => (op, 0..WINDOW + 2, 0..4u32, prop_oneof![Just(4096u32), any::<u32>()], prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)])
            .prop_map(|(op, len, flags, buf_alloc, fwd_cnt)| Event::Guest(GuestPacket {
                op, len, flags, buf_alloc, fwd_cnt: fwd_cnt.unwrap_or(u32::MAX)
            })),
        5 => (1..WINDOW).prop_map(Event::Forwarded),
        1 => Just(Event::HostEof),
        1 => Just(Event::HostReaderGone),
        1 => Just(Event::TimedOut),
        // Stands for: take what is due.
        8 => (1..5000u32).prop_map(|max| Event::Sent(Outgoing::Data { max })),
    ]
}

/// What an honest observer counts beside the connection.
#[derive(Default)]
struct Ledger {
    delivered: u64,
    forwarded: u64,
    discarded: u64,
    sent: u64,
    acknowledged: u64,
    largest_window: u64,
    write_shut: bool,
    ended_reading: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn connection_any_events_keep_credit_and_order(
        from_guest in any::<bool>(),
        events in proptest::collection::vec(arbitrary_event(), 1..60),
    ) {
        let mut ledger = Ledger { largest_window: if from_guest { 4096 } else { 0 }, ..Ledger::default() };
        let mut connection =
            if from_guest { Connection::from_guest(WINDOW, 4096, 0) } else { Connection::to_guest(WINDOW) };
        for mut event in events {
            let buffered = ledger.delivered - ledger.forwarded - ledger.discarded;
            match &mut event {
                Event::Guest(packet) if packet.fwd_cnt == u32::MAX => {
                    // The honest guest: it read everything that it was sent.
                    packet.fwd_cnt = u32::try_from(ledger.sent).unwrap();
                }
                Event::Forwarded(bytes) => {
                    *bytes = (*bytes).min(u32::try_from(buffered).unwrap());
                    ledger.forwarded += u64::from(*bytes);
                }
                Event::Sent(Outgoing::Data { max }) => {
                    let Some(mut outgoing) = connection.next(!ledger.ended_reading) else { continue };
                    if let Outgoing::Data { max: allowed } = &mut outgoing {
                        prop_assert!(*allowed > 0);
                        prop_assert!(!ledger.ended_reading);
                        *allowed = (*max).min(*allowed);
                        ledger.sent += u64::from(*allowed);
                    }
                    event = Event::Sent(outgoing);
                }
                Event::HostEof => ledger.ended_reading = true,
                _ => {}
            }
            if let Event::Guest(packet) = event {
                ledger.largest_window = ledger.largest_window.max(u64::from(packet.buf_alloc));
            }
            let phase = connection.phase();
            let actions = connection.handle(event);
            if let Event::Guest(packet) = event
                && !matches!(connection.phase(), Phase::Resetting | Phase::Gone)
            {
                // Whatever it says and is believed, is what counts.
                ledger.acknowledged = u64::from(packet.fwd_cnt).min(ledger.sent);
            }
            if actions.discard {
                ledger.discarded = ledger.delivered - ledger.forwarded;
            }
            if let Event::Guest(packet) = event && actions.deliver {
                prop_assert_eq!(phase, Phase::Open);
                prop_assert!(!ledger.write_shut, "bytes after the host saw end-of-file");
                ledger.delivered += u64::from(packet.len);
            }
            let buffered = ledger.delivered - ledger.forwarded - ledger.discarded;
            prop_assert!(buffered <= u64::from(WINDOW), "{} bytes held", buffered);
            prop_assert_eq!(u64::from(connection.credit.buffered()), buffered);
            prop_assert!(ledger.sent - ledger.acknowledged <= ledger.largest_window.max(4096));
            if actions.shutdown_write {
                prop_assert!(!ledger.write_shut, "shut twice");
                prop_assert_eq!(buffered, 0, "end-of-file before the last byte");
                ledger.write_shut = true;
            }
            if actions.close {
                prop_assert_eq!(connection.phase(), Phase::Gone);
                prop_assert!(ledger.write_shut);
                prop_assert_eq!(connection.next(true), None);
                return Ok(());
            }
            if phase == Phase::Gone {
                prop_assert_eq!(connection.phase(), Phase::Gone, "nothing comes back to life");
                prop_assert_eq!(connection.next(true), None);
            }
        }
    }
}

/// A connection after some events, of which none that cannot be; `None` if that was its end.
fn after(from_guest: bool, events: Vec<Event>) -> Option<Connection> {
    let mut connection = match from_guest {
        true => Connection::from_guest(WINDOW, 4096, 0),
        false => Connection::to_guest(WINDOW),
    };
    let mut sent = 0_u32;
    for event in events {
        let event = match event {
            // The honest guest, as above.
            Event::Guest(packet) if packet.fwd_cnt == u32::MAX => Event::Guest(GuestPacket {
                fwd_cnt: sent,
                ..packet
            }),
            Event::Forwarded(bytes) => Event::Forwarded(bytes.min(connection.credit.buffered())),
            Event::Sent(Outgoing::Data { max }) => match connection.next(true) {
                Some(Outgoing::Data { max: allowed }) => {
                    let max = max.min(allowed);
                    sent = sent.wrapping_add(max);
                    Event::Sent(Outgoing::Data { max })
                }
                Some(other) => Event::Sent(other),
                None => continue,
            },
            other => other,
        };
        if connection.handle(event).close {
            return None;
        }
    }
    Some(connection)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn connection_any_events_end_when_the_host_is_gone_and_the_guest_silent(
        from_guest in any::<bool>(),
        events in proptest::collection::vec(arbitrary_event(), 0..60),
    ) {
        let Some(mut connection) = after(from_guest, events) else { return Ok(()) };
        for event in [Event::HostEof, Event::HostReaderGone] {
            if connection.handle(event).close {
                return Ok(());
            }
        }
        // A request, a shutdown, what they wait for, a reset.
        let mut ended = false;
        for _ in 0..8 {
            let event = match connection.next(false) {
                Some(outgoing) => Event::Sent(outgoing),
                None if connection.waits_for().is_some() => Event::TimedOut,
                None => break,
            };
            ended = connection.handle(event).close;
            if ended {
                break;
            }
        }
        prop_assert!(ended, "it is stuck: {:?}", connection);
    }

    #[test]
    fn connection_any_events_end_when_the_guest_resets_and_the_host_reads(
        from_guest in any::<bool>(),
        events in proptest::collection::vec(arbitrary_event(), 0..60),
    ) {
        let Some(mut connection) = after(from_guest, events) else { return Ok(()) };
        let reset = connection.handle(Event::Guest(guest(Op::Rst)));
        prop_assert_eq!(connection.next(true), None);
        let rest = connection.credit.buffered();
        prop_assert!(reset.close || connection.handle(Event::Forwarded(rest)).close);
    }
}
