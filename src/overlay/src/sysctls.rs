//! The kernel switches a routed pod network needs, and putting them back.
//!
//! Switches of our own links go with the links. The few global ones are noted in a file before their first change,
//! so that an uninstalled machine forwards packets only if it did before.
//!
//! `bridge-nf-call-iptables` is left as it is: traffic between pods goes through the IP layer either way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use skiff_netlink::sysctl;

use crate::Error;
use crate::error::Collected;

/// The file with the global switches as they were.
const NOTES: &str = "sysctls";

/// Global switches: forwarding, and no redirects (a link sends them when it *or* `all` says so).
const GLOBAL: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
];

fn notes(dir: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(dir.join(NOTES)).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// Sets the switches for these links.
pub(crate) fn ensure(dir: &Path, links: &[&str]) -> Result<(), Error> {
    let mut before = notes(dir);
    for (key, value) in GLOBAL {
        let Some(found) = sysctl::read(key)? else { continue };
        if found != value && !before.contains_key(key) {
            before.insert(key.to_owned(), found);
            let path = dir.join(NOTES);
            let text: String = before.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
            fs::create_dir_all(dir)
                .and_then(|()| fs::write(&path, text))
                .map_err(|source| Error::Store { path, source })?;
        }
        sysctl::ensure(key, value)?;
    }
    // Reverse path checks: strict ones drop answers that come another way than their route goes. The stricter of
    // `all` and the link's own value counts, except that loose beats strict.
    let strict = sysctl::read("net/ipv4/conf/all/rp_filter")?.as_deref() == Some("1");
    for link in links {
        sysctl::ensure(
            &format!("net/ipv4/conf/{link}/rp_filter"),
            if strict { "2" } else { "0" },
        )?;
        sysctl::ensure(&format!("net/ipv4/conf/{link}/send_redirects"), "0")?;
    }
    Ok(())
}

/// Puts the global switches back.
pub(crate) fn restore(dir: &Path) -> Result<(), Error> {
    let mut collected = Collected::default();
    for (key, value) in notes(dir) {
        // Only keys this program writes: the file is not a way to set others.
        if GLOBAL.iter().any(|(ours, _)| *ours == key) {
            collected.add(sysctl::ensure(&key, &value).map(drop));
        }
    }
    collected.finish(|| "restoring sysctls".into())
}

/// Inside a pod's namespace: never believe a redirect, traffic between pods of a node goes through the gateway.
pub(crate) fn ensure_in_pod(interface: &str) -> Result<(), Error> {
    for name in ["all", interface] {
        sysctl::ensure_if_present(&format!("net/ipv4/conf/{name}/accept_redirects"), "0")?;
    }
    Ok(())
}
