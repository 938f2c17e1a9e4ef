//! A machine: a KVM virtual machine with memory, processors and devices.
//!
//! ```text
//! MachineBasis ──load──> LoadedMachine ──build──> Machine ──start──> RunningMachine ──> its MachineEnd is set
//!                           MachineParts ──┘
//! ```
//!
//! KVM waits for a grace period on each change of a bus or of the memory slots once there are readers, so the
//! order is: all memory slots, the interrupt controllers, then vCPUs and devices. How many slots there are the devices decide, so that none
//! is made before.

mod kvm;
mod loaded;

use std::io;
use std::sync::{Arc, Barrier, Mutex};

use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use sandbox_jail::seccomp::SeccompError;
use sandbox_types::VcpuCount;
use sandbox_types::monitor::MAX_DEVICES;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::cpuid::{CpuidError, Topology};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::pvh::{self, BootError};
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::bus::{Bus, BusDevice, BusError, BusRange};
use crate::devices::power::{EXIT_PORTS, RESET_PORTS};
use crate::devices::serial::SERIAL_PORTS;
use crate::devices::{ConsoleRing, ExitPort, ResetPort, SerialPort};
use crate::end::MachineEnd;
use crate::memory::later::Later;
use crate::memory::window::{ReadOnly, Window};
use crate::memory::{self, MemoryError, lost, unplugged};
use crate::seccomp::{Confinement, RollCall, ThreadKind};
use crate::vcpu::{self, Buses, VcpuError, VcpuHandle};
use crate::virtio::interrupt::VIRTIO_MMIO_INT_VRING;
use crate::virtio::mmio::{INTERRUPT_ACK, MmioError, MmioTransport, QUEUE_NOTIFY};
use crate::virtio::registers::{RegisterPages, Registers, RegistersError};
use crate::virtio::{Interrupt, VirtioDevice, WorkerThread};

pub(crate) use kvm::from_fd;
pub(crate) use loaded::{LoadedMachine, MachineBasis};

/// What else to build it of.
pub(crate) struct MachineParts {
    /// Files that the guest reads as memory, of which one of the devices tells it.
    pub window: Option<Window>,
    /// Memory that it may get later, which one of the devices gives.
    pub later: Option<Later>,
    /// Virtio devices in the order of their addresses, which is that in which the kernel finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the serial port's output goes.
    pub console: ConsoleRing,
    /// What its threads are confined to.
    pub confinement: Confinement,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// KVM refused.
    #[error("KVM refused to {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// Not the stable API.
    #[error("KVM speaks API version {version}, not 12")]
    ApiVersion {
        /// What it speaks.
        version: i32,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A host whose KVM has no memory that is only read.
    #[error("KVM on this host has no read-only memory; set `image_dax = false`")]
    NoReadOnlyMemory,
    /// No handler for accesses to what is not there.
    #[error("cannot handle accesses to files that are lost, and to memory that is not given")]
    Lost {
        /// What the kernel said.
        source: io::Error,
    },
    /// Memory that has to be replaced.
    #[error("cannot give back memory that devices cannot share")]
    GiveBack {
        /// What the kernel said.
        source: io::Error,
    },
    /// Kernel and boot data.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// What a vCPU says of itself.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU's state.
    #[error(transparent)]
    VcpuState(#[from] RegisterError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A device's thread.
    #[error("cannot start the thread of device {name}")]
    Thread {
        /// The device's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread is not confined.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// A place on a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Devices' registers.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// A device's transport.
    #[error(transparent)]
    Transport(#[from] MmioError),
    /// More devices than interrupt lines.
    #[error("a machine has at most {MAX_DEVICES} virtio devices, not {count}")]
    TooManyDevices {
        /// How many there would be.
        count: usize,
    },
    /// No event descriptor.
    #[error("cannot make an event descriptor")]
    Event {
        /// What the kernel said.
        source: io::Error,
    },
}

fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { action, source }
}

fn event() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| MachineError::Event { source })
}

/// A machine that has not run yet.
#[derive(Debug)]
pub(crate) struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
    registers: RegisterPages,
    vcpus: Vec<VcpuFd>,
    buses: Buses,
    end: MachineEnd,
    roll: RollCall,
}

impl Machine {
    /// Builds a machine up to its first instruction.
    ///
    /// # Errors
    /// [`MachineError`].
    pub(crate) fn build(loaded: LoadedMachine, parts: MachineParts) -> Result<Self, MachineError> {
        let LoadedMachine { kvm, vm, vcpus, .. } = loaded;
        if let Some(window) = &parts.window {
            if !kvm.check_extension(Cap::ReadonlyMem) {
                return Err(MachineError::NoReadOnlyMemory);
            }
            lost::end_when_read(&window.host_range())
                .map_err(|source| MachineError::Lost { source })?;
        }
        let window = parts.window.as_ref();
        let memory = memory::add(&loaded.ram, loaded.memory, window, parts.later)?;
        if let Some(range) = parts.later.and_then(|later| later.host_range(&memory)) {
            unplugged::end_when_used(&range).map_err(|source| MachineError::Lost { source })?;
        }
        kvm::add_memory(&vm, &memory)?;
        let registers = RegisterPages::new()?;
        if !kvm.check_extension(Cap::ReadonlyMem) || !kvm::add_registers(&vm, &memory, &registers) {
            eprintln!(
                "sandbox-vmm: without read-only memory for devices' registers, each read of them leaves the guest"
            );
        }
        kvm::create_interrupt_controllers(&vm)?;
        let processors = create_vcpus(&kvm, &vm, vcpus, loaded.entry)?;
        let end = MachineEnd::new().map_err(|source| MachineError::Event { source })?;
        let ports = port_devices(&vm, parts.console, &end)?;
        let mut command_line = loaded.command_line;
        let mut roll = RollCall::new(parts.confinement);
        let places = Places {
            vm: &vm,
            memory: &memory,
            registers: &registers,
        };
        let mut mmio = virtio_devices(&places, parts.devices, &mut command_line, &mut roll)?;
        if let Some(window) = &parts.window {
            mmio.insert(window.range(), Arc::new(Mutex::new(ReadOnly::new())))?;
        }
        pvh::write_boot_data(&memory, loaded.memory, vcpus, &command_line)?;
        Ok(Self {
            vm,
            memory,
            registers,
            vcpus: processors,
            buses: Buses {
                ports: Arc::new(ports),
                mmio: Arc::new(mmio),
                window: parts.window.map(Arc::new),
            },
            end,
            roll,
        })
    }

    /// Starts the vCPUs. When all threads are there and confined, the calling one among them, `first_instruction` is called, right
    /// before they enter the guest.
    ///
    /// # Errors
    /// [`MachineError`]; threads that were started wait for ever then, and the process has to end.
    pub(crate) fn start<T>(
        mut self,
        first_instruction: impl FnOnce() -> T,
    ) -> Result<(RunningMachine, T), MachineError> {
        vcpu::install_kick_handler()?;
        let start = Arc::new(Barrier::new(self.vcpus.len().saturating_add(1)));
        let mut handles = Vec::with_capacity(self.vcpus.len());
        // There are at most 32.
        for (id, vcpu) in (0_u8..).zip(self.vcpus) {
            handles.push(VcpuHandle::spawn(
                id,
                vcpu,
                self.buses.clone(),
                self.end.clone(),
                Arc::clone(&start),
                self.roll.admit(ThreadKind::Vcpu),
            )?);
        }
        self.roll.close()?;
        let value = first_instruction();
        start.wait();
        let running = RunningMachine {
            _vcpus: handles,
            end: self.end,
            _vm: self.vm,
            _memory: self.memory,
            _registers: self.registers,
        };
        Ok((running, value))
    }
}

/// A machine whose vCPUs run until its end is set.
#[derive(Debug)]
pub(crate) struct RunningMachine {
    _vcpus: Vec<VcpuHandle>,
    end: MachineEnd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
    _registers: RegisterPages,
}

impl RunningMachine {
    /// Its end.
    #[must_use]
    pub(crate) fn end(&self) -> &MachineEnd {
        &self.end
    }
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: VcpuCount,
    entry: GuestAddress,
) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("say what its vCPUs support"))?;
    let topology = Topology {
        vcpus: count,
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
    };
    let mut vcpus = Vec::new();
    for id in 0..count.get() {
        let vcpu = vm
            .create_vcpu(u64::from(id))
            .map_err(refused("create a vCPU"))?;
        let cpuid = topology.of_vcpu(supported.as_slice(), id)?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(refused("set what a vCPU says of itself"))?;
        registers::set_common_state(&vcpu, id)?;
        if id == 0 {
            registers::set_boot_state(&vcpu, id, entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn port_devices(vm: &VmFd, console: ConsoleRing, end: &MachineEnd) -> Result<Bus, MachineError> {
    let panic = console.panic_flag();
    let irq = event()?;
    vm.register_irqfd(&irq, layout::SERIAL_GSI)
        .map_err(refused("connect the serial port's interrupt"))?;
    let mut ports = Bus::new();
    let mut insert = |range, device: Arc<Mutex<dyn BusDevice>>| ports.insert(range, device);
    insert(
        SERIAL_PORTS,
        Arc::new(Mutex::new(SerialPort::new(irq, console))),
    )?;
    insert(
        RESET_PORTS,
        Arc::new(Mutex::new(ResetPort::new(end.clone(), panic))),
    )?;
    insert(EXIT_PORTS, Arc::new(Mutex::new(ExitPort::new(end.clone()))))?;
    Ok(ports)
}

/// Where devices are put.
struct Places<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemoryMmap,
    registers: &'a RegisterPages,
}

impl Places<'_> {
    /// What the driver reads of the device with this number, and where.
    fn window(
        &self,
        index: usize,
        device: &dyn VirtioDevice,
    ) -> Result<(Registers, u64), RegistersError> {
        let offset = (index as u64).saturating_mul(layout::VIRTIO_MMIO_BYTES);
        Ok(match device.sees_config_reads() {
            true => (Registers::alone()?, layout::VIRTIO_MMIO_SEEN_START + offset),
            false => (
                self.registers.window(index),
                layout::VIRTIO_MMIO_START + offset,
            ),
        })
    }
}

fn virtio_devices(
    places: &Places<'_>,
    devices: Vec<Box<dyn VirtioDevice>>,
    command_line: &mut String,
    roll: &mut RollCall,
) -> Result<Bus, MachineError> {
    let Places { vm, memory, .. } = *places;
    let count = devices.len();
    if count > MAX_DEVICES {
        return Err(MachineError::TooManyDevices { count });
    }
    let mut mmio = Bus::new();
    // KVM keeps it, and nobody reads it.
    let acknowledged = event()?;
    let lines = layout::FIRST_VIRTIO_GSI..=layout::LAST_GSI;
    for ((index, gsi), device) in (0..).zip(lines).zip(devices) {
        let (registers, start) = places.window(index, device.as_ref())?;
        let irq = event()?;
        vm.register_irqfd(&irq, gsi)
            .map_err(refused("connect a device's interrupt"))?;
        let mut spawn = |(name, kind): (String, ThreadKind)| {
            WorkerThread::spawn(&name, roll.admit(kind))
                .map_err(|source| MachineError::Thread { name, source })
        };
        let thread = spawn(device.thread())?;
        let more_threads = device
            .more_threads()
            .into_iter()
            .map(spawn)
            .collect::<Result<Vec<_>, _>>()?;
        let interrupt = Interrupt::new(irq, registers);
        let transport = MmioTransport::new(device, memory.clone(), interrupt, thread)?
            .with_more_threads(more_threads);
        for (index, kick) in (0_u32..).zip(transport.kicks()) {
            vm.register_ioevent(kick, &IoEventAddress::Mmio(start + QUEUE_NOTIFY), index)
                .map_err(refused("connect a queue's notifications"))?;
        }
        // Writes without an effect, of which there is one for each interrupt of a queue, need not come here.
        let ack = IoEventAddress::Mmio(start + INTERRUPT_ACK);
        vm.register_ioevent(&acknowledged, &ack, VIRTIO_MMIO_INT_VRING)
            .map_err(refused("pass over the acknowledgement of interrupts"))?;
        let range = BusRange {
            start,
            length: layout::VIRTIO_MMIO_BYTES,
        };
        mmio.insert(range, Arc::new(Mutex::new(transport)))?;
        // Linux: Documentation/admin-guide/kernel-parameters, virtio_mmio.device=<size>@<base>:<irq>.
        command_line.push_str(&format!(" virtio_mmio.device=512@{start:#x}:{gsi}"));
    }
    Ok(mmio)
}
