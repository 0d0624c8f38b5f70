//! What answers are made of: Services, EndpointSlices and namespaces, digested, with ways back from addresses.
//!
//! Updated one object at a time; an update costs the size of that object. Applying an object first takes its older
//! state out, so the maps never disagree, in whatever order changes arrive (a slice may come before its Service).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A namespace and a name.
pub type Key = (String, String);

/// A port of a Service or slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name; without one it has no SRV record of its own.
    pub name: Option<String>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The number.
    pub number: u16,
}

/// What a Service is to DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its own addresses; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// It stands for its endpoints.
    pub headless: bool,
    /// It stands for another name.
    pub external_name: Option<String>,
    /// Endpoints count although they are not ready.
    pub publish_not_ready: bool,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The name it is given, if it has one.
    pub hostname: Option<String>,
    /// Takes traffic.
    pub ready: bool,
}

/// A slice of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEntry {
    /// The Service.
    pub service: Key,
    /// The endpoints' ports.
    pub ports: Vec<Port>,
    /// The endpoints.
    pub endpoints: Vec<EndpointEntry>,
}

/// An endpoint's name within its Service.
pub fn endpoint_label(hostname: Option<&str>, address: IpAddr) -> String {
    match hostname {
        Some(name) => name.to_owned(),
        None => address.to_string().replace(['.', ':'], "-"),
    }
}

/// All that DNS knows about the cluster.
#[derive(Debug, Default)]
pub struct Index {
    synced: bool,
    namespaces: BTreeSet<String>,
    services: BTreeMap<Key, ServiceEntry>,
    slices: BTreeMap<Key, SliceEntry>,
    slices_of: BTreeMap<Key, BTreeSet<Key>>,
    services_at: HashMap<IpAddr, BTreeSet<Key>>,
    slices_at: HashMap<IpAddr, BTreeSet<Key>>,
}

fn insert<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<Key>>, at: K, key: &Key) {
    map.entry(at).or_default().insert(key.clone());
}

fn take(map: &mut HashMap<IpAddr, BTreeSet<Key>>, at: &IpAddr, key: &Key) {
    if let Some(set) = map.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            map.remove(at);
        }
    }
}

fn port(name: Option<&String>, protocol: Option<&String>, number: i32) -> Option<Port> {
    Some(Port {
        name: name.filter(|n| !n.is_empty()).map(|n| n.to_ascii_lowercase()),
        protocol: protocol.map_or_else(|| "tcp".to_owned(), |p| p.to_ascii_lowercase()),
        number: u16::try_from(number).ok()?,
    })
}

fn digest_service(service: &Service) -> ServiceEntry {
    let Some(spec) = &service.spec else {
        return ServiceEntry::default();
    };
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = if many.is_empty() {
        spec.cluster_ip.as_slice()
    } else {
        many
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    ServiceEntry {
        cluster_ips: if external {
            Vec::new()
        } else {
            texts.iter().filter_map(|t| t.parse().ok()).collect()
        },
        headless: !external && texts.iter().any(|t| t == "None"),
        external_name: spec.external_name.clone().filter(|_| external),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        ports: spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), p.port))
            .collect(),
    }
}

fn digest_slice(slice: &EndpointSlice) -> Option<SliceEntry> {
    let namespace = slice.metadata.namespace.clone()?;
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
    let endpoints = slice.endpoints.iter().flatten().map(|endpoint| EndpointEntry {
        // Addresses of the FQDN kind do not parse: they have no place in A and AAAA records.
        addresses: endpoint.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        hostname: endpoint
            .hostname
            .clone()
            .filter(|h| !h.is_empty())
            .map(|h| h.to_ascii_lowercase()),
        // Absent means ready, by the API's definition.
        ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
    });
    let ports = slice.ports.iter().flatten();
    Some(SliceEntry {
        service: (namespace, service),
        ports: ports
            .filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), p.port?))
            .collect(),
        endpoints: endpoints.collect(),
    })
}

impl Index {
    /// Whether the first complete lists have been read: what is not here does not exist.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Says that the first complete lists have been read.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// Notes a namespace.
    pub fn apply_namespace(&mut self, namespace: &Namespace) {
        self.namespaces.extend(namespace.metadata.name.clone());
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Notes a Service, new or changed.
    pub fn apply_service(&mut self, service: &Service) {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
            return;
        };
        let key = (namespace.clone(), name.clone());
        self.remove_service(&key);
        let entry = digest_service(service);
        for address in &entry.cluster_ips {
            insert(&mut self.services_at, *address, &key);
        }
        self.services.insert(key, entry);
    }

    /// Forgets a Service.
    pub fn remove_service(&mut self, key: &Key) {
        if let Some(old) = self.services.remove(key) {
            for address in &old.cluster_ips {
                take(&mut self.services_at, address, key);
            }
        }
    }

    /// Notes a slice, new or changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice) {
        let (Some(namespace), Some(name)) = (&slice.metadata.namespace, &slice.metadata.name) else {
            return;
        };
        let key = (namespace.clone(), name.clone());
        self.remove_slice(&key);
        let Some(entry) = digest_slice(slice) else { return };
        for address in entry.endpoints.iter().flat_map(|e| &e.addresses) {
            insert(&mut self.slices_at, *address, &key);
        }
        self.slices_of
            .entry(entry.service.clone())
            .or_default()
            .insert(key.clone());
        self.slices.insert(key, entry);
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, key: &Key) {
        let Some(old) = self.slices.remove(key) else {
            return;
        };
        for address in old.endpoints.iter().flat_map(|e| &e.addresses) {
            take(&mut self.slices_at, address, key);
        }
        if let Some(set) = self.slices_of.get_mut(&old.service) {
            set.remove(key);
            if set.is_empty() {
                self.slices_of.remove(&old.service);
            }
        }
    }

    /// Whether there is such a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// The Service of this name.
    pub fn service(&self, key: &Key) -> Option<&ServiceEntry> {
        self.services.get(key)
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &Key) -> impl Iterator<Item = &SliceEntry> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get(key))
    }

    /// The endpoints of a Service that have names, each with its slice and one of its addresses.
    pub fn endpoints<'a>(
        &'a self,
        key: &Key,
        service: &'a ServiceEntry,
    ) -> impl Iterator<Item = (&'a SliceEntry, &'a EndpointEntry, IpAddr)> {
        self.slices(key).flat_map(move |slice| {
            let counts = |e: &&EndpointEntry| e.ready || service.publish_not_ready;
            let endpoints = slice.endpoints.iter().filter(counts);
            endpoints.flat_map(move |e| e.addresses.iter().map(move |address| (slice, e, *address)))
        })
    }

    /// The Services with this cluster address.
    pub fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Key> {
        self.services_at.get(&address).into_iter().flatten()
    }

    /// Service and name of every endpoint with this address.
    pub fn endpoints_at(&self, address: IpAddr) -> BTreeSet<(&Key, String)> {
        let slices = self
            .slices_at
            .get(&address)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get(key));
        slices
            .filter_map(|slice| Some((slice, self.services.get(&slice.service)?)))
            .flat_map(|(slice, service)| {
                let counts = |e: &&EndpointEntry| {
                    (e.ready || service.publish_not_ready) && e.addresses.contains(&address)
                };
                let endpoints = slice.endpoints.iter().filter(counts);
                endpoints.map(|e| (&slice.service, endpoint_label(e.hostname.as_deref(), address)))
            })
            .collect()
    }

    /// Whether nothing is left of any object; the maps must agree.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.slices_of.is_empty()
            && self.services_at.is_empty()
            && self.slices_at.is_empty()
    }
}
