//! Sizes and times, as people read and type them.
//!
//! Every face calls it. Sizes are binary in both directions and say so when shown: `256M` typed is 256 × 1024², shown as
//! `256 MiB`, because that is what a memory limit means to the kernel. Times are milliseconds inside.
//!
//! Always true: what is shown for a limit that somebody typed in whole units is what was typed. Signs of units are those
//! of the SI and of IEC 80000-13, the same in English and French.
//! Deliberately not here: points in time, dates and time zones.

use crate::language::Language;
use crate::limits::NUMBER_MAX;

const SIZE_UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size in binary units, with a decimal below 10 of a unit: `17 B`, `1.5 GiB`, `256 MiB`.
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    let mut size = 1024u128;
    // By what is shown: 1023.7 KiB would be shown as 1024 KiB.
    while u128::from(count) * 2 >= (2 * 1024 - 1) * size && unit + 1 < SIZE_UNITS.len() {
        unit += 1;
        size *= 1024;
    }
    format!("{} {}", with_decimal(u128::from(count), size), SIZE_UNITS[unit])
}

/// A part of a unit, rounded: one decimal below 10 unless it is zero, none above.
fn with_decimal(value: u128, unit: u128) -> String {
    let tenths = (value * 20 / unit).div_ceil(2);
    match (tenths / 10, tenths % 10) {
        (whole, tenth) if whole < 10 && tenth > 0 => format!("{whole}.{tenth}"),
        (whole, _) if whole < 10 => whole.to_string(),
        _ => ((value * 2 / unit).div_ceil(2)).to_string(),
    }
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Times below this are shown in seconds: people compare run times, and seconds compare more easily.
const SECONDS_BELOW: u64 = 5 * MINUTE;

/// A time span from milliseconds: `200 ms`, `1.5 s`, `180 s`, `12 min 30 s`, `3 h 5 min`, `2 d 4 h`.
pub fn duration(ms: u64) -> String {
    if ms < SECOND {
        return format!("{ms} ms");
    }
    if ms < SECONDS_BELOW {
        return format!("{} s", with_decimal(u128::from(ms), u128::from(SECOND)));
    }
    let (unit, name, part, part_name) = match ms {
        0..HOUR => (MINUTE, "min", SECOND, "s"),
        HOUR..DAY => (HOUR, "h", MINUTE, "min"),
        _ => (DAY, "d", HOUR, "h"),
    };
    match (ms / unit, ms % unit / part) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, parts) => format!("{whole} {name} {parts} {part_name}"),
    }
}

/// How long ago something was, from milliseconds, in one unit: `now`, `12 s ago`, `il y a 3 min`.
pub fn age(ms: u64, language: Language) -> String {
    let span = match ms {
        0..SECOND => return language.pick("now", "à l'instant").to_owned(),
        SECOND..MINUTE => format!("{} s", ms / SECOND),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..DAY => format!("{} h", ms / HOUR),
        _ => format!("{} d", ms / DAY),
    };
    match language {
        Language::English => format!("{span} ago"),
        Language::French => format!("il y a {span}"),
    }
}

/// A moment of its day, from milliseconds since 1970: `14:03:07Z`. In universal time, so that what several machines say
/// can be compared.
pub fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms % DAY / SECOND;
    format!("{:02}:{:02}:{:02}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number, or an unknown unit.
    #[error("{0:?} is not a duration: write a number and a unit, such as 200ms, 5s, 2m, 1h or 1d")]
    NotADuration(String),
    /// A number alone.
    #[error("{0:?} has no unit: did you mean {0}s (seconds) or {0}ms (milliseconds)?")]
    NoUnit(String),
    /// Zero, or less than a millisecond.
    #[error("{0:?} is no time at all: the shortest duration is 1ms")]
    Zero(String),
    /// More than 2^53 - 1 milliseconds.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Milliseconds of `200ms`, `5s`, `1.5s`, `2m` (or `2min`), `1h`, `1d`. Upper and lower case and a space before the
/// unit do not matter.
///
/// # Errors
/// No unit, zero, too long, or no duration at all; each says what to write instead.
pub fn parse_duration_ms(text: &str) -> Result<u64, DurationError> {
    let own = || text.to_owned();
    let (number, unit) = split_unit(text);
    let unit_ms = match unit.to_ascii_lowercase().as_str() {
        "ms" => 1,
        "s" => SECOND,
        "m" | "min" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        "" if Decimal::parse(number).is_some() => return Err(DurationError::NoUnit(own())),
        _ => return Err(DurationError::NotADuration(own())),
    };
    let number = Decimal::parse(number).ok_or_else(|| DurationError::NotADuration(own()))?;
    match number.times(unit_ms) {
        Some(0) => Err(DurationError::Zero(own())),
        Some(ms) => Ok(ms),
        None => Err(DurationError::TooLong(own())),
    }
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or an unknown unit.
    #[error("{0:?} is not a size: write a number of bytes, or one with a unit, such as 64K, 256M or 1.5G")]
    NotASize(String),
    /// Zero, or less than a byte.
    #[error("{0:?} is nothing: the smallest size is 1 byte")]
    Zero(String),
    /// More than 2^53 - 1 bytes.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

/// Bytes of `4096`, `64K`, `256M`, `1.5G`, `2T`; `256MB` and `256MiB` mean the same as `256M`. Units are binary: `1K` is
/// 1024 bytes. Upper and lower case and a space before the unit do not matter.
///
/// # Errors
/// Zero, too large, or no size at all; each says what to write instead.
pub fn parse_size_bytes(text: &str) -> Result<u64, SizeError> {
    let own = || text.to_owned();
    let (number, unit) = split_unit(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::NotASize(own())),
    };
    let number = Decimal::parse(number).ok_or_else(|| SizeError::NotASize(own()))?;
    match number.times(1 << shift) {
        Some(0) => Err(SizeError::Zero(own())),
        Some(bytes) => Ok(bytes),
        None => Err(SizeError::TooLarge(own())),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// A number as typed, exact: floating point would turn 0.3s into 299 ms.
struct Decimal {
    digits: u128,
    scale: u128,
}

impl Decimal {
    /// Digits, at most one point with digits on both sides; no sign, no exponent.
    fn parse(text: &str) -> Option<Decimal> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        if whole.is_empty() || part.is_empty() || part.len() > 9 {
            return None;
        }
        let scale = 10u128.pow(part.len() as u32);
        // More digits than fit are a number too, only too large for everything.
        let whole =
            if whole.bytes().all(|b| b.is_ascii_digit()) { whole.parse().unwrap_or(u64::MAX) } else { return None };
        Some(Decimal { digits: u128::from(whole) * scale + part.parse::<u128>().ok()?, scale })
    }

    /// That many units, rounded down; nothing when it is over the limit.
    fn times(&self, unit: u64) -> Option<u64> {
        let product = self.digits.checked_mul(u128::from(unit))? / self.scale;
        u64::try_from(product).ok().filter(|number| *number <= NUMBER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // We want to know that a moment is read as a clock shows it, on any day.
    #[test]
    fn a_moment_is_a_time_of_day() {
        assert_eq!(time_of_day(0), "00:00:00Z");
        assert_eq!(time_of_day(1_763_726_587_999), "12:03:07Z");
        assert_eq!(time_of_day(DAY - 1), "23:59:59Z");
    }

    // We want to read sizes at and around every border.
    #[test]
    fn sizes_are_shown() {
        let shown = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (1_536, "1.5 KiB"),
            (10_188, "9.9 KiB"),
            (10_239, "10 KiB"),
            (256 << 20, "256 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            ((3 << 30) / 2, "1.5 GiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (count, text) in shown {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    // We want to read durations at and around every border.
    #[test]
    fn durations_are_shown() {
        let shown = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_500, "1.5 s"),
            (9_960, "10 s"),
            (180_000, "180 s"),
            (300_000, "5 min"),
            (750_000, "12 min 30 s"),
            (3_600_000, "1 h"),
            (11_100_000, "3 h 5 min"),
            (187_200_000, "2 d 4 h"),
        ];
        for (ms, text) in shown {
            assert_eq!(duration(ms), text, "{ms}");
        }
        assert_eq!(age(10, Language::English), "now");
        assert_eq!(age(12_900, Language::English), "12 s ago");
        assert_eq!(age(3 * DAY, Language::English), "3 d ago");
        assert_eq!(age(200_000, Language::French), "il y a 3 min");
        assert!(!duration(u64::MAX).is_empty());
    }

    // We want to know what may be typed, and what is said about everything else.
    #[test]
    fn durations_are_read() {
        for (text, ms) in [("5s", 5_000), ("200ms", 200), ("2m", 120_000), ("1h", 3_600_000), ("1d", DAY)] {
            assert_eq!(parse_duration_ms(text), Ok(ms));
        }
        for (text, ms) in [("1.5s", 1_500), ("0.3s", 300), (" 2 min ", 120_000), ("5S", 5_000), ("0.001s", 1)] {
            assert_eq!(parse_duration_ms(text), Ok(ms));
        }
        assert_eq!(parse_duration_ms("5"), Err(DurationError::NoUnit("5".into())));
        for text in ["0s", "0ms", "0.0h", "0.5ms"] {
            assert_eq!(parse_duration_ms(text), Err(DurationError::Zero(text.into())));
        }
        for text in ["", "s", "-5s", "5x", "1e3s", "1m30s", ".5s", "5.s", "1.2.3s", "٥s", "five", "+5s"] {
            assert_eq!(parse_duration_ms(text), Err(DurationError::NotADuration(text.into())));
        }
        for text in ["9007199254740992ms", "999999999999999999999999999999999999999999d"] {
            assert_eq!(parse_duration_ms(text), Err(DurationError::TooLong(text.into())));
        }
        assert_eq!(parse_duration_ms("9007199254740991ms"), Ok(NUMBER_MAX));
    }

    // The same for sizes.
    #[test]
    fn sizes_are_read() {
        for (text, size) in [("256M", 256 << 20), ("1G", 1 << 30), ("64k", 65_536), ("1.5K", 1_536), ("512", 512)] {
            assert_eq!(parse_size_bytes(text), Ok(size));
        }
        for text in ["256MB", "256MiB", "256 mib", "262144K"] {
            assert_eq!(parse_size_bytes(text), Ok(256 << 20));
        }
        assert_eq!(parse_size_bytes("0M"), Err(SizeError::Zero("0M".into())));
        assert_eq!(parse_size_bytes("99999T"), Err(SizeError::TooLarge("99999T".into())));
        for text in ["", "M", "-1M", "1X", "1M1", "0x10"] {
            assert_eq!(parse_size_bytes(text), Err(SizeError::NotASize(text.into())));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        // We want to know that no text makes a parser panic, and that what was typed in whole units is shown as typed.
        #[test]
        fn any_text_is_answered(text in "\\PC{0,20}") {
            let _ = parse_duration_ms(&text);
            let _ = parse_size_bytes(&text);
        }

        #[test]
        fn what_is_typed_is_shown(count in 1u64..300) {
            prop_assert_eq!(duration(parse_duration_ms(&format!("{count}s")).expect("typed")), format!("{count} s"));
            prop_assert_eq!(bytes(parse_size_bytes(&format!("{count}M")).expect("typed")), format!("{count} MiB"));
        }

        #[test]
        fn any_number_is_shown(count: u64) {
            prop_assert!(bytes(count).len() <= 8);
            prop_assert!(!duration(count).is_empty());
        }
    }
}
