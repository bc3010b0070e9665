//! The PROXY protocol's header, versions 1 and 2 (haproxy's "The PROXY protocol", 2020/03/05), from a growing buffer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u8,
    /// Source and destination; `None` for LOCAL and UNKNOWN: the connection's own hold.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Type and value, version 2 only.
    pub tlvs: Vec<(u8, Vec<u8>)>,
    /// Bytes that the header took.
    pub length: usize,
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    Header(Header),
    /// More bytes are needed; they may still turn out to be no header.
    Partial,
    /// They are no PROXY header of any version.
    Absent,
    /// They begin as a header of this version and are none.
    Malformed {
        version: u8,
        /// Its end was seen, or what says where that is.
        is_whole: bool,
        why: &'static str,
    },
}

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY ";
/// The longest version 1 header with its line end.
const V1_MOST: usize = 108;

/// As many bytes as tell versions apart.
const ENOUGH: usize = 16;

/// Parses the start of a connection.
pub fn parse(buf: &[u8]) -> Parsed {
    if may_begin(buf, 2) {
        if buf.len() < V2.len() { Parsed::Partial } else { parse_v2(buf) }
    } else if may_begin(buf, 1) {
        if buf.len() < V1.len() { Parsed::Partial } else { parse_v1(buf) }
    } else if buf.len() >= ENOUGH {
        Parsed::Absent
    } else if memchr::memmem::find(buf.get(1..).unwrap_or_default(), b"\r\n").is_some() {
        Parsed::Malformed { version: 1, is_whole: true, why: "the line is another" }
    } else {
        Parsed::Partial
    }
}

/// True if the bytes so far could be the start of a header of this version.
pub fn may_begin(buf: &[u8], version: u8) -> bool {
    let signature = if version == 1 { V1 } else { V2 };
    buf.iter().zip(signature).all(|(a, b)| a == b)
}

fn parse_v1(buf: &[u8]) -> Parsed {
    let malformed = |why| Parsed::Malformed { version: 1, is_whole: true, why };
    let Some(end) = memchr::memmem::find(&buf[..buf.len().min(V1_MOST)], b"\r\n") else {
        let too_long = Parsed::Malformed { version: 1, is_whole: false, why: "the line is too long" };
        return if buf.len() >= V1_MOST { too_long } else { Parsed::Partial };
    };
    let header = |addresses| Parsed::Header(Header { version: 1, addresses, tlvs: Vec::new(), length: end + 2 });
    let Ok(line) = std::str::from_utf8(&buf[..end]) else { return malformed("the line is no text") };
    let words: Vec<&str> = line.split(' ').collect();
    match words[1..] {
        ["UNKNOWN", ..] => header(None),
        [family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |ip: &str, port: &str| {
                let ip: IpAddr = ip.parse().ok()?;
                let is_plain = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                (ip.is_ipv4() == (family == "TCP4") && is_plain).then_some(SocketAddr::new(ip, port.parse().ok()?))
            };
            match address(source, source_port).zip(address(destination, destination_port)) {
                Some(addresses) => header(Some(addresses)),
                None => malformed("an address or port is none"),
            }
        }
        _ => malformed("the line has other words than allowed"),
    }
}

fn parse_v2(buf: &[u8]) -> Parsed {
    let malformed = |why| Parsed::Malformed { version: 2, is_whole: true, why };
    let [version_command, family, high, low] = match buf.get(12..16) {
        Some(head) => [head[0], head[1], head[2], head[3]],
        None => return Parsed::Partial,
    };
    if version_command >> 4 != 2 {
        return malformed("the version is not 2");
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    let is_local = match version_command & 15 {
        0 => true,
        1 => false,
        _ => return malformed("the command is neither LOCAL nor PROXY"),
    };
    let needed = match family {
        _ if is_local => 0,
        0x11 | 0x12 if length >= 12 => 12,
        0x21 | 0x22 if length >= 36 => 36,
        _ => return malformed("the address family or length is not allowed"),
    };
    let Some(body) = buf.get(16..16 + length) else { return Parsed::Partial };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let addresses = match family {
        _ if is_local => None,
        0x11 | 0x12 => {
            let ip = |at: usize| IpAddr::V4(Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]));
            Some((SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10))))
        }
        _ => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&body[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34))))
        }
    };
    let mut tlvs = Vec::new();
    let mut rest = if is_local { &[][..] } else { &body[needed..] };
    while let [kind, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = after.get(..length) else { return malformed("a TLV is longer than the header") };
        tlvs.push((*kind, value.to_vec()));
        rest = &after[length..];
    }
    if !rest.is_empty() {
        return malformed("a TLV is cut off");
    }
    Parsed::Header(Header { version: 2, addresses, tlvs, length: 16 + length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&V2[..], &[0x20 | command, family], &length, body].concat()
    }

    #[test]
    fn version_1() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET";
        let addresses = ("1.2.3.4:9".parse().unwrap(), "5.6.7.8:10".parse().unwrap());
        assert_eq!(
            parse(line),
            Parsed::Header(Header { version: 1, addresses: Some(addresses), tlvs: vec![], length: 33 })
        );
        assert!(matches!(
            parse(b"PROXY UNKNOWN whatever\r\n"),
            Parsed::Header(Header { addresses: None, length: 24, .. })
        ));
        assert!(matches!(parse(b"PROXY TCP6 ::1 ::2 1 2\r\n"), Parsed::Header(_)));
        for bad in [
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 x 2\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 70000 2\r\n",
            "PROXY  TCP4 1.1.1.1 1.1.1.1 1 2\r\n",
            "PROXY \r\n",
        ] {
            assert!(matches!(parse(bad.as_bytes()), Parsed::Malformed { version: 1, .. }), "{bad}");
        }
        assert!(matches!(parse(&[b"PROXY ".to_vec(), vec![b'a'; 200]].concat()), Parsed::Malformed { .. }));
        assert_eq!(parse(b"GET / HTTP/1.1"), Parsed::Partial);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Parsed::Absent);
        assert!(matches!(parse(b"GET /\r\n"), Parsed::Malformed { version: 1, .. }));
        assert_eq!(parse(b""), Parsed::Partial);
    }

    #[test]
    fn version_2() {
        let body = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10, 0xea, 0, 2, b'h', b'i'];
        let Parsed::Header(header) = parse(&v2(1, 0x11, &body)) else { panic!("a header") };
        assert_eq!(header.addresses, Some(("1.2.3.4:9".parse().unwrap(), "5.6.7.8:10".parse().unwrap())));
        assert_eq!((header.tlvs, header.length), (vec![(0xea, b"hi".to_vec())], 33));
        assert!(matches!(parse(&v2(0, 0, b"abc")), Parsed::Header(Header { addresses: None, length: 19, .. })));
        assert!(matches!(parse(&v2(1, 0x11, b"short")), Parsed::Malformed { version: 2, .. }));
        assert!(matches!(parse(&v2(2, 0x11, &body)), Parsed::Malformed { .. }));
        assert!(matches!(parse(&v2(1, 0x11, &[&body[..], &[1, 0xff, 0xff]].concat())), Parsed::Malformed { .. }));
    }

    #[test]
    fn every_split_is_partial() {
        for whole in [b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n".to_vec(), v2(1, 0x21, &[7; 36])] {
            for at in 0..whole.len() {
                assert_eq!(parse(&whole[..at]), Parsed::Partial, "{at}");
            }
            assert!(matches!(parse(&whole), Parsed::Header(_)));
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let seed = 3;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..rng.usize(0..64)).map(|_| rng.u8(..)).collect();
            if rng.bool() {
                bytes = [&V2[..], &bytes].concat();
            }
            parse(&bytes);
        }
    }
}
