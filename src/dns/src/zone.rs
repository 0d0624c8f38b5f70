//! The names this server is responsible for.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, SOA};
use hickory_proto::rr::{Name, RData, Record};
use ipnet::IpNet;

/// Seconds between refreshes, retries and expiry of the zone, in its SOA. No secondary server ever reads them.
const REFRESH_SECONDS: i32 = 7200;
const RETRY_SECONDS: i32 = 1800;
const EXPIRE_SECONDS: i32 = 86_400;

/// The cluster's zone and the reverse zones of its networks.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The cluster domain, absolute and lower case.
    pub domain: Name,
    /// The networks whose reverse names are never forwarded.
    pub networks: Vec<IpNet>,
    /// The addresses of the name server itself.
    pub servers: Vec<IpAddr>,
    /// How long anything said here may be remembered.
    pub ttl_seconds: u32,
}

impl Zone {
    /// The labels of a name in front of the cluster domain, lower case, leftmost first; `None` for a name that is
    /// not in the zone. A label that is not text cannot name anything here and becomes a replacement character.
    pub fn labels(&self, name: &Name) -> Option<Vec<String>> {
        if !self.domain.zone_of(name) {
            return None;
        }
        let count = name.iter().len() - self.domain.iter().len();
        Some(
            name.iter()
                .take(count)
                .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
                .collect(),
        )
    }

    /// A name of the zone. Labels of Kubernetes objects always fit; anything else has no name.
    pub fn name(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|label| label.as_bytes()))
            .ok()?
            .append_domain(&self.domain)
            .ok()
    }

    /// The name of this name server.
    pub fn server_name(&self) -> Name {
        self.name(&["ns", "dns"]).unwrap_or_else(|| self.domain.clone())
    }

    /// The start-of-authority record of the zone, or of a reverse zone.
    pub fn soa(&self, owner: &Name) -> Record {
        let contact = self.name(&["hostmaster"]).unwrap_or_else(|| self.domain.clone());
        // The serial tells secondary servers of changes; there are none.
        let data = SOA::new(
            self.server_name(),
            contact,
            1,
            REFRESH_SECONDS,
            RETRY_SECONDS,
            EXPIRE_SECONDS,
            self.ttl_seconds,
        );
        Record::from_rdata(owner.clone(), self.ttl_seconds, RData::SOA(data))
    }

    /// The name server record of the zone.
    pub fn ns(&self) -> Record {
        Record::from_rdata(
            self.domain.clone(),
            self.ttl_seconds,
            RData::NS(NS(self.server_name())),
        )
    }

    /// The reverse zone an address of the cluster belongs to: the octets its network fixes.
    pub fn reverse_zone(&self, address: IpAddr, name: &Name) -> Option<Name> {
        let network = self.networks.iter().find(|network| network.contains(&address))?;
        let (bits, suffix) = if address.is_ipv4() { (8, 2) } else { (4, 2) };
        Some(name.trim_to(usize::from(network.prefix_len() / bits) + suffix))
    }
}
