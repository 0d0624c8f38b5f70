//! Results to HTTP responses.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::protobuf;
use skiff_api::status::Status;
use skiff_api::table;

use crate::negotiate::{Accept, Format, View};
use crate::server::{ApiServer, Call};
use crate::{Body, codec, full_body};

/// Answers smaller than this are not worth compressing, as Kubernetes judges.
const GZIP_FROM_BYTES: usize = 128 << 10;
/// Longest text of one warning.
const MAX_WARNING_CHARS: usize = 256;

/// A response with known bytes.
pub fn raw(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full_body(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A JSON response.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    raw(code, "application/json", codec::to_bytes(value))
}

/// An error (or success) as a `Status` object.
pub fn status(status: &Status, format: Format) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = status.to_bytes();
    let mut response = match to_protobuf(&json) {
        Ok(bytes) if format == Format::Protobuf => raw(code, protobuf::MEDIA_TYPE, bytes),
        _ => raw(code, "application/json", json),
    };
    if let Some(seconds) = status
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0)
    {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The object in JSON bytes as a protobuf body.
pub fn to_protobuf(json: &[u8]) -> Result<Vec<u8>, Status> {
    protobuf::encode(&codec::decode(json)?).map_err(Status::internal)
}

/// JSON bytes in the negotiated encoding.
pub fn encoded(code: StatusCode, accept: Accept, json: Bytes) -> Response<Body> {
    match accept.format {
        Format::Json => raw(code, accept.content_type(), json),
        Format::Protobuf => match to_protobuf(&json) {
            Ok(bytes) => raw(code, accept.content_type(), bytes),
            Err(error) => status(&error, Format::Json),
        },
        Format::Yaml => match serde_json::from_slice::<Value>(&json)
            .map_err(|e| e.to_string())
            .and_then(|v| serde_saphyr::to_string(&v).map_err(|e| e.to_string()))
        {
            Ok(text) => raw(code, accept.content_type(), text),
            Err(error) => status(&Status::internal(error), Format::Json),
        },
    }
}

/// One object, in the version of the call's kind, as the client wants to see it.
pub fn object(
    server: &ApiServer,
    call: &Call,
    code: StatusCode,
    bytes: Bytes,
) -> Result<Response<Body>, Status> {
    let mut response = match call.accept.view {
        View::Whole | View::Discovery => encoded(code, call.accept, bytes),
        View::Metadata => encoded(
            code,
            call.accept,
            codec::to_bytes(&partial(codec::decode(&bytes)?)),
        ),
        View::Table(include) => {
            let object = codec::decode(&bytes)?;
            let metadata = json!({ "resourceVersion": meta::resource_version(&object) });
            let table = table::table(
                &call.kind,
                std::slice::from_ref(&object),
                metadata,
                server.clock.now(),
                include,
            );
            encoded(code, call.accept, codec::to_bytes(&table))
        }
    };
    add_warnings(&mut response, &call.warnings.lock());
    Ok(response)
}

/// Metadata alone.
pub fn partial(mut object: Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].take() })
}

/// Adds `Warning` headers.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings {
        let plain: String = text
            .chars()
            .take(MAX_WARNING_CHARS)
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{plain}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Compresses a large answer of known size.
pub async fn gzip(response: Response<Body>) -> Response<Body> {
    use http_body::Body as _;
    let size = response.body().size_hint().exact().unwrap_or(0);
    if size < GZIP_FROM_BYTES as u64 || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match http_body_util::BodyExt::collect(body).await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return status(&Status::internal(error), Format::Json),
    };
    // Level 1 costs a third of the default level for nearly the same size on JSON.
    let mut encoder = flate2::write::GzEncoder::new(
        BytesMut::with_capacity(bytes.len() / 8).writer(),
        flate2::Compression::fast(),
    );
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(writer) => {
            parts.headers.remove(CONTENT_LENGTH);
            parts
                .headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts
                .headers
                .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, full_body(writer.into_inner().freeze()))
        }
        Err(error) => status(&Status::internal(error), Format::Json),
    }
}
