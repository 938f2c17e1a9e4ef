//! On folders that stand for a hierarchy: they have none of the kernel's files but those that a test makes.

use super::*;
use tempfile::TempDir;

struct Tree {
    root: TempDir,
    hierarchy: Hierarchy,
}

fn tree(version: Version, controllers: &[&str]) -> Tree {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy {
        version,
        mount: root.path().to_owned(),
        home: PathBuf::new(),
        controllers: controllers.iter().map(|&one| one.to_owned()).collect(),
    };
    Tree { root, hierarchy }
}

impl Tree {
    fn plan(&self, path: &str) -> Option<Group> {
        Group::plan(&CgroupPath::parse(path).unwrap(), &self.hierarchy)
    }

    fn make(&self, path: &str) -> Group {
        let group = self.plan(path).unwrap();
        group.make(&self.hierarchy).unwrap();
        assert!(group.folder().is_dir());
        group
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.root.path()).unwrap().next().is_none()
    }
}

#[test]
fn group_is_removed_with_what_was_made_above_it() {
    for version in [Version::V1, Version::V2] {
        let tree = tree(version, &["pids"]);
        let group = tree.make("/default/more/c1");
        group.remove().unwrap();
        assert!(tree.is_empty());
        // Once more is no error.
        group.remove().unwrap();
    }
}

#[test]
fn groups_above_that_were_there_stay() {
    let tree = tree(Version::V1, &["memory"]);
    fs::create_dir_all(tree.at("kubepods/pod1")).unwrap();
    let group = tree.make("/kubepods/pod1/ours/c1");
    assert_eq!(group.made, [Path::new("kubepods/pod1/ours")]);
    group.remove().unwrap();
    assert!(tree.at("kubepods/pod1").is_dir() && !tree.at("kubepods/pod1/ours").exists());
}

#[test]
fn group_above_two_is_removed_by_the_last() {
    let tree = tree(Version::V2, &["memory"]);
    let (one, two) = (tree.make("/default/c1"), tree.make("/default/c2"));
    assert!(two.made.is_empty());
    let above = tree.at("default");
    // Only root may mark.
    let is_marked = is_marked(&above);
    one.remove().unwrap();
    assert!(two.folder().is_dir());
    two.remove().unwrap();
    assert_eq!(above.exists(), !is_marked);
}

#[test]
fn group_that_is_there_is_left_alone() {
    let (free, taken) = (tree(Version::V1, &["memory"]), tree(Version::V1, &["pids"]));
    let planned: Vec<_> = [&free, &taken]
        .iter()
        .map(|tree| (tree.hierarchy.clone(), tree.plan("/default/c1").unwrap()))
        .collect();
    fs::create_dir_all(taken.at("default/c1")).unwrap();
    let attempt = Attempt::make(&planned, Limits::default(), &Places::default());
    assert!(attempt.groups.is_empty());
    assert!(
        matches!(
            attempt.problems.as_slice(),
            [CgroupError::Taken { path }] if *path == taken.at("default/c1")
        ),
        "{:?}",
        attempt.problems
    );
    assert!(free.is_empty() && taken.at("default/c1").is_dir());
}

#[test]
fn group_that_cannot_be_entered_is_removed_and_named() {
    let tree = tree(Version::V1, &["freezer"]);
    let planned = [(tree.hierarchy.clone(), tree.plan("/default/c1").unwrap())];
    let attempt = Attempt::make(&planned, Limits::default(), &Places::default());
    assert!(attempt.groups.is_empty() && attempt.problems.len() == 1);
    assert!(tree.is_empty());
}

#[test]
fn scope_is_made_only_in_a_slice_that_is_there() {
    let tree = tree(Version::V2, &["memory"]);
    let path = "a-b.slice:cri:x";
    assert_eq!(tree.plan(path), None);
    fs::create_dir(tree.at("a.slice")).unwrap();
    assert_eq!(tree.plan(path), None);
    fs::create_dir(tree.at("a.slice/a-b.slice")).unwrap();
    let group = tree.make(path);
    assert_eq!(group.folder(), tree.at("a.slice/a-b.slice/cri-x.scope"));
    group.remove().unwrap();
    assert!(tree.at("a.slice/a-b.slice").is_dir());
}

#[test]
fn removal_waits_until_the_group_is_not_busy() {
    let tree = tree(Version::V1, &["memory"]);
    let group = tree.make("/c1");
    let busy = group.folder().join("in the way");
    fs::write(&busy, "").unwrap();
    let freeing = std::thread::spawn(move || fs::remove_file(busy));
    group.remove().unwrap();
    freeing.join().unwrap().unwrap();
    assert!(tree.is_empty());
}

#[test]
fn controllers_are_handed_down_where_they_are_not_yet() {
    let tree = tree(Version::V2, &["memory", "pids"]);
    let file = tree.at("cgroup.subtree_control");
    fs::write(tree.at("cgroup.controllers"), "cpu memory rdma\n").unwrap();
    fs::write(&file, "cpu").unwrap();
    hand_down(tree.root.path());
    assert_eq!(fs::read_to_string(file).unwrap(), "+memory");
}

#[test]
fn cpuset_of_a_new_group_is_that_of_the_one_above() {
    let tree = tree(Version::V1, &["cpuset"]);
    let group = tree.at("c1");
    fs::create_dir(&group).unwrap();
    for (path, text) in [
        ("cpuset.cpus", "0-3\n"),
        ("cpuset.mems", "0\n"),
        ("c1/cpuset.cpus", "\n"),
        ("c1/cpuset.mems", "1\n"),
    ] {
        fs::write(tree.at(path), text).unwrap();
    }
    fill_cpuset(tree.root.path(), &group).unwrap();
    let read = |name| fs::read_to_string(group.join(name)).unwrap();
    assert_eq!(
        (read("cpuset.cpus").as_str(), read("cpuset.mems").as_str()),
        ("0-3", "1\n")
    );
}

fn places(cpus: Option<&str>, mems: Option<&str>) -> Places {
    let list = |text: Option<&str>| text.map(|text| text.parse().unwrap());
    Places {
        cpus: list(cpus),
        mems: list(mems),
    }
}

/// A hierarchy with a group in it that has these lists, and others above it.
fn placed(version: Version, (cpus, mems): (&str, &str)) -> (Tree, Group) {
    let tree = tree(version, &["cpuset"]);
    fs::create_dir(tree.at("c1")).unwrap();
    for (path, text) in [
        ("cpuset.cpus", "0-3\n"),
        ("cpuset.mems", "0-1\n"),
        ("c1/cpuset.cpus", cpus),
        ("c1/cpuset.mems", mems),
    ] {
        fs::write(tree.at(path), text).unwrap();
    }
    let group = tree.plan("/c1").unwrap();
    (tree, group)
}

#[test]
fn group_runs_where_it_is_placed_and_where_it_can_without_a_place() {
    let possible = |name: &str| {
        let path = Path::new("/sys/devices/system").join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let all = [possible("cpu/possible"), possible("node/possible")];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    // What is written here stays beside what was longer, so nothing is.
    for (version, before, wanted, after) in [
        (Version::V1, ("3", "1"), (Some("2"), None), ["2", "0-1"]),
        (Version::V1, ("2", "1"), (None, Some("0")), ["0-3", "0"]),
        (Version::V2, ("", ""), (Some("2"), None), ["2", ""]),
        (
            Version::V2,
            ("", "1"),
            (Some("4,6-7"), Some("0-1")),
            ["4,6-7", "0-1"],
        ),
        // It has processes, so its list cannot be taken away.
        (Version::V2, ("2", "1"), (None, None), [all[0], all[1]]),
    ] {
        let (tree, group) = placed(version, before);
        group.place(version, &places(wanted.0, wanted.1)).unwrap();
        let read = |name| fs::read_to_string(tree.at(name)).unwrap();
        let is = [read("c1/cpuset.cpus"), read("c1/cpuset.mems")];
        assert_eq!(is, after, "{version:?} {wanted:?}");
    }
}

#[test]
fn places_cost_a_problem_where_the_host_has_none_and_nothing_where_none_are_named() {
    let (one, nothing) = (places(Some("0"), None), Places::default());
    let of = |controllers: &[&str]| {
        let tree = tree(Version::V2, controllers);
        let group = tree.make("/c1");
        (vec![(tree.hierarchy.clone(), group)], tree)
    };
    let (without, _tree) = of(&["memory"]);
    assert!(matches!(
        place_all(&without, &one),
        Err(CgroupError::NoCpuset)
    ));
    place_all(&without, &nothing).unwrap();
    // The controller is there, and was not handed down.
    let (with, _tree) = of(&["cpuset"]);
    let refused = place_all(&with, &one).unwrap_err();
    assert!(refused.to_string().ends_with("c1/cpuset.cpus"), "{refused}");
    place_all(&with, &nothing).unwrap();
    assert!(place_all(&[], &one).is_err());
}

#[test]
fn union_of_places_has_no_list_where_one_of_them_has_none() {
    let one = places(Some("0"), Some("0"));
    let both = one.union(&places(Some("2"), None));
    assert_eq!(both, places(Some("0,2"), None));
    let all = both.union(&Places::default());
    assert_eq!(all, Places::default());
    let cpus = Places::of_host().cpus;
    assert!(cpus.is_some_and(|cpus| cpus.count() > 0));
}

#[test]
fn limits_are_written_where_a_controller_takes_them() {
    let (memory, vcpus) = (MemMib::new(256).unwrap(), VcpuCount::new(2).unwrap());
    let bytes = ((256 + 64) << 20).to_string();
    let limited = Config {
        sandbox_memory_overhead_mib: Some(64),
        sandbox_cpu_overhead_percent: Some(50),
        ..Config::default()
    };
    let of = |version, controllers: &[&str], config: &Config| {
        let tree = tree(version, controllers);
        let files = Limits::new(memory, vcpus, config).files(&tree.hierarchy);
        let lines = files.iter().map(|(name, value)| format!("{name}={value}"));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(
        of(Version::V2, &["cpu", "memory", "pids"], &limited),
        [
            format!("pids.max={MAX_PIDS}"),
            format!("memory.max={bytes}"),
            "cpu.max=250000 100000".to_owned(),
        ]
    );
    assert_eq!(
        of(Version::V1, &["memory"], &limited),
        [format!("memory.limit_in_bytes={bytes}")]
    );
    assert_eq!(
        of(Version::V1, &["cpu", "cpuacct"], &limited),
        ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=250000"]
    );
    let none: [&str; 0] = [];
    assert_eq!(
        of(Version::V1, &["memory", "cpu"], &Config::default()),
        none
    );
    let tree = tree(Version::V1, &["pids"]);
    let group = tree.make("/c1");
    let limits = Limits::default();
    assert!(group.limit(&tree.hierarchy, limits).is_err());
    fs::write(tree.at("c1/pids.max"), "max\n").unwrap();
    group.limit(&tree.hierarchy, limits).unwrap();
    assert_eq!(fs::read_to_string(tree.at("c1/pids.max")).unwrap(), "4096");
}
