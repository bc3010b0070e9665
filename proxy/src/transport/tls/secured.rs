//! A connection under TLS once its handshake is done: what breaks it later is counted, an alert above all.
//!
//! With TLS 1.3 a client has done its handshake before the server has seen its certificate: that it was refused comes as an alert
//! in place of the first data.

use super::{SslStats, failure::Cause};
use crate::transport::Io;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

pub struct Secured {
    stream: TlsStream<Io>,
    stats: Arc<SslStats>,
    is_broken: bool,
}

impl Secured {
    pub fn new(stream: TlsStream<Io>, stats: Arc<SslStats>) -> Self {
        Self { stream, stats, is_broken: false }
    }

    /// What carries it.
    pub fn carrier(&self) -> &Io {
        self.stream.get_ref().0
    }

    fn noted<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && !self.is_broken
            && error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
        {
            self.is_broken = true;
            self.stats.failed(Cause::Protocol);
        }
        result
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.noted(result)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
