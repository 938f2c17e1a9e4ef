//! The program `containerd-shim-sandbox-v2`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    containerd_shim_sandbox_v2::main()
}
