//! Sandboxes, containers and images on containerd.
//!
//! [`runtime::Runtime`] is the contract, [`containerd`] keeps it with containerd and runc,
//! [`fake`] keeps it in memory for tests of the components above.

pub mod containerd;
pub mod fake;
pub mod keeper;
pub mod pause;
pub mod reference;
pub mod runtime;
pub mod types;

pub use runtime::*;
pub use types::*;
