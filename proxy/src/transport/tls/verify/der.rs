//! The little of DER that is read where bytes matter as they stand: what is signed, names, algorithms.
//!
//! Invariant: never reads past its input; lengths are definite and minimal.

pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const SEQUENCE: u8 = 0x30;
pub const CONTEXT_0: u8 = 0xa0;

/// The first element's tag, its header's length, its content and what follows.
fn read(input: &[u8]) -> Option<(u8, usize, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            let minimal = bytes.first() != Some(&0) && length >= 0x80;
            (minimal.then_some(length)?, rest)
        }
        _ => return None,
    };
    let header = input.len() - rest.len();
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, header, content, rest))
}

/// The first element, with its header, and what follows.
pub fn element(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, header, content, _) = read(input)?;
    input.split_at_checked(header + content.len())
}

/// The content of the first element, which must be a `tag`, and what follows.
pub fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, _, content, rest) = read(input)?;
    (found == tag).then_some((content, rest))
}

/// The bytes of a bit string without unused bits, and what follows.
pub fn bits(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, rest) = expect(input, BIT_STRING)?;
    match content.split_first()? {
        (0, bytes) => Some((bytes, rest)),
        _ => None,
    }
}
