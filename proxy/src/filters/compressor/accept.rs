//! Which encoding a client likes best of those that there are (RFC 9110 section 12.5.3, as Envoy reads it).

use crate::filters::compression::Encoding;
use smallvec::SmallVec;

/// What `accept-encoding` comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Encoding(Encoding),
    /// Anything will do: the first there is.
    Wildcard(Encoding),
    Identity,
    /// Nothing that it names is to be had.
    NotValid,
}

/// Chooses among `compressors`, given in their order, each with whether it goes before what the client likes as well.
pub fn choose(accept: &[u8], compressors: impl Iterator<Item = (Encoding, bool)>) -> Decision {
    let there: SmallVec<[(Encoding, bool); 3]> = compressors.collect();
    let named = |name: &[u8]| there.iter().find(|(encoding, _)| encoding.name().as_bytes() == name).copied();
    let mut best = (0.0, Decision::NotValid, false);
    for token in accept.split(|b| *b == b',') {
        let mut parts = token.splitn(2, |b| *b == b';');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let Some(quality) = parts.next().map_or(Some(1.0), quality) else { continue };
        let (decision, goes_first) = match name {
            b"identity" => (Decision::Identity, false),
            b"*" => match there.first() {
                Some((encoding, _)) => (Decision::Wildcard(*encoding), false),
                None => (Decision::Identity, false),
            },
            name => match named(name) {
                Some((encoding, goes_first)) => (Decision::Encoding(encoding), goes_first),
                None => continue,
            },
        };
        if quality > best.0 || (quality == best.0 && quality > 0.0 && goes_first && !best.2) {
            best = (quality, decision, goes_first);
        }
    }
    best.1
}

/// The `q` of what follows an encoding; 1 where there is none, `None` if it is no number.
fn quality(parameters: &[u8]) -> Option<f32> {
    let Some(equals) = memchr::memchr(b'=', parameters) else { return Some(1.0) };
    if !parameters[..equals].trim_ascii().eq_ignore_ascii_case(b"q") {
        return Some(1.0);
    }
    std::str::from_utf8(parameters[equals + 1..].trim_ascii()).ok()?.parse().ok().filter(|q: &f32| q.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_ask_for() {
        use Decision::{Encoding as One, Identity, NotValid, Wildcard};
        let there = [(Encoding::Gzip, false), (Encoding::Brotli, false)];
        for (accept, want) in [
            ("gzip", One(Encoding::Gzip)),
            ("br, gzip", One(Encoding::Brotli)),
            ("br;q=0.5, gzip;q=0.6", One(Encoding::Gzip)),
            ("gzip;q=0", NotValid),
            ("gzip;q=junk", NotValid),
            ("gzip;q=0.5, identity;q=1", Identity),
            ("gzip;q=0.1, *;q=0", One(Encoding::Gzip)),
            ("deflate, *;q=0.1", Wildcard(Encoding::Gzip)),
            ("GZIP", NotValid),
            ("", NotValid),
            ("gzip ; q = 0.3 , br;x=1", One(Encoding::Brotli)),
        ] {
            assert_eq!(choose(accept.as_bytes(), there.into_iter()), want, "{accept:?}");
        }
        let first = [(Encoding::Gzip, true), (Encoding::Brotli, false)];
        assert_eq!(choose(b"br, gzip", first.into_iter()), One(Encoding::Gzip));
        assert_eq!(choose(b"br, gzip;q=0.9", first.into_iter()), One(Encoding::Brotli));
    }
}
