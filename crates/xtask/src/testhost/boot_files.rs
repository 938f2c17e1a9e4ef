//! The kernel and initramfs of the test host, made once and kept in the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Inputs};
use crate::{packages, shell};

/// The package that names Debian's newest cloud kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What runs in the initramfs.
const INIT: &str = include_str!("init.sh");
/// What the machine needs before it can see this machine's files, and what commands need in it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "virtiofs",
    "overlay",
    "kvm_amd",
    "tun",
    "bridge",
    "veth",
    // The other kinds of interfaces that a pod may have.
    "macvlan",
    "ipvlan",
    "8021q",
    // Joining a pod's network to its machine.
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    "sch_tbf",
    // What the CNI plugins ask of iptables.
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_tcpudp",
    "erofs",
    "loop",
];

/// The files to boot.
pub(crate) struct BootFiles {
    /// The kernel image.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initramfs: PathBuf,
}

impl BootFiles {
    /// From the cache, or made: the kernel package is downloaded and unpacked, not installed.
    ///
    /// # Errors
    /// When a package or program is missing.
    pub(crate) fn get() -> Result<Self> {
        // Asked of apt once per build of the machine; a cached one needs neither apt nor a network.
        let pinned = cache::root()?.join("testhost-kernel");
        let package = match fs::read_to_string(&pinned) {
            Ok(package) => package,
            Err(_) => {
                let package = kernel_package()?;
                fs::create_dir_all(cache::root()?)?;
                fs::write(&pinned, &package)?;
                package
            }
        };
        Self::of_package(&package).or_else(|_| {
            // The pinned version may have left the mirror.
            let package = kernel_package()?;
            fs::write(&pinned, &package)?;
            Self::of_package(&package)
        })
    }

    fn of_package(package: &str) -> Result<Self> {
        let inputs = Inputs::default()
            .text("recipe", "1")
            .text("kernel", package)
            .text("modules", &MODULES.join(" "))
            .text("init", INIT)
            .file(Path::new("/bin/busybox"))?;
        let folder = cache::product("testhost", inputs, |folder| make(folder, package))?;
        Ok(Self {
            kernel: folder.join("vmlinuz"),
            initramfs: folder.join("initramfs"),
        })
    }
}

/// `name=version` of the kernel's package.
fn kernel_package() -> Result<String> {
    if shell::read("apt-cache", &["show", "--no-all-versions", KERNEL_PACKAGE]).is_err() {
        packages::refresh()?;
    }
    let policy = |name: &str| -> Result<String> {
        let shown = shell::read("apt-cache", &["show", "--no-all-versions", name])
            .with_context(|| format!("package {name} is not known; run `apt-get update`"))?;
        Ok(shown)
    };
    let field = |shown: &str, name: &str| -> Option<String> {
        shown
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let meta = policy(KERNEL_PACKAGE)?;
    let name = field(&meta, "Depends:")
        .and_then(|depends| {
            depends
                .split(',')
                .filter_map(|one| one.split_whitespace().next())
                .find(|one| one.starts_with("linux-image-"))
                .map(str::to_owned)
        })
        .with_context(|| format!("{KERNEL_PACKAGE} names no kernel"))?;
    let version =
        field(&policy(&name)?, "Version:").context("the kernel's package has no version")?;
    Ok(format!("{name}={version}"))
}

fn make(folder: &Path, package: &str) -> Result<()> {
    let work = folder.join("work");
    fs::create_dir(&work)?;
    // apt drops privileges to download and must be able to write here, or it warns.
    fs::set_permissions(&work, fs::Permissions::from_mode(0o777))?;
    shell::run_quietly(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(&work),
        None,
    )?;
    let archive = only_file(&work, "deb")?;
    let tree = work.join("tree");
    shell::run_quietly(
        Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree),
        None,
    )?;
    let modules = only_entry(&tree.join("lib/modules"))?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    shell::run_quietly(
        Command::new("/sbin/depmod")
            .arg("-b")
            .arg(&tree)
            .arg(&release),
        None,
    )?;
    fs::copy(
        tree.join("boot").join(format!("vmlinuz-{release}")),
        folder.join("vmlinuz"),
    )?;
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    let builtin = fs::read_to_string(modules.join("modules.builtin"))?;
    let order = load_order(&dependencies, &builtin, MODULES)?;

    let root = work.join("root");
    for path in [
        "bin", "dev", "host", "modules", "new", "proc", "result", "sys", "top",
    ] {
        fs::create_dir_all(root.join(path))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let mut names = String::new();
    for module in &order {
        let source = modules.join(module);
        let name = source.file_name().context("a module has a name")?;
        let copy = root.join("modules").join(name);
        fs::copy(&source, &copy)?;
        if copy.extension().is_some_and(|ending| ending == "xz") {
            // busybox loads no compressed one.
            shell::run_quietly(Command::new("xz").arg("--decompress").arg(&copy), None)?;
        }
        names.push_str(name.to_string_lossy().trim_end_matches(".xz"));
        names.push('\n');
    }
    fs::write(root.join("modules/order"), names)?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let pack = format!(
        "find . -print0 | sort -z | cpio --quiet --null --create --format=newc --owner=0:0 > '{}'",
        folder.join("initramfs").display()
    );
    shell::run_quietly(
        Command::new("sh").args(["-c", &pack]).current_dir(&root),
        None,
    )?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .next()
        .with_context(|| format!("{} is empty", folder.display()))??;
    Ok(entry.path())
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("no .{extension} file in {}", folder.display()))
}

/// A module's name, from its path: what depmod and modprobe treat alike.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

/// The files of these modules and of all that they need, each after what it needs (depmod's `modules.dep`).
fn load_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let needs: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some((
                module_name(path),
                (path, needs.split_whitespace().collect()),
            ))
        })
        .collect();
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let Some((path, needed)) = needs.get(&name) else {
            if builtin.contains(&name) {
                continue;
            }
            bail!("the test host's kernel has no module {name}");
        };
        // modules.dep lists all needs of a module, the deepest last.
        for path in needed.iter().rev().chain([path]) {
            if !order.iter().any(|there| there == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dependencies = "k/kvm.ko: k/irq.ko\nk/kvm-amd.ko: k/ccp.ko k/kvm.ko k/irq.ko\n\
                            k/irq.ko:\nk/ccp.ko:\nk/fuse.ko:\n";
        let order = load_order(
            dependencies,
            "k/overlay.ko\n",
            &["kvm_amd", "overlay", "kvm"],
        )
        .unwrap();
        assert_eq!(order, ["k/irq.ko", "k/kvm.ko", "k/ccp.ko", "k/kvm-amd.ko"]);
        assert!(load_order(dependencies, "", &["nosuch"]).is_err());
    }
}
