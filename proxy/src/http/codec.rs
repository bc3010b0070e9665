//! Which HTTP version a downstream connection speaks: `codec_type: AUTO`.

use crate::transport::Io;
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::AsyncReadExt;

/// What HTTP/2's client preface begins with, and no HTTP/1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// A codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Http1,
    Http2,
}

/// The codec that TLS agreed on, if it is one of ours.
pub fn by_alpn(alpn: &[u8]) -> Option<Codec> {
    match alpn {
        b"h2" => Some(Codec::Http2),
        b"http/1.1" | b"http/1.0" => Some(Codec::Http1),
        _ => None,
    }
}

/// Reads the connection's first bytes until they tell the codec; they come first out of the connection returned.
/// A connection that ends before is left to HTTP/1.
pub async fn detect(mut io: Io) -> io::Result<(Codec, Io)> {
    let mut read = BytesMut::with_capacity(64);
    let codec = loop {
        match by_preface(&read) {
            Some(codec) => break codec,
            None if io.read_buf(&mut read).await? == 0 => break Codec::Http1,
            None => {}
        }
    };
    Ok((codec, io.with_prefix(Bytes::from(read))))
}

/// Decides as early as one byte differs; `None` if more are needed.
fn by_preface(read: &[u8]) -> Option<Codec> {
    if read.starts_with(PREFACE) {
        Some(Codec::Http2)
    } else if PREFACE.starts_with(read) {
        None
    } else {
        Some(Codec::Http1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_can_be_enough() {
        assert_eq!(by_preface(b""), None);
        assert_eq!(by_preface(b"G"), Some(Codec::Http1));
        assert_eq!(by_preface(b"P"), None);
        assert_eq!(by_preface(b"PO"), Some(Codec::Http1));
        assert_eq!(by_preface(b"PRI * HTTP/1"), Some(Codec::Http1));
        assert_eq!(by_preface(b"PRI * HTTP/2.0\r\n"), Some(Codec::Http2));
        assert_eq!(by_alpn(b"h2"), Some(Codec::Http2));
        assert_eq!(by_alpn(b"istio"), None);
    }

    #[tokio::test]
    async fn nothing_read_is_lost() {
        let (client, server) = tokio::io::duplex(64);
        let mut client = client;
        tokio::io::AsyncWriteExt::write_all(&mut client, b"PRI * HTTP/2.0\r\n\r\nSM").await.expect("open");
        drop(client);
        let (codec, mut io) = detect(Io::Boxed(Box::new(server))).await.expect("readable");
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.expect("readable");
        assert_eq!((codec, &all[..]), (Codec::Http2, &b"PRI * HTTP/2.0\r\n\r\nSM"[..]));
    }
}
