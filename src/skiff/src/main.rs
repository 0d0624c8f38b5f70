//! Kubernetes for the edge in one binary: `skiff server` is a whole control
//! plane (and a node), `skiff agent` is a node.
//!
//! This crate alone knows all components. It reads the settings
//! ([`options`]), checks the machine ([`preflight`]), starts the roles
//! ([`server`], [`agent`], both through [`node`]) and holds the commands.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod addons;
mod agent;
mod commands;
mod inprocess;
mod join;
mod node;
mod notify;
mod options;
mod preflight;
mod remote;
mod server;
mod supervisor;

use options::{AgentOptions, NodeOptions, ServerOptions, Sources};

#[derive(Parser)]
#[command(name = "skiff", version = node::VERSION, about = "Kubernetes for the edge in one binary", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Run the control plane (and a node)
    Server {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        node: NodeOptions,
        #[command(flatten)]
        server: ServerOptions,
    },
    /// Run a node that joins a server
    Agent {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        node: NodeOptions,
        #[command(flatten)]
        agent: AgentOptions,
    },
    /// Manage join tokens
    Token(commands::token::TokenArgs),
    /// Manage the images of this node
    Images(commands::images::ImagesArgs),
    /// Check this machine for what skiff needs
    Check(commands::check::CheckArgs),
    /// Say what runs here and whether it is ready
    Status(commands::status::StatusArgs),
    /// Prove that the cluster works, with a workload of its own
    Selftest(commands::selftest::SelftestArgs),
    /// Take skiff off this machine: processes, mounts, links, rules, files
    Uninstall(commands::uninstall::UninstallArgs),
    /// Serve HTTP for `skiff selftest`
    #[command(hide = true)]
    Web(commands::web::WebArgs),
}

#[derive(clap::Args)]
struct ConfigFile {
    /// Configuration file [default: /etc/skiff/config.yaml]
    #[arg(long = "config", value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    if let Some(code) = helper() {
        return code;
    }
    limit_arenas();
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let outcome = match cli.command {
        Commands::Server { config, node, server } => run_server(&config, &node, &server),
        Commands::Agent { config, node, agent } => run_agent(&config, &node, &agent),
        Commands::Token(args) => on_runtime(commands::token::run(args)),
        Commands::Images(args) => on_runtime(commands::images::run(args)),
        Commands::Check(args) => commands::check::run(&args),
        Commands::Status(args) => on_runtime(commands::status::run(args)),
        Commands::Selftest(args) => on_runtime(commands::selftest::run(args)),
        Commands::Uninstall(args) => on_runtime(commands::uninstall::run(args)),
        Commands::Web(args) => on_runtime(commands::web::run(args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skiff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The tiny helper processes that run beside pods. They are told apart before
/// anything else is touched: each lives as long as its pods and every page of
/// it counts.
fn helper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let code = match arguments.next()?.to_str()? {
        // The first process of a sandbox whose containers share a process namespace.
        "pause" => skiff_cri::pause::main(),
        // Keeps the output of containers while skiff restarts.
        "keep-fifos" => skiff_cri::keeper::main(std::path::Path::new(&arguments.next()?)),
        _ => return None,
    };
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Each memory arena of the C library keeps what was freed in it for itself;
/// with two workers that do the work, two are enough.
fn limit_arenas() {
    // SAFETY: mallopt only sets a limit; no other thread exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

fn sources(name: &str, config: &ConfigFile) -> anyhow::Result<Sources> {
    let root = Cli::command();
    let command = root
        .find_subcommand(name)
        .ok_or_else(|| anyhow::anyhow!("no command {name}"))?;
    Sources::read(command, config.config.as_deref())
}

fn run_server(config: &ConfigFile, node: &NodeOptions, server: &ServerOptions) -> anyhow::Result<()> {
    let sources = sources("server", config)?;
    let (node, server) = (sources.extract(node)?, sources.extract(server)?);
    start_logging(node.log_level.as_deref())?;
    on_runtime(server::run(node, server))
}

fn run_agent(config: &ConfigFile, node: &NodeOptions, agent: &AgentOptions) -> anyhow::Result<()> {
    let sources = sources("agent", config)?;
    let (node, agent) = (sources.extract(node)?, sources.extract(agent)?);
    start_logging(node.log_level.as_deref())?;
    on_runtime(agent::run(node, agent))
}

/// Libraries that tell of every request at the level at which skiff tells of
/// what changed: a line for each DNS question wears out an SD card.
const QUIET: &str = "hickory_server=warn";

fn start_logging(level: Option<&str>) -> anyhow::Result<()> {
    let level = level.unwrap_or("info");
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{QUIET},{level}"))
        .map_err(|error| anyhow::anyhow!("log-level {level:?} is not a level or filter: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

/// Worker threads: the work is short and mostly waiting; each costs memory.
const WORKER_THREADS: usize = 2;

/// Threads for blocking work (files, netlink): bounded so that a slow disk
/// cannot make a crowd of them.
const BLOCKING_THREADS: usize = 16;

fn on_runtime(task: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // Libraries that make their own TLS settings take the process's provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(task);
    // Blocking work that ignores the shutdown must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}
