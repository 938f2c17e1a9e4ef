//! How image layers reach the guest: under `kvm` as memory that all guests have in common, else as disks and files.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::layout::{self, Layer};
use sandbox_harness::process::{self, Running};
use sandbox_harness::{Driver, World, leaks};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("layers_of_a_hundred_run", hundred),
    ("layers_mapped_are_not_copied_into_the_guest", not_copied),
    (
        "layers_mapped_by_two_sandboxes_are_in_memory_once_and_so_is_the_guest_image",
        in_memory_once,
    ),
    (
        "layers_mapped_are_not_changed_by_a_guest_that_writes_to_them",
        not_changed,
    ),
    (
        "layers_mapped_and_cut_short_end_the_sandbox_by_name",
        cut_short,
    ),
];

/// Why a test cannot run with this driver.
pub(crate) fn obstacle(name: &str, driver: Driver) -> Option<&'static str> {
    (driver != Driver::Kvm && name.starts_with("layers_mapped_"))
        .then_some("only the kvm driver maps layers")
}

/// Of the file that is read, in KiB: far more than what else moves in a guest.
const FILE_KIB: u64 = 24 << 10;
const FILE_BYTES: usize = 24 << 20;
/// Of an EROFS, and a page.
const BLOCK: usize = 4096;

const GUEST_IMAGE: &str = "guest.erofs";
/// What an agent reads of the guest image at least, in KiB: a part of its code.
const IMAGE_KIB: u64 = 2 << 10;

/// Bytes that are nowhere else, and are not compressed by anything.
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::new();
    while bytes.len() < FILE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// Imports an image of busybox and these layers.
fn import(world: &World, name: &str, layers: Vec<Vec<u8>>) -> Result<()> {
    let folder = world.path().join(name);
    fs::create_dir(&folder)?;
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    let all = [vec![layout::busybox_layer()?], layers].concat();
    layout::write(&folder, name, &all, &config)?;
    world
        .sandboxctl(&["image", "import", "--name", name, &folder.to_string_lossy()])?
        .expect_code(0)?;
    Ok(())
}

/// Imports an image with the file `/big`, and says where its layer is on the host.
fn import_big(world: &World) -> Result<PathBuf> {
    let layer = Layer::default().file("big", 0o644, &content())?.finish()?;
    let digest = hex::encode(Sha256::digest(&layer));
    import(world, "big", vec![layer])?;
    let folder = world.state_dir().join("images/layers");
    let names = fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let path = names
        .iter()
        .map(fs::DirEntry::path)
        .find(|path| path.to_string_lossy().contains(&digest));
    path.with_context(|| format!("no layer {digest} among {names:?}"))
}

/// A copy of the guest image beside the layers. Where the product is on a share, who opens a file of it anew takes away what others have
/// mapped of it.
fn guest_image(world: &World) -> Result<PathBuf> {
    let copy = world.path().join(GUEST_IMAGE);
    if !copy.exists() {
        let built = world.setup().binaries.join("../artifacts/rootfs.erofs");
        fs::copy(&built, &copy).with_context(|| format!("copying {}", built.display()))?;
    }
    Ok(copy)
}

/// `sandboxctl run` of a script in the image with the file, with layers mapped or not.
fn command(world: &World, mapped: bool, options: &[&str], script: &str) -> Result<Command> {
    let config = world.path().join(format!("mapped-{mapped}.toml"));
    let defaults = fs::read_to_string(world.path().join("defaults.toml"))?;
    let image = guest_image(world)?;
    fs::write(
        &config,
        format!("{defaults}image_dax = {mapped}\nimage = {image:?}\n"),
    )?;
    let arguments = [&["run", "--rm"], options, &["big", "sh", "-c", script]].concat();
    let mut command = world.sandboxctl_command(&arguments);
    command.env("SANDBOX_CONFIG", &config);
    Ok(command)
}

fn hundred(world: &World) -> Result<()> {
    let layers = (1..100)
        .map(|number| {
            Layer::default()
                .file(
                    &format!("layer-{number}"),
                    0o644,
                    number.to_string().as_bytes(),
                )?
                .file("last", 0o644, number.to_string().as_bytes())?
                .finish()
        })
        .collect::<Result<Vec<_>>>()?;
    import(world, "hundred", layers)?;
    let script = "ls / | grep -c ^layer-; cat /layer-1 /layer-50 /layer-99 /last";
    world
        .sandboxctl(&["run", "--rm", "hundred", "sh", "-c", script])?
        .expect_code(0)?
        .expect_stdout("99\n1509999")?;
    Ok(())
}

/// By how many KiB the guest's page cache grows when the file is read. Where layers are not mapped it must, or this says nothing.
fn not_copied(world: &World) -> Result<()> {
    import_big(world)?;
    let cached = "awk '/^Cached:/ { print $2 }' /proc/meminfo";
    let script = format!("cat /bin/busybox >/dev/null; {cached}; sha256sum /big; {cached}");
    let sum = hex::encode(Sha256::digest(content()));
    let grown = |mapped: bool| -> Result<u64> {
        let mut run = command(world, mapped, &[], &script)?;
        let said = process::run(&mut run, b"", world.setup().limit)?
            .expect_code(0)?
            .text();
        let lines: Vec<&str> = said.lines().collect();
        let [before, read, after] = lines.as_slice() else {
            anyhow::bail!("{said}");
        };
        ensure!(read.starts_with(&sum), "{read}");
        Ok(after.parse::<u64>()?.saturating_sub(before.parse()?))
    };
    // A guest whose layers are disks has a copy: the control.
    let copied = grown(false)?;
    ensure!(
        copied >= FILE_KIB * 9 / 10,
        "without it the guest has {copied} KiB more"
    );
    let mapped = grown(true)?;
    ensure!(mapped <= FILE_KIB / 10, "the guest has {mapped} KiB more");
    Ok(())
}

/// What a process has of a mapped file, in KiB (proc_pid_smaps(5)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapped {
    resident: u64,
    proportional: u64,
    private: u64,
    dirty: u64,
}

fn mapped(pid: i32, file: &str) -> Result<Mapped> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut found = Mapped::default();
    let mut inside = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        if !name.ends_with(':') {
            inside = line.ends_with(file);
            ensure!(!inside || value == "r--s", "it is mapped {value}");
        } else if inside {
            let number = value.parse().unwrap_or(0);
            match name {
                "Rss:" => found.resident += number,
                "Pss:" => found.proportional += number,
                "Private_Clean:" | "Private_Dirty:" => found.private += number,
                "Shared_Dirty:" => found.dirty += number,
                _ => {}
            }
        }
    }
    Ok(found)
}

fn in_memory_once(world: &World) -> Result<()> {
    let layer = import_big(world)?;
    let name = layer.file_name().context("it has a name")?;
    let name = name.to_string_lossy();
    let start = || -> Result<Running> {
        let script = "cat /big >/dev/null; echo up; cat";
        let mut run = command(world, true, &["-i"], script)?;
        let mut running = Running::start(&mut run, world.setup().limit)?;
        running.wait_for_line("up")?;
        Ok(running)
    };
    let mut one = start()?;
    let mut two = start()?;
    let monitors: Vec<_> = leaks::processes(world.path())
        .into_iter()
        .filter(|process| process.command.contains(world.setup().driver.monitor()))
        .collect();
    ensure!(monitors.len() == 2, "{monitors:?}");
    for monitor in &monitors {
        let now = mapped(monitor.pid, &name)?;
        ensure!(now.resident >= FILE_KIB, "not all of it was read: {now:?}");
        // Each has half of it, and what one has read of the file system's own data and the other has not.
        let half = now.resident / 2 + 512;
        ensure!(now.proportional <= half, "it is not shared: {now:?}");
        ensure!(now.private <= 512, "{now:?}");
        // The agents run from theirs.
        let image = mapped(monitor.pid, GUEST_IMAGE)?;
        ensure!(
            image.resident >= IMAGE_KIB && image.private <= 1024,
            "the guest image: {image:?}"
        );
    }
    for running in [&mut one, &mut two] {
        running.close_stdin();
    }
    one.finish()?.expect_code(0)?;
    two.finish()?.expect_code(0)?;
    Ok(())
}

/// The block of a layer's file that has a page from the middle of `/big` in it, and the page's sum.
fn block_of_big(layer: &[u8]) -> Result<(usize, String)> {
    let content = content();
    let page = &content[FILE_BYTES / 2..][..BLOCK];
    let at = layer.chunks(BLOCK).position(|block| block == page);
    let at = at.context("no block of the layer is a page of the file's")?;
    Ok((at, hex::encode(Sha256::digest(page))))
}

/// In a container that is given everything: overwrites that block in the partition that is the layer, and reads it again. Before
/// and after it must be the layer's, which says that the right one was written to.
fn overwrite(block: usize, sum: &str) -> String {
    format!(
        "of_block() {{ dd if=/tmp/part bs={BLOCK} skip={block} count=1 2>/dev/null | sha256sum | cut -d ' ' -f 1; }}
        for part in /sys/block/pmem0/pmem0p*; do
            IFS=: read -r major minor <$part/dev; rm -f /tmp/part; mknod /tmp/part b $major $minor
            [ \"$(of_block)\" = {sum} ] || continue
            echo found
            dd if=/dev/zero of=/tmp/part bs={BLOCK} seek={block} count=1 conv=notrunc,fsync 2>/dev/null; echo wrote $?
            echo 3 >/proc/sys/vm/drop_caches
            of_block
        done"
    )
}

/// A container may do to its guest what it likes when it is given everything. The file on the host, and what this guest and another
/// read, is as it was.
fn not_changed(world: &World) -> Result<()> {
    let layer = import_big(world)?;
    let bytes = fs::read(&layer)?;
    let before = Sha256::digest(&bytes);
    let (block, block_sum) = block_of_big(&bytes)?;
    let sum = hex::encode(Sha256::digest(content()));
    let script = format!("{}; sha256sum </big", overwrite(block, &block_sum));
    let mut run = command(world, true, &["--privileged"], &script)?;
    let said = process::run(&mut run, b"", world.setup().limit)?
        .expect_code(0)?
        .text();
    let lines: Vec<&str> = said.lines().collect();
    let big = format!("{sum}  -");
    ensure!(
        lines == ["found", "wrote 0", &block_sum, &big],
        "the block's sum is {block_sum}, the file's {sum}:\n{said}"
    );
    ensure!(
        Sha256::digest(fs::read(&layer)?) == before,
        "the file has changed"
    );
    let mut run = command(world, true, &[], "sha256sum </big")?;
    process::run(&mut run, b"", world.setup().limit)?
        .expect_code(0)?
        .expect_stdout(&format!("{big}\n"))?;
    Ok(())
}

fn cut_short(world: &World) -> Result<()> {
    let layer = import_big(world)?;
    let script = "echo up; read go; sha256sum /big; echo went on";
    let mut run = command(world, true, &["-i"], script)?;
    let mut running = Running::start(&mut run, world.setup().limit)?;
    running.wait_for_line("up")?;
    let file = fs::OpenOptions::new().write(true).open(&layer)?;
    let size = file.metadata()?.len();
    // The file system's own data, at the beginning, stays.
    file.set_len(size / 2)?;
    running.write(b"go\n")?;
    let name = layer.file_name().context("it has a name")?;
    let finished = running.finish()?.expect_code(125)?;
    ensure!(!finished.text().contains("went on"), "{}", finished.text());
    finished.expect_stderr(&["image layer changed", &name.to_string_lossy()])?;
    Ok(())
}
