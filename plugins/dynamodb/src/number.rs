//! Numbers as the service holds them: 38 significant digits, a bounded exponent, and one spelling for each value.

use larder_model::number;

/// The most significant digits.
const DIGITS_MAX: usize = 38;

/// The exponents of ten that the first digit may have.
const MAGNITUDES: std::ops::RangeInclusive<i64> = -130..=125;

/// A fraction is spelt with an exponent where more zeros than this would stand before its digits.
const LEADING_ZEROS_MAX: i64 = 6;

/// `DIGITS` times ten to the power of `exponent`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Neither the first nor the last is a zero; none at all for zero.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// None where the exponent is beyond all bounds, or where the text is no number.
    fn parse(text: &str) -> Option<Decimal> {
        if !number::is_valid(text) {
            return None;
        }
        let canonical = number::canonical(text);
        let (negative, unsigned) = match canonical.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, &*canonical),
        };
        let (mantissa, exponent) = match unsigned.split_once('e') {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (unsigned, 0),
        };
        let digits = mantissa.trim_start_matches('0').trim_end_matches('0');
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let zeros = mantissa.len() - mantissa.trim_end_matches('0').len();
        Some(Decimal { negative, digits: digits.to_owned(), exponent: exponent.checked_add(zeros as i64)? })
    }

    fn magnitude(&self) -> i64 {
        self.exponent.saturating_add(self.digits.len() as i64 - 1)
    }

    /// The smallest digits that the service is said to keep are those of its smallest number.
    fn fits(&self) -> bool {
        self.digits.is_empty()
            || self.digits.len() <= DIGITS_MAX
                && MAGNITUDES.contains(&self.magnitude())
                && self.exponent >= *MAGNITUDES.start()
    }

    /// An integer of few digits is spelt as one, and so read as one.
    fn spelt(&self) -> String {
        if self.digits.is_empty() {
            return "0".to_owned();
        }
        let (sign, digits) = (if self.negative { "-" } else { "" }, &self.digits);
        let point = digits.len() as i64 + self.exponent;
        if self.exponent >= 0 && point <= DIGITS_MAX as i64 {
            format!("{sign}{digits}{}", "0".repeat(self.exponent as usize))
        } else if self.exponent < 0 && point > 0 {
            let (integer, fraction) = digits.split_at(point as usize);
            format!("{sign}{integer}.{fraction}")
        } else if point <= 0 && -point <= LEADING_ZEROS_MAX {
            format!("{sign}0.{}{digits}", "0".repeat(-point as usize))
        } else {
            format!("{sign}{digits}e{}", self.exponent)
        }
    }
}

/// The JSON number that a number of the service's is read as, the same for each of its spellings.
pub(crate) fn read(text: &str) -> Option<String> {
    Some(Decimal::parse(text.strip_prefix('+').unwrap_or(text))?.spelt())
}

/// The value as the service takes it, where it can hold it.
pub(crate) fn exactly(text: &str) -> Option<String> {
    Decimal::parse(text).filter(Decimal::fits).map(|decimal| decimal.spelt())
}

/// Something near to the value that the service can hold; none where there is nothing near.
pub(crate) fn nearly(text: &str) -> Option<String> {
    let mut decimal = Decimal::parse(text)?;
    if let Some(dropped) = decimal.digits.len().checked_sub(DIGITS_MAX) {
        decimal.digits.truncate(DIGITS_MAX);
        let kept = decimal.digits.trim_end_matches('0').len();
        decimal.exponent = decimal.exponent.checked_add((dropped + DIGITS_MAX - kept) as i64)?;
        decimal.digits.truncate(kept);
    }
    match decimal.fits() {
        true => Some(decimal.spelt()),
        false if decimal.magnitude() > 0 => None,
        false => Some("0".to_owned()),
    }
}

/// Significant digits, by which the service counts a number's size.
pub(crate) fn digits(text: &str) -> usize {
    Decimal::parse(text).map_or(DIGITS_MAX, |decimal| decimal.digits.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_one_spelling() {
        for (texts, expected) in [
            (&["0", "-0", "0.0", "0e9"][..], "0"),
            (&["1", "1.0", "+1", "10e-1"], "1"),
            (&["1200", "1.2e3", "12E+2"], "1200"),
            (&["-0.42", "-0.420", "-42e-2"], "-0.42"),
            (&["12.5", "125e-1"], "12.5"),
            (&["0.000001", "1e-6"], "0.000001"),
            (&["1e-130"], "1e-130"),
            (&["1e125", "1E+125"], "1e125"),
            (&["99999999999999999999999999999999999999"], "99999999999999999999999999999999999999"),
        ] {
            for text in texts {
                assert_eq!(read(text).as_deref(), Some(expected), "{text}");
                assert_eq!(exactly(text.trim_start_matches('+')).as_deref(), Some(expected), "{text}");
            }
        }
        assert_eq!(read(&format!("1{}", "0".repeat(125))).as_deref(), Some("1e125"));
    }

    #[test]
    fn what_does_not_fit_is_rounded_or_nothing() {
        for (text, near) in [
            ("1234567890123456789012345678901234567890", Some("12345678901234567890123456789012345678e2")),
            ("0.1234567890123456789012345678901234567890", Some("0.12345678901234567890123456789012345678")),
            ("1e-131", Some("0")),
            ("-1e-400", Some("0")),
            ("1e126", None),
            ("-1e400", None),
        ] {
            assert_eq!(exactly(text), None, "{text}");
            assert_eq!(nearly(text).as_deref(), near, "{text}");
        }
        assert_eq!(exactly(&format!("1e{}", "9".repeat(50))), None);
        assert_eq!(nearly(&format!("1e{}", "9".repeat(50))), None);
        assert_eq!((digits("0"), digits("-12300"), digits("0.0450")), (0, 3, 2));
    }
}
