//! The runtime contract kept with containerd and runc.

pub mod cgroup;
pub mod client;
pub mod daemon;
pub mod log;
pub mod pump;
pub mod sandbox;
pub mod seccomp;
pub mod spec;
pub mod user;

use std::time::SystemTime;

/// Lower-case hexadecimal digits of fresh randomness.
pub fn random_id(digits: usize) -> String {
    let bytes: Vec<u8> = (0..digits.div_ceil(2)).map(|_| rand::random()).collect();
    let mut text = crate::reference::hex(&bytes);
    text.truncate(digits);
    text
}

/// A time as logs and labels carry it, always nine digits of a second.
pub fn rfc3339(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => "1970-01-01T00:00:00.000000000Z".to_owned(),
    }
}

/// Reads such a time.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}
