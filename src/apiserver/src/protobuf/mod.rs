//! Objects in protobuf, as clients written in Go send them.
//!
//! `kubectl create` and everything else that uses client-go's typed clients
//! sends built-in kinds in protobuf (and takes JSON back). A body is the four
//! bytes `k8s\0` and a `runtime.Unknown` that names the type and holds the
//! message. It becomes JSON by a table of field numbers, `messages.txt`, and
//! goes the way of every other body from there.
//!
//! Go writes fields that are not pointers even when they are zero, and
//! protobuf does not tell which those are: empty text is left out, and of
//! zeros and falses those in [`ZERO_IS_ABSENT`].

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use skiff_api::meta;

/// Media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
const TABLE: &str = include_str!("messages.txt");
/// Nesting of messages; real objects stay below 20.
const MAX_DEPTH: usize = 64;
/// Numbers and truths that are plain values in Go: zero or false means nothing was said.
const ZERO_IS_ABSENT: &[&str] = &[
    "chapAuthDiscovery",
    "chapAuthSession",
    "clusterScope",
    "count",
    "deprecatedCount",
    "failureThreshold",
    "generation",
    "globalDefault",
    "groupPriorityMinimum",
    "healthCheckNodePort",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "initialDelaySeconds",
    "insecureSkipTLSVerify",
    "minReadySeconds",
    "nodePort",
    "number",
    "observedGeneration",
    "paused",
    "periodSeconds",
    "publishNotReadyAddresses",
    "readOnly",
    "sslEnabled",
    "stdin",
    "stdinOnce",
    "successThreshold",
    "timeoutSeconds",
    "tty",
    "unschedulable",
    "versionPriority",
];
/// Texts that are pointers in Go and mean something when empty.
const EMPTY_IS_PRESENT: &[&str] = &["storageClassName"];

/// Why a body was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtobufError {
    /// The envelope is missing.
    #[error("the body is not a Kubernetes protobuf envelope")]
    Envelope,
    /// The bytes are not a message.
    #[error("the message is malformed in {0}")]
    Malformed(String),
    /// The type is not in the table.
    #[error("objects of kind {kind} in {api_version} are not taken in protobuf")]
    Unknown {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Integer,
    Truth,
    Float,
    Bytes,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    number: u64,
    shape: Shape,
    of: Type,
    name: &'static str,
}

/// Messages by full name, with the package of each.
static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(parse_line)
        .collect()
});

fn parse_line(line: &'static str) -> Option<(&'static str, Vec<Field>)> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next()?;
    Some((name, words.filter_map(parse_field).collect()))
}

fn parse_field(word: &'static str) -> Option<Field> {
    let (head, name) = word.split_once('=')?;
    let digits = head.bytes().take_while(u8::is_ascii_digit).count();
    let number = head[..digits].parse().ok()?;
    let (shape, of) = match head.as_bytes().get(digits)? {
        b'*' => (Shape::List, &head[digits + 1..]),
        b'{' => (Shape::Map, &head[digits + 1..]),
        _ => (Shape::One, &head[digits..]),
    };
    let of = match of.split_once(':') {
        Some((_, message)) => Type::Message(message),
        None => match of {
            "s" => Type::Text,
            "i" => Type::Integer,
            "b" => Type::Truth,
            "d" => Type::Float,
            "y" => Type::Bytes,
            _ => return None,
        },
    };
    Some(Field {
        number,
        shape,
        of,
        name,
    })
}

/// The object in a body.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::Envelope)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &b""[..]);
    for item in Reader(body) {
        match item.map_err(|()| ProtobufError::Envelope)? {
            (1, Wire::Bytes(meta)) => {
                for item in Reader(meta) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    match item.map_err(|()| ProtobufError::Envelope)? {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes),
                        (2, Wire::Bytes(bytes)) => kind = text(bytes),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = skiff_api::kinds::split_api_version(&api_version);
    let package = if group.is_empty() {
        "core"
    } else {
        group.split('.').next().unwrap_or(group)
    };
    // Options of requests may be sent under the version of the objects they are about.
    let name = match kind.as_str() {
        "DeleteOptions" => "meta.v1.DeleteOptions".to_owned(),
        kind => format!("{package}.{version}.{kind}"),
    };
    let Some((name, _)) = MESSAGES.get_key_value(name.as_str()) else {
        return Err(ProtobufError::Unknown { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    message(name, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn package_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(package, _)| package)
}

fn full_name(parent: &str, message: &'static str) -> String {
    if message.contains('.') {
        message.to_owned()
    } else {
        format!("{}.{message}", package_of(parent))
    }
}

/// Reads the fields of a message into an object.
fn message(
    name: &str,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let malformed = || ProtobufError::Malformed(name.to_owned());
    if depth > MAX_DEPTH {
        return Err(malformed());
    }
    let fields = MESSAGES.get(name).map(Vec::as_slice).unwrap_or_default();
    for item in Reader(bytes) {
        let (number, wire) = item.map_err(|()| malformed())?;
        // Fields of later versions are left out, as a Kubernetes server of this version does.
        let Some(field) = fields.iter().find(|f| f.number == number) else {
            continue;
        };
        match (field.shape, wire) {
            (Shape::Map, Wire::Bytes(entry)) => {
                let (mut key, mut value) = (String::new(), None);
                for item in Reader(entry) {
                    match item.map_err(|()| malformed())? {
                        (1, Wire::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
                        (2, wire) => value = Some(wire),
                        _ => {}
                    }
                }
                let value = value.unwrap_or(Wire::Bytes(b""));
                let value = single(name, field, value, depth)?.unwrap_or(Value::Null);
                let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            (Shape::List, Wire::Bytes(packed)) if matches!(field.of, Type::Integer | Type::Truth) => {
                let mut rest = packed;
                while !rest.is_empty() {
                    let (n, left) = varint(rest).ok_or_else(malformed)?;
                    rest = left;
                    push(out, field.name, single(name, field, Wire::Varint(n), depth)?);
                }
            }
            (Shape::List, wire) => push(out, field.name, single(name, field, wire, depth)?),
            (_, Wire::Bytes(bytes)) if field.name.is_empty() => {
                if let Type::Message(of) = field.of {
                    message(&full_name(name, of), bytes, out, depth + 1)?;
                }
            }
            (_, wire) => {
                if let Some(value) = single(name, field, wire, depth)?
                    && says_something(name, field.name, &value)
                {
                    out.insert(field.name.into(), value);
                }
            }
        }
    }
    Ok(())
}

fn push(out: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        list.push(value.unwrap_or(Value::Null));
    }
}

fn says_something(message: &str, field: &str, value: &Value) -> bool {
    // States report zeros by leaving them out, but for those where zero is a statement.
    let state = message.ends_with("Status")
        && !["core.v1.ContainerStatus", "policy.v1.PodDisruptionBudgetStatus"].contains(&message);
    match value {
        Value::String(text) => !text.is_empty() || EMPTY_IS_PRESENT.contains(&field),
        Value::Bool(false) => !state && !ZERO_IS_ABSENT.contains(&field),
        Value::Number(n) if n.as_i64() == Some(0) => {
            !state
                && !ZERO_IS_ABSENT.contains(&field)
                && !matches!((message, field), ("core.v1.ServicePort", "targetPort"))
        }
        _ => true,
    }
}

/// One value; none when it stands for nothing, as an empty time does.
fn single(parent: &str, field: &Field, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
    let malformed = || ProtobufError::Malformed(format!("{parent}.{}", field.name));
    Ok(Some(match (field.of, wire) {
        (Type::Text, Wire::Bytes(bytes)) => std::str::from_utf8(bytes).map_err(|_| malformed())?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Integer, Wire::Varint(n)) => (n as i64).into(),
        (Type::Truth, Wire::Varint(n)) => (n != 0).into(),
        (Type::Float, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Type::Message(of), Wire::Bytes(bytes)) => {
            let name = full_name(parent, of);
            match special(&name, bytes).map_err(|()| malformed())? {
                Special::Value(value) => value,
                Special::Nothing => return Ok(None),
                Special::No => {
                    let mut object = Map::new();
                    message(&name, bytes, &mut object, depth + 1)?;
                    Value::Object(object)
                }
            }
        }
        _ => return Err(malformed()),
    }))
}

enum Special {
    No,
    Nothing,
    Value(Value),
}

/// Messages that are not objects in JSON.
fn special(name: &str, bytes: &[u8]) -> Result<Special, ()> {
    let (mut first, mut second, mut texts) = (0i64, 0i64, Vec::new());
    let mut raw = None;
    let last = name.rsplit('.').next().unwrap_or(name);
    let known = matches!(
        name,
        "resource.Quantity"
            | "intstr.IntOrString"
            | "meta.v1.Time"
            | "meta.v1.MicroTime"
            | "meta.v1.FieldsV1"
            | "runtime.RawExtension"
    );
    if !known && last != "ExtraValue" {
        return Ok(Special::No);
    }
    for item in Reader(bytes) {
        match item? {
            (1, Wire::Varint(n)) => first = n as i64,
            (2, Wire::Varint(n)) => second = n as i64,
            (number, Wire::Bytes(bytes)) => {
                if number == 1 {
                    raw = Some(bytes);
                }
                texts.push(std::str::from_utf8(bytes).map_err(|_| ())?);
            }
            _ => {}
        }
    }
    Ok(match name {
        "resource.Quantity" => Special::Value(texts.first().copied().unwrap_or("0").into()),
        "intstr.IntOrString" if first == 1 => {
            Special::Value(texts.first().copied().unwrap_or_default().into())
        }
        // The number is an int32, written as the 64 bits of its sign extension.
        "intstr.IntOrString" => Special::Value(second.into()),
        "meta.v1.Time" | "meta.v1.MicroTime" if bytes.is_empty() => Special::Nothing,
        "meta.v1.Time" | "meta.v1.MicroTime" => {
            let nanos = u32::try_from(second).map_err(|_| ())?;
            let stamp = jiff::Timestamp::new(first, i32::try_from(nanos).map_err(|_| ())?).map_err(|_| ())?;
            let time = std::time::SystemTime::from(stamp);
            Special::Value(
                if last == "Time" {
                    meta::timestamp(time)
                } else {
                    meta::micro_timestamp(time)
                }
                .into(),
            )
        }
        "meta.v1.FieldsV1" | "runtime.RawExtension" => match raw {
            Some(json) if !json.is_empty() => Special::Value(serde_json::from_slice(json).map_err(|_| ())?),
            _ => Special::Nothing,
        },
        _ => Special::Value(texts.into()),
    })
}

#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// Field numbers and values of a message, in order.
struct Reader<'a>(&'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u64, Wire<'a>), ()>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = read(self.0);
        match item {
            Some((number, wire, rest)) => {
                self.0 = rest;
                Some(Ok((number, wire)))
            }
            None => {
                self.0 = b"";
                Some(Err(()))
            }
        }
    }
}

fn read(bytes: &[u8]) -> Option<(u64, Wire<'_>, &[u8])> {
    let (tag, rest) = varint(bytes)?;
    let number = tag >> 3;
    Some(match tag & 7 {
        0 => {
            let (value, rest) = varint(rest)?;
            (number, Wire::Varint(value), rest)
        }
        1 => {
            let (value, rest) = rest.split_first_chunk::<8>()?;
            (number, Wire::Fixed64(u64::from_le_bytes(*value)), rest)
        }
        2 => {
            let (length, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (number, Wire::Bytes(value), rest)
        }
        5 => (number, Wire::Fixed32, rest.split_first_chunk::<4>()?.1),
        _ => return None,
    })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests;
