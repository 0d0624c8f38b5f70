//! The proof a user runs after installing.

use anyhow::ensure;
use skiff_e2e::scenario::on_cluster;
use skiff_e2e::{Cluster, process};

#[test]
fn the_selftest_passes_on_two_nodes() {
    on_cluster("selftest", Cluster::new().servers(1).agents(1), async |cluster| {
        let command = cluster.server.skiff_command(&["selftest"])?;
        let output = process::run(command, None, std::time::Duration::from_secs(180)).await?;
        println!("{}{}", output.stdout, output.stderr);
        let text = output.ok()?;
        ensure!(
            text.contains("checks passed") && !text.contains("FAILED"),
            "{text}"
        );
        for check in [
            "pod to pod, agent-1 to server",
            "DNS by name",
            "NodePort of agent-1",
            "rolling update",
            "clean-up",
        ] {
            ensure!(
                text.lines()
                    .any(|line| line.starts_with(check) && line.contains(" ok ")),
                "{check} was not checked:\n{text}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_selftest_fails_when_a_node_is_cut_off() {
    on_cluster(
        "selftest-cut",
        Cluster::new().servers(1).agents(1),
        async |cluster| {
            cluster.lab.unplug(&cluster.agents[0]).await?;
            let command = cluster.server.skiff_command(&["selftest", "--timeout", "8"])?;
            let output = process::run(command, None, std::time::Duration::from_secs(180)).await?;
            ensure!(output.stdout.contains("FAILED"), "{}", output.stdout);
            let errors = output.failed()?;
            ensure!(
                errors.starts_with("skiff: ") && errors.contains("checks failed"),
                "{errors}"
            );
            cluster.lab.plug(&cluster.agents[0]).await?;
            cluster.ready().await
        },
    );
}
