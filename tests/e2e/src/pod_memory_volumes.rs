//! Volumes in memory, as kubelet and containerd's CRI plugin have them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sandbox_harness::World;
use sandbox_harness::containerd::DEMO_IMAGE;
use sandbox_harness::cri::Cri;

use crate::Case;
use crate::pods::{self, Fixture, SERVICE};

pub(crate) const CASES: &[Case] = &[("pod_memory_volumes_are_the_guests", memory_volumes)];

/// What kubelet has mounted for a pod, until this goes.
struct Kubelet {
    pod: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Kubelet {
    fn new(world: &World) -> Self {
        Self {
            pod: world.path().join("kubelet/pods/uid-memory"),
            mounted: Vec::new(),
        }
    }

    fn mount(
        &mut self,
        place: &str,
        source: &Path,
        flags: MsFlags,
        options: Option<&str>,
    ) -> Result<PathBuf> {
        let path = self.pod.join(place);
        fs::create_dir_all(&path)?;
        mount(Some(source), &path, Some("tmpfs"), flags, options)
            .with_context(|| format!("cannot mount {}", path.display()))?;
        self.mounted.push(path.clone());
        Ok(path)
    }

    /// An `emptyDir` with `medium: Memory`.
    fn volume(&mut self, name: &str, options: &str) -> Result<PathBuf> {
        let place = format!("volumes/kubernetes.io~empty-dir/{name}");
        let tmpfs = Path::new("tmpfs");
        self.mount(&place, tmpfs, MsFlags::empty(), Some(options))
    }

    /// What a `subPath` names of it, for a container.
    fn sub_path(&mut self, volume: &Path, name: &str, container: &str) -> Result<PathBuf> {
        let part = volume.join(name);
        fs::create_dir_all(&part)?;
        let place = format!("volume-subpaths/volume/{container}/{}", self.mounted.len());
        self.mount(&place, &part, MsFlags::MS_BIND, None)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// How much of the memory of a container's own are files in a tmpfs, in bytes.
fn shmem(cri: &Cri, id: &str) -> Result<u64> {
    let line = cri.exec(id, &["grep", "^shmem ", "/sys/fs/cgroup/memory.stat"])?;
    let number = line.split_whitespace().nth(1).context("no number")?;
    Ok(number.parse()?)
}

fn memory_volumes(world: &World) -> Result<()> {
    let fixture = Fixture::start(world)?;
    let cri = &fixture.cri;
    let mut kubelet = Kubelet::new(world);
    let cache = kubelet.volume("cache", "size=8m,mode=2777,gid=1234")?;
    let shm = kubelet.volume("shm", "size=3m,mode=1777")?;
    let used = kubelet.volume("used", "size=4m")?;
    fs::write(used.join("file"), "of the host\n")?;

    let all = [
        pods::mount(&cache, "/cache", false),
        pods::mount(&cache, "/frozen", true),
        pods::mount(&shm, "/dev/shm", false),
        pods::mount(&used, "/used", false),
    ];
    let pod = fixture.pod(world, "memory")?;
    let run = |name: &str, more: &[_]| {
        cri.run_container(&pod, name, DEMO_IMAGE, SERVICE, |config| {
            config.mounts = [&all[..], more].concat();
        })
        .with_context(|| fixture.containerd.log())
    };
    let script = |id: &str, script: &str| cri.exec(id, &["sh", "-c", script]);
    let first = run("first", &[])?;
    let second = run("second", &[])?;

    // The pod's, and with kubelet's size, mode and group.
    script(
        &first,
        "mkdir /cache/part && echo one > /cache/part/f && dd if=/dev/zero of=/cache/4m bs=1M count=4",
    )?;
    let read = cri.exec(&second, &["cat", "/cache/part/f", "/frozen/part/f"])?;
    ensure!(read == "one\none\n", "{read:?}");
    let seen = script(
        &second,
        "stat -c '%a %u %g' /cache; for m in /cache /dev/shm; do grep \" $m \" /proc/mounts; df -k $m | tail -n 1 | awk '{print $2}'; done",
    )?;
    let lines: Vec<_> = seen.lines().collect();
    ensure!(
        matches!(lines[..], ["2777 0 1234", cache, "8192", shm, "3072"]
            if cache.starts_with("tmpfs ") && shm.starts_with("tmpfs ")),
        "{seen}"
    );
    for (container, command, why) in [
        (&second, "echo x > /frozen/f", "Read-only"),
        (
            &first,
            "dd if=/dev/zero of=/cache/more bs=1M count=5",
            "No space left",
        ),
    ] {
        let refused = cri.try_exec(container, &["sh", "-c", command])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.exit_code != 0 && said.contains(why),
            "{command}: {said}"
        );
    }
    script(&first, "rm /cache/more")?;
    // Memory of the container that wrote it, and none of the host's.
    let (of_first, of_second) = (shmem(cri, &first)?, shmem(cri, &second)?);
    ensure!(
        of_first >= 3 << 20 && of_second < 1 << 20,
        "{of_first} {of_second}"
    );
    ensure!(fs::read_dir(&cache)?.count() == 0 && fs::read_dir(&shm)?.count() == 0);

    // One with something in it is the host's, for both.
    let read = script(&first, "cat /used/file; echo ours > /used/ours")?;
    ensure!(read == "of the host\n", "{read:?}");
    ensure!(fs::read_to_string(used.join("ours"))? == "ours\n");

    // Parts of it are parts of the guest's, although kubelet has made them on the host.
    let part = kubelet.sub_path(&cache, "part", "third")?;
    let new = kubelet.sub_path(&cache, "new", "third")?;
    let parts = [
        pods::mount(&part, "/part", true),
        pods::mount(&new, "/new", false),
    ];
    let third = run("third", &parts)?;
    let read = script(
        &third,
        "cat /part/f; echo two > /new/f; echo x > /part/x || echo refused",
    )?;
    ensure!(read == "one\nrefused\n", "{read:?}");
    let read = cri.exec(&second, &["cat", "/cache/new/f"])?;
    ensure!(read == "two\n", "{read:?}");
    ensure!(fs::read_dir(cache.join("new"))?.count() == 0);

    // It stays when containers go, and those that come get it.
    for id in [&first, &third] {
        cri.stop_container(id, 30)?;
        cri.remove_container(id)?;
    }
    let again = run("first", &[])?;
    let read = cri.exec(&again, &["cat", "/cache/part/f", "/cache/new/f"])?;
    ensure!(read == "one\ntwo\n", "{read:?}");
    fixture.end(&pod)
}
