//! Starts QEMU and its file servers, passes the output on, and takes everything down again.
//!
//! Every helper is started through `setpriv --pdeathsig`, so that it dies with us even when we are killed; a
//! working folder that such an end leaves is removed by the next run.

use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{BootFiles, Options, Outcome, console};
use crate::guest;

/// Working folders are `/tmp/<this><pid>-…`.
const FOLDER_PREFIX: &str = "sandbox-testhost-";
/// A machine whose kernel reported a lockup and that has said nothing for this long does not come back.
const SILENCE: Duration = Duration::from_secs(180);
/// A machine that has given no sign of life for this long hangs; it gives one every few seconds.
const LIFELESS: Duration = Duration::from_secs(240);
/// All that can be emulated, less two of SVM's options and the fifth level of page tables: with them, guests of guests ended in
/// triple faults more often, and the machine's own kernel crashed with a guest's GS base; and a level less is walked faster.
const CPU: &str = "max,-vgif,-v-vmsave-vmload,-la57";
/// How often the machine is looked at.
const TICK: Duration = Duration::from_millis(50);

/// A process that is killed and reaped when it is dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that dies with us.
fn dies_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Removes the working folders of runs that were killed.
fn remove_stale_folders() {
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| {
            name.strip_prefix(FOLDER_PREFIX)?
                .split('-')
                .next()?
                .parse::<u32>()
                .ok()
        });
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The shell script that the machine runs: folder, environment, command.
fn script(options: &Options, folder: &Path) -> String {
    let mut text = format!("cd {} || exit 126\n", quote(&folder.to_string_lossy()));
    for name in ["PATH", "HOME"]
        .into_iter()
        .chain(options.env.iter().map(String::as_str))
    {
        if let Ok(value) = std::env::var(name) {
            text.push_str(&format!("export {name}={}\n", quote(&value)));
        }
    }
    text.push_str("export TMPDIR=/run/tmp\n");
    let words: Vec<String> = options.command.iter().map(|word| quote(word)).collect();
    text.push_str(&format!("exec {}\n", words.join(" ")));
    text
}

/// Serves `folder` to the machine through the socket `socket`.
fn serve(folder: &Path, socket: &Path, log: &Path, extra: &[&str]) -> Result<Helper> {
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let log = fs::File::create(log)?;
    let child = dies_with_us(&guest::artifacts().join("virtiofsd"))
        .args([
            "--fd",
            "0",
            "--sandbox",
            "none",
            "--rlimit-nofile",
            "0",
            "--shared-dir",
        ])
        .arg(folder)
        .args(extra)
        .stdin(OwnedFd::from(listener))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start virtiofsd")?;
    Ok(Helper(child))
}

fn qemu(options: &Options, files: &BootFiles, work: &Path) -> Result<Helper> {
    let memory = options.memory_mib;
    let socket = |name: &str| work.join(name).display().to_string();
    let mut command = dies_with_us(Path::new("qemu-system-x86_64"));
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
        .args([
            "-smp",
            &options.cpus.to_string(),
            "-m",
            &format!("{memory}M"),
        ])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=memory,size={memory}M,share=on"),
        ])
        .args(["-numa", "node,memdev=memory"])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        // Emulation does not see what virtiofsd writes: a page that held a program, and holds another from the share by
        // then, would run as the old one. A page that the kernel clears first is translated anew.
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on init_on_alloc=1",
        ])
        .args(["-serial", &format!("file:{}", socket("console"))])
        .args(["-chardev", "stdio,id=output,signal=off"])
        .args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=output",
        ])
        .args([
            "-chardev",
            &format!("socket,id=root,path={}", socket("root.sock")),
        ])
        .args(["-device", "vhost-user-fs-pci,chardev=root,tag=hostroot"])
        .args([
            "-chardev",
            &format!("socket,id=result,path={}", socket("result.sock")),
        ])
        .args(["-device", "vhost-user-fs-pci,chardev=result,tag=result"])
        .args(["-device", "virtio-rng-pci"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(work.join("qemu.log"))?);
    Ok(Helper(
        command.spawn().context("cannot start qemu-system-x86_64")?,
    ))
}

/// Passes on what the command writes to a file of the result folder, as it grows.
struct Follower<W> {
    file: PathBuf,
    passed: u64,
    to: W,
}

impl<W: Write> Follower<W> {
    fn new(file: PathBuf, to: W) -> Self {
        Self {
            file,
            passed: 0,
            to,
        }
    }

    /// Passes on what is new; returns whether there was anything.
    fn pass_on(&mut self) -> Result<bool> {
        let Ok(mut file) = fs::File::open(&self.file) else {
            return Ok(false);
        };
        file.seek(SeekFrom::Start(self.passed))?;
        let new = io::copy(&mut file, &mut self.to)?;
        self.to.flush()?;
        self.passed += new;
        Ok(new > 0)
    }
}

/// Waits for the end of the machine, and passes the command's output on meanwhile.
fn watch(machine: &mut Helper, options: &Options, work: &Path) -> Result<Outcome> {
    let console_now = || {
        String::from_utf8_lossy(&fs::read(work.join("console")).unwrap_or_default()).into_owned()
    };
    let result = work.join("result");
    let mut stdout = Follower::new(result.join("stdout"), io::stdout());
    let mut stderr = Follower::new(result.join("stderr"), io::stderr());
    let start = Instant::now();
    let mut last_output = start;
    let mut last_sign = (start, None);
    loop {
        let ended = machine.0.try_wait()?;
        let told = stdout.pass_on()? | stderr.pass_on()?;
        if let Some(status) = ended {
            let code = fs::read_to_string(result.join("code")).unwrap_or_default();
            return Ok(match code.trim().parse() {
                Ok(code) => Outcome::Exited(code),
                Err(_) => Outcome::Wedged(format!(
                    "it stopped ({status}) before the command had an exit code: {}",
                    fs::read_to_string(work.join("qemu.log"))
                        .unwrap_or_default()
                        .trim()
                )),
            });
        }
        if told {
            last_output = Instant::now();
        }
        let sign = fs::metadata(result.join("alive"))
            .and_then(|file| file.modified())
            .ok();
        if sign != last_sign.1 {
            last_sign = (Instant::now(), sign);
        }
        if last_sign.0.elapsed() > LIFELESS {
            return Ok(Outcome::Wedged(format!(
                "it gave no sign of life for {} s",
                LIFELESS.as_secs()
            )));
        }
        let given_up = start.elapsed() > options.timeout;
        if (given_up || last_output.elapsed() > SILENCE)
            && let Some(line) = console::wedged(&console_now())
        {
            return Ok(Outcome::Wedged(line.trim().to_owned()));
        }
        if given_up {
            return Ok(Outcome::TimedOut);
        }
        std::thread::sleep(TICK);
    }
}

/// Runs the command; returns how that ended and what the kernel's console said.
///
/// # Errors
/// When a helper cannot be started.
pub(super) fn run(options: &Options, files: &BootFiles) -> Result<(Outcome, String)> {
    remove_stale_folders();
    let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
    let work = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in("/tmp")?;
    let path: PathBuf = work.path().to_owned();
    let result = path.join("result");
    fs::create_dir(&result)?;
    fs::write(
        result.join("command"),
        script(options, &std::env::current_dir()?),
    )?;
    // overlayfs refuses a lower file system that announces submounts: "Object is remote". What was read once stays in memory, as on
    // any host, and is not read again each time that a file is opened. What changes here meanwhile may show in the test host or not.
    let root = serve(
        Path::new("/"),
        &path.join("root.sock"),
        &path.join("root.log"),
        &["--no-announce-submounts", "--readonly", "--cache", "always"],
    )?;
    let shared = serve(
        &result,
        &path.join("result.sock"),
        &path.join("result.log"),
        &["--cache", "never"],
    )?;
    let mut machine = qemu(options, files, &path)?;
    let outcome = watch(&mut machine, options, &path);
    drop(machine);
    drop((root, shared));
    let console = fs::read(path.join("console")).unwrap_or_default();
    Ok((outcome?, String::from_utf8_lossy(&console).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_quotes_what_a_shell_would_change() {
        let options = Options {
            command: vec!["echo".into(), "a b".into(), "it's $HOME".into()],
            timeout: Duration::from_secs(1),
            memory_mib: 1,
            cpus: 1,
            env: Vec::new(),
        };
        let text = script(&options, Path::new("/a folder"));
        assert!(text.starts_with("cd '/a folder' || exit 126\n"), "{text}");
        assert!(
            text.ends_with("exec 'echo' 'a b' 'it'\\''s $HOME'\n"),
            "{text}"
        );
    }
}
