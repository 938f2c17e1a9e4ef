//! What images and callers count on because docker and runc do it, though no specification says so. Few boots, each with many
//! of them.

use std::fs;

use anyhow::{Result, ensure};
use sandbox_harness::World;
use sandbox_harness::layout::{self, Layer};
use serde_json::json;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("habits_links_of_an_image_lead_mounts_inside", links),
    ("habits_folder_at_etc_has_the_containers_files_in_it", etc),
    (
        "habits_exec_joins_a_container_with_control_groups_of_its_own",
        control_groups,
    ),
    (
        "habits_exec_with_a_terminal_has_the_containers_term",
        terminal,
    ),
    (
        "habits_kernel_parameter_that_guards_the_agent_is_refused",
        parameters,
    ),
];

/// Imports an image with links that lead nowhere yet, a folder of an unusual mode, and a `TERM`.
fn import_linked(world: &World) -> Result<()> {
    let top = Layer::default()
        .symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?
        .symlink("data", "/mnt/missing")?
        .directory("plain", 0o710)?
        .finish()?;
    let folder = world.path().join("linked");
    fs::create_dir(&folder)?;
    let config = json!({ "Env": ["PATH=/bin", "TERM=vt100"], "Cmd": ["sh"] });
    layout::write(&folder, "linked", &[layout::busybox_layer()?, top], &config)?;
    let folder = folder.to_string_lossy();
    world
        .sandboxctl(&["image", "import", "--name", "linked", &folder])?
        .expect_code(0)?;
    Ok(())
}

fn links(world: &World) -> Result<()> {
    import_linked(world)?;
    let script = "pwd; cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf; echo kept > /data/f; cat /mnt/missing/f; \
        stat -c %a /plain; cat /proc/sys/vm/max_map_count; touch /x 2>&1 | grep -o 'Read-only file system'";
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--read-only",
            "--network",
            "none",
            "--dns",
            "1.1.1.1",
            "-w",
            "/new/folder",
            "-v",
            "links:/data",
            "--tmpfs",
            "/plain",
            "--sysctl",
            "vm.max_map_count=262144",
            "linked",
            "sh",
            "-c",
            script,
        ])?
        .expect_code(0)?
        .expect_stdout(
            "/new/folder\nnameserver 1.1.1.1\nnameserver 1.1.1.1\nkept\n710\n262144\nRead-only file system\n",
        )?;
    world
        .sandboxctl(&["volume", "rm", "links"])?
        .expect_code(0)?;
    Ok(())
}

fn etc(world: &World) -> Result<()> {
    let folder = world.path().join("etc");
    fs::create_dir(&folder)?;
    fs::write(folder.join("own"), "mine\n")?;
    let bind = format!("{}:/etc", folder.display());
    let script = "cat /etc/own /etc/hostname";
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "-v",
            &bind,
            "--hostname",
            "box",
            "demo",
            "sh",
            "-c",
            script,
        ])?
        .expect_code(0)?
        .expect_stdout("mine\nbox\n")?;
    // What is put there is a place for the container's own file, and not that file.
    ensure!(fs::read_to_string(folder.join("hostname"))?.is_empty());
    Ok(())
}

/// As systemd does it: what was in the container's own group moves down, and a controller is handed on.
fn control_groups(world: &World) -> Result<()> {
    let script = "cd /sys/fs/cgroup; mkdir in; echo 0 > in/cgroup.procs; echo +pids > cgroup.subtree_control; \
        echo handed on; read -r end";
    let mut client = world.start(&[
        "run",
        "--rm",
        "-i",
        "--privileged",
        "--name",
        "groups",
        "demo",
        "sh",
        "-c",
        script,
    ])?;
    client.wait_for_line("handed on")?;
    world
        .sandboxctl(&["exec", "groups", "cat", "/proc/self/cgroup"])?
        .expect_code(0)?
        .expect_stdout("0::/in\n")?;
    client.write(b"end\n")?;
    client.finish()?.expect_code(0)?;
    Ok(())
}

fn terminal(world: &World) -> Result<()> {
    import_linked(world)?;
    let run = ["run", "-d", "--name", "term", "linked", "sleep", "1000"];
    world.sandboxctl(&run)?.expect_code(0)?;
    for (words, expected) in [
        (&["exec", "-t", "term"][..], "vt100"),
        (&["exec", "-t", "-e", "TERM=dumb", "term"][..], "dumb"),
    ] {
        let arguments = [words, &["sh", "-c", "echo $TERM"]].concat();
        let seen = world.sandboxctl(&arguments)?.expect_code(0)?;
        ensure!(seen.text().trim_end() == expected, "{}", seen.text());
    }
    world.sandboxctl(&["rm", "-f", "term"])?.expect_code(0)?;
    Ok(())
}

fn parameters(world: &World) -> Result<()> {
    for name in [
        "kernel.core_pattern",
        "kernel.io_uring_disabled",
        "fs.protected_symlinks",
    ] {
        let parameter = format!("{name}=0");
        world
            .sandboxctl(&["run", "--rm", "--sysctl", &parameter, "demo", "true"])?
            .expect_code(125)?
            .expect_stderr(&[name])?;
    }
    Ok(())
}
