//! What a request hashes to, by the policies of its route or cluster: the same number as Envoy's.
//!
//! Called by the router for clusters that pick by hash, and for those only.

use super::RequestHead;
use crate::observe::StreamInfo;
use http::{HeaderValue, header};
use smallvec::SmallVec;
use std::{borrow::Cow, io::Write as _, net::IpAddr};
use weft_config::{
    header_value::HeaderKey,
    route::{HashPolicy, HashSource},
};
use xxhash_rust::xxh64::xxh64;

/// The hash by these policies, if any of them finds something. `set_cookie` takes cookies that are made for the client;
/// without it none is made.
pub fn hash(
    policies: &[HashPolicy],
    head: &RequestHead,
    info: &StreamInfo,
    mut set_cookie: Option<&mut dyn FnMut(HeaderValue)>,
) -> Option<u64> {
    let mut all: Option<u64> = None;
    for policy in policies {
        let found = match &policy.source {
            HashSource::Header { key, rewrite } => of_header(key, rewrite.as_ref(), head),
            HashSource::Cookie { name, ttl, path, attributes } => match (cookie(head, name), ttl) {
                (Some(value), _) => Some(xxh64(value, 0)),
                (None, Some(ttl)) => set_cookie.as_mut().map(|set| {
                    let value = cookie_value(info);
                    if let Some(header) = set_cookie_header(name, &value, ttl.as_secs(), path, attributes) {
                        set(header);
                    }
                    xxh64(value.as_bytes(), 0)
                }),
                (None, None) => None,
            },
            HashSource::SourceIp => info.downstream_remote.ip().map(|address| of_ip(address.ip())),
            HashSource::QueryParameter(name) => parameter(&head.path, name).map(|value| xxh64(value, 0)),
            HashSource::FilterState(key) => info.filter_state.get(key.as_str()).map(|state| xxh64(&state.text, 0)),
        };
        if let Some(found) = found {
            // Turned, so that two policies that find the same do not cancel each other out.
            all = Some(all.map_or(0, |hash| hash.rotate_left(1)) ^ found);
        }
        if policy.terminal && all.is_some() {
            break;
        }
    }
    all
}

/// The hash of an address, as text and without a port.
pub fn of_ip(ip: IpAddr) -> u64 {
    let mut text = [0u8; 64];
    let mut rest = &mut text[..];
    // The longest address has room.
    let _ = write!(rest, "{ip}");
    let unused = rest.len();
    xxh64(&text[..text.len() - unused], 0)
}

fn of_header(
    key: &HeaderKey,
    rewrite: Option<&weft_config::regex_rewrite::RegexRewrite>,
    head: &RequestHead,
) -> Option<u64> {
    let mut values = SmallVec::<[Cow<'_, [u8]>; 4]>::new();
    match key {
        HeaderKey::Name(name) => values.extend(head.headers.get_all(name).iter().map(|v| Cow::from(v.as_bytes()))),
        HeaderKey::Authority => values.push(Cow::from(&head.authority[..])),
        HeaderKey::Path => values.push(Cow::from(&head.path[..])),
        HeaderKey::Method => values.push(Cow::from(head.method.as_str().as_bytes())),
        HeaderKey::Scheme => values.push(Cow::from(&head.scheme[..])),
        HeaderKey::Protocol => values.extend(head.upgrade.as_ref().map(|v| Cow::from(&v[..]))),
        HeaderKey::Status => {}
    }
    if values.is_empty() {
        return None;
    }
    if let Some(rewrite) = rewrite {
        values.iter_mut().for_each(|value| *value = Cow::from(rewrite.apply(&**value)));
    }
    // The order in which they came is of no account.
    values.sort_unstable();
    Some(values.iter().fold(0, |hash, value| xxh64(value, hash)))
}

/// The value of a cookie, unless it is empty.
fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let pairs = head.headers.get_all(header::COOKIE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b';'));
    for pair in pairs {
        let Some(at) = pair.iter().position(|b| *b == b'=') else { continue };
        let (key, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        if key == name.as_bytes() {
            let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            return Some(bare).filter(|value| !value.is_empty());
        }
    }
    None
}

/// The value of a new cookie: the same for all streams of a connection.
fn cookie_value(info: &StreamInfo) -> String {
    let connection = &info.connection;
    format!("{:016x}", xxh64(format!("{}{}", connection.remote, connection.local).as_bytes(), 0))
}

fn set_cookie_header(
    name: &str,
    value: &str,
    max_age: u64,
    path: &str,
    attributes: &[(String, String)],
) -> Option<HeaderValue> {
    let mut text = format!("{name}=\"{value}\"");
    if max_age > 0 {
        text += &format!("; Max-Age={max_age}");
    }
    if !path.is_empty() {
        text += &format!("; Path={path}");
    }
    for (name, value) in attributes {
        text += if value.is_empty() { format!("; {name}") } else { format!("; {name}={value}") }.as_str();
    }
    text += "; HttpOnly";
    HeaderValue::try_from(text).ok()
}

/// The first value of a query parameter, as it stands.
fn parameter<'a>(path: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let query = &path[path.iter().position(|b| *b == b'?')? + 1..];
    let query = query.split(|b| *b == b'#').next().unwrap_or_default();
    query.split(|b| *b == b'&').find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=');
        let (key, value) = at.map_or((pair, &b""[..]), |at| (&pair[..at], &pair[at + 1..]));
        (key == name.as_bytes()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ConnectionInfo;
    use http::{HeaderName, Method};
    use std::{rc::Rc, time::Duration};

    fn info() -> StreamInfo {
        let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        StreamInfo::new(Rc::new(ConnectionInfo::accepted(1, address("10.0.0.1:80"), address("10.0.0.2:1234"))))
    }

    fn policy(source: HashSource, terminal: bool) -> HashPolicy {
        HashPolicy { source, terminal }
    }

    fn header(name: &'static str) -> HashSource {
        HashSource::Header { key: HeaderKey::Name(HeaderName::from_static(name)), rewrite: None }
    }

    #[test]
    fn sources() {
        let mut head = RequestHead::new(Method::GET, "/p?a=1&user=me&user=you&flag");
        let add = |head: &mut RequestHead, name, value| {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        };
        add(&mut head, "x-one", "one");
        add(&mut head, "x-two", "b");
        add(&mut head, "x-two", "a");
        add(&mut head, "cookie", "a=b; sid=\"quoted\"; empty=");
        let of = |source: HashSource| hash(&[policy(source, false)], &head, &info(), None);
        assert_eq!(of(header("x-one")), Some(xxh64(b"one", 0)));
        assert_eq!(of(header("x-two")), Some(xxh64(b"b", xxh64(b"a", 0))));
        assert_eq!(of(header("x-none")), None);
        assert_eq!(of(HashSource::Header { key: HeaderKey::Path, rewrite: None }), Some(xxh64(&head.path, 0)));
        let query = |name: &str| of(HashSource::QueryParameter(name.into()));
        assert_eq!((query("user"), query("flag"), query("us")), (Some(xxh64(b"me", 0)), Some(xxh64(b"", 0)), None));
        assert_eq!(of(HashSource::SourceIp), Some(xxh64(b"10.0.0.2", 0)));
        let cookie = |name: &str| {
            of(HashSource::Cookie { name: name.into(), ttl: None, path: String::new(), attributes: Vec::new() })
        };
        assert_eq!((cookie("sid"), cookie("a")), (Some(xxh64(b"quoted", 0)), Some(xxh64(b"b", 0))));
        assert_eq!((cookie("empty"), cookie("x")), (None, None));
    }

    #[test]
    fn several_policies() {
        let mut head = RequestHead::new(Method::GET, "/");
        head.headers.insert("x-one", HeaderValue::from_static("one"));
        head.headers.insert("x-two", HeaderValue::from_static("two"));
        let (one, two) = (xxh64(b"one", 0), xxh64(b"two", 0));
        let of = |policies: &[HashPolicy]| hash(policies, &head, &info(), None);
        let both = [policy(header("x-one"), false), policy(header("x-two"), false)];
        assert_eq!(of(&both), Some(one.rotate_left(1) ^ two));
        let terminal = [policy(header("x-no"), true), policy(header("x-one"), true), policy(header("x-two"), false)];
        assert_eq!(of(&terminal), Some(one));
    }

    #[test]
    fn cookies_are_made() {
        let source = HashSource::Cookie {
            name: "sid".into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/shop".into(),
            attributes: vec![("SameSite".into(), "Lax".into()), ("Secure".into(), String::new())],
        };
        let head = RequestHead::new(Method::GET, "/");
        let mut made = Vec::new();
        let policies = [policy(source, false)];
        let found = hash(&policies, &head, &info(), Some(&mut |cookie| made.push(cookie)));
        let value = format!("{:016x}", xxh64(b"10.0.0.2:123410.0.0.1:80", 0));
        assert_eq!(found, Some(xxh64(value.as_bytes(), 0)));
        let text = format!("sid=\"{value}\"; Max-Age=60; Path=/shop; SameSite=Lax; Secure; HttpOnly");
        assert_eq!(made, [text.as_str()]);
        assert_eq!(hash(&policies, &head, &info(), None), None);
    }
}
