//! PostgreSQL: a column holds what is of its type and nothing else. What is not goes beside it, and the column gets the
//! nearest value that it can hold: NULL where there is none, or a placeholder where it takes no NULL.
//!
//! A TIMESTAMP is a point in time and not a text, so one spelling of each point is what such a column holds:
//! [`canonical`], in which what larder stamps is written and in which texts order as times do. No text of PostgreSQL
//! has a NUL character.

use larder_guest::SqlValue;
use larder_model::FieldType;
use serde_json::{Map, Value};

use super::{Column, Kind, nearest_double};

/// The longest VARCHAR that there is.
pub(super) const LENGTH_MAX: u32 = 10_485_760;

/// Of the longest form that is read as a time: `2025-06-30T12:00:00.000000000+00:00` and room for more digits.
const TIME_BYTES_MAX: usize = 64;

const CANONICAL_BYTES: usize = "2025-06-30T12:00:00.000000Z".len();

/// Whether the column keeps a text as it is.
pub(super) fn keeps_text(column: &Column, text: &str) -> bool {
    match column.kind {
        Kind::Key | Kind::Field(FieldType::Text) => fits(column, text) && !text.contains('\0'),
        Kind::Field(FieldType::Timestamp) => {
            text.len() == CANONICAL_BYTES && timestamp(text).is_some_and(|canonical| canonical == text)
        }
        Kind::Field(_) => false,
    }
}

fn fits(column: &Column, text: &str) -> bool {
    let max = column.max_length.map_or(usize::MAX, |max| max as usize);
    let is_short = text.len() <= max || text.chars().nth(max).is_none();
    is_short && text.len() <= column.indexed_bytes_max.unwrap_or(usize::MAX)
}

/// The beginning of a text that fits.
fn cut(column: &Column, text: &str) -> String {
    let chars = column.max_length.map_or(usize::MAX, |max| max as usize);
    let bytes = column.indexed_bytes_max.unwrap_or(usize::MAX);
    let end = text.char_indices().take(chars).map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= bytes).last();
    text[..end.unwrap_or(0)].to_owned()
}

/// The nearest to a value that the column holds.
pub(super) fn nearest(column: &Column, value: &Value) -> SqlValue {
    let or = |placeholder| if column.not_null { placeholder } else { SqlValue::Null };
    let ty = match column.kind {
        Kind::Key => FieldType::Text,
        Kind::Field(ty) => ty,
    };
    match (ty, value) {
        (FieldType::Text, value) => {
            let text = match value {
                Value::String(text) => text.replace('\0', ""),
                value => value.to_string(),
            };
            SqlValue::Text(if fits(column, &text) { text } else { cut(column, &text) })
        }
        // Its `\u0000` would be an error of the server for whoever looks into it there.
        (FieldType::Json, value) => match has_nul(value) {
            true => SqlValue::Text(without_nul(value).to_string()),
            false => SqlValue::Text(value.to_string()),
        },
        (FieldType::Integer, Value::Number(number)) => {
            let integer = super::integer(number.as_str()).unwrap_or(nearest_double(number.as_str()) as i64);
            SqlValue::Integer(match column.is_wide {
                true => integer,
                false => integer.clamp(i32::MIN.into(), i32::MAX.into()),
            })
        }
        (FieldType::Integer, _) => or(SqlValue::Integer(0)),
        (FieldType::Number, Value::Number(number)) => SqlValue::Number(nearest_double(number.as_str())),
        (FieldType::Number, _) => or(SqlValue::Number(0.0)),
        (FieldType::Boolean, Value::Bool(value)) => SqlValue::Boolean(*value),
        (FieldType::Boolean, _) => or(SqlValue::Boolean(false)),
        (FieldType::Timestamp, value) => match value.as_str().and_then(timestamp) {
            Some(canonical) => SqlValue::Text(canonical),
            None => or(SqlValue::Text("1970-01-01T00:00:00.000000Z".to_owned())),
        },
    }
}

/// Whether there is a NUL character anywhere in it, also in a name.
pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(elements) => elements.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// The value without its NUL characters. Of two names that become one, the first stays.
fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "")),
        Value::Array(elements) => Value::Array(elements.iter().map(without_nul).collect()),
        Value::Object(members) => {
            let mut cleared = Map::new();
            for (name, value) in members {
                cleared.entry(name.replace('\0', "")).or_insert_with(|| without_nul(value));
            }
            Value::Object(cleared)
        }
        value => value.clone(),
    }
}

/// The one spelling of a point in time that a column holds, to the microsecond: `2025-06-30T12:00:00.000000Z`. None for
/// what is no time of RFC 3339, or of the years that four digits name.
pub(crate) fn timestamp(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() < "2025-06-30T12:00:00Z".len() || bytes.len() > TIME_BYTES_MAX {
        return None;
    }
    let digits = |from: usize, count: usize| -> Option<i64> {
        let digits = bytes.get(from..from + count)?;
        digits.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
    };
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    let are_separators = bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't' | b' ')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !are_separators || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = &bytes[19..];
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return None;
        }
        micros = (0..6).fold(0, |sum, i| sum * 10 + fraction[..count].get(i).map_or(0, |byte| i64::from(byte - b'0')));
        rest = &fraction[count..];
    }
    let offset_minutes = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1 @ b'0'..=b'9', h2 @ b'0'..=b'9', b':', m1 @ b'0'..=b'9', m2 @ b'0'..=b'9'] => {
            let two = |a: &u8, b: &u8| i64::from(a - b'0') * 10 + i64::from(b - b'0');
            let (hours, minutes) = (two(h1, h2), two(m1, m2));
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = hours * 60 + minutes;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let days = days_from_civil(year, month, day)?;
    let minutes = days * 1440 + hour * 60 + minute - offset_minutes;
    let (year, month, day) = civil_from_days(minutes.div_euclid(1440));
    let minutes = minutes.rem_euclid(1440);
    (1..=9999).contains(&year).then(|| spelt(year, month, day, minutes * 60 + second, micros))
}

/// The spelling of a time of a day; one of a thousand in a batch, so the digits are put where they belong.
fn spelt(year: i64, month: i64, day: i64, second_of_day: i64, micros: i64) -> String {
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |places: std::ops::Range<usize>, mut number: i64| {
        for digit in text[places].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0..4, year);
    put(5..7, month);
    put(8..10, day);
    put(11..13, second_of_day / 3600);
    put(14..16, second_of_day / 60 % 60);
    put(17..19, second_of_day % 60);
    put(20..26, micros);
    String::from_utf8_lossy(&text).into_owned()
}

/// The next point in time that a column holds, a microsecond later.
pub(crate) fn after(canonical: &str) -> Option<String> {
    let number = |from: usize, to: usize| canonical.get(from..to)?.parse::<i64>().ok();
    let days = days_from_civil(number(0, 4)?, number(5, 7)?, number(8, 10)?)?;
    let seconds = (days * 24 + number(11, 13)?) * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let micros = seconds * 1_000_000 + number(20, 26)? + 1;
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    (1..=9999).contains(&year).then(|| spelt(year, month, day, second, micros))
}

/// Days since the first of January 1970; none where there is no such day. The calendar's cycle of 400 years is counted
/// from the first of March, so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// The other way round.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let years = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * years + years / 4 - years / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (years + era * 400 + i64::from(month <= 2), month, day)
}

/// A time as the server writes it (`2025-06-30 12:00:00.5`), in its one spelling. What has none stays as the server has
/// it: `infinity`, years before Christ, years of five digits.
pub(super) fn fetched_timestamp(text: &str) -> String {
    let is_time = text.len() >= 19 && text.as_bytes()[4] == b'-' && !text.ends_with("BC");
    match is_time {
        true => timestamp(&format!("{text}Z")).unwrap_or_else(|| text.to_owned()),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_one_spelling() {
        for (text, expected) in [
            ("2025-06-30T12:00:00Z", Some("2025-06-30T12:00:00.000000Z")),
            ("2025-06-30T12:00:00.5Z", Some("2025-06-30T12:00:00.500000Z")),
            ("2025-06-30t12:00:00.123456789z", Some("2025-06-30T12:00:00.123456Z")),
            ("2025-06-30 12:00:00+02:00", Some("2025-06-30T10:00:00.000000Z")),
            ("2024-12-31T23:30:00-01:45", Some("2025-01-01T01:15:00.000000Z")),
            ("2024-03-01T00:15:00+00:30", Some("2024-02-29T23:45:00.000000Z")),
            ("1900-03-01T00:00:00+00:01", Some("1900-02-28T23:59:00.000000Z")),
            ("2000-02-29T00:00:00Z", Some("2000-02-29T00:00:00.000000Z")),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00.000000Z")),
            ("9999-12-31T23:59:59.999999Z", Some("9999-12-31T23:59:59.999999Z")),
            ("9999-12-31T23:59:59-00:01", None),
            ("0001-01-01T00:00:00+00:01", None),
            ("0000-01-01T00:00:00Z", None),
            ("1900-02-29T00:00:00Z", None),
            ("2025-13-01T00:00:00Z", None),
            ("2025-04-31T00:00:00Z", None),
            ("2025-06-30T24:00:00Z", None),
            ("2025-06-30T12:00:60Z", None),
            ("2025-06-30T12:00:00", None),
            ("2025-06-30T12:00:00.Z", None),
            ("2025-06-30T12:00:00+0200", None),
            ("2025-06-30T12:00:00+24:00", None),
            ("2025-06-30", None),
            ("now", None),
            ("2025-06-30T12:00:00Zé", None),
            ("é025-06-30T12:00:00Z", None),
            ("infinity", None),
        ] {
            assert_eq!(timestamp(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        let mut days = days_from_civil(1, 1, 1).unwrap();
        assert_eq!(days, -719_162);
        for year in 1..=2100 {
            for month in 1..=12 {
                for day in 1..=31 {
                    let Some(counted) = days_from_civil(year, month, day) else { continue };
                    assert_eq!(counted, days);
                    assert_eq!(civil_from_days(days), (year, month, day));
                    days += 1;
                }
            }
        }
        assert_eq!(days_from_civil(1970, 1, 1), Some(0));
    }

    #[test]
    fn what_the_server_writes_becomes_the_one_spelling_or_stays() {
        for (text, expected) in [
            ("2025-06-30 12:00:00", "2025-06-30T12:00:00.000000Z"),
            ("2025-06-30 12:00:00.5", "2025-06-30T12:00:00.500000Z"),
            ("infinity", "infinity"),
            ("-infinity", "-infinity"),
            ("0044-03-15 00:00:00 BC", "0044-03-15 00:00:00 BC"),
            ("10000-01-01 00:00:00", "10000-01-01 00:00:00"),
        ] {
            assert_eq!(fetched_timestamp(text), expected);
        }
    }
}
