//! Paths and operations of a kind, by its verbs and subresources.

use serde_json::{Value, json};

use crate::kinds::{Kind, Subresource};
use crate::schema::Schema;

use super::parameters::{DELETE, DELETE_COLLECTION, LIST, LOG, PATCH, PATH_QUERY, WRITE};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Content types of the log of a container.
const LOG_MEDIA: &[&str] = &[
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// What a body or an answer contains.
#[derive(Clone)]
pub(super) enum Content {
    Definition(String),
    Text,
}

/// One operation on a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) id: String,
    pub(super) text: String,
    pub(super) action: Option<&'static str>,
    pub(super) gvk: Option<Value>,
    pub(super) tag: String,
    pub(super) parameters: &'static [&'static str],
    pub(super) body: Option<(String, bool)>,
    pub(super) answers: Vec<(&'static str, Content)>,
    pub(super) watchable: bool,
    pub(super) connects: bool,
    /// Of a custom resource, which has no strategic merge patch.
    pub(super) custom: bool,
    /// Content types of the answer, where they are not the usual ones.
    pub(super) media: Option<&'static [&'static str]>,
}

/// One path with its operations.
pub(super) struct PathItem {
    pub(super) path: String,
    pub(super) parameters: Vec<&'static str>,
    pub(super) operations: Vec<Operation>,
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
    let media: Option<&[&str]> = match name {
        "openid/v1/jwks" => Some(&["application/jwk-set+json"]),
        "api" | "apis" => None,
        _ => Some(&["application/json"]),
    };
    let mut item = plain(format!("/{name}/"), id.into(), text, tag.into(), answer);
    item.operations
        .iter_mut()
        .for_each(|operation| operation.media = media);
    Some(item)
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
        custom: false,
        media: None,
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
            custom: self.kind.traits.custom,
            media: None,
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
                    operation.media = Some(LOG_MEDIA);
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
            _ => &[PATH_QUERY],
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
