//! Quantities: `500m`, `1.5Gi`, `2e3`.
//!
//! A [`Quantity`] is a whole number of nano-units and the notation it was written in. Parsing rounds up to
//! the nano-unit and caps at 2^63-1 whole units, as Kubernetes does; printing gives the canonical form: no
//! fraction, the largest suffix that keeps the number whole.

use serde_json::Value;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
const MAX_UNITS: i128 = i64::MAX as i128;
/// Larger exponents cannot be meant and would overflow.
const MAX_EXPONENT: i32 = 27;

/// The text every malformed quantity is refused with.
pub const PATTERN_ERROR: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// The text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PATTERN_ERROR}")]
pub struct ParseError;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notation {
    /// Powers of 1000: `k`, `M`, `m`.
    Decimal,
    /// Powers of 1024: `Ki`, `Mi`.
    Binary,
    /// `1e3`.
    Exponent,
}

/// An amount of something.
#[derive(Debug, Clone, Copy, Eq)]
pub struct Quantity {
    nano: i128,
    notation: Notation,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}
impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.nano.hash(state);
    }
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity {
        nano: 0,
        notation: Notation::Decimal,
    };

    /// Whole units in decimal notation.
    pub fn units(n: i64) -> Quantity {
        Quantity {
            nano: i128::from(n) * NANO,
            notation: Notation::Decimal,
        }
    }
    /// Thousandths in decimal notation.
    pub fn milli(n: i64) -> Quantity {
        Quantity {
            nano: i128::from(n) * (NANO / 1000),
            notation: Notation::Decimal,
        }
    }
    /// Whole units in binary notation.
    pub fn bytes(n: i64) -> Quantity {
        Quantity {
            nano: i128::from(n) * NANO,
            notation: Notation::Binary,
        }
    }

    /// Parses a JSON string or number.
    pub fn from_value(value: &Value) -> Result<Quantity, ParseError> {
        match value {
            Value::String(s) => s.parse(),
            Value::Number(n) => n.to_string().parse(),
            _ => Err(ParseError),
        }
    }

    /// Whole units, rounded up.
    pub fn value(&self) -> i64 {
        ceil_div(self.nano, NANO).clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
    /// Thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        ceil_div(self.nano, NANO / 1000).clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
    /// Nearest floating point number.
    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }
    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }
    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nano.signum() as i32
    }
    /// The notation of the text it came from.
    pub fn notation(&self) -> Notation {
        self.notation
    }
    /// Sum, in the notation of the larger part that is not zero.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let notation = if self.nano == 0 {
            other.notation
        } else {
            self.notation
        };
        Quantity {
            nano: self.nano.saturating_add(other.nano),
            notation,
        }
    }
    /// Difference.
    pub fn minus(&self, other: &Quantity) -> Quantity {
        let notation = if self.nano == 0 {
            other.notation
        } else {
            self.notation
        };
        Quantity {
            nano: self.nano.saturating_sub(other.nano),
            notation,
        }
    }
}

/// The canonical text of a quantity, or nothing when it is malformed.
pub fn canonical(text: &str) -> Option<String> {
    text.parse::<Quantity>().ok().map(|q| q.to_string())
}

fn ceil_div(n: i128, d: i128) -> i128 {
    n.div_euclid(d) + i128::from(n.rem_euclid(d) != 0)
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseError);
        }
        let (notation, base, power) = scale(suffix)?;

        // digits * 10^-scale * base^power, in nano-units, rounded away from zero.
        let mut digits: i128 = 0;
        let mut sticky = false;
        let mut places: i32 = 0;
        let mut overflow = false;
        for (i, d) in whole.bytes().chain(fraction.bytes()).enumerate() {
            let after_point = i >= whole.len();
            match digits
                .checked_mul(10)
                .and_then(|n| n.checked_add(i128::from(d - b'0')))
            {
                // Thirty digits are more than anything that is not capped or rounded away.
                Some(n) if n < 1_000_000_000_000_000_000_000_000_000_000 => {
                    digits = n;
                    places += i32::from(after_point);
                }
                _ if after_point => sticky |= d != b'0',
                _ => overflow = true,
            }
        }
        let nano = if overflow {
            MAX_UNITS * NANO
        } else {
            let (mut num, mut den) = (digits, 1_i128);
            let mut exponent = 9 - places;
            let mut too_big = false;
            if base == 10 {
                exponent += power;
            } else {
                for _ in 0..power {
                    match num.checked_mul(1024) {
                        Some(n) => num = n,
                        None => too_big = true,
                    }
                }
            }
            while exponent > 0 {
                match num.checked_mul(10) {
                    Some(n) => num = n,
                    None => too_big = true,
                }
                exponent -= 1;
            }
            while exponent < 0 {
                match den.checked_mul(10) {
                    Some(n) => den = n,
                    None => {
                        sticky |= num != 0;
                        num = 0;
                    }
                }
                exponent += 1;
            }
            let up = num % den != 0 || sticky;
            if too_big {
                MAX_UNITS * NANO
            } else {
                (num / den + i128::from(up)).min(MAX_UNITS * NANO)
            }
        };
        Ok(Quantity {
            nano: if negative { -nano } else { nano },
            notation,
        })
    }
}

fn scale(suffix: &str) -> Result<(Notation, u32, i32), ParseError> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, i32); 6] = [("Ki", 1), ("Mi", 2), ("Gi", 3), ("Ti", 4), ("Pi", 5), ("Ei", 6)];
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Notation::Decimal, 10, *power));
    }
    if let Some((_, power)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Notation::Binary, 1024, *power));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let power: i32 = exponent.parse().map_err(|_| ParseError)?;
    Ok((
        Notation::Exponent,
        10,
        power.clamp(-2 * MAX_EXPONENT, MAX_EXPONENT),
    ))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        let notation = match self.notation {
            Notation::Binary if small || !self.is_whole() => Notation::Decimal,
            other => other,
        };
        if notation == Notation::Binary {
            let (mut n, mut power) = (self.nano / NANO, 0);
            while n % 1024 == 0 && power < 6 {
                n /= 1024;
                power += 1;
            }
            return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut n, mut exponent) = (self.nano, -9_i32);
        while n % 1000 == 0 && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        match (notation, exponent) {
            (Notation::Exponent, 0) => write!(f, "{n}"),
            (Notation::Exponent, e) => write!(f, "{n}e{e}"),
            (_, e) => {
                write!(
                    f,
                    "{n}{}",
                    ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(e / 3 + 3) as usize]
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Ki", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("100m", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("1000k", "1M"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-1", "1200e-3"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            ("0.1n", "1n"),
            ("1E", "1E"),
            ("9223372036854775808", "9223372036854775807"),
            ("100E", "9223372036854775807"),
            ("99999999999999999999999999999999999999999", "9223372036854775807"),
            ("0.00000000000000000000000000000000000000000000001", "1n"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "", "a", "1Kib", "1 Gi", "1.2.3", "--1", "1e", "Ki", ".", "1i", "1K",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_units() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -1);
        assert_eq!(q("1.5").milli_value(), 1500);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("1Gi").plus(&q("1Gi")).to_string(), "2Gi");
        assert_eq!(q("1").minus(&q("1500m")).to_string(), "-500m");
        assert!(q("1Ki") > q("1k"));
        assert_eq!(q("1"), q("1000m"));
        assert_eq!(Quantity::ZERO.plus(&q("1Mi")).to_string(), "1Mi");
        assert_eq!(Quantity::milli(250).to_string(), "250m");
        assert_eq!(Quantity::bytes(2048).to_string(), "2Ki");
    }

    proptest! {
        #[test]
        fn canonical_text_means_the_same(n in any::<i64>(), suffix in "(n|u|m|k|M|Ki|Mi|e3|e-3)?") {
            let a: Quantity = format!("{n}{suffix}").parse().unwrap();
            let b: Quantity = a.to_string().parse().unwrap();
            prop_assert_eq!(a, b);
            prop_assert_eq!(a.to_string(), b.to_string());
        }

        #[test]
        fn any_text_is_survived(text in "[-+0-9.eEinumkKMGTP]{0,60}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
