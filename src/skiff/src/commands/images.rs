//! `skiff images`: what this node's runtime holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use skiff_cri::Runtime;
use skiff_cri::containerd::{Containerd, Registries};

use crate::node::{self, Settings};
use crate::options::{NodeOptions, yaml_error};

/// Where registries are configured.
pub const REGISTRIES: &str = "/etc/skiff/registries.yaml";

/// Arguments of `skiff images`.
#[derive(clap::Args)]
pub struct ImagesArgs {
    #[command(subcommand)]
    command: ImagesCommand,
    /// Folder for all data
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Folder for sockets
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/skiff")]
    run_dir: PathBuf,
}

#[derive(clap::Subcommand)]
enum ImagesCommand {
    /// Load an OCI or docker archive (.tar, .tar.gz, .tar.zst)
    Import {
        /// The archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Fetch an image from its registry
    Pull {
        /// The image
        image: String,
    },
    /// List the images
    #[command(visible_alias = "ls")]
    List,
    /// Remove an image
    #[command(visible_alias = "rm")]
    Remove {
        /// The image
        image: String,
    },
}

/// Runs the command.
pub async fn run(args: ImagesArgs) -> anyhow::Result<()> {
    let runtime = connect(&args).await?;
    match args.command {
        ImagesCommand::Import { files } => {
            for file in files {
                let images = runtime
                    .import_image(&file)
                    .await
                    .with_context(|| file.display().to_string())?;
                for name in images.iter().flat_map(|image| &image.repo_tags) {
                    println!("imported {name}");
                }
            }
        }
        ImagesCommand::Pull { image } => {
            let pulled = runtime.pull_image(&image, None, None).await?;
            println!("pulled {image} ({})", pulled.id);
        }
        ImagesCommand::List => {
            println!("{:<60} {:<20} SIZE", "IMAGE", "ID");
            for image in runtime.images().await? {
                let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
                for name in &image.repo_tags {
                    println!("{name:<60} {id:<20} {:.1} MB", image.size_bytes as f64 / 1e6);
                }
            }
        }
        ImagesCommand::Remove { image } => {
            runtime.remove_image(&image).await?;
            println!("removed {image}");
        }
    }
    Ok(())
}

async fn connect(args: &ImagesArgs) -> anyhow::Result<Arc<Containerd>> {
    let options = NodeOptions {
        data_dir: Some(args.data_dir.clone()),
        run_dir: Some(args.run_dir.clone()),
        node_name: Some("local".to_owned()),
        ..NodeOptions::default()
    };
    let settings = Settings::new(options)?;
    let socket = settings.containerd().socket();
    if !socket.exists() {
        bail!(
            "containerd does not run here (no {}): start skiff first, or correct --run-dir",
            socket.display()
        );
    }
    let clock = skiff_base::clock::system();
    Ok(Containerd::connect_for_images(node::runtime_config(&settings)?, clock).await?)
}

/// Registry settings from `/etc/skiff/registries.yaml`, in the format of k3s.
pub fn registries() -> anyhow::Result<Registries> {
    let path = Path::new(REGISTRIES);
    if !path.exists() {
        return Ok(Registries::default());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {REGISTRIES}"))?;
    serde_saphyr::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{REGISTRIES} is not valid: {}", yaml_error(&error)))
}
