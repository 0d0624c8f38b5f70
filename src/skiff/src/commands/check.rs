//! `skiff check`: what this machine lacks, before anything is started.

use std::path::{Path, PathBuf};

use crate::preflight;

/// Arguments of `skiff check`.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Folder for all data
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
}

/// Prints one line for each requirement; fails when one is not met.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let checks: [(&str, anyhow::Result<()>); 4] = [
        ("root", preflight::root()),
        ("data folder", preflight::writable(&args.data_dir)),
        ("containerd and runc", preflight::programs()),
        (
            "control groups",
            preflight::control_groups(Path::new("/sys/fs/cgroup")),
        ),
    ];
    let mut failed = 0;
    for (name, outcome) in checks {
        match outcome {
            Ok(()) => println!("ok      {name}"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
    }
    if failed > 0 {
        anyhow::bail!("{failed} of the checks failed");
    }
    Ok(())
}
