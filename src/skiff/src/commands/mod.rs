//! The commands besides the two roles.

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use skiff_client::Client;

pub mod check;
pub mod images;
pub mod selfimage;
pub mod selftest;
pub mod status;
pub mod token;
pub mod uninstall;
pub mod web;

/// The kubeconfig to use: the one named, `$KUBECONFIG`, or the server's own.
pub fn kubeconfig_path(given: Option<&Path>) -> PathBuf {
    given
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from))
        .unwrap_or_else(|| crate::server::KUBECONFIG.into())
}

/// A client by kubeconfig.
pub async fn client(given: Option<&Path>) -> anyhow::Result<Client> {
    let path = kubeconfig_path(given);
    let file = Kubeconfig::read_from(&path).with_context(|| {
        format!(
            "cannot read the kubeconfig {}: run this on the server, or set --kubeconfig",
            path.display()
        )
    })?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
