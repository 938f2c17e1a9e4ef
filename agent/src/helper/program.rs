//! What a container's process executes and with which variables, as its own files say. Looked for in the container, before privileges are given up.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::fs::OFlags;

use super::FailureKind;
use super::executor::Refusal;
use crate::in_root;
use crate::spec::HOME_UNKNOWN;

/// Where programs are looked for if the process has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most of a container's `/etc/passwd` that is read, in bytes.
const MAX_PASSWD_BYTES: u64 = 1024 * 1024;

/// The program that `args[0]` names: itself if it has a slash, else the first of that name in `PATH` that can
/// be executed (execvp(3)).
pub(super) fn find_program(process: &Process) -> Result<PathBuf, Refusal> {
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .map_or("", String::as_str);
    let path = process
        .env()
        .iter()
        .flatten()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else if name.is_empty() {
        vec![]
    } else {
        path.split(':')
            .map(|directory| match directory {
                "" => Path::new(".").join(name),
                directory => Path::new(directory).join(name),
            })
            .collect()
    };
    let mut present = None;
    for candidate in candidates {
        let metadata = match fs::metadata(&candidate) {
            Ok(metadata) => metadata,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => {
                return Err(Refusal {
                    kind: FailureKind::ProgramNotExecutable,
                    message: format!("cannot execute {}: {error}", candidate.display()),
                });
            }
        };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        present.get_or_insert((candidate, metadata.is_dir()));
    }
    Err(match present {
        Some((path, directory)) => Refusal {
            kind: FailureKind::ProgramNotExecutable,
            message: format!(
                "cannot execute {}: {}",
                path.display(),
                match directory {
                    true => "it is a directory",
                    false => "permission denied",
                }
            ),
        },
        None if name.contains('/') => Refusal {
            kind: FailureKind::ProgramNotFound,
            // Docker tells these failures by such words (exit code 127).
            message: format!("cannot execute {name}: no such file or directory in the container"),
        },
        None => Refusal {
            kind: FailureKind::ProgramNotFound,
            message: format!("cannot execute {name:?}: executable file not found in PATH ({path})"),
        },
    })
}

pub(super) fn environment(process: &Process) -> Vec<String> {
    let mut variables = process.env().clone().unwrap_or_default();
    for variable in &mut variables {
        if variable == HOME_UNKNOWN {
            let home = home_of(Path::new("/etc/passwd"), process.user().uid());
            *variable = format!("HOME={}", home.as_deref().unwrap_or("/"));
        }
    }
    variables
}

/// Home directory of `uid` in a container's own passwd(5), which may be anything at all.
fn home_of(passwd: &Path, uid: u32) -> Option<String> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY; // a fifo there must not block
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).ok()?)
        .open(passwd)
        .ok()?;
    let bytes = in_root::read_regular(file, MAX_PASSWD_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && home.starts_with('/')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process(args: &[&str], env: &[&str]) -> Process {
        serde_json::from_value(json!({
            "user": {"uid": 0, "gid": 0}, "args": args, "env": env, "cwd": "/",
        }))
        .unwrap()
    }

    fn kind(process: &Process) -> Option<FailureKind> {
        find_program(process).err().map(|refusal| refusal.kind)
    }

    #[test]
    fn program_missing_is_told_from_one_that_is_not_executable() {
        let root = tempfile::tempdir().unwrap();
        let path = format!("PATH=/nonexistent:{}", root.path().display());
        fs::write(root.path().join("plain"), "").unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        let run = |name: &str| kind(&process(&[name], &[&path]));
        assert_eq!(run("missing"), Some(FailureKind::ProgramNotFound));
        assert_eq!(run(""), Some(FailureKind::ProgramNotFound));
        assert_eq!(run("/missing"), Some(FailureKind::ProgramNotFound));
        assert_eq!(run("plain"), Some(FailureKind::ProgramNotExecutable));
        assert_eq!(run("directory"), Some(FailureKind::ProgramNotExecutable));
        fs::set_permissions(root.path().join("plain"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(run("plain"), None);
    }

    #[test]
    fn home_is_that_of_the_user_in_the_containers_passwd() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            "junk\nroot:x:0:0:root:/root:/bin/sh\nu:x:7:7::/home/u:/bin/sh\nv:x:8:8::relative:\n",
        )
        .unwrap();
        assert_eq!(home_of(file.path(), 7).as_deref(), Some("/home/u"));
        assert_eq!(home_of(file.path(), 8), None);
        assert_eq!(home_of(file.path(), 9), None);
        assert_eq!(home_of(Path::new("/dev/null"), 0), None);
    }
}
