//! The few devices of a PC that the kernel needs: a serial port for its console, and two ports to end the
//! machine through.

pub mod console;
pub mod power;
pub mod serial;

pub use console::{ConsoleError, ConsoleRing};
pub use power::{ExitPort, ResetPort};
pub use serial::SerialPort;
