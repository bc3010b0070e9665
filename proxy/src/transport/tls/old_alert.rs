//! What a client of TLS 1.2 is told that has no certificate where one is required: `handshake_failure`.
//!
//! rustls says `certificate_required`, which came with TLS 1.3 (RFC 8446, 6.2); clients of 1.2 need not know it. Before
//! 1.2 encrypts, an alert is a record that can be told by its bytes.

use crate::transport::Io;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const CERTIFICATE_REQUIRED: [u8; 7] = [21, 3, 3, 0, 2, 2, 116];
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// A connection on which TLS 1.2 is spoken by a server that requires a certificate. Records are written one at a time
/// (there is no vectored write), so that one is seen for itself.
pub struct OldAlert(pub Io);

impl AsyncRead for OldAlert {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for OldAlert {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let buf = if *buf == CERTIFICATE_REQUIRED { &HANDSHAKE_FAILURE } else { buf };
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
