//! The node's heartbeat: a Lease in `kube-node-lease`.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use skiff_base::clock::Clock;
use skiff_client::Client;

/// Where leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";
/// After this many seconds without renewal a node counts as silent.
const DURATION_S: i32 = 40;

/// Renews one lease.
pub struct LeaseKeeper {
    api: Api<Lease>,
    name: String,
    clock: Arc<dyn Clock>,
    held: Option<Lease>,
}

impl LeaseKeeper {
    /// The lease of a node.
    pub fn new(client: Client, name: &str, clock: Arc<dyn Clock>) -> LeaseKeeper {
        LeaseKeeper {
            api: Api::namespaced(client, NAMESPACE),
            name: name.to_owned(),
            clock,
            held: None,
        }
    }

    /// Renews it; makes it when it is not there.
    pub async fn renew(&mut self, node_uid: Option<&str>) -> Result<(), kube::Error> {
        let now = Timestamp::try_from(self.clock.now()).unwrap_or_default();
        let current = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.name).await?,
        };
        let lease = match current {
            None => {
                let fresh = self.filled(Lease::default(), now, node_uid);
                self.api.create(&PostParams::default(), &fresh).await?
            }
            Some(current) => {
                let next = self.filled(current, now, node_uid);
                // A conflict or a missing lease is found out here and read anew the next time.
                self.api
                    .replace(&self.name, &PostParams::default(), &next)
                    .await?
            }
        };
        self.held = Some(lease);
        Ok(())
    }

    fn filled(&self, lease: Lease, now: Timestamp, node_uid: Option<&str>) -> Lease {
        let mut metadata = ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(NAMESPACE.into()),
            ..lease.metadata
        };
        if let Some(uid) = node_uid {
            metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: self.name.clone(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]);
        }
        let spec = LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(DURATION_S),
            renew_time: Some(MicroTime(now)),
            ..lease.spec.unwrap_or_default()
        };
        Lease {
            metadata,
            spec: Some(spec),
        }
    }
}
