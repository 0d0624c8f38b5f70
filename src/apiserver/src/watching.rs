//! WATCH: changes as they happen, one JSON object a line.
//!
//! A watch starts with the state (when asked for, or when no place to start
//! from is given) read in pieces from a snapshot, and goes on with the store's
//! events from the snapshot's revision: nothing is missed, nothing comes twice.
//! A reader that is too slow loses its place in the store's ring and gets
//! 410 as an `ERROR` event; it never holds up a writer and holds at most
//! [`FRAME_BYTES`] here.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rand::Rng;
use serde_json::{Value, json};
use skiff_api::kinds::Kind;
use skiff_api::meta::Head;
use skiff_api::protobuf;
use skiff_api::status::{FieldError, Status};
use skiff_api::table;
use skiff_store::{Event, Snapshot, Watch};
use tokio::time::Instant;

use crate::negotiate::{Format, View};
use crate::reading::parse_revision;
use crate::selecting::Selection;
use crate::server::{ApiServer, Call};
use crate::{Body, BoxError, codec, respond};

/// How much is gathered before it is handed to the connection.
const FRAME_BYTES: usize = 64 << 10;
/// How often a watch that asked for bookmarks is told how far it has come.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Least time a watch lives that sets no limit; the real one is up to twice this, so that not all return at once.
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// A watch under way.
struct Watching {
    server: Arc<ApiServer>,
    kind: Arc<Kind>,
    view: View,
    format: Format,
    selection: Option<Selection>,
    /// Only this key, when one name is watched.
    only: Option<String>,
    prefix: String,
    initial: Option<Initial>,
    watch: Watch,
    bookmarks: bool,
    /// Revision the client knows it has.
    told: u64,
    next_bookmark: Instant,
    deadline: Instant,
    columns_sent: bool,
    ended: bool,
}

/// State still to be sent before the events.
struct Initial {
    snapshot: Snapshot,
    after: Option<String>,
    mark_end: bool,
}

impl ApiServer {
    /// Answers a WATCH.
    pub(crate) fn watch(self: &Arc<Self>, call: &Call) -> Result<Response<Body>, Status> {
        let kind = Arc::clone(&call.kind);
        let query = &call.query;
        let bookmarks = query.flag("allowWatchBookmarks");
        let send_initial = query.get("sendInitialEvents").map(|v| v == "true" || v == "1");
        let revision = parse_revision(query.get("resourceVersion"))?;
        let matching = query.get("resourceVersionMatch");
        let invalid = |field: &str, text: &str| {
            Err(Status::invalid(
                "ListOptions.meta.k8s.io",
                "",
                &[FieldError::forbidden(field, text)],
            ))
        };
        if send_initial.is_some() && matching != Some("NotOlderThan") {
            return invalid(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if send_initial.is_none() && matching.is_some() {
            return invalid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if send_initial == Some(true) && !bookmarks {
            return invalid(
                "allowWatchBookmarks",
                "sendInitialEvents requires setting allowWatchBookmarks to true",
            );
        }
        let selection = Selection::parse(&kind, query)?;
        let namespace = Some(call.info.namespace.as_str()).filter(|ns| !ns.is_empty());
        let name = Some(call.info.name.as_str())
            .filter(|n| !n.is_empty())
            .or_else(|| selection.as_ref().and_then(Selection::name));
        let (prefix, only) = match (name, namespace) {
            (Some(name), Some(namespace)) if kind.namespaced => {
                let key = kind.key(namespace, name);
                (key.clone(), Some(key))
            }
            (Some(name), _) if !kind.namespaced => (kind.key("", name), Some(kind.key("", name))),
            _ => (kind.prefix_in(namespace), None),
        };
        let seconds = match query.number::<u64>("timeoutSeconds")?.filter(|s| *s > 0) {
            Some(seconds) => seconds.min(7 * 24 * 3600),
            None => rand::rng().random_range(MIN_TIMEOUT_SECONDS..=2 * MIN_TIMEOUT_SECONDS),
        };

        let with_state = match send_initial {
            Some(wanted) => wanted,
            None => matches!(revision, None | Some(0)),
        };
        let (initial, watch, from) = if with_state {
            let (snapshot, watch) = loop {
                let snapshot = self.store.snapshot();
                if let Ok(watch) = self.store.watch(&prefix, Some(snapshot.revision())) {
                    break (snapshot, watch);
                }
            };
            if let Some(asked) = revision
                && asked > snapshot.revision()
            {
                return Err(crate::reading::too_large(asked, snapshot.revision()));
            }
            let from = snapshot.revision();
            (
                Some(Initial {
                    snapshot,
                    after: None,
                    mark_end: send_initial == Some(true),
                }),
                watch,
                from,
            )
        } else {
            let from = revision
                .filter(|r| *r > 0)
                .unwrap_or_else(|| self.store.revision());
            match self.store.watch(&prefix, Some(from)) {
                Ok(watch) => (None, watch, from),
                Err(gone) => {
                    let line = error_line(call.accept.format, &too_old(from, gone.oldest));
                    return Ok(stream_response(
                        call.accept.format,
                        futures::stream::once(async move { Ok(Frame::data(line)) }),
                    ));
                }
            }
        };
        let now = tokio_now();
        let watching = Watching {
            server: Arc::clone(self),
            kind,
            view: call.accept.view,
            format: call.accept.format,
            selection,
            only,
            prefix,
            initial,
            watch,
            bookmarks,
            told: from,
            next_bookmark: now + BOOKMARK_INTERVAL,
            deadline: now + Duration::from_secs(seconds),
            columns_sent: false,
            ended: false,
        };
        let shutdown = self.shutdown.clone();
        let frames = futures::stream::unfold(watching, |mut watching| async move {
            let frame = watching.next_frame().await?;
            Some((Ok(Frame::data(frame)), watching))
        });
        let frames = frames.take_until(async move { shutdown.cancelled().await });
        Ok(stream_response(call.accept.format, frames))
    }
}

/// Tokio's clock, which tests can pause; only timers depend on it.
fn tokio_now() -> Instant {
    Instant::now()
}

fn stream_response<S>(format: Format, frames: S) -> Response<Body>
where
    S: Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static,
{
    let content_type = match format {
        Format::Protobuf => protobuf::WATCH_MEDIA_TYPE,
        Format::Json | Format::Yaml => "application/json",
    };
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn too_old(asked: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {asked} ({oldest})"))
}

fn error_line(format: Format, status: &Status) -> Bytes {
    let mut line = BytesMut::new();
    let written = write_event(&mut line, format, "ERROR", &status.to_bytes());
    debug_assert!(written.is_ok(), "a status has a form in every encoding");
    line.freeze()
}

/// Appends an event with an object that is given in JSON.
fn write_event(out: &mut BytesMut, format: Format, kind: &str, object: &[u8]) -> Result<(), Status> {
    if format == Format::Protobuf {
        protobuf::watch_frame(out, kind, &respond::to_protobuf(object)?);
        return Ok(());
    }
    out.reserve(object.len() + 32);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    Ok(())
}

impl Watching {
    /// The next piece of the stream; none at its end.
    async fn next_frame(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::new();
        if self.initial.is_some() {
            match self.write_initial(&mut out) {
                Ok(()) if !out.is_empty() => return Some(out.freeze()),
                Ok(()) => {}
                Err(status) => return Some(self.fail(&status)),
            }
        }
        loop {
            let wake = if self.bookmarks {
                self.next_bookmark.min(self.deadline)
            } else {
                self.deadline
            };
            let event = tokio::select! {
                biased;
                event = self.watch.next() => event,
                () = tokio::time::sleep_until(wake) => {
                    let now = tokio_now();
                    let ending = now >= self.deadline;
                    let progress = self.watch.progress();
                    self.next_bookmark = now + BOOKMARK_INTERVAL;
                    if self.bookmarks
                        && progress > self.told
                        && let Err(status) = self.write_bookmark(&mut out, progress, false)
                    {
                        return Some(self.fail(&status));
                    }
                    self.ended = ending;
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                    if ending {
                        return None;
                    }
                    continue;
                }
            };
            let mut next = match event {
                None => return None,
                Some(event) => event.map(Some),
            };
            // What else is there already goes into the same frame.
            loop {
                match next {
                    Ok(Some(event)) => {
                        if let Err(status) = self.write_change(&mut out, &event) {
                            return Some(self.fail(&status));
                        }
                    }
                    Ok(None) => break,
                    Err(gone) => {
                        let line = self.fail(&too_old(self.told, gone.oldest));
                        out.put_slice(&line);
                        return Some(out.freeze());
                    }
                }
                if out.len() >= FRAME_BYTES {
                    break;
                }
                next = self.watch.try_next();
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    fn fail(&mut self, status: &Status) -> Bytes {
        self.ended = true;
        error_line(self.format, status)
    }

    fn selects(&self, key: &str, bytes: &Bytes) -> Result<bool, Status> {
        if self.only.as_deref().is_some_and(|only| only != key) {
            return Ok(false);
        }
        let Some(selection) = &self.selection else {
            return Ok(true);
        };
        let head = Head::parse(&self.kind, bytes).map_err(Status::internal)?;
        Ok(selection.matches(&self.kind, &head))
    }

    fn write_initial(&mut self, out: &mut BytesMut) -> Result<(), Status> {
        let Some(mut initial) = self.initial.take() else {
            return Ok(());
        };
        let snapshot = initial.snapshot.clone();
        let prefix = self.prefix.clone();
        let after = initial.after.take();
        let mut full = false;
        for entry in snapshot.range(&prefix, after.as_deref()) {
            if out.len() >= FRAME_BYTES {
                full = true;
                break;
            }
            if self.selects(&entry.key, &entry.value)? {
                let object = self.shown(&entry.value)?;
                write_event(out, self.format, "ADDED", &object)?;
            }
            initial.after = Some(entry.key.to_string());
        }
        if full {
            self.initial = Some(initial);
        } else if initial.mark_end {
            self.write_bookmark(out, snapshot.revision(), true)?;
        }
        Ok(())
    }

    /// One change, seen through the selection: an object that comes into it is
    /// added, one that leaves it is deleted.
    fn write_change(&mut self, out: &mut BytesMut, event: &Event) -> Result<(), Status> {
        let is = match &event.value {
            Some(entry) => self.selects(&event.key, &entry.value)?,
            None => false,
        };
        let was = match &event.previous {
            Some(entry) => self.selects(&event.key, &entry.value)?,
            None => false,
        };
        let (kind, bytes) = match (was, is, &event.value, &event.previous) {
            (false, true, Some(entry), _) => ("ADDED", entry.value.clone()),
            (true, true, Some(entry), _) => ("MODIFIED", entry.value.clone()),
            (true, false, _, Some(previous)) => {
                // The last selected state, at the revision of the change.
                ("DELETED", codec::with_revision(&previous.value, event.revision))
            }
            _ => return Ok(()),
        };
        let object = self.shown(&bytes)?;
        write_event(out, self.format, kind, &object)?;
        self.told = event.revision;
        Ok(())
    }

    /// An object as this watch shows it.
    fn shown(&mut self, bytes: &Bytes) -> Result<Bytes, Status> {
        match self.view {
            View::Whole | View::Discovery => codec::present(&self.kind, bytes),
            View::Metadata => Ok(codec::to_bytes(&respond::partial(codec::present_value(
                &self.kind, bytes,
            )?))),
            View::Table(include) => {
                let object = codec::present_value(&self.kind, bytes)?;
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let objects = std::slice::from_ref(&object);
                let mut table = table::table(&self.kind, objects, metadata, self.server.clock.now(), include);
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                Ok(codec::to_bytes(&table))
            }
        }
    }

    fn write_bookmark(&mut self, out: &mut BytesMut, revision: u64, initial_end: bool) -> Result<(), Status> {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (kind, version) = match self.view {
            View::Metadata => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
            View::Table(_) => ("Table".into(), "meta.k8s.io/v1".into()),
            View::Whole | View::Discovery => (self.kind.kind.clone(), self.kind.api_version()),
        };
        let mut object = json!({ "kind": kind, "apiVersion": version, "metadata": metadata });
        if matches!(self.view, View::Table(_)) {
            object["columnDefinitions"] = table::columns(&self.kind);
            object["rows"] = json!([]);
            if self.columns_sent {
                object["columnDefinitions"] = Value::Null;
            }
        }
        write_event(out, self.format, "BOOKMARK", &codec::to_bytes(&object))?;
        self.told = revision;
        Ok(())
    }
}
