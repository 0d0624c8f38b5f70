//! The environment of a container.
//!
//! Three layers, later ones win: addresses of services, `envFrom`, `env`. A `$(NAME)` in a value, a command or an
//! argument refers to what is defined so far; `$$` is a dollar; a reference to nothing stays as written.
//! Pure: the objects referred to are fetched beforehand into [`Referred`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};

use crate::fields::{self, FieldError, PodFacts};

/// Why an environment cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    /// A ConfigMap that must be there is not.
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    /// A Secret that must be there is not.
    #[error("secret {0:?} not found")]
    NoSecret(String),
    /// The ConfigMap lacks the key.
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the object.
        name: String,
        /// The key asked for.
        key: String,
    },
    /// The Secret lacks the key.
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the object.
        name: String,
        /// The key asked for.
        key: String,
    },
    /// A Secret value that is not text cannot be a variable.
    #[error("key {key} in Secret {name} is not valid UTF-8")]
    NotText {
        /// Name of the object.
        name: String,
        /// The key asked for.
        key: String,
    },
    /// A reference into the pod itself failed.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A source this kubelet does not know.
    #[error("env {0} has an unsupported source")]
    Unsupported(String),
}

/// The ConfigMaps and Secrets a pod refers to, by name; absent means not found.
#[derive(Clone, Debug, Default)]
pub struct Referred {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// Secrets of the pod's namespace.
    pub secrets: BTreeMap<String, Arc<Secret>>,
}

/// The names of the objects the environment of a container refers to: ConfigMaps, then Secrets.
pub fn referred_names(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut maps = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|env| env.value_from.as_ref())
    {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The variables of a container, sorted by name.
pub fn environment(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    referred: &Referred,
    services: &[Arc<Service>],
) -> Result<BTreeMap<String, String>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let mut vars = service_variables(services, namespace, links);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match referred.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten().filter(|(key, _)| valid_name(key)) {
                        vars.insert(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match referred.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten().filter(|(key, _)| valid_name(key)) {
                        let value = String::from_utf8_lossy(&value.0).into_owned();
                        vars.insert(format!("{prefix}{key}"), value);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    for env in container.env.iter().flatten() {
        let value = match &env.value_from {
            None => Some(expand(env.value.as_deref().unwrap_or_default(), |name| {
                vars.get(name).cloned()
            })),
            Some(source) => {
                if let Some(reference) = &source.field_ref {
                    Some(fields::field(pod, facts, &reference.field_path)?)
                } else if let Some(reference) = &source.resource_field_ref {
                    Some(fields::resource_field(pod, facts, Some(container), reference)?)
                } else if let Some(reference) = &source.config_map_key_ref {
                    config_map_key(referred, namespace, reference)?
                } else if let Some(reference) = &source.secret_key_ref {
                    secret_key(referred, namespace, reference)?
                } else {
                    return Err(EnvError::Unsupported(env.name.clone()));
                }
            }
        };
        if let Some(value) = value {
            vars.insert(env.name.clone(), value);
        }
    }
    Ok(vars)
}

fn config_map_key(
    referred: &Referred,
    namespace: &str,
    reference: &k8s_openapi::api::core::v1::ConfigMapKeySelector,
) -> Result<Option<String>, EnvError> {
    let optional = reference.optional == Some(true);
    let Some(map) = referred.config_maps.get(&reference.name) else {
        return if optional {
            Ok(None)
        } else {
            Err(EnvError::NoConfigMap(reference.name.clone()))
        };
    };
    match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(value) => Ok(Some(value.clone())),
        None if optional => Ok(None),
        None => Err(EnvError::NoConfigMapKey {
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            key: reference.key.clone(),
        }),
    }
}

fn secret_key(
    referred: &Referred,
    namespace: &str,
    reference: &k8s_openapi::api::core::v1::SecretKeySelector,
) -> Result<Option<String>, EnvError> {
    let optional = reference.optional == Some(true);
    let Some(secret) = referred.secrets.get(&reference.name) else {
        return if optional {
            Ok(None)
        } else {
            Err(EnvError::NoSecret(reference.name.clone()))
        };
    };
    match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(value) => match String::from_utf8(value.0.clone()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(EnvError::NotText {
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        },
        None if optional => Ok(None),
        None => Err(EnvError::NoSecretKey {
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            key: reference.key.clone(),
        }),
    }
}

/// A variable may have any name a process environment can hold.
fn valid_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Replaces `$(NAME)` by what `lookup` gives; a name it does not know stays as written, `$$` becomes `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables that describe services: those of the namespace when links are on, the API server's always.
fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    let master = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default")
            && service.metadata.name.as_deref() == Some("kubernetes")
    };
    let own = |service: &Service| links && service.metadata.namespace.as_deref() == Some(namespace);
    // The namespace's own service of the same name wins, so it comes last.
    let ordered = services
        .iter()
        .filter(|s| master(s))
        .chain(services.iter().filter(|s| own(s)));
    for service in ordered {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec
            .cluster_ip
            .as_deref()
            .filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let name = upper(service.metadata.name.as_deref().unwrap_or_default());
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        vars.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
        vars.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                vars.insert(
                    format!("{name}_SERVICE_PORT_{}", upper(port_name)),
                    port.port.to_string(),
                );
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if index == 0 {
                vars.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            vars.insert(prefix.clone(), url);
            vars.insert(format!("{prefix}_PROTO"), lower);
            vars.insert(format!("{prefix}_PORT"), port.port.to_string());
            vars.insert(format!("{prefix}_ADDR"), ip.to_owned());
        }
    }
    vars
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        let table = [
            ("$(A)", "x"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("$(A)-$(A)", "x-x"),
            ("$A", "$A"),
            ("$()", "$()"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn layers_and_errors() {
        let container = json!({"name": "c", "image": "i",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(P_k)-$(WEB_SERVICE_HOST)-$(Z)"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}}]});
        let pod: Pod =
            parse(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]}}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let services: Vec<Arc<Service>> = vec![
            Arc::new(parse(json!({"metadata": {"name": "web", "namespace": "ns"},
                "spec": {"clusterIP": "10.43.0.7", "ports": [{"name": "http-alt", "port": 80, "protocol": "TCP"}]}}))),
            Arc::new(parse(json!({"metadata": {"name": "other", "namespace": "other"},
                "spec": {"clusterIP": "10.43.0.8", "ports": [{"port": 80}]}}))),
            Arc::new(parse(
                json!({"metadata": {"name": "kubernetes", "namespace": "default"},
                "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]}}),
            )),
            Arc::new(parse(json!({"metadata": {"name": "headless", "namespace": "ns"},
                "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}))),
        ];
        let mut referred = Referred::default();
        referred.config_maps.insert(
            "cm".into(),
            Arc::new(parse(json!({"metadata": {}, "data": {"k": "v"}}))),
        );
        let error = environment(&pod, container, &PodFacts::default(), &referred, &services).unwrap_err();
        assert_eq!(error.to_string(), "secret \"s\" not found");
        referred
            .secrets
            .insert("s".into(), Arc::new(parse(json!({"metadata": {}, "data": {}}))));
        let error = environment(&pod, container, &PodFacts::default(), &referred, &services).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key pw in Secret ns/s");
        referred.secrets.insert(
            "s".into(),
            Arc::new(parse(json!({"metadata": {}, "data": {"pw": "c2VjcmV0"}}))),
        );
        let vars = environment(&pod, container, &PodFacts::default(), &referred, &services).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "1-v-10.43.0.7-$(Z)"),
            ("P_k", "v"),
            ("S", "secret"),
            ("N", "p"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("WEB_SERVICE_PORT_HTTP_ALT", "80"),
            ("WEB_PORT", "tcp://10.43.0.7:80"),
            ("WEB_PORT_80_TCP_ADDR", "10.43.0.7"),
        ];
        for (name, value) in expected {
            assert_eq!(vars.get(name).map(String::as_str), Some(value), "{name}");
        }
        for absent in ["O", "OTHER_SERVICE_HOST", "HEADLESS_SERVICE_HOST"] {
            assert!(!vars.contains_key(absent), "{absent}");
        }
    }
}
