//! The parameters of operations, and how they are written.

use serde_json::{Value, json};

/// The query parameter "path", apart from the path parameter of that name.
pub(super) const PATH_QUERY: &str = "path-query";

/// Every parameter.
const PARAMETERS: &[Row] = &[
    ("name", "path", "string", "name of the object"),
    ("namespace", "path", "string", "namespace of the object"),
    ("path", "path", "string", "path below the proxied address"),
    (PATH_QUERY, "query", "string", "path below the proxied address"),
    (
        "pretty",
        "query",
        "string",
        "whether the answer is indented; indented by default for browsers and curl",
    ),
    (
        "allowWatchBookmarks",
        "query",
        "boolean",
        "send bookmarks: events that carry nothing but a resource version",
    ),
    (
        "continue",
        "query",
        "string",
        "the continue token of the previous part of a list",
    ),
    (
        "fieldSelector",
        "query",
        "string",
        "only objects whose fields match",
    ),
    (
        "labelSelector",
        "query",
        "string",
        "only objects whose labels match",
    ),
    (
        "limit",
        "query",
        "integer",
        "largest number of objects in one part of a list",
    ),
    (
        "resourceVersion",
        "query",
        "string",
        "the resource version that the answer must be at, or be newer than",
    ),
    (
        "resourceVersionMatch",
        "query",
        "string",
        "how resourceVersion is meant: Exact or NotOlderThan",
    ),
    (
        "sendInitialEvents",
        "query",
        "boolean",
        "begin a watch with what there is, then a bookmark",
    ),
    (
        "timeoutSeconds",
        "query",
        "integer",
        "end the request after so many seconds",
    ),
    (
        "watch",
        "query",
        "boolean",
        "answer with a stream of changes instead of a list",
    ),
    (
        "dryRun",
        "query",
        "string",
        "All: do everything but store the result",
    ),
    (
        "fieldManager",
        "query",
        "string",
        "name of who makes the change, for managed fields; at most 128 characters",
    ),
    (
        "fieldValidation",
        "query",
        "string",
        "what to do about unknown and duplicate fields: Ignore drops them, Warn drops them and warns, Strict refuses the request",
    ),
    (
        "force",
        "query",
        "boolean",
        "take fields over that other managers own; for apply patches only",
    ),
    (
        "gracePeriodSeconds",
        "query",
        "integer",
        "time that the object has to end; zero deletes at once",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "query",
        "boolean",
        "delete an object that cannot be read any more, without regard for finalizers",
    ),
    (
        "orphanDependents",
        "query",
        "boolean",
        "deprecated: use propagationPolicy",
    ),
    (
        "propagationPolicy",
        "query",
        "string",
        "what happens to dependents: Orphan, Background or Foreground",
    ),
    (
        "command",
        "query",
        "string",
        "the command to run, one argument per parameter; no shell is involved",
    ),
    (
        "container",
        "query",
        "string",
        "name of the container; may be left out when there is only one",
    ),
    ("stdin", "query", "boolean", "connect standard input"),
    ("stdout", "query", "boolean", "connect standard output"),
    ("stderr", "query", "boolean", "connect standard error"),
    ("tty", "query", "boolean", "allocate a terminal"),
    (
        "ports",
        "query",
        "integer",
        "ports to forward; needed by WebSocket clients",
    ),
    (
        "follow",
        "query",
        "boolean",
        "keep sending what is logged from now on",
    ),
    (
        "insecureSkipTLSVerifyBackend",
        "query",
        "boolean",
        "do not check the certificate of the node",
    ),
    (
        "limitBytes",
        "query",
        "integer",
        "end the log after so many bytes",
    ),
    (
        "previous",
        "query",
        "boolean",
        "the log of the container that ended before this one",
    ),
    (
        "sinceSeconds",
        "query",
        "integer",
        "only the log of the last so many seconds",
    ),
    ("stream", "query", "string", "All, Stdout or Stderr"),
    ("tailLines", "query", "integer", "only so many lines from the end"),
    (
        "timestamps",
        "query",
        "boolean",
        "a time at the start of every line",
    ),
];

pub(super) const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
pub(super) const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];
pub(super) const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
pub(super) const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
pub(super) const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
pub(super) const LOG: &[&str] = &[
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];

/// Key, place, type, text.
type Row = (&'static str, &'static str, &'static str, &'static str);

fn row(key: &str) -> Option<Row> {
    PARAMETERS.iter().find(|row| row.0 == key).copied()
}

/// The name on the wire.
fn wire_name(key: &'static str) -> &'static str {
    if key == PATH_QUERY { "path" } else { key }
}

pub(super) fn parameter_v3(name: &str) -> Option<Value> {
    let (name, place, kind, text) = row(name)?;
    let mut out = json!({ "name": wire_name(name), "in": place, "description": text, "schema": { "type": kind, "uniqueItems": true } });
    if place == "path" {
        out["required"] = true.into();
    }
    Some(out)
}

fn parameter_v2(name: &str) -> Option<Value> {
    let (name, place, kind, text) = row(name)?;
    let mut out = json!({ "name": wire_name(name), "in": place, "description": text, "type": kind, "uniqueItems": true });
    if place == "path" {
        out["required"] = true.into();
    }
    Some(out)
}

/// Clients look for these in the operation itself.
const INLINE: &[&str] = &["dryRun", "fieldValidation"];

pub(super) fn parameter_reference(name: &str) -> Option<Value> {
    if INLINE.contains(&name) {
        parameter_v2(name)
    } else {
        Some(json!({ "$ref": format!("#/parameters/{name}") }))
    }
}

/// The parameters that version 2 refers to.
pub(super) fn shared_parameters() -> Value {
    let shared = PARAMETERS.iter().filter(|row| !INLINE.contains(&row.0));
    Value::Object(
        shared
            .filter_map(|row| Some((row.0.to_owned(), parameter_v2(row.0)?)))
            .collect(),
    )
}
