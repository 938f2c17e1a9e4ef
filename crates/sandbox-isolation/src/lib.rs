//! Attacks on the isolation of containers, each beside a control in which it must succeed.
//!
//! A static probe goes into a container and makes an *attempt*; the host plants something before, or watches meanwhile,
//! and judges by what it planted and saw, not by what the probe says of itself. Every case also runs under a *control*,
//! runc with the same OCI configuration or with the protection switched off, in which the same judgement must find the
//! breach: a case whose control does not fire proves nothing and is reported as an invalid control, never as held.
//!
//! | module | what |
//! | --- | --- |
//! | [`case`] | what a case is |
//! | [`catalogue`] | all of them, threat by threat |
//! | [`host`] | what is planted and seen on this machine |
//! | [`runtime`], [`session`] | containers with a probe in them, and the talk with it |
//! | [`campaign`] | runs the cases, several in one container |
//! | [`verdict`] | what control and subject together mean |
//! | [`report`] | the outcome as a table, JSON and HTML |
//!
//! It drives runtimes by their programs only (`runc`, `ctr`, `sandboxctl`), and nothing that it attempts takes more of
//! the host than its case says: this machine is the host in every control.

pub mod campaign;
pub mod case;
pub mod catalogue;
mod host;
mod image;
pub mod report;
pub mod runtime;
mod session;
mod spec;
pub mod verdict;

pub use campaign::{Campaign, CampaignError, Report};
pub use case::{Case, Profile, Threat};
pub use verdict::Outcome;
