//! What holds for any documents where an image's index, manifest and configuration are expected. Shared by the fuzz target and the
//! replay of its corpus.
//!
//! The first byte says whether the first document is an index (odd) or a manifest. Documents end with a zero byte; in each, `@N`
//! stands for the digest of document N, and `#N` for its size, if it is a later one: otherwise none would ever lead to another.

use sandbox_image::Digest;
use sandbox_image::import::find_among;

/// Documents that are read for one image, its configuration included (`import::oci::MAX_READ`).
const MOST: usize = 257;
const MAX_DOCUMENTS: usize = 9;

/// Looks for the image in the documents.
///
/// # Errors
/// If it takes more than is read for any image. That there is none is no error.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((first, rest)) = bytes.split_first() else {
        return Ok(());
    };
    let mut documents: Vec<Vec<u8>> = Vec::new();
    let parts: Vec<&[u8]> = rest.split(|byte| *byte == 0).take(MAX_DOCUMENTS).collect();
    // From the last, as each may name those after it.
    for (number, part) in parts.iter().enumerate().rev() {
        let text = filled(part, number, &documents, parts.len());
        documents.push(text);
    }
    documents.reverse();
    let search = find_among(&documents, first % 2 == 1);
    if search.read > MOST {
        return Err(format!("{} documents were read", search.read));
    }
    Ok(())
}

/// The text with what it says of later documents, of which `known` has the last ones, the last one first.
fn filled(part: &[u8], number: usize, known: &[Vec<u8>], count: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut bytes = part.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let wanted = bytes
            .peek()
            .and_then(|digit| char::from(*digit).to_digit(10))
            .and_then(|digit| usize::try_from(digit).ok())
            .filter(|wanted| *wanted > number && *wanted < count)
            .and_then(|wanted| known.get(count - 1 - wanted));
        match (byte, wanted) {
            (b'@', Some(document)) => text.extend(Digest::of(document).to_string().bytes()),
            (b'#', Some(document)) => text.extend(document.len().to_string().bytes()),
            _ => {
                text.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    text
}
