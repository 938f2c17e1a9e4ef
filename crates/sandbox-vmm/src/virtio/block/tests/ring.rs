//! A ring does what a thread does with system calls, and nothing else. They need a host that has io_uring.

use std::os::fd::AsRawFd as _;

use io_uring::{opcode, types};
use rustix::fs::{Advice, fadvise};

use super::task::task;
use super::*;
use crate::virtio::block::lane::{Lane, Ring};
use crate::virtio::block::task::{KICK, LANE};
use crate::virtio::chain::Segment;

fn ring() -> Ring {
    Ring::new().expect("this host does not let the tests use io_uring")
}

/// What a lane gives back for requests that it is given at the same time, in any order.
fn through(lane: &mut Lane, bench: &Bench, requests: Vec<Request>) -> Vec<(u16, u32)> {
    let count = requests.len();
    for (head, request) in (0..).zip(requests) {
        lane.take(&bench.disk, &bench.memory, head, request)
            .unwrap();
    }
    let mut done = Vec::new();
    loop {
        done.extend(std::iter::from_fn(|| lane.done()));
        if done.len() == count {
            done.sort_unstable();
            return done;
        }
        if !lane.begin(&bench.disk).unwrap() {
            wait_for(lane.as_fd());
        }
    }
}

fn segment(address: u64, length: u32) -> Segment {
    Segment {
        address: GuestAddress(address),
        length,
    }
}

fn ranges(sectors: &[(u64, u32, u32)]) -> Vec<u8> {
    let entry = |(sector, sectors, flags): &(u64, u32, u32)| {
        let numbers = [sectors.to_le_bytes(), flags.to_le_bytes()].concat();
        [sector.to_le_bytes().to_vec(), numbers].concat()
    };
    sectors.iter().flat_map(entry).collect()
}

#[test]
fn ring_gives_what_system_calls_give() {
    let read = |sector| (VIRTIO_BLK_T_IN, sector, None);
    let list = |kind, sectors: &[(u64, u32, u32)]| (kind, 0, Some(ranges(sectors)));
    let cases = [
        read(3),
        read(DISK_SECTORS - 1),
        read(DISK_SECTORS),
        read(u64::MAX),
        (VIRTIO_BLK_T_FLUSH, 0, Some(Vec::new())),
        list(
            VIRTIO_BLK_T_WRITE_ZEROES,
            &[(2, 2, 1), (9, 1, 0), (15, 1, 1)],
        ),
        list(VIRTIO_BLK_T_DISCARD, &[(4, 1, 0), (15, 2, 0), (6, 1, 0)]),
        list(VIRTIO_BLK_T_DISCARD, &[(4, 1, 1)]),
        list(VIRTIO_BLK_T_DISCARD, &[(4, 0, 0)]),
    ];
    for read_only in [false, true] {
        for (kind, sector, list) in &cases {
            let [calls, kernel] = [false, true].map(|by_ring| {
                let bench = Bench::new(read_only);
                bench.header(*kind, *sector);
                let data = match list {
                    Some(list) => {
                        bench.memory.write_slice(list, GuestAddress(DATA)).unwrap();
                        vec![readable(DATA, u32::try_from(list.len()).unwrap())]
                    }
                    None => vec![writable(DATA, 500), writable(DATA + 0x1000, 524)],
                };
                let chain = [vec![readable(HEADER, 16)], data, vec![writable(STATUS, 1)]].concat();
                let request = bench.parse(&chain).unwrap();
                let used = match by_ring {
                    true => through(&mut Lane::Ring(ring()), &bench, vec![request])[0].1,
                    false => serve(&bench.disk, &bench.memory, &request),
                };
                let mut guest = vec![0; 0x1400];
                bench
                    .memory
                    .read_slice(&mut guest, GuestAddress(DATA))
                    .unwrap();
                let mut disk = vec![0; 512 * 16 + 256];
                bench.file.read_exact_at(&mut disk, 0).unwrap();
                (used, bench.guest_byte(STATUS), guest, disk)
            });
            assert!(
                calls == kernel,
                "{kind} {sector} {list:?} {read_only}: {:?} {:?}",
                (calls.0, calls.1),
                (kernel.0, kernel.1)
            );
        }
    }
}

#[test]
fn ring_reads_many_places_of_a_cold_file_at_the_same_time() {
    const PAGES: u64 = 256;
    let mut file = tempfile::tempfile().unwrap();
    for page in 0..PAGES {
        file.write_all(&[u8::try_from(page).unwrap(); 4096])
            .unwrap();
    }
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let bench = Bench {
        disk: Arc::new(Disk::new(file.try_clone().unwrap(), true, "").unwrap()),
        ..Bench::new(true)
    };
    let pages: Vec<u64> = (0..60).map(|at| at * 97 % PAGES).collect();
    let place = |index: u64| DATA + index * 4096;
    let requests = (0..).zip(&pages).map(|(index, page)| Request {
        operation: Operation::In {
            sector: page * 8,
            data: [segment(place(index), 4096)].into(),
        },
        status: GuestAddress(STATUS + index),
    });
    let done = through(&mut Lane::Ring(ring()), &bench, requests.collect());
    assert!(done.iter().all(|(_, used)| *used == 4097), "{done:?}");
    for (index, page) in (0..).zip(pages) {
        let ends = [place(index), place(index) + 4095].map(|at| u64::from(bench.guest_byte(at)));
        assert_eq!(ends, [page; 2]);
        assert_eq!(bench.guest_byte(STATUS + index), OK);
    }
}

#[test]
fn ring_says_when_the_file_became_shorter() {
    let bench = Bench::new(true);
    bench.file.set_len(3 * 512 + 100).unwrap();
    let requests = [3, 8].map(|sector| Request {
        operation: Operation::In {
            sector,
            data: [segment(DATA, 512)].into(),
        },
        status: GuestAddress(STATUS + sector),
    });
    let done = through(&mut Lane::Ring(ring()), &bench, requests.into());
    assert_eq!(done, [(0, 1), (1, 1)]);
    assert_eq!([3, 8].map(|at| bench.guest_byte(STATUS + at)), [IOERR; 2]);
}

#[test]
fn ring_takes_no_more_than_it_has_entries_for() {
    let bench = Bench::new(false);
    let mut lane = Lane::Ring(ring());
    let flush = || Request {
        operation: Operation::Flush,
        status: GuestAddress(STATUS),
    };
    let mut taken = 0;
    while !lane.is_full() {
        lane.take(&bench.disk, &bench.memory, taken, flush())
            .unwrap();
        taken += 1;
    }
    assert_eq!(taken, 64);
    let mut done = 0;
    while done < taken {
        if lane.done().is_some() {
            done += 1;
        } else if !lane.begin(&bench.disk).unwrap() {
            wait_for(lane.as_fd());
        }
    }
    assert!(!lane.is_full());
}

#[test]
fn ring_without_room_for_an_entry_is_given_up() {
    let bench = Bench::new(false);
    let mut ring = ring();
    ring.fill();
    let mut lane = Lane::Ring(ring);
    let request = Request {
        operation: Operation::In {
            sector: 3,
            data: [segment(DATA, 512)].into(),
        },
        status: GuestAddress(STATUS),
    };
    lane.take(&bench.disk, &bench.memory, 0, request).unwrap();
    assert!(matches!(
        lane.begin(&bench.disk),
        Err(BlockError::Ring(error)) if error.kind() == std::io::ErrorKind::StorageFull
    ));
    lane.settle();
    assert_eq!(lane.done(), None);
    assert!(lane.into_ring().is_none());
}

#[test]
fn more_flushes_than_a_ring_takes_all_come_back() {
    const FLUSHES: u16 = 120;
    for _ in 0..50 {
        let bench = Bench::new(false);
        bench.header(VIRTIO_BLK_T_FLUSH, 0);
        let flush = [readable(HEADER, 16), writable(STATUS, 1)];
        let (queue, used) = queue_of(&bench, &flush, FLUSHES);
        let mut task = task(&bench, queue, Some(Lane::Ring(ring())));
        let done = || {
            bench
                .memory
                .read_obj::<u16>(GuestAddress(used + 2))
                .unwrap()
        };
        task.ready(KICK).unwrap();
        while done() < FLUSHES {
            wait_for(task.lane.as_ref().unwrap().as_fd());
            task.ready(LANE).unwrap();
        }
    }
}

#[test]
fn ring_that_is_settled_has_nothing_under_way_and_serves_the_next() {
    let bench = Bench::new(false);
    let mut lane = Lane::Ring(ring());
    for head in 0..3 {
        let request = Request {
            operation: Operation::In {
                sector: 3,
                data: [segment(DATA, 512)].into(),
            },
            status: GuestAddress(STATUS),
        };
        lane.take(&bench.disk, &bench.memory, head, request)
            .unwrap();
        if head == 1 {
            lane.begin(&bench.disk).unwrap();
        }
    }
    lane.settle();
    assert_eq!(lane.done(), None);
    assert_eq!(bench.guest_byte(DATA), 3, "the kernel was waited for");
    let request = Request {
        operation: Operation::Flush,
        status: GuestAddress(STATUS),
    };
    let mut lane = Lane::Ring(lane.into_ring().unwrap());
    assert_eq!(through(&mut lane, &bench, vec![request]), [(0, 1)]);
}

#[test]
fn ring_does_nothing_but_what_a_disk_needs() {
    let bench = Bench::new(false);
    let mut ring = ring();
    let file = types::Fd(bench.file.as_raw_fd());
    let zeroes = [0_u8; 512];
    let write = opcode::Write::new(file, zeroes.as_ptr(), 512).build();
    let nothing = opcode::Nop::new().build();
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
    for entry in [write, nothing, open] {
        assert_eq!(ring.force(&entry), -libc::EACCES);
    }
    assert_eq!(bench.disk_byte(0), 0);
    assert_eq!(bench.disk_byte(512), 1);
    let refused = ring.add_file(&bench.file).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
}
