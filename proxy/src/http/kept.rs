//! Pieces of bodies that are kept for longer than it takes to hand them on.
//!
//! What was read is a slice of a read buffer, and holds on to all of it: a peer that sends a byte now and then could have
//! thousands of times as much kept as it sent. So what is kept is copied into blocks of its own, unless it is most of its buffer.

use bytes::{Bytes, BytesMut};

/// So large a piece is kept as it is: it holds on to a few times its size at most.
const LARGE: usize = 8 << 10;
/// A block grows so far.
const BLOCK: usize = 16 << 10;
/// A block's first capacity.
const SMALL: usize = 1024;

/// Joins `piece` to the one before it, `last`: what is to be kept in its place, in order.
pub fn join(last: Option<Bytes>, piece: Bytes) -> (Option<Bytes>, Bytes) {
    if piece.len() >= LARGE {
        return (last, piece);
    }
    let (before, mut block) = match last.map(Bytes::try_into_mut) {
        Some(Ok(block)) if block.len() + piece.len() <= BLOCK => (None, block),
        Some(Ok(full)) => (Some(full.freeze()), BytesMut::with_capacity(SMALL.max(piece.len()))),
        Some(Err(shared)) => (Some(shared), BytesMut::with_capacity(SMALL.max(piece.len()))),
        None => (None, BytesMut::with_capacity(SMALL.max(piece.len()))),
    };
    block.extend_from_slice(&piece);
    (before, block.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(pieces: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
        let mut kept: Vec<Bytes> = Vec::new();
        for piece in pieces {
            let (before, last) = join(kept.pop(), piece);
            kept.extend(before.into_iter().chain([last]));
        }
        kept
    }

    #[test]
    fn small_pieces_share_blocks_and_hold_on_to_no_buffer() {
        let buffers: Vec<_> = (0..40_000u32).map(|i| Bytes::from(vec![i as u8; 100])).collect();
        let blocks = kept(buffers.iter().map(|buffer| buffer.slice(..1)));
        assert_eq!(blocks.concat(), (0..40_000u32).map(|i| i as u8).collect::<Vec<_>>());
        assert_eq!(blocks.len(), 40_000usize.div_ceil(BLOCK));
        assert!(buffers.iter().all(Bytes::is_unique));
    }

    #[test]
    fn large_ones_stay_as_they_are_and_what_others_hold_is_not_touched() {
        let large = Bytes::from(vec![7; LARGE]);
        let blocks = kept([large.clone(), Bytes::from_static(b"a"), Bytes::from_static(b"b")].into_iter());
        assert_eq!((blocks.len(), blocks[0].as_ptr()), (2, large.as_ptr()));
        let held = blocks[1].clone();
        let (before, last) = join(Some(blocks[1].clone()), Bytes::from_static(b"c"));
        assert_eq!((before.as_deref(), &*last, &*held), (Some(&b"ab"[..]), &b"c"[..], &b"ab"[..]));
    }
}
