//! What a Service owns: a cluster address, node ports.
//!
//! An address is owned by an `IPAddress` object and a port by a key under
//! [`NODE_PORT_PREFIX`]; both are written and removed in the very transaction
//! that writes or removes the Service, on the condition that they are free. So
//! nothing can leak and nothing can be given twice, also with several servers;
//! a claim that loses a race is computed again.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rand::Rng;
use serde_json::{Value, json};
use skiff_api::kinds::Kind;
use skiff_api::meta;
use skiff_api::status::{FieldError, Status};
use skiff_store::{Op, Precondition, Snapshot};

use crate::codec;
use crate::server::{ApiServer, Call, StartError};
use crate::writing::new_uid;

/// Keys that say which Service owns a node port.
const NODE_PORT_PREFIX: &str = "/skiff/nodeports/";
/// Random picks before all addresses or ports are tried in order.
const RANDOM_PICKS: usize = 64;
/// Addresses at the start of the range that are left to people who choose their own.
const STATIC_ADDRESSES: u32 = 256;

/// Keys that must be free, and keys written and removed, with an object.
#[derive(Debug, Default)]
pub struct Claims {
    /// What must hold.
    pub preconditions: Vec<Precondition>,
    /// What is done.
    pub ops: Vec<Op>,
}

fn is_service(kind: &Kind) -> bool {
    kind.plural == "services" && kind.group.is_empty()
}

fn service_type(service: &Value) -> &str {
    match meta::str_at(service, "spec.type") {
        "" => "ClusterIP",
        other => other,
    }
}

fn needs_address(service: &Value) -> bool {
    service_type(service) != "ExternalName" && meta::str_at(service, "spec.clusterIP") != "None"
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && meta::str_at(service, "spec.externalTrafficPolicy") == "Local"
}

/// The addresses a stored Service owns.
fn owned_addresses(service: &Value) -> Vec<String> {
    meta::list_at(service, "spec.clusterIPs")
        .iter()
        .filter_map(Value::as_str)
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .map(str::to_owned)
        .collect()
}

/// The node ports a stored Service owns.
fn owned_ports(service: &Value) -> Vec<u64> {
    let mut ports: Vec<u64> = meta::list_at(service, "spec.ports")
        .iter()
        .filter_map(|p| p["nodePort"].as_u64())
        .chain(service["spec"]["healthCheckNodePort"].as_u64())
        .filter(|p| *p > 0)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Claims what a new Service needs and writes it into the object.
pub fn claim_for_create(server: &ApiServer, kind: &Kind, service: &mut Value) -> Result<Claims, Status> {
    if !is_service(kind) {
        return Ok(Claims::default());
    }
    Allocation::new(server, service, &[], &[]).run(service)
}

/// Claims what a changed Service needs in addition, releases what it does not need any more.
pub fn claim_for_update(
    server: &ApiServer,
    kind: &Kind,
    new: &mut Value,
    old: &Value,
) -> Result<Claims, Status> {
    if !is_service(kind) {
        return Ok(Claims::default());
    }
    keep_allocated(new, old);
    Allocation::new(server, new, &owned_addresses(old), &owned_ports(old)).run(new)
}

/// Releases what a Service owns.
pub fn release(server: &ApiServer, kind: &Kind, service: &Value) -> Claims {
    if !is_service(kind) {
        return Claims::default();
    }
    let addresses = owned_addresses(service);
    let ports = owned_ports(service);
    let mut claims = Claims::default();
    let snapshot = server.store.snapshot();
    // Only what is really this Service's: an object restored from elsewhere may name what others own.
    let owner = owner_of(service);
    for ip in addresses {
        let key = address_key(server, &ip);
        if address_owner(&snapshot, &key).as_deref() == Some(&owner) {
            claims.ops.push(ApiServer::release_key(key));
        }
    }
    for port in ports {
        let key = format!("{NODE_PORT_PREFIX}{port}");
        if snapshot.get(&key).is_some_and(|e| e.value == owner.as_bytes()) {
            claims.ops.push(ApiServer::release_key(key));
        }
    }
    claims
}

fn owner_of(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
}

fn address_key(server: &ApiServer, ip: &str) -> String {
    server.row("networking.k8s.io", "v1", "ipaddresses").key("", ip)
}

fn address_owner(snapshot: &Snapshot, key: &str) -> Option<String> {
    let object = codec::decode(&snapshot.get(key)?.value).ok()?;
    let parent = &object["spec"]["parentRef"];
    Some(format!(
        "{}/{}",
        parent["namespace"].as_str()?,
        parent["name"].as_str()?
    ))
}

/// A client that sends an object without the server's choices means to keep them.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_address(old)
        && service_type(new) != "ExternalName"
        && meta::str_at(new, "spec.clusterIP").is_empty()
    {
        let given = meta::list_at(new, "spec.clusterIPs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default();
        if given.is_empty() {
            meta::copy(old, new, "spec.clusterIP");
            meta::copy(old, new, "spec.clusterIPs");
        }
    }
    for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
        if service_type(new) != "ExternalName" && meta::at(new, field).is_none_or(Value::is_null) {
            meta::copy(old, new, field);
        }
    }
    let old_ports = meta::list_at(old, "spec.ports").to_vec();
    let (wanted, had) = (needs_node_ports(new), needs_node_ports(old));
    if let Some(ports) = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut) {
        for (at, port) in ports.iter_mut().enumerate() {
            if wanted && had && port["nodePort"].as_u64().unwrap_or(0) == 0 {
                let same = old_ports
                    .iter()
                    .find(|o| o["port"] == port["port"] && protocol(o) == protocol(port))
                    .and_then(|o| o["nodePort"].as_u64());
                if let Some(node_port) = same.filter(|p| *p > 0) {
                    port["nodePort"] = node_port.into();
                }
            }
            // A type without node ports loses those it had.
            if !wanted
                && had
                && old_ports
                    .get(at)
                    .is_some_and(|o| o["nodePort"] == port["nodePort"])
            {
                port.as_object_mut().map(|p| p.remove("nodePort"));
            }
        }
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && new["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
    {
        meta::copy(old, new, "spec.healthCheckNodePort");
    }
    if !needs_health_port(new) && new["spec"]["healthCheckNodePort"] == old["spec"]["healthCheckNodePort"] {
        meta::remove(new, "spec.healthCheckNodePort");
    }
    if service_type(new) == "ExternalName" && service_type(old) != "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            if new["spec"][field] == old["spec"][field] {
                meta::remove(new, &format!("spec.{field}"));
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            meta::remove(new, &format!("spec.{field}"));
        }
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

/// One computation of claims.
struct Allocation<'a> {
    server: &'a ApiServer,
    snapshot: Snapshot,
    owner: String,
    name: String,
    had_addresses: &'a [String],
    had_ports: &'a [u64],
    claims: Claims,
}

impl<'a> Allocation<'a> {
    fn new(
        server: &'a ApiServer,
        service: &Value,
        had_addresses: &'a [String],
        had_ports: &'a [u64],
    ) -> Self {
        Self {
            server,
            snapshot: server.store.snapshot(),
            owner: owner_of(service),
            name: meta::name(service).to_owned(),
            had_addresses,
            had_ports,
            claims: Claims::default(),
        }
    }

    fn invalid(&self, error: FieldError) -> Status {
        Status::invalid("Service", &self.name, &[error])
    }

    fn run(mut self, service: &mut Value) -> Result<Claims, Status> {
        self.families(service)?;
        self.address(service)?;
        self.ports(service)?;
        let addresses = owned_addresses(service);
        for ip in self.had_addresses.iter().filter(|ip| !addresses.contains(ip)) {
            self.claims
                .ops
                .push(ApiServer::release_key(address_key(self.server, ip)));
        }
        let ports = owned_ports(service);
        for port in self.had_ports.iter().filter(|p| !ports.contains(p)) {
            self.claims
                .ops
                .push(ApiServer::release_key(format!("{NODE_PORT_PREFIX}{port}")));
        }
        Ok(self.claims)
    }

    /// This cluster has IPv4 only.
    fn families(&self, service: &mut Value) -> Result<(), Status> {
        if service_type(service) == "ExternalName" {
            return Ok(());
        }
        if meta::str_at(service, "spec.ipFamilyPolicy") == "RequireDualStack" {
            let text = "this cluster is not configured for dual-stack services";
            return Err(self.invalid(FieldError::invalid(
                "spec.ipFamilyPolicy",
                "RequireDualStack",
                text,
            )));
        }
        for (at, family) in meta::list_at(service, "spec.ipFamilies").iter().enumerate() {
            if family != "IPv4" {
                let text = "not configured on this cluster";
                return Err(self.invalid(FieldError::invalid(
                    format!("spec.ipFamilies[{at}]"),
                    family.clone(),
                    text,
                )));
            }
        }
        if meta::list_at(service, "spec.ipFamilies").is_empty() {
            meta::set(service, "spec.ipFamilies", json!(["IPv4"]));
        }
        if meta::str_at(service, "spec.ipFamilyPolicy").is_empty() {
            meta::set(service, "spec.ipFamilyPolicy", "SingleStack");
        }
        Ok(())
    }

    fn address(&mut self, service: &mut Value) -> Result<(), Status> {
        if service_type(service) == "ExternalName" {
            return Ok(());
        }
        let listed = meta::list_at(service, "spec.clusterIPs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default();
        let mut wanted = meta::str_at(service, "spec.clusterIP").to_owned();
        if wanted.is_empty() {
            wanted = listed.to_owned();
        }
        if wanted == "None" {
            meta::set(service, "spec.clusterIP", "None");
            meta::set(service, "spec.clusterIPs", json!(["None"]));
            return Ok(());
        }
        if wanted.is_empty() {
            wanted = self.free_address()?.to_string();
        } else if !self.had_addresses.contains(&wanted) {
            let refuse = |text: String| FieldError::invalid("spec.clusterIPs", json!([wanted]), text);
            let ip: Ipv4Addr = wanted.parse().map_err(|_| {
                self.invalid(refuse(
                    "must be a valid IPv4 address of the service range".to_owned(),
                ))
            })?;
            if !self.server.service_cidr.contains(&ip) {
                let text = format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    self.server.service_cidr
                );
                return Err(self.invalid(refuse(text)));
            }
            if self.snapshot.get(&address_key(self.server, &wanted)).is_some() {
                let text = format!("failed to allocate IP {ip}: provided IP is already allocated");
                return Err(self.invalid(refuse(text)));
            }
        }
        if !self.had_addresses.contains(&wanted) {
            let key = address_key(self.server, &wanted);
            self.claims
                .preconditions
                .push(Precondition::Absent { key: key.clone() });
            let value = codec::encode(&self.address_object(service, &wanted));
            self.claims.ops.push(Op::Put { key, value });
        }
        meta::set(service, "spec.clusterIP", wanted.as_str());
        meta::set(service, "spec.clusterIPs", json!([wanted]));
        Ok(())
    }

    fn address_object(&self, service: &Value, ip: &str) -> Value {
        let mut object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": { "name": ip, "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            }},
            "spec": { "parentRef": { "group": "", "resource": "services",
                "namespace": meta::namespace(service), "name": meta::name(service) } },
        });
        meta::fill_system_fields(&mut object, &new_uid(), self.server.clock.now());
        object
    }

    fn free_address(&self) -> Result<Ipv4Addr, Status> {
        let cidr = self.server.service_cidr;
        let first = u32::from(cidr.network()) + 1;
        let last = u32::from(cidr.broadcast()).saturating_sub(1).max(first);
        let size = last - first + 1;
        // As Kubernetes: a part of the range at its start stays free for chosen addresses, as long as there are others.
        let reserved = (size / 16).clamp(16.min(size - 1), STATIC_ADDRESSES);
        let free = |n: u32| {
            self.snapshot
                .get(&address_key(self.server, &Ipv4Addr::from(n).to_string()))
                .is_none()
        };
        let mut rng = rand::rng();
        for _ in 0..RANDOM_PICKS {
            let pick = rng.random_range(first + reserved..=last);
            if free(pick) {
                return Ok(pick.into());
            }
        }
        (first + reserved..=last)
            .chain(first..first + reserved)
            .find(|n| free(*n))
            .map(Ipv4Addr::from)
            .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))
    }

    fn ports(&mut self, service: &mut Value) -> Result<(), Status> {
        let mut taken: Vec<u64> = Vec::new();
        let mut chosen: Vec<Option<u64>> = Vec::new();
        let wanted = needs_node_ports(service);
        let ports = meta::list_at(service, "spec.ports").to_vec();
        // Chosen ports first, so that a free pick does not take one of them.
        for (at, port) in ports.iter().enumerate() {
            let number = port["nodePort"].as_u64().filter(|p| *p > 0);
            if let Some(number) = number {
                self.check_port(&format!("spec.ports[{at}].nodePort"), number, &taken)?;
                if !taken.contains(&number) {
                    taken.push(number);
                }
            }
            chosen.push(number);
        }
        for (at, port) in ports.iter().enumerate() {
            if !wanted || chosen[at].is_some() {
                continue;
            }
            // The same port over TCP and UDP shares its node port.
            let shared = ports.iter().zip(&chosen).find_map(|(other, number)| {
                let number = (*number)?;
                (other["port"] == port["port"] && protocol(other) != protocol(port)).then_some(number)
            });
            let number = match shared {
                Some(number) => number,
                None => self.free_port(&taken)?,
            };
            taken.push(number);
            chosen[at] = Some(number);
        }
        if let Some(list) = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut) {
            for (port, number) in list.iter_mut().zip(&chosen) {
                if let Some(number) = number {
                    port["nodePort"] = (*number).into();
                }
            }
        }
        if needs_health_port(service) {
            let number = match service["spec"]["healthCheckNodePort"].as_u64().filter(|p| *p > 0) {
                Some(number) => {
                    self.check_port("spec.healthCheckNodePort", number, &[])?;
                    number
                }
                None => self.free_port(&taken)?,
            };
            taken.push(number);
            meta::set(service, "spec.healthCheckNodePort", number);
        }
        taken.sort_unstable();
        taken.dedup();
        for number in taken.iter().filter(|n| !self.had_ports.contains(n)) {
            let key = format!("{NODE_PORT_PREFIX}{number}");
            self.claims
                .preconditions
                .push(Precondition::Absent { key: key.clone() });
            self.claims.ops.push(Op::Put {
                key,
                value: self.owner.clone().into_bytes().into(),
            });
        }
        Ok(())
    }

    fn check_port(&self, field: &str, number: u64, own: &[u64]) -> Result<(), Status> {
        if self.had_ports.contains(&number) || own.contains(&number) {
            return Ok(());
        }
        let range = &self.server.node_ports;
        if !u16::try_from(number).is_ok_and(|n| range.contains(&n)) {
            let text = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            return Err(self.invalid(FieldError::invalid(field, number, text)));
        }
        if self
            .snapshot
            .get(&format!("{NODE_PORT_PREFIX}{number}"))
            .is_some()
        {
            return Err(self.invalid(FieldError::invalid(
                field,
                number,
                "provided port is already allocated",
            )));
        }
        Ok(())
    }

    fn free_port(&self, taken: &[u64]) -> Result<u64, Status> {
        let range = self.server.node_ports.clone();
        let free = |n: u16| {
            !taken.contains(&u64::from(n)) && self.snapshot.get(&format!("{NODE_PORT_PREFIX}{n}")).is_none()
        };
        let mut rng = rand::rng();
        (0..RANDOM_PICKS)
            .map(|_| rng.random_range(range.clone()))
            .find(|n| free(*n))
            .or_else(|| range.clone().find(|n| free(*n)))
            .map(u64::from)
            .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    }
}

/// Makes the API reachable in the cluster: the Service `kubernetes` and its endpoints.
pub async fn publish_self(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let port = server.advertise.port();
    let first = Ipv4Addr::from(u32::from(server.service_cidr.network()) + 1);
    let ip = server.advertise.ip();
    let family = if matches!(ip, IpAddr::V4(_)) {
        "IPv4"
    } else {
        "IPv6"
    };
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let objects = [
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": [server.service_cidr.to_string()] } }),
        json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": { "type": "ClusterIP", "clusterIP": first.to_string(), "clusterIPs": [first.to_string()],
                "sessionAffinity": "None",
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }] } }),
        json!({ "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{ "addresses": [{ "ip": ip.to_string() }],
                "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }] }),
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": family,
            "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }),
    ];
    for object in objects {
        if (ip.is_loopback() || ip.is_unspecified()) && meta::kind(&object).starts_with("Endpoint") {
            tracing::warn!(%ip, "the advertised address is not reachable from pods: the service kubernetes has no endpoints");
            continue;
        }
        let overwrite: &[&str] = match meta::kind(&object) {
            "Endpoints" => &["subsets"],
            "EndpointSlice" => &["endpoints", "ports"],
            "Service" => &["spec.ports"],
            _ => &[],
        };
        server.ensure(object, overwrite).await?;
    }
    Ok(())
}

impl ApiServer {
    /// Creates an object, or brings the named fields of the existing one to the given state.
    pub(crate) async fn ensure(&self, object: Value, overwrite: &[&str]) -> Result<(), StartError> {
        let failed = |status: Status| StartError::Bootstrap {
            object: format!("{} {}", meta::kind(&object), meta::name(&object)),
            reason: status.message,
        };
        let kinds = self.kinds();
        let Some(kind) = kinds.of(meta::api_version(&object), meta::kind(&object)) else {
            return Err(failed(Status::no_such_path()));
        };
        let (namespace, name) = (meta::namespace(&object), meta::name(&object));
        let mut call = Call::internal(kind, "create", namespace, name);
        let manager = crate::managed::Manager::server();
        if self.store.get(&kind.key(namespace, name)).is_none() {
            match self.create_object(&call, object.clone(), manager.clone()).await {
                Ok(_) => return Ok(()),
                Err(status) if status.reason == "AlreadyExists" => {}
                Err(status) => return Err(failed(status)),
            }
        }
        if overwrite.is_empty() {
            return Ok(());
        }
        call.info.verb = "update";
        self.modify(&call, false, manager, &mut |old| {
            let mut new = old.clone();
            for path in overwrite {
                meta::copy(&object, &mut new, path);
            }
            Ok(new)
        })
        .await
        .map(|_| ())
        .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_leaves_out_is_kept() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.1.1", "clusterIPs": ["10.43.1.1"],
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 30081}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 81}, {"port": 82}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.1.1");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30081);
        assert!(new["spec"]["ports"][1].get("nodePort").is_none_or(Value::is_null));
        let mut plain = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]}});
        keep_allocated(&mut plain, &old);
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        let mut external =
            json!({"spec": {"type": "ExternalName", "externalName": "x", "clusterIP": "10.43.1.1"}});
        keep_allocated(&mut external, &old);
        assert!(external["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn ports_are_owned_once() {
        let service = json!({"spec": {"healthCheckNodePort": 32000,
            "ports": [{"nodePort": 30001}, {"nodePort": 30001}, {}]}});
        assert_eq!(owned_ports(&service), [30001, 32000]);
    }
}
