//! What is under a container's files: layers that are held to their hash trees, a writable layer that gives space back, and
//! volumes that nobody named.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::layout::{self, Layer};
use sandbox_harness::process::{run, wait_until};
use sandbox_harness::{Finished, World};
use serde_json::{Value, json};

use crate::Case;

/// In these the machine's devices and helpers take part.
pub(crate) const CASES: &[Case] = &[
    ("verity_changed_byte_is_an_error_and_not_data", verity),
    (
        "verity_of_more_layers_than_devices_is_checked_as_well",
        verity_of_many,
    ),
    ("storage_deleted_bytes_go_back_to_the_host", discard),
    ("volume_of_the_image_begins_with_its_content", image_volume),
    ("volume_that_two_begin_with_is_filled_once", shared_volume),
    (
        "writable_layer_is_sound_after_its_machine_was_killed",
        killed_machine,
    ),
    ("disk_of_the_host_is_mounted_and_is_one_writers_alone", disk),
];

pub(crate) const ABOVE: &[Case] = &[(
    "volume_without_a_name_goes_with_its_container",
    anonymous_volumes,
)];

/// Imports an image of busybox and these layers.
fn import(world: &World, name: &str, layers: Vec<Vec<u8>>, extra: &Value) -> Result<()> {
    let folder = world.path().join(name);
    fs::create_dir(&folder)?;
    let mut config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
        config.extend(extra.clone());
    }
    let all = [vec![layout::busybox_layer()?], layers].concat();
    layout::write(&folder, name, &all, &config)?;
    world
        .sandboxctl(&["image", "import", "--name", name, &folder.to_string_lossy()])?
        .expect_code(0)
        .map(drop)
}

/// Changes one byte of what is `marker` in one of the store's layers.
fn flip(world: &World, marker: &[u8]) -> Result<()> {
    let layers = fs::read_dir(world.state_dir().join("images/layers"))?;
    for layer in layers.flatten() {
        let bytes = fs::read(layer.path())?;
        let Some(at) = bytes.windows(marker.len()).position(|part| part == marker) else {
            continue;
        };
        let file = fs::File::options().write(true).open(layer.path())?;
        file.write_all_at(&[marker[0] ^ 1], u64::try_from(at)?)?;
        file.sync_all()?;
        return Ok(());
    }
    anyhow::bail!("no layer has {}", String::from_utf8_lossy(marker))
}

const MARKER: &str = "Marked-by-the-test";

fn disk(world: &World) -> Result<()> {
    let image = world.path().join("disk.img");
    fs::File::create(&image)?.set_len(16 << 20)?;
    let path = image.to_string_lossy();
    let made = Command::new("mkfs.ext4").args(["-q", &path]).status()?;
    ensure!(made.success(), "mkfs.ext4: {made}");
    let with = |fields: &str| format!("type=block,source={path},target=/data{fields}");
    let run = |fields: &str, script: &str| -> Result<Finished> {
        let mount = with(fields);
        world.sandboxctl(&["run", "--rm", "--mount", &mount, "demo", "sh", "-c", script])
    };
    let script = "grep ' /data ' /proc/mounts | cut -d' ' -f3; echo kept >/data/file; sync";
    run("", script)?.expect_code(0)?.expect_stdout("ext4\n")?;
    // The machine is gone, and what was written is on the disk, of which nobody writes through a read-only mount.
    let before = fs::read(&image)?;
    let script = "cat /data/file; echo more >/data/file";
    run(",readonly", script)?
        .expect_code(1)?
        .expect_stdout("kept\n")?
        .expect_stderr(&["Read-only file system"])?;
    ensure!(
        fs::read(&image)? == before,
        "a read-only disk was written to"
    );

    let script = "echo up; read -r go";
    let mount = with("");
    let mut client = world.start(&[
        "run", "-i", "--rm", "--mount", &mount, "demo", "sh", "-c", script,
    ])?;
    client.wait_for_line("up")?;
    for fields in ["", ",readonly"] {
        run(fields, "true")?
            .expect_code(125)?
            .expect_stderr(&["disk.img is in use", "the only one who has it"])?;
    }
    client.write(b"go\n")?;
    client.finish()?.expect_code(0)?;
    run("", "cat /data/file")?
        .expect_code(0)?
        .expect_stdout("kept\n")?;

    fs::write(&image, vec![0; 4096])?;
    run("", "true")?
        .expect_code(125)?
        .expect_stderr(&["neither an ext4 nor an EROFS file system"])?;
    Ok(())
}

fn verity(world: &World) -> Result<()> {
    let data = Layer::default()
        .directory("data", 0o755)?
        .file("data/marked", 0o644, MARKER.as_bytes())?
        .file("data/whole", 0o644, b"whole\n")?
        .finish()?;
    import(world, "marked", vec![data], &json!({}))?;
    let read = |options: &[&str]| -> Result<Finished> {
        let script = "cat /data/whole; cat /data/marked";
        let arguments = [&["run", "--rm"], options, &["marked", "sh", "-c", script]].concat();
        world.sandboxctl(&arguments)
    };
    let whole = format!("whole\n{MARKER}");
    read(&["--verity"])?.expect_code(0)?.expect_stdout(&whole)?;
    flip(world, MARKER.as_bytes())?;
    // The control: without it the changed byte is data.
    let changed = whole.replace("Marked", "Larked");
    read(&[])?.expect_code(0)?.expect_stdout(&changed)?;
    let refused = read(&["--verity"])?.expect_code(1)?;
    ensure!(
        refused.stderr.contains("Input/output error") && !refused.text().contains("arked-by"),
        "standard output {:?}, standard error {:?}",
        refused.text(),
        refused.stderr
    );
    Ok(())
}

fn verity_of_many(world: &World) -> Result<()> {
    let layers = (0..20)
        .map(|n| {
            let content = format!("{MARKER} {n}\n");
            Layer::default()
                .file(&format!("file{n}"), 0o644, content.as_bytes())?
                .finish()
        })
        .collect::<Result<_>>()?;
    import(world, "many", layers, &json!({}))?;
    flip(world, format!("{MARKER} 7\n").as_bytes())?;
    // The other way of asking for it.
    let config = world.path().join("verity.toml");
    fs::write(&config, "layer_verity = true\nboot_timeout_s = 150\n")?;
    let script = "cat file3 file11; cat file7 || echo refused";
    let mut command =
        world.sandboxctl_command(&["run", "--rm", "--workdir", "/", "many", "sh", "-c", script]);
    command.env("SANDBOX_CONFIG", &config);
    let finished = run(&mut command, b"", world.setup().limit)?;
    finished
        .expect_code(0)?
        .expect_stdout(&format!("{MARKER} 3\n{MARKER} 11\nrefused\n"))
        .map(drop)
}

/// Where the writable layer of the only container is.
fn writable_layer(world: &World) -> Result<PathBuf> {
    let folder = fs::read_dir(world.state_dir().join("containers"))?
        .flatten()
        .map(|entry| entry.path().join("rw.ext4"))
        .find(|path| path.exists());
    folder.context("there is a container with a writable layer")
}

fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

fn discard(world: &World) -> Result<()> {
    const WRITTEN: u64 = 100 << 20;
    let script = "yes | head -c 104857600 >/file && sync && echo written; read line; rm /file; sync; echo deleted; cat";
    let mut running = world.start(&["run", "--rm", "-i", "demo", "sh", "-c", script])?;
    running.wait_for_line("written")?;
    let file = writable_layer(world)?;
    let before = allocated(&file)?;
    ensure!(before > WRITTEN, "{before} bytes on the host");
    running.write(b"\n")?;
    running.wait_for_line("deleted")?;
    wait_until(
        "that the host has its space back",
        world.setup().limit,
        || {
            allocated(&file)
                .is_ok_and(|now| now < before - WRITTEN * 9 / 10)
                .then_some(())
        },
    )?;
    running.close_stdin();
    running.finish()?.expect_code(0)?;
    Ok(())
}

fn killed_machine(world: &World) -> Result<()> {
    // First, files that are synced, and others that are written until the end; then more of them, over what looks free; last, a look at all.
    let script = "files='1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16'; \
        if [ ! -e /kept ]; then \
            mkdir /kept; for n in $files; do yes $n | head -c 100000 >/kept/$n; done; sync; echo written; \
            while :; do mkdir -p /busy; for n in $files; do yes busy | head -c 50000 >/busy/$n; done; rm -r /busy; done; \
        fi; \
        if [ ! -e /more ]; then \
            mkdir /more; for n in $files; do yes more | head -c 4000000 >/more/$n; done; exit; \
        fi; \
        for n in $files; do \
            yes $n | head -c 100000 | cmp - /kept/$n && yes more | head -c 4000000 | cmp - /more/$n || exit 3; \
        done; echo whole";
    let create = ["create", "--name", "killed", "demo", "sh", "-c", script];
    world.sandboxctl(&create)?.expect_code(0)?;
    let mut running = world.start(&["start", "-a", "killed"])?;
    running.wait_for_line("written")?;
    world.kill_process(world.setup().driver.monitor())?;
    running.finish()?;
    // The control: it was in use.
    let file = writable_layer(world)?;
    ensure!(needs_recovery(&file)?, "it was unmounted");
    for said in ["", "whole\n"] {
        world
            .sandboxctl(&["start", "-a", "killed"])?
            .expect_code(0)?
            .expect_stdout(said)?;
        ensure!(!needs_recovery(&file)?, "it was not unmounted");
        let checked = Command::new("e2fsck").arg("-fn").arg(&file).output()?;
        ensure!(
            checked.status.success(),
            "e2fsck: {}",
            String::from_utf8_lossy(&checked.stdout)
        );
    }
    world.sandboxctl(&["rm", "killed"])?.expect_code(0)?;
    Ok(())
}

/// Whether an ext4 file system's journal has what is not where it belongs yet (`INCOMPAT_RECOVER` in `s_feature_incompat`).
fn needs_recovery(file: &Path) -> Result<bool> {
    let mut features = [0; 4];
    fs::File::open(file)?.read_exact_at(&mut features, 1024 + 0x60)?;
    Ok(u32::from_le_bytes(features) & 0x4 != 0)
}

fn image_with_volume(world: &World, name: &str) -> Result<()> {
    let data = Layer::default()
        .directory("data", 0o750)?
        .file("data/seed", 0o640, b"from the image\n")?
        .directory("data/sub", 0o700)?
        .symlink("data/sub/link", "../seed")?
        .finish()?;
    import(
        world,
        name,
        vec![data],
        &json!({ "Volumes": { "/data/": {} } }),
    )
}

fn image_volume(world: &World) -> Result<()> {
    image_with_volume(world, "seeded")?;
    let script = "stat -c '%a %u' /data /data/seed /data/sub; cat /data/sub/link; echo new >/data/seed; cat /data/seed";
    let first = "750 0\n640 0\n700 0\nfrom the image\nnew\n";
    let second = first.replace("from the image", "new");
    let say = |options: &[&str], expected: &str| -> Result<()> {
        let arguments = [&["run", "--rm"], options, &["seeded", "sh", "-c", script]].concat();
        world
            .sandboxctl(&arguments)?
            .expect_code(0)?
            .expect_stdout(expected)
            .map(drop)
    };
    // The root is read-only, what the image keeps data in is not.
    say(&["--read-only"], first)?;
    say(&["-v", "box:/data"], first)?;
    say(&["-v", "box:/data"], &second)?;
    // Neither copied where it is not to be, nor mounted where something else is.
    let arguments = [
        "run",
        "--rm",
        "-v",
        "empty:/data:nocopy",
        "seeded",
        "ls",
        "/data",
    ];
    world
        .sandboxctl(&arguments)?
        .expect_code(0)?
        .expect_stdout("")?;
    Ok(())
}

fn shared_volume(world: &World) -> Result<()> {
    const FILES: usize = 200;
    let mut data = Layer::default().directory("data", 0o755)?;
    for n in 0..FILES {
        data = data.file(&format!("data/file{n}"), 0o644, b"of the image\n")?;
    }
    let data = data.hard_link("data/link", "data/file0")?.finish()?;
    import(world, "linked", vec![data], &json!({}))?;
    // Each writes at once, into a file of its own.
    let script = "echo $OWNER >/data/of-$OWNER; echo >/data/seen-$OWNER; exec sleep 1000";
    for round in 0..3 {
        let volume = format!("new{round}:/data");
        let names = ["left", "right"].map(|side| format!("{side}{round}"));
        let begin = |name: &String| {
            world.start(&[
                "run",
                "-d",
                "--name",
                name,
                "-e",
                &format!("OWNER={name}"),
                "-v",
                &volume,
                "linked",
                "sh",
                "-c",
                script,
            ])
        };
        let both = [begin(&names[0])?, begin(&names[1])?];
        for running in both {
            running.finish()?.expect_code(0)?;
        }
        for name in &names {
            wait_until(
                "that the container has written",
                world.setup().limit,
                || {
                    let seen = format!("/data/seen-{name}");
                    let finished = world.sandboxctl(&["exec", name, "cat", &seen]).ok()?;
                    (finished.code == 0).then_some(())
                },
            )?;
        }
        let look = "cat /data/of-* | sort; cat /data/file* /data/link | sort | uniq -c | tr -s ' '; \
            ls -A /data | wc -l; stat -c %h /data/link";
        let expected = format!(
            "{}\n{}\n {} of the image\n{}\n2\n",
            names[0],
            names[1],
            FILES + 1,
            FILES + 5
        );
        world
            .sandboxctl(&["exec", &names[0], "sh", "-c", look])?
            .expect_code(0)?
            .expect_stdout(&expected)?;
        world
            .sandboxctl(&["rm", "-f", &names[0], &names[1]])?
            .expect_code(0)?;
    }
    Ok(())
}

fn anonymous_volumes(world: &World) -> Result<()> {
    image_with_volume(world, "seeded")?;
    let said = |arguments: &[&str]| -> Result<String> {
        Ok(world.sandboxctl(arguments)?.expect_code(0)?.text())
    };
    let volumes = || -> Result<Vec<String>> {
        Ok(said(&["volume", "ls", "-q"])?
            .lines()
            .map(str::to_owned)
            .collect())
    };
    said(&["run", "--rm", "-v", "/extra", "seeded", "true"])?;
    ensure!(volumes()?.is_empty(), "--rm left {:?}", volumes()?);
    // Made, and listed as docker lists them.
    said(&[
        "create",
        "--network",
        "none",
        "--name",
        "kept",
        "-v",
        "/extra",
        "-v",
        "box:/box",
        "--tmpfs",
        "/tmp",
        "seeded",
        "true",
    ])?;
    let made = volumes()?;
    ensure!(
        made.len() == 3 && made.contains(&"box".to_owned()),
        "{made:?}"
    );
    let shown = said(&[
        "inspect",
        "-f",
        "{{range .Mounts}}{{.Type}} {{.Destination}} {{end}}",
        "kept",
    ])?;
    ensure!(
        shown == "volume /extra volume /box volume /data tmpfs /tmp \n",
        "{shown:?}"
    );
    // What a container has is not pruned; without -v its volumes stay, and then they are.
    said(&["volume", "prune", "-f"])?;
    ensure!(volumes()? == made);
    said(&["rm", "kept"])?;
    ensure!(volumes()? == made, "rm without -v removed a volume");
    said(&["volume", "prune", "-f"])?;
    ensure!(volumes()? == ["box"], "{:?}", volumes()?);
    said(&[
        "create",
        "--network",
        "none",
        "--name",
        "gone",
        "-v",
        "/extra",
        "-v",
        "box:/box",
        "seeded",
        "true",
    ])?;
    ensure!(volumes()?.len() == 3);
    said(&["rm", "-v", "gone"])?;
    ensure!(volumes()? == ["box"], "{:?}", volumes()?);
    // Something else is where the image would keep data.
    said(&[
        "create",
        "--network",
        "none",
        "--name",
        "other",
        "--tmpfs",
        "/data",
        "seeded",
        "true",
    ])?;
    ensure!(volumes()? == ["box"], "{:?}", volumes()?);
    said(&["rm", "other"])?;
    Ok(())
}
