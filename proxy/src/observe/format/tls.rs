//! Operators that tell of a connection's TLS: certificates of both sides, version, cipher suite
//! (Envoy docs: "Access logging", command operators).

use super::{Facts, time::TimeFormat};
use crate::base::{Certificate, TlsConnection, certificate};
use std::{
    borrow::Cow,
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

/// One operator of the family.
#[derive(Debug)]
pub struct TlsOperator {
    is_upstream: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    Peer(Fact),
    Local(Fact),
    /// Of all certificates that the peer presented.
    PeerChain(fn(&Certificate) -> String),
    SessionId,
    Cipher,
    Version,
    Group,
}

#[derive(Debug)]
enum Fact {
    Subject,
    Issuer,
    UriSans,
    DnsSans,
    IpSans,
    EmailSans,
    OtherNameSans,
    Serial,
    Sha256,
    Sha1,
    Pem,
    NotBefore(TimeFormat),
    NotAfter(TimeFormat),
}

fn sha256(certificate: &Certificate) -> String {
    certificate::hex(certificate.sha256())
}

fn sha1(certificate: &Certificate) -> String {
    certificate::hex(certificate.sha1())
}

impl TlsOperator {
    /// The operator of this name; `None` if it is none of this family.
    ///
    /// # Errors
    /// It takes no argument.
    pub fn parse(name: &str, argument: Option<&str>) -> Option<Result<Self, String>> {
        let (is_upstream, rest) = match name.strip_prefix("DOWNSTREAM_") {
            Some(rest) => (false, rest),
            None => (true, name.strip_prefix("UPSTREAM_")?),
        };
        let (side, rest) = rest.split_once('_')?;
        let time = || TimeFormat::new(argument.unwrap_or_default());
        let what = match (side, is_upstream) {
            ("TLS", _) => match rest {
                "SESSION_ID" => What::SessionId,
                "CIPHER" => What::Cipher,
                "VERSION" => What::Version,
                "GROUP" => What::Group,
                _ => return None,
            },
            ("PEER", _) => match (rest, is_upstream) {
                ("SUBJECT", _) => What::Peer(Fact::Subject),
                ("ISSUER", _) => What::Peer(Fact::Issuer),
                ("CERT", _) => What::Peer(Fact::Pem),
                ("CERT_V_START", _) => What::Peer(Fact::NotBefore(time())),
                ("CERT_V_END", _) => What::Peer(Fact::NotAfter(time())),
                ("SERIAL", false) => What::Peer(Fact::Serial),
                ("FINGERPRINT_256", false) => What::Peer(Fact::Sha256),
                ("FINGERPRINT_1", false) => What::Peer(Fact::Sha1),
                ("CHAIN_FINGERPRINTS_256", false) => What::PeerChain(sha256),
                ("CHAIN_FINGERPRINTS_1", false) => What::PeerChain(sha1),
                ("CHAIN_SERIALS", false) => What::PeerChain(|certificate| certificate.serial.to_string()),
                _ => What::Peer(Fact::of_names(rest, is_upstream)?),
            },
            ("LOCAL", false) if rest == "SUBJECT" => What::Local(Fact::Subject),
            ("LOCAL", _) => What::Local(Fact::of_names(rest, is_upstream)?),
            _ => return None,
        };
        let takes_format = matches!(what, What::Peer(Fact::NotBefore(_) | Fact::NotAfter(_)));
        if argument.is_some() && !takes_format {
            return Some(Err("does not take any parameters or length".into()));
        }
        Some(Ok(Self { is_upstream, what }))
    }

    /// Writes the value; false if there is none.
    pub fn write(&self, facts: &Facts<'_>, out: &mut String) -> bool {
        let info = facts.info;
        let tls = if self.is_upstream { &info.upstream.tls } else { &info.connection.tls };
        let start = out.len();
        if let Some(tls) = tls {
            self.write_of(tls, out);
        }
        out.len() > start
    }

    fn write_of(&self, tls: &TlsConnection, out: &mut String) {
        match &self.what {
            What::Peer(fact) => tls.peer.iter().for_each(|peer| fact.write(peer, out)),
            What::Local(fact) => tls.local.iter().for_each(|local| fact.write(local, out)),
            What::PeerChain(fact) => {
                let chain = tls.peer_chain.iter().filter_map(|der| Certificate::parse(der).ok());
                list(chain.map(|certificate| fact(&certificate).into()), out);
            }
            What::SessionId => out.push_str(&tls.session_id),
            What::Cipher => out.push_str(tls.cipher),
            What::Version => out.push_str(tls.version),
            What::Group => out.push_str(tls.group),
        }
    }
}

impl Fact {
    /// Names that a certificate is for.
    fn of_names(name: &str, is_upstream: bool) -> Option<Self> {
        Some(match (name, is_upstream) {
            ("URI_SAN", _) => Self::UriSans,
            ("DNS_SAN", _) => Self::DnsSans,
            ("IP_SAN", _) => Self::IpSans,
            ("EMAIL_SAN", false) => Self::EmailSans,
            ("OTHERNAME_SAN", false) => Self::OtherNameSans,
            _ => return None,
        })
    }

    fn write(&self, certificate: &Certificate, out: &mut String) {
        let names = |names: &[Box<str>], out: &mut String| list(names.iter().map(|name| Cow::from(&**name)), out);
        let time = |seconds: i64| {
            // Nothing was valid before 1970.
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        match self {
            Self::Subject => out.push_str(&certificate.subject),
            Self::Issuer => out.push_str(&certificate.issuer),
            Self::UriSans => names(&certificate.uri_sans, out),
            Self::DnsSans => names(&certificate.dns_sans, out),
            Self::IpSans => list(certificate.ip_sans.iter().map(|ip| ip.to_string().into()), out),
            Self::EmailSans => names(&certificate.email_sans, out),
            Self::OtherNameSans => {
                list(certificate.other_name_sans.iter().map(|(_, value)| Cow::from(&**value)), out);
            }
            Self::Serial => out.push_str(&certificate.serial),
            Self::Sha256 => out.push_str(&sha256(certificate)),
            Self::Sha1 => out.push_str(&sha1(certificate)),
            Self::Pem => out.push_str(&certificate::url_encoded_pem(certificate.der())),
            Self::NotBefore(format) => format.write(time(certificate.not_before), out),
            Self::NotAfter(format) => format.write(time(certificate.not_after), out),
        }
    }
}

/// Comma-separated. What would end a line or a field is made visible: these texts are the peer's.
fn list<'a>(parts: impl Iterator<Item = Cow<'a, str>>, out: &mut String) {
    for (i, part) in parts.enumerate() {
        if i > 0 {
            out.push(',');
        }
        for c in part.chars() {
            match c.is_control() {
                true => drop(write!(out, "\\x{:02x}", u32::from(c))),
                false => out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_there_are() {
        for (name, argument, there) in [
            ("DOWNSTREAM_PEER_URI_SAN", None, true),
            ("DOWNSTREAM_PEER_CERT_V_START", Some("%Y"), true),
            ("DOWNSTREAM_PEER_SUBJECT", Some("x"), false),
            ("DOWNSTREAM_LOCAL_SUBJECT", None, true),
            ("UPSTREAM_PEER_CERT", None, true),
            ("UPSTREAM_TLS_GROUP", None, true),
        ] {
            assert_eq!(TlsOperator::parse(name, argument).is_some_and(|found| found.is_ok()), there, "{name}");
        }
        for name in ["DOWNSTREAM_LOCAL_ISSUER", "UPSTREAM_LOCAL_SUBJECT", "UPSTREAM_PEER_SERIAL", "UPSTREAM_HOST"] {
            assert!(TlsOperator::parse(name, None).is_none(), "{name}");
        }
    }
}
