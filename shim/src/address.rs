//! Where the task service of a pod listens.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The longest path of a Unix socket: `sun_path` without its final zero (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// The socket of one pod: `<socket_dir>/<hash of everything that tells pods apart>`, the hash cut so that the path
/// fits a socket address. `None` when the folder alone is too long.
pub(crate) fn socket_path(
    socket_dir: &Path,
    containerd_address: &str,
    namespace: &str,
    id: &str,
) -> Option<PathBuf> {
    let mut hash = Sha256::new();
    for part in [containerd_address, namespace, id] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut name = hex::encode(hash.finalize());
    let room = MAX_PATH_BYTES.checked_sub(socket_dir.as_os_str().len() + 1)?;
    // Below 64 bits two pods could meet by chance.
    if room < 16 {
        return None;
    }
    name.truncate(room);
    Some(socket_dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_differs_for_every_part_and_fits() {
        let folder = Path::new("/run/containerd/s");
        let base = socket_path(folder, "/a", "ns", "id").unwrap();
        assert_ne!(base, socket_path(folder, "/b", "ns", "id").unwrap());
        assert_ne!(base, socket_path(folder, "/a", "n", "sid").unwrap());
        let long = PathBuf::from(format!("/{}", "x".repeat(80)));
        let path = socket_path(&long, "/a", "ns", "id").unwrap();
        assert!(path.as_os_str().len() <= MAX_PATH_BYTES);
        assert!(socket_path(&PathBuf::from(format!("/{}", "x".repeat(95))), "", "", "").is_none());
    }
}
