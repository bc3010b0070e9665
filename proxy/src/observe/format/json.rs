//! JSON as Envoy prints it: compact, numbers of metadata and of formats in the shorter of the two ways that C++ has.

use serde::Serialize as _;
use serde_json::{
    Value,
    ser::{Formatter, Serializer},
};
use std::io;

/// The text of a value. Integers stay what they are; numbers that are floating point, as all of protobuf's are, may come
/// out with an exponent.
pub fn print(value: &Value) -> String {
    let mut out = Vec::with_capacity(128);
    match value.serialize(&mut Serializer::with_formatter(&mut out, Numbers)) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

struct Numbers;

impl Formatter for Numbers {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, n: f64) -> io::Result<()> {
        writer.write_all(number(n).as_bytes())
    }
}

/// As `std::to_chars`: an exponent where that is shorter, and all digits of large whole numbers.
fn number(n: f64) -> String {
    let scientific = format!("{n:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let count = digits.bytes().filter(u8::is_ascii_digit).count() as i32;
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // Of the digits as a whole number.
    let shift = exponent - (count - 1);
    let fixed = if count == 1 { -3..=4 } else { -(count + 3)..=5 };
    match shift {
        _ if !fixed.contains(&shift) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        1.. => format!("{n:.0}"),
        _ => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_as_short_as_they_can_be() {
        for (n, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (1000.0, "1000"),
            (100_000.0, "1e+05"),
            (120_000.0, "120000"),
            (-1_000_000.0, "-1e+06"),
            (12_345_678.0, "12345678"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (12_345_678_901_234_567_890.0, "12345678901234567168"),
            (6.189_700_196_426_902e26, "6.189700196426902e+26"),
            (1e100, "1e+100"),
            (0.5, "0.5"),
            (0.001, "0.001"),
            (0.0001, "1e-04"),
            (0.0001234, "0.0001234"),
            (1e-7, "1e-07"),
            (123_456_789.123_456_79, "123456789.12345679"),
        ] {
            assert_eq!(number(n), text);
        }
        assert_eq!(
            print(&json!({"i": 100_000, "f": 100_000.0, "s": "\"\u{1}é"})),
            "{\"i\":100000,\"f\":1e+05,\"s\":\"\\\"\\u0001é\"}"
        );
    }
}
