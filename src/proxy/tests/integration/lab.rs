//! A node and its pods as network namespaces of this process: no names, nothing to clean up.
//!
//! A namespace lives as long as its descriptor. The node is the namespace of
//! the thread that runs the test; a pod is reached over a veth pair with a host route, as
//! all traffic between pods has to go through the node.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// How long a connection may take before it counts as lost.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Runs `test` on a thread with a fresh network namespace.
pub fn on_a_node<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip", &["link", "set", "lo", "up"]);
        test()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a command in the current thread's namespace and returns what it printed.
pub fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{command}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command} {args:?}: {}\n{errors}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn ip_command(line: &str) {
    run("ip", &line.split_whitespace().collect::<Vec<_>>());
}

/// Another machine or a pod, attached to the node.
pub struct Host {
    namespace: File,
    pub address: IpAddr,
}

impl Host {
    /// A namespace with `address`, linked to the current one by `link`; the node's end has `gateway`.
    pub fn attach(link: &str, address: &str, gateway: &str) -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").expect("a namespace")
        })
        .join()
        .expect("a namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        ip_command(&format!("link add {link} type veth peer name eth0 netns {path}"));
        ip_command(&format!("addr add {gateway}/32 dev {link}"));
        ip_command(&format!("link set {link} up"));
        ip_command(&format!("route add {address}/32 dev {link}"));
        let host = Self {
            namespace,
            address: address.parse().expect("an address"),
        };
        let (address, gateway) = (address.to_owned(), gateway.to_owned());
        host.inside(move || {
            ip_command("link set lo up");
            ip_command(&format!("addr add {address}/32 dev eth0"));
            ip_command("link set eth0 up");
            ip_command(&format!("route add {gateway}/32 dev eth0"));
            ip_command(&format!("route add default via {gateway}"));
        });
        host
    }

    /// Runs something in the host's namespace.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace.try_clone().expect("a descriptor");
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a TCP server that answers `name client-address` to each connection.
    pub fn serve_tcp(&self, port: u16, name: &str) {
        let (ready, wait) = mpsc::channel();
        let (namespace, name) = (self.namespace.try_clone().expect("a descriptor"), name.to_owned());
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
            let listener = TcpListener::bind(("0.0.0.0", port)).expect("listen");
            ready.send(()).expect("the test waits");
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let Ok(peer) = stream.peer_addr() else { continue };
                let _ = write!(stream, "{name} {}", peer.ip());
            }
        });
        wait.recv().expect("the server starts");
    }

    /// Starts a UDP server that answers `name` to each datagram.
    pub fn serve_udp(&self, port: u16, name: &str) {
        let (ready, wait) = mpsc::channel();
        let (namespace, name) = (self.namespace.try_clone().expect("a descriptor"), name.to_owned());
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bind");
            ready.send(()).expect("the test waits");
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
        wait.recv().expect("the server starts");
    }

    /// Connects and returns what the server says.
    pub fn ask(&self, to: &str) -> Result<String, std::io::ErrorKind> {
        let to = to.to_owned();
        self.inside(move || ask(&to))
    }

    /// A UDP client with a fixed source port, so that its datagrams are one flow.
    pub fn udp_client(&self, port: u16) -> UdpSocket {
        self.inside(move || {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bind");
            socket
                .set_read_timeout(Some(Duration::from_millis(500)))
                .expect("a timeout");
            socket
        })
    }
}

/// Connects from the current namespace: `(server, client address it saw)` as one text.
pub fn ask(to: &str) -> Result<String, std::io::ErrorKind> {
    let to: SocketAddr = to.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| e.kind())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.kind())?;
    Ok(text)
}

/// Sends a datagram and waits for the answer.
pub fn ask_udp(socket: &UdpSocket, to: &str) -> Option<String> {
    socket.send_to(b"?", to).ok()?;
    let mut buffer = [0; 64];
    let (len, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
}
