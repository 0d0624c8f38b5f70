//! Every kind the server knows, one row each.
//!
//! A row says how a kind is named, where it is stored, which verbs and subresources it has, which fields a
//! field selector may use and which life-cycle rules apply. Discovery, routing, strategies and printing read
//! the same row, so a custom resource becomes a first-class kind by adding a row at run time
//! ([`Kinds::insert`]).
//!
//! Several versions of one kind may share stored objects: `storage` names the version that is kept, and
//! [`crate::conversion`] translates between a served version and the stored one.

mod builtin;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::custom::Custom;

/// Text that is static for built-in rows and owned for rows added at run time.
pub type Str = Cow<'static, str>;

/// Verbs of an ordinary stored resource.
pub const STANDARD_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of a subresource that is a view of its parent.
pub const VIEW_VERBS: &[&str] = &["get", "patch", "update"];
/// Verbs of a connection that proxies requests.
pub const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];
/// Root of every storage key.
pub const STORAGE_ROOT: &str = "/registry/";

/// A field usable in a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectableField {
    /// The label users write, such as `spec.nodeName`.
    pub label: Str,
    /// Dotted path in the object where the value lives.
    pub path: Str,
    /// Value when the path is absent.
    pub default: Str,
}

/// A subresource of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment, such as `status`.
    pub name: Str,
    /// Group of the object the subresource accepts and returns.
    pub group: Str,
    /// Version of that object.
    pub version: Str,
    /// Kind of that object.
    pub kind: Str,
    /// Whether discovery names the group and version, because they differ from those of the parent.
    pub foreign: bool,
    /// Verbs served.
    pub verbs: Vec<Str>,
}

/// One column that a custom resource prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrinterColumn {
    /// Heading.
    pub name: Str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Str,
    /// OpenAPI format.
    pub format: Str,
    /// What the column says.
    pub description: Str,
    /// 0 is always shown, more only in the wide form.
    pub priority: i32,
    /// Where the value lives, such as `.spec.size`.
    pub json_path: Str,
}

/// What happens to objects of a kind between creation and deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traits {
    /// The kind has a `status` subresource: status is dropped on create and kept on update.
    pub status: bool,
    /// `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Deletion leaves time to stop (pods).
    pub graceful: bool,
    /// An update without resourceVersion is allowed.
    pub unconditional_update: bool,
    /// A PUT to a missing name creates the object.
    pub create_on_update: bool,
    /// Created, answered and forgotten; never stored.
    pub review: bool,
    /// The row was added at run time for a custom resource.
    pub custom: bool,
}

/// One kind in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: Str,
    /// Version.
    pub version: Str,
    /// Kind, such as `Pod`.
    pub kind: Str,
    /// Kind of a list, such as `PodList`.
    pub list_kind: Str,
    /// Name in URLs, such as `pods`.
    pub plural: Str,
    /// Lower-case singular name.
    pub singular: Str,
    /// Abbreviations for command lines.
    pub short_names: Vec<Str>,
    /// Sets the kind belongs to, such as `all`.
    pub categories: Vec<Str>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs served on the main resource.
    pub verbs: Vec<Str>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Group and version that stored objects carry.
    pub storage: (Str, Str),
    /// Key prefix with a trailing slash; shared between versions (and groups) of one kind.
    pub prefix: Str,
    /// Fields for field selectors beyond `metadata.name` and `metadata.namespace`.
    pub fields: Vec<SelectableField>,
    /// Life-cycle rules.
    pub traits: Traits,
    /// Columns of a custom resource; empty for built-in kinds, whose columns are code.
    pub columns: Vec<PrinterColumn>,
    /// Whether discovery publishes a storage version hash: true for whatever is stored.
    pub hash_published: bool,
    /// Schema and paths of a custom resource.
    pub custom: Option<Arc<Custom>>,
}

impl Kind {
    /// A namespaced, stored custom resource; the caller fills in what its definition says.
    pub fn custom(group: &str, version: &str, kind: &str, plural: &str) -> Kind {
        let own = |s: &str| Cow::Owned(s.to_owned());
        Kind {
            group: own(group),
            version: own(version),
            kind: own(kind),
            list_kind: Cow::Owned(format!("{kind}List")),
            plural: own(plural),
            singular: Cow::Owned(kind.to_lowercase()),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: STANDARD_VERBS.iter().map(|v| Cow::Borrowed(*v)).collect(),
            subresources: Vec::new(),
            storage: (own(group), own(version)),
            prefix: Cow::Owned(format!("{STORAGE_ROOT}{group}/{plural}/")),
            fields: Vec::new(),
            traits: Traits {
                custom: true,
                generation: true,
                unconditional_update: false,
                ..Traits::default()
            },
            columns: Vec::new(),
            hash_published: true,
            custom: None,
        }
    }

    /// `group/version`, or `version` alone in the core group.
    pub fn api_version(&self) -> Str {
        api_version(&self.group, &self.version)
    }

    /// `apiVersion` of stored objects.
    pub fn storage_api_version(&self) -> Str {
        api_version(&self.storage.0, &self.storage.1)
    }

    /// Whether this row's version is the stored one.
    pub fn is_storage_version(&self) -> bool {
        self.storage.0 == self.group && self.storage.1 == self.version
    }

    /// The name used in error messages: `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> Str {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            Cow::Owned(format!("{}.{}", self.plural, self.group))
        }
    }

    /// The name used in validation messages: `Pod`, `Deployment.apps`.
    pub fn group_kind(&self) -> Str {
        if self.group.is_empty() {
            self.kind.clone()
        } else {
            Cow::Owned(format!("{}.{}", self.kind, self.group))
        }
    }

    /// Whether the main resource serves `verb`.
    pub fn serves(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Storage key of one object; `namespace` is ignored for cluster-wide kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        }
    }

    /// Key prefix of everything in one namespace, or of the whole kind.
    pub fn prefix_in(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(ns) if self.namespaced => format!("{}{ns}/", self.prefix),
            _ => self.prefix.to_string(),
        }
    }

    /// Finds a selectable field by label, `metadata.name` and `metadata.namespace` excluded.
    pub fn field(&self, label: &str) -> Option<&SelectableField> {
        self.fields.iter().find(|f| f.label == label)
    }
}

/// `group/version`, or `version` alone in the core group.
pub fn api_version(group: &str, version: &str) -> Str {
    if group.is_empty() {
        Cow::Owned(version.to_owned())
    } else {
        Cow::Owned(format!("{group}/{version}"))
    }
}

/// Splits an `apiVersion` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A set of rows with lookups; cheap to clone, so that a changed copy can replace the current one.
#[derive(Debug, Clone, Default)]
pub struct Kinds {
    rows: Vec<Arc<Kind>>,
    by_plural: HashMap<(Str, Str, Str), usize>,
    by_kind: HashMap<(Str, Str, Str), usize>,
}

impl Kinds {
    /// The rows every server starts with.
    pub fn builtin() -> &'static Kinds {
        static BUILTIN: LazyLock<Kinds> = LazyLock::new(|| {
            let mut kinds = Kinds::default();
            for row in builtin::rows() {
                kinds.insert(row);
            }
            kinds
        });
        &BUILTIN
    }

    /// Adds a row, or replaces the row with the same group, version and plural.
    pub fn insert(&mut self, kind: Kind) -> Arc<Kind> {
        let kind = Arc::new(kind);
        let plural = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        match self.by_plural.get(&plural) {
            Some(&at) => self.rows[at] = kind.clone(),
            None => self.rows.push(kind.clone()),
        }
        self.reindex();
        kind
    }

    /// Adds many rows at once.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Kind>) {
        self.rows.extend(rows.into_iter().map(Arc::new));
        self.reindex();
    }

    /// Removes a row.
    pub fn remove(&mut self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let at = self
            .rows
            .iter()
            .position(|k| k.group == group && k.version == version && k.plural == plural)?;
        let row = self.rows.remove(at);
        self.reindex();
        Some(row)
    }

    fn reindex(&mut self) {
        self.by_plural.clear();
        self.by_kind.clear();
        for (at, k) in self.rows.iter().enumerate() {
            self.by_plural
                .insert((k.group.clone(), k.version.clone(), k.plural.clone()), at);
            self.by_kind
                .entry((k.group.clone(), k.version.clone(), k.kind.clone()))
                .or_insert(at);
        }
    }

    /// Finds a row by the names in a URL.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_plural
            .get(&key(group, version, plural))
            .map(|&at| &self.rows[at])
    }

    /// Finds a row by the names in an object.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_kind
            .get(&key(group, version, kind))
            .map(|&at| &self.rows[at])
    }

    /// Finds a row by an object's `apiVersion` and `kind`.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = split_api_version(api_version);
        self.kind(group, version, kind)
    }

    /// The first row with this group and plural, in order of preference of versions.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.rows.iter().find(|k| k.group == group && k.plural == plural)
    }

    /// Every row, groups and versions in discovery order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows.iter()
    }

    /// One row per stored kind: the row whose version is the stored one.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.rows
            .iter()
            .filter(|k| k.is_storage_version() && k.serves("list") && !k.traits.review)
    }

    /// Groups in discovery order, each with its versions in order of preference; the core group is `""`.
    pub fn groups(&self) -> Vec<(Str, Vec<Str>)> {
        let mut groups: Vec<(Str, Vec<Str>)> = Vec::new();
        for k in &self.rows {
            match groups.iter_mut().find(|(g, _)| *g == k.group) {
                Some((_, versions)) if versions.contains(&k.version) => {}
                Some((_, versions)) => versions.push(k.version.clone()),
                None => groups.push((k.group.clone(), vec![k.version.clone()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by(|a, b| version_rank(b).cmp(&version_rank(a)).then_with(|| a.cmp(b)));
        }
        groups
    }
}

fn key(a: &str, b: &str, c: &str) -> (Str, Str, Str) {
    (
        Cow::Owned(a.to_owned()),
        Cow::Owned(b.to_owned()),
        Cow::Owned(c.to_owned()),
    )
}

/// Orders versions as Kubernetes does: GA over beta over alpha, then by number; other names come last.
pub fn version_rank(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else {
        return (0, 0, 0);
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(major) = rest[..digits].parse() else {
        return (0, 0, 0);
    };
    let stage = &rest[digits..];
    if stage.is_empty() {
        return (3, major, 0);
    }
    for (name, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = stage.strip_prefix(name).and_then(|m| m.parse().ok()) {
            return (rank, major, minor);
        }
    }
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_url_and_by_object() {
        let kinds = Kinds::builtin();
        let pod = kinds.resource("", "v1", "pods").unwrap();
        assert_eq!(pod.kind, "Pod");
        assert_eq!(pod.key("default", "web-1"), "/registry/pods/default/web-1");
        assert_eq!(pod.group_resource(), "pods");
        let deployment = kinds.of("apps/v1", "Deployment").unwrap();
        assert_eq!(deployment.group_resource(), "deployments.apps");
        assert_eq!(deployment.group_kind(), "Deployment.apps");
        assert_eq!(deployment.subresource("scale").unwrap().group, "autoscaling");
        assert!(kinds.resource("", "v2", "pods").is_none());
    }

    #[test]
    fn every_row_is_unique_and_consistent() {
        let kinds = Kinds::builtin();
        let mut seen = std::collections::HashSet::new();
        for k in kinds.iter() {
            assert!(
                seen.insert((k.group.clone(), k.version.clone(), k.plural.clone())),
                "{}",
                k.kind
            );
            assert_eq!(k.traits.status, k.subresource("status").is_some(), "{}", k.kind);
            assert!(k.prefix.starts_with(STORAGE_ROOT) && k.prefix.ends_with('/'));
            let stored = kinds.resource(&k.storage.0, &k.storage.1, &k.plural);
            assert_eq!(stored.map(|s| &s.prefix), Some(&k.prefix), "{}", k.kind);
        }
        let mut prefixes = std::collections::HashSet::new();
        for k in kinds.stored() {
            assert!(prefixes.insert(k.prefix.clone()), "{} shares a prefix", k.kind);
        }
    }

    #[test]
    fn versions_and_groups_are_ordered() {
        assert!(version_rank("v2") > version_rank("v1"));
        assert!(version_rank("v1") > version_rank("v2beta1"));
        assert!(version_rank("v1beta2") > version_rank("v1beta1"));
        assert!(version_rank("v1alpha1") > version_rank("foo"));
        let groups = Kinds::builtin().groups();
        let hpa = groups.iter().find(|(g, _)| g == "autoscaling").unwrap();
        assert_eq!(hpa.1, ["v2", "v1"]);
        assert_eq!(groups[0].0, "");
    }

    #[test]
    fn custom_rows_come_and_go() {
        let mut kinds = Kinds::builtin().clone();
        let row = kinds.insert(Kind::custom("example.com", "v1", "Widget", "widgets"));
        assert_eq!(row.key("a", "b"), "/registry/example.com/widgets/a/b");
        assert!(kinds.of("example.com/v1", "Widget").is_some());
        assert!(kinds.remove("example.com", "v1", "widgets").is_some());
        assert!(kinds.of("example.com/v1", "Widget").is_none());
        assert!(kinds.of("v1", "Pod").is_some());
    }
}
