//! Who the process is.

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::JailError;

/// Becomes the user and the group with this number, with no other group, for ever.
///
/// # Errors
/// [`JailError::User`].
pub fn become_user(id: u32) -> Result<(), JailError> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(|errno| JailError::User {
            id,
            source: errno.into(),
        })
}
