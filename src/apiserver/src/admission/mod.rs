//! Built-in admission: a table of plugins, first those that change an object,
//! then those that refuse it.
//!
//! Admission webhooks and policies are stored but not called; creating one
//! says so in a warning.

mod account;
mod lifecycle;
mod nodes;
mod quota;
mod rbac;
mod requests;

pub use account::await_account;

use serde_json::Value;
use skiff_api::status::Status;
use skiff_store::Precondition;

use crate::server::{ApiServer, Call};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed object, or a view of it.
    Update,
    /// An object goes.
    Delete,
}

/// What a plugin is told.
pub struct Attempt<'a> {
    /// The server, for looking things up.
    pub server: &'a ApiServer,
    /// The request.
    pub call: &'a Call,
    /// What is being done.
    pub operation: Operation,
}

impl Attempt<'_> {
    /// Whether this is about the main resource `plural` of `group`.
    fn is(&self, group: &str, plural: &str) -> bool {
        self.call.kind.group == group && self.call.kind.plural == plural && self.call.sub_name().is_empty()
    }

    fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is(group, plural)
    }

    /// A refusal about the object of the request.
    fn forbidden(&self, name: &str, why: &str) -> Status {
        Status::forbidden(&self.call.resource(), name, why)
    }
}

type Mutate = fn(&Attempt<'_>, &mut Value, Option<&Value>) -> Result<(), Status>;
type Validate =
    fn(&Attempt<'_>, Option<&Value>, Option<&Value>, &mut Vec<Precondition>) -> Result<(), Status>;

const MUTATING: &[(&str, Mutate)] = &[
    ("ServiceAccount", account::service_account),
    ("DefaultTolerationSeconds", nodes::default_tolerations),
    ("Priority", requests::priority),
    ("LimitRanger", quota::limit_defaults),
    ("RuntimeClass", requests::runtime_class),
    ("TaintNodesByCondition", nodes::taint_new),
    ("DefaultStorageClass", requests::storage_class),
    ("DefaultIngressClass", requests::ingress_class),
    ("CertificateRequestor", requests::certificate_requestor),
];

const VALIDATING: &[(&str, Validate)] = &[
    ("NamespaceLifecycle", lifecycle::namespace),
    ("NodeRestriction", nodes::restriction),
    (
        "OwnerReferencesPermissionEnforcement",
        lifecycle::owner_references,
    ),
    ("RBAC escalation", rbac::escalation),
    ("CertificateApproval", requests::certificate_approval),
    ("CertificateSigning", requests::certificate_signing),
    ("CertificateSubjectRestriction", requests::certificate_subject),
    ("LimitRanger", quota::limits),
    ("ResourceQuota", quota::quota),
    ("webhooks", requests::uncalled_webhooks),
];

/// Runs the plugins that change objects.
pub fn mutate(
    server: &ApiServer,
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let attempt = Attempt {
        server,
        call,
        operation,
    };
    for (name, plugin) in MUTATING {
        tracing::trace!(plugin = name, "admission");
        plugin(&attempt, object, old)?;
    }
    Ok(())
}

/// Runs the plugins that refuse objects. Returns what must still be true when
/// the object is committed.
pub fn validate(
    server: &ApiServer,
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Vec<Precondition>, Status> {
    let attempt = Attempt {
        server,
        call,
        operation,
    };
    let mut conditions = Vec::new();
    for (name, plugin) in VALIDATING {
        tracing::trace!(plugin = name, "admission");
        plugin(&attempt, object, old, &mut conditions)?;
    }
    Ok(conditions)
}
