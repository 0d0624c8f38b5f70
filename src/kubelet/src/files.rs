//! The files every container finds: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`. Pure text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use skiff_cri::DnsConfig;

/// First line of a hosts file this kubelet wrote.
const MANAGED: &str = "# Kubernetes-managed hosts file.\n";
/// First line of a hosts file copied from the node.
const MANAGED_HOST: &str = "# Kubernetes-managed hosts file (host network).\n";
/// Longest host name the kernel takes.
const HOST_NAME_MAX: usize = 63;
/// More name servers than this are ignored by every resolver.
const MAX_NAMESERVERS: usize = 3;
/// More search domains than this are ignored, as Kubernetes does.
const MAX_SEARCHES: usize = 32;

/// The pod's host name and, with a subdomain, its domain inside the cluster.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.clone()) {
        return (name, None);
    }
    let name = spec
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty())
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let mut name = name;
    if name.len() > HOST_NAME_MAX {
        let mut end = HOST_NAME_MAX;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let domain = spec
        .and_then(|spec| spec.subdomain.as_deref())
        .filter(|s| !s.is_empty())
        .map(|subdomain| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        });
    (name, domain)
}

/// The text of `/etc/hosts`. `host_file` is the node's own, used for pods on the host network.
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host_file: Option<&str>) -> String {
    let mut out = match host_file {
        Some(text) => {
            let mut out = format!("{MANAGED_HOST}{text}");
            if !out.ends_with('\n') {
                out.push('\n');
            }
            out
        }
        None => {
            let mut out = MANAGED.to_owned();
            out.push_str(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                 fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (name, domain) = hostname(pod, cluster_domain);
            for ip in ips {
                match &domain {
                    Some(domain) => out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
                    None => out.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            out
        }
    };
    let aliases = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_aliases.as_deref())
        .unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

/// What the cluster and the node offer for name resolution.
#[derive(Clone, Debug, Default)]
pub struct DnsFacts {
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The node's own `resolv.conf`.
    pub host_resolv: String,
}

/// What `/etc/resolv.conf` of a pod says.
pub fn resolver(pod: &Pod, facts: &DnsFacts) -> DnsConfig {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let policy = spec
        .and_then(|spec| spec.dns_policy.as_deref())
        .unwrap_or("ClusterFirst");
    let host = parse(&facts.host_resolv);
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    } && !facts.cluster_dns.is_empty();
    let mut conf = if policy == "None" {
        DnsConfig::default()
    } else if cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let domain = &facts.cluster_domain;
        let mut searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
        searches.extend(host.searches);
        DnsConfig {
            servers: facts.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        host
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        conf.servers.extend(config.nameservers.iter().flatten().cloned());
        conf.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else {
                continue;
            };
            conf.options.retain(|have| have.split(':').next() != Some(name));
            conf.options
                .push(match option.value.as_deref().filter(|value| !value.is_empty()) {
                    Some(value) => format!("{name}:{value}"),
                    None => name.to_owned(),
                });
        }
    }
    dedupe(&mut conf.servers);
    dedupe(&mut conf.searches);
    conf.servers.truncate(MAX_NAMESERVERS);
    conf.searches.truncate(MAX_SEARCHES);
    conf
}

fn parse(text: &str) -> DnsConfig {
    let mut conf = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => conf.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                conf.searches = words.filter(|word| *word != ".").map(str::to_owned).collect();
            }
            Some("options") => conf.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    conf
}

fn dedupe(list: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    fn facts() -> DnsFacts {
        DnsFacts {
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            host_resolv: "# x\nsearch lan\nnameserver 192.0.2.53\noptions rotate\n".into(),
        }
    }

    #[test]
    fn resolvers() {
        let cluster = "shop.svc.cluster.local svc.cluster.local cluster.local lan | 10.43.0.10 | ndots:5";
        let host = "lan | 192.0.2.53 | rotate";
        let table = [
            (json!({"containers": []}), cluster),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirst"}),
                host,
            ),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                cluster,
            ),
            (json!({"containers": [], "dnsPolicy": "Default"}), host),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"],
                    "searches": ["a", "a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "a | 9.9.9.9 | ndots:2 edns0",
            ),
        ];
        for (spec, expected) in table {
            let conf = resolver(&pod(spec.clone()), &facts());
            let text = format!(
                "{} | {} | {}",
                conf.searches.join(" "),
                conf.servers.join(" "),
                conf.options.join(" ")
            );
            assert_eq!(text, expected, "{spec}");
        }
    }

    #[test]
    fn hosts_files() {
        let ips = ["10.42.0.5".parse().unwrap()];
        let plain = hosts(&pod(json!({"containers": []})), &ips, "cluster.local", None);
        assert!(
            plain.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"),
            "{plain}"
        );
        assert!(plain.ends_with("10.42.0.5\tweb-0\n"), "{plain}");
        let sub = hosts(
            &pod(json!({"containers": [], "hostname": "h", "subdomain": "db",
                "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]})),
            &ips,
            "cluster.local",
            None,
        );
        assert!(
            sub.contains("10.42.0.5\th.db.shop.svc.cluster.local\th\n"),
            "{sub}"
        );
        assert!(
            sub.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"),
            "{sub}"
        );
        let host = hosts(
            &pod(json!({"containers": []})),
            &ips,
            "cluster.local",
            Some("127.0.0.1 box"),
        );
        assert_eq!(
            host,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 box\n"
        );
    }

    #[test]
    fn long_names_are_cut() {
        let mut pod = pod(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(hostname(&pod, "c").0, "a".repeat(62));
    }
}
