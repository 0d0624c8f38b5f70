//! A cluster to look around in: `cargo run -p skiff-e2e --bin lab [AGENTS [ARGUMENT..]]`.
//! Arguments are for `skiff server` and `skiff agent` alike.
//! Prints how to get into each node and takes all down at the end of its input.

use skiff_e2e::{Cluster, Image};
use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let agents = std::env::args().nth(1).map_or(Ok(1), |word| word.parse())?;
    let cluster = Cluster::new()
        .servers(1)
        .agents(agents)
        .image(Image::busybox()?)
        .image(Image::nginx()?)
        .start()
        .await?;
    for node in cluster.nodes() {
        println!(
            "{}: nsenter -t {} -n -m env KUBECONFIG=/etc/skiff/skiff.yaml bash",
            node.name,
            node.pid()
        );
    }
    println!(
        "images: {}, {}",
        skiff_e2e::image::BUSYBOX,
        skiff_e2e::image::NGINX
    );
    println!("the end of the input (Ctrl-D) takes everything down");
    let mut rest = Vec::new();
    tokio::io::stdin().read_to_end(&mut rest).await?;
    Ok(())
}
