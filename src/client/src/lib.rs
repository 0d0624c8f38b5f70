//! What every component needs to be a client of the API: [`informer`]s (one
//! shared watch per kind), [`queue`]s of names to look at, and an [`events`]
//! recorder. The client itself is [`kube::Client`], whether it speaks to the
//! API server of this process or over TLS to another machine.

pub mod events;
pub mod informer;
pub mod labels;
pub mod queue;

pub use events::Recorder;
pub use informer::{Change, Changes, Informer, Informers};
pub use kube::Client;
pub use queue::WorkQueue;

/// What went wrong, in the server's own words where there are any.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
