//! Who wrote which fields: the bridge to `metadata.managedFields`.

use std::time::SystemTime;

use http::header::USER_AGENT;
use serde_json::Value;
use skiff_api::apply::{self, Write};
use skiff_api::kinds::Kind;
use skiff_api::meta;

use crate::server::Call;
use crate::writing::schema_of;

/// Longest name of a field manager.
pub const MAX_MANAGER_CHARS: usize = 128;
const UNKNOWN: &str = "unknown";

/// The writer of a request.
#[derive(Debug, Clone)]
pub struct Manager {
    name: String,
    subresource: String,
    /// The change sets the managed fields itself, as apply does.
    tracked: bool,
}

impl Manager {
    /// The manager a request names, or the program that sent it.
    pub fn of(call: &Call) -> Self {
        let agent = || {
            let agent = call.headers.get(USER_AGENT)?.to_str().ok()?;
            Some(agent.split('/').next().unwrap_or(agent)).filter(|a| !a.is_empty())
        };
        let name = call.query.get("fieldManager").or_else(agent).unwrap_or(UNKNOWN);
        Self {
            name: name
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_MANAGER_CHARS)
                .collect(),
            subresource: call.sub_name().to_owned(),
            tracked: false,
        }
    }

    /// This server itself.
    pub fn server() -> Self {
        Self {
            name: "skiff".to_owned(),
            subresource: String::new(),
            tracked: false,
        }
    }

    /// For a change that sets the managed fields itself.
    pub fn tracked(mut self) -> Self {
        self.tracked = true;
        self
    }

    /// Runs `f` with what [`apply`] wants to know.
    pub fn with_write<T>(&self, now: SystemTime, kind: &Kind, f: impl FnOnce(&Write<'_>) -> T) -> T {
        let api_version = kind.api_version();
        let time = meta::timestamp(now);
        let reset: &[&[&str]] = match self.subresource.as_str() {
            "" if kind.traits.status => &[&["status"]],
            "status" => &[&["spec"]],
            _ => &[],
        };
        f(&Write {
            view: schema_of(kind),
            api_version: &api_version,
            subresource: &self.subresource,
            manager: &self.name,
            time: &time,
            reset,
        })
    }

    /// Records the writer of a new object, which is in its stored version.
    pub fn created(&self, now: SystemTime, stored: &Kind, object: &mut Value) {
        if !self.tracked {
            self.with_write(now, stored, |write| apply::track_update(write, None, object));
        }
    }

    /// Records the writer of a change, both states in the stored version.
    pub fn updated(&self, now: SystemTime, stored: &Kind, new: &mut Value, old: &Value) {
        if !self.tracked {
            self.with_write(now, stored, |write| apply::track_update(write, Some(old), new));
        }
    }
}
