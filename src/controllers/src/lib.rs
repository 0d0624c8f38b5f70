//! The control loops, one module each.
//!
//! Every loop has the same shape: informers feed the names of what changed
//! into a [`WorkQueue`], a worker takes a name, reads the current state from
//! the informers, and a pure function decides what to do. A loop never acts on
//! an event, only on state, so it may be killed and restarted anywhere.
//!
//! A loop that creates objects would act twice when its local copy lags behind
//! its own writes; [`expectations`] makes it wait until it sees them.

use std::future::Future;
use std::sync::Arc;

use ipnet::IpNet;
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_client::informer::Cacheable;
use skiff_client::{Change, Client, Informer, Informers, Recorder, WorkQueue};

pub mod certificates;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
mod eligible;
pub mod endpoints;
pub mod expectations;
pub mod garbage;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
mod objects;
mod ownership;
pub mod pod_gc;
mod pods;
pub mod replicaset;
mod revisions;
mod schedule;
pub mod service_account;
pub mod tokens;

/// Signs certificate signing requests with the cluster's client CA.
pub trait CertificateSigner: Send + Sync + 'static {
    /// Common name and organizations that a PEM request asks for; `None` when
    /// it cannot be read or is not signed by its own key.
    fn subject(&self, request_pem: &str) -> Option<(String, Vec<String>)>;
    /// Signs a PEM request for a client certificate and returns the PEM chain.
    /// `common_name` and `organizations` are what the request must ask for.
    fn sign_client(
        &self,
        request_pem: &str,
        common_name: &str,
        organizations: &[String],
    ) -> Result<String, String>;
}

/// What the loops need to know about the cluster.
#[derive(Clone)]
pub struct Config {
    /// Pod addresses of the whole cluster.
    pub cluster_cidr: IpNet,
    /// Prefix length of one node's share of it.
    pub node_mask: u8,
    /// The certificate of the cluster's CA, published to every namespace.
    pub ca_pem: String,
    /// Signs node certificates.
    pub signer: Arc<dyn CertificateSigner>,
}

/// What every loop is given.
#[derive(Clone)]
pub struct Context {
    /// Writes go through this.
    pub client: Client,
    /// Reads come from these.
    pub informers: Informers,
    /// Records events as the controller manager.
    pub recorder: Recorder,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// When to stop.
    pub shutdown: Shutdown,
    /// The cluster's settings.
    pub config: Arc<Config>,
}

/// What a reconcile may fail with; the queue tries again later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or did not answer.
    #[error("{}", skiff_client::message(.0))]
    Api(#[from] kube::Error),
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

/// What a reconcile answers: nothing more to do, or when to look again.
pub type Outcome = Result<Option<std::time::Duration>, Error>;

/// Starts every loop. They end with `context.shutdown`.
pub fn start(context: &Context) {
    namespace::start(context);
    service_account::start(context);
    tokens::start(context);
    certificates::start(context);
    node_ipam::start(context);
    node_lifecycle::start(context);
    pod_gc::start(context);
    replicaset::start(context);
    deployment::start(context);
    daemonset::start(context);
    job::start(context);
    cronjob::start(context);
    disruption::start(context);
    endpoints::start(context);
    garbage::start(context);
}

impl Context {
    /// The current time as the API writes it.
    pub fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::try_from(self.clock.now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// Feeds the keys that a change concerns into a queue, as long as the loop runs.
    fn feed<K: Cacheable>(
        &self,
        informer: &Informer<K>,
        queue: &WorkQueue<String>,
        keys: impl Fn(&Change<K>) -> Vec<String> + Send + 'static,
    ) {
        let (mut changes, queue) = (informer.subscribe(), queue.clone());
        self.shutdown
            .spawn_until_cancelled("controller feed", async move {
                while let Some(change) = changes.next().await {
                    for key in keys(&change) {
                        queue.add(key);
                    }
                }
            });
    }

    /// Runs a loop: waits until its informers are complete, then works its queue.
    fn work<S, W, F>(
        &self,
        name: &'static str,
        queue: WorkQueue<String>,
        workers: usize,
        ready: S,
        reconcile: W,
    ) where
        S: Future<Output = ()> + Send + 'static,
        W: Fn(String) -> F + Send + Sync + 'static,
        F: Future<Output = Outcome> + Send,
    {
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn(name, async move {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = ready => {}
            }
            queue.run(workers, &shutdown, reconcile).await;
        });
    }
}

/// True when the object is simply not there (any more).
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True when somebody else was faster: look again.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
