//! The settings of `skiff server` and `skiff agent`.
//!
//! A setting is one field: its name is the flag, the key in the configuration
//! file and (in upper case after `SKIFF_`) the environment variable. Later
//! sources win: `/etc/skiff/config.yaml`, `/etc/skiff/config.yaml.d/*.yaml` in
//! order of their names, the environment, flags. In a file `key+:` appends to
//! a list instead of replacing it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Command};
use figment::Figment;
use figment::providers::{Env, Serialized};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where the configuration file is looked for when none is named.
pub const CONFIG_FILE: &str = "/etc/skiff/config.yaml";

/// Settings of every node.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeOptions {
    /// Folder for all data [default: /var/lib/skiff]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Folder for sockets and other things that do not survive a reboot [default: /run/skiff]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// Folder for container logs [default: /var/log]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Address of this node towards the others [default: that of the default route]
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_ip: Option<String>,
    /// Label to register the node with, KEY=VALUE (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_label: Vec<String>,
    /// Taint to register the node with, KEY=VALUE:EFFECT (repeatable)
    #[arg(long, value_name = "KEY=VALUE:EFFECT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_taint: Vec<String>,
    /// Interface towards the other nodes [default: found by its address]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// How packets travel between nodes: vxlan or host-gw [default: vxlan]
    #[arg(long, value_name = "BACKEND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay_backend: Option<String>,
    /// Most pods on this node [default: 110]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pods: Option<u32>,
    /// Control group below which pods run [default: /]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_root: Option<String>,
    /// resolv.conf with the upstream name servers [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
    /// How much to log: error, warn, info, debug, trace, or a filter [default: info]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// Settings of `skiff server`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ServerOptions {
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<String>,
    /// Port of the API and for agents [default: 6443]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_listen_port: Option<u16>,
    /// Address where others reach this server [default: the node's]
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_address: Option<String>,
    /// Further name or address in the server's certificate (repeatable)
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_san: Vec<String>,
    /// Addresses of pods [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_cidr: Option<String>,
    /// Addresses of services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<String>,
    /// Address of the cluster's DNS [default: the tenth of the services']
    #[arg(long, value_name = "IP")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_dns: Option<String>,
    /// Domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// Ports for services of type NodePort [default: 30000-32767]
    #[arg(long, value_name = "FROM-TO")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_node_port_range: Option<String>,
    /// Where to write the administrator's kubeconfig [default: /etc/skiff/skiff.yaml]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Run the control plane without being a node
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disable_agent: bool,
}

/// Settings of `skiff agent`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct AgentOptions {
    /// The server to join, https://HOST:6443 (environment: SKIFF_URL)
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Join token printed by `skiff token create` on the server (environment: SKIFF_TOKEN)
    #[arg(long, value_name = "TOKEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File that holds the join token
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// All sources but the flags, as one figment; `flags` are merged last.
pub struct Sources {
    figment: Figment,
}

impl Sources {
    /// Reads files and environment for a command whose arguments are the known keys.
    pub fn read(command: &Command, config: Option<&Path>) -> anyhow::Result<Self> {
        let known: BTreeSet<String> = command
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .map(str::to_owned)
            .collect();
        let mut merged = Map::new();
        for file in files(config)? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
            merge_file(&mut merged, &text, &known)
                .with_context(|| format!("configuration file {}", file.display()))?;
        }
        let environment = Env::raw()
            .filter(|name| name.as_str().to_ascii_uppercase().starts_with("SKIFF_"))
            .map(
                |name| match name.as_str().to_ascii_lowercase().trim_start_matches("skiff_") {
                    "url" => "server".into(),
                    other => other.replace('_', "-").into(),
                },
            );
        let names = known.clone();
        let environment = environment.filter(move |name| names.contains(name.as_str()));
        Ok(Self {
            figment: Figment::from(Serialized::defaults(Value::Object(merged))).merge(environment),
        })
    }

    /// The settings with flags on top.
    pub fn extract<T: Serialize + for<'de> Deserialize<'de>>(&self, flags: &T) -> anyhow::Result<T> {
        let merged = self.figment.clone().merge(Serialized::defaults(flags));
        merged.extract().map_err(bad_setting)
    }
}

/// Names the key and what is wrong with it, and nothing of how it was read.
fn bad_setting(error: figment::Error) -> anyhow::Error {
    let all: Vec<String> = error
        .into_iter()
        .map(|one| format!("{}: {}", one.path.join("."), one.kind))
        .collect();
    anyhow::anyhow!("bad setting {}", all.join("; "))
}

/// The first line of a YAML error: position and reason. The rest is a picture.
pub fn yaml_error(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    text.lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

fn files(config: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let main = config.map_or_else(|| PathBuf::from(CONFIG_FILE), Path::to_path_buf);
    let mut found = Vec::new();
    if main.exists() {
        found.push(main.clone());
    } else if config.is_some() {
        bail!("the configuration file {} does not exist", main.display());
    }
    let folder = PathBuf::from(format!("{}.d", main.display()));
    if let Ok(entries) = std::fs::read_dir(&folder) {
        let mut more: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "yaml" || extension == "yml")
            })
            .collect();
        more.sort();
        found.extend(more);
    }
    Ok(found)
}

fn merge_file(merged: &mut Map<String, Value>, text: &str, known: &BTreeSet<String>) -> anyhow::Result<()> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(());
    }
    let parsed: Map<String, Value> = serde_saphyr::from_str(text)
        .map_err(|error| anyhow::anyhow!("is not a YAML map: {}", yaml_error(&error)))?;
    for (key, value) in parsed {
        let (name, append) = key
            .strip_suffix('+')
            .map_or((key.as_str(), false), |name| (name, true));
        if !known.contains(name) {
            let hint = closest(name, known)
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            bail!("unknown key {name:?}{hint}");
        }
        let value = match value {
            // `node-label: a=b` is as good as a list of one.
            Value::String(text) if is_list(name) => Value::Array(vec![Value::String(text)]),
            other => other,
        };
        match (append, merged.get_mut(name), value) {
            (true, Some(Value::Array(have)), Value::Array(more)) => have.extend(more),
            (_, _, value) => {
                merged.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn is_list(name: &str) -> bool {
    matches!(name, "node-label" | "node-taint" | "tls-san")
}

/// The known key that differs least, if it is close enough to be a typo.
fn closest<'k>(name: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    known
        .iter()
        .map(|key| (distance(name, key), key.as_str()))
        .min()
        .filter(|(distance, key)| *distance <= key.len().div_ceil(3))
        .map(|(_, key)| key)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut previous = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let cost = previous + usize::from(left != *right);
            previous = row[j + 1];
            row[j + 1] = cost.min(previous + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        ["node-name", "node-label", "tls-san", "disable-agent"]
            .map(str::to_owned)
            .into()
    }

    #[test]
    fn later_files_win_and_plus_appends() {
        let mut merged = Map::new();
        merge_file(
            &mut merged,
            "node-name: a\nnode-label: [x=1]\ntls-san: one\n",
            &known(),
        )
        .expect("first");
        merge_file(&mut merged, "# nothing\n", &known()).expect("comments");
        merge_file(
            &mut merged,
            "node-name: b\nnode-label+: [y=2]\ntls-san: [two]\n",
            &known(),
        )
        .expect("second");
        let want = serde_json::json!({"node-name": "b", "node-label": ["x=1", "y=2"], "tls-san": ["two"]});
        assert_eq!(Value::Object(merged), want);
    }

    #[test]
    fn an_unknown_key_is_named_with_a_guess() {
        let error = merge_file(&mut Map::new(), "node-nme: a\n", &known()).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "unknown key \"node-nme\"; did you mean node-name?"
        );
        let error = merge_file(&mut Map::new(), "zzz: 1\n", &known()).expect_err("unknown");
        assert_eq!(error.to_string(), "unknown key \"zzz\"");
        assert!(merge_file(&mut Map::new(), "- a\n", &known()).is_err());
    }

    #[test]
    fn flags_win_over_files() {
        let figment = Figment::from(Serialized::defaults(
            serde_json::json!({"node-name": "file", "max-pods": 7}),
        ));
        let flags = NodeOptions {
            node_name: Some("flag".to_owned()),
            ..NodeOptions::default()
        };
        let merged = Sources { figment }.extract(&flags).expect("settings");
        assert_eq!(
            (merged.node_name.as_deref(), merged.max_pods),
            (Some("flag"), Some(7))
        );
    }
}
