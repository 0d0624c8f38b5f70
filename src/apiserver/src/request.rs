//! What a request asks for: path, verb, query and body.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use skiff_api::status::Status;

use crate::authz::Attributes;
use crate::{Body, BoxError};

/// Largest request body, as Kubernetes allows.
pub const MAX_BODY_BYTES: usize = 3 << 20;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Query parameters looked at; more are a mistake or an attack.
const MAX_PARAMETERS: usize = 512;

/// A request taken apart, as `RequestInfo` does in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether this is about a resource; otherwise about `path`.
    pub is_resource: bool,
    /// The URL path.
    pub path: String,
    /// Verb: `get`, `list`, `create`, ... or the HTTP method in lower case.
    pub verb: &'static str,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: String,
    /// Resource, plural.
    pub resource: String,
    /// Subresource, often empty.
    pub subresource: String,
    /// Object name, often empty.
    pub name: String,
    /// What follows the subresource, for proxies; starts with `/` when present.
    pub rest: String,
    /// The path uses the removed `/watch/` or `/proxy/` prefix.
    pub legacy: bool,
    /// The field selector as given.
    pub field_selector: String,
}

impl RequestInfo {
    /// Takes a method and path apart.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let lower = match *method {
            Method::GET => "get",
            Method::HEAD => "head",
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::OPTIONS => "options",
            _ => "other",
        };
        let mut info = Self {
            path: path.to_owned(),
            verb: lower,
            ..Self::default()
        };
        let mut segments = path
            .trim_matches('/')
            .split('/')
            .map(|s| percent_decode_str(s).decode_utf8_lossy());
        match segments.next().as_deref() {
            Some("api") => {}
            Some("apis") => match segments.next() {
                Some(group) => info.group = group.into_owned(),
                None => return info,
            },
            _ => return info,
        }
        let Some(version) = segments.next() else {
            return info;
        };
        info.version = version.into_owned();
        let rest: Vec<String> = segments.map(|s| s.into_owned()).collect();
        let mut rest = rest.as_slice();
        if rest.is_empty() || rest[0].is_empty() {
            return info;
        }
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => lower,
        };
        if matches!(rest[0].as_str(), "watch" | "proxy") && rest.len() > 1 {
            info.legacy = true;
            rest = &rest[1..];
        }
        if rest[0] == "namespaces" && rest.len() > 1 {
            info.namespace = rest[1].clone();
            let own =
                rest.len() == 2 || (rest.len() == 3 && matches!(rest[2].as_str(), "status" | "finalize"));
            if !own {
                rest = &rest[2..];
            }
        }
        info.resource = rest[0].clone();
        info.name = rest.get(1).cloned().unwrap_or_default();
        info.subresource = rest.get(2).cloned().unwrap_or_default();
        if rest.len() > 3 {
            // The raw text is kept: a proxied path must arrive as it was sent.
            let skip = path.trim_start_matches('/').split('/').count() - (rest.len() - 3);
            let raw: Vec<&str> = path.trim_start_matches('/').split('/').skip(skip).collect();
            info.rest = format!("/{}", raw.join("/"));
        } else if path.ends_with('/') && !info.subresource.is_empty() {
            info.rest = "/".to_owned();
        }
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" };
        } else if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection";
        } else if info.verb == "get" && info.subresource.is_empty() && query.flag("watch") {
            // A watch of one object by path, as old clients ask for it.
            info.verb = "watch";
        }
        if matches!(info.verb, "list" | "watch" | "deletecollection") {
            info.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            if info.name.is_empty() {
                info.name = single_name(&info.field_selector).unwrap_or_default().to_owned();
            }
        }
        info
    }

    /// What the authorizers look at.
    pub fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: self.verb,
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            is_resource: self.is_resource,
            path: &self.path,
            field_selector: &self.field_selector,
        }
    }
}

fn single_name(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let value = term.trim().strip_prefix("metadata.name")?;
        value
            .strip_prefix("==")
            .or_else(|| value.strip_prefix('='))
            .filter(|v| !v.is_empty())
    })
}

/// Decoded query parameters, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`.
    pub fn parse(raw: Option<&str>) -> Self {
        let decode = |s: &str| {
            let spaced = s.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = raw
            .unwrap_or_default()
            .split('&')
            .filter(|p| !p.is_empty())
            .take(MAX_PARAMETERS)
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(key), decode(value))
            });
        Self(pairs.collect())
    }

    /// The first value of a parameter; present but empty counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty())
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// Every parameter.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether a parameter is set to something true.
    pub fn flag(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .is_some_and(|(_, v)| matches!(v.as_str(), "" | "1" | "true" | "True"))
    }

    /// A parameter as a number.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Status> {
        match self.get(key) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing \"{text}\": invalid syntax: query parameter {key}"
                ))
            }),
        }
    }
}

/// Reads a body whole, within limits.
pub async fn read_body(body: Body) -> Result<Bytes, Status> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, MAX_BODY_BYTES)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(Status::too_large(&format!("limit is {MAX_BODY_BYTES}"))),
        Ok(Err(error)) => Err(Status::bad_request(format!(
            "reading the request body failed: {error}"
        ))),
        Err(_) => Err(Status::timeout("the request body did not arrive in time", 0)),
    }
}

/// All bytes of a body; none when there are more than `max`.
pub async fn collect(mut body: Body, max: usize) -> Result<Option<Bytes>, BoxError> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let have = rest.as_ref().map_or(first.len(), BytesMut::len);
        if have + data.len() > max {
            return Ok(None);
        }
        match &mut rest {
            // One frame is the usual case and needs no copy.
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::with_capacity((first.len() + data.len()) * 2);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
            Some(joined) => joined.extend_from_slice(&data),
        }
    }
    Ok(Some(rest.map_or(first, BytesMut::freeze)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, target: &str) -> RequestInfo {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        RequestInfo::parse(&method, path, &Query::parse(Some(query)))
    }

    #[test]
    fn paths_are_taken_apart() {
        // method, target -> verb, group, namespace, resource, subresource, name, rest
        let cases = [
            (Method::GET, "/api/v1/pods", ["list", "", "", "pods", "", "", ""]),
            (
                Method::GET,
                "/api/v1/pods?watch=true",
                ["watch", "", "", "pods", "", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/b",
                ["get", "", "a", "pods", "", "b", ""],
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods/b/binding",
                ["create", "", "a", "pods", "binding", "b", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces",
                ["list", "", "", "namespaces", "", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                ["get", "", "a", "namespaces", "", "a", ""],
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                ["update", "", "a", "namespaces", "finalize", "a", ""],
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments",
                ["deletecollection", "apps", "a", "deployments", "", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/a%2Fb/c",
                ["get", "", "", "nodes", "proxy", "n", "/a%2Fb/c"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/services/s:80/proxy/",
                ["get", "", "a", "services", "proxy", "s:80", "/"],
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name%3Dx",
                ["list", "", "", "pods", "", "x", ""],
            ),
        ];
        for (method, target, want) in cases {
            let got = parse(method, target);
            assert!(got.is_resource, "{target}");
            let fields = [
                got.verb,
                &got.group,
                &got.namespace,
                &got.resource,
                &got.subresource,
                &got.name,
                &got.rest,
            ];
            assert_eq!(fields, want, "{target}");
        }
        for target in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/version",
            "/healthz/ping",
        ] {
            assert!(!parse(Method::GET, target).is_resource, "{target}");
        }
        assert!(parse(Method::GET, "/api/v1/watch/pods").legacy);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("a=b%20c+d&watch&e=&a=2"));
        assert_eq!(query.get("a"), Some("b c d"));
        assert_eq!(query.all("a").count(), 2);
        assert!(query.flag("watch") && query.get("e").is_none());
        assert!(Query::parse(Some("limit=x")).number::<u64>("limit").is_err());
    }
}
