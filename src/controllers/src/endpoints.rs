//! Keeps EndpointSlices (and Endpoints) of Services with a selector in step
//! with the pods behind them.
//!
//! One Service is one work item: what its slices should hold is computed from
//! its pods, then compared with the slices there are. Slices keep their
//! endpoints where possible, so that one pod that comes or goes changes one
//! slice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, Endpoints, Node, ObjectReference, Pod,
    Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use skiff_client::informer::{key_of, split_key};
use skiff_client::{Change, Informer, WorkQueue};

use crate::objects::{generated_name, is_finished, is_ready};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice, as in Kubernetes.
const PER_SLICE: usize = 100;
/// Addresses in an Endpoints object, as in Kubernetes.
const LEGACY_LIMIT: usize = 1_000;

/// Starts the loop.
pub fn start(context: &Context) {
    let services: Informer<Service> = context.informers.get();
    let pods: Informer<Pod> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let slices: Informer<EndpointSlice> = context.informers.get();
    let legacy: Informer<Endpoints> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&services, &queue, |change| vec![key_of(&**change.object())]);
    let selecting = services.clone();
    context.feed(&pods, &queue, move |change| services_of(change, &selecting));
    context.feed(&slices, &queue, |change| {
        let meta = &change.object().metadata;
        let labels = meta.labels.as_ref();
        let ours = labels
            .and_then(|labels| labels.get(MANAGED_BY))
            .is_some_and(|by| by == MANAGER);
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        service
            .filter(|_| ours)
            .map(|service| format!("{namespace}/{service}"))
            .into_iter()
            .collect()
    });
    let ready = {
        let (services, pods, nodes, slices, legacy) = (
            services.clone(),
            pods.clone(),
            nodes.clone(),
            slices.clone(),
            legacy.clone(),
        );
        async move {
            services.synced().await;
            pods.synced().await;
            nodes.synced().await;
            slices.synced().await;
            legacy.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        services,
        pods,
        nodes,
        slices,
        legacy,
    });
    context.work("endpoints", queue, 4, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

fn services_of(change: &Change<Pod>, services: &Informer<Service>) -> Vec<String> {
    let mut keys = BTreeSet::new();
    let mut look_at = |pod: &Pod| {
        for service in services.list_in(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if selected(&service, pod) {
                keys.insert(key_of(&*service));
            }
        }
    };
    if let Change::Applied { old: Some(old), new } = change {
        let same = old.metadata.labels == new.metadata.labels
            && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
            && is_ready(old) == is_ready(new)
            && addresses(old) == addresses(new)
            && is_finished(old) == is_finished(new);
        if same {
            return Vec::new();
        }
        look_at(old);
    }
    look_at(change.object());
    keys.into_iter().collect()
}

fn selected(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
        .filter(|s| !s.is_empty());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|s| {
        s.iter()
            .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
    })
}

fn addresses(pod: &Pod) -> Vec<&str> {
    let status = pod.status.as_ref();
    let list: Vec<&str> = status
        .iter()
        .flat_map(|s| s.pod_ips.iter().flatten())
        .map(|ip| ip.ip.as_str())
        .collect();
    if list.is_empty() {
        status.and_then(|s| s.pod_ip.as_deref()).into_iter().collect()
    } else {
        list
    }
}

struct Loop {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    legacy: Informer<Endpoints>,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let (namespace, name) = split_key(key);
        let namespace = namespace.unwrap_or_default();
        let mine: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_in(namespace)
            .into_iter()
            .filter(|slice| is_ours(slice, name))
            .collect();
        let service = self
            .services
            .get(key)
            .filter(|service| service.metadata.deletion_timestamp.is_none());
        let Some(service) = service else {
            for slice in mine {
                self.delete_slice(&slice).await?;
            }
            return self.delete_legacy(namespace, name).await;
        };
        let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        if external
            || service
                .spec
                .as_ref()
                .is_none_or(|spec| spec.selector.as_ref().is_none_or(BTreeMap::is_empty))
        {
            return Ok(None);
        }
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(namespace)
            .into_iter()
            .filter(|pod| selected(&service, pod))
            .collect();
        let zone = |node: &str| {
            self.nodes
                .get(node)
                .and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned())
        };
        let wanted = wanted(&service, &pods, &zone);
        for action in plan(&service, &mine, wanted) {
            self.apply(namespace, action).await?;
        }
        self.write_legacy(&service, &pods).await
    }

    async fn apply(&self, namespace: &str, action: Action) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), namespace);
        let result = match action {
            Action::Create(slice) => api.create(&PostParams::default(), &slice).await.map(drop),
            Action::Replace(slice) => {
                let name = slice.metadata.name.clone().unwrap_or_default();
                api.replace(&name, &PostParams::default(), &slice).await.map(drop)
            }
            Action::Delete(slice) => return self.delete_slice(&slice).await,
        };
        match result {
            // The namespace is going away, or the service with it.
            Err(error) if is_gone(&error) || is_forbidden(&error) => Ok(()),
            other => Ok(other?),
        }
    }

    async fn delete_slice(&self, slice: &EndpointSlice) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(
            self.context.client.clone(),
            slice.metadata.namespace.as_deref().unwrap_or_default(),
        );
        match api
            .delete(
                slice.metadata.name.as_deref().unwrap_or_default(),
                &DeleteParams::default(),
            )
            .await
        {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn delete_legacy(&self, namespace: &str, name: &str) -> Outcome {
        if self.legacy.get(&format!("{namespace}/{name}")).is_none() {
            return Ok(None);
        }
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), namespace);
        match api.delete(name, &DeleteParams::default()).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(None),
        }
    }

    async fn write_legacy(&self, service: &Service, pods: &[Arc<Pod>]) -> Outcome {
        let key = key_of(service);
        let (namespace, name) = split_key(&key);
        let wanted = legacy(service, pods);
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), namespace.unwrap_or_default());
        let result = match self.legacy.get(&key) {
            Some(have)
                if have.subsets == wanted.subsets && have.metadata.labels == wanted.metadata.labels =>
            {
                return Ok(None);
            }
            Some(have) => {
                let mut update = wanted;
                update.metadata.resource_version = have.metadata.resource_version.clone();
                api.replace(name, &PostParams::default(), &update).await.map(drop)
            }
            None => api.create(&PostParams::default(), &wanted).await.map(drop),
        };
        match result {
            Err(error) if is_gone(&error) || is_forbidden(&error) => Ok(None),
            // Our view is behind: the informer brings the newer one.
            Err(error) if is_conflict(&error) => Ok(Some(std::time::Duration::from_millis(100))),
            other => other.map(|()| None).map_err(Error::from),
        }
    }
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

fn is_ours(slice: &EndpointSlice, service: &str) -> bool {
    let label = |key: &str| {
        slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    label(SERVICE_NAME) == Some(service) && label(MANAGED_BY) == Some(MANAGER)
}

/// What a slice can be shared by: address type and ports.
type Shape = (String, Vec<EndpointPort>);

fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|p| p.container_port)
        }
    }
}

fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<String, (Shape, Vec<Endpoint>)> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec
        .ip_families
        .clone()
        .unwrap_or_else(|| vec!["IPv4".to_owned()]);
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let mut result: BTreeMap<String, (Shape, Vec<Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !is_finished(pod)) {
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some(target_port(pod, port)?),
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        for family in &families {
            let fits = |ip: &&str| ip.contains(':') == (family == "IPv6");
            let Some(ip) = addresses(pod).into_iter().find(fits).map(str::to_owned) else {
                continue;
            };
            let terminating = pod.metadata.deletion_timestamp.is_some();
            let serving = is_ready(pod);
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let subdomain = pod.spec.as_ref().and_then(|spec| spec.subdomain.clone());
            let hostname = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
            let endpoint = Endpoint {
                addresses: vec![ip],
                conditions: Some(EndpointConditions {
                    ready: Some(publish_all || (serving && !terminating)),
                    serving: Some(serving),
                    terminating: Some(terminating),
                }),
                hostname: hostname.filter(|_| subdomain.is_some() && subdomain == service.metadata.name),
                zone: node.as_deref().and_then(zone),
                node_name: node,
                target_ref: Some(reference(pod)),
                ..Endpoint::default()
            };
            let shape = (family.clone(), ports.clone());
            let id = serde_json::to_string(&shape).unwrap_or_default();
            result
                .entry(id)
                .or_insert_with(|| (shape, Vec::new()))
                .1
                .push(endpoint);
        }
    }
    result
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[derive(Debug, PartialEq)]
enum Action {
    Create(EndpointSlice),
    Replace(EndpointSlice),
    Delete(EndpointSlice),
}

/// Keeps what can stay, fills up what has room, makes and removes slices as needed.
fn plan(
    service: &Service,
    have: &[Arc<EndpointSlice>],
    mut wanted: BTreeMap<String, (Shape, Vec<Endpoint>)>,
) -> Vec<Action> {
    // A service without pods still has one (empty) slice, so that a reader can
    // tell "no endpoints" from "not known yet".
    if wanted.is_empty() {
        let family = service
            .spec
            .as_ref()
            .and_then(|spec| spec.ip_families.as_ref()?.first().cloned());
        let shape = (family.unwrap_or_else(|| "IPv4".to_owned()), Vec::new());
        wanted.insert(String::new(), (shape, Vec::new()));
    }
    let labels = slice_labels(service);
    let mut actions = Vec::new();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for ((family, ports), endpoints) in wanted.into_values() {
        let mut left: BTreeMap<(String, Vec<String>), Endpoint> = endpoints
            .into_iter()
            .map(|endpoint| (identity(&endpoint), endpoint))
            .collect();
        let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for slice in have {
            let same_ports = slice.ports.clone().unwrap_or_default() == ports;
            if slice.address_type != family || !same_ports {
                continue;
            }
            used.insert(slice.metadata.name.as_deref().unwrap_or_default());
            let stay = endpoints_of(slice)
                .iter()
                .filter_map(|endpoint| left.remove(&identity(endpoint)))
                .collect();
            kept.push((slice, stay));
        }
        let mut rest = left.into_values();
        for (_, endpoints) in &mut kept {
            let room = PER_SLICE.saturating_sub(endpoints.len());
            endpoints.extend(rest.by_ref().take(room));
        }
        let rest: Vec<Endpoint> = rest.collect();
        let mut nothing_kept = kept.iter().all(|(_, endpoints)| endpoints.is_empty());
        for (slice, endpoints) in kept {
            if endpoints.is_empty() && !(nothing_kept && rest.is_empty()) {
                actions.push(Action::Delete((**slice).clone()));
                continue;
            }
            nothing_kept = false;
            if endpoints_of(slice) != endpoints || slice.metadata.labels.as_ref() != Some(&labels) {
                let mut update = (**slice).clone();
                update.endpoints = Some(endpoints);
                update.metadata.labels = Some(labels.clone());
                actions.push(Action::Replace(update));
            }
        }
        let missing_empty = rest.is_empty() && nothing_kept && ports.is_empty();
        let chunks: Vec<Vec<Endpoint>> = if missing_empty {
            vec![Vec::new()]
        } else {
            rest.chunks(PER_SLICE).map(<[Endpoint]>::to_vec).collect()
        };
        for chunk in chunks {
            actions.push(Action::Create(new_slice(
                service, &family, &ports, chunk, &labels,
            )));
        }
    }
    for slice in have {
        if !used.contains(slice.metadata.name.as_deref().unwrap_or_default()) {
            actions.push(Action::Delete((**slice).clone()));
        }
    }
    actions
}

fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

fn identity(endpoint: &Endpoint) -> (String, Vec<String>) {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone())
        .unwrap_or_default();
    (uid, endpoint.addresses.clone())
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        SERVICE_NAME.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn new_slice(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    labels: &BTreeMap<String, String>,
) -> EndpointSlice {
    let prefix = format!("{}-", service.metadata.name.as_deref().unwrap_or_default());
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(generated_name(&prefix)),
            generate_name: Some(prefix),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: service.metadata.name.clone().unwrap_or_default(),
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }
}

/// The old Endpoints object: ready and not ready addresses by set of ports.
fn legacy(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        "endpoints.kubernetes.io/managed-by".to_owned(),
        "endpoint-controller".to_owned(),
    );
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let family = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.as_ref()?.first().cloned());
    let mut one_family = service.clone();
    one_family.spec.get_or_insert_default().ip_families =
        Some(vec![family.unwrap_or_else(|| "IPv4".to_owned())]);
    let mut count = 0;
    for (id, ((_, ports), endpoints)) in wanted(&one_family, pods, &|_| None) {
        let mut subset = EndpointSubset::default();
        if !ports.is_empty() {
            let legacy_port = |port: &EndpointPort| LegacyPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: port.port.unwrap_or_default(),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            };
            subset.ports = Some(ports.iter().map(legacy_port).collect());
        }
        for endpoint in endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.terminating == Some(true) || count == LEGACY_LIMIT {
                continue;
            }
            count += 1;
            let address = EndpointAddress {
                ip: endpoint.addresses.first().cloned().unwrap_or_default(),
                hostname: endpoint.hostname,
                node_name: endpoint.node_name,
                target_ref: endpoint.target_ref,
            };
            let list = if conditions.ready == Some(true) {
                &mut subset.addresses
            } else {
                &mut subset.not_ready_addresses
            };
            list.get_or_insert_default().push(address);
        }
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        if subset.addresses.is_some() || subset.not_ready_addresses.is_some() {
            subsets.insert(id, subset);
        }
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then(|| subsets.into_values().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s-1"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]},
        }))
        .expect("service")
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
                "spec": {"nodeName": "n", "containers": [
                    {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip,
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .expect("pod"),
        )
    }

    fn planned(have: &[Arc<EndpointSlice>], pods: &[Arc<Pod>]) -> Vec<Action> {
        plan(&service(), have, wanted(&service(), pods, &|_| None))
    }

    /// The slices after the actions.
    fn after(have: &[Arc<EndpointSlice>], actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
        let mut slices: BTreeMap<String, Arc<EndpointSlice>> = have
            .iter()
            .map(|slice| (slice.metadata.name.clone().unwrap_or_default(), slice.clone()))
            .collect();
        for action in actions {
            match action {
                Action::Create(slice) | Action::Replace(slice) => {
                    slices.insert(slice.metadata.name.clone().unwrap_or_default(), Arc::new(slice));
                }
                Action::Delete(slice) => {
                    slices.remove(slice.metadata.name.as_deref().unwrap_or_default());
                }
            }
        }
        slices.into_values().collect()
    }

    #[test]
    fn named_ports_are_looked_up_in_the_pod() {
        let slices = after(&[], planned(&[], &[pod("a", "10.42.0.2", true)]));
        assert_eq!(slices.len(), 1);
        assert_eq!(
            slices[0].ports.as_ref().and_then(|ports| ports[0].port),
            Some(8080)
        );
        assert_eq!(endpoints_of(&slices[0])[0].addresses, ["10.42.0.2"]);
        assert_eq!(
            endpoints_of(&slices[0])[0]
                .conditions
                .as_ref()
                .and_then(|c| c.ready),
            Some(true)
        );
    }

    #[test]
    fn a_plan_that_was_carried_out_has_nothing_left_to_do() {
        let pods: Vec<Arc<Pod>> = (0..250)
            .map(|i| {
                pod(
                    &format!("p{i:03}"),
                    &format!("10.42.{}.{}", i / 200, i % 200 + 2),
                    true,
                )
            })
            .collect();
        for count in [0, 1, 99, 100, 101, 250, 3, 0] {
            let slices = after(&[], planned(&[], &pods[..count]));
            assert_eq!(
                slices
                    .iter()
                    .map(|slice| endpoints_of(slice).len())
                    .sum::<usize>(),
                count
            );
            assert!(slices.iter().all(|slice| endpoints_of(slice).len() <= PER_SLICE));
            assert_eq!(planned(&slices, &pods[..count]), [], "{count} pods");
        }
    }

    #[test]
    fn one_pod_changes_one_slice() {
        let pods: Vec<Arc<Pod>> = (0..150)
            .map(|i| pod(&format!("p{i:03}"), &format!("10.42.0.{}", i + 2), true))
            .collect();
        let slices = after(&[], planned(&[], &pods));
        let mut fewer = pods.clone();
        fewer[7] = pod("p007", "10.42.0.9", false);
        assert_eq!(planned(&slices, &fewer).len(), 1);
        fewer.remove(20);
        let both = after(&slices, planned(&slices, &fewer));
        assert_eq!(
            both.iter().map(|slice| endpoints_of(slice).len()).sum::<usize>(),
            149
        );
        let emptied = after(&both, planned(&both, &[]));
        assert_eq!((emptied.len(), endpoints_of(&emptied[0]).len()), (1, 0));
    }

    #[test]
    fn legacy_endpoints_tell_ready_from_not_ready() {
        let endpoints = legacy(
            &service(),
            &[pod("a", "10.42.0.3", true), pod("b", "10.42.0.2", false)],
        );
        let subsets = endpoints.subsets.expect("subsets");
        assert_eq!(subsets.len(), 1);
        assert_eq!(
            subsets[0].addresses.as_ref().map(|list| list[0].ip.as_str()),
            Some("10.42.0.3")
        );
        assert_eq!(
            subsets[0]
                .not_ready_addresses
                .as_ref()
                .map(|list| list[0].ip.as_str()),
            Some("10.42.0.2")
        );
        assert_eq!(legacy(&service(), &[]).subsets, None);
    }
}
