//! What of a PEM text may be shown.
//!
//! Called wherever certificates and authorities are printed, or what might hold a key. Invariant: what comes out holds no
//! block but those of the labels that are asked for; whatever else stood there is said to have been, not shown.

use crate::print::REDACTED;
use std::borrow::Cow;

/// The label of certificates.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// The label of revocation lists.
pub const CRL: &str = "X509 CRL";

const BEGIN: &[u8] = b"-----BEGIN ";

/// `data` if it is made of whole PEM blocks with these labels and nothing else; else these blocks, with `[redacted]` for each
/// part that is something else.
pub fn only<'a>(data: &'a [u8], labels: &[&str]) -> Cow<'a, [u8]> {
    let mut shown: Vec<u8> = Vec::new();
    let (mut rest, mut is_whole) = (data, true);
    while !rest.is_empty() {
        let at = find(rest, BEGIN).unwrap_or(rest.len());
        let (between, from_block) = rest.split_at(at);
        is_whole &= show_between(between, &mut shown);
        if from_block.is_empty() {
            break;
        }
        match labels.iter().find_map(|label| block_len(from_block, label)) {
            Some(len) => {
                let (block, after) = from_block.split_at(len);
                shown.extend_from_slice(block);
                rest = after;
            }
            None => {
                // What stands up to the next block is hidden with it.
                let (hidden, after) = from_block.split_at(next_block(from_block));
                is_whole &= show_between(hidden, &mut shown);
                rest = after;
            }
        }
    }
    if is_whole { Cow::Borrowed(data) } else { Cow::Owned(shown) }
}

/// `data`, but without its private keys if it has any.
pub fn without_keys(data: &[u8]) -> Cow<'_, [u8]> {
    match find(data, b"PRIVATE KEY-----") {
        Some(_) => only(data, &[CERTIFICATE, CRL]),
        None => Cow::Borrowed(data),
    }
}

/// Shows what stands between blocks: nothing is shown as it is, anything as hidden. False if it had to be hidden.
fn show_between(between: &[u8], shown: &mut Vec<u8>) -> bool {
    if between.iter().all(u8::is_ascii_whitespace) {
        shown.extend_from_slice(between);
        return true;
    }
    // Two hidden parts beside each other are one.
    let hidden = format!("{REDACTED}\n");
    if !shown.ends_with(hidden.as_bytes()) {
        shown.extend_from_slice(hidden.as_bytes());
    }
    false
}

/// Where the next block begins.
fn next_block(from_block: &[u8]) -> usize {
    let after = from_block.get(BEGIN.len()..).unwrap_or_default();
    find(after, BEGIN).map_or(from_block.len(), |at| at + BEGIN.len())
}

/// The length of the block that `data` begins with, if it has this label and is base64 to its end.
fn block_len(data: &[u8], label: &str) -> Option<usize> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let body = data.strip_prefix(begin.as_bytes())?;
    let at = find(body, b"-----")?;
    let (base64, tail) = body.split_at(at);
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b.is_ascii_whitespace() || matches!(b, b'+' | b'/' | b'=');
    let is_whole = base64.iter().all(is_base64) && tail.starts_with(end.as_bytes());
    is_whole.then_some(begin.len() + at + end.len())
}

fn find(data: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(data, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERT: &str = "-----BEGIN CERTIFICATE-----\nMIIBaaaa\nbbb=\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHsecret\n-----END PRIVATE KEY-----\n";

    fn shown(text: &str) -> String {
        String::from_utf8(only(text.as_bytes(), &[CERTIFICATE]).into_owned()).unwrap()
    }

    #[test]
    fn certificates_alone_stay_as_they_are() {
        for text in ["", CERT, &format!("\n{CERT}\r\n{CERT}"), CERT.trim_end()] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn all_else_is_hidden() {
        assert_eq!(shown(&format!("{CERT}{KEY}")), format!("{}\n[redacted]\n", CERT.trim_end()));
        for text in [
            KEY.to_owned(),
            format!("{KEY}{CERT}"),
            format!("{CERT}{KEY}{KEY}{CERT}"),
            format!("MIGHsecret{CERT}"),
            format!("{CERT}MIGHsecret"),
            KEY.replace('\n', ""),
            KEY.replace("-----END PRIVATE KEY-----", ""),
            // Cut off in the middle of a certificate, or a key that pretends.
            format!("-----BEGIN CERTIFICATE-----\n{KEY}"),
            format!("-----BEGIN CERTIFICATE-----\nMIGHsecret\n-----END PRIVATE KEY-----\n{CERT}"),
            "-----BEGIN CERTIFICATE-----\nMIGHsecret".to_owned(),
            "\u{1}MIGHsecret".to_owned(),
        ] {
            let shown = shown(&text);
            assert!(!shown.contains("MIGHsecret") && !shown.contains("PRIVATE KEY"), "{text:?}: {shown:?}");
            assert_eq!(shown.matches(CERT.trim_end()).count(), text.matches(CERT.trim_end()).count(), "{shown:?}");
            assert!(shown.contains("[redacted]"), "{shown:?}");
        }
    }

    #[test]
    fn texts_without_keys_are_left_alone() {
        for text in ["any text", CERT, "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"] {
            assert_eq!(without_keys(text.as_bytes()), text.as_bytes());
        }
        assert_eq!(&*without_keys(KEY.as_bytes()), b"[redacted]\n");
    }
}
