//! GET and LIST.
//!
//! Both read a snapshot in memory. A list without selector in plain JSON is a
//! concatenation of stored bytes. A list in pages keeps its snapshot for the
//! next page, so all pages show one moment; when the snapshot is no longer
//! kept the client gets 410 with a token that goes on inconsistently.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_api::kinds::Kind;
use skiff_api::meta::Head;
use skiff_api::protobuf::ListWriter;
use skiff_api::status::{FieldError, Status};
use skiff_api::table;
use skiff_store::{Entry, Snapshot};

use crate::negotiate::{Format, View};
use crate::selecting::Selection;
use crate::server::{ApiServer, Call};
use crate::{Body, codec, respond};

/// Snapshots kept for further pages. Each pins what has changed since it was taken.
const KEPT_SNAPSHOTS: usize = 32;
/// How long a snapshot is kept, as etcd keeps history for Kubernetes.
const SNAPSHOT_AGE: Duration = Duration::from_secs(300);
/// Longest continue token.
const MAX_TOKEN_BYTES: usize = 4096;
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// The snapshots behind lists that are being paged.
#[derive(Default)]
pub struct Pages {
    kept: Mutex<VecDeque<(Instant, Snapshot)>>,
}

impl Pages {
    fn keep(&self, snapshot: &Snapshot, now: Instant) {
        let mut kept = self.kept.lock();
        kept.retain(|(taken, s)| {
            now.duration_since(*taken) < SNAPSHOT_AGE && s.revision() != snapshot.revision()
        });
        if kept.len() >= KEPT_SNAPSHOTS {
            kept.pop_front();
        }
        kept.push_back((now, snapshot.clone()));
    }

    fn find(&self, revision: u64, now: Instant) -> Option<Snapshot> {
        let mut kept = self.kept.lock();
        kept.retain(|(taken, _)| now.duration_since(*taken) < SNAPSHOT_AGE);
        kept.iter()
            .find(|(_, s)| s.revision() == revision)
            .map(|(_, s)| s.clone())
    }
}

/// Where a list goes on: after `start` in the snapshot of `rv`; -1 means the
/// present.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(rv: i64, start: &str) -> String {
        let token = Continue {
            v: "meta.k8s.io/v1".to_owned(),
            rv,
            start: start.to_owned(),
        };
        B64.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let token: Self = serde_json::from_slice(&B64.decode(text).ok()?).ok()?;
        (token.v == "meta.k8s.io/v1" && token.rv >= -1).then_some(token)
    }
}

/// The parameters of a list, checked.
struct ListOptions {
    limit: usize,
    token: Option<Continue>,
    exact: bool,
    revision: Option<u64>,
}

impl ListOptions {
    fn parse(call: &Call) -> Result<Self, Status> {
        let query = &call.query;
        let invalid = |error| Status::invalid("ListOptions.meta.k8s.io", "", &[error]);
        let limit = query.number::<u64>("limit")?.unwrap_or(0) as usize;
        if query.get("sendInitialEvents").is_some() {
            return Err(invalid(FieldError::forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            )));
        }
        let matching = query.get("resourceVersionMatch");
        let revision = parse_revision(query.get("resourceVersion"))?;
        let token = query.get("continue");
        if let Some(matching) = matching {
            let field = "resourceVersionMatch";
            if token.is_some() {
                let text = "resourceVersionMatch is forbidden when continue is provided";
                return Err(invalid(FieldError::forbidden(field, text)));
            }
            if revision.is_none() {
                let text = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(invalid(FieldError::forbidden(field, text)));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                let supported = &["Exact", "NotOlderThan"];
                return Err(invalid(FieldError::not_supported(field, matching, supported)));
            }
            if matching == "Exact" && revision == Some(0) {
                let text = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                return Err(invalid(FieldError::forbidden(field, text)));
            }
        }
        let token = match token {
            None => None,
            Some(_) if revision.is_some_and(|r| r > 0) => {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            Some(text) => {
                Some(Continue::decode(text).ok_or_else(|| Status::bad_request("continue key is not valid"))?)
            }
        };
        let exact = match matching {
            Some(m) => m == "Exact",
            None => limit > 0 && revision.is_some_and(|r| r > 0),
        };
        Ok(Self {
            limit,
            token,
            exact,
            revision,
        })
    }
}

/// A resourceVersion parameter.
pub fn parse_revision(text: Option<&str>) -> Result<Option<u64>, Status> {
    text.map(|text| {
        text.parse().map_err(|_| {
            Status::invalid(
                "ListOptions.meta.k8s.io",
                "",
                &[FieldError::invalid(
                    "resourceVersion",
                    text,
                    "strconv.ParseUint: parsing: invalid syntax",
                )],
            )
        })
    })
    .transpose()
}

/// The error for a resourceVersion that has not happened yet.
pub fn too_large(asked: u64, current: u64) -> Status {
    Status::timeout(
        format!("Too large resource version: {asked}, current: {current}"),
        1,
    )
    .with_cause("ResourceVersionTooLarge", "Too large resource version", "")
}

impl ApiServer {
    /// Answers a GET of one object (or of a subresource that shows it).
    pub(crate) fn get(&self, call: &Call) -> Result<Response<Body>, Status> {
        let entry = self.find(call)?;
        let current = self.store.revision();
        if let Some(asked) = parse_revision(call.query.get("resourceVersion"))?
            && asked > current
        {
            return Err(too_large(asked, current));
        }
        respond::object(
            self,
            call,
            StatusCode::OK,
            codec::present(&call.kind, &entry.value)?,
        )
    }

    /// The stored object a call names.
    pub(crate) fn find(&self, call: &Call) -> Result<Entry, Status> {
        self.store
            .get(&call.kind.key(&call.info.namespace, &call.info.name))
            .ok_or_else(|| Status::not_found(&call.kind.group_resource(), &call.info.name))
    }

    fn list_snapshot(&self, options: &ListOptions) -> Result<Snapshot, Status> {
        let now = self.clock.monotonic();
        if let Some(token) = &options.token {
            let Ok(revision) = u64::try_from(token.rv) else {
                return Ok(self.store.snapshot());
            };
            return self.pages.find(revision, now).ok_or_else(|| {
                let mut status = Status::expired(TOO_OLD);
                status
                    .metadata
                    .insert("continue".to_owned(), Continue::encode(-1, &token.start).into());
                status
            });
        }
        let snapshot = self.store.snapshot();
        let current = snapshot.revision();
        match options.revision {
            Some(asked) if asked > current => Err(too_large(asked, current)),
            Some(asked) if options.exact && asked != current => {
                self.pages.find(asked, now).ok_or_else(|| {
                    Status::expired(format!(
                        "The resourceVersion for the provided list is too old: {asked}"
                    ))
                })
            }
            _ => Ok(snapshot),
        }
    }

    /// Answers a LIST.
    pub(crate) fn list(&self, call: &Call) -> Result<Response<Body>, Status> {
        let kind = &call.kind;
        let options = ListOptions::parse(call)?;
        let selection = Selection::parse(kind, &call.query)?;
        let snapshot = self.list_snapshot(&options)?;
        let namespace = Some(call.info.namespace.as_str()).filter(|ns| !ns.is_empty());
        let prefix = kind.prefix_in(namespace);
        let start = options
            .token
            .as_ref()
            .map(|token| format!("{prefix}{}", token.start));

        let mut chosen: Vec<&Entry> = Vec::new();
        let mut next = None;
        for entry in snapshot.range(&prefix, start.as_deref()) {
            if let Some(selection) = &selection {
                let head = Head::parse(kind, &entry.value).map_err(Status::internal)?;
                if !selection.matches(kind, &head) {
                    continue;
                }
            }
            if options.limit > 0 && chosen.len() == options.limit {
                let last = chosen[chosen.len() - 1];
                next = Some(last.key[prefix.len()..].to_owned());
                break;
            }
            chosen.push(entry);
        }
        let mut metadata = json!({ "resourceVersion": snapshot.revision().to_string() });
        if let Some(next) = next {
            let paging = options.token.as_ref().is_some_and(|t| t.rv < 0);
            let rv = if paging { -1 } else { snapshot.revision() as i64 };
            metadata["continue"] = Continue::encode(rv, &next).into();
            if selection.is_none() {
                let after = format!("{prefix}{next}");
                metadata["remainingItemCount"] = snapshot.range(&prefix, Some(&after)).count().into();
            }
            if rv >= 0 {
                self.pages.keep(&snapshot, self.clock.monotonic());
            }
        }
        if call.accept.format == Format::Protobuf {
            let body = self.list_protobuf(call, &chosen, &metadata)?;
            return Ok(respond::raw(StatusCode::OK, call.accept.content_type(), body));
        }
        let body = self.list_body(call, &chosen, metadata)?;
        Ok(respond::encoded(StatusCode::OK, call.accept, body))
    }

    /// The list in protobuf, written object by object.
    fn list_protobuf(&self, call: &Call, entries: &[&Entry], metadata: &Value) -> Result<Bytes, Status> {
        let kind = &call.kind;
        let mut writer = match call.accept.view {
            View::Metadata => ListWriter::new("meta.k8s.io/v1", "PartialObjectMetadataList", metadata),
            _ => ListWriter::new(&kind.api_version(), &kind.list_kind, metadata),
        }
        .map_err(Status::internal)?;
        for entry in entries {
            writer
                .push(&codec::present_value(kind, &entry.value)?)
                .map_err(Status::internal)?;
        }
        Ok(writer.finish().into())
    }

    fn list_body(&self, call: &Call, entries: &[&Entry], metadata: Value) -> Result<Bytes, Status> {
        let kind = &call.kind;
        let objects = || entries.iter().map(|e| codec::present_value(kind, &e.value));
        match call.accept.view {
            View::Whole | View::Discovery if kind.is_storage_version() && !kind.traits.custom => {
                Ok(splice(kind, &metadata, entries.iter().map(|e| &e.value)))
            }
            View::Whole | View::Discovery => {
                let items: Vec<Bytes> = entries
                    .iter()
                    .map(|e| codec::present(kind, &e.value))
                    .collect::<Result<_, _>>()?;
                Ok(splice(kind, &metadata, items.iter()))
            }
            View::Metadata => {
                let items: Vec<Value> = objects()
                    .map(|o| o.map(respond::partial))
                    .collect::<Result<_, Status>>()?;
                Ok(codec::to_bytes(&json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items,
                })))
            }
            View::Table(include) => {
                let objects: Vec<Value> = objects().collect::<Result<_, _>>()?;
                Ok(codec::to_bytes(&table::table(
                    kind,
                    &objects,
                    metadata,
                    self.clock.now(),
                    include,
                )))
            }
        }
    }

    /// Every object of a kind in a namespace (or everywhere), parsed. For
    /// admission and subresources, not for lists that clients ask for.
    pub(crate) fn objects(&self, kind: &Kind, namespace: Option<&str>) -> Vec<Value> {
        let snapshot = self.store.snapshot();
        snapshot
            .range(&kind.prefix_in(namespace), None)
            .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
            .collect()
    }

    /// One object by kind and name, parsed.
    pub(crate) fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = self.core(plural);
        let entry = self.store.get(&kind.key(namespace, name))?;
        serde_json::from_slice(&entry.value).ok()
    }
}

/// A list in JSON, items copied as they are.
fn splice<'a>(kind: &Kind, metadata: &Value, items: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let size: usize = items.clone().map(|item| item.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":{:?},\"apiVersion\":{:?},\"metadata\":{metadata},\"items\":[",
        kind.list_kind,
        kind.api_version()
    );
    out.put_slice(head.as_bytes());
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        out.put_slice(item);
    }
    out.put_slice(b"]}");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_survive_and_garbage_does_not() {
        let text = Continue::encode(7, "ns/name");
        let token = Continue::decode(&text).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/name"));
        for bad in [
            "",
            "x",
            "e30",
            &B64.encode(br#"{"v":"other","rv":1,"start":"a"}"#),
        ] {
            assert_eq!(Continue::decode(bad), None, "{bad}");
        }
    }
}
