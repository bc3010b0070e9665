//! `Duration` and `Timestamp` as text.

use crate::wire::{Parsed, Wire};

/// Seconds and nanoseconds.
pub(super) fn parts(parsed: &Parsed<'_>) -> (i64, i32) {
    let number = |n| match parsed.last(n) {
        Some(Wire::Varint(value)) => value as i64,
        _ => 0,
    };
    (number(1), number(2) as i32)
}

/// A point and 3, 6 or 9 digits; nothing for zero.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

/// `1.500s`.
pub(super) fn duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos.unsigned_abs()))
}

/// `2026-01-31T12:00:00.500Z`.
pub(super) fn timestamp(seconds: i64, nanos: i32) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date in the proleptic Gregorian calendar, in eras of 400 years that start on a 1 March.
    let days = days.clamp(-1_000_000_000, 1_000_000_000) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = fraction(nanos.unsigned_abs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        assert_eq!(duration(1, 500_000_000), "1.500s");
        assert_eq!(duration(0, -1_000), "-0.000001s");
        assert_eq!(duration(30, 0), "30s");
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(1_709_202_600, 1), "2024-02-29T10:30:00.000000001Z");
        assert_eq!(timestamp(-62_135_596_800, 0), "0001-01-01T00:00:00Z");
        assert_eq!(timestamp(i64::MIN, i32::MIN).len(), timestamp(i64::MIN, i32::MIN).trim().len());
    }
}
