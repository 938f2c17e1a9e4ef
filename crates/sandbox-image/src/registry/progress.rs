//! What happens during a transfer, for whoever shows it.

use crate::digest::Digest;

use super::error::RegistryError;

/// Something happened to a layer.
#[derive(Debug)]
pub enum Event<'a> {
    /// It is part of the image. All are announced before anything else happens.
    Layer {
        /// Its blob's digest.
        digest: Digest,
        /// Its blob's size in bytes.
        size: u64,
    },
    /// It is there already.
    Present {
        /// Its blob's digest.
        digest: Digest,
    },
    /// Bytes of it have arrived.
    Received {
        /// Its blob's digest.
        digest: Digest,
        /// How many in all.
        bytes: u64,
    },
    /// Bytes of it have been sent.
    Sent {
        /// Its blob's digest.
        digest: Digest,
        /// How many in all.
        bytes: u64,
    },
    /// It has arrived whole, and is made into an image of its own.
    Unpacking {
        /// Its blob's digest.
        digest: Digest,
    },
    /// Nothing is left to do for it.
    Done {
        /// Its blob's digest.
        digest: Digest,
    },
    /// An attempt failed; there may be another.
    Trouble {
        /// Its blob's digest.
        digest: Digest,
        /// Why.
        error: &'a RegistryError,
    },
    /// A mirror was of no use; the next address is asked.
    Mirror {
        /// The mirror.
        name: &'a str,
        /// Why.
        error: &'a RegistryError,
    },
}

/// Somebody who shows what happens. Called from several threads, and often.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);

    /// Whether it should be given up.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
