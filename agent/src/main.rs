//! PID 1 of the guest: builds the containers and serves the host over vsock.
//!
//! ```text
//! sandbox-agent              as PID 1: brings the guest up and serves (see `sandbox_protocol` for the ports), after it has gone over
//!                            to the image that all guests have in memory, where it is told to (see `root`)
//! sandbox-agent helper       makes one process of a container, for the agent (see `helper`)
//! sandbox-agent init|archive-read|archive-write ARGUMENTS
//!                            in a container: a program of the agent's own (see `programs`)
//! sandbox-agent unix DIR     serves on Unix sockets in DIR, named by port, for tests without a guest
//! ```
//!
//! One thread, one event loop. What blocks is short (mounts, cgroup files); what makes processes runs in
//! helpers. If the agent panics, PID 1 ends and with it the machine: a guest without its agent is of no use.

mod boot;
mod cgroup;
mod clock;
mod containers;
mod copied_files;
mod events;
mod fill;
mod guest;
mod guest_path;
mod helper;
mod in_root;
mod launch;
mod mount;
mod network;
mod page_reports;
mod process;
mod process_list;
mod processors;
mod programs;
mod reaper;
mod resolver;
mod root;
mod serve;
mod service;
mod spec;
mod stdio;
mod streams;
mod sys;
mod users;

use std::path::PathBuf;
use std::process::ExitCode;

use sandbox_types::WithCauses;

/// Writes a line to the console.
macro_rules! log {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        // There is nowhere to say that saying failed.
        let _ = writeln!(std::io::stderr(), "sandbox-agent: {}", format_args!($($argument)*));
    }};
}
use log;

fn main() -> ExitCode {
    let started_ns = events::boot_time_ns();
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(helper::ARGUMENT.as_ref()) {
        return helper::main();
    }
    if let Some(program) = first.as_deref().and_then(programs::Program::named) {
        return program.run(arguments.collect());
    }
    // Tokio would keep the panic of a task to itself.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
    let folder = match (first, arguments.next()) {
        (Some(word), Some(folder)) if word == "unix" => Some(PathBuf::from(folder)),
        _ if std::process::id() == 1 => {
            root::become_agent_in_memory();
            None
        }
        _ => {
            log!("this is the first process of a guest, not a program to run by hand");
            return ExitCode::FAILURE;
        }
    };
    match serve::run(folder, started_ns) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log!("{}", WithCauses(&error));
            ExitCode::FAILURE
        }
    }
}
