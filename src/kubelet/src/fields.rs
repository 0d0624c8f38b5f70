//! Values a container may ask about its own pod: `fieldRef` and `resourceFieldRef`. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::resources;

/// Why a field has no value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldError {
    /// The path names nothing a pod offers.
    #[error("unsupported fieldPath: {0}")]
    UnknownPath(String),
    /// The resource name is not one that can be asked for.
    #[error("unsupported container resource : {0}")]
    UnknownResource(String),
    /// The reference names a container the pod does not have.
    #[error("container {0} not found")]
    UnknownContainer(String),
    /// The divisor is not a quantity or is zero.
    #[error("invalid divisor {0:?}")]
    BadDivisor(String),
}

/// What is known about a pod besides its object.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// Addresses of the pod, the primary one first.
    pub ips: Vec<String>,
    /// Addresses of the node, the primary one first.
    pub host_ips: Vec<String>,
    /// What the node can give to pods: the value of a limit that is not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The value of a field path for one pod.
pub fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(FieldError::UnknownPath(path.to_owned())),
        };
        return Ok(map
            .as_ref()
            .and_then(|map| map.get(key))
            .cloned()
            .unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".into()),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.ips.join(","),
        _ => return Err(FieldError::UnknownPath(path.to_owned())),
    })
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, sorted, values quoted the way Go quotes.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
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

/// The value of a resource reference; `container` is the one it stands in, if any.
pub fn resource_field(
    pod: &Pod,
    facts: &PodFacts,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, FieldError> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => resources::all_containers(pod)
            .find(|container| container.name == name)
            .ok_or_else(|| FieldError::UnknownContainer(name.to_owned()))?,
        None => container.ok_or_else(|| FieldError::UnknownContainer(String::new()))?,
    };
    let unknown = || FieldError::UnknownResource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let resources = container.resources.as_ref();
    let value = match kind {
        _ if !known => return Err(unknown()),
        "requests" => resources::request(resources, name).unwrap_or(0),
        "limits" => resources::limit(resources, name).unwrap_or_else(|| {
            let quantity = facts.allocatable.get(name);
            let read = if name == "cpu" {
                resources::milli
            } else {
                resources::whole
            };
            quantity.and_then(read).unwrap_or(0)
        }),
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.clone().unwrap_or_else(|| Quantity("1".into()));
    let bad = || FieldError::BadDivisor(divisor.0.clone());
    // cpu is counted in thousandths, so the divisor is too.
    let divisor_value = if name == "cpu" {
        resources::milli(&divisor)
    } else {
        resources::whole(&divisor)
    };
    let divisor_value = match divisor_value.ok_or_else(bad)? {
        0 if divisor.0.trim().starts_with('0') => {
            if name == "cpu" {
                1000
            } else {
                1
            }
        }
        value if value > 0 => value,
        _ => return Err(bad()),
    };
    Ok(value
        .div_euclid(divisor_value)
        .saturating_add(i64::from(value % divisor_value != 0))
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"},
                    "requests": {"cpu": "250m"}}},
                {"name": "b"}]},
        }))
        .unwrap()
    }

    fn facts() -> PodFacts {
        PodFacts {
            ips: vec!["10.42.0.5".into(), "fd00::5".into()],
            host_ips: vec!["192.0.2.1".into()],
            allocatable: BTreeMap::from([("cpu".into(), Quantity("4".into()))]),
        }
    }

    #[test]
    fn paths() {
        let table = [
            ("metadata.name", Ok("web")),
            ("metadata.labels['app']", Ok("web")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.labels", Ok("app=\"web\"\ntier=\"a\\\"b\"")),
            ("spec.nodeName", Ok("n1")),
            ("status.podIP", Ok("10.42.0.5")),
            ("status.podIPs", Ok("10.42.0.5,fd00::5")),
            ("status.hostIP", Ok("192.0.2.1")),
            ("spec.containers", Err(())),
            ("spec.labels['a']", Err(())),
        ];
        for (path, expected) in table {
            let got = field(&pod(), &facts(), path);
            assert_eq!(got.as_deref().map_err(|_| ()), expected, "{path}");
        }
    }

    #[test]
    fn resource_references() {
        let pod = pod();
        let containers = &pod.spec.as_ref().unwrap().containers;
        let table = [
            (0, "limits.cpu", None, Ok("2")),
            (0, "limits.cpu", Some("1m"), Ok("1500")),
            (0, "requests.cpu", Some("1m"), Ok("250")),
            (0, "limits.memory", Some("1Mi"), Ok("64")),
            (0, "limits.memory", Some("0"), Ok("67108864")),
            (1, "limits.cpu", None, Ok("4")),
            (1, "requests.memory", None, Ok("0")),
            (1, "limits.disk", None, Err(())),
            (1, "cpu", None, Err(())),
        ];
        for (container, resource, divisor, expected) in table {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: divisor.map(|d: &str| Quantity(d.into())),
                resource: resource.into(),
            };
            let got = resource_field(&pod, &facts(), Some(&containers[container]), &selector);
            assert_eq!(got.as_deref().map_err(|_| ()), expected, "{resource} {divisor:?}");
        }
    }
}
