//! Protobuf on the byte level.

use prost::encoding::{WireType, decode_varint, encode_key, encode_varint, encoded_len_varint};

use super::{Error, MAX_DEPTH};

/// One field as it came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
    /// A group, which no type of Kubernetes has.
    Group,
}

impl Item<'_> {
    pub fn name(self) -> &'static str {
        match self {
            Item::Varint(_) => "varint",
            Item::Fixed64(_) => "fixed64",
            Item::Fixed32 => "fixed32",
            Item::Bytes(_) => "bytes",
            Item::Group => "group",
        }
    }
}

/// Reads the fields of a message one by one.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn varint(&mut self) -> Result<u64, Error> {
        decode_varint(&mut self.0).map_err(|_| Error::Syntax("a number is cut off or too long"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Error::Syntax("a field is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn key(&mut self) -> Result<(u32, u64), Error> {
        let key = self.varint()?;
        match u32::try_from(key >> 3) {
            Ok(number) if number > 0 => Ok((number, key & 7)),
            _ => Err(Error::Syntax("a field has no valid number")),
        }
    }

    /// The next field, its number first.
    pub fn next(&mut self) -> Result<Option<(u32, Item<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (number, wire) = self.key()?;
        let item = match wire {
            0 => Item::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Item::Fixed64(
                    bytes
                        .iter()
                        .rev()
                        .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
                )
            }
            2 => {
                let length = self.varint()?;
                Item::Bytes(self.take(length)?)
            }
            3 => {
                self.skip_group()?;
                Item::Group
            }
            5 => {
                self.take(4)?;
                Item::Fixed32
            }
            _ => return Err(Error::Syntax("a field has no valid wire type")),
        };
        Ok(Some((number, item)))
    }

    fn skip_group(&mut self) -> Result<(), Error> {
        let mut depth = 1;
        while depth > 0 {
            match self.key()?.1 {
                0 => self.varint().map(drop)?,
                1 => self.take(8).map(drop)?,
                2 => {
                    let length = self.varint()?;
                    self.take(length)?;
                }
                3 if depth < MAX_DEPTH => depth += 1,
                3 => return Err(Error::TooDeep),
                4 => depth -= 1,
                5 => self.take(4).map(drop)?,
                _ => return Err(Error::Syntax("a field has no valid wire type")),
            }
        }
        Ok(())
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

pub(super) fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    encode_key(number, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A message whose length is known only after it is written.
pub(super) fn put_message<T>(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<T, Error>,
) -> Result<T, Error> {
    encode_key(number, WireType::LengthDelimited, out);
    let start = out.len();
    let result = write(out)?;
    let length = out.len() - start;
    let room = encoded_len_varint(length as u64);
    out.resize(out.len() + room, 0);
    out.copy_within(start..start + length, start + room);
    encode_varint(length as u64, &mut &mut out[start..start + room]);
    Ok(result)
}
