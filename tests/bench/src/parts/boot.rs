//! A kernel in a machine without anything else: what the machine itself takes, and the kernel.

mod machine;

use anyhow::Result;
use sandbox_harness::Driver;

use self::machine::{Booted, Files};
use crate::lab::{About, Contender, Lab};
use crate::report::{Part, Value};
use crate::subject::{Runtime, Subject, Way};

const ABOUT: About = About {
    name: "boot",
    title: "Boot of the bare kernel",
    about: "The guest kernel with an EROFS image in which there is one program, which as `init` ends the machine at once: no shim, no agent, no jail, one vCPU, 128 MiB, one disk, \
            a serial console. So many machines are started one right after the other. The monitor's marks are its own; of QEMU there are only its start and its end.",
    one_scale: true,
};

/// What runs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// This runtime's monitor.
    Monitor,
    /// QEMU's microvm on KVM.
    QemuKvm,
    /// The same, emulating, as the `qemu` driver does.
    QemuEmulating,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::QemuKvm => "QEMU microvm on KVM",
            Self::QemuEmulating => "QEMU microvm, emulating",
        }
    }

    fn obstacle(self, lab: &Lab) -> Option<String> {
        // Each needs what a subject of other parts does.
        let (runtime, driver) = match self {
            Self::Monitor => (Runtime::Sandbox, Driver::Kvm),
            Self::QemuKvm => (Runtime::QemuMicrovm, Driver::Kvm),
            Self::QemuEmulating => (Runtime::Sandbox, Driver::Qemu),
        };
        Subject::new(Way::Command, runtime).obstacle(lab.host(), driver)
    }
}

pub(super) fn measure(lab: &Lab) -> Part {
    let kinds: &[Kind] = match lab.driver() {
        Driver::Kvm => &[Kind::Monitor, Kind::QemuKvm],
        Driver::Qemu => &[Kind::Monitor, Kind::QemuKvm, Kind::QemuEmulating],
    };
    let files = Files::make(lab).map_err(|error| format!("{error:#}"));
    let missing = files.as_ref().err();
    let contenders = kinds
        .iter()
        .map(|kind| Contender {
            label: kind.label().to_owned(),
            obstacle: kind.obstacle(lab).or_else(|| missing.cloned()),
        })
        .collect();
    ABOUT.measure(contenders, lab.turns(), |index| {
        let files = files.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut values = Vec::new();
        for count in lab.at_once() {
            values.extend(together(lab, files, kinds[index], *count)?);
        }
        Ok(values)
    })
}

fn together(lab: &Lab, files: &Files, kind: Kind, count: usize) -> Result<Vec<Value>> {
    let begun = std::time::Instant::now();
    let machines = (0..count)
        .map(|_| files.start(lab, kind))
        .collect::<Result<Vec<_>>>()?;
    let ended = machines
        .into_iter()
        .map(machine::Machine::wait)
        .collect::<Result<Vec<Booted>>>()?;
    let all = begun.elapsed();
    let mut values = Vec::new();
    if let (1, [one]) = (count, ended.as_slice()) {
        let marks = [
            ("command to monitor's first instruction", one.process),
            ("monitor to first guest instruction (build)", one.build),
            (
                "first guest instruction to init's power-off (kernel)",
                one.kernel,
            ),
        ];
        let known = marks
            .into_iter()
            .filter_map(|(what, time)| Some((what, time?)));
        values.extend(known.map(|(what, time)| Value::took(what, time)));
    }
    values.push(Value::took(format!("{count} at once: all ended"), all));
    Ok(values)
}
