//! `-info`: what the shim is, as containerd 2 asks before it makes a container.

use std::io::{self, Read as _, Write as _};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use crate::error::ShimError;

/// The runtime's name in containerd.
const NAME: &str = "io.containerd.sandbox.v2";
/// Says which mounts containerd's mount manager leaves to the shim (containerd `docs/mounts.md`).
const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Those that [`sandbox_runtime::rootfs`] takes.
const MOUNTS: &str = "erofs,ext4,loop,format/*,mkdir/*,dmverity/*";
/// The most that is read of the options on standard input, in bytes.
const MAX_INPUT_BYTES: u64 = 10 << 20;

fn info(options: &[u8]) -> Result<RuntimeInfo, ShimError> {
    let options = Any::parse_from_bytes(options)?;
    Ok(RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        options: Some(options)
            .filter(|options| !options.type_url.is_empty())
            .into(),
        annotations: [(ALLOW_MOUNTS.to_owned(), MOUNTS.to_owned())].into(),
        ..Default::default()
    })
}

/// Prints a `RuntimeInfo`.
///
/// # Errors
/// [`ShimError`] when standard input is no message, or the answer is not taken.
pub(crate) fn print() -> Result<(), ShimError> {
    let mut options = Vec::new();
    io::stdin()
        .take(MAX_INPUT_BYTES)
        .read_to_end(&mut options)
        .map_err(ShimError::system("read the options on standard input"))?;
    let bytes = info(&options)?.write_to_bytes()?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(ShimError::system("answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_the_mounts_and_returns_the_options() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".to_owned(),
            ..Default::default()
        };
        let told = info(&options.write_to_bytes().unwrap()).unwrap();
        assert_eq!(told.options.as_ref(), Some(&options));
        assert!(
            told.annotations[ALLOW_MOUNTS]
                .split(',')
                .any(|t| t == "erofs")
        );
        assert!(info(b"").unwrap().options.is_none());
        assert!(info(&[0xff]).is_err());
    }
}
