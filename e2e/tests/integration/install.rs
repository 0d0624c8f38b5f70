//! Installing and uninstalling on a clean machine: in between skiff works,
//! afterwards the machine is as it was.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use skiff_e2e::scenario::on_lab;
use skiff_e2e::snapshot::Machine;
use skiff_e2e::{Lab, binary};

use crate::support::contains;

/// A machine, and the command that installs on it.
async fn machine(lab: &mut Lab, name: &str) -> anyhow::Result<(Machine, String)> {
    let machine = Machine::boot(Arc::clone(&lab.add_node(name).await?)).await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"));
    let script = root.join("packaging/install.sh");
    let install = format!("SKIFF_BINARY={} {}", binary::skiff()?.display(), script.display());
    Ok((machine, install))
}

#[test]
fn a_machine_is_the_same_after_uninstall() {
    on_lab("install", async |lab| {
        let (machine, install) = machine(lab, "lone").await?;
        let before = machine.snapshot().await?;

        let said = machine.sh(&install).await?.ok()?;
        contains(
            &said,
            &[
                "kubeconfig:  /etc/skiff/skiff.yaml",
                "SKIFF_URL=https://",
                "SKIFF_TOKEN=S10",
                "sudo skiff selftest",
                "sudo skiff uninstall",
            ],
        )?;
        let nodes = machine.sh("kubectl get nodes").await?.ok()?;
        contains(&nodes, &["lone", " Ready "])?;
        let status = machine.sh("skiff status").await?.ok()?;
        contains(&status, &["server"])?;
        let tested = machine.sh("skiff selftest").await?.ok()?;
        contains(&tested, &["checks passed"])?;
        // Something that runs while it is uninstalled: skiff's image of itself.
        let pods = "image=$(skiff images list | awk 'NR==2 {print $1}')
            kubectl create deployment left --image=$image --replicas=2 -- /skiff web
            kubectl rollout status deployment/left --timeout=60s";
        machine.sh(pods).await?.ok()?;

        let installed = machine.snapshot().await?;
        let again = machine.sh(&install).await?.ok()?;
        contains(&again, &["nothing had to be changed"])?;
        let changes: Vec<String> = installed_changes(&machine.snapshot().await?.changes_since(&installed));
        ensure!(
            changes.is_empty(),
            "the second run changed:\n{}",
            changes.join("\n")
        );

        let gone = machine.sh("skiff uninstall").await?.ok()?;
        contains(&gone, &["skiff is gone"])?;
        let left = machine.snapshot().await?.changes_since(&before);
        ensure!(left.is_empty(), "not as before:\n{}", left.join("\n"));
        Ok(())
    });
}

/// A running cluster writes; what an installer could have changed is the rest.
fn installed_changes(changes: &[String]) -> Vec<String> {
    let moves = [
        "/var/lib/skiff/",
        "/var/log/",
        "/run/skiff/",
        "control groups: ",
        "processes: ",
        "mounts: ",
        "links: ",
        "rules: ",
        "/run/containerd",
    ];
    changes
        .iter()
        .filter(|change| !moves.iter().any(|part| change.contains(part)))
        .cloned()
        .collect()
}

#[test]
fn a_second_machine_joins() {
    on_lab("install-join", async |lab| {
        let (server, install) = machine(lab, "first").await?;
        let (agent, _) = machine(lab, "second").await?;
        agent.sh("hostname second").await?.ok()?;
        server.sh(&install).await?.ok()?;
        let before = agent.snapshot().await?;
        let token = server.sh("skiff token create").await?.ok()?;
        let join = format!(
            "SKIFF_URL=https://172.31.0.11:6443 SKIFF_TOKEN={} {install}",
            token.trim()
        );
        agent.sh(&join).await?.ok()?;
        let nodes = server
            .sh("kubectl wait --for=condition=Ready node/second --timeout=30s && kubectl get nodes")
            .await?
            .ok()?;
        ensure!(nodes.matches(" Ready ").count() == 2, "{nodes}");
        agent.sh("skiff uninstall").await?.ok()?;
        let left = agent.snapshot().await?.changes_since(&before);
        ensure!(left.is_empty(), "not as before:\n{}", left.join("\n"));
        Ok(())
    });
}

#[test]
fn a_mistake_is_told_and_changes_nothing() {
    on_lab("install-wrong", async |lab| {
        let (machine, install) = machine(lab, "lone").await?;
        let before = machine.snapshot().await?;
        for (environment, want) in [
            (
                "SKIFF_URL=https://172.31.0.99:6443",
                "SKIFF_URL needs SKIFF_TOKEN",
            ),
            ("SKIFF_TOKEN=x", "SKIFF_TOKEN needs SKIFF_URL"),
            (
                "INSTALL_SKIFF_TIMEOUT=soon",
                "INSTALL_SKIFF_TIMEOUT must be a number",
            ),
        ] {
            let errors = machine.sh(&format!("{environment} {install}")).await?.failed()?;
            contains(&errors, &["[skiff] error: ", want])?;
        }
        let left = machine.snapshot().await?.changes_since(&before);
        ensure!(left.is_empty(), "not as before:\n{}", left.join("\n"));
        Ok(())
    });
}
