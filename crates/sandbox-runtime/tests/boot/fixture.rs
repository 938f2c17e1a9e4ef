//! A place of its own for each test: folders, configuration, a small root for a container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::Mount;
use libtest_mimic::Failed;
use sandbox_protocol::agent::{CreateContainerRequest, Stdio as AgentStdio};
use sandbox_runtime::cgroup::Places;
use sandbox_runtime::host::choose_driver;
use sandbox_runtime::rootfs::{DeviceAllocator, RootfsPlan, plan_rootfs};
use sandbox_runtime::share::{SharePlan, SharedEntry};
use sandbox_runtime::{
    Config, Driver, EarlyPlan, HeadStart, Hypervisor, MachineSize, Sandbox, SandboxBasis,
    SandboxPlan,
};
use sandbox_types::{ContainerId, SandboxId};
use serde_json::json;

/// What went wrong in a test.
pub(crate) type Failure = Box<dyn std::error::Error>;
/// What a test comes to.
pub(crate) type Outcome = Result<(), Failure>;

/// The namespace of the tests' sandboxes.
pub(crate) const NAMESPACE: &str = "boot-test";
/// Set for the process that plays a shim and is killed: the test's folder.
pub(crate) const VICTIM_ENV: &str = "SANDBOX_BOOT_TEST_VICTIM";
/// A static program with a shell.
const BUSYBOX: &str = "/bin/busybox";
/// How long a test may take; the guest may be emulated, on a machine that is busy.
const TEST_LIMIT: Duration = Duration::from_secs(240);
/// How long something that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What the environment configures (`SANDBOX_CONFIG`: other artifacts, say), in the test's own folders.
fn config(dir: &Path) -> Config {
    let mut config = Config {
        allow_emulation: true,
        memory_mib: 256,
        run_dir: dir.join("run"),
        boot_timeout_s: 120,
        ..Config::load().unwrap_or_default()
    };
    // Under the emulator the drivers are not both worth a test; where KVM is real it is the product.
    if choose_driver(&config).is_ok_and(|(driver, _)| driver == Driver::Qemu) {
        config.hypervisor = Hypervisor::Qemu;
    }
    config
}

/// Why nothing can be booted here.
pub(crate) fn obstacle() -> Option<String> {
    let config = config(Path::new("/nonexistent"));
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let driver = match choose_driver(&config) {
        Ok((driver, _)) => driver,
        Err(error) => return Some(error.to_string()),
    };
    let mut needed = vec![
        config.kernel_path(),
        config.image_path(),
        config.monitor_path(),
        config.virtiofsd_path(),
        config.scratch_path(),
    ];
    if driver == Driver::Qemu {
        needed.push(config.qemu_path());
    }
    if let Some(missing) = needed.into_iter().find_map(Result::err) {
        return Some(missing.to_string());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some(format!("{BUSYBOX} is missing (package busybox-static)"));
    }
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        return Some("mkfs.erofs is missing (package erofs-utils)".to_owned());
    }
    None
}

/// How a container's root is handed over, and what was planned of it.
pub(crate) struct Root {
    plan: Option<RootfsPlan>,
    shared: Vec<SharedEntry>,
    /// The mounts that it was planned from.
    mounts: Vec<Mount>,
}

impl Root {
    /// No container.
    pub(crate) fn none() -> Self {
        Self {
            plan: None,
            shared: Vec::new(),
            mounts: Vec::new(),
        }
    }
}

/// One test's place.
pub(crate) struct Fixture {
    dir: PathBuf,
    owned: Option<tempfile::TempDir>,
}

impl Fixture {
    pub(crate) fn new(name: &str) -> Result<Self, Failed> {
        let owned = tempfile::Builder::new()
            .prefix(&format!("sb-{}-", name.get(..8).unwrap_or(name)))
            .tempdir()?;
        let dir = owned.path().canonicalize()?;
        fs::create_dir_all(dir.join("bundle/rootfs"))?;
        fs::create_dir(dir.join("run"))?;
        Ok(Self {
            dir,
            owned: Some(owned),
        })
    }

    fn of_victim(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            owned: None,
        }
    }

    /// Runs a test's future as the shim would: on a current-thread runtime.
    pub(crate) fn run(&self, test: impl Future<Output = Outcome>) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { tokio::time::timeout(TEST_LIMIT, test).await? })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn config(&self) -> Config {
        config(&self.dir)
    }

    pub(crate) fn driver(&self) -> Driver {
        choose_driver(&self.config()).map_or(Driver::Qemu, |(driver, _)| driver)
    }

    pub(crate) fn id(&self) -> SandboxId {
        SandboxId::new("boot-test").unwrap()
    }

    pub(crate) fn container(&self) -> ContainerId {
        ContainerId::new("c1").unwrap()
    }

    pub(crate) fn plan(&self, root: &Root) -> SandboxPlan {
        let config = self.config();
        let (block, layers) = root
            .plan
            .as_ref()
            .map(|plan| (plan.block.clone(), plan.layers.clone()))
            .unwrap_or_default();
        let size = MachineSize {
            memory: config.memory().unwrap(),
            vcpus: config.vcpu_count().unwrap(),
        };
        let basis = SandboxBasis {
            id: self.id(),
            namespace: NAMESPACE.to_owned(),
            config,
            size,
            cgroup: None,
            places: Places::default(),
            sweep: None,
        };
        SandboxPlan {
            basis,
            bundle: self.path("bundle"),
            block,
            layers,
            shared: root.shared.clone(),
            network: None,
            shares_later: false,
        }
    }

    /// What a sandbox of this plan is begun with.
    pub(crate) fn head_start(plan: &SandboxPlan) -> HeadStart {
        let early = EarlyPlan {
            basis: plan.basis.clone(),
            shares: plan.shares_later || !plan.shared.is_empty(),
        };
        HeadStart::begin(move || Some(early))
    }

    fn root(&self, mounts: &[Mount]) -> Result<Root, Failure> {
        let config = self.config();
        let mut devices =
            DeviceAllocator::new(self.driver()).with_window(&config, config.memory()?);
        let mut share = SharePlan::new(&self.container());
        let mut plan = plan_rootfs(
            &self.container(),
            mounts,
            &mut devices,
            &mut share,
            &self.path("bundle").join("rootfs"),
        )?;
        plan.guest_mounts.splice(0..0, share.guest_mount());
        Ok(Root {
            plan: Some(plan),
            shared: share.into_entries(),
            mounts: mounts.to_vec(),
        })
    }

    /// A folder with a shell.
    fn tree(&self) -> Result<PathBuf, Failure> {
        let tree = self.path("tree");
        for name in ["bin", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
        for name in ["sh", "cat", "echo"] {
            symlink("busybox", tree.join("bin").join(name))?;
        }
        Ok(tree)
    }

    /// EROFS layers, the first with a shell, and a writable one, overlaid in the guest.
    pub(crate) fn layered_root(&self, layers: usize) -> Result<Root, Failure> {
        let mut mounts = Vec::new();
        for n in 0..layers {
            let tree = if n == 0 {
                self.tree()?
            } else {
                let tree = self.path(&format!("tree{n}"));
                fs::create_dir(&tree)?;
                fs::write(tree.join(format!("layer{n}")), "")?;
                tree
            };
            let layer = self.path(&format!("layer{n}.erofs"));
            make_erofs(&layer, &tree)?;
            mounts.push(mount("erofs", &layer.to_string_lossy(), &["ro"]));
        }
        let writable = self.path("rw.ext4");
        copy_sparse(&self.config().scratch_path()?, &writable)?;
        mounts.push(mount("ext4", &writable.to_string_lossy(), &["rw"]));
        let at = |suffix: &str| format!("{{{{ mount {layers} }}}}/{suffix}");
        mounts.push(mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                &format!("X-containerd.mkdir.path={}:0755", at("upper")),
                &format!("X-containerd.mkdir.path={}:0755", at("work")),
                &format!("lowerdir={{{{ overlay {} 0 }}}}", layers - 1),
                &format!("upperdir={}", at("upper")),
                &format!("workdir={}", at("work")),
            ],
        ));
        self.root(&mounts)
    }

    /// A guest image whose agent is a program that ends at once.
    pub(crate) fn image_without_agent(&self) -> Result<PathBuf, Failure> {
        let tree = self.tree()?;
        fs::create_dir(tree.join("sbin"))?;
        symlink("/bin/busybox", tree.join("sbin/sandbox-agent"))?;
        let image = self.path("image.erofs");
        make_erofs(&image, &tree)?;
        Ok(image)
    }

    /// An overlay of host folders, shared with the guest.
    pub(crate) fn overlay_root(&self) -> Result<Root, Failure> {
        let lower = self.tree()?;
        for name in ["upper", "work"] {
            fs::create_dir_all(self.path(name))?;
        }
        self.root(&[mount(
            "overlay",
            "overlay",
            &[
                &format!("lowerdir={}", lower.display()),
                &format!("upperdir={}", self.path("upper").display()),
                &format!("workdir={}", self.path("work").display()),
            ],
        )])
    }

    pub(crate) fn create_request(&self, root: &Root, args: &[&str]) -> CreateContainerRequest {
        let plan = root.plan.clone().unwrap();
        CreateContainerRequest {
            container_id: self.container().to_string(),
            spec_json: serde_json::to_vec(&spec(args)).unwrap(),
            mounts: plan.guest_mounts,
            root_path: plan.root_path,
            stdio: Some(AgentStdio {
                stdout: true,
                stderr: true,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    /// The sandbox's own folder.
    pub(crate) fn sandbox_dir(&self) -> PathBuf {
        self.config().sandbox_dir(NAMESPACE, &self.id())
    }

    /// Waits until the sandbox's processes are recorded.
    pub(crate) async fn folder_appears(&self) {
        let file = self.sandbox_dir().join("processes.json");
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until the sandbox's folder has been removed.
    pub(crate) async fn folder_is_gone(&self) {
        while self.sandbox_dir().exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Name and number of the processes on record.
    pub(crate) fn recorded_processes(&self) -> Result<Vec<(String, u32)>, Failure> {
        let json = fs::read(self.sandbox_dir().join("processes.json"))?;
        let processes: Vec<serde_json::Value> = serde_json::from_slice(&json)?;
        processes
            .iter()
            .map(|process| {
                let name = process["name"].as_str().ok_or("no name")?.to_owned();
                let pid = process["pid"].as_u64().ok_or("no pid")?;
                Ok((name, u32::try_from(pid)?))
            })
            .collect()
    }

    pub(crate) fn recorded_process(&self, wanted: &str) -> Result<u32, Failure> {
        let processes = self.recorded_processes()?;
        let found = processes.iter().find(|(name, _)| name == wanted);
        Ok(found.ok_or(format!("{wanted} is not on record"))?.1)
    }

    /// Starts another process that starts a sandbox and waits to be killed.
    pub(crate) fn start_victim(&self, root: &Root) -> Result<Child, Failure> {
        let options = &root.mounts.first().ok_or("no mount")?.options;
        fs::write(self.path("victim.json"), serde_json::to_vec(options)?)?;
        let mut child = Command::new(std::env::current_exe()?)
            .env(VICTIM_ENV, &self.dir)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            child.kill()?;
            child.wait()?;
            return Err(format!("the victim said {line:?}").into());
        }
        Ok(child)
    }

    /// Waits until none of the processes lives.
    pub(crate) fn processes_end(&self, processes: &[(String, u32)]) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        for (name, pid) in processes {
            while is_alive(*pid) {
                if Instant::now() > deadline {
                    return Err(format!("{name} ({pid}) outlived its shim").into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    pub(crate) fn check_nothing_left(mut self) -> Result<(), Failed> {
        let entries: Vec<_> = fs::read_dir(self.dir.join("run"))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        if !entries.is_empty() {
            return Err(format!("left in the run directory: {entries:?}").into());
        }
        // What was killed dies in its own time.
        let deadline = Instant::now() + PATIENCE;
        let mut left = crate::leaks::below(&self.dir);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            left = crate::leaks::below(&self.dir);
        }
        if !left.is_empty() {
            return Err(format!("left behind: {left:#?}").into());
        }
        if let Some(owned) = self.owned.take() {
            owned.close()?;
        }
        Ok(())
    }
}

impl Drop for Fixture {
    /// A test that panicked took its sandbox's task with it.
    fn drop(&mut self) {
        if self.owned.is_some() {
            let _ = sandbox_runtime::cleanup::remove_sandbox(&self.config(), NAMESPACE, &self.id());
        }
    }
}

/// The part of a shim that is killed: starts a sandbox over the folder's overlay, says so, and waits.
pub(crate) fn run_as_victim(dir: &Path) -> ExitCode {
    let fixture = Fixture::of_victim(dir);
    let result = fixture.run(async {
        let options: Vec<String> = serde_json::from_slice(&fs::read(dir.join("victim.json"))?)?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let root = fixture.root(&[mount("overlay", "overlay", &options)])?;
        let (_sandbox, _events) = Sandbox::start(fixture.plan(&root), None).await?;
        println!("ready");
        std::future::pending().await
    });
    if let Err(error) = result {
        println!("{error}");
    }
    ExitCode::FAILURE
}

pub(crate) fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn mount(fstype: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: fstype.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}

fn make_erofs(image: &Path, tree: &Path) -> Outcome {
    let made = Command::new("mkfs.erofs")
        .args(["-T0", "--quiet"])
        .args([image, tree])
        .output()?;
    if made.status.success() {
        Ok(())
    } else {
        Err(format!("mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr)).into())
    }
}

/// Copies a file whose holes stay holes.
fn copy_sparse(from: &Path, to: &Path) -> Outcome {
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()?;
    if copied.success() {
        Ok(())
    } else {
        Err(format!("cp {}: {copied}", from.display()).into())
    }
}

fn spec(args: &[&str]) -> serde_json::Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "boot-test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
        },
    })
}
