//! gRPC's framing, for a client that brings its own HTTP/2: a flag, a length, a message.
//!
//! Called by the proxy, whose streams to a control plane go through its own upstream stack. Invariant: nothing is
//! allocated by what a length claims, and a message above the bound is refused as soon as its length is read.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Flag and length.
const HEAD: usize = 5;

/// `message` as one frame, not compressed.
pub fn encode_frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD + len);
    out.put_u8(0);
    // A message that does not fit into 32 bits would not fit into memory along with what it was made from.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode(&mut out).expect("a BytesMut grows as needed");
    out.freeze()
}

/// Why a stream of frames cannot be read further; the stream has to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer compressed a message though no encoding was agreed on.
    #[error("a compressed gRPC message, though no encoding was agreed on")]
    Compressed,
    /// The first byte is neither 0 nor 1.
    #[error("a malformed gRPC frame: flag {0}")]
    Flag(u8),
    /// The message is longer than allowed.
    #[error("a gRPC message of {len} bytes, allowed: at most {max}")]
    TooLong {
        /// What the frame says.
        len: u32,
        /// What is allowed.
        max: usize,
    },
}

/// Finds messages in a stream of bytes.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    max: usize,
}

impl FrameDecoder {
    /// A decoder for messages of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), max }
    }

    /// Takes the next bytes of the stream, however they are cut.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there. To be asked until it has none, so that at most one part of a message is kept.
    ///
    /// # Errors
    /// The stream cannot be read further.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        let [flag, a, b, c, d, ..] = *self.buffer else { return Ok(None) };
        match flag {
            0 => {}
            1 => return Err(FrameError::Compressed),
            flag => return Err(FrameError::Flag(flag)),
        }
        let len = u32::from_be_bytes([a, b, c, d]);
        let whole = usize::try_from(len).unwrap_or(usize::MAX);
        if whole > self.max {
            return Err(FrameError::TooLong { len, max: self.max });
        }
        if self.buffer.len() - HEAD < whole {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        Ok(Some(self.buffer.split_to(whole).freeze()))
    }

    /// True if the stream ended inside a message.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::service::discovery::v3::DiscoveryRequest;

    #[test]
    fn messages_come_out_however_the_bytes_are_cut() {
        let messages: Vec<DiscoveryRequest> = ["", "a", &"b".repeat(300)]
            .into_iter()
            .map(|v| DiscoveryRequest { version_info: v.to_owned(), ..Default::default() })
            .collect();
        let bytes: Vec<u8> = messages.iter().flat_map(encode_frame).collect();
        for cut in 1..bytes.len() {
            let mut decoder = FrameDecoder::new(1000);
            let mut found = Vec::new();
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk);
                while let Some(message) = decoder.next_message().expect("frames") {
                    found.push(DiscoveryRequest::decode(message).expect("a request"));
                }
            }
            assert_eq!(found, messages, "in chunks of {cut}");
            assert!(!decoder.is_partial());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_early() {
        let read = |bytes: &[u8]| {
            let mut decoder = FrameDecoder::new(10);
            decoder.push(bytes);
            decoder.next_message()
        };
        assert_eq!(read(&[0, 0, 0, 0]), Ok(None));
        assert_eq!(read(&[0, 0, 0, 0, 10]), Ok(None));
        assert_eq!(read(&[0, 0xff, 0xff, 0xff, 0xff]), Err(FrameError::TooLong { len: u32::MAX, max: 10 }));
        assert_eq!(read(&[1, 0, 0, 0, 0]), Err(FrameError::Compressed));
        assert_eq!(read(b"HTTP/1.1"), Err(FrameError::Flag(b'H')));
    }
}
