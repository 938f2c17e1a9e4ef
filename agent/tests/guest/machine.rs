//! A running agent to talk to: in a guest under QEMU, or in namespaces of its own on this machine.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sandbox_protocol::agent::mount::Source;
use sandbox_protocol::agent::{AgentEvent, Mount};
use sandbox_protocol::{EVENT_PORT, frame};

/// How long an emulated guest may take to come up.
const BOOT: Duration = Duration::from_secs(180);

/// What a guest needs on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) agent: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) vmm: PathBuf,
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    in_guest: bool,
    children: Vec<Child>,
    pub(crate) events: Option<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn accept(listener: &UnixListener, children: &mut [Child]) -> Result<UnixStream> {
    let deadline = Instant::now() + BOOT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let poll = rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN);
        let limit = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut [poll], Some(&limit))? > 0 {
            return Ok(listener.accept()?.0);
        }
        for child in children.iter_mut() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "process {} ended before the agent was ready: {status}",
                    child.id()
                );
            }
        }
        ensure!(
            !left.is_zero(),
            "the agent did not announce itself within {BOOT:?}"
        );
    }
}

/// A tree with busybox in it.
fn busybox_tree(tree: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "mnt"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    for applet in [
        "sh", "echo", "cat", "ls", "head", "tail", "sleep", "grep", "id", "mknod", "tty", "stty",
        "wc", "dd", "hostname", "yes", "test", "true", "ifconfig", "dmesg", "env", "mkdir", "stat",
        "ln", "chown", "chmod", "date", "nproc", "readlink", "kill", "mount", "umount", "od",
        "ionice", "sed", "sort", "touch", "rm", "cut", "awk", "find", "uname", "setpriv",
        "unshare", "linux32",
    ] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    fs::write(
        tree.join("etc/group"),
        "root:x:0:\nwheel:x:10:user\naudio:x:29:root,user\nuser:x:1000:\n",
    )?;
    fs::write(tree.join("bin/plain"), "not a program\n")?;
    fs::write(tree.join("bin/script"), "#!/no/such/interpreter\n")?;
    std::os::unix::fs::symlink("/missing/place", tree.join("dangling"))?;
    fs::create_dir_all(tree.join("plain"))?;
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(tree.join("plain"), fs::Permissions::from_mode(0o710))?;
    fs::set_permissions(tree.join("bin/plain"), fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(tree.join("bin/script"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn erofs(image: &Path, tree: &Path) -> Result<()> {
    let output = Command::new("mkfs.erofs")
        .args(["-T0", "--all-root"])
        .args([image, tree])
        .output()?;
    ensure!(
        output.status.success(),
        "mkfs.erofs failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl Machine {
    /// Boots a guest.
    pub(crate) fn boot(parts: &Parts) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        for directory in ["proc", "sys", "dev", "run", "tmp", "etc", "sbin"] {
            fs::create_dir_all(at("root").join(directory))?;
        }
        fs::copy(&parts.agent, at("root/sbin/sandbox-agent"))?;
        erofs(&at("root.erofs"), &at("root"))?;
        busybox_tree(&at("layer"))?;
        erofs(&at("layer.erofs"), &at("layer"))?;

        let events = UnixListener::bind(at(&format!("vsock_{EVENT_PORT}")))?;
        let vsock = UnixListener::bind(at("vsock"))?;
        let vhost = UnixListener::bind(at("vhost"))?;
        for listener in [&vsock, &vhost] {
            rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty())?;
        }
        let backend = Command::new(&parts.vmm)
            .args(["vsock-backend", "--cid", "3", "--path"])
            .arg(at("vsock"))
            .args(["--vhost-fd", &vhost.as_raw_fd().to_string()])
            .args(["--listener-fd", &vsock.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run the vsock back end")?;
        let mut children = vec![backend];
        drop((vsock, vhost));

        let disk = |id: &str, file: &str, serial: &str| {
            [
                "-drive".to_owned(),
                format!(
                    "if=none,id={id},format=raw,readonly=on,file={}",
                    at(file).display()
                ),
                "-device".to_owned(),
                format!("virtio-blk-device,drive={id},serial={serial}"),
            ]
        };
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,acpi=off,rtc=off,x-option-roms=off,memory-backend=mem"])
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256M", "-nodefaults"])
            .args(["-no-user-config", "-nographic", "-no-reboot"])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
            .arg("-serial")
            .arg(format!("file:{}", at("console").display()))
            .arg("-kernel")
            .arg(&parts.kernel)
            .args(["-append", "console=ttyS0 quiet loglevel=4 root=/dev/vda rootfstype=erofs ro init=/sbin/sandbox-agent panic=-1 oops=panic reboot=t tsc=reliable no_timer_check random.trust_cpu=on"])
            .args(disk("root", "root.erofs", "guest-root"))
            .args(disk("layer", "layer.erofs", "layer-0"))
            .args(["-device", "virtio-rng-device"])
            .args(["-device", "isa-debug-exit,iobase=0x501"])
            .arg("-chardev")
            .arg(format!("socket,id=vs,path={}", at("vhost").display()))
            .args(["-device", "vhost-user-vsock-device,chardev=vs"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run QEMU")?;
        children.push(qemu);
        let connection = accept(&events, &mut children);
        let mut machine = Self {
            folder,
            in_guest: true,
            children,
            events: None,
        };
        machine.events = Some(connection.with_context(|| machine.console())?);
        Ok(machine)
    }

    /// Runs the agent on this machine, in namespaces of its own.
    pub(crate) fn outside_guest(agent: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        busybox_tree(&folder.path().join("layer"))?;
        let events = UnixListener::bind(folder.path().join(EVENT_PORT.to_string()))?;
        let script = "mkdir -p /run/sandbox && mount -t tmpfs tmpfs /run/sandbox && exec \"$@\"";
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .args(["sh", "-c", script, "sh"])
            .arg(agent)
            .arg("unix")
            .arg(folder.path())
            .spawn()?;
        let mut children = vec![child];
        let connection = accept(&events, &mut children)?;
        Ok(Self {
            folder,
            in_guest: false,
            children,
            events: Some(connection),
        })
    }

    /// What the guest wrote to its console.
    pub(crate) fn console(&self) -> String {
        let text = fs::read(self.folder.path().join("console")).unwrap_or_default();
        format!("console: {}", String::from_utf8_lossy(&text))
    }

    pub(crate) fn in_guest(&self) -> bool {
        self.in_guest
    }

    /// The names of all files that the agent keeps for its containers; none where it is in a guest, which shows nothing.
    pub(crate) fn agent_files(&self) -> Result<Vec<PathBuf>> {
        let child = self.children.last().context("no machine")?;
        if self.in_guest {
            return Ok(Vec::new());
        }
        let agent = child_of(child.id())?;
        let mut found = Vec::new();
        list(
            &PathBuf::from(format!("/proc/{agent}/root/run/sandbox/agent")),
            &mut found,
        )?;
        found.sort();
        Ok(found)
    }

    /// A connection to a port of the agent's.
    pub(crate) fn connect(&self, port: u32) -> Result<UnixStream> {
        if !self.in_guest {
            return Ok(UnixStream::connect(
                self.folder.path().join(port.to_string()),
            )?);
        }
        let mut stream = UnixStream::connect(self.folder.path().join("vsock"))?;
        writeln!(stream, "CONNECT {port}")?;
        let mut answer = Vec::new();
        let mut byte = [0u8; 1];
        while byte != *b"\n" {
            ensure!(
                stream.read(&mut byte)? == 1,
                "the guest refused port {port}"
            );
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"OK "), "unexpected answer {answer:?}");
        Ok(stream)
    }

    /// The steps that mount the root with busybox.
    pub(crate) fn root(&self, container: &str) -> (Vec<Mount>, String) {
        let base = format!("/run/sandbox/containers/{container}");
        let root = format!("{base}/rootfs");
        let step = |source, fstype: &str, options: &[String], target: &str| Mount {
            source: Some(source),
            fstype: fstype.to_owned(),
            options: options.to_vec(),
            target: target.to_owned(),
            ..Mount::default()
        };
        if !self.in_guest {
            let tree = self.folder.path().join("layer").display().to_string();
            let bind = step(Source::Literal(tree), "", &["bind".to_owned()], &root);
            return (vec![bind], root);
        }
        let layer = format!("{base}/mounts/0");
        let scratch = format!("{base}/mounts/1");
        let directory = |name: &str| sandbox_protocol::agent::Directory {
            path: format!("{scratch}/{name}"),
            mode: 0o755,
            ..Default::default()
        };
        let mut overlay = step(
            Source::Literal("overlay".to_owned()),
            "overlay",
            &[
                format!("lowerdir={layer}"),
                format!("upperdir={scratch}/upper"),
                format!("workdir={scratch}/work"),
            ],
            &root,
        );
        overlay.mkdir = vec![directory("upper"), directory("work")];
        let mounts = vec![
            step(
                Source::BlockSerial("layer-0".to_owned()),
                "erofs",
                &["ro".to_owned(), "loop".to_owned()],
                &layer,
            ),
            step(Source::Literal("tmpfs".to_owned()), "tmpfs", &[], &scratch),
            overlay,
        ];
        (mounts, root)
    }

    /// The exit code of the machine, which must end on its own.
    pub(crate) fn end(mut self) -> Result<Option<i32>> {
        let child = self.children.last_mut().context("no machine")?;
        let deadline = Instant::now() + BOOT;
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(child),
            rustix::process::PidfdFlags::empty(),
        )?;
        let limit = rustix::event::Timespec {
            tv_sec: i64::try_from(BOOT.as_secs())?,
            tv_nsec: 0,
        };
        let poll = rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [poll], Some(&limit))?;
        ensure!(
            Instant::now() < deadline,
            "the machine goes on; {}",
            self.console()
        );
        let child = self.children.last_mut().context("no machine")?;
        Ok(child.wait()?.code())
    }
}

/// The one process that another has made.
fn child_of(parent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(children.trim().parse()?)
}

/// Everything below a folder.
fn list(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        }
        found.push(entry.path());
    }
    Ok(())
}

/// Reads the next event.
pub(crate) async fn next_event(events: &mut tokio::net::UnixStream) -> Result<AgentEvent> {
    Ok(frame::read_frame(events).await?)
}
