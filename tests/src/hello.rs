//! ClientHellos made by hand (RFC 8446, 6066, 7301): tables of what TLS stacks make of odd ones are built of these.

/// `content` after its length in `bytes` bytes.
pub fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes()[4 - bytes..], content].concat()
}

/// An extension.
pub fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, content)].concat()
}

/// Names of servers in one list.
pub fn server_names(names: &[&[u8]]) -> Vec<u8> {
    let entries: Vec<_> = names.iter().flat_map(|name| [&[0][..], &vector(2, name)].concat()).collect();
    extension(0, &vector(2, &entries))
}

/// Protocols that are offered (ALPN).
pub fn protocols(names: &[&[u8]]) -> Vec<u8> {
    let names: Vec<_> = names.iter().flat_map(|name| vector(1, name)).collect();
    extension(16, &vector(2, &names))
}

/// What a hello is made of.
#[derive(Clone, Debug)]
pub struct Hello {
    pub version: [u8; 2],
    pub session: Vec<u8>,
    pub suites: Vec<u8>,
    pub compressions: Vec<u8>,
    /// One after the other.
    pub extensions: Vec<u8>,
    /// After the last extension.
    pub rest: Vec<u8>,
}

impl Hello {
    /// A client of TLS 1.2 with ECDSA on P-256, that says this too.
    pub fn with(extensions: &[u8]) -> Self {
        let groups = extension(10, &vector(2, &[0, 0x17]));
        let schemes = extension(13, &vector(2, &[4, 3, 8, 4, 4, 1]));
        let points = extension(11, &[1, 0]);
        Self {
            version: [3, 3],
            session: Vec::new(),
            suites: vec![0xc0, 0x2b, 0xc0, 0x2f],
            compressions: vec![0],
            extensions: [groups, schemes, points, extension(23, &[]), extensions.to_vec()].concat(),
            rest: Vec::new(),
        }
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let body = [
            &self.version[..],
            &[7; 32],
            &vector(1, &self.session),
            &vector(2, &self.suites),
            &vector(1, &self.compressions),
            &vector(2, &self.extensions),
            &self.rest,
        ];
        [&[1][..], &vector(3, &body.concat())].concat()
    }

    /// In one record, or as many as it takes.
    pub fn records(&self) -> Vec<u8> {
        records(22, &self.message(), 1 << 14)
    }
}

/// `content` in records of this kind and at most `size` bytes; one at least.
pub fn records(kind: u8, content: &[u8], size: usize) -> Vec<u8> {
    let record = |content: &[u8]| [&[kind, 3, 1][..], &vector(2, content)].concat();
    if content.is_empty() { record(&[]) } else { content.chunks(size).flat_map(record).collect() }
}
