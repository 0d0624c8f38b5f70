//! Discovery, OpenAPI and the token issuer's public documents.
//!
//! The documents depend on the table of kinds alone. The OpenAPI documents are
//! large and asked for rarely (clients keep them by their hash), so they are
//! made when asked for and not kept.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, IF_NONE_MATCH, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::kinds::Kinds;
use skiff_api::status::Status;
use skiff_api::{discovery as documents, openapi};

use crate::negotiate::{Accept, View};
use crate::request::Query;
use crate::server::ApiServer;
use crate::{Body, codec, respond};

/// Answers the paths of this module.
pub fn answer(
    server: &Arc<ApiServer>,
    path: &str,
    parts: &Parts,
    accept: Accept,
) -> Result<Option<Response<Body>>, Status> {
    let kinds = &*server.kinds();
    let aggregated = accept.view == View::Discovery;
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let document = match segments.as_slice() {
        [""] => Some(json!({ "paths": paths(server) })),
        ["api"] if aggregated => Some(documents::aggregated(kinds, true)),
        ["apis"] if aggregated => Some(documents::aggregated(kinds, false)),
        ["api"] => Some(documents::api_versions(&server.advertise.to_string())),
        ["apis"] => Some(documents::group_list(kinds)),
        ["apis", group] => documents::group(kinds, group),
        ["api", version] => documents::resource_list(kinds, "", version),
        ["apis", group, version] => documents::resource_list(kinds, group, version),
        [".well-known", "openid-configuration"] => Some(openid(server)),
        ["openid", "v1", "jwks"] => {
            let keys = codec::to_bytes(&server.keys.jwks());
            return Ok(Some(respond::raw(
                StatusCode::OK,
                "application/jwk-set+json",
                keys,
            )));
        }
        ["openapi", ..] => return Ok(openapi(kinds, &segments, parts)),
        _ => None,
    };
    let Some(document) = document else { return Ok(None) };
    if aggregated && !matches!(segments.as_slice(), ["api"] | ["apis"]) {
        return Err(Status::not_acceptable(
            "aggregated discovery is served at /api and /apis only",
        ));
    }
    let bytes = codec::to_bytes(&document);
    let mut response = respond::encoded(StatusCode::OK, accept, bytes);
    response
        .headers_mut()
        .insert(http::header::VARY, HeaderValue::from_static("Accept"));
    Ok(Some(response))
}

fn openid(server: &ApiServer) -> Value {
    json!({
        "issuer": server.issuer,
        "jwks_uri": format!("https://{}/openid/v1/jwks", server.advertise),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn paths(server: &ApiServer) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, versions) in server.kinds().groups() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
        }
    }
    paths.sort();
    paths
}

fn openapi(kinds: &Kinds, segments: &[&str], parts: &Parts) -> Option<Response<Body>> {
    let source = openapi::Source {
        kinds,
        custom: &|kind| kind.custom.as_ref().map(|custom| custom.raw().clone()),
    };
    match segments {
        ["openapi", "v2"] => {
            let hash = openapi::v2_hash(&source);
            let wants = |media: &str| {
                parts
                    .headers
                    .get_all(ACCEPT)
                    .iter()
                    .filter_map(|v| v.to_str().ok())
                    .any(|v| v.contains(media))
            };
            // Old kubectl versions ask for protobuf first and take nothing else.
            let protobuf = wants(openapi::V2_PROTOBUF);
            Some(tagged(
                parts,
                &hash,
                false,
                if protobuf {
                    openapi::V2_PROTOBUF
                } else {
                    "application/json"
                },
                || {
                    let document = openapi::v2(&source);
                    if protobuf {
                        openapi::v2_protobuf(&document).into()
                    } else {
                        codec::to_bytes(&document)
                    }
                },
            ))
        }
        ["openapi", "v3"] => Some(respond::json_response(
            StatusCode::OK,
            &openapi::v3_index(&source),
        )),
        ["openapi", "v3", rest @ ..] => {
            let name = rest.join("/");
            let hash = openapi::v3_hash(&source, &name);
            let asked = Query::parse(parts.uri.query()).get("hash").map(str::to_owned);
            if asked.as_ref().is_some_and(|asked| *asked != hash) {
                let mut response = respond::raw(StatusCode::MOVED_PERMANENTLY, "text/plain", "");
                let location = format!("/openapi/v3/{name}?hash={hash}");
                response
                    .headers_mut()
                    .insert(LOCATION, HeaderValue::try_from(location).ok()?);
                return Some(response);
            }
            let document = openapi::v3_document(&source, &name)?;
            Some(tagged(parts, &hash, asked.is_some(), "application/json", || {
                codec::to_bytes(&document)
            }))
        }
        _ => None,
    }
}

fn tagged(
    parts: &Parts,
    hash: &str,
    immutable: bool,
    content_type: &'static str,
    make: impl FnOnce() -> Bytes,
) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = parts
        .headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v == tag);
    let mut response = if known {
        respond::raw(StatusCode::NOT_MODIFIED, content_type, "")
    } else {
        respond::raw(StatusCode::OK, content_type, make())
    };
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    if immutable {
        let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
        response.headers_mut().insert(CACHE_CONTROL, forever);
    }
    response
}
