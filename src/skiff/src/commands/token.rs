//! `skiff token`: what other machines join with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use skiff_pki::Token;

use super::status::Record;
use crate::join;

/// Arguments of `skiff token`.
#[derive(clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
    /// Kubeconfig of an administrator [default: $KUBECONFIG, then /etc/skiff/skiff.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Folder of the running server's sockets
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/skiff")]
    run_dir: PathBuf,
}

#[derive(clap::Subcommand)]
enum TokenCommand {
    /// Make a token and print it
    Create {
        /// How long it is good for, such as 30m, 24h or 7d; 0 for ever
        #[arg(long, default_value = "24h", value_name = "TIME")]
        ttl: String,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Print the whole command to run on the other machine
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens (without their secrets)
    List,
    /// Make a token useless
    Delete {
        /// Its first six characters, as `skiff token list` shows them
        id: String,
    },
}

const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";

/// Runs the command.
pub async fn run(args: TokenArgs) -> anyhow::Result<()> {
    let client = super::client(args.kubeconfig.as_deref()).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    match args.command {
        TokenCommand::Create {
            ttl,
            description,
            print_join_command,
        } => {
            let path = super::kubeconfig_path(args.kubeconfig.as_deref());
            let (server, ca_der) = cluster(&path)?;
            let token = Token::generate(&ca_der)?;
            let now = Timestamp::now();
            let expiration = match parse_ttl(&ttl)? {
                None => None,
                Some(ttl) => Some(now.checked_add(SignedDuration::try_from(ttl)?)?),
            };
            join::record_token(&client, &token, &description, expiration).await?;
            if print_join_command {
                // The kubeconfig may say 127.0.0.1; the running server knows better.
                let server = Record::read(&args.run_dir).map_or(server, |record| record.server);
                println!("skiff agent --server {server} --token {token}");
            } else {
                println!("{token}");
            }
        }
        TokenCommand::List => {
            println!("{:<8} {:<22} DESCRIPTION", "TOKEN", "EXPIRES");
            let list = secrets
                .list(&ListParams::default().fields(&format!("type={TOKEN_TYPE}")))
                .await?;
            for secret in list {
                let field = |name: &str| {
                    let bytes = secret.data.as_ref().and_then(|data| data.get(name));
                    bytes
                        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
                        .unwrap_or_default()
                };
                let expires = Some(field("expiration"))
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| "never".to_owned());
                println!("{:<8} {expires:<22} {}", field("token-id"), field("description"));
            }
        }
        TokenCommand::Delete { id } => {
            let id = id
                .rsplit("::")
                .next()
                .unwrap_or(&id)
                .split('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            match secrets
                .delete(&format!("bootstrap-token-{id}"), &DeleteParams::default())
                .await
            {
                Ok(_) => println!("token {id} deleted"),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    bail!("there is no token {id}: see `skiff token list`")
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The server's address and CA (DER) from a kubeconfig.
fn cluster(path: &std::path::Path) -> anyhow::Result<(String, Vec<u8>)> {
    let file = kube::config::Kubeconfig::read_from(path)?;
    let cluster = file.clusters.into_iter().next().and_then(|named| named.cluster);
    let cluster = cluster.with_context(|| format!("{} names no cluster", path.display()))?;
    let encoded = cluster
        .certificate_authority_data
        .with_context(|| format!("{} holds no certificate-authority-data", path.display()))?;
    let pem = base64::engine::general_purpose::STANDARD.decode(encoded.trim())?;
    let der = rustls_pki_types::pem::PemObject::from_pem_slice(&pem)
        .map(|der: rustls_pki_types::CertificateDer<'_>| der.to_vec())
        .map_err(|error| anyhow::anyhow!("{}: the CA cannot be read: {error:?}", path.display()))?;
    Ok((cluster.server.unwrap_or_default(), der))
}

/// `30m`, `24h`, `7d`, `90s`; zero means for ever.
fn parse_ttl(text: &str) -> anyhow::Result<Option<Duration>> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .with_context(|| format!("ttl {text:?} is not a time such as 24h"))?;
    let seconds = match unit {
        "" | "s" => number,
        "m" => number * 60,
        "h" => number * 3600,
        "d" => number * 86_400,
        _ => bail!("ttl {text:?} is not a time such as 30m, 24h or 7d"),
    };
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live() {
        let parse = |text| parse_ttl(text).ok();
        assert_eq!(parse("24h"), Some(Some(Duration::from_secs(86_400))));
        assert_eq!(parse("7d"), Some(Some(Duration::from_secs(604_800))));
        assert_eq!(parse("0"), Some(None));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("5w"), None);
    }
}
