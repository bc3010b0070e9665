//! What a rule makes of a header's value, and where it puts it.

use crate::observe::stream_info::Metadata;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::Value;
use std::borrow::Cow;
use weft_config::{Context, metadata, regex_rewrite::RegexRewrite};
use weft_control_api::{
    Message as _, Value as ProtoValue,
    envoy::extensions::filters::http::header_to_metadata::v3::config::{self as pb, ValueEncode, ValueType},
};

/// A value of this many bytes is too long.
const TOO_LONG: usize = 8 * 1024;

/// Where a value goes and how it is read.
pub struct Entry {
    namespace: Box<str>,
    key: String,
    source: Source,
    kind: ValueType,
    base64: bool,
}

enum Source {
    Header,
    Rewritten(RegexRewrite),
    Fixed(String),
}

/// A value for the metadata, or why there is none.
pub type Found = Result<Value, Reject>;

/// Why a header's value is no metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    Empty,
    /// The rewrite left nothing of it.
    Rewritten,
    TooLong,
    NoBase64,
    /// It is no number, or no `google.protobuf.Value`.
    Unreadable,
}

impl Entry {
    pub fn from_proto(p: pb::KeyValuePair, cx: &mut Context) -> Option<Self> {
        let pb::KeyValuePair { metadata_namespace, key, value, regex_value_rewrite, r#type, encode } = p;
        let at_missing = cx.path().ends_with("on_header_missing");
        let source = match (value.is_empty(), regex_value_rewrite) {
            (false, None) => Source::Fixed(value),
            // There is no header to rewrite. Envoy does not even compile it.
            (_, Some(_)) if at_missing => {
                cx.ignored_if("regex_value_rewrite", true);
                Source::Fixed(value)
            }
            (false, Some(_)) => {
                cx.problem("found both value and regex_value_rewrite, of which there may be one only");
                return None;
            }
            (true, None) => Source::Header,
            (true, Some(p)) => {
                Source::Rewritten(cx.field("regex_value_rewrite", |cx| RegexRewrite::from_proto(p, cx))?)
            }
        };
        Some(Self {
            namespace: if metadata_namespace.is_empty() { super::NAMESPACE.into() } else { metadata_namespace.into() },
            key,
            source,
            kind: cx.enumeration("type", r#type),
            // Values that the enum does not know are taken for none.
            base64: encode == ValueEncode::Base64 as i32,
        })
    }

    /// The value for a header, which is empty if it is not there.
    pub fn read(&self, header: &[u8]) -> Found {
        let text = match &self.source {
            Source::Header => Cow::from(header),
            Source::Fixed(value) => Cow::from(value.as_bytes()),
            Source::Rewritten(rewrite) => {
                let rewritten = rewrite.apply(header);
                if rewritten.is_empty() && !header.is_empty() {
                    return Err(Reject::Rewritten);
                }
                rewritten.into()
            }
        };
        match text.len() {
            0 => return Err(Reject::Empty),
            TOO_LONG.. => return Err(Reject::TooLong),
            _ => {}
        }
        let bytes = if self.base64 { decoded(&text).ok_or(Reject::NoBase64)?.into() } else { text };
        match self.kind {
            // Where it is no UTF-8 it must be neither absent nor the same as something that is.
            ValueType::String => Ok(Value::String(String::from_utf8_lossy(&bytes).into_owned())),
            ValueType::Number => {
                let number = std::str::from_utf8(&bytes).ok().and_then(number);
                number.map(metadata::number).ok_or(Reject::Unreadable)
            }
            ValueType::ProtobufValue => {
                ProtoValue::decode(&*bytes).map(metadata::value).map_err(|_| Reject::Unreadable)
            }
        }
    }

    /// Puts a value where this says, over what is there.
    pub fn put(&self, value: Value, metadata: &mut Metadata) {
        if let Some(values) = metadata.get_mut(&self.namespace) {
            values.insert(self.key.clone(), value);
            values.sort_keys();
            return;
        }
        metadata.insert(self.namespace.clone(), [(self.key.clone(), value)].into_iter().collect());
    }
}

/// Base64 with as much of its padding as there is. Nothing is nothing that was encoded.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let text = text.strip_suffix(b"=").unwrap_or(text);
    STANDARD_NO_PAD.decode(text).ok().filter(|bytes| !bytes.is_empty())
}

/// Decimal or hexadecimal, as C++ has them, with spaces around; infinities and NaN too.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest.starts_with(['+', '-']) {
        return None;
    }
    let lower = rest.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0x") {
        return hexadecimal(digits).map(|n| sign * n);
    }
    if let Some(inner) = lower.strip_prefix("nan(").and_then(|rest| rest.strip_suffix(')')) {
        return inner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(f64::NAN);
    }
    lower.parse::<f64>().ok().map(|n| sign * n)
}

/// `DIGITS[.DIGITS][p[SIGN]EXPONENT]`
fn hexadecimal(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.split_once('p') {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let mut n = 0.0;
    for digit in whole.chars().chain(part.chars()) {
        n = n * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let places = i32::try_from(part.len()).ok()?.checked_mul(4)?;
    Some(n * 2f64.powi(exponent.checked_sub(places)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_cpp_reads_them() {
        for (text, n) in [
            ("1", 1.0),
            (" +2.5\n", 2.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("1.e2", 100.0),
            ("-1E3", -1000.0),
            ("1e-400", 0.0),
            ("1e400", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("0x10", 16.0),
            ("-0X1f", -31.0),
            ("0x1.8", 1.5),
            ("0x.8", 0.5),
            ("0x1P+2", 4.0),
            ("0x1ffffffffffffffffffffff", 6.189_700_196_426_902e26),
        ] {
            assert_eq!(number(text), Some(n), "{text}");
        }
        for text in ["nan", "-NaN", "nan()", "nan(a_1)"] {
            assert!(number(text).is_some_and(f64::is_nan), "{text}");
        }
        for text in [
            "", "-", ".", "1a", "1e", "e5", "1_0", "+-1", "++1", "- 1", "1 2", "0x", "0x.", "0x1g", "0x1p", "infin",
            "nan(a b)", "1,2",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn padding_may_be_left_out() {
        for (text, bytes) in
            [("aGk=", &b"hi"[..]), ("aGk", b"hi"), ("aGk==", b"hi"), ("YWJj=", b"abc"), ("YWJj==", b"abc")]
        {
            assert_eq!(decoded(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for text in ["", "=", "==", "a", "aGl=", "aGk===", "aGk=aGk=", "aG k=", "_-__", "!!!"] {
            assert_eq!(decoded(text.as_bytes()), None, "{text}");
        }
    }
}
