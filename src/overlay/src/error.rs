//! What can go wrong in the overlay.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

/// Why the overlay could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] skiff_netlink::Error),
    /// The kernel's notifications ended.
    #[error("the kernel's notifications about links and routes ended")]
    WatchEnded,
    /// The API refused or is away.
    #[error("cannot update node {node}: {source}")]
    Api {
        /// The node.
        node: String,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// The node has no address range yet.
    #[error(
        "the pod network of this node is not ready: the node has no usable spec.podCIDR or links could not be made"
    )]
    NotReady,
    /// The range is not one this node can use.
    #[error("pod network {cidr} cannot be used: {reason}")]
    BadPodCidr {
        /// The range.
        cidr: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// All addresses are taken.
    #[error("no free address is left in {net}")]
    Exhausted {
        /// The node's pod network.
        net: IpNet,
    },
    /// Another VXLAN device has our identifier and port.
    #[error(
        "interface {link} already uses VXLAN identifier {vni} on port {port}: remove it, or choose another identifier or port"
    )]
    VniTaken {
        /// The identifier.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The other device.
        link: String,
    },
    /// The address store cannot be read or written.
    #[error("address store {}: {source}", path.display())]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The shared firewall table could not be written.
    #[error("cannot write masquerade rules: {0}")]
    Firewall(#[source] skiff_nft::Error),
    /// A teardown went on to its end although parts of it failed.
    #[error("{what} failed in {} places: {}", errors.len(), errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// The teardown.
        what: String,
        /// Every failure.
        errors: Vec<Error>,
    },
}

/// Runs a teardown to its end and keeps every error on the way.
#[derive(Debug, Default)]
pub(crate) struct Collected(Vec<Error>);

impl Collected {
    pub(crate) fn add<E: Into<Error>>(&mut self, result: Result<(), E>) {
        if let Err(error) = result {
            self.0.push(error.into());
        }
    }

    pub(crate) fn finish(mut self, what: impl FnOnce() -> String) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(Error::Several {
                what: what(),
                errors: self.0,
            }),
        }
    }
}
