//! A look at a guest kernel before it is booted: whether it is one that can be.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Why a file is no guest kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// It cannot be read.
    #[error("cannot read the guest kernel {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is something else.
    #[error(
        "{} is not an uncompressed ELF kernel for x86-64; of a kernel build take `vmlinux`, not `bzImage`",
        path.display()
    )]
    NotElf { path: PathBuf },
    /// It cannot be entered the way virtual machines are.
    #[error(
        "the kernel {} has no PVH entry note; build it with CONFIG_PVH=y",
        path.display()
    )]
    NoPvh { path: PathBuf },
}

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Linux `include/xen/interface/elfnote.h`).
const NOTE_ENTRY: u32 = 18;
/// A kernel has a handful of program headers.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Its notes take a few hundred bytes.
const MAX_NOTES_BYTES: u64 = 64 * 1024;

/// Checks that the file at `path` is an ELF kernel with a PVH entry.
pub(crate) fn check(path: &Path) -> Result<(), KernelError> {
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let not_elf = || KernelError::NotElf {
        path: path.to_owned(),
    };
    let file = File::open(path).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(not_elf());
    }
    match has_pvh_note(&file) {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err(KernelError::NoPvh {
            path: path.to_owned(),
        }),
        Ok(None) => Err(not_elf()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(not_elf()),
        Err(source) => Err(read(source)),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// None when it is no ELF file for x86-64 (System V ABI, "ELF Header" and "Program Header").
fn has_pvh_note(file: &File) -> io::Result<Option<bool>> {
    let mut header = [0_u8; 64];
    file.read_exact_at(&mut header, 0)?;
    // ELF, 64 bits, little-endian; machine 62 is x86-64.
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(&header, 18) != Some(62) {
        return Ok(None);
    }
    let (Some(offset), Some(size), Some(count)) = (
        u64_at(&header, 32),
        u16_at(&header, 54),
        u16_at(&header, 56),
    ) else {
        return Ok(None);
    };
    if size < 56 || count > MAX_PROGRAM_HEADERS {
        return Ok(None);
    }
    for index in 0..u64::from(count) {
        let mut segment = [0_u8; 56];
        let Some(at) = offset.checked_add(index * u64::from(size)) else {
            return Ok(None);
        };
        file.read_exact_at(&mut segment, at)?;
        // PT_NOTE
        if u32_at(&segment, 0) != Some(4) {
            continue;
        }
        let (Some(at), Some(length)) = (u64_at(&segment, 8), u64_at(&segment, 32)) else {
            return Ok(None);
        };
        let length = usize::try_from(length.min(MAX_NOTES_BYTES)).unwrap_or_default();
        let mut notes = vec![0_u8; length];
        file.read_exact_at(&mut notes, at)?;
        if names_entry(&notes) {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}

/// Whether one of these notes is Xen's for the entry.
fn names_entry(notes: &[u8]) -> bool {
    let mut at = 0_usize;
    while let (Some(name), Some(content), Some(kind)) = (
        u32_at(notes, at),
        u32_at(notes, at.saturating_add(4)),
        u32_at(notes, at.saturating_add(8)),
    ) {
        let name_at = at.saturating_add(12);
        if kind == NOTE_ENTRY && notes.get(name_at..name_at.saturating_add(4)) == Some(b"Xen\0") {
            return true;
        }
        at = name_at
            .saturating_add(padded(name))
            .saturating_add(padded(content));
    }
    false
}

fn padded(length: u32) -> usize {
    usize::try_from(length).map_or(usize::MAX, |length| length.saturating_add(3) & !3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one segment of notes.
    fn elf(kind: u32) -> Vec<u8> {
        let mut file = vec![0_u8; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&62_u16.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let mut notes = Vec::new();
        for (name, kind) in [(b"GNU\0", 3), (b"Xen\0", kind)] {
            for field in [4_u32, 5, kind] {
                notes.extend_from_slice(&field.to_le_bytes());
            }
            notes.extend_from_slice(name);
            notes.extend_from_slice(&[0; 8]);
        }
        file[64..68].copy_from_slice(&4_u32.to_le_bytes());
        file[72..80].copy_from_slice(&120_u64.to_le_bytes());
        let length = u64::try_from(notes.len()).unwrap();
        file[96..104].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(&notes);
        file
    }

    fn checked(content: &[u8]) -> Result<(), KernelError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        check(file.path())
    }

    #[test]
    fn kernel_with_pvh_note_is_taken() {
        checked(&elf(NOTE_ENTRY)).unwrap();
    }

    #[test]
    fn kernel_without_pvh_note_is_refused() {
        assert!(matches!(checked(&elf(6)), Err(KernelError::NoPvh { .. })));
    }

    #[test]
    fn file_that_is_no_kernel_is_refused() {
        for content in [&b""[..], b"hello", &[0; 4096], &elf(NOTE_ENTRY)[..100]] {
            assert!(matches!(checked(content), Err(KernelError::NotElf { .. })));
        }
        assert!(matches!(
            check(Path::new("/dev")),
            Err(KernelError::NotElf { .. })
        ));
        assert!(matches!(
            check(Path::new("/none")),
            Err(KernelError::Read { .. })
        ));
    }

    #[test]
    fn kernel_cut_or_changed_anywhere_does_not_panic() {
        let whole = elf(NOTE_ENTRY);
        for at in 0..whole.len() {
            let _ = checked(&whole[..at]);
            let mut changed = whole.clone();
            changed[at] = 0xff;
            let _ = checked(&changed);
        }
    }
}
