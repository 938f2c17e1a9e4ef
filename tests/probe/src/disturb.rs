//! A neighbour that uses up what it can, so that what others lose by it can be measured.
//!
//! `sandbox-probe disturb KIND` says `up` and goes on until its input ends. It is meant to run under limits, and bounds itself beyond
//! those of any that is sensible, for where there are none.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::attack::raw;

/// A process of its own, which does not return unless something is refused.
type Disturbance = fn() -> io::Result<()>;

/// What it does, by its name.
const ALL: &[(&str, Disturbance)] = &[
    ("nothing", nothing),
    ("fork", fork),
    ("memory", memory),
    ("disk", disk),
    ("network", network),
    ("output", output),
    ("timers", timers),
];

/// Processes of the bomb are at most two to the power of this.
const BOMB: u32 = 9;
/// Memory is touched up to here, in steps, in bytes.
const MEMORY_BYTES: usize = 1 << 30;
const STEP_BYTES: usize = 4 << 20;
/// The file that is written over and over.
const DISK_BYTES: usize = 64 << 20;
/// Processes that wait for the next timer.
const TIMERS: usize = 8;

/// Disturbs until the input ends.
///
/// # Errors
/// When there is nothing of this name, or no process can be made.
pub(crate) fn run(kind: &str) -> Result<(), String> {
    let known = ALL.iter().find(|(name, _)| *name == kind);
    let (_, disturb) = known.ok_or_else(|| format!("nobody disturbs by {kind:?}"))?;
    match raw::fork().map_err(|errno| format!("cannot fork: {errno}"))? {
        ForkResult::Child => {
            // The first to be killed.
            let _ = fs::write("/proc/self/oom_score_adj", "1000");
            let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
            loop {
                if disturb().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        ForkResult::Parent { child } => {
            println!("up");
            let mut rest = Vec::new();
            let _ = io::stdin().read_to_end(&mut rest);
            // As the first process of a container, our end is theirs; elsewhere it is not.
            let _ = nix::sys::signal::killpg(child, nix::sys::signal::Signal::SIGKILL);
            Ok(())
        }
    }
}

fn nothing() -> io::Result<()> {
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// Every process makes others, and then makes and ends one after the other.
fn fork() -> io::Result<()> {
    let mut left = BOMB;
    while left > 0 {
        left -= 1;
        // Of those that are refused there are no more to come.
        let _ = raw::fork();
    }
    loop {
        if let Ok(ForkResult::Child) = raw::fork() {
            std::process::exit(0);
        }
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {
        }
    }
}

/// One that touches memory until it is killed or has enough, again and again.
fn memory() -> io::Result<()> {
    match raw::fork()? {
        ForkResult::Child => {
            let mut kept = Vec::new();
            while kept.len() * STEP_BYTES < MEMORY_BYTES {
                let mut block = vec![0u8; STEP_BYTES];
                for page in block.iter_mut().step_by(4096) {
                    *page = 1;
                }
                kept.push(block);
            }
            std::process::exit(0);
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None).map(drop)?),
    }
}

/// A file written to the disk, and removed.
fn disk() -> io::Result<()> {
    const PATH: &str = "/disturb";
    let block = vec![0x5a_u8; 1 << 20];
    let mut file = File::create(PATH)?;
    let written = (0..DISK_BYTES / block.len())
        .try_for_each(|_| file.write_all(&block))
        .and_then(|()| file.sync_all());
    fs::remove_file(PATH)?;
    written
}

/// Datagrams to itself.
fn network() -> io::Result<()> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    loop {
        sender.send(&[0x5a; 1024])?;
    }
}

/// Lines without end.
fn output() -> io::Result<()> {
    let block = vec![b'\n'; 64 << 10];
    loop {
        io::stdout().write_all(&block)?;
    }
}

/// As many timers going off as there can be, one after the other in each of a few processes.
fn timers() -> io::Result<()> {
    for _ in 1..TIMERS {
        if let Ok(ForkResult::Child) = raw::fork() {
            break;
        }
    }
    loop {
        std::thread::sleep(Duration::from_micros(1));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_nobody_does_is_named() {
        let error = super::run("rain").unwrap_err();
        assert!(error.contains("rain"), "{error}");
    }
}
