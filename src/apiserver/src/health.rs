//! `/healthz`, `/livez`, `/readyz`, `/version`, `/metrics`.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::json;
use skiff_base::metrics;

use crate::request::Query;
use crate::server::ApiServer;
use crate::{Body, respond};

const TEXT: &str = "text/plain; charset=utf-8";
/// The Kubernetes version whose API is served.
const MINOR: &str = "36";
const GIT_VERSION: &str = concat!(
    "v1.36.1+skiff",
    env!("CARGO_PKG_VERSION_MAJOR"),
    ".",
    env!("CARGO_PKG_VERSION_MINOR")
);

type Check = fn(&ApiServer) -> Result<(), &'static str>;

/// Checks by name; the third says which of healthz, livez, readyz run it.
const CHECKS: &[(&str, Check, &[&str])] = &[
    ("ping", |_| Ok(()), &["healthz", "livez", "readyz"]),
    ("log", |_| Ok(()), &["healthz", "livez", "readyz"]),
    ("etcd", store, &["healthz", "livez", "readyz"]),
    (
        "poststarthook/rbac/bootstrap-roles",
        bootstrapped,
        &["healthz", "livez", "readyz"],
    ),
    (
        "poststarthook/start-system-namespaces-controller",
        bootstrapped,
        &["healthz", "livez", "readyz"],
    ),
    ("shutdown", stopping, &["readyz"]),
];

fn store(server: &ApiServer) -> Result<(), &'static str> {
    if server.store.revision() > 0 {
        Ok(())
    } else {
        Err("the store has no revision yet")
    }
}

fn bootstrapped(server: &ApiServer) -> Result<(), &'static str> {
    if server.started.load(std::sync::atomic::Ordering::Acquire) {
        Ok(())
    } else {
        Err("not finished")
    }
}

fn stopping(server: &ApiServer) -> Result<(), &'static str> {
    if server.shutdown.is_cancelled() {
        Err("process is shutting down")
    } else {
        Ok(())
    }
}

/// Answers the paths of this module.
pub fn answer(server: &Arc<ApiServer>, path: &str, query: &Query) -> Option<Response<Body>> {
    match path {
        "/version" => {
            return Some(respond::json_response(
                StatusCode::OK,
                &json!({
                    "major": "1", "minor": MINOR, "emulationMajor": "1", "emulationMinor": MINOR,
                    "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": GIT_VERSION,
                    "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
                    "goVersion": "none", "compiler": "rustc",
                    "platform": format!("linux/{}", platform()),
                }),
            ));
        }
        "/metrics" => {
            let text = metrics::global().render();
            return Some(respond::raw(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                text,
            ));
        }
        _ => {}
    }
    let (endpoint, single) = path
        .strip_prefix('/')?
        .split_once('/')
        .unwrap_or((path.strip_prefix('/')?, ""));
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let checks: Vec<_> = CHECKS
        .iter()
        .filter(|(name, _, on)| on.contains(&endpoint) && (single.is_empty() || *name == single))
        .collect();
    if checks.is_empty() {
        return None;
    }
    let mut text = String::new();
    let mut failed = Vec::new();
    for (name, check, _) in checks {
        if excluded.contains(name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match check(server) {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed.push(*name);
                text.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    Some(if failed.is_empty() {
        let verbose = query.flag("verbose");
        let body = if verbose {
            format!("{text}{endpoint} check passed\n")
        } else {
            "ok".to_owned()
        };
        respond::raw(StatusCode::OK, TEXT, body)
    } else {
        tracing::debug!(?failed, "{endpoint} check failed");
        respond::raw(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("{text}{endpoint} check failed\n"),
        )
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
