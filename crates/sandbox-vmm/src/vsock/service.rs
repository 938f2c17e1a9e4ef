//! One pass over both rings, with the notifications of both sides (VirtIO 1.3, 2.7.7 and 2.7.10), for
//! whoever owns the rings.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::error::VsockError;
use super::muxer::Muxer;

/// Turns of each ring in one pass.
const TURNS: usize = 8;

/// What the owner of the rings is to do after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Notify {
    /// Interrupt the driver for the receive ring.
    pub rx: bool,
    /// Interrupt the driver for the transmit ring.
    pub tx: bool,
    /// There is more to do now: make another pass after looking at what else there is.
    pub again: bool,
}

/// Moves everything that can be moved, in bounds: packets of the guest's to the host, and back.
///
/// The driver is asked to notify for the transmit ring always, and for the receive ring only when
/// something waits for a buffer of it: refilling it would be an exit for nothing otherwise.
///
/// # Errors
/// [`VsockError::CorruptRing`]: the device needs a reset. [`VsockError::System`].
pub(crate) fn serve(
    muxer: &mut Muxer,
    mem: &GuestMemoryMmap,
    rx: &mut Queue,
    tx: &mut Queue,
) -> Result<Notify, VsockError> {
    let mut notify = Notify::default();
    let mut rx_used = false;
    let mut tx_used = false;
    for turn in 0..=TURNS {
        notify.again = turn == TURNS;
        if notify.again {
            break;
        }
        tx.disable_notification(mem)
            .map_err(VsockError::ring("tx"))?;
        muxer.process_host()?;
        let sent = muxer.process_tx(mem, tx)?;
        let received = muxer.process_rx(mem, rx)?;
        tx_used |= sent.used;
        rx_used |= received.used;
        if sent.more || received.more {
            continue;
        }
        let more_tx = tx
            .enable_notification(mem)
            .map_err(VsockError::ring("tx"))?;
        let more_rx = if muxer.has_pending_rx() {
            rx.enable_notification(mem)
                .map_err(VsockError::ring("rx"))?
        } else {
            rx.disable_notification(mem)
                .map_err(VsockError::ring("rx"))?;
            false
        };
        if !more_tx && !more_rx {
            break;
        }
    }
    notify.rx = rx_used && rx.needs_notification(mem).map_err(VsockError::ring("rx"))?;
    notify.tx = tx_used && tx.needs_notification(mem).map_err(VsockError::ring("tx"))?;
    Ok(notify)
}
