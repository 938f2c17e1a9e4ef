//! What a process's memory is (proc(5): `smaps`, `smaps_rollup`).
//!
//! The *proportional* set counts a page that n processes have as 1/n of a page, so sums over processes are what they take
//! together. The *private* set is what would be free if the process ended. Neither has page tables, sockets, or other memory
//! that the kernel holds for a process.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Memory, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The proportional set.
    pub(crate) proportional_kib: u64,
    /// The private set.
    pub(crate) private_kib: u64,
}

impl AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        self.proportional_kib += other.proportional_kib;
        self.private_kib += other.private_kib;
    }
}

/// What a mapping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// What the guest sees as its memory.
    Guest,
    /// Files that the guest sees, and other files that are data.
    File,
    /// Programs and libraries: code, and what they bring as data.
    Program,
    /// The heap, and other memory of the process's own.
    Anonymous,
    /// Stacks of main threads; other threads' are anonymous.
    Stack,
}

impl Kind {
    /// What it is called in a table.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Guest => "guest memory",
            Self::File => "mapped files",
            Self::Program => "program and libraries",
            Self::Anonymous => "heap and anonymous",
            Self::Stack => "main stack",
        }
    }
}

/// Whose mappings they are: only a process that runs a virtual machine has memory of a guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It runs a machine, or serves devices from the machine's memory.
    Machine,
    /// Any other.
    Plain,
}

/// Mappings of a machine's process from this size on that have no file are the guest's. No guest has less. One that is several mappings,
/// because its parts are advised to have large pages or small ones, is counted as a whole.
const GUEST_BYTES: u64 = 48 << 20;

/// One mapping's first line: `55d0c3a00000-55d0c3a21000 rw-p 00000000 00:00 0    [heap]`.
struct Header<'a> {
    from: u64,
    to: u64,
    executable: bool,
    name: &'a str,
}

fn header(line: &str) -> Option<Header<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let from = u64::from_str_radix(from, 16).ok()?;
    let to = u64::from_str_radix(to, 16).ok()?;
    let mut name = rest;
    let mut permissions = "";
    // Permissions, offset, device, inode; what is behind them may have spaces.
    for field in 0..4 {
        let (word, behind) = name
            .trim_start()
            .split_once(' ')
            .unwrap_or((name.trim(), ""));
        if field == 0 {
            permissions = word;
        }
        name = behind;
    }
    Some(Header {
        from,
        to: (to >= from).then_some(to)?,
        executable: permissions.contains('x'),
        name: name.trim(),
    })
}

impl Header<'_> {
    fn has_no_file(&self) -> bool {
        let name = self.name;
        name.is_empty() || name.starts_with("/memfd:") || name.starts_with("[anon")
    }
}

/// A mapping, and what is told of it.
struct Mapping<'a> {
    header: Header<'a>,
    memory: Memory,
    /// Advised to have large pages, or small ones (`hg`, `nh`).
    is_advised: bool,
    /// Of all mappings without a file that are advised and lie one behind the other, this one among them.
    together_bytes: u64,
}

/// All of them, in the order of their addresses. Lines that are neither a mapping's first nor counted are skipped.
fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut all: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        if let Some(header) = header(line) {
            all.push(Mapping {
                together_bytes: header.to - header.from,
                header,
                memory: Memory::default(),
                is_advised: false,
            });
        } else if let Some(now) = all.last_mut() {
            count(&mut now.memory, line);
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                now.is_advised = flags.split(' ').any(|flag| matches!(flag, "hg" | "nh"));
            }
        }
    }
    let follows = |before: &Mapping<'_>, next: &Mapping<'_>| {
        let one = |mapping: &Mapping<'_>| mapping.is_advised && mapping.header.has_no_file();
        one(before) && one(next) && before.header.to == next.header.from
    };
    for run in all.chunk_by_mut(follows) {
        let bytes = run.iter().map(|one| one.together_bytes).sum();
        for one in run {
            one.together_bytes = bytes;
        }
    }
    all
}

fn kind(mapping: &Mapping<'_>, owner: Owner, programs: &[&str]) -> Kind {
    let header = &mapping.header;
    let name = header.name;
    let no_file = header.has_no_file();
    if owner == Owner::Machine && no_file && mapping.together_bytes >= GUEST_BYTES {
        return Kind::Guest;
    }
    match name {
        "[stack]" => Kind::Stack,
        "[vdso]" | "[vvar]" | "[vsyscall]" => Kind::Program,
        _ if header.executable || programs.contains(&name) => Kind::Program,
        _ if no_file || name.starts_with('[') => Kind::Anonymous,
        _ => Kind::File,
    }
}

/// A counted line: `Pss:                 12 kB`.
fn counted(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let number = value.trim().strip_suffix("kB")?.trim();
    Some((name, number.parse().ok()?))
}

fn count(memory: &mut Memory, line: &str) {
    match counted(line) {
        Some(("Pss", kib)) => memory.proportional_kib += kib,
        Some(("Private_Clean" | "Private_Dirty" | "Private_Hugetlb", kib)) => {
            memory.private_kib += kib;
        }
        _ => {}
    }
}

/// Sums mappings up by what they are.
pub(crate) fn by_kind(smaps: &str, owner: Owner) -> BTreeMap<Kind, Memory> {
    // A program's data is not executable; that its file is, shows elsewhere.
    let all = mappings(smaps);
    let programs: Vec<&str> = all
        .iter()
        .map(|mapping| &mapping.header)
        .filter(|header| header.executable && header.name.starts_with('/'))
        .map(|header| header.name)
        .collect();
    let mut sums: BTreeMap<Kind, Memory> = BTreeMap::new();
    for mapping in &all {
        *sums.entry(kind(mapping, owner, &programs)).or_default() += mapping.memory;
    }
    sums
}

/// The sums of `smaps_rollup`.
pub(crate) fn rollup(text: &str) -> Memory {
    let mut memory = Memory::default();
    for line in text.lines() {
        count(&mut memory, line);
    }
    memory
}

/// A process's memory, of all kinds together.
///
/// # Errors
/// When it is gone, or not ours to look at.
pub(crate) fn total(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(rollup(&text))
}

/// A process's memory, by kind.
///
/// # Errors
/// As [`total`].
pub(crate) fn split(pid: i32, owner: Owner) -> Result<BTreeMap<Kind, Memory>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(by_kind(&text, owner))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIXTURE: &str = "\
5600a0000000-5600a0100000 r-xp 00000000 fe:00 131 /opt/a program
Size:               1024 kB
KernelPageSize:        4 kB
Rss:                 600 kB
Pss:                 300 kB
Pss_Dirty:             0 kB
Shared_Clean:        600 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me sd
5600a0100000-5600a0110000 rw-p 00100000 fe:00 131 /opt/a program
Rss:                  64 kB
Pss:                  64 kB
Private_Clean:         4 kB
Private_Dirty:        60 kB
5600a1000000-5600a1021000 rw-p 00000000 00:00 0                          [heap]
Pss:                  80 kB
Private_Dirty:        80 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0 
Pss:               30000 kB
Private_Dirty:     30000 kB
7f0030000000-7f0038000000 rw-s 00000000 00:01 9                          /memfd:ram (deleted)
Pss:                 500 kB
Private_Dirty:         0 kB
7f0040000000-7f0041000000 r--s 00000000 fe:00 77                         /var/lib/layer.erofs
Pss:                 100 kB
Private_Clean:        10 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Pss:                  16 kB
Private_Dirty:        16 kB
7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0                          [vdso]
Pss:                   0 kB
";

    fn memory(proportional_kib: u64, private_kib: u64) -> Memory {
        Memory {
            proportional_kib,
            private_kib,
        }
    }

    #[test]
    fn mappings_of_a_monitor_are_told_apart() {
        let sums = by_kind(FIXTURE, Owner::Machine);
        assert_eq!(
            sums,
            BTreeMap::from([
                (Kind::Guest, memory(30_500, 30_000)),
                (Kind::File, memory(100, 10)),
                (Kind::Program, memory(364, 64)),
                (Kind::Anonymous, memory(80, 80)),
                (Kind::Stack, memory(16, 16)),
            ])
        );
    }

    #[test]
    fn guest_memory_of_several_mappings_is_counted_as_a_whole() {
        let text = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \nPss: 7 kB\nVmFlags: rd wr nh \n\
7f0000200000-7f0003000000 rw-p 00000000 00:00 0 \nPss: 70 kB\nVmFlags: rd wr hg \n\
7f0003000000-7f0003040000 rw-p 00000000 00:00 0 \nPss: 700 kB\nVmFlags: rd wr \n\
7f0008000000-7f0008200000 rw-p 00000000 00:00 0 \nPss: 7000 kB\nVmFlags: rd wr hg \n";
        let sums = by_kind(text, Owner::Machine);
        // A thread's stack beside it, and what lies elsewhere, is not.
        let expected = [
            (Kind::Guest, memory(77, 0)),
            (Kind::Anonymous, memory(7700, 0)),
        ];
        assert_eq!(sums, BTreeMap::from(expected));
    }

    #[test]
    fn plain_process_has_no_memory_of_a_guest() {
        let sums = by_kind(FIXTURE, Owner::Plain);
        assert_eq!(sums.get(&Kind::Guest), None);
        assert_eq!(sums.get(&Kind::Anonymous), Some(&memory(30_580, 30_080)));
    }

    #[test]
    fn rollup_is_summed_and_its_header_is_not_counted() {
        let text = "5600a0000000-7ffd00102000 ---p 00000000 00:00 0    [rollup]\n\
                    Rss:     700 kB\nPss:     310 kB\nPss_Anon:  200 kB\n\
                    Private_Clean:   4 kB\nPrivate_Dirty:  80 kB\nPrivate_Hugetlb: 2 kB\n";
        assert_eq!(rollup(text), memory(310, 86));
    }

    #[test]
    fn our_own_memory_is_read_and_its_parts_make_the_whole() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(total(pid).unwrap().proportional_kib > 0);
        let mut sum = Memory::default();
        for memory in split(pid, Owner::Plain).unwrap().values() {
            sum += *memory;
        }
        assert!(sum.private_kib > 0 && sum.private_kib <= sum.proportional_kib + 1024);
    }

    proptest! {
        #[test]
        fn no_text_stops_the_parser(text in any::<String>()) {
            let _ = by_kind(&text, Owner::Machine);
            let _ = rollup(&text);
        }

        #[test]
        fn sums_do_not_depend_on_how_mappings_are_called(
            mappings in prop::collection::vec((0u64..1 << 20, 1u64..1 << 20, "[ -~]{0,20}", 0u64..1 << 20, 0u64..1 << 20), 0..20)
        ) {
            let mut text = String::new();
            let mut expected = Memory::default();
            for (from, pages, name, proportional, private) in mappings {
                let (from, to) = (from << 12, (from + pages) << 12);
                text.push_str(&format!(
                    "{from:x}-{to:x} rw-p 00000000 fe:00 1 {name}\nPss: {proportional} kB\nPrivate_Dirty: {private} kB\n"
                ));
                expected += memory(proportional, private);
            }
            let mut sum = Memory::default();
            for memory in by_kind(&text, Owner::Machine).values() {
                sum += *memory;
            }
            prop_assert_eq!(sum, expected);
        }
    }
}
