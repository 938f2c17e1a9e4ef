use proptest::prelude::*;

use super::*;

/// Where the first segment is in the file; the headers have what is before.
const OFFSET: u64 = 0x1000;
const VIRTUAL: u64 = 0xffff_ffff_8100_0000;
const PHYSICAL: u64 = 0x100_0000;
const SEGMENTS: usize = 3;

/// A kernel as the linker script lays it out: a segment of code, of constants, and of notes, which are a segment of their own too;
/// and a segment of data and zeroes, in the file right behind.
struct Layout {
    /// Where the first segment begins in its page.
    within_page: u64,
    code: Vec<u8>,
    constants: Vec<u8>,
    data: Vec<u8>,
    zeroes: u64,
}

impl Layout {
    fn of(code: Vec<u8>) -> Self {
        Self {
            within_page: 0,
            code,
            constants: vec![FILL; 200_000],
            data: vec![FILL; 200_000],
            zeroes: 5000,
        }
    }

    fn segments(&self) -> [Segment; SEGMENTS] {
        let (code, constants) = (self.code.len() as u64, self.constants.len() as u64);
        let data = self.data.len() as u64;
        let at = self.within_page;
        let text = Segment {
            kind: LOAD,
            flags: 5,
            offset: OFFSET + at,
            virtual_address: VIRTUAL + at,
            physical_address: PHYSICAL + at,
            file_bytes: code + constants,
            memory_bytes: code + constants,
            align: PAGE_BYTES,
        };
        let behind = code + constants;
        let data = Segment {
            flags: 6,
            offset: text.offset + behind,
            virtual_address: text.virtual_address + behind,
            physical_address: text.physical_address + behind,
            file_bytes: data,
            memory_bytes: data + self.zeroes,
            ..text
        };
        let notes = Segment {
            kind: 4,
            flags: 0,
            offset: text.offset + code,
            virtual_address: text.virtual_address + code,
            physical_address: text.physical_address + code,
            file_bytes: constants.min(20),
            memory_bytes: constants.min(20),
            align: 4,
        };
        [text, data, notes]
    }

    /// The file: headers, what is in the segments, and the table of sections.
    fn file(&self) -> Vec<u8> {
        let [text, data, _] = self.segments();
        let sections_at = data.offset + data.file_bytes;
        let mut file = IDENTITY.to_vec();
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[40..48].copy_from_slice(&sections_at.to_le_bytes());
        for (at, number) in [(54, 56), (56, 3), (58, 64), (60, 5)] {
            file[at..at + 2].copy_from_slice(&u16::to_le_bytes(number));
        }
        file.extend(self.segments().into_iter().flat_map(Segment::bytes));
        file.resize(usize::try_from(text.offset).unwrap(), 0);
        for bytes in [&self.code, &self.constants, &self.data] {
            file.extend(bytes);
        }
        let code = self.code.len() as u64;
        let constants = self.constants.len() as u64;
        // Type, flags, offset and length: nothing, code, constants, data, and zeroes, which the file does not have.
        for (kind, flags, offset, bytes) in [
            (0, 0, 0, 0),
            (1, 2 | CODE, text.offset, code),
            (1, 2, text.offset + code, constants),
            (1, 3, data.offset, data.file_bytes),
            (8, 3, 0, self.zeroes),
        ] {
            let mut section = [0; SECTION_BYTES];
            section[4..8].copy_from_slice(&u32::to_le_bytes(kind));
            section[8..16].copy_from_slice(&u64::to_le_bytes(flags));
            section[24..32].copy_from_slice(&u64::to_le_bytes(offset));
            section[32..40].copy_from_slice(&u64::to_le_bytes(bytes));
            file.extend(section);
        }
        file
    }
}

/// What a loader makes of it, from [`PHYSICAL`] on: a byte, or nothing.
fn image(file: &[u8]) -> Vec<Option<u8>> {
    let mut image = Vec::new();
    for segment in Kernel::read(file).unwrap().segments {
        if segment.kind != LOAD {
            continue;
        }
        assert_eq!(
            segment.offset % segment.align,
            segment.virtual_address % segment.align
        );
        assert_eq!(
            segment.virtual_address - VIRTUAL,
            segment.physical_address - PHYSICAL
        );
        let start = usize::try_from(segment.physical_address - PHYSICAL).unwrap();
        assert!(
            start >= image.len(),
            "a segment lies before the last one's end"
        );
        image.resize(start, None);
        let loaded = slice(file, segment.offset, segment.offset + segment.file_bytes).unwrap();
        image.extend(loaded.iter().copied().map(Some));
        let end = usize::try_from(segment.memory_bytes).unwrap();
        image.resize(start + end, Some(0));
    }
    image
}

/// Which kinds of segments there are, and how many bytes each has in the file.
fn table(file: &[u8]) -> Vec<(u32, u64)> {
    let segments = Kernel::read(file).unwrap().segments;
    segments.iter().map(|s| (s.kind, s.file_bytes)).collect()
}

/// So many of each byte.
fn pieces(pieces: &[(u8, usize)]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|piece| std::iter::repeat_n(piece.0, piece.1))
        .collect()
}

#[test]
fn padding_around_entry_code_makes_three_segments_of_one() {
    const CODE_BYTES: usize = 0x1_0001;
    let code = pieces(&[
        (0x90, CODE_BYTES),
        (FILL, 0x20_0000 - CODE_BYTES),
        (0x90, 0x1000),
        (FILL, 0x1f_f000),
    ]);
    let layout = Layout::of(code);
    let mut file = layout.file();
    let left_out = leave_out(&mut file).unwrap();
    // The rest of the page that the code ends in, and the last page before what follows, stay.
    let first = 0x20_0000 - 0x1_1000 - 0x1000;
    // Code that ends with its page has a page of padding behind it.
    let second = 0x1f_f000 - 0x1000 - 0x1000;
    assert_eq!(left_out, first + second);
    let constants = layout.constants.len() as u64;
    assert_eq!(
        table(&file),
        [
            (LOAD, 0x1_1000),
            (LOAD, 0x1000 + 0x1000 + 0x1000),
            (LOAD, 0x1000 + constants),
            (LOAD, layout.data.len() as u64),
            (4, 20),
        ]
    );
    let after = file.clone();
    assert_eq!(leave_out(&mut file).unwrap(), 0);
    assert!(file == after, "it changed what had no padding any more");
}

#[test]
fn fill_that_is_short_or_no_code_is_loaded() {
    let short = usize::try_from(LEAST_BYTES).unwrap();
    let before = Layout::of(pieces(&[(1, 4096), (FILL, short), (1, 1)])).file();
    let mut file = before.clone();
    assert_eq!(leave_out(&mut file).unwrap(), 0);
    assert!(file == before);
}

#[test]
fn file_without_room_for_headers_is_refused_and_stays() {
    let layout = Layout::of(pieces(&[(1, 1), (FILL, 1 << 20)]));
    let mut file = layout.file();
    // A section right behind the program headers: that of the zeroes becomes one of bytes.
    let zeroes = file.len() - SECTION_BYTES;
    file[zeroes + 4..zeroes + 8].copy_from_slice(&1_u32.to_le_bytes());
    let behind = 64 + (SEGMENTS * SEGMENT_BYTES) as u64;
    file[zeroes + 24..zeroes + 32].copy_from_slice(&behind.to_le_bytes());
    let before = file.clone();
    let error = leave_out(&mut file).unwrap_err().to_string();
    assert!(error.contains("there is room up to"), "{error}");
    assert!(file == before);
}

#[test]
fn file_that_is_cut_short_or_no_elf_file_is_refused() {
    let whole = Layout::of(pieces(&[(1, 1), (FILL, 1 << 20)])).file();
    for bytes in [0, 5, 40, 63, 64, 100, 4096, 8192, whole.len() - 1] {
        let mut file = whole[..bytes].to_vec();
        assert!(leave_out(&mut file).is_err(), "{bytes} bytes");
    }
    let mut other = whole.clone();
    other[4] = 1;
    assert!(leave_out(&mut other).is_err());
}

fn piece() -> impl Strategy<Value = (u8, usize)> {
    (prop_oneof![Just(FILL), any::<u8>()], 1..200_000_usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_loaded_is_the_same_but_for_pages_within_long_padding(
        within_page in 0..PAGE_BYTES,
        code in proptest::collection::vec(piece(), 1..8),
        others in piece(),
        zeroes in 0..10_000_u64,
    ) {
        let layout = Layout {
            within_page,
            code: pieces(&code),
            constants: pieces(&[others]),
            data: pieces(&[others]),
            zeroes,
        };
        let before = layout.file();
        let mut after = before.clone();
        let left_out = leave_out(&mut after).unwrap();
        let headers = usize::try_from(OFFSET).unwrap();
        prop_assert!(before[headers..] == after[headers..]);

        let (was, is) = (image(&before), image(&after));
        prop_assert_eq!(was.len(), is.len());
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let mut gone = 0;
        for (was, is) in was.chunks(page).zip(is.chunks(page)) {
            if was == is {
                continue;
            }
            prop_assert!(was.iter().all(|byte| *byte == Some(FILL)));
            prop_assert!(is.iter().all(Option::is_none));
            gone += is.len() as u64;
        }
        prop_assert_eq!(gone, left_out);

        // The code's own view: each run gives its whole pages but those with its first and its last byte, if they are many.
        let mut expected = 0;
        for run in runs(&layout.code) {
            let start = (layout.within_page + run.start) / PAGE_BYTES;
            let end = (layout.within_page + run.end - 1) / PAGE_BYTES;
            let pages = end.saturating_sub(start + 1);
            expected += if pages * PAGE_BYTES >= LEAST_BYTES { pages * PAGE_BYTES } else { 0 };
        }
        prop_assert_eq!(left_out, expected);
    }
}
