//! The user of a process by name, as docker's `--user` and an image's `USER` have it: `USER[:GROUP]`, each a name or a
//! number, looked up in the container's own `/etc/passwd` and `/etc/group`. A third part is ours, for `--group-add`:
//! `USER:[GROUP]:NAME[,NAME…]`, further groups. No name has a colon or a comma in it, because those files do not.
//!
//! | text | user | group | supplementary groups |
//! | --- | --- | --- | --- |
//! | `name` | that of passwd; unknown: refused | that of passwd | those that list the name |
//! | `7` | 7 | that of passwd; 0 if there is no such user | those that list the user's name |
//! | `…:name` | as above | that of group; unknown: refused | none |
//! | `…:8` | as above | 8 | none |
//! | `…:…:name,8` | as above | as above | as above, and these; unknown: refused |
//!
//! Groups that the spec lists besides are kept. The user's own group is always among the supplementary ones, the first of them: a
//! program that changes its group only, such as a set-group-ID one, else comes around what is denied to that group (CVE-2022-36109).

use std::io;
use std::path::Path;

use oci_spec::runtime::User;
use rustix::fs::{CWD, Mode, OFlags};

use crate::in_root;

/// The most that is read of a file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The largest number of a user or group, as docker has it.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// Not in passwd.
    #[error("user {name:?} is not in the container's /etc/passwd")]
    UnknownUser {
        /// As it was asked for.
        name: String,
    },
    /// Not in group.
    #[error("group {name:?} is not in the container's /etc/group")]
    UnknownGroup {
        /// As it was asked for.
        name: String,
    },
    /// A number that no user or group can have.
    #[error("{number} is no number of a user or group; the largest is {MAX_ID}")]
    Number {
        /// As it was asked for.
        number: String,
    },
    /// A file could not be read.
    #[error("cannot read the container's {path}")]
    File {
        /// Which.
        path: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Replaces the name of `user`, if it has one, by numbers, from the container whose root is `root`.
pub(crate) fn resolve(user: &mut User, root: &Path) -> Result<bool, UserError> {
    let Some(text) = user.username().clone().filter(|text| !text.is_empty()) else {
        return Ok(false);
    };
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    let found = find(&text, &passwd, &group)?;
    let listed = user.additional_gids().clone().unwrap_or_default();
    let mut groups = Vec::new();
    for gid in std::iter::once(found.gid).chain(listed).chain(found.groups) {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    user.set_uid(found.uid)
        .set_gid(found.gid)
        .set_additional_gids(Some(groups))
        .set_username(None);
    Ok(true)
}

/// The beginning of a file below `root`, which no link leads out of; empty if there is none.
fn read(root: &Path, path: &'static str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::File { path, source };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    // A fifo is not to be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Some(file) = in_root::open(&root, Path::new(path), flags).map_err(failed)? else {
        return Ok(String::new());
    };
    let bytes = in_root::read_regular(file.into(), MAX_FILE_BYTES).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The number that a text is; `None` for a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) if number <= MAX_ID => Ok(Some(number)),
        _ => Err(UserError::Number {
            number: text.to_owned(),
        }),
    }
}

fn find(text: &str, passwd: &str, group: &str) -> Result<Found, UserError> {
    let mut parts = text.splitn(3, ':');
    let user = parts.next().unwrap_or_default();
    let wanted_group = parts.next().filter(|group| !group.is_empty());
    let further = parts.next().filter(|groups| !groups.is_empty());
    // Without a user, that of the image is meant, which is root.
    let user = if user.is_empty() { "0" } else { user };
    let wanted = number(user)?;
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        let found = match wanted {
            Some(wanted) => uid == wanted,
            None => name == user,
        };
        found.then_some((name, uid, gid))
    });
    let (name, uid, gid) = match (entry, wanted) {
        (Some((name, uid, gid)), _) => (Some(name), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => {
            return Err(UserError::UnknownUser {
                name: user.to_owned(),
            });
        }
    };
    let mut found = match wanted_group {
        Some(wanted) => Found {
            uid,
            gid: group_number(wanted, group)?,
            groups: Vec::new(),
        },
        None => Found {
            uid,
            gid,
            groups: groups(group)
                .filter(|(_, _, members)| {
                    name.is_some_and(|name| members.split(',').any(|member| member == name))
                })
                .map(|(_, gid, _)| gid)
                .collect(),
        },
    };
    for wanted in further.into_iter().flat_map(|list| list.split(',')) {
        found.groups.push(group_number(wanted, group)?);
    }
    Ok(found)
}

/// Name, number and members of each line of a group file.
fn groups(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid: u32 = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// The number that `wanted`, a number or a name of the group file, stands for.
fn group_number(wanted: &str, file: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(wanted)? {
        return Ok(gid);
    }
    groups(file)
        .find_map(|(name, gid, _)| (name == wanted).then_some(gid))
        .ok_or_else(|| UserError::UnknownGroup {
            name: wanted.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "junk\nroot:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home/user:/bin/sh\n";
    const GROUP: &str = "junk\nroot:x:0:\nwheel:x:10:root,user\naudio:x:29:user\nuser:x:1001:\n";

    fn found(text: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let found = find(text, PASSWD, GROUP).map_err(|error| error.to_string())?;
        Ok((found.uid, found.gid, found.groups))
    }

    #[test]
    fn user_and_group_are_found_as_docker_finds_them() {
        for (text, expected) in [
            ("user", (1000, 1001, vec![10, 29])),
            ("1000", (1000, 1001, vec![10, 29])),
            ("7", (7, 0, vec![])),
            ("user:audio", (1000, 29, vec![])),
            ("7:8", (7, 8, vec![])),
            (":8", (0, 8, vec![])),
            ("user:", (1000, 1001, vec![10, 29])),
            ("root", (0, 0, vec![10])),
            ("user::audio,7", (1000, 1001, vec![10, 29, 29, 7])),
            ("7:8:wheel", (7, 8, vec![10])),
            ("user::", (1000, 1001, vec![10, 29])),
        ] {
            assert_eq!(found(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn name_that_is_unknown_is_refused() {
        assert!(found("nobody").unwrap_err().contains("\"nobody\""));
        assert!(found("user:nogroup").unwrap_err().contains("\"nogroup\""));
        assert!(found("user::nogroup").unwrap_err().contains("\"nogroup\""));
        assert!(found("user::wheel,").is_err());
        assert!(found("4294967295").unwrap_err().contains("4294967295"));
        // A sign makes it a name.
        assert!(found("-1").is_err());
    }

    #[test]
    fn own_group_is_the_first_of_the_supplementary_ones() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUP).unwrap();
        for (name, listed, expected) in [
            ("user", vec![], vec![1001, 10, 29]),
            ("user", vec![29, 77, 1001], vec![1001, 29, 77, 10]),
            ("7:8", vec![], vec![8]),
            ("root", vec![], vec![0, 10]),
        ] {
            let mut user = User::default();
            user.set_username(Some(name.to_owned()))
                .set_additional_gids(Some(listed));
            assert!(resolve(&mut user, root.path()).unwrap());
            assert_eq!(user.additional_gids().as_ref(), Some(&expected), "{name}");
        }
    }

    #[test]
    fn files_are_looked_for_in_the_root_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        assert_eq!(read(root.path(), "etc/passwd").unwrap(), "");
        // As in the root itself, an absolute link leads to the root's own file.
        std::os::unix::fs::symlink("/etc/other", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("etc/other"), PASSWD).unwrap();
        assert_eq!(read(root.path(), "etc/passwd").unwrap(), PASSWD);
        std::fs::create_dir(root.path().join("etc/group")).unwrap();
        assert!(read(root.path(), "etc/group").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_found_or_refused(text in ".{0,20}", passwd in "[a-z:0-9\n]{0,60}") {
            let _ = find(&text, &passwd, &passwd);
        }
    }
}
