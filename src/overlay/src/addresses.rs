//! Who owns which pod address: one small file per address, named by it, holding the owner's id.
//!
//! The folder is the truth, because nothing else survives a restart of the agent while pods go on. A file is written
//! aside and renamed, so it is whole or absent; a file that makes no sense (a torn write after a power cut) has no
//! owner and is removed when the store is opened: after a power cut no pod is left that could own it. Addresses are
//! handed out in turn, the lowest free one after the last one used, so that an address rests as long as possible
//! before somebody else gets it.
//!
//! Lock: one mutex over the in-memory index, held across the file operations of one call (a rename and an unlink of
//! a few bytes), never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use parking_lot::Mutex;

use crate::Error;

/// The file that remembers the last address handed out.
const LAST: &str = "last";

/// A longer owner id is nothing this program wrote.
const MAX_OWNER_BYTES: u64 = 1024;

struct Index {
    owners: BTreeMap<Ipv4Addr, String>,
    last: Option<Ipv4Addr>,
}

/// The addresses of one node's pod network and their owners.
pub struct AddressStore {
    dir: PathBuf,
    net: Ipv4Net,
    index: Mutex<Index>,
}

/// The gateway: the first address of the network.
pub fn gateway(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()).saturating_add(1))
}

impl AddressStore {
    /// Opens the folder (made if absent) for this network and reads who owns what. Files about addresses outside
    /// the network are removed: the node's range changed, and pods with such addresses cannot be reached any more.
    pub fn open(dir: &Path, net: Ipv4Net) -> Result<Self, Error> {
        let at = |path: &Path, source| Error::Store {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
        let mut owners = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|e| at(dir, e))? {
            let path = entry.map_err(|e| at(dir, e))?.path();
            if path.file_name().is_some_and(|name| name == LAST) {
                continue;
            }
            match owner_in(&path, net) {
                Some((address, owner)) => {
                    owners.insert(address, owner);
                }
                None => remove(&path)?,
            }
        }
        let last = fs::read_to_string(dir.join(LAST))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Ok(Self {
            dir: dir.to_owned(),
            net,
            index: Mutex::new(Index { owners, last }),
        })
    }

    /// The network addresses come from.
    pub fn net(&self) -> Ipv4Net {
        self.net
    }

    /// The owner's address, a new one if it has none.
    pub fn allocate(&self, owner: &str) -> Result<IpNet, Error> {
        let mut index = self.index.lock();
        if let Some(address) = index.find(owner) {
            return Ok(self.with_prefix(address));
        }
        let address = next_free(self.net, index.last, |a| index.owners.contains_key(&a))
            .ok_or(Error::Exhausted { net: self.net.into() })?;
        self.write(&address.to_string(), owner)?;
        // Only a hint about the order: an allocation does not fail over it.
        if let Err(error) = self.write(LAST, &address.to_string()) {
            tracing::warn!(%error, "cannot remember the last pod address handed out");
        }
        index.owners.insert(address, owner.to_owned());
        index.last = Some(address);
        Ok(self.with_prefix(address))
    }

    /// The address the owner has.
    pub fn get(&self, owner: &str) -> Option<IpNet> {
        self.index
            .lock()
            .find(owner)
            .map(|address| self.with_prefix(address))
    }

    /// Gives the owner's address back; tells whether it had one.
    pub fn release(&self, owner: &str) -> Result<bool, Error> {
        let mut index = self.index.lock();
        let Some(address) = index.find(owner) else {
            return Ok(false);
        };
        remove(&self.dir.join(address.to_string()))?;
        index.owners.remove(&address);
        Ok(true)
    }

    /// Gives back every address whose owner is not in `living`; returns those owners.
    pub fn retain(&self, living: &BTreeSet<String>) -> Result<Vec<String>, Error> {
        let gone: Vec<String> = self
            .index
            .lock()
            .owners
            .values()
            .filter(|owner| !living.contains(*owner))
            .cloned()
            .collect();
        for owner in &gone {
            self.release(owner)?;
        }
        Ok(gone)
    }

    /// Every owner and its address.
    pub fn list(&self) -> Vec<(String, IpAddr)> {
        self.index
            .lock()
            .owners
            .iter()
            .map(|(address, owner)| (owner.clone(), (*address).into()))
            .collect()
    }

    fn with_prefix(&self, address: Ipv4Addr) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(address, self.net.prefix_len()))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        let aside = self.dir.join(format!("{name}.tmp"));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&aside)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&aside, &path)
        };
        write().map_err(|source| Error::Store {
            path: path.clone(),
            source,
        })
    }
}

impl Index {
    fn find(&self, owner: &str) -> Option<Ipv4Addr> {
        self.owners
            .iter()
            .find(|(_, o)| *o == owner)
            .map(|(address, _)| *address)
    }
}

fn owner_in(path: &Path, net: Ipv4Net) -> Option<(Ipv4Addr, String)> {
    let address: Ipv4Addr = path.file_name()?.to_str()?.parse().ok()?;
    let (first, last) = usable(net);
    let meta = fs::metadata(path).ok()?;
    if !(first..=last).contains(&u32::from(address)) || meta.len() > MAX_OWNER_BYTES {
        return None;
    }
    let owner = fs::read_to_string(path).ok()?;
    (!owner.is_empty()).then_some((address, owner))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Store {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// First and last address for pods: not the network (the VXLAN device's), the gateway or the broadcast address.
fn usable(net: Ipv4Net) -> (u32, u32) {
    (
        u32::from(net.network()).saturating_add(2),
        u32::from(net.broadcast()).saturating_sub(1),
    )
}

/// The lowest free address after `last`, then from the start again.
fn next_free(net: Ipv4Net, last: Option<Ipv4Addr>, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let (first, end) = usable(net);
    let start = last
        .map(u32::from)
        .filter(|n| (first..end).contains(n))
        .map_or(first, |n| n + 1);
    (start..=end)
        .chain(first..start)
        .map(Ipv4Addr::from)
        .find(|address| !taken(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    #[allow(clippy::type_complexity)]
    fn addresses_go_round_and_rest_before_reuse() {
        // network, last, taken, expected
        let table: &[(&str, Option<&str>, &[&str], Option<&str>)] = &[
            ("10.42.0.0/24", None, &[], Some("10.42.0.2")),
            ("10.42.0.0/24", Some("10.42.0.7"), &[], Some("10.42.0.8")),
            (
                "10.42.0.0/24",
                Some("10.42.0.7"),
                &["10.42.0.8"],
                Some("10.42.0.9"),
            ),
            (
                "10.42.0.0/24",
                Some("10.42.0.254"),
                &["10.42.0.2"],
                Some("10.42.0.3"),
            ),
            ("10.42.0.0/24", Some("10.99.0.1"), &[], Some("10.42.0.2")),
            (
                "10.42.0.0/29",
                Some("10.42.0.5"),
                &["10.42.0.6", "10.42.0.2"],
                Some("10.42.0.3"),
            ),
            ("10.42.0.0/30", None, &[], Some("10.42.0.2")),
            ("10.42.0.0/30", None, &["10.42.0.2"], None),
            ("10.42.0.0/31", None, &[], None),
            ("10.42.0.0/32", None, &[], None),
            ("255.255.255.255/32", None, &[], None),
        ];
        for (range, last, taken, expected) in table {
            let taken: Vec<Ipv4Addr> = taken.iter().map(|t| t.parse().unwrap()).collect();
            let got = next_free(net(range), last.map(|l| l.parse().unwrap()), |a| {
                taken.contains(&a)
            });
            assert_eq!(
                got,
                expected.map(|e| e.parse().unwrap()),
                "{range} {last:?} {taken:?}"
            );
        }
    }

    #[test]
    fn owners_survive_a_restart_and_torn_files_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = AddressStore::open(dir.path(), net("10.42.0.0/24")).unwrap();
        let a = store.allocate("a").unwrap();
        assert_eq!(a.to_string(), "10.42.0.2/24");
        assert_eq!(
            store.allocate("a").unwrap(),
            a,
            "asking again gives the same address"
        );
        let b = store.allocate("b").unwrap();
        assert!(store.release("a").unwrap());
        assert!(!store.release("a").unwrap());
        drop(store);
        // A torn write, a leftover of one, a stranger and an address of another range.
        for (name, text) in [
            ("10.42.0.77", ""),
            ("10.42.0.78.tmp", "x"),
            ("notes", "x"),
            ("10.9.0.3", "c"),
            ("10.42.0.1", "g"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let store = AddressStore::open(dir.path(), net("10.42.0.0/24")).unwrap();
        assert_eq!(store.list(), [("b".to_owned(), b.addr())]);
        assert_eq!(
            store.allocate("c").unwrap().to_string(),
            "10.42.0.4/24",
            "the freed .2 rests"
        );
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["10.42.0.3", "10.42.0.4", "last"]);
        assert_eq!(store.retain(&BTreeSet::from(["c".to_owned()])).unwrap(), ["b"]);
        assert_eq!(store.get("b"), None);
    }

    #[test]
    fn a_full_network_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = AddressStore::open(dir.path(), net("10.42.0.0/29")).unwrap();
        for n in 0..5 {
            store.allocate(&n.to_string()).unwrap();
        }
        let error = store.allocate("one more").unwrap_err();
        assert_eq!(error.to_string(), "no free address is left in 10.42.0.0/29");
        store.release("3").unwrap();
        assert_eq!(store.allocate("one more").unwrap().to_string(), "10.42.0.5/29");
    }
}
