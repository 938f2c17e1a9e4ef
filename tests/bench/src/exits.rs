//! Exits of virtual machines by reason, counted by the kernel (its tracing's histograms, `Documentation/trace/histogram.rst`) while nothing
//! else is slower: the event `kvm:kvm_exit` of an instance of the benchmark's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Counts until it is dropped.
pub(crate) struct Exits {
    /// Where tracefs is mounted, for this alone.
    mounted: PathBuf,
    instance: PathBuf,
}

/// Numbers by reason.
pub(crate) type Reasons = BTreeMap<String, u64>;

const EVENT: &str = "events/kvm/kvm_exit";
const HISTOGRAM: &str = "hist:keys=common_pid,isa,exit_reason:size=4096";

impl Exits {
    /// Begins to count, with tracefs in `folder`.
    ///
    /// # Errors
    /// When the host's kernel cannot.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let mounted = folder.join("tracing");
        fs::create_dir_all(&mounted)?;
        let none = None::<&str>;
        mount(
            Some("tracefs"),
            &mounted,
            Some("tracefs"),
            MsFlags::empty(),
            none,
        )
        .context("the host's kernel has no tracefs")?;
        let exits = Self {
            instance: mounted.join(format!("instances/sandbox-bench-{}", std::process::id())),
            mounted,
        };
        if !exits.mounted.join(EVENT).is_dir() {
            bail!("the host's kernel does not trace KVM");
        }
        fs::create_dir(&exits.instance).context("cannot make an instance of tracefs")?;
        fs::write(exits.instance.join(EVENT).join("trigger"), HISTOGRAM)
            .context("the host's kernel has no histograms of events")?;
        Ok(exits)
    }

    /// What these threads have had so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(&self, threads: &BTreeSet<u32>) -> Result<Reasons> {
        let path = self.instance.join(EVENT).join("hist");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(reasons(&text, threads))
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        // Each fails where the one before it in `start` did.
        let off = format!("!{HISTOGRAM}");
        let _ = fs::write(self.instance.join(EVENT).join("trigger"), off);
        let _ = fs::remove_dir(&self.instance);
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.mounted);
    }
}

/// `{ common_pid: 1234, isa: 2, exit_reason: 120 } hitcount: 12`.
fn reasons(text: &str, threads: &BTreeSet<u32>) -> Reasons {
    let mut reasons = Reasons::new();
    for line in text.lines() {
        let Some((keys, count)) = line.split_once("} hitcount:") else {
            continue;
        };
        let key = |name: &str| -> Option<u32> {
            let (_, value) = keys.split_once(&format!("{name}:"))?;
            value.trim_start().split([',', ' ']).next()?.parse().ok()
        };
        let (Some(thread), Some(isa), Some(reason)) =
            (key("common_pid"), key("isa"), key("exit_reason"))
        else {
            continue;
        };
        if let Ok(count) = count.trim().parse::<u64>()
            && threads.contains(&thread)
        {
            *reasons.entry(name(isa, reason)).or_default() += count;
        }
    }
    reasons
}

/// What a reason is called: Intel's manual, volume 3, appendix C; AMD's, volume 2, appendix C (`arch/x86/include/uapi/asm/vmx.h`, `svm.h`).
fn name(isa: u32, reason: u32) -> String {
    const VMX: u32 = 1;
    let known = match (isa == VMX, reason) {
        (true, 0) | (false, 0x40..=0x5f) => "exception",
        (true, 1) | (false, 0x60) => "interrupt of the host's",
        (true, 7) | (false, 0x64) => "interrupt window",
        (true, 10) | (false, 0x72) => "CPUID",
        (true, 12) | (false, 0x78) => "halt",
        (true, 18) | (false, 0x81) => "hypercall",
        (true, 28 | 29) | (false, 0..=0x3f | 0x65) => "control or debug register",
        (true, 30) | (false, 0x7b) => "I/O port",
        (true, 31 | 32) | (false, 0x7c) => "model-specific register",
        (true, 40) | (false, 0x77) => "pause",
        (true, 44 | 56) | (false, 0x401 | 0x402) => "interrupt controller",
        // Devices in memory are pages that are not there on AMD's, and have a reason of their own on Intel's.
        (true, 48 | 49) | (false, 0x400) => "page that is not there, or device in memory",
        (true, 52) => "preemption timer",
        (true, 54) | (false, 0x76 | 0x89) => "cache",
        (true, 55) | (false, 0x8d) => "XSETBV",
        _ => return format!("reason {reason:#x}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_is_read_for_the_threads_that_are_asked_for() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=common_pid,isa,exit_reason\n#\n\n\
            { common_pid:       1234, isa:          2, exit_reason:        120 } hitcount:         12\n\
            { common_pid:       1234, isa:          2, exit_reason:       1024 } hitcount:        345\n\
            { common_pid:       1235, isa:          1, exit_reason:         12 } hitcount:          3\n\
            { common_pid:       1236, isa:          2, exit_reason:        120 } hitcount:          7\n\
            { common_pid:       1234, isa:          2, exit_reason:       9999 } hitcount:          1\n\n\
            Totals:\n    Hits: 367\n    Entries: 4\n    Dropped: 0\n";
        let seen = reasons(text, &BTreeSet::from([1234, 1235]));
        let wanted = [
            ("halt", 15),
            ("page that is not there, or device in memory", 345),
            ("reason 0x270f", 1),
        ];
        let wanted = wanted.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(seen, Reasons::from(wanted));
    }
}
