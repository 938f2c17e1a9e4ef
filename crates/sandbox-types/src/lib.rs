//! Values that more than one part of the runtime speaks of, each checked when it is made, and how an error is said.
//!
//! Nothing here does I/O. A value of one of these types is valid by construction: identifiers are safe as
//! file names, sizes are within what a guest can have.

pub mod causes;
pub mod cpuset;
pub mod id;
pub mod jail;
pub mod mac;
pub mod machine;
pub mod monitor;
pub mod timeline;

pub use causes::WithCauses;
pub use cpuset::{CpusetList, CpusetListError};
pub use id::{ContainerId, ExecId, IdError, SandboxId};
pub use mac::{MacAddress, MacError};
pub use machine::{GuestCid, MachineSizeError, MemMib, VcpuCount};
