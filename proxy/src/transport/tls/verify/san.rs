//! Names that a certificate must have: matchers of its subject alternative names, and the name that a connection is for.
//!
//! Invariant: a name matches by its own kind only; one with a NUL byte never does.

use super::parsed::{Name, Parsed};
use crate::base::certificate::other_name;
use std::net::IpAddr;
use weft_config::tls::{SanMatcher, SanType};

/// True if one of the certificate's names passes `matcher`.
pub fn matches(matcher: &SanMatcher, certificate: &Parsed) -> bool {
    certificate.names.iter().any(|name| matches_name(matcher, name))
}

fn matches_name(matcher: &SanMatcher, name: &Name) -> bool {
    let text = |text: &str| !text.contains('\0') && matcher.matcher.matches(text);
    match (matcher.kind, name) {
        (SanType::Dns, Name::Dns(name)) => match matcher.matcher.exact() {
            Some(wanted) => !name.contains('\0') && dns_matches(name, wanted),
            None => text(name),
        },
        (SanType::Uri, Name::Uri(uri)) => text(uri),
        (SanType::Email, Name::Email(email)) => text(email),
        (SanType::IpAddress, Name::Ip(ip)) => text(&ip.to_string()),
        (SanType::OtherName, Name::Other(oid, value)) => {
            **oid == *matcher.oid && other_name(value).is_some_and(|value| text(&value))
        }
        _ => false,
    }
}

/// True if the certificate is for `wanted`, a host name or an address.
pub fn is_for(wanted: &str, certificate: &Parsed) -> bool {
    let ip: Option<IpAddr> = wanted.parse().ok();
    certificate.names.iter().any(|name| match (name, ip) {
        (Name::Dns(name), None) => !name.contains('\0') && dns_matches(name, wanted),
        (Name::Ip(found), Some(ip)) => *found == ip,
        _ => false,
    })
}

/// True if a certificate's DNS name, whose first label may have one `*`, stands for `wanted`.
pub fn dns_matches(presented: &str, wanted: &str) -> bool {
    if presented.eq_ignore_ascii_case(wanted) {
        return true;
    }
    let (Some((pattern, presented)), Some((label, wanted))) = (presented.split_once('.'), wanted.split_once('.'))
    else {
        return false;
    };
    !presented.contains('*') && presented.eq_ignore_ascii_case(wanted) && label_matches(pattern, label)
}

fn label_matches(pattern: &str, label: &str) -> bool {
    // An encoded label is no text to put anything into.
    let is_encoded = pattern.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--"));
    let Some((front, back)) = pattern.split_once('*').filter(|_| !is_encoded) else { return false };
    let part = |range: Option<&str>, of: &str| range.is_some_and(|part| part.eq_ignore_ascii_case(of));
    !back.contains('*')
        && !label.is_empty()
        && label.len() >= front.len() + back.len()
        && part(label.get(..front.len()), front)
        && part(label.get(label.len() - back.len()..), back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_match_by_label() {
        for (presented, wanted, matches) in [
            ("a.example.org", "A.example.ORG", true),
            ("*.example.org", "b.example.org", true),
            ("*.example.org", "c.b.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("f*r.example.org", "foobar.example.org", true),
            ("f*r.example.org", "fr.example.org", true),
            ("foo*oo.example.org", "foo.example.org", false),
            ("xn--*.example.org", "xn--a.example.org", false),
            ("*.*.org", "a.b.org", false),
            ("**.example.org", "a.example.org", false),
            ("*", "localhost", false),
            ("b.example.org", "*.example.org", false),
        ] {
            assert_eq!(dns_matches(presented, wanted), matches, "{presented} {wanted}");
        }
    }
}
