//! The hash tree of a layer's image, by which a guest can tell bytes that changed on the host's disk (dm-verity).
//!
//! ```text
//! EROFS image | superblock, one block | highest level | … | level 0: one digest for each block of the image
//! ```
//!
//! A block of a level holds 128 digests of the level below; what is left of it is zero. The root is the digest of the one block
//! of the highest level. A digest is SHA-256 of the salt and the block. Sources: Linux `Documentation/admin-guide/device-mapper/verity.rst`
//! for the tree, cryptsetup `lib/verity/verity.c` (`struct verity_sb`) for the superblock, which `veritysetup verify --hash-offset` reads,
//! as containerd's EROFS snapshotter does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a block of data and of hashes.
const BLOCK_BYTES: usize = 4096;
const BLOCK: u64 = 4096;
/// Bytes of a digest.
const DIGEST_BYTES: usize = 32;
/// Digests in a block.
const DIGESTS: u64 = BLOCK / 32;
/// How much is read at a time.
const CHUNK_BLOCKS: u64 = 256;

/// Where a layer's hash tree is, and what it must hash to. Spelt as containerd's `.dmverity` files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashTree {
    /// The root's digest, in hexadecimal digits.
    #[serde(rename = "roothash")]
    pub root: String,
    /// The offset of the superblock in the layer's file, in bytes.
    #[serde(rename = "hashoffset")]
    pub offset: u64,
}

impl HashTree {
    /// How many bytes a file has that ends with this tree.
    pub(crate) fn file_bytes(&self) -> u64 {
        let data_blocks = self.offset / BLOCK;
        let levels = level_sizes(data_blocks).iter().sum::<u64>();
        data_blocks
            .saturating_add(1)
            .saturating_add(levels)
            .saturating_mul(BLOCK)
    }
}

/// How many blocks each level has, from the lowest. None, if the data is one block: then that is what the root is the digest of.
fn level_sizes(data_blocks: u64) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(DIGESTS);
        sizes.push(below);
    }
    sizes
}

/// The digest of one block, after the salt.
fn digest(salted: &Sha256, block: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut hasher = salted.clone();
    hasher.update(block);
    hasher.finalize().into()
}

/// Writes one level: the digests of `count` blocks from block `from` on, to blocks from `to` on.
fn write_level(file: &File, salted: &Sha256, from: u64, count: u64, to: u64) -> io::Result<()> {
    let mut chunk = vec![0; BLOCK_BYTES * 256];
    let mut hashes = Vec::with_capacity(BLOCK_BYTES);
    let mut written = to;
    let mut flush = |hashes: &mut Vec<u8>| -> io::Result<()> {
        hashes.resize(BLOCK_BYTES, 0);
        file.write_all_at(hashes, written * BLOCK)?;
        written += 1;
        hashes.clear();
        Ok(())
    };
    let mut done = 0;
    while done < count {
        let blocks = CHUNK_BLOCKS.min(count - done);
        chunk.resize(usize::try_from(blocks * BLOCK).unwrap_or(0), 0);
        file.read_exact_at(&mut chunk, (from + done) * BLOCK)?;
        for block in chunk.chunks_exact(BLOCK_BYTES) {
            hashes.extend_from_slice(&digest(salted, block));
            if hashes.len() == BLOCK_BYTES {
                flush(&mut hashes)?;
            }
        }
        done += blocks;
    }
    if !hashes.is_empty() {
        flush(&mut hashes)?;
    }
    Ok(())
}

/// The block that says how the tree was made; integers are little-endian.
fn superblock(data_blocks: u64, salt: &[u8; 32], uuid: [u8; 16]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = block.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, b"verity\0\0");
    put(8, &1_u32.to_le_bytes()); // version of the superblock
    put(12, &1_u32.to_le_bytes()); // hash type: the salt first
    put(16, &uuid);
    put(32, b"sha256");
    put(64, &4096_u32.to_le_bytes()); // block of data
    put(68, &4096_u32.to_le_bytes()); // block of hashes
    put(72, &data_blocks.to_le_bytes());
    put(80, &32_u16.to_le_bytes()); // bytes of the salt
    put(88, salt);
    block
}

/// Appends the hash tree of what `file` holds to it. The same bytes, salt and identifier give the same tree.
pub(crate) fn append(file: &File, salt: &[u8; 32], uuid: [u8; 16]) -> io::Result<HashTree> {
    let data_blocks = file.metadata()?.len().div_ceil(BLOCK).max(1);
    let offset = data_blocks * BLOCK;
    let salted = Sha256::new_with_prefix(salt);
    let sizes = level_sizes(data_blocks);
    // The blocks between are holes until they are written.
    let end = data_blocks + 1 + sizes.iter().sum::<u64>();
    file.set_len(end * BLOCK)?;
    file.write_all_at(&superblock(data_blocks, salt, uuid), offset)?;
    // The highest level comes first, so that the lowest one ends the file.
    let (mut from, mut count, mut level_end) = (0, data_blocks, end);
    for size in sizes {
        let to = level_end - size;
        write_level(file, &salted, from, count, to)?;
        (from, count, level_end) = (to, size, to);
    }
    let mut top = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut top, from * BLOCK)?;
    Ok(HashTree {
        root: hex::encode(digest(&salted, &top)),
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..=250_u8).cycle().take(bytes).collect();
        file.write_all(&content).unwrap();
        file
    }

    #[test]
    fn levels_get_smaller_up_to_one_block() {
        assert!(level_sizes(1).is_empty());
        assert_eq!(level_sizes(2), [1]);
        assert_eq!(level_sizes(128), [1]);
        assert_eq!(level_sizes(129), [2, 1]);
        assert_eq!(level_sizes(128 * 128 + 1), [129, 2, 1]);
    }

    #[test]
    fn root_of_one_block_is_its_own_digest() {
        let file = file(BLOCK_BYTES);
        let content = std::fs::read(file.path()).unwrap();
        let tree = append(file.as_file(), &[7; 32], [0; 16]).unwrap();
        let mut hasher = Sha256::new_with_prefix([7; 32]);
        hasher.update(content);
        assert_eq!(tree.root, hex::encode(hasher.finalize()));
        assert_eq!(tree.offset, BLOCK);
        assert_eq!(file.as_file().metadata().unwrap().len(), 2 * BLOCK);
    }

    #[test]
    fn length_of_a_file_with_its_tree_is_known_from_where_the_tree_is() {
        for bytes in [1, BLOCK_BYTES + 1, 129 * BLOCK_BYTES] {
            let file = file(bytes);
            let tree = append(file.as_file(), &[7; 32], [0; 16]).unwrap();
            assert_eq!(file.as_file().metadata().unwrap().len(), tree.file_bytes());
        }
    }

    #[test]
    fn root_changes_with_every_block_and_with_the_salt() {
        let of = |content: &[u8], salt: u8| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content).unwrap();
            append(file.as_file(), &[salt; 32], [0; 16]).unwrap().root
        };
        // Two levels; the last block is not whole.
        let content = vec![0; 200 * BLOCK_BYTES + 1];
        let usual = of(&content, 1);
        assert_eq!(usual, of(&content, 1));
        assert_ne!(usual, of(&content, 2));
        for at in [0, 127 * BLOCK_BYTES, 128 * BLOCK_BYTES, content.len() - 1] {
            let mut changed = content.clone();
            changed[at] = 1;
            assert_ne!(usual, of(&changed, 1), "byte {at}");
        }
    }
}
