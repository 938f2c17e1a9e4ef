//! A kernel's padding, which is not loaded.
//!
//! The linker script of x86-64 begins and ends the entry code at multiples of 2 MiB, whatever the configuration
//! (`ALIGN_ENTRY_TEXT_BEGIN` and `ALIGN_ENTRY_TEXT_END`, `arch/x86/kernel/vmlinux.lds.S`), and fills what that leaves with `int3`: 3.6 MiB
//! of memory for each guest. Here the segment with the code becomes several, between which nothing is loaded (System V ABI, "Program
//! Header"). Only the program headers change: what the sections and symbols say, and where their bytes lie in the file, stays.
//!
//! Guest memory in between reads as zeroes then, not as `int3`. Nothing jumps there: it is no code, and no symbol is in it. The
//! kernel maps it as before, for reading and executing only. Some of the fill stays at either end: there is an `int3` behind the
//! code before, where the processor may guess on, and one before the code behind, for whoever got in between by a
//! defect and ran on through zeroes (`add %al, (%rax)`).

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};

/// What the linker script fills code with: `int3`.
const FILL: u8 = 0xcc;
const PAGE_BYTES: u64 = 4096;
/// Less is not worth a program header.
const LEAST_BYTES: u64 = 64 << 10;

/// `EI_CLASS`, `EI_DATA` and before: `ELFMAG`, `ELFCLASS64`, `ELFDATA2LSB`.
const IDENTITY: &[u8] = b"\x7fELF\x02\x01";
/// Bytes of an `Elf64_Phdr`.
const SEGMENT_BYTES: usize = 56;
/// Bytes of an `Elf64_Shdr`.
const SECTION_BYTES: usize = 64;
/// Where `Elf64_Ehdr` has `e_phnum`.
const SEGMENT_COUNT: usize = 56;

/// `PT_LOAD`.
const LOAD: u32 = 1;
/// `SHT_NULL` and `SHT_NOBITS`, which have no bytes in the file.
const WITHOUT_BYTES: [u32; 2] = [0, 8];
/// `SHF_EXECINSTR`.
const CODE: u64 = 4;

/// Changes the program headers of a kernel so that long runs of padding in its code are not loaded. Returns how many bytes that are;
/// where there are none, nothing is changed.
///
/// # Errors
/// When it is no ELF file of x86-64's kind, or there is no room for more program headers.
pub(super) fn leave_out(file: &mut [u8]) -> Result<u64> {
    let kernel = Kernel::read(file)?;
    let mut left_out = 0;
    let mut table = Vec::new();
    let mut count: u16 = 0;
    for segment in &kernel.segments {
        let gaps = segment.gaps(file, &kernel.code)?;
        left_out += gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>();
        for part in segment.without(&gaps) {
            table.extend(part.bytes());
            count = count.checked_add(1).context("it has too many segments")?;
        }
    }
    if left_out == 0 {
        return Ok(0);
    }
    let end = kernel.table.saturating_add(table.len() as u64);
    ensure!(
        end <= kernel.room_end,
        "its program headers would end at {end:#x}, and there is room up to {:#x} only",
        kernel.room_end
    );
    put(file, kernel.table, &table)?;
    put(file, SEGMENT_COUNT as u64, &count.to_le_bytes())?;
    Ok(left_out)
}

/// What there is to know of the file.
struct Kernel {
    /// Where the program headers begin.
    table: u64,
    /// Where something else begins in the file.
    room_end: u64,
    segments: Vec<Segment>,
    /// Where sections of code are in the file, in order.
    code: Vec<Range<u64>>,
}

impl Kernel {
    fn read(file: &[u8]) -> Result<Self> {
        ensure!(
            file.starts_with(IDENTITY),
            "it is no little-endian ELF file of 64 bits"
        );
        // e_phoff, e_shoff; e_phentsize, e_phnum, e_shentsize, e_shnum.
        let table = u64_at(file, 32)?;
        let sections_at = u64_at(file, 40)?;
        let segments = entries(
            file,
            table,
            u16_at(file, 54)?,
            u16_at(file, SEGMENT_COUNT)?,
            SEGMENT_BYTES,
        )?;
        let sections = entries(
            file,
            sections_at,
            u16_at(file, 58)?,
            u16_at(file, 60)?,
            SECTION_BYTES,
        )?;
        let segments: Vec<Segment> = segments.map(Segment::read).collect::<Result<_>>()?;
        let mut used: Vec<u64> = segments
            .iter()
            .filter(|segment| segment.file_bytes > 0)
            .map(|segment| segment.offset)
            .collect();
        let mut code = Vec::new();
        for section in sections {
            // sh_type, sh_flags, sh_offset, sh_size.
            let (kind, flags) = (u32_at(section, 4)?, u64_at(section, 8)?);
            let (offset, bytes) = (u64_at(section, 24)?, u64_at(section, 32)?);
            if WITHOUT_BYTES.contains(&kind) || bytes == 0 {
                continue;
            }
            used.push(offset);
            if flags & CODE != 0 {
                let end = offset.checked_add(bytes);
                code.push(offset..end.context("a section has no end")?);
            }
        }
        code.sort_by_key(|section| section.start);
        ensure!(
            code.is_sorted_by(|one, next| one.end <= next.start),
            "sections of code overlap"
        );
        if sections_at > 0 {
            used.push(sections_at);
        }
        Ok(Self {
            table,
            room_end: used.into_iter().min().unwrap_or(0),
            segments,
            code,
        })
    }
}

/// `Elf64_Phdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

impl Segment {
    fn read(entry: &[u8]) -> Result<Self> {
        Ok(Self {
            kind: u32_at(entry, 0)?,
            flags: u32_at(entry, 4)?,
            offset: u64_at(entry, 8)?,
            virtual_address: u64_at(entry, 16)?,
            physical_address: u64_at(entry, 24)?,
            file_bytes: u64_at(entry, 32)?,
            memory_bytes: u64_at(entry, 40)?,
            align: u64_at(entry, 48)?,
        })
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_BYTES);
        for word in [self.kind, self.flags] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [
            self.offset,
            self.virtual_address,
            self.physical_address,
            self.file_bytes,
            self.memory_bytes,
            self.align,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// Which of its bytes need not be loaded, counted from its first, in order: whole pages of guest memory, with padding before and
    /// behind them.
    fn gaps(&self, file: &[u8], code: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        let mut gaps = Vec::new();
        if self.kind != LOAD {
            return Ok(gaps);
        }
        let end = self.offset.checked_add(self.file_bytes);
        let end = end.filter(|_| {
            self.memory_bytes >= self.file_bytes
                && [self.virtual_address, self.physical_address]
                    .iter()
                    .all(|address| address.checked_add(self.file_bytes).is_some())
        });
        let end = end.context("a segment has no end")?;
        for section in code {
            let part = section.start.max(self.offset)..section.end.min(end);
            if part.is_empty() {
                continue;
            }
            // Where the section begins in guest memory.
            let base = self.physical_address + (part.start - self.offset);
            for run in runs(slice(file, part.start, part.end)?) {
                let first = ((base + run.start) / PAGE_BYTES + 1) * PAGE_BYTES;
                let last = (base + run.end - 1) / PAGE_BYTES * PAGE_BYTES;
                if last.saturating_sub(first) >= LEAST_BYTES {
                    gaps.push(first - self.physical_address..last - self.physical_address);
                }
            }
        }
        Ok(gaps)
    }

    /// What is left of it without `gaps`. None of them is at its beginning or its end. File and memory move alike, so that its
    /// alignment holds for each part.
    fn without(self, gaps: &[Range<u64>]) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut rest = self;
        let mut start = 0;
        for gap in gaps {
            let bytes = gap.start - start;
            parts.push(Self {
                file_bytes: bytes,
                memory_bytes: bytes,
                ..rest
            });
            rest = Self {
                offset: self.offset + gap.end,
                virtual_address: self.virtual_address + gap.end,
                physical_address: self.physical_address + gap.end,
                file_bytes: self.file_bytes - gap.end,
                memory_bytes: self.memory_bytes - gap.end,
                ..self
            };
            start = gap.end;
        }
        parts.push(rest);
        parts
    }
}

/// Where `bytes` are [`FILL`] and nothing else.
fn runs(bytes: &[u8]) -> impl Iterator<Item = Range<u64>> {
    let mut end = 0;
    bytes
        .chunk_by(|one, next| one == next)
        .filter_map(move |run| {
            let start = end;
            end += run.len() as u64;
            run.starts_with(&[FILL]).then_some(start..end)
        })
}

/// The entries of a table, which has `count` of `entry_bytes`, as they should be.
fn entries(
    file: &[u8],
    start: u64,
    entry_bytes: u16,
    count: u16,
    expected_bytes: usize,
) -> Result<std::slice::ChunksExact<'_, u8>> {
    ensure!(
        count == 0 || usize::from(entry_bytes) == expected_bytes,
        "a header has {entry_bytes} bytes, not {expected_bytes}"
    );
    let bytes = u64::from(count) * expected_bytes as u64;
    let table = slice(file, start, start.saturating_add(bytes))?;
    Ok(table.chunks_exact(expected_bytes))
}

fn slice(file: &[u8], start: u64, end: u64) -> Result<&[u8]> {
    let range = usize::try_from(start)?..usize::try_from(end)?;
    file.get(range)
        .with_context(|| format!("bytes {start:#x} to {end:#x} are not in the file"))
}

fn put(file: &mut [u8], start: u64, bytes: &[u8]) -> Result<()> {
    let start = usize::try_from(start)?;
    let place = file.get_mut(start..start.saturating_add(bytes.len()));
    place
        .context("its program headers are not in the file")?
        .copy_from_slice(bytes);
    Ok(())
}

fn number<const BYTES: usize>(bytes: &[u8], start: usize) -> Result<[u8; BYTES]> {
    let number = bytes
        .get(start..)
        .and_then(|rest| rest.first_chunk::<BYTES>());
    number.copied().context("a header is cut short")
}

fn u16_at(bytes: &[u8], start: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(number(bytes, start)?))
}

fn u32_at(bytes: &[u8], start: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(number(bytes, start)?))
}

fn u64_at(bytes: &[u8], start: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(number(bytes, start)?))
}

#[cfg(test)]
mod tests;
