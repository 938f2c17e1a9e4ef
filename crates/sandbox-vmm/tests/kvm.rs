//! What a vCPU does to the machine, from a few bytes of real-mode code. Any `/dev/kvm` will do, also one that
//! runs no ordinary kernel.
#![expect(
    unsafe_code,
    reason = "KVM takes the address of guest memory, which the test keeps alive"
)]

#[path = "support/host.rs"]
mod host;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use libtest_mimic::{Arguments, Completion, Trial};
use rustix::event::{PollFd, PollFlags, poll};
use sandbox_types::MemMib;
use sandbox_types::monitor::{GuestExit, POWER_OFF, console_ring};
use sandbox_vmm::bus::{Bus, BusDevice, BusRange};
use sandbox_vmm::devices::console::ConsoleRing;
use sandbox_vmm::devices::power::{EXIT_PORTS, ExitPort, RESET_PORTS, ResetPort};
use sandbox_vmm::devices::serial::{SERIAL_PORTS, SerialPort};
use sandbox_vmm::end::MachineEnd;
use sandbox_vmm::memory::later::Later;
use sandbox_vmm::memory::{Sharing, create};
use sandbox_vmm::vcpu::{Buses, VcpuHandle, install_kick_handler};
use sandbox_vmm::virtio::Interrupt;
use sandbox_vmm::virtio::registers::RegisterPages;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Memory ends here, so that what a real-mode program can reach behind it is not memory.
const MEMORY_BYTES: usize = 0x1_0000;
const CODE: GuestAddress = GuestAddress(0x1000);
/// The device of the tests: segment 0x9000 and what is behind.
const DEVICE: BusRange = BusRange {
    start: 0x9_0000,
    length: 0x100,
};
/// Memory that is only read: segment 0xa000, with [`POWER_OFF`] in each byte.
const READ_ONLY: BusRange = BusRange {
    start: 0xa_0000,
    length: 0x1000,
};
/// A device's registers: segment 0xc000.
const REGISTERS: BusRange = BusRange {
    start: 0xc_0000,
    length: 0x200,
};
/// Memory that comes later and was given, with [`POWER_OFF`] in each byte, and as much behind it that was not: segment 0xb000.
const LATER: BusRange = BusRange {
    start: 0xb_0000,
    length: 0x1000,
};
/// What the device panics at when it is written.
const PANICS: u8 = 0xdd;
const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("power_off_value_on_the_exit_port_is_a_shutdown", power_off),
        trial("pulse_of_the_reset_line_is_a_reset", reset),
        trial("pulse_after_a_panic_on_the_console_is_a_panic", panic),
        trial("interrupt_without_a_table_is_a_triple_fault", triple_fault),
        trial("access_behind_memory_reaches_the_device_there", mmio),
        trial(
            "write_to_memory_that_is_only_read_reaches_the_device_there_and_changes_nothing",
            read_only,
        ),
        trial(
            "register_that_the_monitor_changes_is_read_without_an_exit_and_not_written",
            registers,
        ),
        trial("memory_that_was_not_given_ends_the_guest", not_given),
        trial("port_without_a_device_reads_ones", absent_port),
        trial("halt_without_interrupts_to_wait_for_is_an_error", halt),
        trial("vcpu_that_spins_leaves_when_kicked", spin),
        trial("vcpu_that_halts_leaves_when_kicked", halted),
        trial("vcpu_whose_thread_panicked_can_be_kicked", panicked),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || match host::without_kvm() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(format!("{error:#}").into()),
        },
    })
}

/// A machine with one vCPU in real mode, the ports, and a device.
struct Machine {
    end: MachineEnd,
    vcpu: VcpuHandle,
    device: Arc<Mutex<Probe>>,
    interrupt: Interrupt,
    _vm: VmFd,
    _registers: RegisterPages,
    _memory: [GuestMemoryMmap; 2],
}

/// Memory of which the first block of what comes later was given; the addresses here of the end of that, and of what was not.
fn later() -> Result<(GuestMemoryMmap, [usize; 2])> {
    let size = MemMib::new(64)?;
    let later = Later::new(size, MemMib::new(128)?, 0).context("nothing comes later")?;
    let memory = create(size, Sharing::Private, None, Some(later))?;
    later.give(&memory, 0, later.block())?;
    let block = usize::try_from(later.block())?;
    let bytes = usize::try_from(LATER.length)?;
    let full = vec![POWER_OFF; bytes];
    let end = later.range().start + later.block();
    memory.write_slice(&full, GuestAddress(end - LATER.length))?;
    let start = later.host_range(&memory).context("it is not mapped")?.start;
    Ok((memory, [start + block - bytes, start + block]))
}

/// Remembers what is written and how often it is read, and reads as [`POWER_OFF`].
#[derive(Default)]
struct Probe {
    written: Vec<(u64, Vec<u8>)>,
    reads: usize,
}

impl BusDevice for Probe {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(POWER_OFF);
        self.reads += 1;
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        assert_ne!(data, [PANICS], "as the test wants it");
        self.written.push((offset, data.to_vec()));
    }
}

impl Machine {
    /// A machine that begins to run `code`; with KVM's interrupt controllers, `HLT` stays in the kernel.
    fn start(code: &[u8], interrupts: bool) -> Result<Self> {
        Self::start_with(code, interrupts, |_| Ok(()))
    }

    /// The same, after `prepare` has seen the vCPU.
    fn start_with(
        code: &[u8],
        interrupts: bool,
        prepare: impl FnOnce(&VcpuFd) -> Result<()>,
    ) -> Result<Self> {
        install_kick_handler()?;
        let read_only = usize::try_from(READ_ONLY.length)?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0), MEMORY_BYTES),
            (GuestAddress(READ_ONLY.start), read_only),
        ])?;
        memory.write_slice(code, CODE)?;
        memory.write_slice(&vec![POWER_OFF; read_only], GuestAddress(READ_ONLY.start))?;
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let vm = kvm.create_vm()?;
        let slots = [
            (0, u64::try_from(MEMORY_BYTES)?, 0),
            (READ_ONLY.start, READ_ONLY.length, KVM_MEM_READONLY),
        ];
        let (more, places) = later()?;
        let mut all = Vec::new();
        for (start, bytes, flags) in slots {
            let address = memory.get_host_address(GuestAddress(start))?.addr();
            all.push((start, bytes, flags, address));
        }
        for (start, address) in [LATER.start, LATER.start + LATER.length]
            .into_iter()
            .zip(places)
        {
            all.push((start, LATER.length, 0, address));
        }
        let pages = RegisterPages::new()?;
        let address = pages.region().as_ptr().addr();
        let bytes = u64::try_from(pages.region().size())?;
        all.push((REGISTERS.start, bytes, KVM_MEM_READONLY, address));
        for (slot, (start, bytes, flags, address)) in (0_u32..).zip(all) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: start,
                memory_size: bytes,
                userspace_addr: u64::try_from(address)?,
            };
            // SAFETY: the mapping has that size and is dropped after the machine (see the order of the fields).
            unsafe { vm.set_user_memory_region(region) }?;
        }
        if interrupts {
            vm.create_irq_chip()?;
        }
        let vcpu = vm.create_vcpu(0)?;
        enter_at(&vcpu, CODE)?;
        prepare(&vcpu)?;

        let end = MachineEnd::new()?;
        let device = Arc::new(Mutex::new(Probe::default()));
        let mut mmio = Bus::new();
        mmio.insert(DEVICE, device.clone())?;
        mmio.insert(READ_ONLY, device.clone())?;
        mmio.insert(REGISTERS, device.clone())?;
        let buses = Buses {
            ports: Arc::new(ports(&end)?),
            mmio: Arc::new(mmio),
            window: None,
        };
        let vcpu = VcpuHandle::spawn(
            0,
            vcpu,
            buses,
            end.clone(),
            Arc::new(Barrier::new(1)),
            || {},
        )?;
        Ok(Self {
            end,
            vcpu,
            device,
            interrupt: Interrupt::new(EventFd::new(0)?, pages.window(0)),
            _vm: vm,
            _registers: pages,
            _memory: [memory, more],
        })
    }

    /// Waits for the end, and for the vCPU's thread.
    fn wait(self) -> Result<(GuestExit, Arc<Mutex<Probe>>)> {
        let exit = self.exit()?;
        let device = self.device.clone();
        self.join()?;
        Ok((exit, device))
    }

    /// Waits for the end.
    fn exit(&self) -> Result<GuestExit> {
        let limit = rustix::time::Timespec {
            tv_sec: DEADLINE.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let mut fds = [PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)];
        ensure!(poll(&mut fds, Some(&limit))? == 1, "the machine runs on");
        Ok(self.end.get().context("woken without an end")?.clone())
    }

    fn join(self) -> Result<()> {
        let (done, joined) = mpsc::channel();
        let vcpu = self.vcpu;
        std::thread::spawn(move || {
            vcpu.join();
            // Nobody waits any more if the deadline has passed.
            let _ = done.send(());
        });
        joined
            .recv_timeout(DEADLINE)
            .context("the vCPU's thread runs on")
    }

    /// Ends it from outside.
    fn stop(self) -> Result<()> {
        self.end.set(GuestExit::Shutdown);
        self.vcpu.kick();
        self.join()
    }
}

fn enter_at(vcpu: &VcpuFd, address: GuestAddress) -> Result<()> {
    let mut special = vcpu.get_sregs()?;
    for segment in [&mut special.cs, &mut special.ds, &mut special.es] {
        segment.base = 0;
        segment.selector = 0;
    }
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    general.rip = address.0;
    general.rflags = 2;
    vcpu.set_regs(&general)?;
    Ok(())
}

fn ports(end: &MachineEnd) -> Result<Bus> {
    let file = rustix::fs::memfd_create("console", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, u64::try_from(console_ring::FILE_BYTES)?)?;
    let console = ConsoleRing::new(file.into())?;
    let flag = console.panic_flag();
    let serial = SerialPort::new(EventFd::new(0)?, console);
    let mut ports = Bus::new();
    ports.insert(EXIT_PORTS, Arc::new(Mutex::new(ExitPort::new(end.clone()))))?;
    ports.insert(
        RESET_PORTS,
        Arc::new(Mutex::new(ResetPort::new(end.clone(), flag))),
    )?;
    ports.insert(SERIAL_PORTS, Arc::new(Mutex::new(serial)))?;
    Ok(ports)
}

/// Runs `code` to the end of the machine.
fn run(code: &[u8]) -> Result<(GuestExit, Arc<Mutex<Probe>>)> {
    Machine::start(code, false)?.wait()
}

fn expect(code: &[u8], wanted: &GuestExit) -> Result<()> {
    let (exit, _) = run(code)?;
    ensure!(exit == *wanted, "{exit:?}, not {wanted:?}");
    Ok(())
}

fn power_off() -> Result<()> {
    let code = [
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xb0, 0x00, // mov al, 0
        0xee, // out dx, al
        0xb0, POWER_OFF, // mov al, POWER_OFF
        0xee,      // out dx, al
        0xf4,      // hlt
    ];
    expect(&code, &GuestExit::Shutdown)
}

fn reset() -> Result<()> {
    let code = [
        0xb0, 0xfe, // mov al, 0xfe
        0xe6, 0x64, // out 0x64, al
        0xf4, // hlt
    ];
    expect(&code, &GuestExit::Reset)
}

fn panic() -> Result<()> {
    let message = b"Kernel panic - not syncing";
    let mut code = vec![
        0xfc, // cld
        0xbe,
        0x10,
        0x10, // mov si, the message at CODE + 16
        0xb9,
        u8::try_from(message.len())?,
        0x00, // mov cx, its length
        0xba,
        0xf8,
        0x03, // mov dx, 0x3f8
        0xf3,
        0x6e, // rep outsb
        0xb0,
        0xfe, // mov al, 0xfe
        0xe6,
        0x64, // out 0x64, al
    ];
    ensure!(code.len() == 16);
    code.extend(message);
    expect(&code, &GuestExit::Panic)
}

fn triple_fault() -> Result<()> {
    let code = [
        0x0f, 0x0b, // ud2
    ];
    let machine = Machine::start_with(&code, false, |vcpu| {
        // Protected mode, as real mode has a table wherever there is memory.
        let mut special = vcpu.get_sregs()?;
        special.cr0 |= 1;
        special.idt.base = 0;
        special.idt.limit = 0;
        vcpu.set_sregs(&special)?;
        Ok(())
    })?;
    let (exit, _) = machine.wait()?;
    ensure!(exit == GuestExit::TripleFault, "{exit:?}");
    Ok(())
}

fn mmio() -> Result<()> {
    let code = [
        0xb8, 0x00, 0x90, // mov ax, 0x9000
        0x8e, 0xd8, // mov ds, ax
        0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, // mov word [0x10], 0x1234
        0xa0, 0x20, 0x00, // mov al, [0x20]
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xee, // out dx, al
        0xf4, // hlt
    ];
    let (exit, device) = run(&code)?;
    ensure!(exit == GuestExit::Shutdown, "the read went wrong: {exit:?}");
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        device.written == [(0x10, vec![0x34, 0x12])],
        "{:?}",
        device.written
    );
    Ok(())
}

fn read_only() -> Result<()> {
    let code = [
        0xb8, 0x00, 0xa0, // mov ax, 0xa000
        0x8e, 0xd8, // mov ds, ax
        0xc7, 0x06, 0x20, 0x00, 0x34, 0x12, // mov word [0x20], 0x1234
        0xa0, 0x20, 0x00, // mov al, [0x20]
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xee, // out dx, al
        0xf4, // hlt
    ];
    let (exit, device) = run(&code)?;
    ensure!(exit == GuestExit::Shutdown, "the write arrived: {exit:?}");
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        device.written == [(0x20, vec![0x34, 0x12])],
        "{:?}",
        device.written
    );
    Ok(())
}

fn registers() -> Result<()> {
    let code = [
        0xb8, 0x00, 0xc0, // mov ax, 0xc000
        0x8e, 0xd8, // mov ds, ax
        0xc6, 0x06, 0x70, 0x00, 0xff, // mov byte [STATUS], 0xff
        0x80, 0x3e, 0x70, 0x00, 0x40, // cmp byte [STATUS], DEVICE_NEEDS_RESET
        0x75, 0xf9, // jne to the comparison
        0xc6, 0x06, 0x64, 0x00, 0x03, // mov byte [INTERRUPT_ACK], 3
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xb0, POWER_OFF, // mov al, POWER_OFF
        0xee,      // out dx, al
        0xf4,      // hlt
    ];
    let machine = Machine::start(&code, false)?;
    let device = machine.device.clone();
    let written = || {
        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.written.clone()
    };
    let started = Instant::now();
    while written().is_empty() {
        ensure!(started.elapsed() < DEADLINE, "the guest writes nothing");
        std::thread::yield_now();
    }
    machine.interrupt.needs_reset()?;
    let (exit, device) = machine.wait()?;
    ensure!(exit == GuestExit::Shutdown, "{exit:?}");
    ensure!(written() == [(0x70, vec![0xff]), (0x64, vec![3])]);
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(device.reads == 0, "{} reads left the guest", device.reads);
    Ok(())
}

fn not_given() -> Result<()> {
    let reads = |segment: u8, less: u8| {
        [
            0xb8, 0x00, segment, // mov ax, segment
            0x8e, 0xd8, // mov ds, ax
            0xa0, 0x20, 0x00, // mov al, [0x20]
            0x2c, less, // sub al, less
            0xba, 0x01, 0x05, // mov dx, 0x501
            0xee, // out dx, al
            0xf4, // hlt
        ]
    };
    let (exit, _) = run(&reads(0xb0, 0))?;
    ensure!(exit == GuestExit::Shutdown, "what was given: {exit:?}");
    // Where KVM interprets what such a guest does, memory that cannot be reached is a device that is not there, which reads as ones.
    if Path::new("/sys/module/kvm_pvm").exists() {
        let (exit, _) = run(&reads(0xb1, 0xff - POWER_OFF))?;
        ensure!(exit == GuestExit::Shutdown, "what was not: {exit:?}");
        return Ok(());
    }
    let (exit, _) = run(&reads(0xb1, 0))?;
    let is_told = matches!(&exit, GuestExit::KvmError { detail } if detail.contains("not given"));
    ensure!(is_told, "what was not: {exit:?}");
    Ok(())
}

fn absent_port() -> Result<()> {
    let code = [
        0xe4,
        0x71, // in al, 0x71
        0xe6,
        0x71, // out 0x71, al
        0x2c,
        0xff - POWER_OFF, // sub al, 0xff - POWER_OFF
        0xba,
        0x01,
        0x05, // mov dx, 0x501
        0xee, // out dx, al
        0xf4, // hlt
    ];
    expect(&code, &GuestExit::Shutdown)
}

fn halt() -> Result<()> {
    let (exit, _) = run(&[0xf4])?;
    ensure!(matches!(exit, GuestExit::KvmError { .. }), "{exit:?}");
    Ok(())
}

fn spin() -> Result<()> {
    Machine::start(&[0xeb, 0xfe], false)?.stop()
}

fn panicked() -> Result<()> {
    let code = [
        0xb8, 0x00, 0x90, // mov ax, 0x9000
        0x8e, 0xd8, // mov ds, ax
        0xc6, 0x06, 0x00, 0x00, PANICS, // mov byte [0], PANICS
        0xf4,   // hlt
    ];
    let machine = Machine::start(&code, false)?;
    let exit = machine.exit()?;
    let deadline = Instant::now() + DEADLINE;
    // Until the thread has dropped all that it drops.
    while has_thread("vcpu0")? {
        ensure!(Instant::now() < deadline, "the vCPU's thread runs on");
        std::thread::yield_now();
    }
    machine.vcpu.kick();
    machine.join()?;
    ensure!(matches!(exit, GuestExit::KvmError { .. }), "{exit:?}");
    Ok(())
}

fn has_thread(name: &str) -> Result<bool> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let found = std::fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        if found.trim_end() == name {
            return Ok(true);
        }
    }
    Ok(false)
}

fn halted() -> Result<()> {
    Machine::start(&[0xf4], true)?.stop()
}
