//! `skiff status`: what runs here, and whether it is of use.
//!
//! A running skiff leaves a record of itself in its run folder; what the
//! record says is then checked: the process, the API, the node's conditions.
//! `--wait` is for scripts that must go on only when the node is Ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::Api;
use kube::runtime::wait::await_condition;
use serde::{Deserialize, Serialize};
use skiff_base::backoff::Backoff;
use skiff_client::Client;
use skiff_pki::tls;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::join;
use crate::remote::{self, Endpoint};

/// Name of the record in the run folder.
const RECORD: &str = "skiff.json";
/// First and last pause while there is nothing yet to wait on: no record, or
/// an API that does not answer.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long one look may take: an API that hangs is not ready.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `skiff status`.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Wait until all is ready, at most this long
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Give up waiting when this process has ended
    #[arg(long, value_name = "PID", requires = "wait")]
    pid: Option<u32>,
    /// Folder for sockets of the skiff to ask about
    #[arg(long, value_name = "DIR", default_value = "/run/skiff")]
    run_dir: PathBuf,
}

/// What a running skiff says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// `server` or `agent`.
    pub role: String,
    /// Version of skiff.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The node it runs, if it runs one.
    pub node: Option<String>,
    /// Where other machines reach the server.
    pub server: String,
    /// The administrator's kubeconfig; an agent has none.
    pub kubeconfig: Option<PathBuf>,
    /// Data of the node itself.
    pub agent_dir: PathBuf,
}

impl Record {
    /// Leaves the record in the run folder.
    pub fn write(&self, run: &Path) -> anyhow::Result<()> {
        let (path, temporary) = (run.join(RECORD), run.join(format!("{RECORD}.tmp")));
        std::fs::create_dir_all(run)
            .and_then(|()| std::fs::write(&temporary, serde_json::to_vec_pretty(self)?))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the record of the skiff that runs here.
    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join(RECORD);
        let bytes = std::fs::read(&path).with_context(|| {
            format!(
                "skiff does not run here (cannot read {}): start it, or correct --run-dir",
                path.display()
            )
        })?;
        let record: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        if !is_alive(record.pid) {
            bail!(
                "skiff {} ran here as process {}, but has ended: look into its log",
                record.role,
                record.pid
            );
        }
        Ok(record)
    }

    fn client(&self) -> anyhow::Result<Client> {
        let clock = skiff_base::clock::system();
        let node = self.node.as_deref().context("this agent has no node")?;
        let membership = join::Files::new(&self.agent_dir)
            .load(node, &*clock)
            .context("this node has not joined yet: look into the agent's log")?;
        let trust = tls::client_config(&membership.ca_pem, Some(membership.certificate), clock)?;
        remote::client(&Endpoint::parse(&self.server)?, trust, None)
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie has a folder, too; its state is the letter behind the name.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Prints the state; fails unless all is ready.
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    if let Some(seconds) = args.wait {
        let limit = Duration::from_secs(seconds);
        match tokio::time::timeout(limit, wait(&args)).await {
            Ok(outcome) => outcome?,
            // What is printed below says why.
            Err(_) => eprintln!("skiff: not ready within {seconds} s"),
        }
    }
    let record = Record::read(&args.run_dir)?;
    println!("role        {}", record.role);
    println!("process     {} (skiff {})", record.pid, record.version);
    println!("server      {}", record.server);
    if let Some(kubeconfig) = &record.kubeconfig {
        println!("kubeconfig  {}", kubeconfig.display());
    }
    match tokio::time::timeout(LOOK_TIMEOUT, look(&record)).await {
        Ok(Ok(node)) => report(&record, node.as_ref()),
        Ok(Err(error)) => Err(error.context("the API does not answer")),
        Err(_) => bail!("the API does not answer within {LOOK_TIMEOUT:?}"),
    }
}

fn report(record: &Record, node: Option<&Node>) -> anyhow::Result<()> {
    println!("api         ready");
    let Some(name) = &record.node else {
        println!("node        none (--disable-agent)");
        return Ok(());
    };
    let Some(node) = node else {
        bail!("there is no node {name} in the cluster")
    };
    let conditions = conditions(node);
    for condition in conditions {
        let (reason, message) = (condition.reason.as_deref(), condition.message.as_deref());
        let detail = format!("{}: {}", reason.unwrap_or_default(), message.unwrap_or_default());
        println!(
            "node        {name} {}={} ({detail})",
            condition.type_, condition.status
        );
    }
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        Some(ready) => bail!(
            "node {name} is not Ready: {}",
            ready.message.as_deref().unwrap_or("no reason is given")
        ),
        None => bail!("node {name} has not reported yet"),
    }
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

/// Whether the node is Ready by its own word, given at or after `since` (seconds
/// of the Unix time; the API keeps no fractions). An older word is that of a
/// skiff that has ended.
fn is_ready(node: Option<&Node>, since: i64) -> bool {
    let fresh = |condition: &NodeCondition| {
        let told = condition.last_heartbeat_time.as_ref();
        told.is_some_and(|time| time.0.as_second() >= since)
    };
    node.is_some_and(|node| {
        conditions(node)
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True" && fresh(c))
    })
}

/// When the skiff that runs here left its record, in seconds of the Unix time.
fn since(run: &Path) -> i64 {
    let written = std::fs::metadata(run.join(RECORD)).and_then(|meta| meta.modified());
    let written = written.ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
    written.map_or(0, |time| time.as_second())
}

async fn connect(record: &Record) -> anyhow::Result<Client> {
    let client = match &record.kubeconfig {
        Some(kubeconfig) => super::client(Some(kubeconfig)).await?,
        None => record.client()?,
    };
    client
        .request_text(http::Request::get("/readyz").body(Vec::new())?)
        .await?;
    Ok(client)
}

async fn look(record: &Record) -> anyhow::Result<Option<Node>> {
    let client = connect(record).await?;
    match &record.node {
        Some(name) => Ok(Api::<Node>::all(client).get_opt(name).await?),
        None => Ok(None),
    }
}

/// Returns when all is ready, or never can be: its process has ended.
async fn wait(args: &StatusArgs) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        if let Some(pid) = args.pid.filter(|pid| !is_alive(*pid)) {
            bail!("process {pid} has ended");
        }
        if let Ok(record) = Record::read(&args.run_dir)
            && args.pid.is_none_or(|pid| pid == record.pid)
            && let Ok(Ok(client)) = tokio::time::timeout(LOOK_TIMEOUT, connect(&record)).await
        {
            let Some(name) = record.node else { return Ok(()) };
            let (nodes, since) = (Api::<Node>::all(client), since(&args.run_dir));
            tokio::select! {
                settled = await_condition(nodes, &name, |node: Option<&Node>| is_ready(node, since)) => if settled.is_ok() { return Ok(()) },
                () = ended(record.pid) => bail!("skiff (process {}) has ended", record.pid),
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Resolves when a process has ended.
async fn ended(pid: u32) {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes a pid and flags and returns a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Some(raw) = i32::try_from(raw).ok().filter(|raw| *raw >= 0) else {
        return;
    };
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: an owned descriptor stays open and the same as long as it lives.
    if let Ok(fd) = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
        let _ = fd.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32) -> Record {
        Record {
            role: "agent".to_owned(),
            version: "1".to_owned(),
            pid,
            node: Some("a".to_owned()),
            server: "https://10.0.0.1:6443".to_owned(),
            kubeconfig: None,
            agent_dir: "/nowhere".into(),
        }
    }

    #[test]
    fn a_record_is_as_good_as_its_process() {
        let run = tempfile::tempdir().expect("folder");
        let error = || Record::read(run.path()).expect_err("no skiff").to_string();
        assert!(error().starts_with("skiff does not run here"), "{}", error());
        let alive = record(std::process::id());
        alive.write(run.path()).expect("written");
        assert_eq!(Record::read(run.path()).expect("alive"), alive);
        let mut child = std::process::Command::new("/bin/true").spawn().expect("child");
        record(child.id()).write(run.path()).expect("written");
        child.wait().expect("ended");
        assert!(error().contains("has ended"), "{}", error());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_process() {
        let run = tempfile::tempdir().expect("folder");
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("0.1")
            .spawn()
            .expect("child");
        let args = StatusArgs {
            wait: Some(30),
            pid: Some(child.id()),
            run_dir: run.path().into(),
        };
        let (ended, outcome) = tokio::join!(tokio::task::spawn_blocking(move || child.wait()), wait(&args));
        assert!(ended.is_ok_and(|status| status.is_ok_and(|status| status.success())));
        assert!(
            outcome
                .expect_err("nothing to wait for")
                .to_string()
                .ends_with("has ended")
        );
    }

    #[test]
    fn readiness() {
        let node = |status: &str| -> Node {
            serde_json::from_value(serde_json::json!({
                "status": {"conditions": [{
                    "type": "Ready",
                    "status": status,
                    "message": "no network",
                    "lastHeartbeatTime": "1970-01-01T00:00:50Z",
                }]}
            }))
            .expect("node")
        };
        let ready = |node: Option<Node>, since| is_ready(node.as_ref(), since);
        assert!(ready(Some(node("True")), 50) && ready(Some(node("True")), 49));
        assert!(!ready(Some(node("True")), 51), "the word of an earlier run");
        assert!(!ready(Some(node("False")), 50) && !ready(Some(Node::default()), 0) && !ready(None, 0));
        let report =
            |node: Option<Node>| report(&record(1), node.as_ref()).map_err(|error| error.to_string());
        assert_eq!(report(Some(node("True"))), Ok(()));
        assert_eq!(
            report(Some(node("False"))),
            Err("node a is not Ready: no network".to_owned())
        );
        assert_eq!(
            report(Some(Node::default())),
            Err("node a has not reported yet".to_owned())
        );
        assert_eq!(report(None), Err("there is no node a in the cluster".to_owned()));
    }
}
