//! Taking everything off a machine that the overlay put on it, with or without a running overlay.

use std::path::Path;

use skiff_netlink::Netlink;

use crate::attach::is_pod_link;
use crate::error::Collected;
use crate::fabric::{BRIDGE, ROUTE_PROTOCOL};
use crate::{Error, Firewall, sysctls};

/// Removes pod links, the bridge, VXLAN devices, routes, firewall rules, global sysctls and the state folder, all as
/// far as they are ours. Goes on after a failure and reports every one. Run twice it does nothing.
pub async fn uninstall(state_dir: &Path, firewall: &dyn Firewall) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let mut collected = Collected::default();
    collected.add(firewall.remove());
    match netlink.routes().await {
        Ok(routes) => {
            for route in routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL) {
                collected.add(netlink.delete_route(route).await);
            }
        }
        Err(error) => collected.add(Err(error)),
    }
    match netlink.links().await {
        Ok(links) => {
            let ours = links.iter().filter(|link| {
                is_pod_link(link)
                    || (link.name == BRIDGE && link.kind.as_deref() == Some("bridge"))
                    || (link.vxlan.is_some() && link.name.starts_with("skiff."))
            });
            for link in ours {
                collected.add(netlink.delete_link(&link.name).await.map(drop));
            }
        }
        Err(error) => collected.add(Err(error)),
    }
    collected.add(sysctls::restore(state_dir));
    match std::fs::remove_dir_all(state_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            collected.add(Err(Error::Store {
                path: state_dir.to_owned(),
                source: error,
            }));
        }
        _ => {}
    }
    collected.finish(|| "removing the pod network".into())
}
