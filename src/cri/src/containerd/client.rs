//! A thin layer over containerd's gRPC services: namespace, time limits, leases, error mapping.
//!
//! The channel is lazy and reconnects by itself, so one [`Client`] lives as long as skiff does,
//! through restarts of containerd.

use crate::runtime::RuntimeError;
use containerd_client::services::v1 as api;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Largest answer accepted: a list of every container of a full node with its OCI spec is about 4 MiB.
const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Time limit of ordinary calls. Task creation on a loaded small machine takes seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Leases end by themselves if skiff dies while it holds one.
const LEASE_HOURS: i64 = 24;

/// A connection to containerd, in one containerd namespace.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    namespace: MetadataValue<tonic::metadata::Ascii>,
    socket: PathBuf,
}

/// An error of a call, with what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {}", clean(.status))]
pub struct CallError {
    what: String,
    #[source]
    status: Status,
}

fn clean(status: &Status) -> String {
    match status.message().is_empty() {
        true => status.code().to_string(),
        false => status.message().to_owned(),
    }
}

impl CallError {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// The message of containerd (or of runc behind it).
    pub fn message(&self) -> &str {
        self.status.message()
    }

    /// True when the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }

    /// True when the thing exists already.
    pub fn is_exists(&self) -> bool {
        self.code() == Code::AlreadyExists
    }
}

/// Names the call in an error.
pub fn call(what: impl Into<String>) -> impl FnOnce(Status) -> CallError {
    move |status| CallError {
        what: what.into(),
        status,
    }
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        match error.code() {
            Code::Unavailable => RuntimeError::Unavailable(error.to_string()),
            Code::DeadlineExceeded | Code::Cancelled => RuntimeError::Timeout(error.what),
            Code::FailedPrecondition => RuntimeError::Precondition(error.to_string()),
            _ => RuntimeError::Internal(error.to_string()),
        }
    }
}

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $module:ident :: $client:ident;)*) => {
        impl Client {
            $($(#[$doc])*
            pub fn $name(&self) -> api::$module::$client<Channel> {
                api::$module::$client::new(self.channel.clone())
                    .max_decoding_message_size(ANSWER_MAX_BYTES)
                    .max_encoding_message_size(ANSWER_MAX_BYTES)
            })*
        }
    };
}

services! {
    /// Container records.
    containers: containers_client::ContainersClient;
    /// Running things.
    tasks: tasks_client::TasksClient;
    /// Blobs.
    content: content_client::ContentClient;
    /// Image records.
    images: images_client::ImagesClient;
    /// Protection from garbage collection.
    leases: leases_client::LeasesClient;
    /// Unpacking layers.
    diff: diff_client::DiffClient;
    /// Event stream.
    event_service: events_client::EventsClient;
    /// containerd namespaces.
    namespaces: namespaces_client::NamespacesClient;
    /// Version.
    version_service: version_client::VersionClient;
}

impl Client {
    /// A client for the socket; connects on first use and whenever the connection is lost.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self, RuntimeError> {
        let namespace = namespace
            .parse()
            .map_err(|_| RuntimeError::Invalid(format!("containerd namespace {namespace:?} is malformed")))?;
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Ok(Self {
            channel,
            namespace,
            socket: socket.to_path_buf(),
        })
    }

    /// The socket this client talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Snapshots (apart from the macro: the module sits deeper).
    pub fn snapshots(&self) -> api::snapshots::snapshots_client::SnapshotsClient<Channel> {
        api::snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone())
    }

    /// A request in the namespace, limited in time.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A request in the namespace without a time limit (waiting, streaming).
    pub fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request under a lease: what it makes is not collected while the lease lives.
    pub fn leased<T>(&self, lease: &Lease, message: T) -> Request<T> {
        let mut request = self.request(message);
        request
            .metadata_mut()
            .insert("containerd-lease", lease.header.clone());
        request
    }

    /// Takes a lease. End it with [`Lease::end`]; a forgotten one expires.
    pub async fn lease(&self, now: std::time::SystemTime) -> Result<Lease, CallError> {
        let id = format!("skiff-{}", super::random_id(16));
        let expires = super::rfc3339(now + Duration::from_secs(LEASE_HOURS as u64 * 3600));
        let labels = [("containerd.io/gc.expire".to_owned(), expires)].into();
        let request = self.request(api::CreateRequest {
            id: id.clone(),
            labels,
        });
        self.leases().create(request).await.map_err(call("lease"))?;
        let header = MetadataValue::try_from(&id).expect("hexadecimal digits are ASCII");
        Ok(Lease {
            id,
            header,
            client: self.clone(),
        })
    }

    /// The version containerd reports.
    pub async fn version(&self, timeout: Duration) -> Result<String, CallError> {
        let mut request = self.request(());
        request.set_timeout(timeout);
        let answer = self
            .version_service()
            .version(request)
            .await
            .map_err(call("containerd version"))?;
        Ok(answer.into_inner().version)
    }
}

/// Keeps new content and snapshots from garbage collection until they are referred to.
#[derive(Debug)]
pub struct Lease {
    id: String,
    header: MetadataValue<tonic::metadata::Ascii>,
    client: Client,
}

impl Lease {
    /// Puts a request under the lease.
    pub fn apply<T>(&self, request: &mut Request<T>) {
        request
            .metadata_mut()
            .insert("containerd-lease", self.header.clone());
    }

    /// Holds something that exists already.
    pub async fn hold(&self, resource: api::Resource) -> Result<(), CallError> {
        let message = api::AddResourceRequest {
            id: self.id.clone(),
            resource: Some(resource),
        };
        let request = self.client.request(message);
        self.client
            .leases()
            .add_resource(request)
            .await
            .map_err(call("hold a resource"))?;
        Ok(())
    }

    /// Ends the lease; what is not referred to by now may be collected.
    pub async fn end(self) {
        let request = self.client.request(api::DeleteRequest {
            id: self.id.clone(),
            sync: false,
        });
        if let Err(status) = self.client.leases().delete(request).await {
            tracing::debug!(lease = %self.id, %status, "lease not deleted, it will expire");
        }
    }
}
