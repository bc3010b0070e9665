//! What a ClientHello says (RFC 8446, 6066, 7301), read as strictly as Envoy's TLS library reads it.
//!
//! The TLS inspector chooses filter chains by it, and the server looks at what the library does not tell. Two readers of
//! one hello must not find different names in it: what could be read in two ways is none.

/// A cursor that runs out instead of panicking.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A number of at most four bytes.
    pub fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    /// A vector with its length in `bytes` bytes.
    pub fn vector(&mut self, bytes: usize) -> Option<Reader<'a>> {
        let n = self.number(bytes)?;
        self.take(n).map(Reader)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it, as one vector.
    fn only(mut self, bytes: usize) -> Option<Reader<'a>> {
        let vector = self.vector(bytes)?;
        self.is_empty().then_some(vector)
    }
}

/// The kind of a handshake message that is a ClientHello.
pub const CLIENT_HELLO: u8 = 1;

/// Kinds of extensions.
pub const SERVER_NAME: u16 = 0;
pub const STATUS_REQUEST: u16 = 5;
pub const PROTOCOLS: u16 = 16;
pub const SUPPORTED_VERSIONS: u16 = 43;
pub const ENCRYPTED_HELLO: u16 = 0xfe0d;
pub const RENEGOTIATION_INFO: u16 = 0xff01;

/// "I tried a newer version before" (RFC 7507).
pub const FALLBACK_SCSV: u16 = 0x5600;

/// Bytes that a session id may have.
const SESSION_ID: usize = 32;
/// Bytes that a server's name may have.
const NAME: usize = 255;

/// A ClientHello: all of it could be read, and no extension is there twice.
#[derive(Debug)]
pub struct Hello<'a> {
    /// What stands for the version since TLS 1.3 hides it in an extension.
    pub version: u16,
    suites: &'a [u8],
    extensions: &'a [u8],
}

/// Why an extension says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It cannot be read.
    Encoding,
    /// It can, and what it says can be no name of a server.
    Name,
}

impl<'a> Hello<'a> {
    /// Reads a message without its header. `None`: it is no hello.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let mut body = Reader(body);
        let version = body.number(2)? as u16;
        body.take(32)?;
        let session = body.vector(1)?;
        let suites = body.vector(2)?.0;
        let compressions = body.vector(1)?;
        let extensions = if body.is_empty() { Reader(&[]) } else { body.only(2)? };
        let is_sound = session.0.len() <= SESSION_ID
            && suites.len() >= 2
            && suites.len().is_multiple_of(2)
            && !compressions.is_empty();
        let hello = Self { version, suites, extensions: extensions.0 };
        (is_sound && hello.has_distinct_extensions()?).then_some(hello)
    }

    fn has_distinct_extensions(&self) -> Option<bool> {
        let mut kinds = Vec::new();
        let mut rest = Reader(self.extensions);
        while !rest.is_empty() {
            kinds.push(rest.number(2)?);
            rest.vector(2)?;
        }
        kinds.sort_unstable();
        Some(kinds.windows(2).all(|pair| pair.first() != pair.last()))
    }

    /// The content of an extension; `None` if it is not there.
    pub fn extension(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = Reader(self.extensions);
        while !rest.is_empty() {
            let kind = rest.number(2)?;
            let content = rest.vector(2)?;
            if kind == usize::from(wanted) {
                return Some(content.0);
            }
        }
        None
    }

    /// True if the client offers this cipher suite, or says what one stands for.
    pub fn offers_suite(&self, wanted: u16) -> bool {
        self.suites.chunks(2).any(|suite| *suite == wanted.to_be_bytes())
    }

    /// The name of the server that is asked for, as it came: one, of a host, without a zero byte.
    ///
    /// # Errors
    /// Why the extension names none.
    pub fn server_name(&self) -> Result<Option<&'a [u8]>, Bad> {
        let Some(content) = self.extension(SERVER_NAME) else { return Ok(None) };
        let read = || {
            let mut list = Reader(content).only(2)?;
            Some((list.number(1)?, list.only(2)?.0))
        };
        let (kind, name) = read().ok_or(Bad::Encoding)?;
        let is_name = kind == 0 && !name.is_empty() && name.len() <= NAME && !name.contains(&0);
        if is_name { Ok(Some(name)) } else { Err(Bad::Name) }
    }

    /// The protocols offered; none if one of the list is none, or nothing is left after the list's length.
    pub fn protocols(&self) -> Vec<&'a [u8]> {
        let read = || {
            let mut list = Reader(self.extension(PROTOCOLS)?).only(2)?;
            let mut protocols = Vec::new();
            while !list.is_empty() {
                protocols.push(list.vector(1).filter(|name| !name.is_empty())?.0);
            }
            Some(protocols)
        };
        read().unwrap_or_default()
    }

    /// False if an encrypted hello is in it that cannot be one. Those that can are not opened: nobody has the key.
    pub fn has_sound_encrypted_hello(&self) -> bool {
        const OUTER: usize = 0;
        let read = |content| {
            let mut content = Reader(content);
            if content.number(1)? != OUTER {
                return Some(());
            }
            // Suite and number of the key; the key share and what it encrypts.
            content.take(2 + 2 + 1)?;
            content.vector(2)?;
            content.only(2)?;
            Some(())
        };
        self.extension(ENCRYPTED_HELLO).is_none_or(|content| read(content).is_some())
    }

    /// TLS 1.2 is among the versions that are listed in an extension (RFC 8446, 4.2.1), or follows from what stands for one.
    pub fn offers_12(&self) -> bool {
        self.lists([3, 3]).unwrap_or(self.version >= 0x303)
    }

    /// Only the extension can offer it.
    pub fn offers_13(&self) -> bool {
        self.lists([3, 4]).unwrap_or_default()
    }

    fn lists(&self, wanted: [u8; 2]) -> Option<bool> {
        let list = self.extension(SUPPORTED_VERSIONS)?.get(1..).unwrap_or_default();
        Some(list.chunks(2).any(|version| *version == wanted))
    }
}

/// Hellos made by hand.
#[cfg(test)]
pub mod made {
    pub fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[4 - bytes..], content].concat()
    }

    pub fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, content)].concat()
    }

    pub fn server_names(names: &[&[u8]]) -> Vec<u8> {
        let entries: Vec<_> = names.iter().flat_map(|name| [&[0][..], &vector(2, name)].concat()).collect();
        extension(super::SERVER_NAME, &vector(2, &entries))
    }

    pub fn protocols(names: &[&[u8]]) -> Vec<u8> {
        let names: Vec<_> = names.iter().flat_map(|name| vector(1, name)).collect();
        extension(super::PROTOCOLS, &vector(2, &names))
    }

    /// A message without its header.
    pub fn body(session: &[u8], suites: &[u8], extensions: &[u8]) -> Vec<u8> {
        let (session, suites) = (vector(1, session), vector(2, suites));
        [&[3, 3][..], &[7; 32], &session, &suites, &vector(1, &[0]), &vector(2, extensions)].concat()
    }

    pub fn message(body: &[u8]) -> Vec<u8> {
        [&[super::CLIENT_HELLO][..], &vector(3, body)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{made::*, *};

    const SUITES: [u8; 4] = [0x13, 1, 0x56, 0];

    fn with(extensions: &[u8]) -> Vec<u8> {
        body(&[], &SUITES, extensions)
    }

    fn name(extensions: &[u8]) -> Result<Option<Vec<u8>>, Bad> {
        let body = with(extensions);
        Hello::parse(&body).expect("a hello").server_name().map(|name| name.map(<[u8]>::to_vec))
    }

    #[test]
    fn one_name_or_none() {
        assert_eq!(name(&[]), Ok(None));
        assert_eq!(name(&server_names(&[b"\xff.A"])), Ok(Some(b"\xff.A".to_vec())));
        assert_eq!(name(&server_names(&[&[b'a'; 255]])), Ok(Some(vec![b'a'; 255])));
        for bad in [&b""[..], b"a\0", &[b'a'; 256]] {
            assert_eq!(name(&server_names(&[bad])), Err(Bad::Name));
        }
        assert_eq!(name(&server_names(&[b"a", b"b"])), Err(Bad::Encoding));
        assert_eq!(name(&server_names(&[])), Err(Bad::Encoding));
        assert_eq!(name(&extension(SERVER_NAME, &[0, 4, 0, 0, 1, b'a', 9])), Err(Bad::Encoding));
        assert_eq!(name(&extension(SERVER_NAME, &[0, 4, 1, 0, 1, b'a'])), Err(Bad::Name));
    }

    #[test]
    fn what_is_no_hello() {
        let twice = [server_names(&[b"a"]), server_names(&[b"b"])].concat();
        for body in [
            with(&twice),
            body(&[1; 33], &SUITES, &[]),
            body(&[], &[], &[]),
            body(&[], &SUITES[..3], &[]),
            [with(&[]), vec![0]].concat(),
            with(&[0, 0, 0, 9]),
        ] {
            assert!(Hello::parse(&body).is_none());
        }
        let whole = with(&server_names(&[b"a"]));
        // All but the place between compression and extensions, where a hello may end.
        let end = 2 + 32 + 1 + 2 + SUITES.len() + 2;
        for at in (0..whole.len()).filter(|at| *at != end) {
            assert!(Hello::parse(&whole[..at]).is_none(), "{at}");
        }
    }

    #[test]
    fn protocols_are_all_or_none() {
        let offered = |extensions: &[u8]| {
            let body = with(extensions);
            Hello::parse(&body).expect("a hello").protocols().len()
        };
        assert_eq!(offered(&protocols(&[b"h2", b"istio"])), 2);
        assert_eq!(offered(&protocols(&[b"", b"h2"])), 0);
        assert_eq!(offered(&protocols(&[])), 0);
        assert_eq!(offered(&extension(PROTOCOLS, &[])), 0);
        assert_eq!(offered(&extension(PROTOCOLS, &[0, 3, 2, b'h', b'2', 0])), 0);
    }

    #[test]
    fn what_else_is_told() {
        let body = with(&extension(SUPPORTED_VERSIONS, &[4, 3, 3, 3, 4]));
        let hello = Hello::parse(&body).expect("a hello");
        let plain = with(&[]);
        let plain = Hello::parse(&plain).expect("a hello");
        assert!(plain.offers_12() && !plain.offers_13());
        assert!(hello.offers_suite(FALLBACK_SCSV) && !hello.offers_suite(0x1302));
        assert!(hello.offers_12() && hello.offers_13() && hello.has_sound_encrypted_hello());
        for (content, is_sound) in
            [(&[][..], false), (&[1], true), (&[0, 0], false), (&[0, 0, 1, 0, 1, 7, 0, 0, 0, 0], true)]
        {
            let body = with(&extension(ENCRYPTED_HELLO, content));
            assert_eq!(Hello::parse(&body).expect("a hello").has_sound_encrypted_hello(), is_sound);
        }
    }
}
