//! Small plugins about single kinds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_store::Precondition;
use x509_parser::prelude::FromDer;

use super::{Attempt, Operation};
use crate::authz::Attributes;
use crate::identity::MASTERS;

const DEFAULT_STORAGE_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// Turns the name of a priority class into its number.
pub fn priority(attempt: &Attempt<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "pods") {
        return Ok(());
    }
    let kind = attempt.server.row("scheduling.k8s.io", "v1", "priorityclasses");
    let name = meta::str_at(pod, "spec.priorityClassName").to_owned();
    let class = if name.is_empty() {
        let classes = attempt.server.objects(kind, None);
        classes
            .into_iter()
            .filter(|c| c["globalDefault"] == true)
            .min_by_key(|c| c["value"].as_i64().unwrap_or(0))
    } else {
        let found = attempt.server.store.get(&kind.key("", &name));
        match found.and_then(|e| serde_json::from_slice::<Value>(&e.value).ok()) {
            Some(class) => Some(class),
            None => {
                let why = format!("no PriorityClass with name {name} was found");
                return Err(attempt.forbidden(meta::name(pod), &why));
            }
        }
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class
        .as_ref()
        .and_then(|c| c["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority");
    if let Some(set) = meta::int_at(pod, "spec.priority")
        && set != value
    {
        let why = format!(
            "the integer value of priority ({set}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(attempt.forbidden(meta::name(pod), &why));
    }
    if name.is_empty()
        && let Some(class) = &class
    {
        meta::set(pod, "spec.priorityClassName", meta::name(class));
    }
    meta::set(pod, "spec.priority", value);
    if meta::str_at(pod, "spec.preemptionPolicy").is_empty() {
        meta::set(pod, "spec.preemptionPolicy", policy);
    }
    Ok(())
}

/// Copies overhead and scheduling of a pod's runtime class.
pub fn runtime_class(attempt: &Attempt<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "pods") {
        return Ok(());
    }
    let name = meta::str_at(pod, "spec.runtimeClassName").to_owned();
    if name.is_empty() {
        return Ok(());
    }
    let kind = attempt.server.row("node.k8s.io", "v1", "runtimeclasses");
    let found = attempt.server.store.get(&kind.key("", &name));
    let Some(class) = found.and_then(|e| serde_json::from_slice::<Value>(&e.value).ok()) else {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        return Err(attempt.forbidden(meta::name(pod), &why));
    };
    if let Some(overhead) = class["overhead"].get("podFixed") {
        meta::set(pod, "spec.overhead", overhead.clone());
    }
    if let Some(selector) = class["scheduling"]["nodeSelector"].as_object() {
        let own = meta::object_mut(pod, "spec.nodeSelector");
        for (key, value) in selector {
            own.insert(key.clone(), value.clone());
        }
    }
    Ok(())
}

fn default_class(attempt: &Attempt<'_>, group: &str, plural: &str, annotation: &str) -> Option<String> {
    let kind = attempt.server.row(group, "v1", plural);
    let mut classes: Vec<Value> = attempt.server.objects(kind, None);
    classes.retain(|c| meta::annotation(c, annotation) == Some("true"));
    classes.sort_by_key(|c| std::cmp::Reverse(meta::creation_timestamp(c).to_owned()));
    classes.first().map(|c| meta::name(c).to_owned())
}

/// Claims without a class get the default one.
pub fn storage_class(attempt: &Attempt<'_>, claim: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if attempt.creates("", "persistentvolumeclaims")
        && claim["spec"].get("storageClassName").is_none_or(Value::is_null)
        && let Some(class) = default_class(attempt, "storage.k8s.io", "storageclasses", DEFAULT_STORAGE_CLASS)
    {
        meta::set(claim, "spec.storageClassName", class);
    }
    Ok(())
}

/// Ingresses without a class get the default one.
pub fn ingress_class(attempt: &Attempt<'_>, ingress: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if attempt.creates("networking.k8s.io", "ingresses")
        && ingress["spec"].get("ingressClassName").is_none_or(Value::is_null)
        && meta::annotation(ingress, "kubernetes.io/ingress.class").is_none()
        && let Some(class) = default_class(
            attempt,
            "networking.k8s.io",
            "ingressclasses",
            DEFAULT_INGRESS_CLASS,
        )
    {
        meta::set(ingress, "spec.ingressClassName", class);
    }
    Ok(())
}

/// A certificate request says who made it; nobody can say that for another.
pub fn certificate_requestor(
    attempt: &Attempt<'_>,
    csr: &mut Value,
    _: Option<&Value>,
) -> Result<(), Status> {
    if !attempt.creates("certificates.k8s.io", "certificatesigningrequests") {
        return Ok(());
    }
    let user = &attempt.call.user;
    for field in ["username", "uid", "groups", "extra"] {
        meta::remove(csr, &format!("spec.{field}"));
    }
    let shown = user.to_json();
    for field in ["username", "uid", "groups", "extra"] {
        if let Some(value) = shown.get(field) {
            meta::set(csr, &format!("spec.{field}"), value.clone());
        }
    }
    Ok(())
}

fn may_on_signer(attempt: &Attempt<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(d, _)| d);
    [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let attributes = Attributes {
            verb,
            group: "certificates.k8s.io",
            resource: "signers",
            name,
            is_resource: true,
            ..Attributes::default()
        };
        attempt
            .server
            .authorizer
            .decide(&attempt.call.user, &attributes)
            .is_ok()
    })
}

/// Approving needs the right to approve for the signer.
pub fn certificate_approval(
    attempt: &Attempt<'_>,
    _: Option<&Value>,
    old: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    if call.kind.plural != "certificatesigningrequests" || call.sub_name() != "approval" {
        return Ok(());
    }
    let signer = old
        .map(|o| meta::str_at(o, "spec.signerName"))
        .unwrap_or_default();
    if may_on_signer(attempt, "approve", signer) {
        return Ok(());
    }
    let why = format!("user not permitted to approve requests with signerName {signer:?}");
    Err(attempt.forbidden(&call.info.name, &why))
}

/// Signing needs the right to sign for the signer.
pub fn certificate_signing(
    attempt: &Attempt<'_>,
    new: Option<&Value>,
    old: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    if call.kind.plural != "certificatesigningrequests" || call.sub_name() != "status" {
        return Ok(());
    }
    let certificate = |o: Option<&Value>| o.and_then(|o| meta::at(o, "status.certificate")).cloned();
    if certificate(new) == certificate(old) {
        return Ok(());
    }
    let signer = old
        .map(|o| meta::str_at(o, "spec.signerName"))
        .unwrap_or_default();
    if may_on_signer(attempt, "sign", signer) {
        return Ok(());
    }
    let why = format!("user not permitted to sign requests with signerName {signer:?}");
    Err(attempt.forbidden(&call.info.name, &why))
}

/// Nobody gets a client certificate of `system:masters` through the API.
pub fn certificate_subject(
    attempt: &Attempt<'_>,
    csr: Option<&Value>,
    _: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let Some(csr) = csr.filter(|_| attempt.creates("certificates.k8s.io", "certificatesigningrequests"))
    else {
        return Ok(());
    };
    if meta::str_at(csr, "spec.signerName") != "kubernetes.io/kube-apiserver-client" {
        return Ok(());
    }
    let request = STANDARD
        .decode(meta::str_at(csr, "spec.request"))
        .unwrap_or_default();
    let masters = x509_parser::pem::parse_x509_pem(&request)
        .ok()
        .is_some_and(|(_, pem)| {
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).is_ok_and(
                |(_, r)| {
                    r.certification_request_info
                        .subject
                        .iter_organization()
                        .any(|o| o.as_str() == Ok(MASTERS))
                },
            )
        });
    if masters {
        let why =
            format!("use of kubernetes.io/kube-apiserver-client signer with {MASTERS} group is not allowed");
        return Err(attempt.forbidden(meta::name(csr), &why));
    }
    Ok(())
}

/// Says that webhooks and policies are stored but not called.
pub fn uncalled_webhooks(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    _: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    if call.kind.group == "admissionregistration.k8s.io"
        && attempt.operation == Operation::Create
        && let Some(object) = object
    {
        let kind = &call.kind.kind;
        tracing::warn!(kind = %kind, name = meta::name(object), "stored, but this server does not act on it");
        call.warn(format!("{kind} objects are stored but not acted on by this server: nothing will be admitted or refused by them"));
    }
    Ok(())
}
