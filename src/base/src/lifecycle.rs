//! Start in order, drain in order.
//!
//! A [`Shutdown`] is both the request to stop and the count of what has not
//! stopped yet. [`Shutdown::child`] makes a scope that can be stopped alone;
//! stopping the parent stops its children.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// A scope of tasks that stop together.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A scope with no parent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when the scope is asked to stop.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Whether the scope was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Asks the scope and its children to stop.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// A scope that stops with this one, or alone.
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tasks: TaskTracker::new(),
        }
    }

    /// The underlying token, for libraries that want one.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a task that [`Shutdown::drain`] waits for. The task itself must
    /// watch [`Shutdown::cancelled`]; it is not aborted.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(async move {
            let output = task.await;
            tracing::trace!(task = name, "ended");
            output
        })
    }

    /// Runs a task that is dropped as soon as the scope is asked to stop.
    pub fn spawn_until_cancelled<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Asks to stop and waits until every task has ended. False when some
    /// were still running after `timeout`.
    pub async fn drain(&self, timeout: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(timeout, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drain_waits_for_tasks_and_reports_stragglers() {
        let shutdown = Shutdown::new();
        let inner = shutdown.clone();
        shutdown.spawn("polite", async move { inner.cancelled().await });
        assert!(shutdown.drain(Duration::from_secs(5)).await);

        let shutdown = Shutdown::new();
        shutdown.spawn("deaf", std::future::pending::<()>());
        assert!(!shutdown.drain(Duration::from_millis(20)).await);
    }

    #[tokio::test]
    async fn a_child_stops_alone_and_with_its_parent() {
        let parent = Shutdown::new();
        let (first, second) = (parent.child(), parent.child());
        first.cancel();
        assert!(first.is_cancelled() && !parent.is_cancelled());
        parent.cancel();
        assert!(second.is_cancelled());
    }
}
