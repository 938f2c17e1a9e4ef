//! A driver of virtio devices on the memory-mapped transport (VirtIO 1.3, 4.2), as good as it has to be to see whether a device
//! does what it is for, and open to those that mean it harm.

use crate::machine::{self, MEMORY_END, eventually, fence, peek, poke};

/// Where the monitor puts devices, those that see each read apart, and how far from each other.
const WINDOWS: [u64; 2] = [0xd000_0000, 0xd001_0000];
pub const WINDOW_BYTES: u64 = 0x200;
/// Behind the last window, up to the end of its page.
pub const BEHIND_WINDOWS: core::ops::Range<u64> = 0xd000_2600..0xd000_3000;
const MAX_DEVICES: u64 = 19;
const MAGIC: u32 = 0x7472_6976;

/// The registers (4.2.2).
pub mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
}

/// The device status (2.1).
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;

/// Flags of a descriptor (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Entries of every queue as this driver sets it up.
pub const QUEUE_SIZE: u16 = 64;
/// Rings: for each device four queues, each with room for the three parts.
const RINGS: u64 = 0x200_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Behind them the buffers of each device.
const DATA: u64 = 0x300_0000;
const DATA_BYTES: u64 = 0x10_0000;

const _: () = assert!(DATA + 8 * DATA_BYTES <= MEMORY_END);

/// A device in its window.
#[derive(Clone, Copy)]
pub struct Device {
    pub window: u64,
    index: u64,
}

impl Device {
    /// The device of this kind (5) after so many others of it.
    pub fn find(kind: u32, nth: u32) -> Self {
        match Self::look(kind, nth) {
            Some(device) => device,
            None => machine::fail("a device is not there"),
        }
    }

    /// The same, if there is one.
    pub fn look(kind: u32, mut nth: u32) -> Option<Self> {
        for index in 0..MAX_DEVICES {
            for windows in WINDOWS {
                let window = windows + index * WINDOW_BYTES;
                let device = Self { window, index };
                if device.get(register::MAGIC_VALUE) == MAGIC
                    && device.get(register::DEVICE_ID) == kind
                {
                    if nth == 0 {
                        return Some(device);
                    }
                    nth -= 1;
                }
            }
        }
        None
    }

    pub fn get(self, register: u64) -> u32 {
        peek(self.window + register)
    }

    /// All that a driver reads, as one number.
    pub fn contents(self) -> u32 {
        let words = (0..WINDOW_BYTES).step_by(4).map(|at| self.get(at));
        words.fold(0, |sum: u32, word| sum.rotate_left(5) ^ word)
    }

    pub fn set(self, register: u64, value: u32) {
        fence();
        poke(self.window + register, value);
    }

    pub fn set_address(self, register: u64, address: u64) {
        self.set(register, address as u32);
        self.set(register + 4, (address >> 32) as u32);
    }

    pub fn reset(self) {
        self.set(register::STATUS, 0);
        machine::expect(
            self.get(register::STATUS) == 0,
            "a device did not let itself be reset",
        );
    }

    pub fn needs_reset(self) -> bool {
        self.get(register::STATUS) & NEEDS_RESET != 0
    }

    pub fn offered(self) -> u64 {
        let half = |number| {
            self.set(register::DEVICE_FEATURES_SEL, number);
            u64::from(self.get(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// From reset up to `FEATURES_OK`; whether the device took the features.
    pub fn negotiate(self, features: u64) -> bool {
        self.reset();
        self.set(register::STATUS, ACKNOWLEDGE);
        self.set(register::STATUS, ACKNOWLEDGE | DRIVER);
        for (number, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(register::DRIVER_FEATURES_SEL, number);
            self.set(register::DRIVER_FEATURES, half);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.set(register::STATUS, status);
        self.get(register::STATUS) == status
    }

    pub fn set_queue(self, queue: u64, size: u32, rings: [u64; 3]) {
        self.set(register::QUEUE_SEL, queue as u32);
        self.set(register::QUEUE_SIZE, size);
        self.set_address(register::QUEUE_DESC, rings[0]);
        self.set_address(register::QUEUE_DRIVER, rings[1]);
        self.set_address(register::QUEUE_DEVICE, rings[2]);
        self.set(register::QUEUE_READY, 1);
    }

    /// All queues, empty, as they should be.
    pub fn set_queues(self) {
        for queue in 0..4 {
            self.set(register::QUEUE_SEL, queue as u32);
            if self.get(register::QUEUE_SIZE_MAX) != 0 {
                machine::fill(self.ring(queue), 0, QUEUE_BYTES / 2 + 0x1000);
                self.set_queue(queue, u32::from(QUEUE_SIZE), self.rings(queue));
            }
        }
    }

    pub fn run(self) {
        self.set(
            register::STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
    }

    /// Resets it and sets it up properly.
    pub fn begin(self, features: u64) {
        machine::expect(
            self.negotiate(features),
            "a device did not take its own features",
        );
        self.set_queues();
        self.run();
        machine::expect(
            self.get(register::STATUS) == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            "a device did not come up",
        );
    }

    fn ring(self, queue: u64) -> u64 {
        RINGS + (self.index * 4 + queue) * QUEUE_BYTES
    }

    /// Where the three parts of a queue are.
    pub fn rings(self, queue: u64) -> [u64; 3] {
        let ring = self.ring(queue);
        [ring, ring + AVAILABLE, ring + USED]
    }

    /// Buffers of its own, a MiB.
    pub fn data(self) -> u64 {
        DATA + self.index * DATA_BYTES
    }

    pub fn descriptor(self, queue: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        put_descriptor(
            self.ring(queue) + 16 * u64::from(index),
            buffer,
            flags,
            next,
        );
    }

    pub fn available(self, queue: u64) -> u16 {
        peek(self.ring(queue) + AVAILABLE + 2)
    }

    pub fn set_available(self, queue: u64, index: u16) {
        fence();
        poke(self.ring(queue) + AVAILABLE + 2, index);
        fence();
    }

    pub fn set_ring_flags(self, queue: u64, flags: u16) {
        poke(self.ring(queue) + AVAILABLE, flags);
    }

    /// The field behind the available ring (2.7.7).
    pub fn set_used_event(self, queue: u64, index: u16) {
        poke(
            self.ring(queue) + AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE),
            index,
        );
    }

    /// Puts a chain into the available ring.
    pub fn offer(self, queue: u64, head: u16) {
        let index = self.available(queue);
        let slot = AVAILABLE + 4 + 2 * u64::from(index % QUEUE_SIZE);
        poke(self.ring(queue) + slot, head);
        self.set_available(queue, index.wrapping_add(1));
    }

    pub fn kick(self, queue: u64) {
        self.set(register::QUEUE_NOTIFY, queue as u32);
    }

    /// How many chains it used.
    pub fn used(self, queue: u64) -> u16 {
        peek(self.ring(queue) + USED + 2)
    }

    /// The head and length that it noted at this place of the used ring.
    pub fn used_element(self, queue: u64, index: u16) -> (u32, u32) {
        let at = self.ring(queue) + USED + 4 + 8 * u64::from(index % QUEUE_SIZE);
        (peek(at), peek(at + 4))
    }

    /// Waits until all that was offered is used.
    pub fn drained(self, queue: u64) -> bool {
        eventually(|| self.used(queue) == self.available(queue))
    }
}

pub fn put_descriptor(at: u64, buffer: (u64, u32), flags: u16, next: u16) {
    poke(at, buffer.0);
    poke(at + 8, buffer.1);
    poke(at + 12, flags);
    poke(at + 14, next);
}
