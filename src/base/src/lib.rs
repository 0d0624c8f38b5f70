//! Mechanisms every component shares: [`clock`], [`backoff`], [`lifecycle`], [`metrics`].
//!
//! Nothing here knows Kubernetes. Time comes from a [`clock::Clock`] so that
//! tests can move it; every loop ends through a [`lifecycle::Shutdown`].

pub mod backoff;
pub mod clock;
pub mod lifecycle;
pub mod metrics;
