//! Unit properties from annotations: `org.systemd.property.TimeoutStopUSec: "uint64 30000000"`.
//!
//! Owns the reading of the values, which are written as GVariant text, as far as runc reads it and properties need it.

use super::properties::{Property, property};
use super::wire::Value;
use crate::error::{Error, Result};
use std::collections::HashMap;

const PREFIX: &str = "org.systemd.property.";

/// The properties that annotations name, sorted by name. As in runc, a name in `…Sec` stands for systemd's `…USec`, its
/// value in seconds.
///
/// # Errors
/// A configuration error naming the annotation, for a name that is no property's and for a value that can't be read.
pub(crate) fn properties(annotations: &HashMap<String, String>) -> Result<Vec<Property>> {
    let mut out = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let bad = |why: String| Error::config(format!("annotations[{key:?}]"), why);
        if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(bad("expected a property's name, letters only".into()));
        }
        let value = parse(text).map_err(|why| bad(format!("{text:?}: {why}")))?;
        let seconds = name.strip_suffix("Sec");
        out.push(match seconds {
            Some(stem) if stem.ends_with(|c: char| c.is_ascii_lowercase()) => {
                let micro = microseconds(&value)
                    .ok_or_else(|| bad(format!("{text:?}: expected a number of seconds")))?;
                property(format!("{stem}USec"), Value::U64(micro))
            }
            _ => property(name, value),
        });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

fn microseconds(v: &Value) -> Option<u64> {
    const SECOND: u64 = 1_000_000;
    let whole = match *v {
        Value::Byte(n) => u64::from(n),
        Value::U16(n) => u64::from(n),
        Value::U32(n) => u64::from(n),
        Value::U64(n) => n,
        Value::I16(n) => u64::try_from(n).ok()?,
        Value::I32(n) => u64::try_from(n).ok()?,
        Value::I64(n) => u64::try_from(n).ok()?,
        Value::Double(n) => {
            let micro = n * SECOND as f64;
            // Casts of floats saturate; what is no number of seconds is refused.
            return (n.is_finite() && n >= 0.0).then_some(micro as u64);
        }
        _ => return None,
    };
    whole.checked_mul(SECOND)
}

type Parsed<T> = std::result::Result<T, String>;

/// Reads one value of GVariant text: `true`, `'text'`, `12` (an int32), `uint64 12`, `1.5`, `['a', 'b']`, `@as []`.
fn parse(text: &str) -> Parsed<Value> {
    let mut p = Parser { rest: text.trim() };
    let value = p.value(None, 0)?;
    match p.rest.trim() {
        "" => Ok(value),
        more => Err(format!("{more:?} follows the value")),
    }
}

/// How deep arrays may nest.
const DEPTH: u32 = 8;

/// GVariant's words for types.
const WORDS: [(&str, &str); 12] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A run of what names and numbers are made of.
    fn word(&mut self) -> String {
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn value(&mut self, kind: Option<&str>, depth: u32) -> Parsed<Value> {
        if depth > DEPTH {
            return Err("nested too deeply".into());
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next() {
            None => Err("expected a value".into()),
            Some('@') => {
                let (sign, rest) = self.rest[1..].split_once(' ').ok_or("a type alone")?;
                self.rest = rest;
                if !known(sign) {
                    return Err(format!("type {sign:?} can't be had here"));
                }
                self.value(Some(sign), depth + 1)
            }
            Some('[') => self.array(kind, depth),
            Some('\'' | '"') => {
                let text = self.quoted()?;
                typed_text(kind.unwrap_or("s"), text)
            }
            Some('<' | '{' | '(') => Err("only plain values and arrays can be had here".into()),
            Some(_) => {
                let word = self.word();
                match (word.as_str(), kind) {
                    ("", _) => Err(format!("expected a value at {:?}", self.rest)),
                    ("true", None | Some("b")) => Ok(Value::Bool(true)),
                    ("false", None | Some("b")) => Ok(Value::Bool(false)),
                    (w, _) => match WORDS.iter().find(|t| t.0 == w) {
                        Some(t) => self.value(Some(t.1), depth + 1),
                        None => typed_number(kind, w),
                    },
                }
            }
        }
    }

    fn array(&mut self, kind: Option<&str>, depth: u32) -> Parsed<Value> {
        let of = match kind {
            None => None,
            Some(k) => Some(k.strip_prefix('a').ok_or("an array is no such value")?),
        };
        self.eat('[');
        let mut list = Vec::new();
        if !self.eat(']') {
            loop {
                // All are of the type of the first.
                let first = list.first().map(Value::signature);
                list.push(self.value(of.or(first.as_deref()), depth + 1)?);
                if self.eat(']') {
                    break;
                }
                if !self.eat(',') {
                    return Err("expected , or ] in an array".into());
                }
            }
        }
        let of = match (of, list.first()) {
            (Some(of), _) => of.to_owned(),
            (None, Some(v)) => v.signature(),
            (None, None) => return Err("an empty array needs its type, such as @as []".into()),
        };
        if list.iter().any(|v| v.signature() != of) {
            return Err("an array's values differ in type".into());
        }
        Ok(Value::Array(of, list))
    }

    fn quoted(&mut self) -> Parsed<String> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|c| c.1);
        let mut out = String::new();
        while let Some((at, c)) = chars.next() {
            if Some(c) == quote {
                self.rest = &self.rest[at + c.len_utf8()..];
                return Ok(out);
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next().map(|c| c.1) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c) if !c.is_ascii_alphanumeric() => out.push(c),
                _ => return Err("an escape that can't be had here".into()),
            }
        }
        Err("a quote is not closed".into())
    }
}

/// A plain type, or an array of one.
fn known(sign: &str) -> bool {
    let plain = sign.trim_start_matches('a');
    WORDS.iter().any(|t| t.1 == plain)
}

fn typed_text(kind: &str, text: String) -> Parsed<Value> {
    if text.contains('\0') {
        return Err("a string with a NUL".into());
    }
    match kind {
        "s" => Ok(Value::Text(text)),
        // D-Bus Specification, "Valid Object Paths"
        "o" if text.starts_with('/')
            && (text == "/" || !text.ends_with('/'))
            && !text.contains("//")
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'/' || b == b'_') =>
        {
            Ok(Value::Object(text))
        }
        "g" if known(&text) => Ok(Value::Signature(text)),
        _ => Err(format!("{text:?} is no value of type {kind}")),
    }
}

fn typed_number(kind: Option<&str>, word: &str) -> Parsed<Value> {
    let digits = word.trim_start_matches(['+', '-']);
    let (base, body) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        _ if digits.len() > 1
            && digits.starts_with('0')
            && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            (8, &digits[1..])
        }
        _ => (10, digits),
    };
    let whole = match word.matches(['+', '-']).count() {
        0 | 1 => i128::from_str_radix(body, base).ok(),
        _ => None,
    }
    .map(|n| if word.starts_with('-') { -n } else { n });
    let bad = || match kind {
        Some(k) => format!("{word:?} is no value of type {k}"),
        None => format!("{word:?} is no value (a string has quotes)"),
    };
    let fits = |v: Option<Value>| v.ok_or_else(bad);
    let Some(n) = whole else {
        let float = word.parse::<f64>().ok().filter(|f| f.is_finite());
        return match (kind, float) {
            (None | Some("d"), Some(f))
                if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') =>
            {
                Ok(Value::Double(f))
            }
            _ => Err(bad()),
        };
    };
    match kind {
        None | Some("i") => fits(n.try_into().ok().map(Value::I32)),
        Some("y") => fits(n.try_into().ok().map(Value::Byte)),
        Some("n") => fits(n.try_into().ok().map(Value::I16)),
        Some("q") => fits(n.try_into().ok().map(Value::U16)),
        Some("u") => fits(n.try_into().ok().map(Value::U32)),
        Some("x") => fits(n.try_into().ok().map(Value::I64)),
        Some("t") => fits(n.try_into().ok().map(Value::U64)),
        Some("d") => Ok(Value::Double(n as f64)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_types() {
        let text = |s: &str| Value::Text(s.into());
        for (written, value) in [
            ("true", Value::Bool(true)),
            ("'inactive-or-failed'", text("inactive-or-failed")),
            (r#""it's""#, text("it's")),
            (r"'a\'b\\'", text(r"a'b\")),
            ("15", Value::I32(15)),
            ("-1", Value::I32(-1)),
            ("0x10", Value::I32(16)),
            ("010", Value::I32(8)),
            ("uint64 123456789", Value::U64(123_456_789)),
            ("uint64  18446744073709551615", Value::U64(u64::MAX)),
            ("byte 0xff", Value::Byte(255)),
            ("int16 -3", Value::I16(-3)),
            ("@t 5", Value::U64(5)),
            ("1.5", Value::Double(1.5)),
            ("double 2", Value::Double(2.0)),
            (
                "['a', 'b']",
                Value::Array("s".into(), vec![text("a"), text("b")]),
            ),
            ("@as []", Value::Array("s".into(), vec![])),
            (
                "[uint32 1, 2]",
                Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)]),
            ),
            ("@au [1]", Value::Array("u".into(), vec![Value::U32(1)])),
            ("objectpath '/a/b'", Value::Object("/a/b".into())),
        ] {
            assert_eq!(parse(written).as_ref(), Ok(&value), "{written}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for bad in [
            "",
            "word",
            "'open",
            "1 2",
            "uint64",
            "uint64 -1",
            "byte 256",
            "2147483648",
            "[]",
            "['a', 1]",
            "[1",
            "{'a': 1}",
            "<1>",
            "(1,)",
            "@(ss) x",
            "@",
            "uint32 'a'",
            "true false",
            "objectpath 'a'",
            "inf",
            "nan",
            "--1",
            "1-1",
            "é",
            r"'\x'",
            "[[[[[[[[[[[[1]]]]]]]]]]]]",
            "string 5",
            "uint64 0x",
        ] {
            assert!(parse(bad).is_err(), "{bad}: {:?}", parse(bad));
        }
    }

    fn all(list: &[(&str, &str)]) -> Result<Vec<(String, Value)>> {
        let map = list
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        properties(&map).map(|l| l.into_iter().map(|p| (p.name, p.value)).collect())
    }

    #[test]
    fn annotations_name_properties() {
        let got = all(&[
            ("org.systemd.property.TimeoutStopSec", "int32 5"),
            ("org.systemd.property.TimeoutStartSec", "0.5"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.FooSEC", "1"),
            ("org.systemd.other", "nothing"),
            ("mine", "x"),
        ])
        .unwrap();
        let names: Vec<&str> = got.iter().map(|p| p.0.as_str()).collect();
        assert_eq!(
            names,
            [
                "CollectMode",
                "FooSEC",
                "TimeoutStartUSec",
                "TimeoutStopUSec"
            ]
        );
        assert_eq!(got[2].1, Value::U64(500_000));
        assert_eq!(got[3].1, Value::U64(5_000_000));
        for (name, value) in [
            ("org.systemd.property.", "1"),
            ("org.systemd.property.A1b", "1"),
            ("org.systemd.property.TimeoutStopSec", "'5'"),
            ("org.systemd.property.TimeoutStopSec", "-5"),
            ("org.systemd.property.KillSignal", "SIGTERM"),
        ] {
            let e = all(&[(name, value)]).unwrap_err().to_string();
            assert!(e.contains(name), "{e}");
        }
    }
}
