//! The numbers of a control group and of network interfaces, by name (`ContainerStatsReply`).
//!
//! The files of a group have four shapes (kernel `Documentation/admin-guide/cgroup-v2.rst`, "Format"): one value,
//! a value for each key, values for each of several devices, and lists, which are not numbers.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

/// The most that is read of one file, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The most numbers in all. A group has about 250.
const MAX_VALUES: usize = 4096;
/// The most network interfaces.
const MAX_INTERFACES: usize = 64;
/// Files of these controllers are read.
const CONTROLLERS: [&str; 5] = ["cpu.", "memory.", "pids.", "io.", "hugetlb."];
/// Numbers for each memory node, of which the guest has one.
const PASSED_OVER: [&str; 1] = ["memory.numa_stat"];
/// Columns of /proc/net/dev.
const COLUMNS: [&str; 16] = [
    "rx_bytes",
    "rx_packets",
    "rx_errors",
    "rx_dropped",
    "rx_fifo",
    "rx_frame",
    "rx_compressed",
    "rx_multicast",
    "tx_bytes",
    "tx_packets",
    "tx_errors",
    "tx_dropped",
    "tx_fifo",
    "tx_collisions",
    "tx_carrier",
    "tx_compressed",
];

/// Numbers by name.
pub(crate) type Values = HashMap<String, u64>;

/// What the group at `path` says of itself.
pub(crate) fn of_group(path: &Path) -> Values {
    let mut values = Values::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let wanted = CONTROLLERS.iter().any(|prefix| name.starts_with(prefix))
            && !PASSED_OVER.contains(&name);
        if wanted && let Some(text) = read(&entry.path()) {
            add_file(&mut values, name, &text);
        }
    }
    values
}

/// Adds the counters of the network interfaces that `/proc/<pid>/net/dev`'s text lists.
pub(crate) fn add_interfaces(values: &mut Values, text: &str) {
    for line in text.lines().skip(2).take(MAX_INTERFACES) {
        let Some((name, counters)) = line.split_once(':') else {
            continue;
        };
        for (column, counter) in COLUMNS.iter().zip(counters.split_whitespace()) {
            if let Ok(counter) = counter.parse() {
                add(values, format!("net/{}/{column}", name.trim()), counter);
            }
        }
    }
}

/// The beginning of a file; `None` if it cannot be read.
pub(crate) fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn add(values: &mut Values, name: String, value: u64) {
    if values.len() < MAX_VALUES {
        values.insert(name, value);
    }
}

fn number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        _ => text.parse().ok(),
    }
}

fn add_file(values: &mut Values, name: &str, text: &str) {
    if name == "cpu.max" {
        let mut words = text.split_whitespace();
        for key in ["quota", "period"] {
            if let Some(value) = words.next().and_then(number) {
                add(values, format!("{name}/{key}"), value);
            }
        }
        return;
    }
    if let Some(value) = number(text.trim()) {
        add(values, name.to_owned(), value);
        return;
    }
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(key) = words.next() else { continue };
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((inner, value)) => (format!("{name}/{key}/{inner}"), value),
                None => (format!("{name}/{key}"), word),
            };
            if let Some(value) = number(value) {
                add(values, name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_shape_become_numbers_by_name() {
        let group = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.stat", "usage_usec 12\nuser_usec 3\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2\n8:16 rbytes=3\n"),
            ("cpu.pressure", "some avg10=0.00 total=7\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("io.prio.class", "no-change\n"),
            ("memory.numa_stat", "anon N0=5\n"),
            ("cgroup.procs", "1\n"),
        ] {
            fs::write(group.path().join(name), text).unwrap();
        }
        let mut values: Vec<_> = of_group(group.path()).into_iter().collect();
        values.sort();
        let expected = [
            ("cpu.max/period", 100_000),
            ("cpu.max/quota", u64::MAX),
            ("cpu.pressure/some/total", 7),
            ("cpu.stat/usage_usec", 12),
            ("cpu.stat/user_usec", 3),
            ("hugetlb.2MB.current", 0),
            ("io.stat/8:0/rbytes", 1),
            ("io.stat/8:0/wbytes", 2),
            ("io.stat/8:16/rbytes", 3),
            ("memory.current", 4096),
            ("memory.max", u64::MAX),
        ];
        assert_eq!(
            values,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
    }

    #[test]
    fn interface_counters_are_named_by_direction() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 1 2 0 0 0 0 0 0 9 8 0 0 0 0 0 0\n";
        let mut values = Values::new();
        add_interfaces(&mut values, text);
        assert_eq!(values["net/lo/rx_bytes"], 1);
        assert_eq!(values["net/lo/tx_packets"], 8);
        assert_eq!(values.len(), 16);
    }

    #[test]
    fn number_of_values_is_bounded() {
        let mut values = Values::new();
        let text: String = (0..10_000).map(|i| format!("k{i} 1\n")).collect();
        add_file(&mut values, "memory.stat", &text);
        assert_eq!(values.len(), MAX_VALUES);
    }
}
