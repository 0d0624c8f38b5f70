//! From a question to an answer. Pure: the index and the zone in, records out.
//!
//! Worked example. `_http._tcp.web.shop.svc.cluster.local SRV`, a headless Service with one named port and two ready
//! endpoints, one of which has a hostname:
//!
//! ```text
//! answer      _http._tcp.web.shop.svc…  SRV 0 50 8080 web-0.web.shop.svc…
//!             _http._tcp.web.shop.svc…  SRV 0 50 8080 10-42-1-7.web.shop.svc…
//! additional  web-0.web.shop.svc…      A 10.42.0.5
//!             10-42-1-7.web.shop.svc…  A 10.42.1.7
//! ```
//!
//! A name that exists but has no records of the type asked for gets NODATA (no error, no records, an SOA); only a
//! name that does not exist gets NXDOMAIN. A headless Service without ready endpoints does not exist, by the
//! specification. Names on the way to existing ones (`svc.cluster.local`, a namespace) exist.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::Zone;
use crate::index::{Index, Key, Port, ServiceEntry, endpoint_label};

/// The version of the naming scheme, as `dns-version` says it.
const SCHEMA_VERSION: &str = "1.1.0";

/// What all SRV records of an answer weigh together; equal shares, as far as it goes.
const SRV_WEIGHT: usize = 100;

/// What is to be said.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// These records.
    Records {
        /// The answer section.
        answers: Vec<Record>,
        /// Addresses of names in it.
        additionals: Vec<Record>,
    },
    /// The name stands for another one; the question goes on there.
    Alias {
        /// The CNAME record.
        record: Record,
        /// The other name.
        target: Name,
    },
    /// The name exists, but not with this type.
    NoData {
        /// The zone's SOA.
        soa: Record,
    },
    /// The name does not exist.
    NxDomain {
        /// The zone's SOA.
        soa: Record,
    },
    /// Somebody else has to be asked.
    NotOurs,
    /// The name is ours, but the cluster's state is not known yet.
    NotReady,
}

/// One question, with what is needed to answer it.
struct Asked<'a> {
    name: &'a Name,
    kind: RecordType,
    index: &'a Index,
    zone: &'a Zone,
}

/// Answers a question about a name and a type.
pub fn answer(name: &Name, kind: RecordType, index: &Index, zone: &Zone) -> Answer {
    let asked = Asked {
        name,
        kind,
        index,
        zone,
    };
    match zone.labels(name) {
        Some(labels) => asked.forward(&labels.iter().map(String::as_str).collect::<Vec<_>>()),
        None => asked.reverse(),
    }
}

impl Asked<'_> {
    fn wants(&self, kind: RecordType) -> bool {
        self.kind == kind || self.kind == RecordType::ANY
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.zone.ttl_seconds, data)
    }

    fn no_data(&self) -> Answer {
        Answer::NoData {
            soa: self.zone.soa(&self.zone.domain),
        }
    }

    fn nx_domain(&self) -> Answer {
        Answer::NxDomain {
            soa: self.zone.soa(&self.zone.domain),
        }
    }

    /// Records, or NODATA when there are none: for names that exist.
    fn existing(&self, answers: Vec<Record>) -> Answer {
        if answers.is_empty() {
            self.no_data()
        } else {
            Answer::Records {
                answers,
                additionals: Vec::new(),
            }
        }
    }

    fn exists_if(&self, exists: bool) -> Answer {
        if exists { self.no_data() } else { self.nx_domain() }
    }

    fn address(&self, owner: &Name, address: IpAddr) -> Record {
        let data = match address {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        self.record(owner, data)
    }

    fn addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
        let wanted = |a: &IpAddr| {
            self.wants(if a.is_ipv4() {
                RecordType::A
            } else {
                RecordType::AAAA
            })
        };
        // Slices may repeat an endpoint while they are rearranged.
        let distinct: BTreeSet<IpAddr> = addresses.into_iter().filter(wanted).collect();
        distinct
            .into_iter()
            .map(|address| self.address(self.name, address))
            .collect()
    }

    fn forward(&self, labels: &[&str]) -> Answer {
        match labels {
            [] => return self.apex(),
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
                let text = self.wants(RecordType::TXT).then(|| self.record(self.name, text));
                return self.existing(text.into_iter().collect());
            }
            ["ns", "dns"] => return self.existing(self.addresses(self.zone.servers.iter().copied())),
            ["dns" | "svc" | "pod"] => return self.no_data(),
            _ => {}
        }
        if !self.index.is_synced() {
            return Answer::NotReady;
        }
        match labels {
            [namespace, "svc" | "pod"] => self.exists_if(self.index.has_namespace(namespace)),
            [pod, namespace, "pod"] => self.pod(pod, namespace),
            [service, namespace, "svc"] => self.service(namespace, service),
            [endpoint, service, namespace, "svc"] => self.below_service(namespace, service, endpoint),
            [port, protocol, service, namespace, "svc"] => {
                self.named_port(namespace, service, port, protocol)
            }
            _ => self.nx_domain(),
        }
    }

    fn apex(&self) -> Answer {
        let mut answers = Vec::new();
        let mut additionals = Vec::new();
        if self.wants(RecordType::SOA) {
            answers.push(self.zone.soa(self.name));
        }
        if self.wants(RecordType::NS) {
            answers.push(self.zone.ns());
            let server = self.zone.server_name();
            additionals.extend(
                self.zone
                    .servers
                    .iter()
                    .map(|address| self.address(&server, *address)),
            );
        }
        if answers.is_empty() {
            self.no_data()
        } else {
            Answer::Records { answers, additionals }
        }
    }

    /// `10-42-0-5.namespace.pod`: the address is in the name, nobody checks that the pod is there.
    fn pod(&self, pod: &str, namespace: &str) -> Answer {
        let v4 = pod.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::from);
        let address = v4.or_else(|_| pod.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from));
        match address {
            Ok(address) if self.index.has_namespace(namespace) => self.existing(self.addresses([address])),
            _ => self.nx_domain(),
        }
    }

    fn find(&self, namespace: &str, service: &str) -> Option<(Key, &ServiceEntry)> {
        let key = (namespace.to_owned(), service.to_owned());
        self.index.service(&key).map(|entry| (key, entry))
    }

    fn service(&self, namespace: &str, name: &str) -> Answer {
        let Some((key, service)) = self.find(namespace, name) else {
            return self.nx_domain();
        };
        if let Some(target) = &service.external_name {
            return self.alias(target);
        }
        if self.kind == RecordType::SRV {
            return self.srv(&key, service, |_| true);
        }
        if !service.headless {
            return self.existing(self.addresses(service.cluster_ips.iter().copied()));
        }
        let all: Vec<IpAddr> = self
            .index
            .endpoints(&key, service)
            .map(|(_, _, address)| address)
            .collect();
        if all.is_empty() {
            self.nx_domain()
        } else {
            self.existing(self.addresses(all))
        }
    }

    fn alias(&self, target: &str) -> Answer {
        // An address in place of a name: some write it, and no CNAME can say it.
        if let Ok(address) = target.parse::<IpAddr>() {
            return self.existing(self.addresses([address]));
        }
        match Name::from_ascii(target) {
            Ok(mut target) => {
                target.set_fqdn(true);
                Answer::Alias {
                    record: self.record(self.name, RData::CNAME(CNAME(target.clone()))),
                    target,
                }
            }
            Err(_) => self.no_data(),
        }
    }

    /// `web-0.web.shop.svc`, `10-42-0-5.web.shop.svc`, or `_tcp.web.shop.svc` on the way to a named port.
    fn below_service(&self, namespace: &str, name: &str, label: &str) -> Answer {
        let Some((key, service)) = self.find(namespace, name) else {
            return self.nx_domain();
        };
        if let Some(protocol) = label.strip_prefix('_') {
            let there = self
                .ports(&key, service)
                .iter()
                .any(|p| p.protocol == protocol && p.name.is_some());
            return self.exists_if(there);
        }
        let matching = self.index.endpoints(&key, service);
        let matching =
            matching.filter(|(_, e, address)| endpoint_label(e.hostname.as_deref(), *address) == label);
        let all: Vec<IpAddr> = matching.map(|(_, _, address)| address).collect();
        if all.is_empty() {
            self.nx_domain()
        } else {
            self.existing(self.addresses(all))
        }
    }

    fn ports(&self, key: &Key, service: &ServiceEntry) -> Vec<Port> {
        if service.headless {
            self.index
                .slices(key)
                .flat_map(|slice| slice.ports.clone())
                .collect()
        } else {
            service.ports.clone()
        }
    }

    fn named_port(&self, namespace: &str, name: &str, port: &str, protocol: &str) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
            return self.nx_domain();
        };
        let Some((key, service)) = self.find(namespace, name) else {
            return self.nx_domain();
        };
        let is = |p: &Port| p.name.as_deref() == Some(port) && p.protocol == protocol;
        if !self.ports(&key, service).iter().any(is) {
            return self.nx_domain();
        }
        if self.wants(RecordType::SRV) {
            self.srv(&key, service, is)
        } else {
            self.no_data()
        }
    }

    /// One record per port and, for a headless Service, endpoint. A cluster address is one target for all.
    fn srv(&self, key: &Key, service: &ServiceEntry, wanted: impl Fn(&Port) -> bool) -> Answer {
        let (namespace, name) = (key.0.as_str(), key.1.as_str());
        let mut targets: BTreeSet<(Name, u16)> = BTreeSet::new();
        let mut glue: BTreeSet<(Name, IpAddr)> = BTreeSet::new();
        if service.headless {
            for (slice, endpoint, address) in self.index.endpoints(key, service) {
                let label = endpoint_label(endpoint.hostname.as_deref(), address);
                let Some(target) = self.zone.name(&[&label, name, namespace, "svc"]) else {
                    continue;
                };
                let ports = slice.ports.iter().filter(|p| wanted(p));
                targets.extend(ports.map(|p| (target.clone(), p.number)));
                glue.insert((target, address));
            }
            if glue.is_empty() {
                return self.nx_domain();
            }
        } else if let Some(target) = self.zone.name(&[name, namespace, "svc"]) {
            targets.extend(
                service
                    .ports
                    .iter()
                    .filter(|p| wanted(p))
                    .map(|p| (target.clone(), p.number)),
            );
            glue.extend(
                service
                    .cluster_ips
                    .iter()
                    .map(|address| (target.clone(), *address)),
            );
        }
        if targets.is_empty() {
            return self.no_data();
        }
        let weight = u16::try_from((SRV_WEIGHT / targets.len()).max(1)).unwrap_or(1);
        let record = |(target, port)| self.record(self.name, RData::SRV(SRV::new(0, weight, port, target)));
        Answer::Records {
            answers: targets.into_iter().map(record).collect(),
            additionals: glue
                .iter()
                .map(|(owner, address)| self.address(owner, *address))
                .collect(),
        }
    }

    /// Names below `in-addr.arpa` and `ip6.arpa`.
    fn reverse(&self) -> Answer {
        let Ok(net) = self.name.parse_arpa_name() else {
            return Answer::NotOurs;
        };
        if net.prefix_len() != net.max_prefix_len() {
            return Answer::NotOurs;
        }
        let address = net.addr();
        let zone = self.zone.reverse_zone(address, self.name);
        if !self.index.is_synced() {
            return if zone.is_some() {
                Answer::NotReady
            } else {
                Answer::NotOurs
            };
        }
        let mut names: Vec<Name> = self
            .index
            .services_at(address)
            .filter_map(|(namespace, name)| self.zone.name(&[name, namespace, "svc"]))
            .collect();
        if names.is_empty() {
            let endpoints = self.index.endpoints_at(address);
            names.extend(
                endpoints.iter().filter_map(|((namespace, name), label)| {
                    self.zone.name(&[label, name, namespace, "svc"])
                }),
            );
        }
        let soa = |zone: Option<Name>| self.zone.soa(&zone.unwrap_or_else(|| self.name.base_name()));
        match (names.is_empty(), zone) {
            (true, None) => Answer::NotOurs,
            (true, zone) => Answer::NxDomain { soa: soa(zone) },
            (false, zone) if !self.wants(RecordType::PTR) => Answer::NoData { soa: soa(zone) },
            (false, _) => {
                let record = |name| self.record(self.name, RData::PTR(PTR(name)));
                Answer::Records {
                    answers: names.into_iter().map(record).collect(),
                    additionals: Vec::new(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
