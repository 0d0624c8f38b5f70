//! Objects to stored bytes and back.
//!
//! Stored bytes are the JSON that goes on the wire. The resourceVersion is not
//! known before the commit, so [`encode`] leaves a gap for it; a deletion is
//! told with the last state and a new resourceVersion by [`with_revision`].

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;
use skiff_api::conversion;
use skiff_api::kinds::Kind;
use skiff_api::status::Status;

use crate::scan;

/// Bytes for the store, with the gap where the revision goes.
pub fn encode(object: &Value) -> skiff_store::Value {
    let mut out = Vec::with_capacity(1024);
    let mut gap = None;
    out.push(b'{');
    for (at, (key, value)) in object.as_object().into_iter().flatten().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_json(&mut out, key);
        out.push(b':');
        match value {
            Value::Object(metadata) if key == "metadata" => {
                out.extend_from_slice(b"{\"resourceVersion\":\"");
                gap = Some(out.len());
                out.push(b'"');
                for (key, value) in metadata {
                    if key != "resourceVersion" {
                        out.push(b',');
                        write_json(&mut out, key);
                        out.push(b':');
                        write_json(&mut out, value);
                    }
                }
                out.push(b'}');
            }
            other => write_json(&mut out, other),
        }
    }
    out.push(b'}');
    skiff_store::Value {
        bytes: out.into(),
        revision_at: gap,
    }
}

fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing JSON values and strings to memory cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// The object in stored bytes.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("stored object is not readable: {error}")))
}

/// JSON bytes of an object.
pub fn to_bytes(object: &Value) -> Bytes {
    serde_json::to_vec(object).unwrap_or_default().into()
}

/// The bytes with another resourceVersion.
pub fn with_revision(bytes: &Bytes, revision: u64) -> Bytes {
    let Some(range) = scan::locate(bytes, &["metadata", "resourceVersion"]) else {
        return bytes.clone();
    };
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    out.put_slice(&bytes[..range.start]);
    out.put_slice(format!("\"{revision}\"").as_bytes());
    out.put_slice(&bytes[range.end..]);
    out.freeze()
}

/// The stored bytes in the version of `kind`; the same bytes when it is the stored one.
pub fn present(kind: &Kind, bytes: &Bytes) -> Result<Bytes, Status> {
    let as_served = if kind.traits.custom {
        // The stored version may have been another one when the object was written.
        scan::string(bytes, &["apiVersion"]).is_some_and(|v| v == kind.api_version())
    } else {
        kind.is_storage_version()
    };
    if as_served {
        return Ok(bytes.clone());
    }
    Ok(to_bytes(&present_value(kind, bytes)?))
}

/// The stored object in the version of `kind`.
pub fn present_value(kind: &Kind, bytes: &[u8]) -> Result<Value, Status> {
    let mut object = decode(bytes)?;
    if kind.traits.custom {
        object["apiVersion"] = kind.api_version().into_owned().into();
    } else if !kind.is_storage_version() {
        conversion::from_storage(kind, &mut object);
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_lands_in_the_metadata() {
        let object = json!({"apiVersion": "v1", "data": {"resourceVersion": "mine"},
            "metadata": {"annotations": {"resourceVersion": "x"}, "name": "a", "resourceVersion": "old"}});
        let value = encode(&object);
        let at = value.revision_at.unwrap();
        let mut bytes = value.bytes[..at].to_vec();
        bytes.extend_from_slice(b"42");
        bytes.extend_from_slice(&value.bytes[at..]);
        let mut want = object.clone();
        want["metadata"]["resourceVersion"] = json!("42");
        assert_eq!(decode(&bytes).unwrap(), want);
        want["metadata"]["resourceVersion"] = json!("777");
        assert_eq!(decode(&with_revision(&bytes.into(), 777)).unwrap(), want);
    }
}
