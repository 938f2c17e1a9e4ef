//! From the agent's numbers to containerd's `io.containerd.cgroups.v2.Metrics`.
//!
//! The numbers are named by file and key of the control group (`ContainerStatsReply` in `agent.proto`); what the guest
//! does not have stays zero. `max` is the largest number on both sides. The interfaces of the guest are in `network`,
//! a field that older containerds skip.

use std::collections::{BTreeMap, HashMap};

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};

/// The type URL that containerd knows them by.
pub(crate) const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// The most devices, page sizes and interfaces of each kind that are passed on.
const MAX_ENTRIES: usize = 256;
/// The longest name of one of them, in bytes.
const MAX_NAME_BYTES: usize = 32;

/// The agent's numbers.
struct Numbers(HashMap<String, u64>);

impl Numbers {
    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Those named `<prefix><entry><separator><key>`, by entry. Names that no kernel makes are left out.
    fn entries(&self, prefix: &str, separator: char) -> BTreeMap<&str, Entry<'_>> {
        let mut entries: BTreeMap<&str, Entry<'_>> = BTreeMap::new();
        let named = self.0.iter().filter_map(|(name, &value)| {
            let (entry, key) = name.strip_prefix(prefix)?.split_once(separator)?;
            let plain = |c: char| c.is_ascii_alphanumeric() || ":.-_@".contains(c);
            let is_name = !entry.is_empty() && entry.len() <= MAX_NAME_BYTES;
            (is_name && entry.chars().all(plain)).then_some((entry, key, value))
        });
        for (entry, key, value) in named {
            if entries.len() < MAX_ENTRIES || entries.contains_key(entry) {
                entries.entry(entry).or_default().0.insert(key, value);
            }
        }
        entries
    }
}

/// The numbers of one device, page size or interface.
#[derive(Default)]
struct Entry<'a>(HashMap<&'a str, u64>);

impl Entry<'_> {
    fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

/// The metrics of a container.
pub(crate) fn metrics(values: HashMap<String, u64>) -> Metrics {
    let numbers = Numbers(values);
    let n = |name: &str| numbers.get(name);
    Metrics {
        pids: Some(PidsStat {
            current: n("pids.current"),
            limit: n("pids.max"),
            ..Default::default()
        })
        .into(),
        cpu: Some(CPUStat {
            usage_usec: n("cpu.stat/usage_usec"),
            user_usec: n("cpu.stat/user_usec"),
            system_usec: n("cpu.stat/system_usec"),
            nr_periods: n("cpu.stat/nr_periods"),
            nr_throttled: n("cpu.stat/nr_throttled"),
            throttled_usec: n("cpu.stat/throttled_usec"),
            nr_bursts: n("cpu.stat/nr_bursts"),
            burst_usec: n("cpu.stat/burst_usec"),
            ..Default::default()
        })
        .into(),
        memory: Some(memory(&numbers)).into(),
        memory_events: Some(MemoryEvents {
            low: n("memory.events/low"),
            high: n("memory.events/high"),
            max: n("memory.events/max"),
            oom: n("memory.events/oom"),
            oom_kill: n("memory.events/oom_kill"),
            oom_group_kill: n("memory.events/oom_group_kill"),
            ..Default::default()
        })
        .into(),
        io: Some(io(&numbers)).into(),
        hugetlb: numbers
            .entries("hugetlb.", '.')
            .into_iter()
            .map(|(size, entry)| HugeTlbStat {
                current: entry.get("current"),
                max: entry.get("max"),
                failcnt: entry.get("events/max"),
                pagesize: size.to_owned(),
                ..Default::default()
            })
            .collect(),
        network: numbers
            .entries("net/", '/')
            .into_iter()
            .map(|(name, entry)| NetworkStat {
                name: name.to_owned(),
                rx_bytes: entry.get("rx_bytes"),
                rx_packets: entry.get("rx_packets"),
                rx_errors: entry.get("rx_errors"),
                rx_dropped: entry.get("rx_dropped"),
                tx_bytes: entry.get("tx_bytes"),
                tx_packets: entry.get("tx_packets"),
                tx_errors: entry.get("tx_errors"),
                tx_dropped: entry.get("tx_dropped"),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// Adds what a container uses to a sum, of which what is limited has no meaning.
pub(crate) fn add(sum: &mut Metrics, metrics: &Metrics) {
    let pids = sum.pids.mut_or_insert_default();
    pids.current = pids.current.saturating_add(metrics.pids.current);
    let cpu = sum.cpu.mut_or_insert_default();
    cpu.usage_usec = cpu.usage_usec.saturating_add(metrics.cpu.usage_usec);
    cpu.user_usec = cpu.user_usec.saturating_add(metrics.cpu.user_usec);
    cpu.system_usec = cpu.system_usec.saturating_add(metrics.cpu.system_usec);
    let memory = sum.memory.mut_or_insert_default();
    for (total, value) in [
        (&mut memory.usage, metrics.memory.usage),
        (&mut memory.anon, metrics.memory.anon),
        (&mut memory.file, metrics.memory.file),
        (&mut memory.inactive_file, metrics.memory.inactive_file),
    ] {
        *total = total.saturating_add(value);
    }
}

fn memory(numbers: &Numbers) -> MemoryStat {
    let stat = |key: &str| numbers.get(&format!("memory.stat/{key}"));
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault_anon")
            .saturating_add(stat("workingset_refault_file")),
        workingset_activate: stat("workingset_activate_anon")
            .saturating_add(stat("workingset_activate_file")),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: numbers.get("memory.current"),
        usage_limit: numbers.get("memory.max"),
        swap_usage: numbers.get("memory.swap.current"),
        swap_limit: numbers.get("memory.swap.max"),
        max_usage: numbers.get("memory.peak"),
        swap_max_usage: numbers.get("memory.swap.peak"),
        ..Default::default()
    }
}

fn io(numbers: &Numbers) -> IOStat {
    let usage = numbers
        .entries("io.stat/", '/')
        .into_iter()
        .filter_map(|(device, entry)| {
            let (major, minor) = device.split_once(':')?;
            Some(IOEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                rbytes: entry.get("rbytes"),
                wbytes: entry.get("wbytes"),
                rios: entry.get("rios"),
                wios: entry.get("wios"),
                ..Default::default()
            })
        })
        .collect();
    IOStat {
        usage,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[(&str, u64)]) -> Metrics {
        metrics(values.iter().map(|&(n, v)| (n.to_owned(), v)).collect())
    }

    #[test]
    fn numbers_are_found_by_their_names() {
        let metrics = of(&[
            ("memory.current", 4096),
            ("memory.max", u64::MAX),
            ("memory.stat/anon", 7),
            ("memory.events/oom_kill", 1),
            ("cpu.stat/usage_usec", 12),
            ("pids.current", 3),
            ("io.stat/254:16/rbytes", 8),
            ("io.stat/254:16/wios", 2),
            ("io.stat/nonsense/rbytes", 8),
            ("hugetlb.2MB.current", 5),
            ("hugetlb.2MB.events/max", 6),
            ("net/eth0/rx_bytes", 100),
            ("net/eth0/tx_dropped", 1),
            ("net/lo/rx_bytes", 9),
            ("of no meaning", 1),
        ]);
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory.anon, 7);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        assert_eq!(metrics.cpu.usage_usec, 12);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        let [device] = metrics.io.usage.as_slice() else {
            panic!("{:?}", metrics.io);
        };
        assert_eq!(
            (device.major, device.minor, device.rbytes, device.wios),
            (254, 16, 8, 2)
        );
        let [pages] = metrics.hugetlb.as_slice() else {
            panic!("{:?}", metrics.hugetlb);
        };
        assert_eq!(
            (pages.pagesize.as_str(), pages.current, pages.failcnt),
            ("2MB", 5, 6)
        );
        let networks: Vec<_> = metrics
            .network
            .iter()
            .map(|n| (n.name.as_str(), n.rx_bytes, n.tx_dropped))
            .collect();
        assert_eq!(networks, [("eth0", 100, 1), ("lo", 9, 0)]);
    }

    #[test]
    fn sum_is_of_what_is_used() {
        let mut sum = Metrics::default();
        let one = of(&[
            ("memory.current", 5),
            ("pids.current", 2),
            ("cpu.stat/usage_usec", u64::MAX),
        ]);
        add(&mut sum, &one);
        add(&mut sum, &one);
        assert_eq!((sum.memory.usage, sum.pids.current), (10, 4));
        assert_eq!(sum.cpu.usage_usec, u64::MAX);
    }

    #[test]
    fn entries_that_no_kernel_has_are_bounded() {
        let many: Vec<(String, u64)> = (0..1000)
            .map(|n| (format!("net/if{n}/rx_bytes"), 1))
            .collect();
        let metrics = metrics(many.into_iter().collect());
        assert_eq!(metrics.network.len(), MAX_ENTRIES);
        let long = format!("net/{}/rx_bytes", "x".repeat(MAX_NAME_BYTES + 1));
        assert!(
            of(&[(&long, 1), ("net/\x1b[2J/rx_bytes", 1)])
                .network
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn arbitrary_names_never_panic(values in prop::collection::hash_map("(net/|io.stat/|hugetlb.)?.{0,40}", any::<u64>(), 0..20)) {
            metrics(values);
        }
    }
}
