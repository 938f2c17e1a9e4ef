//! A vCPU and its thread.
//!
//! ```text
//! built ──spawn──> waiting ──start──> running ──> ended
//!                     └──────kick───────┴──────────┘
//! ```
//!
//! It ends when the machine has ended, whoever ended it; [`VcpuHandle::kick`] makes it look.
#![expect(
    unsafe_code,
    reason = "the flag that makes KVM_RUN return lies in memory shared with the kernel"
)]

use std::io;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};
use sandbox_types::monitor::GuestExit;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::end::MachineEnd;
use crate::memory::window::Window;
use crate::process::THREAD_STACK_BYTES;

/// What a vCPU reaches.
#[derive(Debug, Clone)]
pub struct Buses {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped devices.
    pub mmio: Arc<Bus>,
    /// Files that it reads as memory.
    pub window: Option<Arc<Window>>,
}

/// Why a vCPU has no thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct VcpuError {
    /// What was tried.
    pub action: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// A vCPU's thread.
#[derive(Debug)]
pub struct VcpuHandle {
    thread: JoinHandle<VcpuFd>,
    /// `kvm_run.immediate_exit`. The thread owns the mapping, and hands it back when it is joined. One that panics leaves it as it is.
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is to an atomic that outlives the handle: see the field.
unsafe impl Send for VcpuHandle {}

impl VcpuHandle {
    /// Starts the thread of vCPU `id`. It calls `prepare` first, and enters the guest once `start` is passed.
    ///
    /// # Errors
    /// [`VcpuError`].
    pub fn spawn(
        id: u8,
        mut vcpu: VcpuFd,
        buses: Buses,
        end: MachineEnd,
        start: Arc<Barrier>,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<Self, VcpuError> {
        let immediate_exit = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        // What is dropped when the thread panics is dropped before the handle knows of it.
        let mut vcpu = ManuallyDrop::new(vcpu);
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                prepare();
                start.wait();
                let _guard = EndOnPanic(&end);
                while end.get().is_none() {
                    if let Some(exit) = run_once(&mut vcpu, &buses) {
                        end.set(exit);
                    }
                }
                ManuallyDrop::into_inner(vcpu)
            })
            .map_err(|source| VcpuError {
                action: "start a vCPU thread",
                source,
            })?;
        Ok(Self {
            thread,
            immediate_exit: immediate_exit.cast_const().cast(),
        })
    }

    /// Makes the vCPU leave the guest and look whether the machine has ended. It cannot be missed: the flag
    /// makes the next `KVM_RUN` return, and the signal the present one.
    pub fn kick(&self) {
        // SAFETY: the byte is in the vCPU's mapping. The thread that owns that never unmaps it: it returns it to whoever joins it, which takes this
        // handle, or panics and leaves it. The kernel and this are the only ones to access the byte.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(1, Ordering::Release);
        if let Err(error) = self.thread.kill(SIGRTMIN()) {
            eprintln!("sandbox-vmm: cannot signal a vCPU: {error}");
        }
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        // A panic of the thread has been printed; the machine ends either way.
        drop(self.thread.join());
    }
}

/// Ends the machine when its thread panics: the others would go on without this vCPU.
struct EndOnPanic<'a>(&'a MachineEnd);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set(kvm_error(
                "a vCPU thread of the monitor panicked".to_owned(),
            ));
        }
    }
}

/// Installs the handler of the signal that kicks vCPUs. It does nothing: the system call is interrupted.
///
/// # Errors
/// [`VcpuError`].
pub fn install_kick_handler() -> Result<(), VcpuError> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).map_err(|error| VcpuError {
        action: "install the vCPU signal's handler",
        source: error.into(),
    })
}

/// Runs the guest until its next exit. `Some` is the end of the machine.
fn run_once(vcpu: &mut VcpuFd, buses: &Buses) -> Option<GuestExit> {
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(u64::from(port), data),
        Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(u64::from(port), data),
        Ok(VcpuExit::MmioRead(address, data)) => buses.mmio.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => buses.mmio.write(address, data),
        Ok(VcpuExit::Intr) => {}
        Ok(VcpuExit::MemoryFault { .. }) => return Some(memory_fault(buses)),
        Ok(VcpuExit::Shutdown) => return Some(GuestExit::TripleFault),
        Ok(VcpuExit::SystemEvent(..)) => return Some(GuestExit::Reset),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Some(kvm_error(format!(
                "the processor refused to enter the guest: reason {reason:#x} on host CPU {cpu}"
            )));
        }
        Ok(VcpuExit::InternalError) => return Some(internal_error(vcpu)),
        Ok(other) => return Some(kvm_error(format!("unexpected exit {other:?}"))),
        Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
        Err(error) if error.errno() == libc::EFAULT => return Some(memory_fault(buses)),
        Err(error) => return Some(kvm_error(format!("KVM_RUN: {error}"))),
    }
    None
}

/// The guest reached for a page that the host could not provide. As a rule that is one of a file that has become shorter; or it is memory
/// that the guest has not been given.
fn memory_fault(buses: &Buses) -> GuestExit {
    match buses.window.as_ref().and_then(|window| window.lost()) {
        Some(lost) => GuestExit::FileLost {
            index: lost.index,
            bytes: lost.bytes,
            expected: lost.expected,
        },
        None => {
            kvm_error("KVM_RUN: the host could not provide a page of the guest's memory, or the guest reached for one that it was not given".to_owned())
        }
    }
}

fn kvm_error(detail: String) -> GuestExit {
    GuestExit::KvmError { detail }
}

fn internal_error(vcpu: &mut VcpuFd) -> GuestExit {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member; any bits are
    // a valid value of it.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let words = usize::try_from(internal.ndata).unwrap_or(usize::MAX);
    let data: Vec<_> = internal.data.iter().take(words).collect();
    let place = vcpu.get_regs().map_or_else(
        |error| error.to_string(),
        |regs| format!("rip {:#x}", regs.rip),
    );
    kvm_error(format!(
        "KVM internal error {} at {place}, data {data:x?}",
        internal.suberror
    ))
}
