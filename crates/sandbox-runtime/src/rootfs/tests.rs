use super::*;
use crate::share::SharedEntry;
use proptest::prelude::*;

fn mount(fstype: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: fstype.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..Default::default()
    }
}

/// The plan, and what of the host it shares: where, and whether read-only.
fn shared_on(
    driver: Driver,
    mounts: &[Mount],
) -> Result<(RootfsPlan, Vec<SharedEntry>), RootfsError> {
    let container = ContainerId::new("c1").unwrap();
    let mut share = SharePlan::new(&container);
    let plan = plan_rootfs(
        &container,
        mounts,
        &mut DeviceAllocator::new(driver),
        &mut share,
        Path::new("/bundle/rootfs"),
    )?;
    Ok((plan, share.into_entries()))
}

fn plan_on(driver: Driver, mounts: &[Mount]) -> Result<RootfsPlan, RootfsError> {
    Ok(shared_on(driver, mounts)?.0)
}

fn shared(mounts: &[Mount]) -> (RootfsPlan, Vec<SharedEntry>) {
    shared_on(Driver::Kvm, mounts).unwrap()
}

fn plan(mounts: &[Mount]) -> Result<RootfsPlan, RootfsError> {
    plan_on(Driver::Kvm, mounts)
}

fn problem(mounts: &[Mount]) -> (usize, MountProblem) {
    match plan(mounts) {
        Err(RootfsError::Mount { index, reason, .. }) => (index, reason),
        other => panic!("{other:?}"),
    }
}

const DIR: &str = "/run/sandbox/containers/c1";

fn layered() -> Vec<Mount> {
    vec![
        mount("erofs", "/l/0.erofs", &["ro", "loop"]),
        mount("erofs", "/l/1.erofs", &["ro"]),
        mount("ext4", "/rw.ext4", &["rw", "loop"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 2 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 2 }}/work:0711:5:6",
                "workdir={{ mount 2 }}/work",
                "upperdir={{ mount 2 }}/upper",
                "lowerdir={{ overlay 1 0 }}",
            ],
        ),
    ]
}

#[test]
fn rootfs_of_layers_becomes_devices_and_an_overlay_in_the_guest() {
    let (plan, entries) = shared(&layered());
    assert!(entries.is_empty());
    let disks: Vec<_> = plan
        .block
        .iter()
        .map(|b| (b.path.to_str().unwrap(), b.read_only, b.serial.as_str()))
        .collect();
    assert_eq!(
        disks,
        [
            ("/l/0.erofs", true, "disk0"),
            ("/l/1.erofs", true, "disk1"),
            ("/rw.ext4", false, "disk2")
        ]
    );
    assert_eq!(plan.root_path, format!("{DIR}/rootfs"));
    let [lower, _, upper, overlay] = plan.guest_mounts.as_slice() else {
        panic!("{:?}", plan.guest_mounts);
    };
    assert_eq!(lower.block_serial(), "disk0");
    assert_eq!(lower.options, ["ro"]);
    assert_eq!(lower.target, format!("{DIR}/mounts/0"));
    assert!(upper.options.is_empty());
    assert_eq!(overlay.literal(), "overlay");
    assert_eq!(overlay.target, plan.root_path);
    assert_eq!(
        overlay.options,
        [
            format!("workdir={DIR}/mounts/2/work"),
            format!("upperdir={DIR}/mounts/2/upper"),
            format!("lowerdir={DIR}/mounts/1:{DIR}/mounts/0"),
        ]
    );
    let made: Vec<_> = overlay
        .mkdir
        .iter()
        .map(|d| (d.path.clone(), d.mode, d.uid, d.gid))
        .collect();
    assert_eq!(
        made,
        [
            (format!("{DIR}/mounts/2/upper"), 0o755, 0, 0),
            (format!("{DIR}/mounts/2/work"), 0o711, 5, 6)
        ]
    );
}

#[test]
fn rootfs_of_one_layer_is_the_root_itself() {
    let plan = plan(&[mount("erofs", "/l.erofs", &[])]).unwrap();
    assert_eq!(plan.guest_mounts[0].target, plan.root_path);
    assert_eq!(plan.guest_mounts[0].options, ["ro"]);
}

#[test]
fn rootfs_overlay_of_the_host_is_an_entry_of_the_shared_folder() {
    let options = ["workdir=/w", "upperdir=/u", "lowerdir=/a:/b"];
    let (plan, entries) = shared(&[mount("overlay", "overlay", &options)]);
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!(
        entry.source,
        SharedSource::Overlay {
            options: options.map(str::to_owned).to_vec()
        }
    );
    assert_eq!(entry.path, Path::new("c1/root"));
    assert!(!entry.read_only);
    assert!(plan.guest_mounts.is_empty());
    assert_eq!(plan.root_path, format!("{DIR}/shared/c1/root"));
}

#[test]
fn rootfs_bind_read_only_is_shared_read_only() {
    let (_, entries) = shared(&[mount("bind", "/src", &["rbind", "ro"])]);
    assert!(entries[0].read_only);
    assert_eq!(
        entries[0].source,
        SharedSource::Path {
            path: "/src".into(),
            recursive: true,
            follows_host: false
        }
    );
}

#[test]
fn rootfs_without_mounts_is_the_specifications() {
    let (_, entries) = shared(&[]);
    assert!(
        matches!(&entries[0].source, SharedSource::Path { path, .. } if path == Path::new("/bundle/rootfs"))
    );
}

#[test]
fn rootfs_mount_that_cannot_be_planned_is_named() {
    let erofs = || mount("erofs", "/l.erofs", &[]);
    assert_eq!(
        problem(&[erofs(), mount("bind", "/x", &[])]),
        (1, MountProblem::HostMountNotAlone)
    );
    assert_eq!(
        problem(&[erofs(), mount("overlay", "o", &["lowerdir=/x"])]),
        (1, MountProblem::HostMountNotAlone)
    );
    assert_eq!(
        problem(&[mount("erofs", "l.erofs", &[])]),
        (0, MountProblem::RelativeSource)
    );
    assert_eq!(
        problem(&[mount("erofs", "/l", &["device=/x"])]),
        (0, MountProblem::UnsupportedOption("device=/x".into()))
    );
    assert_eq!(
        problem(&[mount("mkfs/ext4", "/l", &[])]),
        (0, MountProblem::UnknownType("mkfs/ext4".into()))
    );
    assert_eq!(
        problem(&[mount("overlayy", "/l", &[])]),
        (0, MountProblem::UnknownType("overlayy".into()))
    );
    let late = mount("format/overlay", "overlay", &["lowerdir={{ mount 1 }}"]);
    assert!(matches!(
        problem(&[erofs(), late]),
        (1, MountProblem::Template(TemplateError::NotEarlier { .. }))
    ));
    let without_transformer = mount(
        "format/overlay",
        "overlay",
        &["X-containerd.mkdir.path={{ mount 0 }}/u"],
    );
    assert!(matches!(
        problem(&[erofs(), without_transformer]),
        (1, MountProblem::UnsupportedOption(_))
    ));
}

#[test]
fn rootfs_of_images_below_a_folder_of_the_hosts_is_refused() {
    // What the EROFS snapshotter of containerd 2.2 hands over by default.
    let erofs = || mount("erofs", "/l/0.erofs", &["ro", "loop"]);
    for option in [
        "upperdir=/s/1/fs",
        "workdir=/s/1/work",
        "lowerdir={{ mount 0 }}:/s/2/fs",
    ] {
        let overlay = mount("format/mkdir/overlay", "overlay", &[option, "index=off"]);
        let (index, refused) = problem(&[erofs(), overlay]);
        assert!(
            index == 1 && matches!(refused, MountProblem::HostDirectory(_)),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("default_size"), "{refused}");
    }
}

#[test]
fn directory_outside_the_containers_place_is_refused() {
    for text in [
        "/etc/x",
        "/run/sandboxy/x",
        "/run/sandbox",
        "/run/sandbox/../x",
        "/run/sandbox/a//b",
        "relative",
        "/run/sandbox/a:9",
        "/run/sandbox/a:0755:1",
        "/run/sandbox/a:17777",
        "/run/sandbox/a:0755:-1:0",
    ] {
        assert!(parse_directory(text).is_err(), "{text}");
    }
    assert_eq!(parse_directory("/run/sandbox/a").unwrap().mode, 0o700);
}

#[test]
fn rootfs_with_more_layers_than_devices_fit_has_them_as_files_in_one_share() {
    for driver in [Driver::Kvm, Driver::Qemu] {
        let count = driver.device_slots();
        let fits = vec![mount("erofs", "/l", &[]); count];
        assert_eq!(plan_on(driver, &fits).unwrap().block.len(), count);

        let mut mounts = vec![mount("erofs", "/l", &["ro", "loop"]); count];
        mounts.push(mount("ext4", "/rw", &[]));
        let overlay = format!("lowerdir={{{{ overlay {} 0 }}}}", count - 1);
        mounts.push(mount("format/overlay", "overlay", &[&overlay]));
        let (plan, entries) = shared_on(driver, &mounts).unwrap();
        assert_eq!(plan.block.len(), 1);
        assert_eq!(entries.len(), count);
        assert_eq!(entries[1].path, Path::new("c1/layers/1"));
        assert!(entries.iter().all(|entry| entry.read_only));
        let file = format!("{DIR}/shared/c1/layers/1");
        assert_eq!(plan.guest_mounts[1].literal(), file);
        assert_eq!(plan.guest_mounts[1].fstype, "erofs");
        assert_eq!(plan.guest_mounts[1].options, ["ro"]);
        assert_eq!(plan.guest_mounts[1].target, format!("{DIR}/mounts/1"));
    }
}

#[test]
fn writable_image_of_a_later_container_is_a_file_in_the_share() {
    let mounts = with_overlay(vec![mount("erofs", "/l", &["ro", "loop"])]);
    let container = ContainerId::new("c1").unwrap();
    let mut share = SharePlan::new(&container);
    let mut running = DeviceAllocator::of_running(Driver::Kvm);
    let bundle = Path::new("/bundle");
    let plan = plan_rootfs(&container, &mounts, &mut running, &mut share, bundle).unwrap();
    assert!(plan.block.is_empty());
    let step = &plan.guest_mounts[1];
    assert_eq!(step.fstype, "ext4");
    assert_eq!(step.literal(), format!("{DIR}/shared/c1/layers/1"));
    assert!(step.options.is_empty());
    let entries = share.into_entries();
    let access: Vec<bool> = entries.iter().map(|entry| entry.read_only).collect();
    assert_eq!(access, [true, false]);
}

/// A layer's file of that size, and its path.
fn layer_file(bytes: u64) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (file, path)
}

/// A configuration whose guest image is a file of that size.
fn config_of(image: &tempfile::NamedTempFile) -> Config {
    Config {
        image: Some(image.path().to_owned()),
        ..Config::default()
    }
}

/// The plan, and how many devices are left, in a machine of 64 MiB whose window has 128.
fn mapped(config: &Config, driver: Driver, mounts: &[Mount]) -> (RootfsPlan, usize, usize) {
    let container = ContainerId::new("c1").unwrap();
    let mut share = SharePlan::new(&container);
    let mut devices = DeviceAllocator::new(driver).with_window(config, MemMib::new(64).unwrap());
    let bundle = Path::new("/bundle");
    let plan = plan_rootfs(&container, mounts, &mut devices, &mut share, bundle).unwrap();
    (plan, devices.room(), share.into_entries().len())
}

fn with_overlay(mut mounts: Vec<Mount>) -> Vec<Mount> {
    let layers = mounts.len();
    mounts.push(mount("ext4", "/rw", &[]));
    let overlay = format!("lowerdir={{{{ overlay {} 0 }}}}", layers - 1);
    mounts.push(mount("format/overlay", "overlay", &[&overlay]));
    mounts
}

#[test]
fn layers_that_are_files_are_parts_of_one_device() {
    let files = [3 << 20, 5000, 4096].map(layer_file);
    let mounts = files
        .iter()
        .map(|(_, path)| mount("erofs", path, &["ro", "loop"]));
    let mounts = with_overlay(mounts.collect());
    let (image, _) = layer_file(3 << 20);
    let (plan, room, shared) = mapped(&config_of(&image), Driver::Kvm, &mounts);
    assert_eq!((room, shared), (Driver::Kvm.device_slots() - 2, 0));
    let places: Vec<_> = plan
        .layers
        .iter()
        .map(|l| (l.path.to_str().unwrap(), l.offset, l.bytes))
        .collect();
    let [a, b, c] = files.each_ref().map(|(_, path)| path.as_str());
    // The image is in front.
    let behind = 9 << 20;
    assert_eq!(
        places,
        [
            (a, 6 << 20, 3 << 20),
            (b, behind, 5000),
            (c, behind + 8192, 4096)
        ]
    );
    let [step, second, ..] = plan.guest_mounts.as_slice() else {
        panic!("{:?}", plan.guest_mounts);
    };
    assert_eq!(step.fstype, "erofs");
    assert_eq!(step.options, ["ro", "dax=always"]);
    let range = second.pmem();
    assert_eq!(
        (range.partition, range.offset, range.bytes),
        (3, behind, 8192)
    );
    assert_eq!(plan.block.len(), 1);
    assert_eq!(plan.block[0].path, Path::new("/rw"));
}

#[test]
fn layers_that_are_not_mapped_are_devices_or_files() {
    let (_large, large) = layer_file(100 << 20);
    let (_other, other) = layer_file(50 << 20);
    let (image, _) = layer_file(1);
    let config = config_of(&image);
    let mounts = with_overlay(vec![
        mount("erofs", &large, &[]),
        mount("erofs", &other, &[]),
        mount("erofs", "/dev/null", &[]),
    ]);
    let (plan, _, shared) = mapped(&config, Driver::Kvm, &mounts);
    assert_eq!((plan.layers.len(), plan.block.len(), shared), (1, 3, 0));

    // One device for what is mapped, and the rest of them are too few for the others.
    let slots = Driver::Kvm.device_slots();
    let mut layers = vec![mount("erofs", &large, &[])];
    layers.extend(vec![mount("erofs", &other, &[]); slots - 1]);
    let (plan, room, shared) = mapped(&config, Driver::Kvm, &with_overlay(layers));
    assert_eq!(
        (plan.layers.len(), plan.block.len(), shared),
        (1, 1, slots - 1)
    );
    assert_eq!(room, slots - 3);
}

#[test]
fn hundred_layers_take_one_device() {
    let (_file, path) = layer_file(9000);
    let mounts = with_overlay(vec![mount("erofs", &path, &[]); 100]);
    let (image, _) = layer_file(1);
    let (plan, room, shared) = mapped(&config_of(&image), Driver::Kvm, &mounts);
    assert_eq!((plan.layers.len(), plan.block.len(), shared), (100, 1, 0));
    assert_eq!(room, Driver::Kvm.device_slots() - 2);
}

#[test]
fn layers_are_mapped_only_where_the_driver_can_and_the_configuration_says_so() {
    let (_file, path) = layer_file(9000);
    let mounts = with_overlay(vec![mount("erofs", &path, &[])]);
    let off = Config {
        image_dax: false,
        ..Config::default()
    };
    for (config, driver) in [(Config::default(), Driver::Qemu), (off, Driver::Kvm)] {
        let (plan, _, shared) = mapped(&config, driver, &mounts);
        assert_eq!((plan.layers.len(), plan.block.len(), shared), (0, 2, 0));
    }
}

#[test]
fn everything_shared_comes_through_one_device() {
    let container = ContainerId::new("c1").unwrap();
    let mut share = SharePlan::new(&container);
    assert_eq!(share.guest_mount(), None);
    let mut devices = DeviceAllocator::new(Driver::Qemu);
    let room = devices.room();
    for name in ["a", "b", "c"] {
        let source = SharedSource::Path {
            path: "/x".into(),
            recursive: true,
            follows_host: false,
        };
        let path = share.add(name, String::new(), source, false, &mut devices);
        assert_eq!(path.unwrap(), format!("{DIR}/shared/c1/{name}"));
    }
    assert_eq!(devices.room(), room - 1);
    let step = share.guest_mount().unwrap();
    assert_eq!(
        (step.share_tag(), step.target.as_str()),
        (crate::share::TAG, format!("{DIR}/shared").as_str())
    );
}

#[test]
fn rootfs_with_more_devices_than_there_is_room_for_says_how_many_fit() {
    for driver in [Driver::Kvm, Driver::Qemu] {
        let fits = vec![mount("ext4", "/l", &[]); driver.device_slots()];
        assert!(plan_on(driver, &fits).is_ok());
        let one_more = vec![mount("ext4", "/l", &[]); driver.device_slots() + 1];
        assert_eq!(
            plan_on(driver, &one_more),
            Err(RootfsError::TooManyDevices {
                driver,
                limit: driver.device_slots()
            })
        );
    }
}

proptest! {
    #[test]
    fn rootfs_any_mounts_never_panic_and_stay_in_the_guests_place(
        mounts in prop::collection::vec(
            ("(format/)?(mkdir/)?(erofs|ext4|tmpfs|overlay|bind|x)", "/?[a-z{} ]{0,8}",
             prop::collection::vec("(ro|rw|loop|lowerdir=|X-containerd.mkdir.path=)?(\\{\\{ (mount|overlay 0) [0-3] \\}\\})?[a-z:/.0-7]{0,8}", 0..4)),
            0..6,
        )
    ) {
        let mounts: Vec<Mount> = mounts
            .into_iter()
            .map(|(fstype, source, options)| Mount { type_: fstype, source, options, ..Default::default() })
            .collect();
        if let Ok(plan) = plan(&mounts) {
            for step in &plan.guest_mounts {
                prop_assert!(step.target.starts_with("/run/sandbox/containers/c1/"));
                for directory in &step.mkdir {
                    prop_assert!(directory.path.starts_with("/run/sandbox/"));
                    prop_assert!(!directory.path.contains("/../"));
                }
            }
            if let Some(last) = plan.guest_mounts.last() {
                prop_assert_eq!(&last.target, &plan.root_path);
            } else {
                prop_assert!(plan.root_path.starts_with("/run/sandbox/containers/c1/shared/"));
            }
        }
    }
}

/// A layer with a hash tree, as containerd's EROFS snapshotter hands it over.
fn verified(source: &str, options: &[&str]) -> Mount {
    let root = format!("X-containerd.dmverity.roothash={}", "ab".repeat(32));
    let all = [&["ro", root.as_str()], options].concat();
    mount("dmverity/erofs", source, &all)
}

const AT: &str = "X-containerd.dmverity.hash-offset=8192";
const NAME: &str = "X-containerd.dmverity.device-name=containerd-erofs-1";

#[test]
fn layer_with_a_hash_tree_is_a_device_whose_data_is_held_to_it() {
    let mut mounts = layered();
    mounts[1] = verified("/l/1.erofs", &[AT, NAME]);
    let plan = plan(&mounts).unwrap();
    let step = &plan.guest_mounts[1];
    assert_eq!(
        (step.fstype.as_str(), step.block_serial()),
        ("erofs", "disk1")
    );
    assert_eq!(step.options, ["ro"]);
    let verity = step.verity.as_ref().unwrap();
    assert_eq!(
        (verity.root_hash.as_slice(), verity.hash_offset),
        ([0xab; 32].as_slice(), 8192)
    );
    assert!(plan.guest_mounts[0].verity.is_none());
}

#[test]
fn layers_with_hash_trees_are_files_too_where_devices_are_too_few() {
    let mut mounts: Vec<_> = (0..20)
        .map(|n| verified(&format!("/l/{n}.erofs"), &[AT]))
        .collect();
    mounts.extend(layered().split_off(2));
    let (plan, entries) = shared(&mounts);
    assert_eq!((plan.block.len(), entries.len()), (1, 20));
    assert!(
        plan.guest_mounts[..20]
            .iter()
            .all(|step| step.verity.is_some())
    );
}

#[test]
fn hash_tree_that_is_not_fully_told_is_refused() {
    let long = format!("X-containerd.dmverity.roothash={}", "ab".repeat(33));
    for wrong in [
        verified("/l", &[]),
        verified("/l", &["X-containerd.dmverity.hash-offset=8191"]),
        verified("/l", &["X-containerd.dmverity.hash-offset=-1"]),
        verified("/l", &[AT, "X-containerd.dmverity.no-superblock"]),
        mount("dmverity/erofs", "/l", &["ro", AT]),
        mount("dmverity/erofs", "/l", &["ro", AT, &long]),
        mount(
            "dmverity/ext4",
            "/l",
            &verified("/l", &[AT])
                .options
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        ),
    ] {
        let mut mounts = layered();
        mounts[0] = wrong.clone();
        assert_eq!(problem(&mounts), (0, MountProblem::Verity), "{wrong:?}");
    }
    let mut mounts = layered();
    mounts[0].options.push(AT.to_owned());
    assert_eq!(
        problem(&mounts),
        (0, MountProblem::UnsupportedOption(AT.to_owned()))
    );
}
