//! JSON numbers as text, by their exact decimal value: no digit is lost and nothing overflows, because nothing is
//! converted to a machine number. Texts are expected to be JSON numbers ([`is_valid`]); others give some answer, never
//! a panic.

use std::{borrow::Cow, cmp::Ordering};

/// Exponents of more digits than this are not added to. It leaves room in an `i128` for the length of any text.
const EXPONENT_DIGITS_MAX: usize = 36;

/// Whether the text is a JSON number.
pub fn is_valid(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = split_exponent(unsigned);
    let exponent_valid = exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
    let (integer, fraction) = match mantissa.split_once('.') {
        Some((integer, fraction)) => (integer, Some(fraction)),
        None => (mantissa, None),
    };
    exponent_valid && digits(integer) && (integer == "0" || !integer.starts_with('0')) && fraction.is_none_or(digits)
}

/// Whether it is spelt as an integer: without a point and without an exponent. `1.0` and `1e3` are not.
pub fn is_integer(text: &str) -> bool {
    !text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
}

/// One spelling for each number that must be kept apart from others: two numbers are the same to the contract where
/// their canonical texts are.
///
/// Integer spellings stay as they are, `-0` too. Others become `[-]DIGITSe[-]EXPONENT`, where the digits neither start
/// nor end with a zero: `1.50` and `15e-1` are `15e-1`, `1.0` is `1e0`, `-0.0` is `-0e0`. The exponent tells them from
/// integers, and the text is itself JSON and canonical. An exponent of more than 36 digits is not calculated with: such
/// a number stays as it is spelt, so it may be taken for different from its equal, but never for equal to another.
pub fn canonical(text: &str) -> Cow<'_, str> {
    if is_integer(text) {
        return Cow::Borrowed(text);
    }
    let decimal = Decimal::new(text);
    let sign = if decimal.negative { "-" } else { "" };
    let digits_count = decimal.integer.len() + decimal.fraction.len();
    if digits_count == 0 {
        return Cow::Owned(format!("{sign}0e0"));
    }
    if !decimal.exact {
        return Cow::Borrowed(text);
    }
    let exponent = decimal.magnitude - digits_count as i128;
    Cow::Owned(format!("{sign}{}{}e{exponent}", decimal.integer, decimal.fraction))
}

/// Compares by exact decimal value: `1` equals `1.0`, and `-0` equals `0`.
///
/// Exponents of more than 36 digits count as one largest or smallest exponent; the order stays total.
pub fn compare(a: &str, b: &str) -> Ordering {
    if let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) {
        return a.cmp(&b);
    }
    let (a, b) = (Decimal::new(a), Decimal::new(b));
    a.sign().cmp(&b.sign()).then_with(|| {
        if a.sign() == 0 {
            return Ordering::Equal;
        }
        let absolute = a.magnitude.cmp(&b.magnitude).then_with(|| a.digits().cmp(b.digits()));
        if a.negative { absolute.reverse() } else { absolute }
    })
}

/// `0.DIGITS` times ten to the power of `magnitude`, where DIGITS is `integer` followed by `fraction` and neither
/// starts nor ends with a zero. No digits at all are the number zero.
struct Decimal<'a> {
    negative: bool,
    integer: &'a str,
    fraction: &'a str,
    magnitude: i128,
    /// Whether `magnitude` is what the text says, rather than bounded.
    exact: bool,
}

impl<'a> Decimal<'a> {
    fn new(text: &'a str) -> Self {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = split_exponent(unsigned);
        let (exponent, exact) = exponent.map_or((0, true), read_exponent);
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let integer = integer.trim_start_matches('0');
        let written = fraction.len();
        let fraction = if integer.is_empty() { fraction.trim_start_matches('0') } else { fraction };
        let magnitude = exponent + integer.len() as i128 - (written - fraction.len()) as i128;
        let fraction = fraction.trim_end_matches('0');
        let integer = if fraction.is_empty() { integer.trim_end_matches('0') } else { integer };
        Decimal { negative, integer, fraction, magnitude, exact }
    }

    fn digits(&self) -> impl Iterator<Item = u8> {
        self.integer.bytes().chain(self.fraction.bytes())
    }

    fn sign(&self) -> i8 {
        match (self.integer.is_empty() && self.fraction.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }
}

fn split_exponent(text: &str) -> (&str, Option<&str>) {
    match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    }
}

/// The exponent, and whether it is exact.
fn read_exponent(text: &str) -> (i128, bool) {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.trim_start_matches('0');
    if digits.len() > EXPONENT_DIGITS_MAX {
        return (sign * 10_i128.pow(EXPONENT_DIGITS_MAX as u32 + 1), false);
    }
    (sign * digits.parse::<i128>().unwrap_or(0), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_is_one_spelling_of_a_value() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "-0"),
            ("100", "100"),
            ("1234567890123456789012345678901234567890", "1234567890123456789012345678901234567890"),
            ("1.0", "1e0"),
            ("1e0", "1e0"),
            ("1E+0", "1e0"),
            ("10e-1", "1e0"),
            ("1.50", "15e-1"),
            ("15e-1", "15e-1"),
            ("0.15E1", "15e-1"),
            ("-0.0015", "-15e-4"),
            ("0.0", "0e0"),
            ("-0.0", "-0e0"),
            ("0e999999999999999999999999999999999999999999", "0e0"),
            ("100.0", "1e2"),
            ("100.010", "10001e-2"),
            ("1e400", "1e400"),
            ("1e0000000000000000000000000000000000000000000000000007", "1e7"),
            ("1e99999999999999999999", "1e99999999999999999999"),
            ("10e99999999999999999999", "1e100000000000000000000"),
            ("0.1e-99999999999999999999", "1e-100000000000000000000"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
            assert_eq!(canonical(expected), expected, "canonical again: {text}");
            assert!(is_valid(expected), "{expected}");
            assert_eq!(is_integer(expected), is_integer(text), "{text}");
        }
        let absurd = format!("1.0e{}", "9".repeat(1000));
        assert_eq!(canonical(&absurd), absurd);
    }

    #[test]
    fn comparison_is_exact_whatever_the_spelling() {
        let huge = format!("1e{}", "9".repeat(50));
        let tiny = format!("1e-{}", "9".repeat(50));
        let ascending = [
            vec![format!("-{huge}"), format!("-{huge}")],
            vec!["-1e400".to_owned(), "-10e399".to_owned()],
            vec!["-9007199254740993".to_owned(), "-9007199254740993.0".to_owned()],
            vec!["-9007199254740992".to_owned()],
            vec!["-1.5".to_owned(), "-15e-1".to_owned()],
            vec!["-1".to_owned()],
            vec![format!("-{tiny}")],
            vec!["0".to_owned(), "-0".to_owned(), "0.0".to_owned(), "-0e5".to_owned(), format!("0e{}", "9".repeat(50))],
            vec![tiny],
            vec!["1e-400".to_owned()],
            vec!["0.1".to_owned(), "1e-1".to_owned(), "0.10".to_owned()],
            vec!["0.10000000000000000000000000000001".to_owned()],
            vec!["1".to_owned(), "1.0".to_owned(), "10E-1".to_owned()],
            vec!["9".to_owned()],
            vec!["10".to_owned(), "1e1".to_owned()],
            vec!["9007199254740992".to_owned()],
            vec!["9007199254740993".to_owned()],
            vec!["9223372036854775807".to_owned()],
            vec!["9223372036854775808".to_owned()],
            vec!["1e400".to_owned()],
            vec![huge],
        ];
        for (i, left) in ascending.iter().enumerate() {
            for (j, right) in ascending.iter().enumerate() {
                for a in left {
                    for b in right {
                        assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
                    }
                }
            }
        }
    }

    /// Small numbers in many spellings, against integers scaled by ten to the power of 20.
    #[test]
    fn comparison_and_canonical_text_agree_with_scaled_integers() {
        let mut numbers = Vec::new();
        for mantissa in ["0", "1", "10", "12", "100", "120"] {
            for fraction in ["", ".0", ".2", ".02", ".20", ".002"] {
                for exponent in -3_i32..=3 {
                    for sign in ["", "-"] {
                        let digits = format!("{mantissa}{}", fraction.trim_start_matches('.'));
                        let shift = 20 + exponent - fraction.len().saturating_sub(1) as i32;
                        let scaled = digits.parse::<i128>().unwrap() * 10_i128.pow(shift as u32);
                        let scaled = if sign.is_empty() { scaled } else { -scaled };
                        numbers.push((format!("{sign}{mantissa}{fraction}e{exponent}"), sign, scaled));
                    }
                }
            }
        }
        for (a, a_sign, a_scaled) in &numbers {
            for (b, b_sign, b_scaled) in &numbers {
                assert_eq!(compare(a, b), a_scaled.cmp(b_scaled), "{a} and {b}");
                let same = a_scaled == b_scaled && a_sign == b_sign;
                assert_eq!(canonical(a) == canonical(b), same, "{a} and {b}");
            }
        }
    }

    #[test]
    fn only_json_numbers_are_valid() {
        for text in ["0", "-0", "10", "1.5", "-1.50e-07", "1E+5", "0e0"] {
            assert!(is_valid(text), "{text}");
        }
        for text in ["", "-", "+1", "01", "-01.5", "1.", ".5", "1e", "1e+", "1.5.2", "1e5e5", "NaN", " 1", "1 ", "١"] {
            assert!(!is_valid(text), "{text}");
            let _ = (canonical(text), compare(text, "1.5"));
        }
    }
}
