//! The last known network of the cluster, on disk: a rebooted node connects its pods before any server answers.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::peers::Peer;

const FILE: &str = "network.json";

/// What the plan needs from the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) peers: Vec<Peer>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    pod_cidrs: Vec<IpNet>,
    peers: Vec<StoredPeer>,
}

#[derive(Serialize, Deserialize)]
struct StoredPeer {
    name: String,
    public_ip: IpAddr,
    mac: Option<String>,
    pod_cidrs: Vec<IpNet>,
}

impl Known {
    /// What was stored last; nothing when there is nothing that makes sense.
    pub(crate) fn load(dir: &Path) -> Option<Self> {
        let bytes = fs::read(dir.join(FILE)).ok()?;
        let stored: Stored = serde_json::from_slice(&bytes).ok()?;
        let peers = stored.peers.into_iter().map(|peer| Peer {
            name: peer.name,
            public_ip: peer.public_ip,
            mac: peer.mac.and_then(|text| text.parse().ok()),
            pod_cidrs: peer.pod_cidrs,
        });
        Some(Self {
            pod_cidrs: stored.pod_cidrs,
            peers: peers.collect(),
        })
    }

    /// Stores it, whole or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let peers = self.peers.iter().map(|peer| StoredPeer {
            name: peer.name.clone(),
            public_ip: peer.public_ip,
            mac: peer.mac.map(|mac| mac.to_string()),
            pod_cidrs: peer.pod_cidrs.clone(),
        });
        let stored = Stored {
            pod_cidrs: self.pod_cidrs.clone(),
            peers: peers.collect(),
        };
        let path = dir.join(FILE);
        let aside = dir.join(format!("{FILE}.tmp"));
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            let mut file = fs::File::create(&aside)?;
            file.write_all(&serde_json::to_vec(&stored)?)?;
            file.sync_data()?;
            fs::rename(&aside, &path)
        };
        write().map_err(|source| Error::Store {
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_garbage_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Known::load(dir.path()), None);
        let known = Known {
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
            peers: vec![Peer {
                name: "b".into(),
                public_ip: "192.0.2.2".parse().unwrap(),
                mac: Some("02:00:00:00:00:02".parse().unwrap()),
                pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            }],
        };
        known.save(dir.path()).unwrap();
        assert_eq!(Known::load(dir.path()), Some(known));
        fs::write(dir.path().join(FILE), b"{\"pod_").unwrap();
        assert_eq!(Known::load(dir.path()), None);
    }
}
