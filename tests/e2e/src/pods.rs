//! Pods under containerd's CRI plugin: several containers in one machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use protobuf::{EnumOrUnknown, MessageField};
use sandbox_harness::containerd::{BRIDGE, Containerd, DEMO_IMAGE};
use sandbox_harness::cri::api::{
    ContainerConfig, ContainerState, Empty, LinuxContainerResources, Mount, NamespaceMode,
    UpdateContainerResourcesRequest,
};
use sandbox_harness::cri::{Cri, Pod, namespaces};
use sandbox_harness::netns::HostNet;
use sandbox_harness::process::wait_until;
use sandbox_harness::{Driver, World};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("pod_containers_share_what_a_pod_shares", shared),
    ("pod_pid_namespace_is_shared_when_asked_for", shared_pids),
    ("pod_container_that_fails_leaves_the_others_alone", failures),
    ("pod_outlives_containerd", restarted),
    ("pod_shim_killed_is_cleaned_up", shim_killed),
];

/// One in which a machine gets a second vCPU, which no machine does on a host with one processor.
pub(crate) const PROCESSORS: &[Case] = &[("pod_machine_has_the_size_of_its_limits", size)];

/// Those in which the machine's devices are looked at.
pub(crate) const DEVICES: &[Case] = &[
    ("pod_volumes_are_live", volumes),
    ("pod_network_is_what_cni_made", network),
];

/// Runs until it is killed; ends at once when it is told to.
pub(crate) const SERVICE: &[&str] = &[
    "sh",
    "-c",
    "trap 'exit 0' TERM; echo up; while :; do sleep 1; done",
];

/// How long what changes on one side may take to be seen on the other: virtiofsd's guests keep names for a second.
const SEEN_WITHIN: Duration = Duration::from_secs(120);

/// A containerd with its CRI plugin.
pub(crate) struct Fixture {
    pub(crate) cri: Cri,
    pub(crate) containerd: Containerd,
}

impl Fixture {
    pub(crate) fn start(world: &World) -> Result<Self> {
        let (containerd, cri) = Containerd::start_with_cri(world, None)?;
        Ok(Self { cri, containerd })
    }

    fn start_with_network(world: &World, net: &HostNet) -> Result<Self> {
        let (containerd, cri) = Containerd::start_with_cri(world, Some(net))?;
        Ok(Self { cri, containerd })
    }

    pub(crate) fn pod(&self, world: &World, name: &str) -> Result<Pod> {
        self.cri
            .run_pod(name, &world.path().join("logs"), |_| {})
            .with_context(|| self.containerd.log())
    }

    /// The same, in a network of CNI's, with its name as its host's.
    pub(crate) fn pod_with_network(&self, world: &World, name: &str) -> Result<Pod> {
        self.cri
            .run_pod(name, &world.path().join("logs"), |config| {
                config.hostname = name.to_owned();
                let context = config.linux.mut_or_insert_default();
                let context = context.security_context.mut_or_insert_default();
                let options = context.namespace_options.mut_or_insert_default();
                options.network = EnumOrUnknown::new(NamespaceMode::POD);
            })
            .with_context(|| self.containerd.log())
    }

    pub(crate) fn service(&self, pod: &Pod, name: &str) -> Result<String> {
        self.run(pod, name, SERVICE)
    }

    pub(crate) fn run(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String> {
        self.cri
            .run_container(pod, name, DEMO_IMAGE, command, |_| {})
            .with_context(|| self.containerd.log())
    }

    pub(crate) fn end(&self, pod: &Pod) -> Result<()> {
        self.cri
            .stop_pod(pod)
            .and_then(|()| self.cri.remove_pod(pod))
            .with_context(|| self.containerd.log())
    }
}

fn running(cri: &Cri, id: &str) -> Result<()> {
    let status = cri.status(id)?;
    let state = EnumOrUnknown::new(ContainerState::CONTAINER_RUNNING);
    ensure!(status.state == state, "{status:?}");
    Ok(())
}

/// containerd writes the log in its own time.
pub(crate) fn logged(world: &World, pod: &Pod, container: &str, text: &str) -> Result<()> {
    wait_until("the log", world.setup().limit, || {
        (pod.log(container) == text).then_some(())
    })
    .with_context(|| format!("{container} logged {:?}", pod.log(container)))
}

fn shared(world: &World) -> Result<()> {
    shared_in(world, &Fixture::start(world)?)
}

pub(crate) fn shared_in(world: &World, fixture: &Fixture) -> Result<()> {
    let cri = &fixture.cri;
    let pod = fixture.pod(world, "one")?;
    let first = fixture.service(&pod, "first")?;
    let second = fixture.service(&pod, "second")?;

    // One machine and one shim, and both containers are behind the guest's kernel.
    world.process(world.setup().driver.monitor())?;
    world.process("containerd-shim-sandbox-v2 -namespace")?;
    let kernel = cri.exec(&first, &["uname", "-r"])?;
    ensure!(
        kernel.starts_with("6.12.") && kernel == cri.exec(&second, &["uname", "-r"])?,
        "{kernel}"
    );

    let namespace =
        |id: &str, kind: &str| cri.exec(id, &["readlink", &format!("/proc/1/ns/{kind}")]);
    for kind in ["ipc", "uts", "net"] {
        let of_first = namespace(&first, kind)?;
        ensure!(of_first == namespace(&second, kind)?, "{kind}: {of_first}");
    }
    for kind in ["pid", "mnt"] {
        let of_first = namespace(&first, kind)?;
        ensure!(of_first != namespace(&second, kind)?, "{kind}: {of_first}");
    }
    cri.exec(
        &first,
        &[
            "sh",
            "-c",
            "echo shared > /dev/shm/word; echo mine > /tmp/word",
        ],
    )?;
    let word = cri.exec(&second, &["cat", "/dev/shm/word"])?;
    ensure!(word == "shared\n", "{word:?}");
    let missing = cri.try_exec(&second, &["cat", "/tmp/word"])?;
    ensure!(missing.exit_code == 1, "{missing:?}");
    let mounted = cri.exec(&second, &["grep", " /dev/shm ", "/proc/mounts"])?;
    ensure!(mounted.starts_with("tmpfs "), "{mounted}");
    let processes = cri.exec(&second, &["ps", "-o", "pid,comm"])?;
    ensure!(!processes.contains("tail"), "{processes}");

    let stats = cri.stats(&first)?.stats;
    ensure!(
        stats.memory.working_set_bytes.value > 0 && stats.cpu.usage_core_nano_seconds.value > 0,
        "{stats:?}"
    );
    logged(world, &pod, "second", "up\n")?;

    // One goes, another comes, the rest stays.
    cri.stop_container(&second, 30)?;
    cri.remove_container(&second)?;
    running(cri, &first)?;
    let third = fixture.run(&pod, "third", &["sh", "-c", "cat /dev/shm/word; exit 3"])?;
    let status = cri.wait_for_end(&third)?;
    ensure!(status.exit_code == 3, "{status:?}");
    logged(world, &pod, "third", "shared\n")?;
    running(cri, &first)?;
    ensure!(cri.is_ready(&pod)?, "the pod is not ready");
    fixture.end(&pod)
}

fn shared_pids(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let cri = &fixture.cri;
    let logs = world.path().join("logs");
    let pod = cri.run_pod("pids", &logs, |config| {
        let context = config.linux.mut_or_insert_default();
        let context = context.security_context.mut_or_insert_default();
        context.namespace_options = MessageField::some(namespaces(NamespaceMode::POD));
    })?;
    let first = fixture.service(&pod, "first")?;
    let second = fixture.run(&pod, "second", &["sh", "-c", "echo up; sleep 12345"])?;
    let seen = cri.exec(&first, &["ps", "-o", "args"])?;
    ensure!(
        seen.contains("sleep 12345") && seen.contains("tail -f /dev/null"),
        "{seen}"
    );
    cri.stop_container(&second, 0)?;
    // It would go on for hours, but is killed with its container, and dies in its own time.
    let mut seen = String::new();
    wait_until("the end of its processes", world.setup().limit, || {
        seen = cri.exec(&first, &["ps", "-o", "args"]).ok()?;
        (!seen.contains("sleep 12345")).then_some(())
    })
    .with_context(|| seen)?;
    running(cri, &first)?;
    fixture.end(&pod)
}

fn failures(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let cri = &fixture.cri;
    let pod = fixture.pod(world, "failing")?;
    let first = fixture.service(&pod, "first")?;
    let hungry = cri.run_container(
        &pod,
        "hungry",
        DEMO_IMAGE,
        // Its memory is counted where it is used.
        &["sh", "-c", "x=x; while :; do x=$x$x; done"],
        |config| {
            let resources = LinuxContainerResources {
                memory_limit_in_bytes: 24 << 20,
                ..Default::default()
            };
            config.linux.mut_or_insert_default().resources = MessageField::some(resources);
        },
    )?;
    let status = cri.wait_for_end(&hungry)?;
    ensure!(status.exit_code == 137, "{status:?}");
    // containerd hears of the end and of its reason on different ways.
    wait_until("the reason of the end", world.setup().limit, || {
        let status = cri.status(&hungry).ok()?;
        (status.reason == "OOMKilled").then_some(())
    })
    .with_context(|| format!("{:?}", cri.status(&hungry)))?;
    let missing = fixture
        .cri
        .run_container(&pod, "missing", DEMO_IMAGE, &["/no/such"], |_| {});
    let error = format!(
        "{:#}",
        missing
            .err()
            .context("a program that is not there started")?
    );
    ensure!(error.contains("/no/such"), "{error}");
    let crashing = fixture.run(
        &pod,
        "crashing",
        &["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"],
    )?;
    let status = cri.wait_for_end(&crashing)?;
    ensure!(status.exit_code == 139, "{status:?}");
    running(cri, &first)?;
    let answer = cri.exec(&first, &["echo", "well"])?;
    ensure!(answer == "well\n", "{answer}");
    fixture.end(&pod)
}

fn limits(quota: i64, memory_mib: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: quota,
        memory_limit_in_bytes: memory_mib << 20,
        ..Default::default()
    }
}

/// A pod of so many vCPUs and MiB, what it is with its kernel's own memory left out.
fn has_size(cri: &Cri, id: &str, vcpus: u64, memory_mib: u64) -> Result<()> {
    let processors = cri.exec(id, &["grep", "-c", "^processor", "/proc/cpuinfo"])?;
    ensure!(processors == format!("{vcpus}\n"), "{processors}");
    let total = cri.exec(id, &["sh", "-c", "grep MemTotal /proc/meminfo"])?;
    let kib: u64 = total
        .split_whitespace()
        .nth(1)
        .context("MemTotal has no number")?
        .parse()?;
    // The limit and the overhead, without what the kernel keeps for itself.
    let of_limits = memory_mib << 10..(memory_mib + 96) << 10;
    ensure!(of_limits.contains(&kib), "{total}, not {of_limits:?}");
    Ok(())
}

/// Has a program in a container hold that much at once. It ends with 137 when its limit or its machine's memory does not suffice, and also
/// when its machine ends, so that a failure says which it was: by `memory.events`, which counts no `max` where it was not the limit, or by the log.
fn holds(fixture: &Fixture, id: &str, mib: u64) -> Result<()> {
    let shell = |script: &str| fixture.cri.exec(id, &["sh", "-c", script]);
    let held = shell(&format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1"));
    held.map(drop).with_context(|| {
        let state = shell("cat /sys/fs/cgroup/memory.events /proc/meminfo");
        let state = state.unwrap_or_else(|error| format!("{error:#}"));
        format!("{state}\n{}", fixture.containerd.log())
    })
}

/// The machine begins with the pod's limits, and grows with a container that is added and with limits that are changed.
fn size(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let cri = &fixture.cri;
    let pod = cri.run_pod("sized", &world.path().join("logs"), |config| {
        config.linux.mut_or_insert_default().resources = MessageField::some(limits(80_000, 200));
    })?;
    let limited = |quota, memory_mib| {
        move |config: &mut ContainerConfig| {
            let resources = MessageField::some(limits(quota, memory_mib));
            config.linux.mut_or_insert_default().resources = resources;
        }
    };
    let first = cri
        .run_container(&pod, "first", DEMO_IMAGE, SERVICE, limited(40_000, 100))
        .with_context(|| fixture.containerd.log())?;
    has_size(cri, &first, 1, 200)?;
    // Under QEMU memory does not grow.
    let grows = world.setup().driver == Driver::Kvm;
    let with = |memory_mib| if grows { memory_mib } else { 200 };

    let second = cri
        .run_container(&pod, "second", DEMO_IMAGE, SERVICE, limited(120_000, 180))
        .with_context(|| fixture.containerd.log())?;
    has_size(cri, &first, 2, with(280))?;

    let update = UpdateContainerResourcesRequest {
        container_id: second.clone(),
        linux: MessageField::some(limits(120_000, 500)),
        ..Default::default()
    };
    let updated = cri.call::<Empty>("RuntimeService/UpdateContainerResources", &update);
    let limit = cri.exec(&second, &["cat", "/sys/fs/cgroup/memory.max"])?;
    if grows {
        updated.with_context(|| fixture.containerd.log())?;
        ensure!(limit == format!("{}\n", 500 << 20), "{limit}");
        has_size(cri, &first, 2, 600)?;
        // More than the machine of 280 + 96 MiB had. Of its 600 + 96 some 50 are the kernel's, and up to 128 are not there for a moment
        // while the kernel reports them as free: 32 blocks of 4.
        holds(&fixture, &second, 420)?;
    } else {
        let error = format!("{:#}", updated.err().context("not refused")?);
        ensure!(error.contains("machine can have"), "{error}");
        ensure!(limit == format!("{}\n", 180 << 20), "{limit}");
        has_size(cri, &first, 2, 200)?;
    }
    fixture.end(&pod)
}

pub(crate) fn mount(host: &Path, container: &str, readonly: bool) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    }
}

/// As kubelet changes a configMap: a new folder, and a link that is replaced at once.
fn publish(folder: &Path, version: &str) -> Result<()> {
    let data = folder.join(format!("..{version}"));
    fs::create_dir_all(&data)?;
    fs::write(data.join("key"), version)?;
    let next = folder.join("..data_tmp");
    symlink(format!("..{version}"), &next)?;
    fs::rename(next, folder.join("..data"))?;
    Ok(())
}

fn volumes(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let cri = &fixture.cri;
    let at = |name: &str| world.path().join("volumes").join(name);
    for name in ["empty", "host", "frozen", "config", "sub/path"] {
        fs::create_dir_all(at(name))?;
    }
    fs::write(at("frozen/f"), "frozen")?;
    fs::write(at("sub/path/file"), "of a subPath")?;
    fs::write(at("sub/secret"), "not shared")?;
    publish(&at("config"), "one")?;
    symlink("..data/key", at("config/key"))?;
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let all = [
        mount(&at("empty"), "/empty", false),
        mount(memory.path(), "/memory", false),
        mount(&at("frozen"), "/frozen", true),
        mount(&at("config"), "/config", true),
        mount(&at("sub/path"), "/sub", false),
        mount(&at("sub/path/file"), "/etc/file", true),
    ];
    let pod = fixture.pod(world, "volumes")?;
    let run = |name: &str| {
        cri.run_container(&pod, name, DEMO_IMAGE, SERVICE, |config| {
            config.mounts = all.to_vec();
        })
    };
    let first = run("first")?;
    let second = run("second")?;

    // What one writes the other reads, and so does the host; and back.
    cri.exec(
        &first,
        &[
            "sh",
            "-c",
            "echo disk > /empty/f; echo memory > /memory/f; echo sub > /sub/g",
        ],
    )?;
    let read = cri.exec(&second, &["cat", "/empty/f", "/memory/f", "/etc/file"])?;
    ensure!(read == "disk\nmemory\nof a subPath", "{read:?}");
    ensure!(fs::read_to_string(at("empty/f"))? == "disk\n");
    ensure!(fs::read_to_string(memory.path().join("f"))? == "memory\n");
    ensure!(fs::read_to_string(at("sub/path/g"))? == "sub\n");
    let listed = cri.exec(&second, &["ls", "/sub"])?;
    ensure!(listed == "file\ng\n", "{listed:?}");
    fs::write(at("empty/from-host"), "host")?;
    let read = cri.exec(&first, &["cat", "/empty/from-host"])?;
    ensure!(read == "host", "{read:?}");
    for target in ["/frozen/f", "/config/x", "/etc/file"] {
        let refused = cri.try_exec(&first, &["sh", "-c", &format!("echo x > {target}")])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.exit_code != 0 && said.contains("Read-only"),
            "{target}: {said}"
        );
    }

    let read = cri.exec(&first, &["cat", "/config/key"])?;
    ensure!(read == "one", "{read:?}");
    publish(&at("config"), "two")?;
    wait_until("the new configuration", SEEN_WITHIN, || {
        let read = cri.exec(&second, &["cat", "/config/key"]).ok()?;
        (read == "two").then_some(())
    })?;

    // One that comes later gets the same, and one that goes takes nothing with it.
    cri.stop_container(&first, 30)?;
    cri.remove_container(&first)?;
    let third = run("third")?;
    let read = cri.exec(&third, &["cat", "/empty/f", "/config/key"])?;
    ensure!(read == "disk\ntwo", "{read:?}");
    let read = cri.exec(&second, &["cat", "/memory/f"])?;
    ensure!(read == "memory\n", "{read:?}");
    fixture.end(&pod)?;
    ensure!(fs::read_to_string(at("empty/f"))? == "disk\n");
    Ok(())
}

/// Answers every request with the container's `/etc/hostname`.
const SERVER: &[&str] = &[
    "sh",
    "-c",
    "busybox httpd -p 80 -h /etc && echo up && while :; do sleep 1; done",
];

fn network(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    network_in(world, &Fixture::start_with_network(world, &net)?, &net)
}

pub(crate) fn network_in(world: &World, fixture: &Fixture, net: &HostNet) -> Result<()> {
    let cri = &fixture.cri;
    let one = fixture.pod_with_network(world, "one")?;
    let two = fixture.pod_with_network(world, "two")?;
    let (of_one, of_two) = (cri.address(&one)?, cri.address(&two)?);
    ensure!(
        of_one.starts_with("10.88.0.") && of_two.starts_with("10.88.0.") && of_one != of_two,
        "{of_one} {of_two}"
    );
    let server = fixture.run(&one, "server", SERVER)?;
    logged(world, &one, "server", "up\n")?;
    // The containers of a pod reach each other at localhost, and other pods by address.
    let neighbour = fixture.service(&one, "neighbour")?;
    let stranger = fixture.service(&two, "stranger")?;
    let fetch = |id: &str, place: &str| {
        let url = format!("http://{place}/hostname");
        cri.exec(id, &["busybox", "wget", "-q", "-O", "-", &url])
    };
    for (id, place) in [
        (&neighbour, "127.0.0.1"),
        (&neighbour, of_one.as_str()),
        (&stranger, of_one.as_str()),
    ] {
        let answer = fetch(id, place)?;
        ensure!(answer == "one\n", "{place}: {answer:?}");
    }
    let own = cri.exec(
        &server,
        &["busybox", "ip", "-4", "-o", "addr", "show", "dev", "eth0"],
    )?;
    ensure!(own.contains(&format!("{of_one}/24")), "{own}");
    let others = cri.try_exec(
        &stranger,
        &[
            "busybox",
            "wget",
            "-q",
            "-O",
            "-",
            "http://127.0.0.1/hostname",
        ],
    )?;
    ensure!(others.exit_code != 0, "a pod reaches another's loopback");
    fixture.end(&two)?;
    let answer = fetch(&neighbour, &of_one)?;
    ensure!(answer == "one\n", "{answer:?}");
    fixture.end(&one)?;
    net.wait_without(&["-o", "link", "show", "master", BRIDGE], "master")
        .context("left on the bridge")
}

fn restarted(world: &World) -> Result<()> {
    let mut fixture = Fixture::start(world)?;
    let pod = fixture.pod(world, "lasting")?;
    restarted_in(&mut fixture, &pod)
}

pub(crate) fn restarted_in(fixture: &mut Fixture, pod: &Pod) -> Result<()> {
    let first = fixture.service(pod, "first")?;
    let second = fixture.run(
        pod,
        "second",
        &[
            "sh",
            "-c",
            "echo up; while ! test -e /tmp/stop; do sleep 1; done; exit 7",
        ],
    )?;
    fixture.containerd.restart()?;
    fixture.cri = fixture.containerd.cri()?;
    let cri = &fixture.cri;
    ensure!(
        cri.is_ready(pod)?,
        "the pod is not ready\n{}",
        fixture.containerd.log()
    );
    running(cri, &first)?;
    let answer = cri.exec(&first, &["echo", "still here"])?;
    ensure!(answer == "still here\n", "{answer}");
    // Its end comes to who came back.
    cri.exec(&second, &["touch", "/tmp/stop"])?;
    let status = cri.wait_for_end(&second)?;
    ensure!(status.exit_code == 7, "{status:?}");
    // And what ended while nobody was there.
    let third = fixture.run(
        pod,
        "third",
        &[
            "sh",
            "-c",
            "echo up; while ! test -e /tmp/stop; do sleep 1; done; sleep 2; exit 9",
        ],
    )?;
    cri.exec(&third, &["touch", "/tmp/stop"])?;
    fixture.containerd.stop();
    fixture.containerd.restart()?;
    fixture.cri = fixture.containerd.cri()?;
    let status = fixture.cri.wait_for_end(&third)?;
    ensure!(status.exit_code == 9, "{status:?}");
    running(&fixture.cri, &first)?;
    fixture.end(pod)
}

fn shim_killed(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let pod = fixture.pod(world, "killed")?;
    shim_killed_in(world, &fixture, &pod)
}

pub(crate) fn shim_killed_in(world: &World, fixture: &Fixture, pod: &Pod) -> Result<()> {
    let cri = &fixture.cri;
    let first = fixture.service(pod, "first")?;
    let second = fixture.service(pod, "second")?;
    world.kill_process("containerd-shim-sandbox-v2 -namespace")?;
    for id in [&first, &second] {
        let status = cri.wait_for_end(id)?;
        // What `delete` says, or containerd's own word where its wait broke off before.
        ensure!(matches!(status.exit_code, 137 | 255), "{status:?}");
    }
    wait_until("the pod is not ready", world.setup().limit, || {
        cri.is_ready(pod).ok().filter(|ready| !ready).map(drop)
    })?;
    let late = cri.run_container(pod, "late", DEMO_IMAGE, SERVICE, |_| {});
    ensure!(late.is_err(), "a container was made in a pod that is gone");
    fixture.end(pod)
}
