//! RBAC over the store's roles and bindings.
//!
//! The index is derived from the store and brought up to date when it is
//! asked: a question first applies every change the store has committed, so an
//! answer is never older than the request. Nothing runs while nobody asks.
//!
//! Lock order: `follower`, then `index`.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde::Deserialize;
use skiff_store::Store;

use super::Attributes;
use super::rules::Rule;
use crate::follow::{Change, Follower};
use crate::identity::UserInfo;

const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";
const CLUSTER_ROLES: &str = "clusterroles";
const ROLES: &str = "roles";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings";
const ROLE_BINDINGS: &str = "rolebindings";

/// Whom a binding names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// The role a binding grants: `namespace` is empty for a ClusterRole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoleKey {
    /// Namespace of a Role, empty for a ClusterRole.
    pub namespace: String,
    /// Name of the role.
    pub name: String,
}

/// One grant: in `scope` (empty for the cluster) the rules of `role` hold.
#[derive(Debug)]
struct Grant {
    scope: String,
    role: RoleKey,
}

#[derive(Debug, Default)]
struct Index {
    roles: HashMap<RoleKey, Arc<Vec<Rule>>>,
    by_subject: HashMap<Subject, HashMap<Arc<str>, Arc<Grant>>>,
    subjects_of: HashMap<Arc<str>, Vec<Subject>>,
}

#[derive(Deserialize)]
struct RoleBody {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingBody {
    #[serde(default)]
    subjects: Option<Vec<SubjectBody>>,
    role_ref: RoleRef,
}

#[derive(Deserialize)]
struct SubjectBody {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

/// The RBAC authorizer.
pub struct Rbac {
    follower: Mutex<Follower>,
    index: RwLock<Index>,
}

impl Rbac {
    /// Follows the roles and bindings of `store`.
    pub fn new(store: Store) -> Self {
        Self {
            follower: Mutex::new(Follower::new(store, PREFIX)),
            index: RwLock::default(),
        }
    }

    fn current(&self) -> RwLockReadGuard<'_, Index> {
        let mut follower = self.follower.lock();
        if follower.is_behind() {
            let mut index = self.index.write();
            follower.sync(|change| index.apply(change));
        }
        drop(follower);
        self.index.read()
    }

    /// Whether some rule allows the request. The error names roles that
    /// bindings mention but that do not exist.
    pub fn authorize(&self, user: &UserInfo, request: &Attributes<'_>) -> Result<(), String> {
        let index = self.current();
        let mut missing = Vec::new();
        let allowed = index.visit(user, request.namespace, &mut missing, &mut |rule| {
            rule.allows(request)
        });
        if allowed {
            return Ok(());
        }
        missing.sort();
        missing.dedup();
        Err(match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// Every rule that holds for the user in a namespace (empty: cluster-wide).
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        self.current()
            .visit(user, namespace, &mut Vec::new(), &mut |rule| {
                rules.push(rule.clone());
                false
            });
        rules
    }

    /// The rules of a role.
    pub fn role(&self, key: &RoleKey) -> Option<Arc<Vec<Rule>>> {
        self.current().roles.get(key).cloned()
    }
}

impl Index {
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        missing: &mut Vec<String>,
        wanted: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        let subjects = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().map(|group| Subject::Group(group.clone())));
        for subject in subjects {
            for grant in self
                .by_subject
                .get(&subject)
                .into_iter()
                .flat_map(HashMap::values)
            {
                if !grant.scope.is_empty() && grant.scope != namespace {
                    continue;
                }
                let Some(rules) = self.roles.get(&grant.role) else {
                    let kind = if grant.role.namespace.is_empty() {
                        "clusterrole"
                    } else {
                        "role"
                    };
                    missing.push(format!(
                        "{kind}.rbac.authorization.k8s.io {:?} not found",
                        grant.role.name
                    ));
                    continue;
                };
                if rules.iter().any(&mut *wanted) {
                    return true;
                }
            }
        }
        false
    }

    fn apply(&mut self, change: Change<'_>) {
        let (key, value) = match change {
            Change::Reset => {
                *self = Self::default();
                return;
            }
            Change::Put(entry) => (&entry.key, Some(&entry.value)),
            Change::Delete(key) => (key, None),
        };
        let mut parts = key.strip_prefix(PREFIX).unwrap_or_default().split('/');
        let (Some(resource), Some(first)) = (parts.next(), parts.next()) else {
            return;
        };
        let (namespace, name) = match parts.next() {
            Some(name) => (first, name),
            None => ("", first),
        };
        match resource {
            ROLES | CLUSTER_ROLES => {
                let role = RoleKey {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                };
                match value.map(|bytes| serde_json::from_slice::<RoleBody>(bytes)) {
                    Some(Ok(body)) => {
                        self.roles.insert(role, Arc::new(body.rules.unwrap_or_default()));
                    }
                    Some(Err(error)) => tracing::warn!(key = &**key, %error, "stored role is not readable"),
                    None => {
                        self.roles.remove(&role);
                    }
                }
            }
            ROLE_BINDINGS | CLUSTER_ROLE_BINDINGS => {
                self.forget_binding(key);
                match value.map(|bytes| serde_json::from_slice::<BindingBody>(bytes)) {
                    Some(Ok(body)) => self.bind(key, namespace, body),
                    Some(Err(error)) => {
                        tracing::warn!(key = &**key, %error, "stored binding is not readable")
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn forget_binding(&mut self, key: &Arc<str>) {
        for subject in self.subjects_of.remove(key).unwrap_or_default() {
            if let Some(grants) = self.by_subject.get_mut(&subject) {
                grants.remove(key);
                if grants.is_empty() {
                    self.by_subject.remove(&subject);
                }
            }
        }
    }

    fn bind(&mut self, key: &Arc<str>, namespace: &str, body: BindingBody) {
        let role_namespace = if body.role_ref.kind == "Role" {
            namespace
        } else {
            ""
        };
        let grant = Arc::new(Grant {
            scope: namespace.to_owned(),
            role: RoleKey {
                namespace: role_namespace.to_owned(),
                name: body.role_ref.name,
            },
        });
        let mut subjects = Vec::new();
        for subject in body.subjects.unwrap_or_default() {
            let subject = match subject.kind.as_str() {
                "User" => Subject::User(subject.name),
                "Group" => Subject::Group(subject.name),
                "ServiceAccount" => {
                    let of = subject
                        .namespace
                        .filter(|ns| !ns.is_empty())
                        .unwrap_or_else(|| namespace.to_owned());
                    Subject::User(format!("system:serviceaccount:{of}:{}", subject.name))
                }
                _ => continue,
            };
            self.by_subject
                .entry(subject.clone())
                .or_default()
                .insert(Arc::clone(key), Arc::clone(&grant));
            subjects.push(subject);
        }
        self.subjects_of.insert(Arc::clone(key), subjects);
    }
}
