//! Errors as Kubernetes answers them: the `Status` object, with the texts that clients compare.
//!
//! [`Status`] is an error type of its own; [`FieldError`] is one complaint about one field, and
//! [`Status::invalid`] gathers them. The constructors take the resource or kind in its dotted form
//! (`deployments.apps`, `Deployment.apps`), as rows of the kind table give it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Text of a failed optimistic lock.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Why one field was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    /// The value refers to something that does not exist.
    NotFound,
    /// A value is missing.
    Required,
    /// The value occurs twice.
    Duplicate,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is not one of an enumeration.
    NotSupported,
    /// The value may not be set here.
    Forbidden,
    /// The value is too long.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The server failed while it looked at the field.
    Internal,
    /// The value has the wrong JSON type.
    TypeInvalid,
}

impl FieldErrorKind {
    /// The words in messages.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    /// The machine-readable reason of a cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            Self::Required | Self::Forbidden | Self::TooLong | Self::Internal
        )
    }
}

/// One complaint about one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// Path such as `spec.containers[0].name`; empty for the whole object.
    pub field: String,
    /// The refused value.
    pub value: Value,
    /// Explanation.
    pub detail: String,
}

impl FieldError {
    /// A complaint of any kind.
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: Value,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            field: field.into(),
            value,
            detail: detail.into(),
        }
    }
    /// The value is malformed or out of range.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value.into(), detail)
    }
    /// A value is missing.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, Value::Null, detail)
    }
    /// The field may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, Value::Null, detail)
    }
    /// The value occurs twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, value.into(), "")
    }
    /// The value names nothing that exists.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, field, value.into(), "")
    }
    /// The value is not in `supported`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, field, value.into(), detail)
    }
    /// The value has more than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(
            FieldErrorKind::TooLong,
            field,
            Value::Null,
            format!("may not be more than {max} bytes"),
        )
    }
    /// The list has more than `max` items.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(
            FieldErrorKind::TooMany,
            field,
            actual.into(),
            format!("must have at most {max} {items}"),
        )
    }
    /// The value cannot change once set.
    pub fn immutable(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::invalid(field, value, "field is immutable")
    }

    /// The message without the path, as causes carry it.
    pub fn body(&self) -> String {
        let mut s = self.kind.text().to_owned();
        if self.kind.shows_value() {
            s.push_str(": ");
            match &self.value {
                Value::String(text) => s.push_str(&quote(text)),
                Value::Null => s.push_str("null"),
                other => s.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "<nil>: {}", self.body())
        } else {
            write!(f, "{}: {}", self.field, self.body())
        }
    }
}

/// Text in double quotes with the escapes Go prints.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// One cause inside the details of a [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Machine-readable reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Field path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What a [`Status`] is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Object name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural or kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Causes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A `Status` answer; nearly always an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Always empty, but for the continue token of an expired list.
    #[serde(default)]
    pub metadata: Map<String, Value>,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: String,
    /// Text for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Machine-readable reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// HTTP status code.
    #[serde(default)]
    pub code: u16,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// Splits `deployments.apps` into resource and group.
fn split(dotted: &str) -> (String, String) {
    match dotted.split_once('.') {
        Some((resource, group)) => (resource.to_owned(), group.to_owned()),
        None => (dotted.to_owned(), String::new()),
    }
}

fn details(dotted: &str, name: &str) -> Details {
    let (kind, group) = split(dotted);
    Details {
        name: name.to_owned(),
        group,
        kind,
        ..Details::default()
    }
}

impl Status {
    fn failure(code: u16, reason: &str, message: impl Into<String>, details: Option<Details>) -> Status {
        Status {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details,
            code,
        }
    }

    /// A successful answer about an object, as DELETE gives it.
    pub fn success(group_resource: &str, name: &str, uid: &str) -> Status {
        let mut d = details(group_resource, name);
        d.uid = uid.to_owned();
        Status {
            status: "Success".into(),
            details: Some(d),
            code: 200,
            ..Status::failure(200, "", "", None)
        }
    }

    /// 404: no such object.
    pub fn not_found(group_resource: &str, name: &str) -> Status {
        let d = details(group_resource, name);
        Self::failure(
            404,
            "NotFound",
            format!("{group_resource} {} not found", quote(name)),
            Some(d),
        )
    }

    /// 404: no such path.
    pub fn no_such_path() -> Status {
        let text = "the server could not find the requested resource";
        Self::failure(404, "NotFound", text, Some(Details::default()))
    }

    /// 409: the name is taken.
    pub fn already_exists(group_resource: &str, name: &str) -> Status {
        let d = details(group_resource, name);
        Self::failure(
            409,
            "AlreadyExists",
            format!("{group_resource} {} already exists", quote(name)),
            Some(d),
        )
    }

    /// 409: no free name was found for `generateName`.
    pub fn generate_name_conflict(group_resource: &str, name: &str, retry_after_seconds: u32) -> Status {
        let d = Details {
            retry_after_seconds,
            ..details(group_resource, name)
        };
        let text = format!(
            "{group_resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Self::failure(409, "AlreadyExists", text, Some(d))
    }

    /// 409: the object cannot be changed as asked; see [`MODIFIED`] for a failed optimistic lock.
    pub fn conflict(group_resource: &str, name: &str, why: &str) -> Status {
        let d = details(group_resource, name);
        let text = format!(
            "Operation cannot be fulfilled on {group_resource} {}: {why}",
            quote(name)
        );
        Self::failure(409, "Conflict", text, Some(d))
    }

    /// 409: fields belong to other managers.
    pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Status {
        Self::failure(
            409,
            "Conflict",
            message,
            Some(Details {
                causes,
                ..Details::default()
            }),
        )
    }

    /// 422: the object breaks rules. `group_kind` is `Pod` or `Deployment.apps`.
    pub fn invalid(group_kind: &str, name: &str, errors: &[FieldError]) -> Status {
        let mut texts: Vec<String> = Vec::new();
        for e in errors {
            let text = e.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().into(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        let message = match texts.as_slice() {
            [] => format!("{group_kind} {} is invalid", quote(name)),
            [one] => format!("{group_kind} {} is invalid: {one}", quote(name)),
            many => format!("{group_kind} {} is invalid: [{}]", quote(name), many.join(", ")),
        };
        Self::failure(
            422,
            "Invalid",
            message,
            Some(Details {
                causes,
                ..details(group_kind, name)
            }),
        )
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Self::failure(400, "BadRequest", message, None)
    }

    /// 401: who are you?
    pub fn unauthorized() -> Status {
        Self::failure(401, "Unauthorized", "Unauthorized", None)
    }

    /// 403: not allowed; name and resource may be empty.
    pub fn forbidden(group_resource: &str, name: &str, why: &str) -> Status {
        let text = match (group_resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (r, "") => format!("{r} is forbidden: {why}"),
            (r, n) => format!("{r} {} is forbidden: {why}", quote(n)),
        };
        Self::failure(403, "Forbidden", text, Some(details(group_resource, name)))
    }

    /// 405: the resource has no such verb.
    pub fn method_not_supported(group_resource: &str, verb: &str) -> Status {
        let text = format!(
            "{verb} is not supported on resources of kind {}",
            quote(group_resource)
        );
        Self::failure(405, "MethodNotAllowed", text, Some(details(group_resource, "")))
    }

    /// 406: no acceptable encoding.
    pub fn not_acceptable(message: impl Into<String>) -> Status {
        Self::failure(406, "NotAcceptable", message, None)
    }

    /// 410: the version asked for is no longer kept.
    pub fn gone(message: impl Into<String>) -> Status {
        Self::failure(410, "Gone", message, None)
    }

    /// 410: a watch or list cannot go on from the version asked for.
    pub fn expired(message: impl Into<String>) -> Status {
        Self::failure(410, "Expired", message, None)
    }

    /// 413: the body is over the limit.
    pub fn too_large(message: &str) -> Status {
        Self::failure(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: {message}"),
            None,
        )
    }

    /// 415: unknown body encoding.
    pub fn unsupported_media_type(message: impl Into<String>) -> Status {
        Self::failure(415, "UnsupportedMediaType", message, None)
    }

    /// 429: slow down.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        let d = Details {
            retry_after_seconds,
            ..Details::default()
        };
        Self::failure(429, "TooManyRequests", message, Some(d))
    }

    /// 500: the server failed.
    pub fn internal(why: impl fmt::Display) -> Status {
        let why = why.to_string();
        let text = format!("Internal error occurred: {why}");
        let causes = vec![Cause {
            message: why,
            ..Cause::default()
        }];
        Self::failure(
            500,
            "InternalError",
            text,
            Some(Details {
                causes,
                ..Details::default()
            }),
        )
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Status {
        Self::failure(503, "ServiceUnavailable", message, None)
    }

    /// 500: the operation did not finish in time and may be tried again.
    pub fn server_timeout(group_resource: &str, verb: &str, retry_after_seconds: u32) -> Status {
        let d = Details {
            retry_after_seconds,
            ..details(group_resource, "")
        };
        let text = format!(
            "The {verb} operation against {group_resource} could not be completed at this time, please try again."
        );
        Self::failure(500, "ServerTimeout", text, Some(d))
    }

    /// 504: the request took too long.
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Status {
        let d = Details {
            retry_after_seconds,
            ..Details::default()
        };
        Self::failure(504, "Timeout", format!("Timeout: {message}"), Some(d))
    }

    /// Adds a cause.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Status {
        self.details
            .get_or_insert_with(Details::default)
            .causes
            .push(Cause {
                reason: reason.into(),
                message: message.into(),
                field: field.into(),
            });
        self
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        // A struct of strings, numbers and string-keyed maps always serializes.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// The bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_those_clients_know() {
        let too_low = FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0");
        let no_name = FieldError::required("metadata.name", "name or generateName is required");
        let cases = [
            (Status::not_found("pods", "x"), 404, "pods \"x\" not found"),
            (
                Status::already_exists("deployments.apps", "x"),
                409,
                "deployments.apps \"x\" already exists",
            ),
            (
                Status::conflict("pods", "x", MODIFIED),
                409,
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to the latest version and try again",
            ),
            (
                Status::invalid("Deployment.apps", "x", std::slice::from_ref(&too_low)),
                422,
                "Deployment.apps \"x\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                Status::invalid("Pod", "", &[no_name, too_low]),
                422,
                "Pod \"\" is invalid: [metadata.name: Required value: name or generateName is required, spec.replicas: Invalid value: -1: must be greater than or equal to 0]",
            ),
            (Status::forbidden("pods", "", "no"), 403, "pods is forbidden: no"),
            (Status::internal("boom"), 500, "Internal error occurred: boom"),
            (
                Status::method_not_supported("namespaces", "deletecollection"),
                405,
                "deletecollection is not supported on resources of kind \"namespaces\"",
            ),
        ];
        for (status, code, message) in cases {
            assert_eq!(status.code, code);
            assert_eq!(status.message, message);
        }
    }

    #[test]
    fn wire_form_is_complete() {
        let status = Status::not_found("deployments.apps", "x");
        assert_eq!(
            status.to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"x\" not found", "reason": "NotFound",
                "details": {"name": "x", "group": "apps", "kind": "deployments"}, "code": 404})
        );
        let bytes = Status::invalid("Pod", "x", &[FieldError::duplicate("spec.a", "b")]).to_bytes();
        let back: Status = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back.details.unwrap().causes[0].reason, "FieldValueDuplicate");
    }

    #[test]
    fn bodies_show_values_as_go_does() {
        let cases = [
            (
                FieldError::invalid("a", "x\"y", "bad"),
                "Invalid value: \"x\\\"y\": bad",
            ),
            (FieldError::invalid("a", true, "bad"), "Invalid value: true: bad"),
            (
                FieldError::invalid("a", json!({"b": 1}), "bad"),
                "Invalid value: {\"b\":1}: bad",
            ),
            (
                FieldError::invalid("a", Value::Null, "bad"),
                "Invalid value: null: bad",
            ),
            (
                FieldError::too_long("a", 63),
                "Too long: may not be more than 63 bytes",
            ),
            (
                FieldError::too_many("a", 3, 1),
                "Too many: 3: must have at most 1 item",
            ),
            (
                FieldError::not_supported("a", "x", &["b", "c"]),
                "Unsupported value: \"x\": supported values: \"b\", \"c\"",
            ),
            (
                FieldError::immutable("a", 1),
                "Invalid value: 1: field is immutable",
            ),
        ];
        for (error, body) in cases {
            assert_eq!(error.body(), body);
        }
    }
}
