//! Protobuf to JSON values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::facts::{self, Entry, Fact, Form, Message};
use super::wire::{Item, Reader};
use super::{Error, MAGIC, MAX_DEPTH, MAX_VALUES, MEDIA_TYPE, SCHEMA_PROPS, place};
use crate::kinds::split_api_version;
use crate::schema::{Field, Scalar, Schema, Shape, View};

/// The outer layer of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Group and version that the body says it has; may be empty.
    pub api_version: &'a str,
    /// Kind that the body says it has; may be empty.
    pub kind: &'a str,
    /// The object.
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Opens a body.
    pub fn open(body: &'a [u8]) -> Result<Self, Error> {
        let mut envelope = Envelope {
            api_version: "",
            kind: "",
            raw: &[],
        };
        let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?);
        while let Some((number, item)) = reader.next()? {
            match (number, item) {
                (1, Item::Bytes(bytes)) => {
                    let mut reader = Reader(bytes);
                    while let Some((number, item)) = reader.next()? {
                        match number {
                            1 => envelope.api_version = text(item, "TypeMeta.apiVersion")?,
                            2 => envelope.kind = text(item, "TypeMeta.kind")?,
                            _ => {}
                        }
                    }
                }
                (2, Item::Bytes(bytes)) => envelope.raw = bytes,
                (3, Item::Bytes(bytes)) if !bytes.is_empty() => {
                    return Err(Error::Encoding(String::from_utf8_lossy(bytes).into_owned()));
                }
                (4, Item::Bytes(bytes)) if !bytes.is_empty() && bytes != MEDIA_TYPE.as_bytes() => {
                    return Err(Error::Encoding(String::from_utf8_lossy(bytes).into_owned()));
                }
                (1..=4, Item::Bytes(_)) => {}
                (1..=4, other) => return Err(wire_type("Unknown", other)),
                _ => {}
            }
        }
        Ok(envelope)
    }

    /// The object, read as `kind` with the given type; a body that names another kind is refused.
    pub fn object(&self, view: View<'_>, kind: &str) -> Result<Value, Error> {
        if !self.kind.is_empty() && self.kind != kind {
            return Err(Error::Kind {
                found: self.kind.into(),
                expected: kind.into(),
            });
        }
        Decoder { left: MAX_VALUES }.object(self, view, 0)
    }
}

struct Decoder {
    /// How many values may still come.
    left: usize,
}

impl Decoder {
    fn object(&mut self, envelope: &Envelope<'_>, view: View<'_>, depth: usize) -> Result<Value, Error> {
        let mut object = Map::new();
        for (name, value) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
            if !value.is_empty() {
                object.insert(name.into(), value.into());
            }
        }
        let Some(message) = message_of(view) else {
            return Err(Error::NoForm {
                api_version: envelope.api_version.into(),
                kind: envelope.kind.into(),
            });
        };
        self.message(view, message, envelope.raw, &mut object, depth)?;
        Ok(Value::Object(object))
    }

    fn message(
        &mut self,
        view: View<'_>,
        message: &Message,
        raw: &[u8],
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut reader = Reader(raw);
        while let Some((number, item)) = reader.next()? {
            match message.entry(number) {
                Some(Entry::Field(fact)) => {
                    if let Some((field, inner)) = view.field(fact.name) {
                        self.field(view, field, inner, fact, item, out, depth)?;
                    }
                }
                Some(Entry::Inline(inner)) => match item {
                    Item::Bytes(raw) => self.message(view, inner, raw, out, depth + 1)?,
                    other => return Err(wire_type(&place(view, &number.to_string()), other)),
                },
                // Of another release.
                None => {}
            }
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what is known of one field, from four sources"
    )]
    fn field(
        &mut self,
        owner: View<'_>,
        field: &Field,
        view: View<'_>,
        fact: &Fact,
        item: Item<'_>,
        out: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let named = |error| name_field(error, owner, fact.name);
        match view.shape() {
            Shape::List(items, _) => {
                let items = view.at(*items);
                let list = out.entry(fact.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Ok(()) };
                if fact.form == Form::Items {
                    self.wrapped_list(items, item, list, depth).map_err(named)
                } else {
                    self.list_item(items, item, list, depth).map_err(named)
                }
            }
            Shape::Map(values) => {
                let (key, value) = self
                    .map_entry(view.at(*values), fact.form, item, depth)
                    .map_err(named)?;
                let map = out.entry(fact.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
                Ok(())
            }
            _ => {
                let before = out.remove(fact.name);
                let value = self.single(view, fact.form, item, before, depth).map_err(named)?;
                if let Some(value) = value
                    && (fact.pointer || is_written(field) || !is_empty(view, &value))
                {
                    out.insert(fact.name.to_owned(), value);
                }
                Ok(())
            }
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or(Error::TooLarge)?;
        Ok(())
    }

    fn list_item(
        &mut self,
        view: View<'_>,
        item: Item<'_>,
        list: &mut Vec<Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let numbers = matches!(
            view.shape(),
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Boolean)
        );
        match item {
            // Packed.
            Item::Bytes(bytes) if numbers => {
                let mut reader = Reader(bytes);
                while !reader.0.is_empty() {
                    let number = Item::Varint(reader.varint()?);
                    list.extend(self.single(view, Form::Plain, number, None, depth)?);
                }
            }
            _ => list.push(
                self.single(view, Form::Plain, item, None, depth)?
                    .unwrap_or_default(),
            ),
        }
        Ok(())
    }

    /// A message with a list as its first field.
    fn wrapped_list(
        &mut self,
        items: View<'_>,
        item: Item<'_>,
        list: &mut Vec<Value>,
        depth: usize,
    ) -> Result<(), Error> {
        let mut reader = Reader(bytes(item)?);
        while let Some((number, item)) = reader.next()? {
            if number == 1 {
                self.list_item(items, item, list, depth + 1)?;
            }
        }
        Ok(())
    }

    fn map_entry(
        &mut self,
        view: View<'_>,
        form: Form,
        item: Item<'_>,
        depth: usize,
    ) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader(bytes(item)?);
        while let Some((number, item)) = reader.next()? {
            match number {
                1 => key = text(item, "key")?.to_owned(),
                2 => {
                    value = match view.shape() {
                        // A map cannot hold lists as such.
                        Shape::List(items, _) => {
                            let mut list = Vec::new();
                            self.wrapped_list(view.at(*items), item, &mut list, depth)?;
                            Some(Value::Array(list))
                        }
                        _ => self.single(view, form, item, value, depth)?,
                    };
                }
                _ => {}
            }
        }
        self.count()?;
        let value = value.unwrap_or_else(|| match view.shape() {
            Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
            Shape::List(..) => Value::Array(Vec::new()),
            Shape::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
            Shape::Scalar(Scalar::Quantity) => "0".into(),
            Shape::Scalar(Scalar::Boolean) => false.into(),
            Shape::Scalar(Scalar::Time | Scalar::MicroTime) | Shape::Any { .. } => Value::Null,
            Shape::Scalar(_) => 0.into(),
        });
        Ok((key, value))
    }

    /// One value; none when the message says that there is none. A message that comes twice is
    /// merged into the one `before`.
    fn single(
        &mut self,
        view: View<'_>,
        form: Form,
        item: Item<'_>,
        before: Option<Value>,
        depth: usize,
    ) -> Result<Option<Value>, Error> {
        self.count()?;
        Ok(Some(match view.shape() {
            Shape::Scalar(scalar) => return scalar_value(*scalar, item),
            Shape::Struct(_) => {
                let raw = bytes(item)?;
                let mut object = match before {
                    Some(Value::Object(object)) => object,
                    _ => Map::new(),
                };
                if let Some(message) = message_of(view) {
                    self.message(view, message, raw, &mut object, depth + 1)?;
                }
                Value::Object(object)
            }
            Shape::Any { .. } => return self.any(form, bytes(item)?, depth + 1),
            // Neither lists of lists nor maps of maps exist on the wire.
            Shape::List(..) | Shape::Map(_) => return Err(Error::Syntax("a list stands where none can be")),
        }))
    }

    /// What has no type in the schema.
    fn any(&mut self, form: Form, raw: &[u8], depth: usize) -> Result<Option<Value>, Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        if form == Form::Empty {
            return Ok(Some(Value::Object(Map::new())));
        }
        let mut reader = Reader(raw);
        let (mut first, mut list, mut allows) = (None, None, false);
        while let Some((number, item)) = reader.next()? {
            match (form, number) {
                (Form::Bool, 1) => allows = varint(item)? != 0,
                (Form::Bool, 2) | (Form::Array | Form::Strings, 1) => {
                    first = Some(self.schema_props(bytes(item)?, depth)?);
                }
                (Form::Array, 2) => {
                    let item = self.schema_props(bytes(item)?, depth)?;
                    list.get_or_insert_with(Vec::new).push(item);
                }
                (Form::Strings, 2) => {
                    self.count()?;
                    let item = text(item, "property")?.into();
                    list.get_or_insert_with(Vec::new).push(item);
                }
                (Form::Plain | Form::Items, 1) => first = self.raw(bytes(item)?, depth)?,
                _ => {}
            }
        }
        Ok(match (form, list, first) {
            (_, Some(list), _) => Some(Value::Array(list)),
            (_, None, Some(first)) => Some(first),
            (Form::Bool, None, None) => Some(allows.into()),
            _ => None,
        })
    }

    fn schema_props(&mut self, raw: &[u8], depth: usize) -> Result<Value, Error> {
        self.count()?;
        let mut object = Map::new();
        if let Some(view) = Schema::builtin().definition(SCHEMA_PROPS)
            && let Some(message) = message_of(view)
        {
            self.message(view, message, raw, &mut object, depth + 1)?;
        }
        Ok(Value::Object(object))
    }

    /// An object within an object: JSON, or protobuf with its own outer layer.
    fn raw(&mut self, raw: &[u8], depth: usize) -> Result<Option<Value>, Error> {
        if raw.is_empty() {
            return Ok(None);
        }
        if raw.starts_with(MAGIC) {
            let envelope = Envelope::open(raw)?;
            let (group, version) = split_api_version(envelope.api_version);
            let view = Schema::builtin()
                .kind(group, version, envelope.kind)
                .ok_or_else(|| Error::NoForm {
                    api_version: envelope.api_version.into(),
                    kind: envelope.kind.into(),
                })?;
            return self.object(&envelope, view, depth).map(Some);
        }
        let value: Value =
            serde_json::from_slice(raw).map_err(|error| value_error(format!("no valid JSON: {error}")))?;
        Ok(Some(value).filter(|value| !value.is_null()))
    }
}

/// The message of a struct type.
pub(super) fn message_of(view: View<'_>) -> Option<&'static Message> {
    facts::message(&view.as_struct()?.name)
}

/// JSON has the field also when it is empty.
fn is_written(field: &Field) -> bool {
    field.required
        || match &field.default {
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            Some(Value::Bool(flag)) => !flag,
            _ => false,
        }
}

/// A scalar that Go holds by value cannot be told from absent when it is empty.
fn is_empty(view: View<'_>, value: &Value) -> bool {
    matches!(view.shape(), Shape::Scalar(_))
        && match value {
            Value::Bool(flag) => !flag,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            _ => false,
        }
}

fn scalar_value(scalar: Scalar, item: Item<'_>) -> Result<Option<Value>, Error> {
    Ok(Some(match scalar {
        Scalar::Boolean => (varint(item)? != 0).into(),
        // Negative numbers are extended to 64 bits: the low half is the number.
        Scalar::Int32 => (varint(item)? as i32).into(),
        Scalar::Int64 => (varint(item)? as i64).into(),
        Scalar::Number => match item {
            Item::Fixed64(bits) => number(f64::from_bits(bits))?,
            other => return Err(wire_type("", other)),
        },
        Scalar::String => text(item, "")?.into(),
        Scalar::Bytes => STANDARD.encode(bytes(item)?).into(),
        Scalar::Time | Scalar::MicroTime => return time(scalar, bytes(item)?),
        Scalar::Quantity => {
            let mut quantity = "";
            let mut reader = Reader(bytes(item)?);
            while let Some((number, item)) = reader.next()? {
                if number == 1 {
                    quantity = text(item, "")?;
                }
            }
            if quantity.is_empty() {
                "0".into()
            } else {
                quantity.into()
            }
        }
        Scalar::IntOrString => {
            let (mut kind, mut number, mut string) = (0, 0, "");
            let mut reader = Reader(bytes(item)?);
            while let Some((field, item)) = reader.next()? {
                match field {
                    1 => kind = varint(item)?,
                    2 => number = varint(item)? as i32,
                    3 => string = text(item, "")?,
                    _ => {}
                }
            }
            match kind {
                0 => number.into(),
                1 => string.into(),
                other => return Err(value_error(format!("type {other} is neither a number nor text"))),
            }
        }
    }))
}

/// Whole numbers are written without a fraction, as JSON has them.
fn number(value: f64) -> Result<Value, Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Ok((value as i64).into());
    }
    match serde_json::Number::from_f64(value) {
        Some(number) => Ok(Value::Number(number)),
        None => Err(value_error(format!("JSON has no word for {value}"))),
    }
}

fn time(scalar: Scalar, raw: &[u8]) -> Result<Option<Value>, Error> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(raw);
    if raw.is_empty() {
        return Ok(None);
    }
    while let Some((number, item)) = reader.next()? {
        match number {
            1 => seconds = varint(item)? as i64,
            2 => nanos = varint(item)? as i32,
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, nanos)
        .map_err(|_| value_error(format!("{seconds} seconds and {nanos} nanoseconds are no time")))?;
    let format = if scalar == Scalar::Time {
        "%Y-%m-%dT%H:%M:%SZ"
    } else {
        "%Y-%m-%dT%H:%M:%S%.6fZ"
    };
    Ok(Some(
        time.to_zoned(TimeZone::UTC).strftime(format).to_string().into(),
    ))
}

fn varint(item: Item<'_>) -> Result<u64, Error> {
    match item {
        Item::Varint(number) => Ok(number),
        other => Err(wire_type("", other)),
    }
}

fn bytes(item: Item<'_>) -> Result<&[u8], Error> {
    match item {
        Item::Bytes(bytes) => Ok(bytes),
        other => Err(wire_type("", other)),
    }
}

fn text<'a>(item: Item<'a>, field: &str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes(item)?).map_err(|_| Error::Value {
        field: field.into(),
        reason: "text is not valid UTF-8".into(),
    })
}

fn wire_type(field: &str, item: Item<'_>) -> Error {
    Error::WireType {
        field: field.into(),
        wire: item.name(),
    }
}

fn value_error(reason: String) -> Error {
    Error::Value {
        field: String::new(),
        reason,
    }
}

/// Names the field in an error that does not yet know where it happened.
fn name_field(error: Error, owner: View<'_>, name: &str) -> Error {
    match error {
        Error::WireType { field, wire } if field.is_empty() => Error::WireType {
            field: place(owner, name),
            wire,
        },
        Error::Value { field, reason } if field.is_empty() => Error::Value {
            field: place(owner, name),
            reason,
        },
        other => other,
    }
}
