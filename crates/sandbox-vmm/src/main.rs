//! `sandbox-vmm run`, `vsock-backend`, `jailed`, and `system-calls`.

use std::env;
use std::ffi::OsString;
use std::process::{self, ExitCode};

use sandbox_vmm::{jail, run, seccomp, vsock};

const USAGE: &str = "usage: sandbox-vmm run [--jail FD] [--sandbox DIR]
       sandbox-vmm vsock-backend [--jail FD] [--sandbox DIR] --cid N --vhost-fd FD --listener-fd FD --path PATH
       sandbox-vmm jailed --jail FD [--sandbox DIR] -- PROGRAM [ARGUMENT...]
       sandbox-vmm system-calls    lists what its threads may do

It is started by the sandbox runtime, with its configuration and devices as open descriptors.";

fn main() -> ExitCode {
    let process_ns = run::monotonic_ns();
    sandbox_vmm::process::prepare();
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match arguments.split_first() {
        // `exit` and not a return: threads of the machine are still there.
        Some((command, rest)) if command == "run" => {
            process::exit(run::run(rest, process_ns).into())
        }
        Some((command, [])) if command == "system-calls" => {
            print!("{}", seccomp::table());
            ExitCode::SUCCESS
        }
        Some((command, rest)) if command == "vsock-backend" => vsock::backend::main(rest),
        Some((command, rest)) if command == "jailed" => jail::main(rest),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
