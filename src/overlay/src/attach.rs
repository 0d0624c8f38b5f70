//! Giving a pod its interface, and taking it away.
//!
//! The pair is made in one request with its far end already in the pod's namespace, under the name the pod sees. The
//! near end's name is a hash of the sandbox id, so a restarted agent finds (or removes) it without any file.

use std::path::Path;

use ipnet::IpNet;
use skiff_netlink::{Link, MacAddr, NetNs, Netlink, VethSpec, stable_hash};

use crate::addresses::AddressStore;
use crate::error::Collected;
use crate::fabric::{Fabric, pod_routes};
use crate::{Error, sysctls};

/// The interface inside the pod.
const POD_INTERFACE: &str = "eth0";

/// How the near ends are called: this, then the hash. An interface name has at most 15 bytes.
const PREFIX: &str = "sk";
const HASH_DIGITS: usize = 11;

/// What a pod may ask for.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// A smaller MTU than the node's pod network has.
    pub mtu: Option<u32>,
}

/// The name of the node's end of a sandbox's veth pair.
pub fn interface_name(id: &str) -> String {
    let hash = format!("{:016x}", stable_hash(id));
    format!("{PREFIX}{}", &hash[..HASH_DIGITS])
}

/// Whether a link is the node's end of some pod's veth pair.
pub(crate) fn is_pod_link(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
        && link.name.strip_prefix(PREFIX).is_some_and(|rest| {
            rest.len() == HASH_DIGITS
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        })
}

/// Connects a namespace. A sandbox that is connected already keeps its address and its link.
pub(crate) async fn attach(
    fabric: &Fabric,
    store: &AddressStore,
    netns: &Path,
    id: &str,
    options: &AttachOptions,
) -> Result<Vec<IpNet>, Error> {
    let known = store.get(id).is_some();
    let address = store.allocate(id)?;
    match connect(fabric, netns, id, address, options).await {
        Ok(()) => Ok(vec![address]),
        Err(error) => {
            // Leave nothing half done behind, but report the first cause.
            let mut collected = Collected::default();
            collected.add(fabric.netlink.delete_link(&interface_name(id)).await.map(drop));
            if !known {
                collected.add(store.release(id).map(drop));
            }
            if let Err(cleanup) = collected.finish(|| "undoing the attachment".into()) {
                tracing::warn!(sandbox = id, %cleanup, "a failed attachment left something behind");
            }
            Err(error)
        }
    }
}

async fn connect(
    fabric: &Fabric,
    netns: &Path,
    id: &str,
    address: IpNet,
    options: &AttachOptions,
) -> Result<(), Error> {
    let namespace = NetNs::open(netns)?;
    let inside = Netlink::open_in(&namespace)?;
    let near = pair(fabric, &namespace, &inside, id, address, options).await?;
    fabric.netlink.set_hairpin(near.index, true).await?;
    fabric.netlink.set_up(near.index, true).await?;

    let lo = inside.require_link("lo").await?;
    if !lo.up {
        inside.set_up(lo.index, true).await?;
    }
    let eth0 = inside.require_link(POD_INTERFACE).await?;
    namespace.run(|| sysctls::ensure_in_pod(POD_INTERFACE))??;
    for other in inside
        .addresses()
        .await?
        .into_iter()
        .filter(|a| a.link == eth0.index && a.net.addr().is_ipv4())
    {
        if other.net != address {
            inside.delete_address(eth0.index, other.net).await?;
        }
    }
    inside.add_address_without_route(eth0.index, address).await?;
    inside.set_up(eth0.index, true).await?;
    for route in pod_routes(eth0.index, fabric.gateway()) {
        inside.replace_route(&route).await?;
    }
    Ok(())
}

/// The pair of links: the one that is there when both ends are, else a new one.
async fn pair(
    fabric: &Fabric,
    namespace: &NetNs,
    inside: &Netlink,
    id: &str,
    address: IpNet,
    options: &AttachOptions,
) -> Result<Link, Error> {
    let name = interface_name(id);
    let near = fabric.netlink.link(&name).await?;
    let far = inside.link(POD_INTERFACE).await?;
    if let (Some(near), Some(far)) = (&near, &far)
        && near.master == Some(fabric.bridge.index)
        && far.kind.as_deref() == Some("veth")
    {
        return Ok(near.clone());
    }
    if near.is_some() {
        fabric.netlink.delete_link(&name).await?;
    }
    let spec = VethSpec {
        name,
        master: Some(fabric.bridge.index),
        peer_name: POD_INTERFACE.into(),
        peer_mac: match address {
            IpNet::V4(net) => Some(MacAddr::for_ipv4(net.addr())),
            IpNet::V6(_) => None,
        },
        peer_namespace: namespace,
        mtu: options.mtu.map_or(fabric.mtu, |mtu| mtu.min(fabric.mtu)),
    };
    Ok(fabric.netlink.create_veth(&spec).await?)
}

/// Disconnects a sandbox; fine when it is not connected, or its namespace is gone (its links are gone with it).
pub(crate) async fn detach(netlink: &Netlink, store: Option<&AddressStore>, id: &str) -> Result<(), Error> {
    let mut collected = Collected::default();
    collected.add(netlink.delete_link(&interface_name(id)).await.map(drop));
    if let Some(store) = store {
        collected.add(store.release(id).map(drop));
    }
    collected.finish(|| format!("detaching sandbox {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_recognised() {
        let name = interface_name("4f6f0c9c-8f1d-4ed4-9a53-5e3df0d6a7a1");
        assert!(name.len() <= 15);
        assert_eq!(name, interface_name("4f6f0c9c-8f1d-4ed4-9a53-5e3df0d6a7a1"));
        assert_ne!(name, interface_name("4f6f0c9c-8f1d-4ed4-9a53-5e3df0d6a7a2"));
        let link = |name: &str, kind: &str| Link {
            index: 1,
            name: name.into(),
            kind: Some(kind.into()),
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1500,
            mac: None,
            master: None,
            hairpin: None,
            vxlan: None,
        };
        assert!(is_pod_link(&link(&name, "veth")));
        for (name, kind) in [
            (name.as_str(), "bridge"),
            ("skiff0", "veth"),
            ("sk0123456789", "veth"),
            ("sk0123456789X", "veth"),
        ] {
            assert!(!is_pod_link(&link(name, kind)), "{name} {kind}");
        }
    }
}
