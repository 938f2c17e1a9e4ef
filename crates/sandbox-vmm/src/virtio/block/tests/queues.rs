//! The device as a driver sets it up.

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_MQ;

use super::*;
use crate::virtio::WorkerThread;

/// What a driver has of a queue.
struct DriverQueue<'a> {
    mock: MockSplitQueue<'a, GuestMemoryMmap>,
    kick: EventFd,
}

/// A queue with a read of `sector` in its ring, to a page of its own.
fn queue(bench: &Bench, number: u64, sector: u64) -> (DriverQueue<'_>, ActiveQueue) {
    let place = number * 0x1000;
    let mut header = [0; 16];
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let memory = &bench.memory;
    memory
        .write_slice(&header, GuestAddress(HEADER + place))
        .unwrap();
    let start = GuestAddress(0x4_0000 + number * 0x1_0000);
    let mock = MockSplitQueue::create(memory, start, 16);
    let chain = [
        readable(HEADER + place, 16),
        writable(DATA + place, 512),
        writable(STATUS + place, 1),
    ];
    mock.build_desc_chain(&chain).unwrap();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let active = ActiveQueue {
        queue: mock.create_queue().unwrap(),
        kick: kick.try_clone().unwrap(),
    };
    (DriverQueue { mock, kick }, active)
}

impl DriverQueue<'_> {
    fn used(&self, bench: &Bench) -> u16 {
        let index = GuestAddress(self.mock.used_addr().0 + 2);
        bench.memory.read_obj(index).unwrap()
    }
}

fn device(bench: &Bench, queues: usize) -> Block {
    let file = bench.file.try_clone().unwrap();
    Block::new("vda", file, true, "x", queues).unwrap()
}

/// Has it activated with the queues, and returns what it interrupts with.
fn activate(
    device: &mut Block,
    bench: &Bench,
    queues: Vec<Option<ActiveQueue>>,
    features: u64,
) -> Result<EventFd, ActivateError> {
    let irq = EventFd::new(0).unwrap();
    let thread = |(name, _): (String, _)| WorkerThread::spawn(&name, || {}).unwrap();
    device.activate(Activation {
        memory: bench.memory.clone(),
        queues,
        interrupt: Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap()),
        features,
        thread: thread(device.thread()),
        more_threads: device.more_threads().into_iter().map(thread).collect(),
    })?;
    Ok(irq)
}

#[test]
fn device_serves_again_after_a_reset() {
    let bench = Bench::new(true);
    let mut device = device(&bench, 1);
    let mut sectors = [0; 8];
    device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), DISK_SECTORS);
    for sector in [2_u8, 9] {
        let (driver, active) = queue(&bench, 0, sector.into());
        let irq = activate(&mut device, &bench, vec![Some(active)], 0).unwrap();
        driver.kick.write(1).unwrap();
        wait_readable(&irq);
        device.reset();
        assert_eq!(bench.guest_byte(DATA), sector);
        let ring = GuestAddress(driver.mock.avail_addr().0 + 2);
        bench.memory.write_obj(0_u16, ring).unwrap();
    }
}

#[test]
fn queues_share_what_a_driver_has_memory_for() {
    for (queues, entries) in [(1, 256), (2, 128), (3, 64), (4, 64)] {
        let device = device(&Bench::new(true), queues);
        assert_eq!(device.queue_max_sizes(), vec![entries; queues]);
        let offers_several = device.features() & (1 << VIRTIO_BLK_F_MQ) != 0;
        assert_eq!(offers_several, queues > 1);
        let mut segments = [0; 4];
        device.read_config(12, &mut segments);
        assert_eq!(u32::from_le_bytes(segments), u32::from(entries) - 2);
        let mut number = [0; 2];
        device.read_config(34, &mut number);
        assert_eq!(usize::from(u16::from_le_bytes(number)), queues);
    }
}

#[test]
fn each_queue_is_served_also_when_one_is_left_out() {
    let bench = Bench::new(true);
    serve_three_of_four(&bench, device(&bench, 4));
    let bench = Bench::new(true);
    let device = device(&bench, 4).without_rings();
    assert_eq!(device.more_threads().len(), 3 + 4);
    serve_three_of_four(&bench, device);
}

fn serve_three_of_four(bench: &Bench, mut device: Block) {
    for round in [0, 1] {
        let (drivers, active): (Vec<_>, Vec<_>) = (0..3)
            .map(|number| queue(bench, number, 3 + number + round))
            .unzip();
        let mut active: Vec<_> = active.into_iter().map(Some).collect();
        active.insert(1, None);
        let irq = activate(&mut device, bench, active, 1 << VIRTIO_BLK_F_MQ).unwrap();
        for driver in &drivers {
            driver.kick.write(1).unwrap();
        }
        while drivers.iter().any(|driver| driver.used(bench) == 0) {
            wait_readable(&irq);
            irq.read().unwrap();
        }
        device.reset();
        for (number, sector) in (0..).zip([3_u8, 4, 5]) {
            let read = bench.guest_byte(DATA + number * 0x1000);
            assert_eq!(u64::from(read), u64::from(sector) + round);
        }
        for driver in drivers {
            for index in [driver.mock.avail_addr(), driver.mock.used_addr()] {
                let index = GuestAddress(index.0 + 2);
                bench.memory.write_obj(0_u16, index).unwrap();
            }
        }
    }
}

#[test]
fn driver_that_knows_of_one_queue_has_one() {
    let bench = Bench::new(true);
    let mut device = device(&bench, 2);
    let (first, one) = queue(&bench, 0, 7);
    let (second, other) = queue(&bench, 1, 8);
    let queues = vec![Some(one), Some(other)];
    let irq = activate(&mut device, &bench, queues, 0).unwrap();
    second.kick.write(1).unwrap();
    first.kick.write(1).unwrap();
    wait_readable(&irq);
    device.reset();
    assert_eq!((first.used(&bench), second.used(&bench)), (1, 0));
}

#[test]
fn device_without_its_first_queue_comes_up_with_the_next_driver() {
    let bench = Bench::new(true);
    let mut device = device(&bench, 2);
    let (_, active) = queue(&bench, 1, 7);
    let queues = vec![None, Some(active)];
    let refused = activate(&mut device, &bench, queues, 1 << VIRTIO_BLK_F_MQ);
    assert!(matches!(
        refused,
        Err(ActivateError::QueueDisabled { index: 0 })
    ));
    device.reset();
    let (driver, active) = queue(&bench, 0, 7);
    let irq = activate(&mut device, &bench, vec![Some(active), None], 0).unwrap();
    driver.kick.write(1).unwrap();
    wait_readable(&irq);
    device.reset();
    assert_eq!(bench.guest_byte(DATA), 7);
}

#[test]
fn queues_are_from_one_to_four() {
    for count in [0, 5] {
        let file = tempfile::tempfile().unwrap();
        let refused = Block::new("vda", file, true, "x", count).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("the disk must have from 1 to 4 queues, not {count}")
        );
    }
}
