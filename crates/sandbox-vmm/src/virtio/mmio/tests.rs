//! A driver's view of the registers.

use std::sync::{Arc, Mutex};

use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;

use super::*;
use crate::seccomp::ThreadKind;
use crate::virtio::ActivateError;

const FEATURE: u64 = 1 << 5;

#[derive(Debug, Default)]
struct Seen {
    activations: Vec<(u64, Vec<Option<u16>>)>,
    resets: usize,
    config: Vec<(u64, Vec<u8>)>,
}

struct Probe {
    seen: Arc<Mutex<Seen>>,
    refuse: bool,
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
        crate::virtio::copy_config(&[1, 2, 3, 4, 5], offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
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
        if self.refuse {
            return Err(ActivateError::QueueDisabled { index: 0 });
        }
        Ok(())
    }
    fn reset(&mut self) {
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
    fn new(refuse: bool) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let probe = Probe {
            seen: Arc::clone(&seen),
            refuse,
        };
        let interrupt = Interrupt::new(irq.try_clone().unwrap());
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
    let mut driver = Driver::new(false);
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
    let mut driver = Driver::new(false);
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
        let mut driver = Driver::new(false);
        assert_eq!(driver.up_to_features_ok(features), 3, "{features:#x}");
        driver.set(register::STATUS, 15);
        assert_eq!(driver.get(register::STATUS), 3);
        assert!(driver.seen.lock().unwrap().activations.is_empty());
    }
}

#[test]
fn queue_outside_guest_memory_needs_a_reset() {
    let mut driver = Driver::new(false);
    driver.up_to_features_ok(VERSION_1);
    driver.set_up_queue(0, 4, 0x00ff_0000);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15 | 64);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 2);
    assert!(driver.irq.read().is_ok());
    assert!(driver.seen.lock().unwrap().activations.is_empty());
    driver.transport.interrupt().signal_config().unwrap();
    driver.set(register::STATUS, 0);
    assert_eq!(driver.get(register::STATUS), 0);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn device_that_refuses_to_activate_needs_a_reset() {
    let mut driver = Driver::new(true);
    driver.up_to_features_ok(VERSION_1);
    driver.set(register::STATUS, 15);
    assert_eq!(driver.get(register::STATUS), 15 | 64);
}

#[test]
fn queue_registers_are_fixed_while_the_device_runs() {
    let mut driver = Driver::new(false);
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
    let mut driver = Driver::new(false);
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
    let mut driver = Driver::new(false);
    driver.set(register::QUEUE_NOTIFY, 1);
    driver.set(register::QUEUE_NOTIFY, 7);
    assert!(driver.transport.kicks()[0].read().is_err());
    assert_eq!(driver.transport.kicks()[1].read().unwrap(), 1);
}

#[test]
fn interrupt_status_is_acknowledged_by_reading_it() {
    let mut driver = Driver::new(false);
    let interrupt = driver.transport.interrupt().clone();
    interrupt.signal_queue().unwrap();
    interrupt.signal_config().unwrap();
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 3);
    assert_eq!(driver.get(register::CONFIG_GENERATION), 1);
    assert_eq!(driver.irq.read().unwrap(), 2);
    // What comes before the driver says that it has seen the former is not lost by that.
    interrupt.signal_queue().unwrap();
    driver.set(register::INTERRUPT_ACK, 3);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 1);
    assert_eq!(driver.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_space_is_read_in_any_width_and_zero_behind_its_end() {
    let mut driver = Driver::new(false);
    let mut byte = [0xff];
    driver.transport.read(register::CONFIG + 2, &mut byte);
    assert_eq!(byte, [3]);
    let mut word = [0xff; 4];
    driver.transport.read(register::CONFIG + 3, &mut word);
    assert_eq!(word, [4, 5, 0, 0]);
    driver.transport.read(register::CONFIG + 0x800, &mut word);
    assert_eq!(word, [0; 4]);
    driver.transport.write(register::CONFIG, &[9]);
    assert!(driver.seen.lock().unwrap().config.is_empty());
    driver.up_to_features_ok(VERSION_1);
    driver.transport.write(register::CONFIG + 1, &[9]);
    assert_eq!(driver.seen.lock().unwrap().config, [(1, vec![9])]);
}

#[test]
fn register_access_of_another_width_does_nothing() {
    let mut driver = Driver::new(false);
    driver.transport.write(register::STATUS, &[1]);
    driver
        .transport
        .write(register::STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.get(register::STATUS), 0);
    let mut pair = [0xff; 2];
    driver.transport.read(register::MAGIC_VALUE, &mut pair);
    assert_eq!(pair, [0, 0]);
}

#[test]
fn reset_of_a_running_device_forgets_queues_and_features() {
    let mut driver = Driver::new(false);
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
    let mut driver = Driver::new(false);
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
