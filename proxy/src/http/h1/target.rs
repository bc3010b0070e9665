//! The request target: origin form, absolute form, authority form and `*`.
//!
//! Two steps as in Envoy: [`is_valid`] when the request line is read, [`parse`] when the head is whole.

use super::details::{BadMessage, INVALID_SCHEME, INVALID_URL};
use bytes::Bytes;
use http::Method;

/// What a request target says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// `http` or `https`; empty in other than absolute form.
    pub scheme: Bytes,
    /// Given by absolute and authority form; it then overrides `Host`.
    pub authority: Option<Bytes>,
    pub path: Bytes,
}

fn is_path_char(c: u8) -> bool {
    c == b'\t' || c == 0x0c || (b'!'..=b'~').contains(&c)
}

/// The characters of an authority (RFC 3986), without checking its form.
pub(super) fn is_authority_char(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(&c)
}

/// True if `url` has the form of a request target at all.
pub fn is_valid(url: &[u8], connect: bool) -> bool {
    let Some(first) = url.first() else { return false };
    if matches!(first, b'/' | b'*') {
        return url.iter().all(|c| is_path_char(*c));
    }
    let rest = if connect {
        url
    } else {
        let scheme = url.iter().take_while(|c| c.is_ascii_alphabetic()).count();
        match url[scheme..].strip_prefix(b"://") {
            Some(rest) if scheme > 0 => rest,
            _ => return false,
        }
    };
    let split = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (host, path) = rest.split_at(split);
    host.iter().all(|c| is_authority_char(*c))
        && memchr::memmem::find(host, b"@@").is_none()
        && path.iter().all(|c| is_path_char(*c))
}

/// Takes apart a target that [`is_valid`].
pub(super) fn parse(url: Bytes, method: &Method, allow_absolute: bool) -> Result<Target, BadMessage> {
    let connect = *method == Method::CONNECT;
    let origin = matches!(url.first(), Some(b'/')) || (*method == Method::OPTIONS && url.first() == Some(&b'*'));
    if !connect && (origin || !allow_absolute) {
        return Ok(Target { path: url, ..Target::default() });
    }
    if connect {
        let port = host_end(&url).filter(|end| url.get(*end) == Some(&b':'));
        return match port.map(|end| &url[end + 1..]) {
            Some(port) if is_port(port) => Ok(Target { authority: Some(url), ..Target::default() }),
            _ => Err(INVALID_URL),
        };
    }
    let colon = memchr::memmem::find(&url, b"://").ok_or(INVALID_URL)?;
    let begin = colon + 3;
    let end = memchr::memchr3(b'/', b'?', b'#', &url[begin..]).map_or(url.len(), |n| begin + n);
    // User information is not part of the authority that is routed on.
    let begin = memchr::memrchr(b'@', &url[begin..end]).map_or(begin, |n| begin + n + 1);
    let authority = url.slice(begin..end);
    match host_end(&authority) {
        Some(n) if n == authority.len() => {}
        Some(n) if authority[n] == b':' && is_port(&authority[n + 1..]) => {}
        _ => return Err(INVALID_URL),
    }
    let scheme = match &url[..colon] {
        s if s.eq_ignore_ascii_case(b"http") => Bytes::from_static(b"http"),
        s if s.eq_ignore_ascii_case(b"https") => Bytes::from_static(b"https"),
        _ => return Err(INVALID_SCHEME),
    };
    let path = if end == url.len() { Bytes::from_static(b"/") } else { url.slice(end..) };
    Ok(Target { scheme, authority: Some(authority), path })
}

/// Where the host ends (a name or a bracketed IPv6 address), if there is one.
fn host_end(authority: &[u8]) -> Option<usize> {
    if let Some(rest) = authority.strip_prefix(b"[") {
        let close = memchr::memchr(b']', rest)?;
        let text = std::str::from_utf8(&rest[..close]).ok()?;
        text.parse::<std::net::Ipv6Addr>().ok()?;
        return Some(close + 2);
    }
    let end = authority.iter().take_while(|c| c.is_ascii_alphanumeric() || b"._-".contains(c)).count();
    (end > 0).then_some(end)
}

fn is_port(port: &[u8]) -> bool {
    port.iter().all(u8::is_ascii_digit) && std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absolute(url: &'static str) -> Result<(String, String, String), BadMessage> {
        assert!(is_valid(url.as_bytes(), false), "{url}");
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        parse(Bytes::from_static(url.as_bytes()), &Method::GET, true)
            .map(|t| (text(&t.scheme), text(&t.authority.unwrap_or_default()), text(&t.path)))
    }

    #[test]
    fn absolute_form_gives_scheme_authority_and_path() {
        let ok = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(absolute("http://x.com/a?q"), ok("http", "x.com", "/a?q"));
        assert_eq!(absolute("HTTPS://X.com:80"), ok("https", "X.com:80", "/"));
        assert_eq!(absolute("http://u:p@x.com?a=1"), ok("http", "x.com", "?a=1"));
        assert_eq!(absolute("http://[::1]:8/"), ok("http", "[::1]:8", "/"));
        assert_eq!(absolute("ftp://x.com/"), Err(INVALID_SCHEME));
        assert_eq!(absolute("http://a!b/"), Err(INVALID_URL));
        assert_eq!(absolute("http://x:99999/"), Err(INVALID_URL));
        assert_eq!(absolute("http:///x"), Err(INVALID_URL));
    }

    #[test]
    fn connect_needs_host_and_port() {
        let parse = |url: &'static str| parse(Bytes::from_static(url.as_bytes()), &Method::CONNECT, true);
        assert_eq!(parse("a.com:443").map(|t| t.authority), Ok(Some(Bytes::from_static(b"a.com:443"))));
        assert!(parse("[::1]:443").is_ok());
        for bad in ["a.com", "/foo", "a.com:", "a.com:x", "a.com:70000", "*"] {
            assert_eq!(parse(bad), Err(INVALID_URL), "{bad}");
        }
    }

    #[test]
    fn other_forms() {
        assert!(!is_valid(b"noslash", false) && !is_valid(b"", false) && !is_valid(b"/\xff", false));
        assert!(!is_valid(b"http://a@@b/", false) && !is_valid(b"1http://a/", false));
        assert!(is_valid(b"/a#b", false) && is_valid(b"*", false));
        assert_eq!(parse(Bytes::from_static(b"*"), &Method::GET, true), Err(INVALID_URL));
        assert_eq!(
            parse(Bytes::from_static(b"*"), &Method::OPTIONS, true).map(|t| t.path),
            Ok(Bytes::from_static(b"*"))
        );
        let kept = parse(Bytes::from_static(b"http://a/"), &Method::GET, false);
        assert_eq!(kept.map(|t| t.path), Ok(Bytes::from_static(b"http://a/")));
    }
}
