//! `dmverity/erofs`: a layer with a hash tree behind its data (containerd `core/mount/manager/dmverity.go`).

use sandbox_protocol::agent;

use super::MountProblem;

/// The options by which the dmverity transformer is told what to hold the data to.
pub(super) const VERITY_OPTION: &str = "X-containerd.dmverity.";

/// The hash tree that the options name. The device's name is for containerd's own mounts.
pub(super) fn of_options(fstype: &str, options: &[String]) -> Result<agent::Verity, MountProblem> {
    let value = |key: &str| {
        let of = |option: &String| {
            let option = option.strip_prefix(VERITY_OPTION)?;
            Some(option.strip_prefix(key)?.strip_prefix('=')?.to_owned())
        };
        options.iter().find_map(of).ok_or(MountProblem::Verity)
    };
    let digits = value("roothash")?;
    let mut root_hash = [0; 32];
    hex::decode_to_slice(&digits, &mut root_hash).map_err(|_| MountProblem::Verity)?;
    let hash_offset: u64 = value("hash-offset")?
        .parse()
        .map_err(|_| MountProblem::Verity)?;
    let flag = format!("{VERITY_OPTION}no-superblock");
    if fstype != "erofs" || !hash_offset.is_multiple_of(4096) || options.contains(&flag) {
        return Err(MountProblem::Verity);
    }
    Ok(agent::Verity {
        root_hash: root_hash.to_vec(),
        hash_offset,
        ..Default::default()
    })
}
