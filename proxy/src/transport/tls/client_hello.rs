//! Reads a ClientHello and leaves what follows it, so that the configuration can be chosen by what it says.
//!
//! Differs from the library's own acceptor in what is said to clients that speak another protocol or an old version:
//! nothing, and `protocol_version`, as Envoy does.

use super::{
    failure::Failure,
    hello::{CLIENT_HELLO, FALLBACK_SCSV, Hello, RENEGOTIATION_INFO, Reader, STATUS_REQUEST},
    linger,
};
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
    /// It offers TLS 1.2.
    offers_12: bool,
    /// It says that a newer version was tried before (RFC 7507).
    falls_back: bool,
    /// What it says of a connection that it goes on with (RFC 5746, 3.2): nothing, if it is a new one.
    renegotiates: Renegotiates,
    pub io: Io,
}

/// What a hello says of the connection that it goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renegotiates {
    Nothing,
    Something,
    Unreadable,
}

impl Renegotiates {
    fn of(hello: &Hello<'_>) -> Self {
        match hello.extension(RENEGOTIATION_INFO) {
            None | Some([0]) => Self::Nothing,
            Some([length, content @ ..]) if usize::from(*length) == content.len() => Self::Something,
            Some(_) => Self::Unreadable,
        }
    }
}

/// What decides whether a hello is refused that the library takes.
#[derive(Clone, Copy, Debug)]
struct Claims {
    /// What both sides speak.
    is_12: bool,
    is_13: bool,
    speaks_13: bool,
    falls_back: bool,
    renegotiates: Renegotiates,
}

impl Claims {
    /// Both claims count only for a version before 1.3.
    fn refusal(self) -> Option<(Failure, AlertDescription)> {
        if self.is_13 || !self.is_12 {
            return None;
        }
        if self.falls_back && self.speaks_13 {
            return Some((Failure::fallback(), AlertDescription::InappropriateFallback));
        }
        match self.renegotiates {
            Renegotiates::Nothing => None,
            Renegotiates::Something => Some((Failure::renegotiation(), AlertDescription::HandshakeFailure)),
            Renegotiates::Unreadable => Some((Failure::renegotiation_encoding(), AlertDescription::DecodeError)),
        }
    }
}

impl Read {
    /// Refuses a hello that says it is none of ours, which the library does not look at. The arguments say what is
    /// spoken here.
    ///
    /// # Errors
    /// Why. The client was told.
    pub async fn judged(self, speaks_12: bool, speaks_13: bool) -> Result<Self, Failure> {
        let Self { offers_12, offers_13, falls_back, renegotiates, .. } = self;
        let (is_12, is_13) = (speaks_12 && offers_12, speaks_13 && offers_13);
        match (Claims { is_12, is_13, speaks_13, falls_back, renegotiates }.refusal()) {
            None => Ok(self),
            Some((failure, alert)) => {
                tell(self.io, &fatal(alert)).await;
                Err(failure)
            }
        }
    }
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
                    let Some(hello) = hello_in(&message) else {
                        tell(io, &fatal(AlertDescription::DecodeError)).await;
                        return Err(Failure::unreadable_hello());
                    };
                    return Ok(Read {
                        accepted,
                        asks_for_staple: hello.extension(STATUS_REQUEST).is_some(),
                        offers_13: hello.offers_13(),
                        offers_12: hello.offers_12(),
                        falls_back: hello.offers_suite(FALLBACK_SCSV),
                        renegotiates: Renegotiates::of(&hello),
                        io,
                    });
                }
                Err((error, mut alert)) => {
                    let message = message(&whole);
                    if let Some(Err(bad)) = hello_in(&message).map(|hello| hello.server_name()) {
                        let (failure, alert) = Failure::bad_server_name(bad);
                        tell(io, &fatal(alert)).await;
                        return Err(failure);
                    }
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

/// The hello at the begin of these handshake messages.
fn hello_in(messages: &[u8]) -> Option<Hello<'_>> {
    let mut messages = Reader(messages);
    let kind = messages.number(1)?;
    let body = messages.vector(3)?;
    if kind == usize::from(CLIENT_HELLO) { Hello::parse(body.0) } else { None }
}

/// What these handshake records carry.
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

    #[test]
    fn fallbacks_and_renegotiations_are_refused_below_13() {
        use Renegotiates::{Nothing, Something, Unreadable};
        let claims = Claims { is_12: true, is_13: false, speaks_13: true, falls_back: false, renegotiates: Nothing };
        let alert = |claims: Claims| claims.refusal().map(|(_, alert)| u8::from(alert));
        assert_eq!(alert(claims), None);
        let both = Claims { falls_back: true, renegotiates: Something, ..claims };
        assert_eq!(alert(both), Some(86));
        assert_eq!(alert(Claims { is_13: true, ..both }), None, "of the newest version");
        assert_eq!(alert(Claims { is_12: false, ..both }), None, "the version is refused first");
        assert_eq!(alert(Claims { speaks_13: false, ..both }), Some(40), "ours is no newer");
        assert_eq!(alert(Claims { renegotiates: Unreadable, ..claims }), Some(50));
    }

    #[test]
    fn what_a_hello_goes_on_with() {
        use crate::transport::tls::hello::made::{body, extension};
        let of = |content: &[u8]| {
            let body = body(&[], &[0xc0, 0x2b], &extension(RENEGOTIATION_INFO, content));
            Renegotiates::of(&Hello::parse(&body).expect("a hello"))
        };
        assert_eq!(of(&[0]), Renegotiates::Nothing);
        assert_eq!(of(&[2, 7, 7]), Renegotiates::Something);
        for bad in [&[][..], &[2, 7], &[0, 7]] {
            assert_eq!(of(bad), Renegotiates::Unreadable);
        }
    }
}
