//! Certificates as text.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// PEM, its lines ended by a newline each.
pub fn encode(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = &*text;
    while !rest.is_empty() {
        // Base64 is ASCII: every place is a boundary.
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The same as it goes into a URL.
pub fn url_encoded(der: &[u8]) -> String {
    let pem = encode(der);
    let mut text = String::with_capacity(pem.len() + pem.len() / 8);
    for c in pem.chars() {
        match c {
            '\n' => text.push_str("%0A"),
            ' ' => text.push_str("%20"),
            '+' => text.push_str("%2B"),
            '/' => text.push_str("%2F"),
            '=' => text.push_str("%3D"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_escapes() {
        let pem = encode(&[0xfb; 49]);
        assert_eq!(pem.lines().map(str::len).collect::<Vec<_>>(), [27, 64, 4, 25]);
        assert!(pem.ends_with("-----END CERTIFICATE-----\n"));
        let escaped = url_encoded(&[0xfb; 49]);
        assert!(escaped.starts_with("-----BEGIN%20CERTIFICATE-----%0A%2B"), "{escaped}");
        assert!(escaped.ends_with("%3D%3D%0A-----END%20CERTIFICATE-----%0A"), "{escaped}");
    }
}
