//! The pattern of a log line, in spdlog's syntax as Envoy's `--log-format` takes it.
//!
//! Read once at start; [`Format::write`] makes the text of each line. What is no flag stays as it stands.

use crate::observe::format::MONTHS;
use std::{fmt::Write as _, time::SystemTime};

/// Envoy's own pattern.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// What one line says.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub time: SystemTime,
    pub thread: i64,
    /// `info`, as `%l` writes it.
    pub level: &'static str,
    pub component: &'a str,
    pub file: &'a str,
    pub line: u32,
    pub message: &'a str,
}

/// A pattern taken apart.
#[derive(Clone, Debug)]
pub struct Format(Vec<Item>);

#[derive(Clone, Debug, PartialEq)]
enum Item {
    Text(String),
    Flag(char, Option<Padding>),
}

/// `%8l`, `%-8l`, `%=8l`, with `!` cut to that width.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Padding {
    side: Side,
    width: usize,
    cuts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Left,
    Right,
    Both,
}

const FLAGS: &str = "vtPnlLaAbBcCYDxmdHIMSefFprRTXz%sg#!@E^$j_*";

impl Format {
    /// Takes a pattern apart; every text is one.
    pub fn parse(pattern: &str) -> Self {
        let mut items = Vec::new();
        let mut text = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            let (padding, after) = padding(&rest[at + 1..]);
            match after.chars().next() {
                Some(flag) if FLAGS.contains(flag) => {
                    if !text.is_empty() {
                        items.push(Item::Text(std::mem::take(&mut text)));
                    }
                    items.push(Item::Flag(flag, padding));
                    rest = &after[flag.len_utf8()..];
                }
                _ => {
                    text.push('%');
                    rest = &rest[at + 1..];
                }
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            items.push(Item::Text(text));
        }
        Self(items)
    }

    /// The text of one line, without its end.
    pub fn write(&self, out: &mut String, line: &Line<'_>) {
        let time = LocalTime::of(line.time);
        for item in &self.0 {
            match item {
                Item::Text(text) => out.push_str(text),
                Item::Flag(flag, None) => write_flag(out, *flag, line, &time),
                Item::Flag(flag, Some(padding)) => {
                    let mut value = String::new();
                    write_flag(&mut value, *flag, line, &time);
                    padding.write(out, &value);
                }
            }
        }
    }
}

fn padding(text: &str) -> (Option<Padding>, &str) {
    let (side, digits) = match text.as_bytes().first() {
        Some(b'-') => (Side::Right, &text[1..]),
        Some(b'=') => (Side::Both, &text[1..]),
        _ => (Side::Left, text),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let Ok(width) = digits[..end].parse::<usize>() else { return (None, digits) };
    let rest = &digits[end..];
    // A `!` is a flag of its own where nothing follows it.
    let cuts = rest.starts_with('!') && rest.len() > 1;
    (Some(Padding { side, width: width.min(64), cuts }), if cuts { &rest[1..] } else { rest })
}

impl Padding {
    fn write(self, out: &mut String, value: &str) {
        let length = value.chars().count();
        let missing = self.width.saturating_sub(length);
        let before = match self.side {
            Side::Left => missing,
            Side::Right => 0,
            Side::Both => missing / 2,
        };
        out.extend(std::iter::repeat_n(' ', before));
        if self.cuts {
            out.extend(value.chars().take(self.width));
        } else {
            out.push_str(value);
        }
        out.extend(std::iter::repeat_n(' ', missing - before));
    }
}

fn write_flag(out: &mut String, flag: char, line: &Line<'_>, time: &LocalTime) {
    let LocalTime { year, month, day, hour, minute, second, weekday, nanos, offset, unix } = *time;
    let half_day = if hour % 12 == 0 { 12 } else { hour % 12 };
    let am_pm = if hour < 12 { "AM" } else { "PM" };
    // Writing to a string cannot fail.
    let _ = match flag {
        'v' | '*' => out.write_str(if flag == 'v' { line.message } else { "" }),
        'j' => write_json(out, line.message),
        '_' => write_escaped(out, line.message),
        't' => write!(out, "{}", line.thread),
        'P' => write!(out, "{}", std::process::id()),
        'n' => out.write_str(line.component),
        'l' => out.write_str(line.level),
        'L' => out.write_str(&line.level[..1].to_ascii_uppercase()),
        'a' => out.write_str(&WEEKDAYS[weekday][..3]),
        'A' => out.write_str(WEEKDAYS[weekday]),
        'b' => out.write_str(&MONTHS[month][..3]),
        'B' => out.write_str(MONTHS[month]),
        'c' => write!(
            out,
            "{} {} {day} {hour:02}:{minute:02}:{second:02} {year}",
            &WEEKDAYS[weekday][..3],
            &MONTHS[month][..3]
        ),
        'C' => write!(out, "{:02}", year % 100),
        'Y' => write!(out, "{year}"),
        'D' | 'x' => write!(out, "{:02}/{day:02}/{:02}", month + 1, year % 100),
        'm' => write!(out, "{:02}", month + 1),
        'd' => write!(out, "{day:02}"),
        'H' => write!(out, "{hour:02}"),
        'I' => write!(out, "{half_day:02}"),
        'M' => write!(out, "{minute:02}"),
        'S' => write!(out, "{second:02}"),
        'e' => write!(out, "{:03}", nanos / 1_000_000),
        'f' => write!(out, "{:06}", nanos / 1_000),
        'F' => write!(out, "{nanos:09}"),
        'p' => out.write_str(am_pm),
        'r' => write!(out, "{half_day:02}:{minute:02}:{second:02} {am_pm}"),
        'R' => write!(out, "{hour:02}:{minute:02}"),
        'T' | 'X' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
        'z' => {
            let sign = if offset < 0 { '-' } else { '+' };
            write!(out, "{sign}{:02}:{:02}", offset.abs() / 3600, offset.abs() / 60 % 60)
        }
        'E' => write!(out, "{unix}"),
        's' => out.write_str(line.file.rsplit('/').next().unwrap_or(line.file)),
        'g' => out.write_str(line.file),
        '#' => write!(out, "{}", line.line),
        '@' => write!(out, "{}:{}", line.file, line.line),
        '%' => out.write_char('%'),
        // The function is not known; the colour marks mean nothing in a file.
        _ => Ok(()),
    };
}

fn write_json(out: &mut String, text: &str) -> std::fmt::Result {
    let quoted = serde_json::Value::from(text).to_string();
    out.write_str(&quoted[1..quoted.len() - 1])
}

/// Writes text with C's escapes for control characters.
pub fn write_escaped(out: &mut String, text: &str) -> std::fmt::Result {
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '"' | '\'' | '\\' => {
                out.write_char('\\')?;
                out.write_char(c)?;
            }
            c if c.is_ascii_control() => write!(out, "\\{:03o}", c as u32)?,
            c => out.write_char(c)?,
        }
    }
    Ok(())
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// A moment on this machine's clock. `month` and `weekday` count from 0.
struct LocalTime {
    year: i64,
    month: usize,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
    weekday: usize,
    nanos: u32,
    /// Seconds east of UTC.
    offset: i64,
    unix: u64,
}

impl LocalTime {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs() as _;
        // SAFETY: all-zero bytes are a valid `tm`; `localtime_r` writes only to the `tm` it is given.
        let tm = unsafe {
            let mut tm = std::mem::zeroed::<libc::tm>();
            libc::localtime_r(&seconds, &mut tm);
            tm
        };
        Self {
            year: i64::from(tm.tm_year) + 1900,
            month: (tm.tm_mon as usize).min(11),
            day: tm.tm_mday,
            hour: tm.tm_hour,
            minute: tm.tm_min,
            second: tm.tm_sec,
            weekday: (tm.tm_wday as usize).min(6),
            nanos: since.subsec_nanos(),
            offset: tm.tm_gmtoff,
            unix: since.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn format(pattern: &str, message: &str) -> String {
        let mut out = String::new();
        let line = Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_000_000_000_123_456),
            thread: 42,
            level: "info",
            component: "main",
            file: "proxy/src/server.rs",
            line: 7,
            message,
        };
        Format::parse(pattern).write(&mut out, &line);
        out
    }

    #[test]
    fn flags_paddings_and_text() {
        assert_eq!(format("[%t][%l][%n] [%g:%#] %v", "hi"), "[42][info][main] [proxy/src/server.rs:7] hi");
        assert_eq!(format("%8l|%-8l|%=8l|%2!l|%L", ""), "    info|info    |  info  |in|I");
        assert_eq!(format("%s %@ %% %e %f %E", ""), "server.rs proxy/src/server.rs:7 % 123 123456 1000000000");
        assert_eq!(format("%q 100% %", ""), "%q 100% %");
        assert_eq!(format("{\"m\":\"%j\"} %_", "a\"\n"), "{\"m\":\"a\\\"\\n\"} a\\\"\\n");
    }

    #[test]
    fn the_default_format_is_envoys() {
        let line = format(DEFAULT_FORMAT, "starting");
        let regex = regex::Regex::new(
            r"^\[2001-09-\d\d \d\d:\d\d:\d\d\.123\]\[42\]\[info\]\[main\] \[proxy/src/server.rs:7\] starting$",
        );
        assert!(regex.expect("valid").is_match(&line), "{line}");
    }
}
