//! The two ports that end the machine.

use sandbox_types::monitor::{EXIT_PORT, GuestExit, POWER_OFF};

use super::console::PanicFlag;
use crate::bus::{BusDevice, BusRange};
use crate::end::MachineEnd;
use crate::log;

/// The port that the agent powers the machine off through.
pub const EXIT_PORTS: BusRange = BusRange {
    start: EXIT_PORT as u64,
    length: 1,
};
/// The keyboard controller's command and status port.
pub const RESET_PORTS: BusRange = BusRange {
    start: 0x64,
    length: 1,
};
/// The keyboard controller's command to pulse the reset line.
const PULSE_RESET: u8 = 0xfe;

/// Ends the machine when [`POWER_OFF`] is written.
#[derive(Debug)]
pub struct ExitPort {
    end: MachineEnd,
}

impl ExitPort {
    /// The port of a machine with that end.
    #[must_use]
    pub fn new(end: MachineEnd) -> Self {
        Self { end }
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.contains(&POWER_OFF) {
            self.end.set(GuestExit::Shutdown);
        } else {
            log::guest(format_args!("exit port: {data:02x?} is not understood"));
        }
    }
}

/// A keyboard controller without keyboard: it is always ready, and can reset the machine. A reset after a
/// kernel panic is the panic's end (`panic=-1`).
#[derive(Debug)]
pub struct ResetPort {
    end: MachineEnd,
    panic: PanicFlag,
}

impl ResetPort {
    /// The port of a machine with that end and console.
    #[must_use]
    pub fn new(end: MachineEnd, panic: PanicFlag) -> Self {
        Self { end, panic }
    }
}

impl BusDevice for ResetPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Neither buffer is full.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.contains(&PULSE_RESET) {
            self.end.set(if self.panic.is_set() {
                GuestExit::Panic
            } else {
                GuestExit::Reset
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_off_value_shuts_down() {
        let end = MachineEnd::new().unwrap();
        let mut port = ExitPort::new(end.clone());
        port.write(0, &[0]);
        assert_eq!(end.get(), None);
        port.write(0, &[POWER_OFF]);
        assert_eq!(end.get(), Some(&GuestExit::Shutdown));
    }

    #[test]
    fn reset_without_a_panic_is_a_reset() {
        let end = MachineEnd::new().unwrap();
        let mut port = ResetPort::new(end.clone(), PanicFlag::default());
        let mut status = [0xff];
        port.read(0, &mut status);
        assert_eq!(status, [0]);
        port.write(0, &[PULSE_RESET]);
        assert_eq!(end.get(), Some(&GuestExit::Reset));
    }
}
