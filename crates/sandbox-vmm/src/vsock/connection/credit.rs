//! Credit-based flow control (VirtIO 1.3, 5.10.6.3): 32-bit counters that wrap.

/// The guest's counters contradict what it was sent, or it sent more than it was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CreditViolation {
    /// More than fits.
    #[error("the guest sent {len} bytes with room for {room}")]
    Overrun {
        /// Payload of the packet.
        len: u32,
        /// What it might have been.
        room: u32,
    },
    /// It says to have consumed bytes that it was never sent.
    #[error("the guest says that {in_flight} bytes are under way, with a window of {window}")]
    Impossible {
        /// What would be under way.
        in_flight: u32,
        /// The most that may be.
        window: u32,
    },
}

/// Both directions' accounts of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credit {
    /// `buf_alloc` that the guest is told.
    window: u32,
    /// Bytes that the guest sent.
    rx_cnt: u32,
    /// Of those, bytes that the host socket took.
    fwd_cnt: u32,
    /// `fwd_cnt` as the guest last heard it.
    told_fwd_cnt: u32,
    peer_buf_alloc: u32,
    /// The largest `peer_buf_alloc` ever: a guest may shrink its buffer with bytes under way.
    peer_buf_alloc_max: u32,
    peer_fwd_cnt: u32,
    /// Bytes that the guest was sent.
    tx_cnt: u32,
}

impl Credit {
    /// Accounts for a connection that holds at most `window` bytes of the guest's.
    pub(crate) fn new(window: u32) -> Self {
        Self {
            window,
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            peer_buf_alloc: 0,
            peer_buf_alloc_max: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
        }
    }

    /// `buf_alloc` that the guest is told.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// `fwd_cnt` that the guest is told.
    pub(crate) fn fwd_cnt(&self) -> u32 {
        self.fwd_cnt
    }

    /// Bytes of the guest's that the host socket did not take yet.
    pub(crate) fn buffered(&self) -> u32 {
        self.rx_cnt.wrapping_sub(self.fwd_cnt)
    }

    /// Bytes that the guest may be sent.
    pub(crate) fn available(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt))
    }

    /// Takes note of the counters that every packet of the guest's carries.
    pub(crate) fn peer_says(
        &mut self,
        buf_alloc: u32,
        fwd_cnt: u32,
    ) -> Result<(), CreditViolation> {
        let in_flight = self.tx_cnt.wrapping_sub(fwd_cnt);
        let window = self.peer_buf_alloc_max.max(buf_alloc);
        if in_flight > window {
            return Err(CreditViolation::Impossible { in_flight, window });
        }
        self.peer_buf_alloc = buf_alloc;
        self.peer_buf_alloc_max = window;
        self.peer_fwd_cnt = fwd_cnt;
        Ok(())
    }

    /// The guest sent `len` bytes.
    pub(crate) fn receive(&mut self, len: u32) -> Result<(), CreditViolation> {
        let room = self.window.saturating_sub(self.buffered());
        if len > room {
            return Err(CreditViolation::Overrun { len, room });
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// The host socket took `bytes`, at most those buffered.
    pub(crate) fn forwarded(&mut self, bytes: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes.min(self.buffered()));
    }

    /// The guest was sent `bytes`.
    pub(crate) fn sent(&mut self, bytes: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(bytes);
    }

    /// A packet that carries the present `fwd_cnt` is in the ring.
    pub(crate) fn told(&mut self) {
        self.told_fwd_cnt = self.fwd_cnt;
    }

    /// The guest should hear of the room that there is: enough was freed since it last did.
    pub(crate) fn update_due(&self) -> bool {
        self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= self.window / 4
    }
}
