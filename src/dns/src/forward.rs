//! Names of everybody else: the node's own name servers are asked.
//!
//! The list comes from the node's `resolv.conf`, which may change at any time (a new lease, another network), so the
//! file's stamp is looked at again now and then. An address we listen on ourselves is left out: it would be a loop.
//!
//! Nobody waits for a name server that is not there: an unreachable network is an error at once; a silent one costs
//! the first few questions their timeout, and then questions fail at once for a moment, except for one that tries.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{Resolver, TokioResolver};
use parking_lot::Mutex;
use skiff_base::clock::Clock;
use tokio::sync::Semaphore;

/// Questions under way to name servers at the same time; more get SERVFAIL at once. Each holds a socket.
const MAX_IN_FLIGHT: usize = 256;
/// One question's time per name server and try, and in all: below the five seconds most clients wait.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
const TOTAL_TIMEOUT: Duration = Duration::from_millis(4500);
/// After this many questions in a row without any answer the name servers count as silent ...
const SILENT_AFTER: u32 = 3;
/// ... and are tried again with one question each time this has passed.
const SILENT_RETRY: Duration = Duration::from_secs(2);
/// How old the look at `resolv.conf` may be.
const RECHECK: Duration = Duration::from_secs(5);
/// Answers remembered, and for how long at most.
const CACHE_ANSWERS: u64 = 2048;
const CACHE_FOR: Duration = Duration::from_secs(30);
/// Name servers used of those listed, as the C library does.
const MAX_SERVERS: usize = 3;

/// The usable name servers of a `resolv.conf`: not ourselves, each once.
pub fn name_servers(text: &str, own: &[IpAddr]) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            continue;
        };
        // A scope (`fe80::1%eth0`) cannot be used by the resolver.
        let Ok(address) = address.parse::<IpAddr>() else {
            continue;
        };
        if !own.contains(&address) && !servers.contains(&address) {
            servers.push(address);
        }
    }
    servers.truncate(MAX_SERVERS);
    servers
}

/// What a name server said.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Forwarded {
    fn failed(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
        }
    }
}

struct State {
    resolver: Option<Arc<TokioResolver>>,
    servers: Vec<IpAddr>,
    checked: Option<Instant>,
    stamp: Option<(SystemTime, u64)>,
    unanswered: u32,
    next_try: Option<Instant>,
}

/// Asks the node's name servers.
pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    upstreams: Vec<IpAddr>,
    own: Vec<IpAddr>,
    clock: Arc<dyn Clock>,
    permits: Semaphore,
    state: Mutex<State>,
}

impl Forwarder {
    /// Asks `upstreams`, or the name servers in the file when there are none; never the addresses in `own`, where
    /// questions arrive.
    pub(crate) fn new(
        resolv_conf: PathBuf,
        upstreams: Vec<IpAddr>,
        own: Vec<IpAddr>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State {
            resolver: None,
            servers: Vec::new(),
            checked: None,
            stamp: None,
            unanswered: 0,
            next_try: None,
        };
        Self {
            resolv_conf,
            upstreams,
            own,
            clock,
            permits: Semaphore::new(MAX_IN_FLIGHT),
            state: Mutex::new(state),
        }
    }

    fn read_servers(&self) -> Vec<IpAddr> {
        if !self.upstreams.is_empty() {
            let usable = self
                .upstreams
                .iter()
                .copied()
                .filter(|address| !self.own.contains(address));
            return usable.take(MAX_SERVERS).collect();
        }
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        name_servers(&text, &self.own)
    }

    fn stamp(&self) -> Option<(SystemTime, u64)> {
        let meta = std::fs::metadata(&self.resolv_conf).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }

    /// The resolver to ask now, or none: no name server is known, or they are silent and somebody else is trying.
    fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        if state
            .checked
            .is_none_or(|checked| now.duration_since(checked) >= RECHECK)
        {
            state.checked = Some(now);
            let stamp = self.stamp();
            if state.resolver.is_none() || stamp != state.stamp {
                state.stamp = stamp;
                let servers = self.read_servers();
                if servers != state.servers || state.resolver.is_none() {
                    tracing::info!(?servers, "name servers for names outside the cluster");
                    state.resolver = build(&servers).map(Arc::new);
                    state.servers = servers;
                    state.unanswered = 0;
                }
            }
        }
        if state.unanswered >= SILENT_AFTER {
            if state.next_try.is_some_and(|at| now < at) {
                return None;
            }
            state.next_try = Some(now + SILENT_RETRY);
        }
        state.resolver.clone()
    }

    fn note(&self, answered: bool) {
        let mut state = self.state.lock();
        if answered {
            state.unanswered = 0;
        } else {
            state.unanswered = state.unanswered.saturating_add(1);
            state.next_try = Some(self.clock.monotonic() + SILENT_RETRY);
        }
    }

    /// Asks. Always gives an answer, SERVFAIL when there is none.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Forwarded {
        let failed = || Forwarded::failed(ResponseCode::ServFail);
        let Ok(_permit) = self.permits.try_acquire() else {
            return failed();
        };
        let Some(resolver) = self.resolver() else {
            return failed();
        };
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        let asked = tokio::time::timeout(TOTAL_TIMEOUT, resolver.lookup(absolute, kind)).await;
        match asked {
            Ok(Ok(lookup)) => {
                self.note(true);
                Forwarded {
                    code: ResponseCode::NoError,
                    answers: lookup.answers().to_vec(),
                    authorities: lookup.authorities().to_vec(),
                }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
                self.note(true);
                let soa = none.soa.map(|soa| soa.into_record_of_rdata());
                Forwarded {
                    code: none.response_code,
                    answers: Vec::new(),
                    authorities: soa.into_iter().collect(),
                }
            }
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
                self.note(true);
                Forwarded::failed(code)
            }
            Ok(Err(error)) => {
                tracing::debug!(%name, %kind, %error, "no answer from the name servers");
                self.note(false);
                failed()
            }
            Err(_) => {
                tracing::debug!(%name, %kind, "the name servers did not answer in time");
                self.note(false);
                failed()
            }
        }
    }
}

fn build(servers: &[IpAddr]) -> Option<TokioResolver> {
    if servers.is_empty() {
        return None;
    }
    let servers = servers
        .iter()
        .map(|ip| NameServerConfig::udp_and_tcp(*ip))
        .collect();
    let config = ResolverConfig::from_name_servers(servers);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = TRY_TIMEOUT;
    options.attempts = 1;
    options.cache_size = CACHE_ANSWERS;
    options.positive_max_ttl = Some(CACHE_FOR);
    options.negative_max_ttl = Some(CACHE_FOR);
    // Questions are passed on as they are: no hosts file, no search list.
    options.use_hosts_file = ResolveHosts::Never;
    match builder.build() {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::warn!(%error, "cannot use the name servers of this node");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_name_servers_are_used() {
        let own: IpAddr = "10.43.0.10".parse().unwrap();
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("nameserver 192.0.2.53\n", &["192.0.2.53"]),
            (
                "# nameserver 1.1.1.1\nsearch x\nnameserver  127.0.0.53 # stub\noptions edns0",
                &["127.0.0.53"],
            ),
            (
                "nameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver 192.0.2.1",
                &["192.0.2.1"],
            ),
            ("nameserver 10.43.0.10", &[]),
            (
                "nameserver fe80::1%eth0\nnameserver fd00::53\nnameserver nonsense\nnameserver",
                &["fd00::53"],
            ),
            (
                "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4",
                &["1.0.0.1", "1.0.0.2", "1.0.0.3"],
            ),
        ];
        for (text, expected) in table {
            let got: Vec<String> = name_servers(text, &[own])
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(&got, expected, "{text:?}");
        }
    }
}
