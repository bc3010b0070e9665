//! Path normalisation: what the connection manager does to `:path` before anything matches on it.
//!
//! Dot segments go, as RFC 3986 section 5.2.4 has it; unreserved characters are unescaped and unsafe ones escaped, as
//! browsers do it; a segment's parameters (`;x`) do not hide its dots. The query is never touched.

use bytes::Bytes;

/// Where the query or fragment starts.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(memchr::memchr2(b'?', b'#', path).unwrap_or(path.len()))
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// The byte that the escape at the start of `rest` stands for.
fn unescape(rest: &[u8]) -> Option<u8> {
    match rest {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `normalize_path`: the normalised path with its query, or `None` if the path holds an escaped NUL or is relative.
/// A path that is already in normal form is returned as it is, without a copy.
pub fn normalize(path: &Bytes) -> Option<Bytes> {
    let (plain, query) = split(path);
    if plain.first() != Some(&b'/') {
        return None;
    }
    if is_normal(plain) {
        return Some(path.clone());
    }
    let mut out: Vec<u8> = Vec::with_capacity(path.len() + 8);
    out.push(b'/');
    let mut rest = &plain[1..];
    loop {
        let end = memchr::memchr2(b'/', b'\\', rest).unwrap_or(rest.len());
        let is_last = end == rest.len();
        match dots(&rest[..end]) {
            Some(1) => {}
            Some(_) => {
                // Up to the segment before: `out` ends with a slash.
                out.pop();
                while out.last().is_some_and(|b| *b != b'/') {
                    out.pop();
                }
                if out.is_empty() {
                    out.push(b'/');
                }
            }
            None => {
                canonicalize(&rest[..end], &mut out)?;
                if !is_last {
                    out.push(b'/');
                }
            }
        }
        if is_last {
            break;
        }
        rest = &rest[end + 1..];
    }
    out.extend_from_slice(query);
    Some(out.into())
}

/// True if [`normalize`] would change nothing; may be false for a path that it would not change.
fn is_normal(plain: &[u8]) -> bool {
    !memchr::memmem::find_iter(plain, b"/.").any(|_| true)
        && plain.iter().all(|b| {
            is_unreserved(*b) || matches!(b, b'/' | b'!' | b'$' | b'&'..=b',' | b':' | b';' | b'=' | b'@' | b'[' | b']')
        })
}

/// How many dots the segment stands for, if it is a dot segment.
fn dots(segment: &[u8]) -> Option<u8> {
    let mut count = 0;
    let mut rest = segment;
    while let Some(first) = rest.first() {
        rest = match first {
            b'.' => &rest[1..],
            b';' if count > 0 => break,
            _ if unescape(rest) == Some(b'.') => &rest[3..],
            _ => return None,
        };
        count += 1;
    }
    matches!(count, 1 | 2).then_some(count)
}

fn canonicalize(segment: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = segment;
    while let Some(&byte) = rest.first() {
        let mut used = 1;
        match byte {
            b'%' => match unescape(rest) {
                Some(0) => return None,
                Some(plain) if is_unreserved(plain) => {
                    out.push(plain);
                    used = 3;
                }
                Some(_) => {
                    out.extend_from_slice(&rest[..3]);
                    used = 3;
                }
                None => out.push(b'%'),
            },
            0..=b' ' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => out.push(byte),
        }
        rest = &rest[used..];
    }
    Some(())
}

/// `merge_slashes`: one slash for several, outside the query.
pub fn merge_slashes(path: &Bytes) -> Bytes {
    let (plain, query) = split(path);
    if memchr::memmem::find(plain, b"//").is_none() {
        return path.clone();
    }
    let mut out = Vec::with_capacity(path.len());
    for &byte in plain {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    if out == b"/" {
        // Nothing but slashes: the first and the last stay.
        out.push(b'/');
    }
    out.extend_from_slice(query);
    out.into()
}

/// `path_with_escaped_slashes_action`: `%2F` and `%5C` (of either case) turned into slashes; `None` if there are none.
pub fn unescape_slashes(path: &Bytes) -> Option<Bytes> {
    let (plain, query) = split(path);
    let is_slash = |rest: &[u8]| match unescape(rest) {
        Some(byte @ (b'/' | b'\\')) => Some(byte),
        _ => None,
    };
    memchr::memchr_iter(b'%', plain).find(|at| is_slash(&plain[*at..]).is_some())?;
    let mut out = Vec::with_capacity(path.len());
    let mut rest = plain;
    while let Some(&byte) = rest.first() {
        let slash = is_slash(rest);
        out.push(slash.unwrap_or(byte));
        rest = &rest[if slash.is_some() { 3 } else { 1 }..];
    }
    out.extend_from_slice(query);
    Some(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms_are_envoys() {
        for (path, want) in [
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/../x", "/x"),
            ("/a/..", "/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a%2fb", "/a%2fb"),
            ("/a\\b", "/a/b"),
            ("/a%20b", "/a%20b"),
            ("/%61", "/a"),
            ("/%zz", "/%zz"),
            ("/a/b?x=/../y", "/a/b?x=/../y"),
            ("/a%2f..%2fb", "/a%2f..%2fb"),
            ("/%7Euser", "/~user"),
            ("/a;b=c/../d", "/d"),
            ("/.", "/"),
            ("/a/...", "/a/..."),
            ("/%2e%2e%2fx", "/..%2fx"),
            ("/a/%2E", "/a/"),
            ("/a/.%2e", "/"),
            ("/a/%2e./b", "/b"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/a//../b", "/a/b"),
            ("/a/..;x/b", "/b"),
            ("/%", "/%"),
            ("/%4", "/%4"),
            ("/a%2", "/a%2"),
            ("/a/.;/b", "/a/b"),
            ("//..//x", "//x"),
            ("/a/b/.", "/a/b/"),
            ("/a?%61", "/a?%61"),
            ("/a\\..\\b", "/b"),
            ("/\\x", "//x"),
            ("/./", "/"),
            ("/a\"b", "/a%22b"),
            ("/a|b^`{}<>", "/a%7Cb%5E%60%7B%7D%3C%3E"),
            ("/;x", "/;x"),
        ] {
            assert_eq!(normalize(&Bytes::from(path)).as_deref(), Some(want.as_bytes()), "{path}");
        }
        assert_eq!(normalize(&Bytes::from("/a%00b")), None);
        assert_eq!(normalize(&Bytes::from("*")), None);
        assert_eq!(normalize(&Bytes::new()), None);
    }

    #[test]
    fn normal_form_is_stable() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..5000 {
            let path: String = std::iter::once('/')
                .chain(
                    (0..rng.usize(0..12))
                        .map(|_| *rng.choice(&['/', '.', '\\', '%', '2', 'e', 'F', ';', 'a', '?']).unwrap()),
                )
                .collect();
            if let Some(once) = normalize(&Bytes::from(path.clone())) {
                assert!(once.starts_with(b"/"), "{path}");
            }
        }
    }

    #[test]
    fn slashes() {
        assert_eq!(merge_slashes(&Bytes::from("//a///b?x//y")), "/a/b?x//y");
        assert_eq!(merge_slashes(&Bytes::from("///?x")), "//?x");
        assert_eq!(unescape_slashes(&Bytes::from("/a%2F%5cb?%2f")).as_deref(), Some(&b"/a/\\b?%2f"[..]));
        assert_eq!(unescape_slashes(&Bytes::from("/a%20?%2f")), None);
    }
}
