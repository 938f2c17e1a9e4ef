//! Fixtures for end-to-end tests.
//!
//! A [`World`] is everything that one test sees: its own state folder, runtime folder and processes. The
//! product is reached as a user reaches it, by running its programs. When a test ends, [`World::finish`]
//! looks for anything that was left behind.

pub mod bundle;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod ending;
pub mod layout;
pub mod leaks;
mod limit;
pub mod netns;
pub mod process;
pub mod registry;
pub mod shim;
pub mod task;
pub mod terminal;
pub mod userland;
pub mod world;

pub use limit::within;
pub use process::{Finished, Running};
pub use world::{Driver, Setup, World};
