//! `sandbox-vmm run`, `sandbox-vmm vsock-backend`, and `sandbox-vmm system-calls`.

use std::env;
use std::ffi::OsString;
use std::process::{self, ExitCode};

use sandbox_vmm::{run, seccomp, vsock};

const USAGE: &str = "usage: sandbox-vmm run
       sandbox-vmm vsock-backend --cid N --vhost-fd FD --listener-fd FD --path PATH
       sandbox-vmm system-calls    lists what its threads may do

It is started by the sandbox runtime, with its configuration and devices as open descriptors.";

fn main() -> ExitCode {
    let process_ns = run::monotonic_ns();
    sandbox_vmm::process::prepare();
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match arguments.split_first() {
        // `exit` and not a return: threads of the machine are still there.
        Some((command, [])) if command == "run" => process::exit(run::run(process_ns).into()),
        Some((command, [])) if command == "system-calls" => {
            print!("{}", seccomp::table());
            ExitCode::SUCCESS
        }
        Some((command, rest)) if command == "vsock-backend" => vsock::backend::main(rest),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
