//! Reads a ClientHello and leaves what follows it, so that the configuration can be chosen by what it says.
//!
//! Differs from the library's own acceptor in what is said to clients that speak another protocol or an old version:
//! nothing, and `protocol_version`, as Envoy does.

use super::{failure::Failure, linger};
use crate::transport::Io;
use bytes::Bytes;
use rustls::{
    AlertDescription,
    server::{Accepted, Acceptor},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The record of a fatal alert, before a version was agreed on (RFC 8446, 5.1 and 6).
fn fatal(alert: AlertDescription) -> [u8; 7] {
    [21, 3, 1, 0, 2, 2, alert.into()]
}

/// A hello, and the connection after it.
pub struct Read {
    pub accepted: Accepted,
    /// It asks for an OCSP staple (RFC 6066, 8), which the library does not tell.
    pub asks_for_staple: bool,
    /// It offers TLS 1.3 (RFC 8446, 4.2.1).
    pub offers_13: bool,
    pub io: Io,
}

/// Reads the hello.
///
/// # Errors
/// What came instead. The client was told where there is something to tell.
pub async fn read(mut io: Io) -> Result<Read, Failure> {
    let mut acceptor = Acceptor::default();
    let mut start = Start::default();
    let mut whole = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = match io.read(&mut buffer).await {
            Ok(read) if read > 0 => buffer.get(..read).unwrap_or_default(),
            _ => return Err(Failure::closed()),
        };
        start.take(read);
        whole.extend_from_slice(read);
        if !start.may_be_hello() {
            let (failure, alert) = Failure::not_hello(start.bytes());
            if let Some(alert) = alert {
                tell(io, &fatal(alert)).await;
            }
            return Err(failure);
        }
        let mut rest = read;
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest).is_err() {
                return Err(Failure::closed());
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    io.put_back(Bytes::copy_from_slice(rest));
                    let message = message(&whole);
                    let versions = extension(&message, SUPPORTED_VERSIONS).and_then(|list| list.get(1..));
                    return Ok(Read {
                        accepted,
                        asks_for_staple: extension(&message, STATUS_REQUEST).is_some(),
                        offers_13: versions.is_some_and(|list| list.chunks(2).any(|version| *version == [3, 4])),
                        io,
                    });
                }
                Err((error, mut alert)) => {
                    let is_old = start.is_old_version();
                    let mut bytes = Vec::new();
                    // Written to memory, which cannot fail.
                    let _ = alert.write_all(&mut bytes);
                    if is_old {
                        bytes = fatal(AlertDescription::ProtocolVersion).to_vec();
                    }
                    tell(io, &bytes).await;
                    return Err(if is_old { Failure::old_version() } else { Failure::hello(&error) });
                }
            }
        }
    }
}

const STATUS_REQUEST: u16 = 5;
const SUPPORTED_VERSIONS: u16 = 43;

/// The hello in these records. The library read it: what is no hello is not here.
fn message(records: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(records.len());
    let mut rest = records;
    while let Some(([_, _, _, high, low], after)) = rest.split_first_chunk::<5>() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        message.extend_from_slice(after.get(..len).unwrap_or_default());
        rest = after.get(len..).unwrap_or_default();
    }
    message
}

/// The content of an extension, which the library does not tell; `None` if it is not there.
fn extension(message: &[u8], wanted: u16) -> Option<&[u8]> {
    // Header, version and random; session id, suites, compression; all extensions.
    let rest = message.get(4 + 2 + 32..)?;
    let rest = rest.get(1 + usize::from(*rest.first()?)..)?;
    let rest = rest.get(2 + usize::from(u16::from_be_bytes(*rest.first_chunk()?))..)?;
    let rest = rest.get(1 + usize::from(*rest.first()?)..)?;
    let mut rest = rest.get(2..)?;
    while let Some(([a, b, c, d], after)) = rest.split_first_chunk::<4>() {
        let (content, next) = after.split_at_checked(usize::from(u16::from_be_bytes([*c, *d])))?;
        if u16::from_be_bytes([*a, *b]) == wanted {
            return Some(content);
        }
        rest = next;
    }
    None
}

/// Says why, and lets the client read it.
async fn tell(mut io: Io, alert: &[u8]) {
    if io.write_all(alert).await.is_ok() {
        linger(io);
    }
}

/// The first bytes of a connection: record and handshake headers, and the version after them.
#[derive(Default)]
struct Start {
    bytes: [u8; 11],
    len: usize,
}

/// Bytes of a record's payload at most (RFC 8446, 5.2), without the encryption that there is not yet.
const MOST_IN_RECORD: u16 = 1 << 14;

impl Start {
    fn take(&mut self, read: &[u8]) {
        for (seat, byte) in self.bytes.iter_mut().skip(self.len).zip(read) {
            *seat = *byte;
            self.len += 1;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Nothing is refused before a record's header is there, and an alert is read to its end.
    fn may_be_hello(&self) -> bool {
        match self.bytes() {
            [22, 3, _, high, low, ..] if u16::from_be_bytes([*high, *low]) > MOST_IN_RECORD + 256 => false,
            [22, 3, _, _, _, message, ..] if *message != 1 => false,
            [22] | [22, 3, ..] => true,
            [21, 3, ..] if self.len < 7 => true,
            bytes if bytes.len() < 5 => true,
            _ => false,
        }
    }

    /// The hello says TLS 1.1 or less; newer versions say 1.2 there for ever.
    fn is_old_version(&self) -> bool {
        matches!(self.bytes(), [22, 3, _, _, _, 1, _, _, _, major, minor] if (*major, *minor) < (3, 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(bytes: &[u8]) -> Start {
        let mut start = Start::default();
        bytes.chunks(3).for_each(|piece| start.take(piece));
        start
    }

    #[test]
    fn first_bytes_tell_tls_and_its_age() {
        assert!(!start(b"GET / HTTP/1.1").may_be_hello());
        assert!(start(b"GET").may_be_hello(), "not enough to tell");
        assert!(start(&[22, 3, 1]).may_be_hello());
        assert!(!start(&[22, 3, 1, 0xff, 0xff]).may_be_hello());
        assert!(!start(&[22, 2, 1, 1, 1]).may_be_hello());
        let hello = |minor| start(&[22, 3, 1, 0, 50, 1, 0, 0, 46, 3, minor, 9, 9]);
        assert!(hello(2).is_old_version());
        assert!(!hello(3).is_old_version());
    }
}
