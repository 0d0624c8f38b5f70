//! Paths and operations as both versions of OpenAPI write them.

use serde_json::{Map, Value, json};

use super::operations::{Content, Operation, PathItem};
use super::parameters::{parameter_reference, parameter_v3};

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
const CUSTOM_PATCH_MEDIA: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

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
        self.render(parameter_v3, Operation::v3)
    }

    pub(super) fn v2(&self) -> Value {
        self.render(parameter_reference, Operation::v2)
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
        let mut media = self.media.unwrap_or(MEDIA).to_vec();
        if self.watchable {
            media.extend(WATCH_MEDIA);
        }
        media
    }

    fn patch_media(&self) -> &'static [&'static str] {
        if self.custom {
            CUSTOM_PATCH_MEDIA
        } else {
            PATCH_MEDIA
        }
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
                self.patch_media()
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
            self.patch_media()
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
