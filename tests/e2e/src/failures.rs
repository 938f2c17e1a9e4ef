//! What goes wrong is said, ends promptly, and leaves nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sandbox_harness::{World, process};

use crate::Case;

/// In these the driver, its devices or its helpers take part.
pub(crate) const CASES: &[Case] = &[
    ("failure_guest_panic_is_named_with_the_console", guest_panic),
    ("failure_killed_monitor_is_named", killed_monitor),
    ("failure_killed_shim_is_named", killed_shim),
    ("failure_agent_that_never_announces_is_named", dead_agent),
    ("failure_missing_kernel_names_the_path", missing_kernel),
    ("failure_file_that_is_no_kernel_is_refused", no_kernel),
    ("failure_memory_too_small_is_refused", too_small),
];

/// In these what is above every driver.
pub(crate) const ABOVE: &[Case] = &[
    ("failure_unknown_image_says_how_to_get_one", unknown_image),
    (
        "failure_no_kernel_built_says_how_to_build_it",
        no_kernel_built,
    ),
    ("failure_not_root_is_said", not_root),
    ("failure_name_in_use_is_said", name_in_use),
    (
        "failure_killed_sandboxctl_leaves_a_container_that_rm_removes",
        killed_sandboxctl,
    ),
];

/// "Promptly": before any call of the product's would have been given up (30 s), far above what a slow machine needs.
const PROMPT: Duration = Duration::from_secs(28);

/// Starts a container that waits, does something to it, and requires a prompt end with these words.
fn ends_with_words(
    world: &World,
    harm: impl FnOnce(&World) -> Result<()>,
    words: &[&str],
) -> Result<()> {
    let running = world.start_waiting(&["--rm", "-i", "--name", "victim"])?;
    harm(world)?;
    let harmed = Instant::now();
    running.finish()?.expect_code(125)?.expect_stderr(words)?;
    ensure!(harmed.elapsed() < PROMPT, "it took {:?}", harmed.elapsed());
    Ok(())
}

fn guest_panic(world: &World) -> Result<()> {
    // A container that may mount can have a /proc without masks; what it breaks is the guest.
    let script = "mount -t proc proc /home && echo c > /home/sysrq-trigger";
    let finished = world
        .sandboxctl(&[
            "run",
            "--rm",
            "--cap-add",
            "SYS_ADMIN",
            "demo",
            "sh",
            "-c",
            script,
        ])?
        .expect_code(125)?;
    finished.expect_stderr(&["guest kernel panicked", "sysrq triggered crash"])?;
    Ok(())
}

fn killed_monitor(world: &World) -> Result<()> {
    let monitor = world.setup().driver.monitor();
    ends_with_words(
        world,
        |world| world.kill_process(monitor),
        &["monitor", "killed"],
    )
}

fn killed_shim(world: &World) -> Result<()> {
    ends_with_words(
        world,
        |world| world.kill_process("containerd-shim-sandbox-v2"),
        &["shim", "died", "console"],
    )
}

fn dead_agent(world: &World) -> Result<()> {
    // A guest whose PID 1 is not there: the kernel says so and panics before any announcement.
    let config = world.path().join("sandbox.toml");
    fs::write(
        &config,
        "boot_timeout_s = 170\nkernel_arguments = \"init=/no/such/agent\"\n",
    )?;
    let mut command = world.sandboxctl_command(&["run", "--rm", "demo", "true"]);
    command.env("SANDBOX_CONFIG", &config);
    process::run(&mut command, b"", world.setup().limit)?
        .expect_code(125)?
        .expect_stderr(&["panic", "/no/such/agent"])?;
    Ok(())
}

fn unknown_image(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "--pull", "never", "no-such-image", "true"])?
        .expect_code(125)?
        .expect_stderr(&["no-such-image", "image import", "sandboxctl pull"])?;
    // Nobody listens there.
    world
        .sandboxctl(&["run", "--rm", "127.0.0.1:1/no-such-image", "true"])?
        .expect_code(125)?
        .expect_stderr(&[
            "no-such-image",
            "image import",
            "cannot be pulled",
            "refused",
        ])?;
    Ok(())
}

fn missing_kernel(world: &World) -> Result<()> {
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--kernel",
            "/no/such/vmlinux",
            "demo",
            "true",
        ])?
        .expect_code(125)?
        .expect_stderr(&["/no/such/vmlinux"])?;
    Ok(())
}

fn no_kernel(world: &World) -> Result<()> {
    let file = world.path().join("vmlinux");
    fs::write(&file, "this is not an ELF file")?;
    world
        .sandboxctl(&[
            "run",
            "--rm",
            "--kernel",
            &file.to_string_lossy(),
            "demo",
            "true",
        ])?
        .expect_code(125)?
        .expect_stderr(&["vmlinux", "ELF"])?;
    Ok(())
}

fn too_small(world: &World) -> Result<()> {
    world
        .sandboxctl(&["run", "--rm", "--memory", "1m", "demo", "true"])?
        .expect_code(125)?
        .expect_stderr(&["memory", "1m"])?;
    Ok(())
}

/// Programs of the product in a folder of their own, without what belongs beside them.
fn bare_copy(world: &World) -> Result<PathBuf> {
    let folder = world.path().join("bare/bin");
    fs::create_dir_all(&folder)?;
    for program in ["sandboxctl", "containerd-shim-sandbox-v2", "sandbox-vmm"] {
        process::copy_program(&world.setup().binaries.join(program), &folder.join(program))?;
    }
    Ok(folder.join("sandboxctl"))
}

fn no_kernel_built(world: &World) -> Result<()> {
    let mut command = Command::new(bare_copy(world)?);
    command.args([
        "run",
        "--hypervisor",
        world.setup().driver.name(),
        "--rm",
        "demo",
        "true",
    ]);
    world.adopt(&mut command);
    process::run(&mut command, b"", world.setup().limit)?
        .expect_code(125)?
        .expect_stderr(&["was not found", "make"])?;
    Ok(())
}

fn not_root(world: &World) -> Result<()> {
    // A copy: the checkout may be in a folder that others cannot enter.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ])
        .arg(bare_copy(world)?)
        .args(["run", "--rm", "demo", "true"]);
    world.adopt(&mut command);
    process::run(&mut command, b"", world.setup().limit)?
        .expect_code(125)?
        .expect_stderr(&["root"])?;
    Ok(())
}

fn name_in_use(world: &World) -> Result<()> {
    let mut first = world.start_waiting(&["--rm", "-i", "--name", "one"])?;
    world
        .sandboxctl(&["run", "--rm", "--name", "one", "demo", "true"])?
        .expect_code(125)?
        .expect_stderr(&["one", "in use"])?;
    first.close_stdin();
    first.finish()?.expect_code(0)?;
    Ok(())
}

fn killed_sandboxctl(world: &World) -> Result<()> {
    let running = world.start_waiting(&["-i", "--name", "orphan"])?;
    running.signal(nix::sys::signal::Signal::SIGKILL)?;
    running.finish()?.expect_code(137)?;
    let ps = world.sandboxctl(&["ps", "-a"])?.expect_code(0)?;
    ensure!(
        ps.text().contains("orphan"),
        "ps does not show it: {}",
        ps.text()
    );
    world.sandboxctl(&["rm", "-f", "orphan"])?.expect_code(0)?;
    Ok(())
}
