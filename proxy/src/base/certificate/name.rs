//! Names in certificates as text, as BoringSSL prints them with `XN_FLAG_RFC2253`.
//!
//! Invariant: what comes out is ASCII without control characters, and no two names print alike that are not alike.

use std::fmt::Write as _;
use x509_parser::{asn1_rs::Any, prelude::X509Name};

// Tags of ASN.1's types of text.
const UTF8: u32 = 12;
const NUMERIC: u32 = 18;
const PRINTABLE: u32 = 19;
const T61: u32 = 20;
const IA5: u32 = 22;
const VISIBLE: u32 = 26;
const GENERAL: u32 = 27;
const UNIVERSAL: u32 = 28;
const BMP: u32 = 30;

/// A name's attributes, the last first.
pub fn rfc2253(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for (i, set) in name.iter_rdn().collect::<Vec<_>>().into_iter().rev().enumerate() {
        if i > 0 {
            text.push(',');
        }
        for (i, attribute) in set.iter().collect::<Vec<_>>().into_iter().rev().enumerate() {
            if i > 0 {
                text.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            let value = attribute.attr_value();
            let short = short_name(&oid);
            text.push_str(short.unwrap_or(&oid));
            text.push('=');
            match short.and_then(|_| utf8(value)) {
                Some(bytes) => escape(&bytes, &mut text),
                // What has no name or is no text is written as it stands in the certificate.
                None => dump(value, &mut text),
            }
        }
    }
    text
}

/// The text of one of ASN.1's types of text, in UTF-8 (or what claims to be).
fn utf8(value: &Any<'_>) -> Option<Vec<u8>> {
    let wide = |size: usize| {
        let units = value.data.chunks(size);
        let number = |unit: &[u8]| unit.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        let text: Option<String> = units.map(|unit| char::from_u32(number(unit))).collect();
        text.filter(|_| value.data.len().is_multiple_of(size)).map(String::into_bytes)
    };
    match value.tag().0 {
        UTF8 => Some(value.data.to_vec()),
        NUMERIC | PRINTABLE | T61 | IA5 | VISIBLE | GENERAL => {
            Some(value.data.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes())
        }
        BMP => wide(2),
        UNIVERSAL => wide(4),
        _ => None,
    }
}

fn escape(value: &[u8], out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (i, &byte) in value.iter().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' if i == 0 => out.push_str("\\#"),
            b' ' if i == 0 || i == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

/// `#` and the value's DER in hex.
fn dump(value: &Any<'_>, out: &mut String) {
    let header = &value.header;
    let tag = (header.class() as u8) << 6 | u8::from(header.constructed()) << 5 | (header.tag().0 as u8 & 0x1f);
    out.push('#');
    let mut byte = |byte: u8| {
        let _ = write!(out, "{byte:02X}");
    };
    byte(tag);
    let length = value.data.len().to_be_bytes();
    match value.data.len() {
        short @ ..128 => byte(short as u8),
        _ => {
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            byte(0x80 | (length.len() - zeros) as u8);
            length[zeros..].iter().for_each(|b| byte(*b));
        }
    }
    value.data.iter().for_each(|b| byte(*b));
}

/// The value of an other name, `[0] EXPLICIT` around some type, as text. `None`: it is of a type that has none.
pub fn other_name(value: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer;
    const BOOLEAN: u32 = 1;
    const INTEGER: u32 = 2;
    const OCTETS: u32 = 4;
    const ENUMERATED: u32 = 10;
    let (_, outer) = Any::from_der(value).ok()?;
    let inner = if outer.tag().0 == 0 { outer.data } else { value };
    let (_, any) = Any::from_der(inner).ok()?;
    match any.tag().0 {
        // BoringSSL takes these as they are.
        T61 | IA5 | VISIBLE | GENERAL | PRINTABLE | NUMERIC | OCTETS => String::from_utf8(any.data.to_vec()).ok(),
        BOOLEAN => Some(if any.data == [0] { "false" } else { "true" }.to_owned()),
        INTEGER | ENUMERATED => {
            let bytes = Some(any.data).filter(|bytes| bytes.len() <= 8)?;
            let start = if bytes.first()? & 0x80 == 0 { 0 } else { -1 };
            Some(bytes.iter().fold(start, |all: i64, byte| all << 8 | i64::from(*byte)).to_string())
        }
        _ => String::from_utf8(utf8(&any)?).ok(),
    }
}

/// OpenSSL's short name of an attribute type.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.3" => "mail",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        "1.2.840.113549.1.9.7" => "challengePassword",
        "1.2.840.113549.1.9.8" => "unstructuredAddress",
        _ => match oid.strip_prefix("2.5.4.")? {
            "3" => "CN",
            "4" => "SN",
            "5" => "serialNumber",
            "6" => "C",
            "7" => "L",
            "8" => "ST",
            "9" => "street",
            "10" => "O",
            "11" => "OU",
            "12" => "title",
            "13" => "description",
            "14" => "searchGuide",
            "15" => "businessCategory",
            "16" => "postalAddress",
            "17" => "postalCode",
            "18" => "postOfficeBox",
            "19" => "physicalDeliveryOfficeName",
            "20" => "telephoneNumber",
            "21" => "telexNumber",
            "22" => "teletexTerminalIdentifier",
            "23" => "facsimileTelephoneNumber",
            "24" => "x121Address",
            "25" => "internationaliSDNNumber",
            "26" => "registeredAddress",
            "27" => "destinationIndicator",
            "31" => "member",
            "32" => "owner",
            "33" => "roleOccupant",
            "34" => "seeAlso",
            "41" => "name",
            "42" => "GN",
            "43" => "initials",
            "44" => "generationQualifier",
            "45" => "x500UniqueIdentifier",
            "46" => "dnQualifier",
            "49" => "distinguishedName",
            "50" => "uniqueMember",
            "51" => "houseIdentifier",
            "54" => "dmdName",
            "65" => "pseudonym",
            "72" => "role",
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::FromDer;

    /// A name of one attribute.
    fn name(oid: &[u8], tag: u8, value: &[u8]) -> String {
        let wrap = |tag: u8, inner: &[u8]| [&[tag, inner.len() as u8][..], inner].concat();
        let attribute = wrap(0x30, &[wrap(6, oid), wrap(tag, value)].concat());
        let der = wrap(0x30, &wrap(0x31, &attribute));
        rfc2253(&X509Name::from_der(&der).expect("a name").1)
    }

    const CN: &[u8] = &[0x55, 4, 3];

    #[test]
    fn values_are_escaped() {
        assert_eq!(name(CN, 0x0c, b"#a,b+c\"d\\e<f>;# "), r#"CN=\#a\,b\+c\"d\\e\<f\>\;#\ "#);
        assert_eq!(name(CN, 0x0c, b" "), r"CN=\ ");
        assert_eq!(name(CN, 0x0c, "gr\u{f6}\n\0x".as_bytes()), r"CN=gr\C3\B6\0A\00x");
        assert_eq!(name(CN, 0x14, b"\xe9"), r"CN=\C3\A9");
        assert_eq!(name(CN, 0x1e, b"\0g\0\xf6"), r"CN=g\C3\B6");
        assert_eq!(name(CN, 0x1c, b"\0\0\0x\0\x01\xd1\x1e"), r"CN=x\F0\9D\84\9E");
    }

    #[test]
    fn what_is_unknown_is_dumped() {
        assert_eq!(name(&[0x2a, 3, 4], 0x0c, b"unk"), "1.2.3.4=#0C03756E6B");
        assert_eq!(name(CN, 0x04, b"\x01"), "CN=#040101");
        assert_eq!(name(CN, 0x1e, b"\0"), "CN=#1E0100");
    }

    #[test]
    fn other_names() {
        for (der, text) in [
            (&b"\xa0\x07\x0c\x05user1"[..], Some("user1")),
            (b"\x0c\x02hi", Some("hi")),
            (b"\xa0\x04\x1e\x02\0i", Some("i")),
            (b"\xa0\x03\x02\x01\xff", Some("-1")),
            (b"\xa0\x04\x02\x02\x01\0", Some("256")),
            (b"\xa0\x04\x04\x02ab", Some("ab")),
            (b"\xa0\x03\x04\x01\xff", None),
            (b"\xa0\x09\x0c\x02hi", None),
            (b"", None),
        ] {
            assert_eq!(other_name(der).as_deref(), text, "{der:x?}");
        }
    }
}
