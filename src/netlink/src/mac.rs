//! Ethernet addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A hash of a text that never changes between machines, versions and runs (FNV-1a). For names, not for secrets.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// An Ethernet (MAC) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered unicast address that is the same for the same seed on every machine and after every
    /// reboot. Peers keep their entries for a node that comes back.
    pub fn derived(seed: &str) -> Self {
        let hash = stable_hash(seed);
        let folded = hash ^ (hash >> 48);
        let bytes = folded.to_be_bytes();
        Self([
            (bytes[2] & 0xfc) | 0x02,
            bytes[3],
            bytes[4],
            bytes[5],
            bytes[6],
            bytes[7],
        ])
    }

    /// The address for an interface that carries this IPv4 address: who gets the address later has the same MAC, so
    /// no neighbour cache is ever wrong about it.
    pub fn for_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x0a, 0x58, a, b, c, d])
    }

    /// From the bytes of a netlink attribute, when there are six.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a MAC address")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            Err(error())
        } else {
            Ok(Self(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_refusals() {
        let mac: MacAddr = "0a:58:0a:2a:00:05".parse().unwrap();
        assert_eq!(mac, MacAddr::for_ipv4(Ipv4Addr::new(10, 42, 0, 5)));
        assert_eq!(mac.to_string(), "0a:58:0a:2a:00:05");
        for bad in [
            "",
            "0a:58:0a:2a:00",
            "0a:58:0a:2a:00:05:06",
            "0a-58-0a-2a-00-05",
            "+a:58:0a:2a:00:5",
            "zz:00:00:00:00:00",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn derived_is_stable_local_unicast_and_spread() {
        let a = MacAddr::derived("node-a/1");
        assert_eq!(a, MacAddr::derived("node-a/1"));
        assert_ne!(a, MacAddr::derived("node-b/1"));
        for n in 0..1000 {
            let mac = MacAddr::derived(&format!("node-{n}"));
            assert_eq!(mac.0[0] & 3, 2, "{mac} must be locally administered unicast");
        }
        let distinct: std::collections::BTreeSet<_> =
            (0..10_000).map(|n| MacAddr::derived(&format!("n{n}"))).collect();
        assert_eq!(distinct.len(), 10_000);
    }
}
