//! The PROXY header that goes ahead of everything else on a connection.

use crate::base::{Address, ConnectionInfo};
use std::net::IpAddr;
use weft_config::cluster::{ProxyProtocol, ProxyProtocolVersion};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header that tells of `downstream`; of no one in particular without it.
pub(super) fn header(config: &ProxyProtocol, downstream: Option<&ConnectionInfo>) -> Vec<u8> {
    let addresses = downstream.and_then(|connection| match (&connection.remote, &connection.local) {
        (Address::Ip(from), Address::Ip(to)) if from.is_ipv4() == to.is_ipv4() => Some((*from, *to)),
        _ => None,
    });
    match config.version {
        ProxyProtocolVersion::V1 => match addresses {
            Some((from, to)) => {
                let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
                format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
            }
            None => b"PROXY UNKNOWN\r\n".to_vec(),
        },
        ProxyProtocolVersion::V2 => {
            let mut block = Vec::new();
            // Command PROXY with TCP over IPv4 or IPv6, or LOCAL.
            let (command, family) = match addresses {
                Some((from, to)) => {
                    for ip in [from.ip(), to.ip()] {
                        match ip {
                            IpAddr::V4(ip) => block.extend(ip.octets()),
                            IpAddr::V6(ip) => block.extend(ip.octets()),
                        }
                    }
                    block.extend(from.port().to_be_bytes());
                    block.extend(to.port().to_be_bytes());
                    (0x21, if from.is_ipv4() { 0x11 } else { 0x21 })
                }
                None => (0x20, 0x00),
            };
            let is_added = |kind: u8| config.added_tlvs.iter().any(|(added, _)| *added == kind);
            let passed = downstream.map(|connection| &connection.tlvs[..]).unwrap_or_default().iter();
            let passed = passed.filter(|(kind, _)| config.passed_tlvs.takes(*kind) && !is_added(*kind));
            for (kind, value) in config.added_tlvs.iter().chain(passed).filter(|_| addresses.is_some()) {
                let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
                block.push(*kind);
                block.extend(length.to_be_bytes());
                block.extend(&value[..usize::from(length)]);
            }
            block.truncate(usize::from(u16::MAX));
            let mut header = Vec::with_capacity(16 + block.len());
            header.extend(SIGNATURE);
            header.extend([command, family]);
            header.extend((block.len() as u16).to_be_bytes());
            header.extend(block);
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::cluster::{PassTlvs, TransportSocket};

    fn written(version: ProxyProtocolVersion, addresses: Option<(&str, &str)>) -> Vec<u8> {
        let config = ProxyProtocol {
            version,
            added_tlvs: vec![(0xe0, b"x".to_vec())],
            passed_tlvs: PassTlvs::These(vec![2, 0xe0]),
            inner: Box::new(TransportSocket::RawBuffer),
        };
        let address = |a: &str| Address::Ip(a.parse().unwrap());
        let connection = addresses.map(|(from, to)| ConnectionInfo {
            tlvs: vec![(2, b"host".to_vec()), (3, b"no".to_vec()), (0xe0, b"no".to_vec())],
            ..ConnectionInfo::accepted(1, address(to), address(from))
        });
        header(&config, connection.as_ref())
    }

    #[test]
    fn v1() {
        use ProxyProtocolVersion::V1;
        assert_eq!(written(V1, Some(("1.2.3.4:5", "6.7.8.9:10"))), b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n");
        assert_eq!(written(V1, Some(("[::1]:5", "[::2]:10"))), b"PROXY TCP6 ::1 ::2 5 10\r\n");
        assert_eq!(written(V1, Some(("[::1]:5", "1.2.3.4:10"))), b"PROXY UNKNOWN\r\n");
        assert_eq!(written(V1, None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn v2() {
        use ProxyProtocolVersion::V2;
        let header = written(V2, Some(("1.2.3.4:5", "6.7.8.9:10")));
        assert_eq!(header[12..32], [0x21, 0x11, 0, 23, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10, 0xe0, 0, 1, b'x']);
        assert_eq!(header[32..], *b"\x02\0\x04host");
        assert_eq!(written(V2, None)[12..], [0x20, 0, 0, 0]);
    }
}
