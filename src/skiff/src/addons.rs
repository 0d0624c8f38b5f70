//! Objects every cluster has, applied at every start: the DNS Service.
//!
//! DNS itself runs in every node's skiff process; the Service gives it its
//! address and its name, and is what `kubectl -n kube-system get svc` shows.

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_client::Client;

use crate::node::Cluster;

/// Applies them.
pub async fn apply(client: &Client, cluster: &Cluster) -> Result<(), kube::Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let dns = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "skiff-dns",
            },
        },
        "spec": {
            "clusterIP": cluster.dns,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    });
    services
        .patch(
            "kube-dns",
            &PatchParams::apply("skiff").force(),
            &Patch::Apply(&dns),
        )
        .await?;
    Ok(())
}
