//! The harness itself: a cluster comes up fast, and goes away without a trace.

use std::time::Duration;

use skiff_e2e::Cluster;
use skiff_e2e::scenario::on_cluster;

/// What a test run can afford for each cluster.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn two_nodes_are_ready_within_ten_seconds() {
    on_cluster("up", Cluster::new().servers(1).agents(1), async |cluster| {
        let nodes = cluster.kubectl(&["get", "nodes"]).await?;
        assert_eq!(nodes.matches(" Ready ").count(), 2, "{nodes}");
        assert!(cluster.took < LIMIT, "it took {:?}", cluster.took);
        Ok(())
    });
}
