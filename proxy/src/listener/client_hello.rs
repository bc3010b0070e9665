//! Tells TLS from what is none by the first records of a connection, as Envoy's TLS library reads them.
//!
//! The TLS inspector feeds it what has come so far. Only whole records are looked at, each once: a client that sends its
//! hello byte by byte costs a look at a length for each. What the hello says is read by [`hello`](crate::transport::tls::hello).

use crate::transport::tls::{
    failure,
    hello::{CLIENT_HELLO, Hello, Reader},
};
use rustls::AlertDescription;

/// What a ClientHello asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// In lower case. What is no UTF-8 in it is replaced: it equals no name that is configured, but has its suffix.
    pub server_name: Option<Box<str>>,
    pub protocols: Vec<Box<[u8]>>,
    /// It says a version of TLS that there is.
    pub has_version: bool,
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// More bytes are needed.
    Partial,
    /// They are none, for this reason.
    NotTls(NotTls),
    /// The client said that it is done.
    Closed,
    Found(Offer),
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTls {
    Http,
    Connect,
    WrongVersion,
    RecordTooLong,
    MessageTooLong,
    OtherRecord,
    OtherMessage,
    EmptyRecords,
    Warnings,
    BadAlert,
    UnknownAlert,
    Alert(u8),
    Unreadable,
    MoreThanHello,
    BadEncryptedHello,
    BadServerName,
    /// Of a hello in the form of SSL 2.
    OldTooLong,
    OldTooShort,
    OldUnreadable,
    /// A hello of no version that there is.
    Rejected,
}

impl NotTls {
    /// Code and name of the error in Envoy's TLS library.
    pub fn error(self) -> String {
        let (reason, name) = match self {
            Self::Http => (0x9c, "HTTP_REQUEST"),
            Self::Connect => (0x9b, "HTTPS_PROXY_REQUEST"),
            Self::WrongVersion => (0xf7, "WRONG_VERSION_NUMBER"),
            Self::RecordTooLong => (0x92, "ENCRYPTED_LENGTH_TOO_LONG"),
            Self::MessageTooLong => (0x96, "EXCESSIVE_MESSAGE_SIZE"),
            Self::OtherRecord => (0xe1, "UNEXPECTED_RECORD"),
            Self::OtherMessage => (0xdf, "UNEXPECTED_MESSAGE"),
            Self::EmptyRecords => (0xdb, "TOO_MANY_EMPTY_FRAGMENTS"),
            Self::Warnings => (0xdc, "TOO_MANY_WARNING_ALERTS"),
            Self::BadAlert => (0x66, "BAD_ALERT"),
            Self::UnknownAlert => (0xe3, "UNKNOWN_ALERT_TYPE"),
            Self::Alert(alert) => {
                (failure::ALERT_REASONS + u32::from(alert), failure::alert_name(AlertDescription::from(alert)))
            }
            Self::Unreadable => (0x83, "CLIENTHELLO_PARSE_FAILED"),
            Self::MoreThanHello => (0xff, "EXCESS_HANDSHAKE_DATA"),
            Self::BadEncryptedHello | Self::OldUnreadable => (0x89, "DECODE_ERROR"),
            Self::BadServerName => (0x95, "ERROR_PARSING_EXTENSION"),
            Self::OldTooLong => (0xc8, "RECORD_TOO_LARGE"),
            Self::OldTooShort => (0xc7, "RECORD_LENGTH_MISMATCH"),
            Self::Rejected => (0x85, "CONNECTION_REJECTED"),
        };
        format!("{:08x}:SSL_routines:OPENSSL_internal:{name}", 0x1000_0000 | reason)
    }
}

/// Bytes that a ClientHello may have.
const MESSAGE: usize = 1 << 14;
/// Bytes of a record's content that may be announced: room for encryption, which there is not yet.
const RECORD: usize = MESSAGE + 320;
/// Bytes of a hello in the form of SSL 2.
const OLD: usize = 4096;
/// Records without content, one after the other.
const EMPTY: u8 = 32;
const WARNINGS: u8 = 4;
/// Bytes of a record's header.
const HEADER: usize = 5;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// The look at one connection's start.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Bytes of whole records that were looked at.
    read: usize,
    /// Bytes that are needed to go on.
    needed: usize,
    /// What handshake records carried.
    message: Vec<u8>,
    empty: u8,
    warnings: u8,
}

impl Inspection {
    /// Bytes that were needed to know what was last said, not more than `all`.
    pub fn processed(&self, all: usize) -> usize {
        self.read.max(self.needed).min(all)
    }

    /// Looks at all that came so far, which begins with what was seen before.
    pub fn look(&mut self, bytes: &[u8]) -> Seen {
        loop {
            if bytes.len() < self.needed {
                return Seen::Partial;
            }
            match self.record(bytes) {
                Ok(Some(seen)) => return seen,
                Ok(None) => {}
                Err(why) => return Seen::NotTls(why),
            }
        }
    }

    /// Looks at the next record, or says how many bytes it needs. `None`: there is more to look at, or to wait for.
    fn record(&mut self, bytes: &[u8]) -> Result<Option<Seen>, NotTls> {
        if let [_, a, b, c, ..] = self.message[..]
            && Reader(&[a, b, c]).number(3) > Some(MESSAGE)
        {
            return Err(NotTls::MessageTooLong);
        }
        let Some((&[kind, major, minor, high, low], content)) =
            bytes.get(self.read..).and_then(<[u8]>::split_first_chunk::<HEADER>)
        else {
            self.needed = self.read + HEADER;
            return Ok(None);
        };
        if self.read == 0 {
            if [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "].iter().any(|method| bytes.starts_with(method)) {
                return Err(NotTls::Http);
            }
            if bytes.starts_with(b"CONNE") {
                return Err(NotTls::Connect);
            }
            if kind & 0x80 != 0 && (minor, high) == (CLIENT_HELLO, 3) {
                return self.old_hello(bytes);
            }
        }
        if major != 3 {
            return Err(NotTls::WrongVersion);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > RECORD {
            return Err(NotTls::RecordTooLong);
        }
        let Some(content) = content.get(..length) else {
            self.needed = self.read + HEADER + length;
            return Ok(None);
        };
        self.read += HEADER + length;
        self.needed = self.read;
        self.empty = if length == 0 { self.empty + 1 } else { 0 };
        if self.empty > EMPTY {
            return Err(NotTls::EmptyRecords);
        }
        match kind {
            ALERT => self.alert(content),
            HANDSHAKE => {
                self.warnings = 0;
                self.message.extend_from_slice(content);
                self.whole_message()
            }
            _ => Err(NotTls::OtherRecord),
        }
    }

    fn alert(&mut self, content: &[u8]) -> Result<Option<Seen>, NotTls> {
        match *content {
            [1, 0] => Ok(Some(Seen::Closed)),
            [1, _] if self.warnings == WARNINGS => Err(NotTls::Warnings),
            [1, _] => {
                self.warnings += 1;
                Ok(None)
            }
            [2, alert] => Err(NotTls::Alert(alert)),
            [_, _] => Err(NotTls::UnknownAlert),
            _ => Err(NotTls::BadAlert),
        }
    }

    fn whole_message(&self) -> Result<Option<Seen>, NotTls> {
        let mut message = Reader(&self.message);
        let (Some(kind), Some(body)) = (message.number(1), message.vector(3)) else { return Ok(None) };
        if kind != usize::from(CLIENT_HELLO) {
            return Err(NotTls::OtherMessage);
        }
        let hello = Hello::parse(body.0).ok_or(NotTls::Unreadable)?;
        if !message.0.is_empty() {
            return Err(NotTls::MoreThanHello);
        }
        if !hello.has_sound_encrypted_hello() {
            return Err(NotTls::BadEncryptedHello);
        }
        let name = hello.server_name().map_err(|_| NotTls::BadServerName)?;
        Ok(Some(Seen::Found(Offer {
            server_name: name.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase().into()),
            protocols: hello.protocols().into_iter().map(Into::into).collect(),
            has_version: is_version(hello.version.into()),
        })))
    }

    /// A hello in the form of SSL 2, which names no server.
    fn old_hello(&mut self, bytes: &[u8]) -> Result<Option<Seen>, NotTls> {
        let length = Reader(bytes).number(2).unwrap_or_default() & 0x7fff;
        if length > OLD {
            return Err(NotTls::OldTooLong);
        }
        if length < HEADER - 2 {
            return Err(NotTls::OldTooShort);
        }
        self.needed = 2 + length;
        let Some(hello) = bytes.get(2..self.needed) else { return Ok(None) };
        self.read = self.needed;
        let read = || {
            let mut hello = Reader(hello);
            hello.take(1)?;
            let version = hello.number(2)?;
            let (suites, session, challenge) = (hello.number(2)?, hello.number(2)?, hello.number(2)?);
            let suites = hello.take(suites)?;
            hello.take(session)?;
            hello.take(challenge)?;
            (hello.0.is_empty() && suites.len().is_multiple_of(3)).then_some((version, suites))
        };
        let (version, suites) = read().ok_or(NotTls::OldUnreadable)?;
        // Others are of SSL 2 itself.
        if !suites.chunks(3).any(|suite| suite.starts_with(&[0])) {
            return Err(NotTls::Unreadable);
        }
        Ok(Some(Seen::Found(Offer { server_name: None, protocols: Vec::new(), has_version: is_version(version) })))
    }
}

/// TLS 1.0 to 1.3.
fn is_version(version: usize) -> bool {
    (0x301..=0x304).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::tls::hello::made::{self, body, protocols, server_names, vector};

    fn message() -> Vec<u8> {
        let extensions = [server_names(&[b"A.example"]), protocols(&[b"h2", b"istio"])].concat();
        message_of(&extensions)
    }

    fn message_of(extensions: &[u8]) -> Vec<u8> {
        made::message(&body(&[], &[0x13, 1], extensions))
    }

    fn record(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind, 3, 1][..], &vector(2, content)].concat()
    }

    fn look(bytes: &[u8]) -> Seen {
        Inspection::default().look(bytes)
    }

    #[test]
    fn names_and_protocols_at_every_split() {
        let (message, empty) = (message(), record(HANDSHAKE, &[]));
        let (a, b) = message.split_at(20);
        let hello = [empty, record(HANDSHAKE, a), record(ALERT, &[1, 90]), record(HANDSHAKE, b)].concat();
        let protocols = vec![b"h2"[..].into(), b"istio"[..].into()];
        let found = Seen::Found(Offer { server_name: Some("a.example".into()), protocols, has_version: true });
        let mut slowly = Inspection::default();
        for at in 0..hello.len() {
            assert_eq!(look(&hello[..at]), Seen::Partial, "{at}");
            assert_eq!(slowly.look(&hello[..at]), Seen::Partial, "{at}");
        }
        assert_eq!(slowly.look(&hello), found);
        assert_eq!(slowly.processed(usize::MAX), hello.len());
        assert_eq!(look(&[hello, b"more".to_vec()].concat()), found);
    }

    #[test]
    fn what_is_no_hello() {
        let whole = record(HANDSHAKE, &message());
        let no_tls = |bytes: &[u8]| match look(bytes) {
            Seen::NotTls(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(no_tls(b"GET / HTTP/1.1\r\n"), NotTls::Http);
        assert_eq!(no_tls(b"CONNECT"), NotTls::Connect);
        assert_eq!(no_tls(b"SSH-2.0"), NotTls::WrongVersion);
        assert_eq!(no_tls(&record(HANDSHAKE, &[2, 0, 0, 0])), NotTls::OtherMessage);
        assert_eq!(no_tls(b"\x16\x03\x01\0\x05hello"), NotTls::MessageTooLong);
        assert_eq!(no_tls(&[22, 3, 1, 0xff, 0xff]), NotTls::RecordTooLong);
        assert_eq!(no_tls(&record(HANDSHAKE, &[message(), vec![0]].concat())), NotTls::MoreThanHello);
        assert_eq!(no_tls(&record(23, &[0])), NotTls::OtherRecord);
        assert_eq!(no_tls(&record(ALERT, &[2, 40])), NotTls::Alert(40));
        assert_eq!(NotTls::Alert(40).error(), "10000410:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE");
        assert_eq!(no_tls(&record(ALERT, &[3, 40])), NotTls::UnknownAlert);
        assert_eq!(no_tls(&record(ALERT, &[1, 90]).repeat(5)), NotTls::Warnings);
        assert_eq!(no_tls(&record(HANDSHAKE, &[]).repeat(33)), NotTls::EmptyRecords);
        assert_eq!(look(&record(ALERT, &[1, 0])), Seen::Closed);
        for most in [record(ALERT, &[1, 90]).repeat(4), record(HANDSHAKE, &[]).repeat(32)] {
            assert!(matches!(look(&[most, whole.clone()].concat()), Seen::Found(_)));
        }
        let two = record(HANDSHAKE, &message_of(&server_names(&[b"a", b"b"])));
        assert_eq!(no_tls(&two), NotTls::BadServerName);
    }

    #[test]
    fn names_that_are_no_text() {
        let name = |name: &[u8]| match look(&record(HANDSHAKE, &message_of(&server_names(&[name])))) {
            Seen::Found(Offer { server_name: Some(name), .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(&*name(b"\xff.B.test"), "\u{fffd}.b.test");
        assert_eq!(&*name(b".b.test"), ".b.test");
    }

    #[test]
    fn hellos_in_the_form_of_ssl_2() {
        let old = |major: u8, minor: u8, suites: &[u8]| {
            let lengths = [0, suites.len() as u8, 0, 0, 0, 16];
            let hello = [&[1, major, minor][..], &lengths, suites, &[7; 16]].concat();
            [&[0x80, hello.len() as u8][..], &hello].concat()
        };
        let found = |has_version| Seen::Found(Offer { server_name: None, protocols: Vec::new(), has_version });
        let hello = old(3, 3, &[0, 0, 0x2f]);
        assert_eq!(look(&hello), found(true));
        assert!((0..hello.len()).all(|at| look(&hello[..at]) == Seen::Partial));
        assert_eq!(look(&old(3, 0, &[0, 0, 0x2f])), found(false));
        assert_eq!(look(&old(3, 3, &[1, 0, 0x2f])), Seen::NotTls(NotTls::Unreadable));
        assert_eq!(look(&old(3, 3, &[0, 0])), Seen::NotTls(NotTls::OldUnreadable));
        assert_eq!(look(&[0x90, 1, 1, 3, 3]), Seen::NotTls(NotTls::OldTooLong));
        assert_eq!(look(&[0x80, 2, 1, 3, 3]), Seen::NotTls(NotTls::OldTooShort));
    }

    #[test]
    fn broken_hellos_never_panic() {
        let seed = 5;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut hello = record(HANDSHAKE, &message());
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..hello.len());
                hello[at] = rng.u8(..);
            }
            let at = rng.usize(..=hello.len());
            let mut pieces = Inspection::default();
            pieces.look(&hello[..at]);
            look(&hello);
        }
    }
}
