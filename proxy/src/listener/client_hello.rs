//! What a TLS ClientHello says before any TLS is spoken: the server's name and the protocols offered (RFC 8446, 6066, 7301).

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// They are none, for this reason.
    NotTls(NotTls),
    Found {
        /// In lower case.
        server_name: Option<String>,
        protocols: Vec<Vec<u8>>,
        /// Bytes up to the end of the ClientHello.
        length: usize,
    },
}

/// Why bytes are no ClientHello, as Envoy's TLS library names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTls {
    WrongVersion,
    RecordTooLong,
    MessageTooLong,
    OtherMessage,
    BadExtension,
}

impl NotTls {
    /// Code and name of the error.
    pub fn error(self) -> &'static str {
        match self {
            Self::WrongVersion => "100000f7:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER",
            Self::RecordTooLong => "10000092:SSL_routines:OPENSSL_internal:ENCRYPTED_LENGTH_TOO_LONG",
            Self::MessageTooLong => "10000096:SSL_routines:OPENSSL_internal:EXCESSIVE_MESSAGE_SIZE",
            Self::OtherMessage => "100000df:SSL_routines:OPENSSL_internal:UNEXPECTED_MESSAGE",
            Self::BadExtension => "10000095:SSL_routines:OPENSSL_internal:ERROR_PARSING_EXTENSION",
        }
    }
}

/// Bytes that a record, or a ClientHello, may have.
pub const MOST: usize = 1 << 14;

/// So many bytes tell TLS from what is none.
pub const ENOUGH: usize = 5;

/// A cursor that runs out instead of panicking.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    /// A vector with its length in `bytes` bytes.
    fn vector(&mut self, bytes: usize) -> Option<Reader<'a>> {
        let n = self.number(bytes)?;
        self.take(n).map(Reader)
    }
}

/// Parses the start of a connection.
pub fn parse(buf: &[u8]) -> Hello {
    if buf.len() < ENOUGH {
        return Hello::Partial;
    }
    // Records of type 22 (handshake) carry the message in pieces.
    let mut message = Vec::new();
    let mut records = Reader(buf);
    loop {
        let Some(kind) = records.number(1) else { return Hello::Partial };
        if kind != 22 {
            return Hello::NotTls(NotTls::WrongVersion);
        }
        match records.number(1) {
            None => return Hello::Partial,
            Some(3) => {}
            Some(_) => return Hello::NotTls(NotTls::WrongVersion),
        }
        let Some(_) = records.number(1) else { return Hello::Partial };
        let Some(length) = records.number(2) else { return Hello::Partial };
        if length == 0 || length > MOST {
            return Hello::NotTls(NotTls::RecordTooLong);
        }
        let available = length.min(records.0.len());
        message.extend_from_slice(&records.0[..available]);
        if let [kind, a, b, c, ..] = message[..] {
            let needed = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
            if needed > 4 + MOST {
                return Hello::NotTls(NotTls::MessageTooLong);
            }
            if kind != 1 {
                return Hello::NotTls(NotTls::OtherMessage);
            }
            if message.len() >= needed {
                let (server_name, protocols) = match extensions(&message[4..needed]) {
                    Some(found) => found,
                    None => return Hello::NotTls(NotTls::BadExtension),
                };
                let before = message.len() - available;
                let length = buf.len() - records.0.len() + (needed - before);
                return Hello::Found { server_name, protocols, length };
            }
        }
        if records.take(length).is_none() {
            return Hello::Partial;
        }
    }
}

/// The server's name and the protocols offered.
type Offer = (Option<String>, Vec<Vec<u8>>);

fn extensions(body: &[u8]) -> Option<Offer> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.vector(1)?;
    body.vector(2)?;
    body.vector(1)?;
    let mut found = Offer::default();
    if !body.0.is_empty() {
        let mut all = body.vector(2)?;
        while !all.0.is_empty() {
            let kind = all.number(2)?;
            let mut data = all.vector(2)?;
            match kind {
                0 => {
                    let mut names = data.vector(2)?;
                    while !names.0.is_empty() {
                        let kind = names.number(1)?;
                        let name = names.vector(2)?;
                        if name.0.is_empty() || name.0.contains(&0) {
                            return None;
                        }
                        if kind == 0 {
                            found.0 = std::str::from_utf8(name.0).ok().map(str::to_ascii_lowercase);
                        }
                    }
                }
                16 => {
                    let mut protocols = data.vector(2)?;
                    while !protocols.0.is_empty() {
                        found.1.push(protocols.vector(1)?.0.to_vec());
                    }
                }
                _ => {}
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[4 - bytes..], content].concat()
    }

    fn hello() -> Vec<u8> {
        let sni = [&[0, 0][..], &vector(2, &vector(2, &[&[0][..], &vector(2, b"A.example")].concat()))].concat();
        let alpn = [&[0, 16][..], &vector(2, &vector(2, &[vector(1, b"h2"), vector(1, b"istio")].concat()))].concat();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, b""),
            &vector(2, &[0x13, 1]),
            &vector(1, &[0]),
            &vector(2, &[sni, alpn].concat()),
        ]
        .concat();
        let message = [&[1][..], &vector(3, &body)].concat();
        let (a, b) = message.split_at(20);
        [&[22, 3, 1][..], &vector(2, a), &[22, 3, 3], &vector(2, b)].concat()
    }

    #[test]
    fn names_and_protocols_at_every_split() {
        let hello = hello();
        for at in 0..hello.len() {
            assert_eq!(parse(&hello[..at]), Hello::Partial, "{at}");
        }
        let protocols = vec![b"h2".to_vec(), b"istio".to_vec()];
        let length = hello.len();
        let found = Hello::Found { server_name: Some("a.example".into()), protocols, length };
        assert_eq!(parse(&hello), found);
        assert_eq!(parse(&[hello, b"more".to_vec()].concat()), found);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Hello::NotTls(NotTls::WrongVersion));
        assert_eq!(parse(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Hello::NotTls(NotTls::OtherMessage));
        assert_eq!(parse(b"\x16\x03\x01\0\x05hello"), Hello::NotTls(NotTls::MessageTooLong));
        assert_eq!(parse(&[22, 3, 1, 0xff, 0xff]), Hello::NotTls(NotTls::RecordTooLong));
    }

    #[test]
    fn broken_hellos_never_panic() {
        let seed = 5;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut hello = hello();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..hello.len());
                hello[at] = rng.u8(..);
            }
            parse(&hello);
        }
    }
}
