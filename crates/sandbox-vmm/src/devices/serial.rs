//! The first serial port, a 16550, whose output is the console. It has no input.

use std::io::{self, Write};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::ConsoleRing;
use crate::bus::{BusDevice, BusRange};
use crate::log;

/// The ports of `ttyS0`.
pub const SERIAL_PORTS: BusRange = BusRange {
    start: 0x3f8,
    length: 8,
};

/// An interrupt line.
#[derive(Debug)]
pub(crate) struct IrqLine(pub EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port on the bus.
#[derive(Debug)]
pub struct SerialPort<W: Write = ConsoleRing> {
    uart: Serial<IrqLine, NoEvents, W>,
}

impl<W: Write> SerialPort<W> {
    /// A port that writes to `output`.
    #[must_use]
    pub fn new(irq: EventFd, output: W) -> Self {
        Self {
            uart: Serial::new(IrqLine(irq), output),
        }
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are one byte wide; a string instruction reads the same one again and again.
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        for byte in data {
            *byte = self.uart.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        for byte in data {
            if let Err(error) = self.uart.write(register, *byte) {
                log::guest(format_args!("serial port: {error:?}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_written_to_the_data_register_is_output() {
        let mut output = Vec::new();
        let mut port = SerialPort::new(EventFd::new(0).unwrap(), &mut output);
        port.write(0, b"h");
        port.write(0, b"i");
        let mut status = [0];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x20, 0x20);
        assert_eq!(output, b"hi");
    }
}
