//! Paths and operations of a kind, and how they are written in both versions of OpenAPI.

use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Subresource};
use crate::schema::Schema;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Content types of answers.
const MEDIA: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
/// Content types of answers that can be watches.
const WATCH_MEDIA: &[&str] = &[
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const PATCH_MEDIA: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Every parameter: name, place, type, text.
const PARAMETERS: &[(&str, &str, &str, &str)] = &[
    ("name", "path", "string", "name of the object"),
    ("namespace", "path", "string", "namespace of the object"),
    ("path", "path", "string", "path below the proxied address"),
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

const LIST: &[&str] = &[
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
const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];
const DELETE_COLLECTION: &[&str] = &[
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
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const LOG: &[&str] = &[
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

/// What a body or an answer contains.
#[derive(Clone)]
enum Content {
    Definition(String),
    Text,
}

struct Operation {
    method: &'static str,
    id: String,
    text: String,
    action: Option<&'static str>,
    gvk: Option<Value>,
    tag: String,
    parameters: &'static [&'static str],
    body: Option<(String, bool)>,
    answers: Vec<(&'static str, Content)>,
    watchable: bool,
    connects: bool,
}

/// One path with its operations.
pub(super) struct PathItem {
    pub(super) path: String,
    parameters: Vec<&'static str>,
    operations: Vec<Operation>,
}

/// Paths that belong to no group.
pub(super) fn fixed(name: &str) -> Option<PathItem> {
    let (id, text, tag, answer) = match name {
        "api" => (
            "getCoreAPIVersions",
            "get available API versions",
            "core",
            Some("APIVersions"),
        ),
        "apis" => (
            "getAPIVersions",
            "get available API versions",
            "apis",
            Some("APIGroupList"),
        ),
        "version" => (
            "getCodeVersion",
            "get the version information for this server",
            "version",
            Some("Info"),
        ),
        ".well-known/openid-configuration" => (
            "getServiceAccountIssuerOpenIDConfiguration",
            "get the OpenID configuration of the issuer",
            "WellKnown",
            None,
        ),
        "openid/v1/jwks" => (
            "getServiceAccountIssuerOpenIDKeyset",
            "get the keys that verify service account tokens",
            "openid",
            None,
        ),
        _ => return None,
    };
    let answer = match answer {
        Some("Info") => Content::Definition("io.k8s.apimachinery.pkg.version.Info".into()),
        Some(kind) => Content::Definition(format!("{META}.{kind}")),
        None => Content::Text,
    };
    Some(plain(format!("/{name}/"), id.into(), text, tag.into(), answer))
}

/// The path of a group.
pub(super) fn group(group: &str) -> PathItem {
    let camel = camel(group);
    plain(
        format!("/apis/{group}/"),
        format!("get{camel}APIGroup"),
        "get information of a group",
        lower_first(&camel),
        Content::Definition(format!("{META}.APIGroup")),
    )
}

/// The path that lists the resources of a group version.
pub(super) fn resources(group: &str, version: &str) -> PathItem {
    plain(
        format!("{}/", base(group, version)),
        format!("get{}{}APIResources", camel(group), upper_first(version)),
        "get available resources",
        tag(group, version),
        Content::Definition(format!("{META}.APIResourceList")),
    )
}

fn plain(path: String, id: String, text: &str, tag: String, answer: Content) -> PathItem {
    let operation = Operation {
        method: "get",
        id,
        text: text.into(),
        action: None,
        gvk: None,
        tag,
        parameters: &[],
        body: None,
        answers: vec![("200", answer)],
        watchable: false,
        connects: false,
    };
    PathItem {
        path,
        parameters: Vec::new(),
        operations: vec![operation],
    }
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// `rbac.authorization.k8s.io` as `RbacAuthorization`.
fn camel(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    group.split(['.', '-']).map(upper_first).collect()
}

fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", lower_first(&camel(group)))
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(chars)
        .collect()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_ascii_lowercase())
        .into_iter()
        .chain(chars)
        .collect()
}

/// The definition of a kind: its own for built-in kinds, the reversed group for custom ones.
pub(super) fn definition_name(group: &str, version: &str, kind: &str) -> String {
    if let Some(name) = Schema::builtin().definition_of(group, version, kind) {
        return name.to_owned();
    }
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    parts.join(".")
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

/// All paths of a kind.
pub(super) fn of_kind(kind: &Kind) -> Vec<PathItem> {
    let base = base(&kind.group, &kind.version);
    let scope = if kind.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{base}{scope}/{}", kind.plural);
    let scoped: Vec<&'static str> = if kind.namespaced {
        vec!["namespace"]
    } else {
        Vec::new()
    };
    let named: Vec<&'static str> = std::iter::once("name").chain(scoped.iter().copied()).collect();
    let row = Row {
        kind,
        own: definition_name(&kind.group, &kind.version, &kind.kind),
        list: definition_name(&kind.group, &kind.version, &kind.list_kind),
    };
    let mut items = Vec::new();
    let mut push = |path: String, parameters: &[&'static str], pretty: bool, operations: Vec<Operation>| {
        if !operations.is_empty() {
            let mut parameters = parameters.to_vec();
            if pretty {
                parameters.push("pretty");
            }
            items.push(PathItem {
                path,
                parameters,
                operations,
            });
        }
    };
    let each = |verbs: &[&'static str]| -> Vec<Operation> {
        verbs
            .iter()
            .filter(|verb| kind.serves(verb))
            .map(|verb| row.operation(verb))
            .collect()
    };
    push(
        collection.clone(),
        &scoped,
        true,
        each(&["deletecollection", "list", "create"]),
    );
    push(
        format!("{collection}/{{name}}"),
        &named,
        true,
        each(&["delete", "get", "patch", "update"]),
    );
    if kind.namespaced && kind.serves("list") {
        push(
            format!("{base}/{}", kind.plural),
            &[],
            true,
            vec![row.list_everywhere()],
        );
    }
    for sub in &kind.subresources {
        let path = format!("{collection}/{{name}}/{}", sub.name);
        push(path.clone(), &named, !connects(sub), row.subresource(sub, false));
        if sub.name == "proxy" {
            let parameters: Vec<&'static str> = named.iter().copied().chain(["path"]).collect();
            push(
                format!("{path}/{{path}}"),
                &parameters,
                false,
                row.subresource(sub, true),
            );
        }
    }
    if kind.serves("watch") {
        push(
            format!("{base}/watch{scope}/{}", kind.plural),
            &scoped,
            true,
            vec![row.watch("List", kind.namespaced)],
        );
        push(
            format!("{base}/watch{scope}/{}/{{name}}", kind.plural),
            &named,
            true,
            vec![row.watch("", kind.namespaced)],
        );
        if kind.namespaced {
            push(
                format!("{base}/watch/{}", kind.plural),
                &[],
                true,
                vec![row.watch("ListForAllNamespaces", false)],
            );
        }
    }
    items
}

fn connects(sub: &Subresource) -> bool {
    sub.kind.ends_with("Options")
}

struct Row<'k> {
    kind: &'k Kind,
    own: String,
    list: String,
}

impl Row<'_> {
    fn id(&self, verb: &str, middle: &str, namespaced: bool, tail: &str) -> String {
        let kind = self.kind;
        let scope = if namespaced { "Namespaced" } else { "" };
        format!(
            "{verb}{}{}{middle}{scope}{}{tail}",
            camel(&kind.group),
            upper_first(&kind.version),
            kind.kind
        )
    }

    fn blank(&self, method: &'static str, action: &'static str, id: String, text: String) -> Operation {
        Operation {
            method,
            id,
            text,
            action: Some(action),
            gvk: Some(gvk(&self.kind.group, &self.kind.version, &self.kind.kind)),
            tag: tag(&self.kind.group, &self.kind.version),
            parameters: &[],
            body: None,
            answers: Vec::new(),
            watchable: false,
            connects: false,
        }
    }

    fn operation(&self, verb: &str) -> Operation {
        let kind = self.kind;
        let namespaced = kind.namespaced;
        let name = &kind.kind;
        let own = || Content::Definition(self.own.clone());
        let status = || Content::Definition(format!("{META}.Status"));
        match verb {
            "list" => Operation {
                parameters: LIST,
                answers: vec![("200", Content::Definition(self.list.clone()))],
                watchable: true,
                ..self.blank(
                    "get",
                    "list",
                    self.id("list", "", namespaced, ""),
                    format!("list or watch objects of kind {name}"),
                )
            },
            "create" => Operation {
                parameters: WRITE,
                body: Some((self.own.clone(), true)),
                answers: vec![("200", own()), ("201", own()), ("202", own())],
                ..self.blank(
                    "post",
                    "post",
                    self.id("create", "", namespaced, ""),
                    format!("create a {name}"),
                )
            },
            "deletecollection" => Operation {
                parameters: DELETE_COLLECTION,
                body: Some((format!("{META}.DeleteOptions"), false)),
                answers: vec![("200", status())],
                ..self.blank(
                    "delete",
                    "deletecollection",
                    self.id("delete", "Collection", namespaced, ""),
                    format!("delete collection of {name}"),
                )
            },
            "delete" => {
                // Some deletions answer with what was deleted.
                let answer = if deletes_with_object(kind) {
                    own()
                } else {
                    status()
                };
                Operation {
                    parameters: DELETE,
                    body: Some((format!("{META}.DeleteOptions"), false)),
                    answers: vec![("200", answer.clone()), ("202", answer)],
                    ..self.blank(
                        "delete",
                        "delete",
                        self.id("delete", "", namespaced, ""),
                        format!("delete a {name}"),
                    )
                }
            }
            _ => self.view(verb, "", &self.own, &format!("the specified {name}")),
        }
    }

    /// Reading, replacing or patching an object, or a part of it.
    fn view(&self, verb: &str, tail: &str, definition: &str, what: &str) -> Operation {
        let content = || Content::Definition(definition.to_owned());
        let namespaced = self.kind.namespaced;
        match verb {
            "patch" => Operation {
                parameters: PATCH,
                body: Some((format!("{META}.Patch"), true)),
                answers: vec![("200", content()), ("201", content())],
                ..self.blank(
                    "patch",
                    "patch",
                    self.id("patch", "", namespaced, tail),
                    format!("partially update {what}"),
                )
            },
            "update" => Operation {
                parameters: WRITE,
                body: Some((definition.to_owned(), true)),
                answers: vec![("200", content()), ("201", content())],
                ..self.blank(
                    "put",
                    "put",
                    self.id("replace", "", namespaced, tail),
                    format!("replace {what}"),
                )
            },
            _ => Operation {
                answers: vec![("200", content())],
                ..self.blank(
                    "get",
                    "get",
                    self.id("read", "", namespaced, tail),
                    format!("read {what}"),
                )
            },
        }
    }

    fn list_everywhere(&self) -> Operation {
        let tail = "ForAllNamespaces";
        Operation {
            id: self.id("list", "", false, tail),
            ..self.operation("list")
        }
    }

    fn watch(&self, tail: &str, namespaced: bool) -> Operation {
        let (action, what) = if tail.is_empty() {
            ("watch", "changes to an object")
        } else {
            ("watchlist", "individual changes to a list")
        };
        Operation {
            parameters: LIST,
            answers: vec![("200", Content::Definition(format!("{META}.WatchEvent")))],
            watchable: true,
            ..self.blank(
                "get",
                action,
                self.id("watch", "", namespaced, tail),
                format!("watch {what} of kind {}. deprecated: use the 'watch' parameter with a list operation instead.", self.kind.kind),
            )
        }
    }

    fn subresource(&self, sub: &Subresource, with_path: bool) -> Vec<Operation> {
        let tail = upper_first(&sub.name);
        let definition = definition_name(&sub.group, &sub.version, &sub.kind);
        let own = gvk(&sub.group, &sub.version, &sub.kind);
        if connects(sub) {
            return self.connect(sub, &tail, with_path, &own);
        }
        let what = format!("{} of the specified {}", sub.name, self.kind.kind);
        sub.verbs
            .iter()
            .map(|verb| {
                let mut operation = match &**verb {
                    "create" => {
                        let content = || Content::Definition(definition.clone());
                        Operation {
                            parameters: WRITE,
                            body: Some((definition.clone(), true)),
                            answers: vec![("200", content()), ("201", content()), ("202", content())],
                            ..self.blank(
                                "post",
                                "post",
                                self.id("create", "", self.kind.namespaced, &tail),
                                format!("create {} of a {}", sub.name, self.kind.kind),
                            )
                        }
                    }
                    verb => self.view(verb, &tail, &definition, &what),
                };
                if sub.name == "log" {
                    operation.answers = vec![("200", Content::Text)];
                    operation.parameters = LOG;
                }
                operation.gvk = Some(own.clone());
                operation
            })
            .collect()
    }

    fn connect(&self, sub: &Subresource, tail: &str, with_path: bool, own: &Value) -> Vec<Operation> {
        let parameters: &[&str] = match &*sub.name {
            "exec" => &["command", "container", "stderr", "stdin", "stdout", "tty"],
            "attach" => &["container", "stderr", "stdin", "stdout", "tty"],
            "portforward" => &["ports"],
            _ => &[],
        };
        let methods: &[&'static str] = if sub.verbs.len() > 2 {
            &["delete", "get", "head", "options", "patch", "post", "put"]
        } else {
            &["get", "post"]
        };
        methods
            .iter()
            .map(|method| {
                let verb = format!(
                    "connect{}{}{}",
                    camel(&self.kind.group),
                    upper_first(&self.kind.version),
                    upper_first(method)
                );
                let scope = if self.kind.namespaced { "Namespaced" } else { "" };
                let path = if with_path { "WithPath" } else { "" };
                Operation {
                    gvk: Some(own.clone()),
                    parameters,
                    answers: vec![("200", Content::Text)],
                    connects: true,
                    ..self.blank(
                        method,
                        "connect",
                        format!("{verb}{scope}{}{tail}{path}", self.kind.kind),
                        format!(
                            "connect {} requests to {} of {}",
                            method.to_uppercase(),
                            sub.name,
                            self.kind.kind
                        ),
                    )
                }
            })
            .collect()
    }
}

/// Kinds whose deletion answers with the object.
fn deletes_with_object(kind: &Kind) -> bool {
    matches!(
        (&*kind.group, &*kind.plural),
        (
            "",
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
        ) | (
            "storage.k8s.io",
            "csidrivers" | "csinodes" | "storageclasses" | "volumeattachments" | "volumeattributesclasses"
        ) | ("resource.k8s.io", _)
    )
}

fn parameter(
    name: &str,
    place: Option<&str>,
) -> Option<&'static (&'static str, &'static str, &'static str, &'static str)> {
    PARAMETERS
        .iter()
        .find(|row| row.0 == name && place.is_none_or(|place| row.1 == place))
}

fn parameter_v3(name: &str) -> Option<Value> {
    let (name, place, kind, text) = parameter(name, None)?;
    let mut out = json!({ "name": name, "in": place, "description": text, "schema": { "type": kind, "uniqueItems": true } });
    if *place == "path" {
        out["required"] = true.into();
    }
    Some(out)
}

fn parameter_v2(name: &str) -> Option<Value> {
    let (name, place, kind, text) = parameter(name, None)?;
    let mut out =
        json!({ "name": name, "in": place, "description": text, "type": kind, "uniqueItems": true });
    if *place == "path" {
        out["required"] = true.into();
    }
    Some(out)
}

/// Clients look for these in the operation itself.
const INLINE: &[&str] = &["dryRun", "fieldValidation"];

fn parameter_reference(name: &str) -> Option<Value> {
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

impl PathItem {
    /// Definitions that the path refers to.
    pub(super) fn definitions(&self) -> impl Iterator<Item = String> {
        let operations = self.operations.iter();
        operations.flat_map(|operation| {
            let answers = operation.answers.iter().filter_map(|(_, content)| match content {
                Content::Definition(name) => Some(name.clone()),
                Content::Text => None,
            });
            answers.chain(operation.body.iter().map(|(name, _)| name.clone()))
        })
    }

    pub(super) fn v3(&self) -> Value {
        self.render(|name| parameter_v3(name), Operation::v3)
    }

    pub(super) fn v2(&self) -> Value {
        self.render(|name| parameter_reference(name), Operation::v2)
    }

    fn render(
        &self,
        parameter: impl Fn(&str) -> Option<Value>,
        operation: impl Fn(&Operation) -> Value,
    ) -> Value {
        let mut out = Map::new();
        for item in &self.operations {
            out.insert(item.method.into(), operation(item));
        }
        if !self.parameters.is_empty() {
            out.insert(
                "parameters".into(),
                self.parameters
                    .iter()
                    .filter_map(|name| parameter(name))
                    .collect(),
            );
        }
        Value::Object(out)
    }
}

impl Operation {
    fn common(&self) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("description".into(), self.text.as_str().into());
        out.insert("operationId".into(), self.id.as_str().into());
        out.insert("tags".into(), json!([self.tag]));
        if let Some(action) = self.action {
            out.insert("x-kubernetes-action".into(), action.into());
        }
        if let Some(gvk) = &self.gvk {
            out.insert("x-kubernetes-group-version-kind".into(), gvk.clone());
        }
        out
    }

    fn media(&self) -> Vec<&'static str> {
        if self.connects {
            return vec!["*/*"];
        }
        if self.action.is_none() && matches!(self.answers.first(), Some((_, Content::Text))) {
            return vec!["application/json"];
        }
        let mut media = MEDIA.to_vec();
        if self.watchable {
            media.extend(WATCH_MEDIA);
        }
        if std::ptr::eq(self.parameters, LOG) {
            media.push("text/plain");
        }
        media
    }

    fn v3(&self) -> Value {
        let mut out = self.common();
        if !self.parameters.is_empty() {
            out.insert(
                "parameters".into(),
                self.parameters
                    .iter()
                    .filter_map(|name| parameter_v3(name))
                    .collect(),
            );
        }
        let reference = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
        if let Some((name, required)) = &self.body {
            let media = if self.method == "patch" {
                PATCH_MEDIA
            } else {
                &["*/*"]
            };
            let content: Map<String, Value> = media
                .iter()
                .map(|media| ((*media).to_owned(), json!({ "schema": reference(name) })))
                .collect();
            let mut body = json!({ "content": content });
            if *required {
                body["required"] = true.into();
            }
            out.insert("requestBody".into(), body);
        }
        let mut responses = Map::new();
        for (code, content) in &self.answers {
            let schema = match content {
                Content::Definition(name) => reference(name),
                Content::Text => json!({ "type": "string" }),
            };
            let media = self.media();
            let content: Map<String, Value> = media
                .into_iter()
                .map(|media| (media.to_owned(), json!({ "schema": schema })))
                .collect();
            responses.insert(
                (*code).into(),
                json!({ "description": reason(code), "content": content }),
            );
        }
        responses.insert("401".into(), json!({ "description": reason("401") }));
        out.insert("responses".into(), Value::Object(responses));
        Value::Object(out)
    }

    fn v2(&self) -> Value {
        let mut out = self.common();
        let reference = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
        let mut parameters: Vec<Value> = Vec::new();
        if let Some((name, required)) = &self.body {
            let mut body = json!({ "in": "body", "name": "body", "schema": reference(name) });
            if *required {
                body["required"] = true.into();
            }
            parameters.push(body);
        }
        parameters.extend(
            self.parameters
                .iter()
                .filter_map(|name| parameter_reference(name)),
        );
        if !parameters.is_empty() {
            out.insert("parameters".into(), Value::Array(parameters));
        }
        let mut responses = Map::new();
        for (code, content) in &self.answers {
            let schema = match content {
                Content::Definition(name) => reference(name),
                Content::Text => json!({ "type": "string" }),
            };
            responses.insert(
                (*code).into(),
                json!({ "description": reason(code), "schema": schema }),
            );
        }
        responses.insert("401".into(), json!({ "description": reason("401") }));
        out.insert("responses".into(), Value::Object(responses));
        let consumes = if self.method == "patch" && !self.connects {
            PATCH_MEDIA
        } else {
            &["*/*"]
        };
        out.insert("consumes".into(), json!(consumes));
        out.insert("produces".into(), json!(self.media()));
        out.insert("schemes".into(), json!(["https"]));
        Value::Object(out)
    }
}

fn reason(code: &str) -> &'static str {
    match code {
        "200" => "OK",
        "201" => "Created",
        "202" => "Accepted",
        _ => "Unauthorized",
    }
}
