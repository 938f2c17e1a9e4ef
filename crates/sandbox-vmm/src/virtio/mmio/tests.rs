//! A driver's view of the registers.

use std::sync::{Arc, Mutex};

use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;

use super::*;
use crate::seccomp::ThreadKind;
use crate::virtio::{ActivateError, Registers};

const FEATURE: u64 = 1 << 5;
const CONFIG: [u8; 5] = [1, 2, 3, 4, 5];

#[derive(Debug, Default)]
struct Seen {
    activations: Vec<(u64, Vec<Option<u16>>)>,
    resets: usize,
    config: Vec<(u64, Vec<u8>)>,
    config_reads: usize,
}

struct Probe {
    seen: Arc<Mutex<Seen>>,
    /// What it does that other devices do not.
    ways: Ways,
    config: [u8; 5],
}

#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    refuses: bool,
    sees_config_reads: bool,
    is_served_elsewhere: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn thread(&self) -> (String, ThreadKind) {
        ("probe".to_owned(), ThreadKind::Rng)
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        FEATURE | 1 << 40
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.seen.lock().unwrap().config_reads += 1;
        crate::virtio::copy_config(&self.config, offset, data);
    }
    fn sees_config_reads(&self) -> bool {
        self.ways.sees_config_reads
    }
    fn is_served_elsewhere(&self) -> bool {
        self.ways.is_served_elsewhere
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let (from, to) = (usize::try_from(offset).unwrap(), data.len());
        self.config[from..from + to].copy_from_slice(data);
        let mut seen = self.seen.lock().unwrap();
        seen.config.push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let sizes = activation
            .queues
            .iter()
            .map(|active| active.as_ref().map(|active| active.queue.size()))
            .collect();
        let mut seen = self.seen.lock().unwrap();
        seen.activations.push((activation.features, sizes));
        if self.ways.refuses {
            return Err(ActivateError::QueueDisabled { index: 0 });
        }
        Ok(())
    }
    fn reset(&mut self) {
        self.config = CONFIG;
        self.seen.lock().unwrap().resets += 1;
    }
}

struct Driver {
    transport: MmioTransport,
    seen: Arc<Mutex<Seen>>,
    irq: EventFd,
    memory: GuestMemoryMmap,
}

impl Driver {
    fn new() -> Self {
        Self::of(Ways::default())
    }

    fn of(ways: Ways) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let probe = Probe {
            seen: Arc::clone(&seen),
            ways,
            config: CONFIG,
        };
        let interrupt = Interrupt::new(irq.try_clone().unwrap(), Registers::alone().unwrap());
        let thread = WorkerThread::spawn("probe", || {}).unwrap();
        let transport =
            MmioTransport::new(Box::new(probe), memory.clone(), interrupt, thread).unwrap();
        Self {
            transport,
            seen,
            irq,
            memory,
        }
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut word = [0xff; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn set_features(&mut self, features: u64) {
        for selected in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, selected);
            self.set(register::DRIVER_FEATURES, half(features, selected));
        }
    }

    fn up_to_features_ok(&mut self, features: u64) -> u32 {
        self.set(register::STATUS, 1);
        self.set(register::STATUS, 3);
        self.set_features(features);
        self.set(register::STATUS, 11);
        self.get(register::STATUS)
    }

    fn set_up_queue(&mut self, index: u32, size: u32, address: u32) {
        self.set(register::QUEUE_SEL, index);
        self.set(register::QUEUE_SIZE, size);
        self.set(register::QUEUE_DESC_LOW, address);
        self.set(register::QUEUE_DRIVER_LOW, address + 0x400);
        self.set(register::QUEUE_DEVICE_LOW, address + 0x800);
        self.set(register::QUEUE_READY, 1);
    }
}

#[test]
fn identity_registers_say_what_the_device_is() {
    let mut driver = Driver::new();
    assert_eq!(driver.get(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(register::VERSION), 2);
    assert_eq!(driver.get(register::DEVICE_ID), 42);
    assert_eq!(driver.get(register::SHM_LEN_LOW), u32::MAX);
    driver.set(register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.get(register::DEVICE_FEATURES), 1 | 1 << 8);
    driver.set(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(register::DEVICE_FEATURES), 0);
}

#[test]
fn driver_that_follows_the_rules_activates_the_device_once() {
    let mut driver = Driver::new();
    assert_eq!(driver.up_to_features_ok(FEATURE | VERSION_1), 11);
    driver.set_up_queue(0, 4, 0x1000);
    driver.set(register::STATUS, 15);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15);
    let seen = driver.seen.lock().unwrap();
    assert_eq!(
        seen.activations,
        [(FEATURE | VERSION_1, vec![Some(4), None])]
    );
}

#[test]
fn features_not_offered_or_without_version_1_are_refused() {
    for features in [FEATURE, VERSION_1 | 2, u64::MAX] {
        let mut driver = Driver::new();
        assert_eq!(driver.up_to_features_ok(features), 3, "{features:#x}");
        driver.set(register::STATUS, 15);
        assert_eq!(driver.get(register::STATUS), 3);
        assert!(driver.seen.lock().unwrap().activations.is_empty());
    }
}

#[test]
fn queue_outside_guest_memory_needs_a_reset() {
    let mut driver = Driver::new();
    driver.up_to_features_ok(VERSION_1);
    driver.set_up_queue(0, 4, 0x00ff_0000);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15 | 64);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1 | 2);
    assert!(driver.irq.read().is_ok());
    assert!(driver.seen.lock().unwrap().activations.is_empty());
    driver.set(register::STATUS, 0);
    assert_eq!(driver.get(register::STATUS), 0);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
}

#[test]
fn device_that_refuses_to_activate_needs_a_reset() {
    let mut driver = Driver::of(Ways {
        refuses: true,
        ..Ways::default()
    });
    driver.up_to_features_ok(VERSION_1);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15 | 64);
}

#[test]
fn queue_registers_are_fixed_while_the_device_runs() {
    let mut driver = Driver::new();
    driver.set_up_queue(0, 4, 0x1000);
    assert_eq!(driver.get(register::QUEUE_READY), 0, "before FEATURES_OK");
    driver.up_to_features_ok(VERSION_1);
    driver.set_up_queue(0, 4, 0x1000);
    driver.set(register::STATUS, 15);
    driver.set(register::QUEUE_READY, 0);
    assert_eq!(driver.get(register::QUEUE_READY), 1);
}

#[test]
fn queue_that_does_not_exist_has_no_size() {
    let mut driver = Driver::new();
    driver.set(register::QUEUE_SEL, 0);
    assert_eq!(driver.get(register::QUEUE_SIZE_MAX), 16);
    for index in [2, u32::MAX] {
        driver.set(register::QUEUE_SEL, index);
        assert_eq!(driver.get(register::QUEUE_SIZE_MAX), 0);
        driver.set(register::QUEUE_READY, 1);
        assert_eq!(driver.get(register::QUEUE_READY), 0);
    }
}

#[test]
fn notification_reaches_the_queue_of_that_number() {
    let mut driver = Driver::new();
    driver.set(register::QUEUE_NOTIFY, 1);
    driver.set(register::QUEUE_NOTIFY, 7);
    assert!(driver.transport.kicks()[0].read().is_err());
    assert_eq!(driver.transport.kicks()[1].read().unwrap(), 1);
}

#[test]
fn used_buffers_are_always_in_the_interrupt_status_and_need_no_acknowledgement() {
    let mut driver = Driver::new();
    let interrupt = driver.transport.interrupt().clone();
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    interrupt.signal_queue().unwrap();
    assert_eq!(driver.irq.read().unwrap(), 1);
    for bits in [1, 0, u32::MAX] {
        driver.set(register::INTERRUPT_ACK, bits);
        assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    }
}

#[test]
fn change_of_the_configuration_is_in_the_status_until_it_is_acknowledged() {
    let mut driver = Driver::new();
    let interrupt = driver.transport.interrupt().clone();
    interrupt.signal_config(2, 0x0908_u16).unwrap();
    assert_eq!(driver.irq.read().unwrap(), 1);
    assert_eq!(driver.get(register::CONFIG), 0x0908_0201);
    assert_eq!(driver.get(register::CONFIG_GENERATION), 1);
    for _ in 0..2 {
        assert_eq!(driver.get(register::INTERRUPT_STATUS), 3);
        driver.set(register::INTERRUPT_ACK, 1);
    }
    // One that comes before the driver says that it has seen the former is read with it.
    interrupt.signal_config(2, 0x0a09_u16).unwrap();
    driver.set(register::INTERRUPT_ACK, 3);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    assert_eq!(driver.get(register::CONFIG), 0x0a09_0201);
    // One that comes afterwards is another.
    interrupt.signal_config(4, 6_u8).unwrap();
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 3);
    assert_eq!(driver.get(register::CONFIG_GENERATION), 3);
    driver.set(register::STATUS, 0);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    assert_eq!(driver.get(register::CONFIG_GENERATION), 3);
}

#[test]
fn need_of_a_reset_stays_in_the_status_whatever_the_driver_writes() {
    let mut driver = Driver::new();
    driver.up_to_features_ok(VERSION_1);
    driver.transport.interrupt().needs_reset().unwrap();
    assert_eq!(driver.get(register::STATUS), 11 | 64);
    driver.set(register::INTERRUPT_ACK, 2);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15 | 64);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
}

#[test]
fn window_says_what_was_selected_and_done_after_each_write() {
    let mut driver = Driver::new();
    let registers = driver.transport.interrupt().registers().clone();
    let window = || {
        let at = [
            register::DEVICE_FEATURES,
            register::QUEUE_SIZE_MAX,
            register::QUEUE_READY,
            register::STATUS,
        ];
        at.map(|at| {
            let mut word = [0; 4];
            registers.read(at, &mut word);
            u32::from_le_bytes(word)
        })
    };
    assert_eq!(window(), [1 << 5, 16, 0, 0]);
    driver.set(register::DEVICE_FEATURES_SEL, 1);
    assert_eq!(window(), [1 | 1 << 8, 16, 0, 0]);
    driver.set(register::QUEUE_SEL, 1);
    assert_eq!(window(), [1 | 1 << 8, 8, 0, 0]);
    driver.set(register::STATUS, 1);
    assert_eq!(window(), [1 | 1 << 8, 8, 0, 1]);
    driver.up_to_features_ok(VERSION_1);
    driver.set(register::QUEUE_READY, 1);
    assert_eq!(window(), [1 | 1 << 8, 8, 1, 11]);
    driver.set(register::QUEUE_SEL, 2);
    assert_eq!(window(), [1 | 1 << 8, 0, 0, 11]);
    driver.set(register::STATUS, 128);
    assert_eq!(window(), [1 | 1 << 8, 0, 0, 11 | 128]);
    driver.set(register::STATUS, 0);
    assert_eq!(window(), [1 << 5, 16, 0, 0]);
}

#[test]
fn configuration_space_is_read_in_any_width_and_zero_behind_its_end() {
    let mut driver = Driver::new();
    let mut byte = [0xff];
    driver.transport.read(register::CONFIG + 2, &mut byte);
    assert_eq!(byte, [3]);
    let mut word = [0xff; 4];
    driver.transport.read(register::CONFIG + 3, &mut word);
    assert_eq!(word, [4, 5, 0, 0]);
    for behind in [0xfc, 0xfe, 0x100, 0x800] {
        driver.transport.read(register::CONFIG + behind, &mut word);
        assert_eq!(word, [0; 4], "{behind:#x}");
    }
}

#[test]
fn configuration_space_that_was_written_to_is_read_as_the_device_has_it() {
    let mut driver = Driver::new();
    driver.transport.write(register::CONFIG, &[9]);
    assert!(driver.seen.lock().unwrap().config.is_empty());
    driver.up_to_features_ok(VERSION_1);
    driver.transport.write(register::CONFIG + 1, &[9]);
    assert_eq!(driver.seen.lock().unwrap().config, [(1, vec![9])]);
    assert_eq!(driver.get(register::CONFIG), 0x0403_0901);
    driver.set(register::STATUS, 0);
    assert_eq!(driver.get(register::CONFIG), 0x0403_0201);
}

#[test]
fn device_is_asked_for_its_configuration_by_each_read_only_if_it_has_to_see_them() {
    for (sees_config_reads, wanted) in [(false, 0), (true, 2)] {
        let mut driver = Driver::of(Ways {
            sees_config_reads,
            ..Ways::default()
        });
        let reads = |driver: &Driver| driver.seen.lock().unwrap().config_reads;
        let before = reads(&driver);
        assert_eq!(driver.get(register::CONFIG), 0x0403_0201);
        assert_eq!(driver.get(register::CONFIG + 4), 5);
        assert_eq!(reads(&driver) - before, wanted);
        let before = reads(&driver);
        driver.up_to_features_ok(VERSION_1);
        driver.set(register::STATUS, 0);
        assert_eq!(reads(&driver) - before, 1 - wanted / 2);
    }
}

#[test]
fn write_of_another_width_does_nothing_and_reads_are_of_bytes() {
    let mut driver = Driver::new();
    driver.transport.write(register::STATUS, &[1]);
    driver
        .transport
        .write(register::STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.get(register::STATUS), 0);
    let mut pair = [0xff; 2];
    driver.transport.read(register::MAGIC_VALUE + 1, &mut pair);
    assert_eq!(pair, *b"ir");
}

#[test]
fn reset_of_a_running_device_forgets_queues_and_features() {
    let mut driver = Driver::new();
    driver.up_to_features_ok(FEATURE | VERSION_1);
    driver.set_up_queue(0, 4, 0x1000);
    driver.set(register::STATUS, 15);
    driver.set(register::QUEUE_NOTIFY, 0);
    driver.set(register::STATUS, 0);
    assert_eq!(driver.seen.lock().unwrap().resets, 1);
    driver.set(register::QUEUE_SEL, 0);
    assert_eq!(driver.get(register::QUEUE_READY), 0);
    assert!(driver.transport.kicks()[0].read().is_err());
    assert_eq!(driver.up_to_features_ok(VERSION_1), 11);
    driver.set(register::STATUS, 15);
    let seen = driver.seen.lock().unwrap();
    assert_eq!(seen.activations[1], (VERSION_1, vec![None, None]));
}

#[test]
fn queue_laid_out_by_a_driver_is_handed_over_as_it_is() {
    let mut driver = Driver::new();
    let memory = driver.memory.clone();
    let mock = MockSplitQueue::new(&memory, 8);
    driver.up_to_features_ok(VERSION_1);
    driver.set(register::QUEUE_SEL, 1);
    driver.set(register::QUEUE_SIZE, 8);
    let low = |address: GuestAddress| u32::try_from(address.0).unwrap();
    driver.set(register::QUEUE_DESC_LOW, low(mock.desc_table_addr()));
    driver.set(register::QUEUE_DRIVER_LOW, low(mock.avail_addr()));
    driver.set(register::QUEUE_DEVICE_LOW, low(mock.used_addr()));
    driver.set(register::QUEUE_READY, 1);
    driver.set(register::STATUS, 15);
    let seen = driver.seen.lock().unwrap();
    assert_eq!(seen.activations, [(VERSION_1, vec![None, Some(8)])]);
}

#[test]
fn notifications_that_a_back_end_reads_are_left_to_it() {
    for is_served_elsewhere in [false, true] {
        let mut driver = Driver::of(Ways {
            is_served_elsewhere,
            ..Ways::default()
        });
        let kick = driver.transport.kicks[0].try_clone().unwrap();
        kick.write(1).unwrap();
        driver.set(register::STATUS, 0);
        assert_eq!(kick.read().is_ok(), is_served_elsewhere);
    }
}
