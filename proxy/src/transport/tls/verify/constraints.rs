//! Name constraints (RFC 5280, 4.2.1.10): which names a CA may certify.
//!
//! Invariant: a constraint on a kind of name that is not understood refuses every name of that kind.

use super::{
    der,
    fault::FaultKind,
    parsed::{Name, Parsed},
};
use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};

/// More comparisons of names and constraints than this are not made for one path.
const COMPARISONS: usize = 250_000;

/// What a CA may certify.
#[derive(Debug)]
pub struct Constraints {
    permitted: Vec<Subtree>,
    excluded: Vec<Subtree>,
}

#[derive(Debug)]
enum Subtree {
    Dns(Box<str>),
    Uri(Box<str>),
    Email(Box<str>),
    /// Address and mask, of 4 or 16 bytes each.
    Ip(Box<[u8]>, Box<[u8]>),
    /// The content of an encoded name.
    Directory(Box<[u8]>),
    Unsupported,
}

impl Constraints {
    pub(super) fn new(found: &NameConstraints<'_>) -> Self {
        let all = |subtrees: &Option<Vec<GeneralSubtree<'_>>>| {
            subtrees.iter().flatten().map(|subtree| Subtree::new(&subtree.base)).collect()
        };
        Self { permitted: all(&found.permitted_subtrees), excluded: all(&found.excluded_subtrees) }
    }

    /// Checks the names of a certificate below.
    pub(super) fn check(&self, certificate: &Parsed, left: &mut Comparisons) -> Result<(), FaultKind> {
        let subject = (!is_empty_name(&certificate.subject)).then(|| Name::Directory(certificate.subject.clone()));
        for name in subject.iter().chain(&certificate.names) {
            left.take(self.permitted.len() + self.excluded.len())?;
            let mut is_constrained = false;
            let mut is_permitted = false;
            for subtree in &self.permitted {
                if let Some(within) = subtree.has(name)? {
                    is_constrained = true;
                    is_permitted |= within;
                }
            }
            if is_constrained && !is_permitted {
                return Err(FaultKind::NotPermitted);
            }
            for subtree in &self.excluded {
                if subtree.has(name)? == Some(true) {
                    return Err(FaultKind::Excluded);
                }
            }
        }
        Ok(())
    }
}

/// How many comparisons may still be made.
pub struct Comparisons(usize);

impl Default for Comparisons {
    fn default() -> Self {
        Self(COMPARISONS)
    }
}

impl Comparisons {
    fn take(&mut self, count: usize) -> Result<(), FaultKind> {
        self.0 = self.0.checked_sub(count).ok_or(FaultKind::UnsupportedConstraint)?;
        Ok(())
    }
}

impl Subtree {
    fn new(base: &GeneralName<'_>) -> Self {
        match base {
            GeneralName::DNSName(name) => Self::Dns((*name).into()),
            GeneralName::URI(host) => Self::Uri((*host).into()),
            GeneralName::RFC822Name(email) => Self::Email((*email).into()),
            GeneralName::IPAddress(octets) if matches!(octets.len(), 8 | 32) => {
                let (address, mask) = octets.split_at(octets.len() / 2);
                Self::Ip(address.into(), mask.into())
            }
            GeneralName::DirectoryName(name) => match der::expect(name.as_raw(), der::SEQUENCE) {
                Some((content, _)) => Self::Directory(content.into()),
                None => Self::Unsupported,
            },
            _ => Self::Unsupported,
        }
    }

    /// Whether `name` is within; `None` if it is of another kind.
    fn has(&self, name: &Name) -> Result<Option<bool>, FaultKind> {
        Ok(match (self, name) {
            (Self::Unsupported, _) | (_, Name::Unknown) => return Err(FaultKind::UnsupportedConstraint),
            (Self::Uri(_), Name::BadUri) => return Err(FaultKind::UnsupportedConstraint),
            (Self::Dns(base), Name::Dns(name)) => Some(host_is_within(name, base, true)),
            (Self::Uri(base), Name::Uri(uri)) => {
                Some(host_is_within(host(uri).ok_or(FaultKind::UnsupportedConstraint)?, base, false))
            }
            (Self::Email(base), Name::Email(email)) => Some(email_is_within(email, base)),
            (Self::Ip(address, mask), Name::Ip(ip)) => Some(match ip {
                std::net::IpAddr::V4(ip) => ip_is_within(&ip.octets(), address, mask),
                std::net::IpAddr::V6(ip) => ip_is_within(&ip.octets(), address, mask),
            }),
            (Self::Directory(base), Name::Directory(name)) => {
                let (content, _) = der::expect(name, der::SEQUENCE).ok_or(FaultKind::UnsupportedConstraint)?;
                // The base is whole elements, and so is the name: a common start is one of elements.
                Some(content.starts_with(base))
            }
            _ => None,
        })
    }
}

fn is_empty_name(name: &[u8]) -> bool {
    der::expect(name, der::SEQUENCE).is_none_or(|(content, _)| content.is_empty())
}

/// `below`: a base without a dot in front takes names below it in.
fn host_is_within(name: &str, base: &str, below: bool) -> bool {
    let Some(suffix) = base.strip_prefix('.') else {
        return base.is_empty() || name.eq_ignore_ascii_case(base) || (below && ends_with_label(name, base));
    };
    ends_with_label(name, suffix)
}

/// True if `name` is `base` with more labels in front.
fn ends_with_label(name: &str, base: &str) -> bool {
    let Some(at) = name.len().checked_sub(base.len() + 1) else { return false };
    let (front, rest) = (name.as_bytes().get(..at), name.as_bytes().get(at..));
    front.is_some_and(|front| !front.is_empty())
        && rest
            .and_then(<[u8]>::split_first)
            .is_some_and(|(dot, rest)| *dot == b'.' && rest.eq_ignore_ascii_case(base.as_bytes()))
}

fn email_is_within(email: &str, base: &str) -> bool {
    let Some((local, domain)) = email.rsplit_once('@') else { return false };
    match base.rsplit_once('@') {
        Some((base_local, base_domain)) => {
            (base_local.is_empty() || base_local == local) && domain.eq_ignore_ascii_case(base_domain)
        }
        None => host_is_within(domain, base, false),
    }
}

fn ip_is_within(ip: &[u8], address: &[u8], mask: &[u8]) -> bool {
    ip.len() == address.len()
        && ip.iter().zip(address).zip(mask).all(|((ip, address), mask)| (ip ^ address) & mask == 0)
}

/// The host of a URI with an authority.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next()?;
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_within() {
        for (name, base, within) in [
            ("a.example.org", "example.org", true),
            ("example.org", "example.org", true),
            ("xexample.org", "example.org", false),
            ("A.EXAMPLE.org", ".example.org", true),
            ("example.org", ".example.org", false),
            ("other.org", "example.org", false),
            ("anything", "", true),
        ] {
            assert_eq!(host_is_within(name, base, true), within, "{name} {base}");
        }
        assert!(!host_is_within("a.example.org", "example.org", false), "URIs name hosts exactly");
        assert!(email_is_within("a@example.org", "example.org") && !email_is_within("a@b.example.org", "example.org"));
        assert!(
            email_is_within("a@example.org", "a@example.org") && !email_is_within("b@example.org", "a@example.org")
        );
        assert!(ip_is_within(&[10, 1, 2, 3], &[10, 0, 0, 0], &[255, 0, 0, 0]));
        assert!(!ip_is_within(&[11, 1, 2, 3], &[10, 0, 0, 0], &[255, 0, 0, 0]));
        assert_eq!(host("spiffe://example.org/a"), Some("example.org"));
        assert_eq!(host("spiffe://u@example.org:1/a"), Some("example.org"));
        assert_eq!(host("urn:x"), None);
    }
}
