//! A guest's root: busybox, and an init that does what the kernel command line says.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use sandbox_types::monitor::{EXIT_PORT, POWER_OFF};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 15] = [
    "sh",
    "mount",
    "dd",
    "cat",
    "printf",
    "nproc",
    "sha256sum",
    "wc",
    "od",
    "sync",
    "reboot",
    "sleep",
    "grep",
    "head",
    "tr",
];

/// The init. The kernel passes `scenario=…` of its command line as an environment variable.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
power_off() { sync; printf '\@POWER_OFF@' | dd of=/dev/port bs=1 seek=@EXIT_PORT@ conv=notrunc 2>/dev/null; }
echo "init: reached"
case "$scenario" in
power-off)
    echo "cpus=$(nproc)"
    ;;
bring-up)
    echo "before=$(nproc)"
    echo 1 >/sys/devices/system/cpu/cpu1/online
    echo 1 >/sys/devices/system/cpu/cpu2/online
    echo "after=$(nproc)"
    ;;
grow)
    total() { while read -r name number _; do [ "$name" = MemTotal: ] && echo "$number"; done </proc/meminfo; }
    echo "before=$(total)"
    until [ "$(total)" -gt 390000 ]; do sleep 0.1; done
    echo "after=$(total)"
    mount -t tmpfs -o size=320m tmp /mnt
    dd if=/dev/zero of=/mnt/file bs=1M count=300 2>/dev/null
    echo "wrote=$(($(wc -c </mnt/file) >> 20))"
    ;;
disks)
    echo "serial=$(cat /sys/block/vdb/serial) ro=$(cat /sys/block/vdb/ro)"
    echo "sum=$(sha256sum </dev/vdb)"
    echo intruder | dd of=/dev/vdb bs=512 2>/dev/null && echo "read-only was written"
    printf 'written by the guest' | dd of=/dev/vdc bs=512 seek=5 conv=notrunc,fsync 2>/dev/null && echo "wrote vdc"
    ;;
rng)
    echo "rng=$(cat /sys/class/misc/hw_random/rng_current) bytes=$(head -c 4096 /dev/hwrng | wc -c)"
    ;;
memory)
    # Read when every such device has been looked at.
    cat /sys/bus/nd/devices/ndbus0/wait_probe >/dev/null
    echo "bytes=$(($(cat /sys/block/pmem0/size) * 512))"
    part() { dd if=/dev/pmem0 bs=4096 skip="$1" count="$2" 2>/dev/null; }
    echo "first=$(part 512 256 | sha256sum)"
    echo "second=$(part 1024 1 | sha256sum)"
    echo "between=$(part 768 256 | tr -d '\0' | wc -c)"
    dd if=/dev/vda of=/dev/pmem0 bs=4096 seek=512 count=2 conv=notrunc,fsync 2>/dev/null
    echo "wrote=$?"
    echo 3 >/proc/sys/vm/drop_caches
    echo "again=$(part 512 256 | sha256sum)"
    ;;
share)
    mount -t virtiofs data /mnt && cat /mnt/from-host && echo from-guest >/mnt/from-guest && echo "shared"
    ;;
flood)
    dd if=/dev/zero bs=1k count=24 2>/dev/null | od -v -An -tx1
    echo "flooded"
    ;;
die) exit 3 ;;
crash) echo c >/proc/sysrq-trigger ;;
reset) reboot -f ;;
idle) sleep 100000 ;;
esac
power_off
echo "init: still here"
sleep 100000
"#;

/// Builds the root file system in `dir`.
pub(crate) fn build_root(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("root");
    for folder in ["bin", "dev", "proc", "sys", "mnt"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox"))
        .with_context(|| format!("cannot copy {BUSYBOX}"))?;
    for applet in APPLETS {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    let init = INIT
        .replace("@POWER_OFF@", &format!("{POWER_OFF:03o}"))
        .replace("@EXIT_PORT@", &EXIT_PORT.to_string());
    let path = tree.join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let image = dir.join("root.erofs");
    let status = Command::new("mkfs.erofs")
        .arg("--quiet")
        .args([&image, &tree])
        .stdout(Stdio::null())
        .status()
        .context("cannot run mkfs.erofs")?;
    ensure!(status.success(), "mkfs.erofs failed: {status}");
    Ok(image)
}
