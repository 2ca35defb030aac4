//! D-Bus messages as bytes (D-Bus Specification, "Type System", "Marshaling", "Message Protocol").
//!
//! Owns the encoding of what is said to systemd and the reading of what it answers. Does no I/O. Only what those
//! few calls need is here; every length read is checked against what is there.

use std::fmt;

/// Largest message taken. The specification allows 128 MiB; systemd's are some hundred bytes.
const LARGEST: usize = 16 << 20;
/// Bytes before the header fields' array.
pub(super) const FIXED: usize = 16;

/// A value of the types that unit properties have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Byte(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    Object(String),
    Signature(String),
    /// The signature of its elements, which an empty array needs too.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub fn text(s: impl Into<String>) -> Self {
        Value::Text(s.into())
    }

    /// Its type's signature.
    pub fn signature(&self) -> String {
        match self {
            Value::Bool(_) => "b".into(),
            Value::Byte(_) => "y".into(),
            Value::I16(_) => "n".into(),
            Value::U16(_) => "q".into(),
            Value::I32(_) => "i".into(),
            Value::U32(_) => "u".into(),
            Value::I64(_) => "x".into(),
            Value::U64(_) => "t".into(),
            Value::Double(_) => "d".into(),
            Value::Text(_) => "s".into(),
            Value::Object(_) => "o".into(),
            Value::Signature(_) => "g".into(),
            Value::Array(of, _) => format!("a{of}"),
            Value::Struct(list) => {
                let inner: String = list.iter().map(Value::signature).collect();
                format!("({inner})")
            }
            Value::Variant(_) => "v".into(),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Value::Bool(v) => number(out, u32::from(*v).to_le_bytes()),
            Value::Byte(v) => out.push(*v),
            Value::I16(v) => number(out, v.to_le_bytes()),
            Value::U16(v) => number(out, v.to_le_bytes()),
            Value::I32(v) => number(out, v.to_le_bytes()),
            Value::U32(v) => number(out, v.to_le_bytes()),
            Value::I64(v) => number(out, v.to_le_bytes()),
            Value::U64(v) => number(out, v.to_le_bytes()),
            Value::Double(v) => number(out, v.to_le_bytes()),
            Value::Text(s) | Value::Object(s) => {
                number(out, length(s.len()).to_le_bytes());
                out.extend_from_slice(s.as_bytes());
                out.push(0);
            }
            Value::Signature(s) => signature(out, s),
            Value::Array(of, list) => {
                number(out, [0; 4]);
                let at = out.len() - 4;
                // The padding before the first element is not counted.
                pad(out, alignment(of));
                let start = out.len();
                for v in list {
                    v.put(out);
                }
                let len = length(out.len() - start).to_le_bytes();
                out[at..at + 4].copy_from_slice(&len);
            }
            Value::Struct(list) => {
                pad(out, 8);
                for v in list {
                    v.put(out);
                }
            }
            Value::Variant(v) => {
                signature(out, &v.signature());
                v.put(out);
            }
        }
    }
}

/// A length on the wire; more than it can say is never sent, since [`encode`] bounds the message.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn number<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    pad(out, N);
    out.extend_from_slice(&bytes);
}

fn signature(out: &mut Vec<u8>, s: &str) {
    out.push(u8::try_from(s.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(s.as_bytes());
    out.push(0);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

/// Of a type by the first letter of its signature.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// Bus name; none on a connection without a bus.
    pub destination: Option<&'a str>,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

/// A method call. `None` when it would be larger than a message may be.
pub(super) fn encode(serial: u32, to: &Target, body: &[Value]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    for v in body {
        v.put(&mut data);
    }
    let types: String = body.iter().map(Value::signature).collect();
    let field =
        |code: u8, v: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(v))]);
    // Codes: "Header Fields" of the specification.
    let mut fields = vec![
        field(1, Value::Object(to.path.to_owned())),
        field(2, Value::text(to.interface)),
        field(3, Value::text(to.member)),
    ];
    if let Some(name) = to.destination {
        fields.push(field(6, Value::text(name)));
    }
    if !types.is_empty() {
        fields.push(field(8, Value::Signature(types)));
    }
    // Little endian, method call, no flags, version 1.
    let mut out = vec![b'l', 1, 0, 1];
    number(&mut out, length(data.len()).to_le_bytes());
    number(&mut out, serial.to_le_bytes());
    Value::Array("(yv)".into(), fields).put(&mut out);
    pad(&mut out, 8);
    out.extend_from_slice(&data);
    (out.len() <= LARGEST).then_some(out)
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Call,
    Return,
    Error,
    Signal,
    Other,
}

/// A message received.
#[derive(Debug)]
pub(super) struct Message {
    pub kind: Type,
    /// Serial of the call it answers.
    pub answers: Option<u32>,
    pub interface: String,
    pub member: String,
    /// Name of the error it reports.
    pub error: String,
    /// Types of the body.
    pub signature: String,
    pub body: Vec<u8>,
}

/// A message that can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled(&'static str);

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a garbled message ({})", self.0)
    }
}

/// How many bytes follow the fixed part of a message: (header fields with padding, body).
pub(super) fn sizes(fixed: &[u8; FIXED]) -> Result<(usize, usize), Garbled> {
    if fixed[0] != b'l' {
        return Err(Garbled("byte order"));
    }
    let word =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let (body, fields) = (word(4) as usize, word(12) as usize);
    if body > LARGEST || fields > LARGEST {
        return Err(Garbled("length"));
    }
    Ok((fields.next_multiple_of(8), body))
}

/// Reads a message: its fixed part, and what follows as [`sizes`] says.
pub(super) fn decode(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Message, Garbled> {
    let (fields, body) = sizes(fixed)?;
    if rest.len() != fields + body {
        return Err(Garbled("length"));
    }
    let mut m = Message {
        kind: match fixed[1] {
            1 => Type::Call,
            2 => Type::Return,
            3 => Type::Error,
            4 => Type::Signal,
            _ => Type::Other,
        },
        answers: None,
        interface: String::new(),
        member: String::new(),
        error: String::new(),
        signature: String::new(),
        body: rest[fields..].to_vec(),
    };
    let used = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
    // Offsets count from the message's start, of which the fixed part is a multiple of 8.
    let mut r = Reader::new(&rest[..used]);
    while !r.at_end() {
        r.align(8)?;
        let code = r.byte()?;
        let kind = r.signature()?;
        match (code, kind.as_str()) {
            (2, "s") => m.interface = r.text()?,
            (3, "s") => m.member = r.text()?,
            (4, "s") => m.error = r.text()?,
            (5, "u") => m.answers = Some(r.u32()?),
            (8, "g") => m.signature = r.signature()?,
            (_, "s" | "o") => drop(r.text()?),
            (_, "u") => drop(r.u32()?),
            (_, "g") => drop(r.signature()?),
            _ => return Err(Garbled("header field")),
        }
    }
    Ok(m)
}

/// Reads values one after the other.
pub(super) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Reader { data, at: 0 }
    }

    fn at_end(&self) -> bool {
        self.at >= self.data.len()
    }

    fn align(&mut self, to: usize) -> Result<(), Garbled> {
        self.at = self.at.next_multiple_of(to);
        if self.at > self.data.len() {
            return Err(Garbled("it ends early"));
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Garbled> {
        let end = self.at.checked_add(n).ok_or(Garbled("length"))?;
        let got = self
            .data
            .get(self.at..end)
            .ok_or(Garbled("it ends early"))?;
        self.at = end;
        Ok(got)
    }

    fn byte(&mut self) -> Result<u8, Garbled> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<u32, Garbled> {
        self.align(4)?;
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn string(&mut self, len: usize) -> Result<String, Garbled> {
        let bytes = self.take(len)?.to_vec();
        if self.byte()? != 0 {
            return Err(Garbled("a string without its end"));
        }
        String::from_utf8(bytes).map_err(|_| Garbled("a string that is not UTF-8"))
    }

    /// A string or an object path.
    pub fn text(&mut self) -> Result<String, Garbled> {
        let len = self.u32()? as usize;
        self.string(len)
    }

    pub fn signature(&mut self) -> Result<String, Garbled> {
        let len = usize::from(self.byte()?);
        self.string(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(v: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        v.put(&mut out);
        out
    }

    /// The examples are the specification's rules, by hand.
    #[test]
    fn values_are_aligned_and_counted() {
        let v = Value::Struct(vec![Value::Byte(7), Value::U64(1)]);
        assert_eq!(v.signature(), "(yt)");
        assert_eq!(bytes(&v), [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let v = Value::Variant(Box::new(Value::text("hi")));
        assert_eq!(bytes(&v), [1, b's', 0, 0, 2, 0, 0, 0, b'h', b'i', 0]);
        // An array's length leaves out the padding before its first element.
        let v = Value::Array("t".into(), vec![Value::U64(5)]);
        assert_eq!(bytes(&v), [8, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let v = Value::Array("(ss)".into(), vec![]);
        assert_eq!(v.signature(), "a(ss)");
        assert_eq!(bytes(&v), [0; 8]);
        assert_eq!(bytes(&Value::Bool(true)), [1, 0, 0, 0]);
        assert_eq!(bytes(&Value::I16(-2)), [0xfe, 0xff]);
    }

    fn message(serial: u32, body: &[Value]) -> Vec<u8> {
        let to = Target {
            destination: Some("org.freedesktop.systemd1"),
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "StopUnit",
        };
        encode(serial, &to, body).unwrap()
    }

    fn parse(data: &[u8]) -> Result<Message, Garbled> {
        let fixed: [u8; FIXED] = data[..FIXED].try_into().unwrap();
        decode(&fixed, &data[FIXED..])
    }

    #[test]
    fn a_call_is_read_back() {
        let data = message(9, &[Value::text("a.scope"), Value::text("replace")]);
        let m = parse(&data).unwrap();
        assert_eq!(m.kind, Type::Call);
        assert_eq!(m.member, "StopUnit");
        assert_eq!(m.signature, "ss");
        let mut r = Reader::new(&m.body);
        assert_eq!(r.text().unwrap(), "a.scope");
        assert_eq!(r.text().unwrap(), "replace");
        assert!(r.text().is_err());
        assert_eq!(parse(&message(1, &[])).unwrap().body, [0u8; 0]);
    }

    #[test]
    fn garbled_messages_are_errors() {
        let good = message(9, &[Value::text("a.scope")]);
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = parse(&bad); // whatever it says, it returns
            }
            if at >= FIXED {
                assert!(parse(&good[..at]).is_err(), "{at}");
            }
        }
        let mut fixed = [0; FIXED];
        fixed[0] = b'l';
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(sizes(&fixed).is_err());
        fixed[0] = b'B';
        assert!(sizes(&fixed).is_err());
    }
}
