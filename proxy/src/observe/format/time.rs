//! Points in time as text, in UTC: strftime's conversions, and fractions of a second (`%3f`, `%f`, `%9f`).

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// (year, month, day, day of the year) of a day counted from 1970-01-01.
pub fn civil(days: u64) -> (u64, u64, u64, u64) {
    // Years that start in March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * from_march + 2) / 153;
    let day = from_march - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let day_of_year = if month > 2 { from_march + 60 + u64::from(is_leap) } else { from_march - 305 };
    (year, month, day, day_of_year)
}

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
/// The months' names, from January.
pub const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time format. Empty: ISO 8601 with milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Box<str>);

impl TimeFormat {
    pub fn new(format: &str) -> Self {
        Self(if format.is_empty() { "%Y-%m-%dT%H:%M:%S.%3fZ" } else { format }.into())
    }

    /// Writes `time`; conversions that are not known are written as they stand.
    pub fn write(&self, time: SystemTime, out: &mut String) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut rest = &*self.0;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let width = rest[..digits].parse().ok();
            let Some(conversion) = rest[digits..].chars().next() else {
                out.push('%');
                break;
            };
            convert(conversion, width, since, out);
            rest = &rest[digits + conversion.len_utf8()..];
        }
        out.push_str(rest);
    }
}

fn convert(conversion: char, width: Option<usize>, since: Duration, out: &mut String) {
    let seconds = since.as_secs();
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (year, month, day, day_of_year) = civil(days);
    let month_name = MONTHS[(month - 1) as usize % 12];
    let day_name = DAYS[(days % 7) as usize];
    let nested = |format: &str, out: &mut String| TimeFormat(format.into()).write(UNIX_EPOCH + since, out);
    // Writing to a String cannot fail.
    let _ = match conversion {
        'Y' => write!(out, "{year}"),
        'y' => write!(out, "{:02}", year % 100),
        'C' => write!(out, "{:02}", year / 100),
        'm' => write!(out, "{month:02}"),
        'd' => write!(out, "{day:02}"),
        'e' => write!(out, "{day:2}"),
        'j' => write!(out, "{day_of_year:03}"),
        'H' => write!(out, "{hour:02}"),
        'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
        'M' => write!(out, "{minute:02}"),
        'S' => write!(out, "{second:02}"),
        'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
        'b' | 'h' => write!(out, "{}", &month_name[..3]),
        'B' => write!(out, "{month_name}"),
        'a' => write!(out, "{}", &day_name[..3]),
        'A' => write!(out, "{day_name}"),
        'u' => write!(out, "{}", (days + 3) % 7 + 1),
        'w' => write!(out, "{}", (days + 4) % 7),
        's' => match width {
            // `%3s`: seconds with a fraction's digits, as one number.
            Some(digits @ 1..=9) => write!(out, "{seconds}{}", &format!("{:09}", since.subsec_nanos())[..digits]),
            _ => write!(out, "{seconds}"),
        },
        'f' => write!(out, "{}", &format!("{:09}", since.subsec_nanos())[..width.unwrap_or(9).clamp(1, 9)]),
        'z' => write!(out, "+0000"),
        'Z' => write!(out, "UTC"),
        'n' => writeln!(out),
        't' => write!(out, "\t"),
        '%' => write!(out, "%"),
        'F' => return nested("%Y-%m-%d", out),
        'T' | 'X' => return nested("%H:%M:%S", out),
        'R' => return nested("%H:%M", out),
        'D' | 'x' => return nested("%m/%d/%y", out),
        'c' => return nested("%a %b %e %H:%M:%S %Y", out),
        'E' => Ok(()),
        other => write!(out, "%{other}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32, format: &str) -> String {
        let mut out = String::new();
        TimeFormat::new(format).write(UNIX_EPOCH + Duration::new(seconds, nanos), &mut out);
        out
    }

    #[test]
    fn conversions() {
        assert_eq!(at(1_522_796_769, 123_456_789, ""), "2018-04-03T23:06:09.123Z");
        assert_eq!(at(1_522_796_769, 123_456_789, "%Y/%m/%dT%H:%M:%S%z %s"), "2018/04/03T23:06:09+0000 1522796769");
        assert_eq!(at(1_522_796_769, 123_456_789, "%f %1f %6f %3s"), "123456789 1 123456 1522796769123");
        assert_eq!(at(1_709_164_800, 0, "%F %j %a %b %e %u"), "2024-02-29 060 Thu Feb 29 4");
        assert_eq!(at(1_709_251_200, 0, "%F %j"), "2024-03-01 061");
        assert_eq!(at(1_735_603_200, 0, "%F %j"), "2024-12-31 366");
        assert_eq!(at(0, 0, "%I%p %q"), "12AM %q");
    }
}
