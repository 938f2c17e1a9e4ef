//! The options of `run`: what docker's spelling means inside. Few boots, each with many options.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use sandbox_harness::process::wait_until;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("options_hardened_example_works_as_it_stands", hardened),
    ("options_many_are_seen_inside", many),
    ("options_volumes_outlive_containers", volumes),
    (
        "options_privileged_is_the_guests_kernel_and_not_the_hosts",
        privileged,
    ),
    (
        "options_that_cannot_be_honoured_are_refused_with_a_reason",
        refused,
    ),
    ("options_storage_size_is_all_there_is", storage),
];

/// A profile in docker's format that allows everything but a new folder.
const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
}"#;

/// Runs words of a shell's, with `script` for the last.
fn run(world: &World, words: &str, script: &str) -> Result<String> {
    let mut arguments: Vec<&str> = words.split_whitespace().collect();
    arguments.extend(["demo", "sh", "-c", script]);
    Ok(world.sandboxctl(&arguments)?.expect_code(0)?.text())
}

/// The lines that the container printed are these.
fn expect(text: &str, lines: &[&str]) -> Result<()> {
    let found: Vec<&str> = text.lines().map(str::trim_end).collect();
    ensure!(
        found == lines,
        "inside is\n{text}instead of\n{}",
        lines.join("\n")
    );
    Ok(())
}

fn hardened(world: &World) -> Result<()> {
    fs::write(world.path().join("profile.json"), PROFILE)?;
    let script = r#"
        id -u; id -g
        grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '
        touch /f 2>&1 | grep -o 'Read-only file system'
        touch /tmp/f && mkdir /tmp/d 2>&1 | grep -o 'Operation not permitted'
        grep ' /tmp ' /proc/mounts | grep -o 'rw,nosuid,nodev,noexec'
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
    "#;
    let words = "run --name hardened-app --rm --cap-drop ALL --cap-add NET_BIND_SERVICE --read-only \
        --user 1000:1000 --security-opt seccomp=profile.json --security-opt no-new-privileges --memory 512m --cpus 1.0 \
        --tmpfs /tmp:rw,noexec,nosuid";
    expect(
        &run(world, words, script)?,
        &[
            "1000",
            "1000",
            "CapEff: 0000000000000000",
            "CapBnd: 0000000000000400",
            "NoNewPrivs: 1",
            "Seccomp: 2",
            "Read-only file system",
            "Operation not permitted",
            "rw,nosuid,nodev,noexec",
            "536870912",
            "100000 100000",
        ],
    )
}

fn many(world: &World) -> Result<()> {
    let here = world.path();
    fs::create_dir_all(here.join("data"))?;
    fs::write(here.join("data/f"), "from the host\n")?;
    fs::write(here.join("env"), "# comment\nFROM_FILE=1\nBOTH=file\n")?;
    let script = r#"
        hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname
        tail -n 2 /etc/hosts | tr '\t' ' '; cat /etc/resolv.conf
        echo "$FROM_FILE $BOTH $HOME"; pwd
        cat /data/f; echo back > /data/g; echo no > /ro/h 2>/dev/null || echo refused
        stat -c %F /made
        ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        df -k /dev/shm | tail -n 1 | awk '{print $2}'
        stat -c '%F %t:%T' /dev/fuse
        cd /sys/fs/cgroup; cat pids.max memory.max memory.low memory.swap.max cpuset.cpus.effective
        id -G
        grep -E '^(CapEff|Seccomp):' /proc/self/status | tr '\t' ' '
        cat /proc/1/comm
    "#;
    let two = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    let cpus = if two { "0-1" } else { "0" };
    let words = format!(
        "run --rm --hostname web --domainname example.org --add-host db:10.0.0.5 --dns 1.1.1.1 --dns-search a.org \
         --dns-option ndots:2 --env-file env -e BOTH=option -w /tmp -v {0}/data:/data --mount \
         type=bind,source={0}/data,target=/ro,readonly -v ./made:/made --ulimit nofile=50:60 --sysctl \
         net.ipv4.ip_unprivileged_port_start=80 --shm-size 1m --device /dev/fuse --pids-limit 50 --memory 128m \
         --memory-reservation 64m --memory-swap 192m --cpuset-cpus {cpus} --group-add 10 --group-add nogroup --init",
        here.display()
    );
    let text = run(world, &words, script)?;
    let (rest, init) = text.trim_end().rsplit_once('\n').context("no lines")?;
    ensure!(init == "init", "process 1 is not the init: {text}");
    expect(
        rest,
        &[
            "web",
            "web",
            "example.org",
            "10.0.0.5 db",
            "127.0.0.1 web.example.org web",
            "nameserver 1.1.1.1",
            "search a.org",
            "options ndots:2",
            "1 option /root",
            "/tmp",
            "from the host",
            "refused",
            "directory",
            "50",
            "60",
            "80",
            "1024",
            "character special file a:e5",
            "50",
            "134217728",
            "67108864",
            "67108864",
            cpus,
            "0 10 65534",
            "CapEff: 00000000a80425fb",
            "Seccomp: 2",
        ],
    )?;
    ensure!(fs::read_to_string(here.join("data/g"))? == "back\n");
    ensure!(
        !here.join("data/h").exists(),
        "a read-only mount was written to"
    );
    ensure!(
        here.join("made").is_dir(),
        "-v did not make the missing folder"
    );
    Ok(())
}

fn privileged(world: &World) -> Result<()> {
    let before = fs::read_to_string("/proc/sys/kernel/printk")?;
    let script = r#"
        grep -E '^(CapEff|Seccomp):' /proc/self/status | tr '\t' ' '
        mkdir /m && mount -t tmpfs none /m && echo mounted
        echo '3 3 3 3' > /proc/sys/kernel/printk && cat /proc/sys/kernel/printk | tr '\t' ' '
        test -c /dev/fuse -a -c /dev/net/tun && echo devices
        test -r /proc/kcore -o ! -e /proc/kcore && echo unmasked
    "#;
    expect(
        &run(world, "run --rm --privileged", script)?,
        &[
            "CapEff: 000001ffffffffff",
            "Seccomp: 2",
            "mounted",
            "3 3 3 3",
            "devices",
            "unmasked",
        ],
    )?;
    let after = fs::read_to_string("/proc/sys/kernel/printk")?;
    ensure!(before == after, "the host's kernel was changed: {after}");
    Ok(())
}

fn refused(world: &World) -> Result<()> {
    for (words, part) in [
        ("--pid host", "kernel of its own"),
        ("--ipc container:a", "virtual machine of its own"),
        ("--network host", "kernel of its own"),
        ("--network container:a", "virtual machine of its own"),
        ("--network none -p 80:80", "-p needs a network"),
        ("--network none --network bridge", "give --network once"),
        ("--network name=bridge,alias=web", "alias=web"),
        ("--gpus all", "kernel of its own"),
        ("-v /", "cannot be mounted on"),
        ("--mount type=bind,source=/no/such,target=/a", "/no/such"),
        ("--device /dev/sda", "device of this host"),
        ("--security-opt apparmor=strict", "no AppArmor"),
        ("--security-opt seccomp=none.json", "none.json"),
        ("--restart always", "nothing restarts"),
        ("--oom-kill-disable", "--oom-score-adj"),
        ("--platform linux/arm64", "linux/amd64"),
        ("--memory 64m --memory-swap 32m", "together"),
        ("--cap-add FLY", "FLY"),
        ("--cpuset-cpus 0-3 --cpus 1", "needs 4 processors"),
    ] {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(words.split_whitespace());
        arguments.extend(["demo", "true"]);
        world
            .sandboxctl(&arguments)?
            .expect_code(125)
            .with_context(|| words.to_owned())?
            .expect_stderr(&[part])
            .with_context(|| words.to_owned())?;
    }
    Ok(())
}

fn volumes(world: &World) -> Result<()> {
    let said = |arguments: &[&str]| -> Result<String> {
        Ok(world.sandboxctl(arguments)?.expect_code(0)?.text())
    };
    // One writes, another reads; neither can be mistaken for the volume's end.
    let write = "echo kept > /data/file";
    said(&["run", "--rm", "-v", "box:/data", "demo", "sh", "-c", write])?;
    let mount = "type=volume,source=box,target=/other,readonly";
    let script = "cat /other/file; echo no > /other/file";
    let read = world.sandboxctl(&[
        "run", "--name", "user", "--mount", mount, "demo", "sh", "-c", script,
    ])?;
    let read = read.expect_stderr(&["Read-only file system"])?;
    ensure!(read.text() == "kept\n", "{}", read.text());

    let inspected = said(&[
        "inspect",
        "-f",
        "{{(index .Mounts 0).Type}} {{(index .Mounts 0).Name}}",
        "user",
    ])?;
    ensure!(inspected == "volume box\n", "{inspected}");
    let place = said(&["volume", "inspect", "-f", "{{.Mountpoint}}", "box"])?;
    ensure!(std::fs::read_to_string(format!("{}/file", place.trim()))? == "kept\n");
    world
        .sandboxctl(&["volume", "rm", "box"])?
        .expect_code(125)?
        .expect_stderr(&["in use by user"])?;
    said(&["volume", "create", "--label", "tier=db", "other"])?;
    let listed = said(&[
        "volume",
        "ls",
        "--filter",
        "dangling=true",
        "--format",
        "{{.Name}} {{.Labels}}",
    ])?;
    ensure!(listed == "other tier=db\n", "{listed}");
    said(&["rm", "user"])?;
    said(&["volume", "prune", "-f"])?;
    ensure!(said(&["volume", "ls", "-q"])? == "box\nother\n");
    said(&["volume", "rm", "box"])?;
    said(&["volume", "prune", "--all", "-f"])?;
    ensure!(said(&["volume", "ls", "-q"])?.is_empty());
    Ok(())
}

fn storage(world: &World) -> Result<()> {
    let script = "dd if=/dev/zero of=/big bs=1M count=64; echo \"code $?\"; rm /big; echo kept > /small; cat /small";
    let arguments = [
        "run",
        "--name",
        "full",
        "--storage-opt",
        "size=32m",
        "demo",
        "sh",
        "-c",
        script,
    ];
    world
        .sandboxctl(&arguments)?
        .expect_code(0)?
        .expect_stdout("code 1\nkept\n")?
        .expect_stderr(&["No space left on device"])?;
    let told = world.sandboxctl(&["inspect", "-f", "{{.HostConfig.StorageOpt.size}}", "full"])?;
    ensure!(told.text() == "33554432\n", "{}", told.text());
    let size = writable(world)?.len();
    ensure!(size == 32 << 20, "{size}");
    world.sandboxctl(&["rm", "full"])?.expect_code(0)?;

    // What is deleted takes no room on the host either.
    let script = "dd if=/dev/zero of=/big bs=1M count=24 2>/dev/null; sync; echo full; read -r go; rm /big; sync; echo freed; read -r go";
    let arguments = [
        "run",
        "--storage-size",
        "64m",
        "-i",
        "--name",
        "sparse",
        "demo",
        "sh",
        "-c",
        script,
    ];
    let mut client = world.start(&arguments)?;
    client.wait_for_line("full")?;
    let used = || anyhow::Ok(writable(world)?.blocks() * 512);
    let full = used()?;
    ensure!(full > 24 << 20, "{full}");
    client.write(b"go\n")?;
    wait_until("the room on the host", world.setup().limit, || {
        used().ok().filter(|now| *now < 8 << 20)
    })?;
    client.write(b"go\n")?;
    client.finish()?.expect_code(0)?;
    world.sandboxctl(&["rm", "sparse"])?.expect_code(0)?;
    Ok(())
}

/// The only writable layer there is.
fn writable(world: &World) -> Result<fs::Metadata> {
    let mut found = Vec::new();
    for entry in fs::read_dir(world.state_dir().join("containers"))? {
        found.extend(fs::metadata(entry?.path().join("rw.ext4")));
    }
    ensure!(found.len() == 1, "{} writable layers", found.len());
    found.pop().context("none")
}
