//! Container output: from FIFOs to log files and attached clients, by one thread for all containers.
//!
//! The shim copies a container's output into FIFOs whose ends it holds open itself, so that a restart
//! of skiff neither breaks nor ends them. The pump takes nothing out of a FIFO before it is in the log:
//!
//! ```text
//! tee(fifo → scratch), read(scratch)    look without taking
//! write(log, whole lines)               keep
//! read(fifo, that much)                 only now take
//! ```
//!
//! The FIFO is the buffer: an unfinished line stays in it. If skiff is killed at any moment nothing that
//! was in a FIFO is lost; killed between the last two steps it repeats up to one pipe of lines.
//! While skiff is away a container goes on until its FIFO is full (64 KiB) and then waits.
//! A container that ends while skiff is away keeps what is in its FIFOs only if somebody holds them
//! open: that is the task of [`crate::keeper`].
//!
//! Rejected: a logger process per container (`binary://`, 1-2 MB each); plain files written by the shim
//! (no times, no rotation); reading straight into memory (loses lines when killed).
//!
//! Slow consumers: a full or failing disk drops lines (a container must never hang on its log), and
//! counts them; an attached client that falls behind loses pieces, never holds up the log.

use super::log::{self, LogFile, LogLimits};
use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use skiff_base::clock::Clock;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};

/// Pieces kept for an attached client: 64 of at most 64 KiB.
const ATTACH_PIECES_MAX: usize = 64;
/// How much of a FIFO is looked at in one step: the default capacity of a pipe.
const STEP_MAX_BYTES: usize = 64 * 1024;
/// Steps for one stream before others get their turn.
const TURN_MAX_STEPS: usize = 8;
/// An unfinished line goes to the log as a part after this time, so that prompts and progress dots show.
const PARTIAL_MAX_AGE: Duration = Duration::from_secs(1);
/// Events taken from epoll at once.
const EVENTS_MAX: usize = 64;
/// Token of the wake-up descriptor.
const WAKE: u64 = 0;

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Output for attached clients.
pub type Piece = (Stream, Bytes);

/// What to pump.
#[derive(Clone, Debug)]
pub struct Source {
    /// FIFO of standard output.
    pub stdout: PathBuf,
    /// FIFO of standard error; none with a terminal.
    pub stderr: Option<PathBuf>,
    /// Log file; without it output is only shown to attached clients.
    pub log: Option<PathBuf>,
    /// Rotation.
    pub limits: LogLimits,
}

enum Command {
    Add(
        String,
        Vec<(Stream, File)>,
        Option<LogFile>,
        broadcast::Sender<Piece>,
    ),
    Finish(String, oneshot::Sender<()>),
    Reopen(String, oneshot::Sender<io::Result<()>>),
}

/// Handle of the pump thread. Dropping it ends the thread; FIFOs keep what is in them.
#[derive(Debug)]
pub struct Pump {
    commands: Mutex<Option<Sender<Command>>>,
    wake: Arc<EventFd>,
    fans: Mutex<HashMap<String, broadcast::Sender<Piece>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Pump {
    /// Starts the thread.
    pub fn start(clock: Arc<dyn Clock>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (commands, received) = channel();
        let worker = Worker::new(received, wake.clone(), clock)?;
        let thread = std::thread::Builder::new()
            .name("log-pump".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            commands: Mutex::new(Some(commands)),
            wake,
            fans: Mutex::default(),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Opens the FIFOs and the log and begins. Does nothing when the container is pumped already.
    pub fn add(&self, id: &str, source: &Source) -> io::Result<()> {
        let mut fans = self.fans.lock();
        if fans.contains_key(id) {
            return Ok(());
        }
        let mut streams = vec![(Stream::Stdout, open_fifo(&source.stdout)?)];
        if let Some(stderr) = &source.stderr {
            streams.push((Stream::Stderr, open_fifo(stderr)?));
        }
        let log = match &source.log {
            Some(path) => Some(LogFile::open(path, source.limits).map_err(|error| at(path, error))?),
            None => None,
        };
        let (fan, _) = broadcast::channel(ATTACH_PIECES_MAX);
        fans.insert(id.to_owned(), fan.clone());
        self.send(Command::Add(id.to_owned(), streams, log, fan));
        Ok(())
    }

    /// Takes everything out of the FIFOs and closes them. Call it when nothing writes any more.
    pub async fn finish(&self, id: &str) {
        if !self.fans.lock().contains_key(id) {
            return;
        }
        let (done, finished) = oneshot::channel();
        self.send(Command::Finish(id.to_owned(), done));
        let _ = finished.await;
        self.fans.lock().remove(id);
    }

    /// Opens the log file again.
    pub async fn reopen(&self, id: &str) -> io::Result<()> {
        let (done, finished) = oneshot::channel();
        self.send(Command::Reopen(id.to_owned(), done));
        finished
            .await
            .unwrap_or_else(|_| Err(io::Error::other("log pump ended")))
    }

    /// Output from now on; `None` when the container is not pumped.
    pub fn subscribe(&self, id: &str) -> Option<broadcast::Receiver<Piece>> {
        self.fans.lock().get(id).map(broadcast::Sender::subscribe)
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &*self.commands.lock() {
            let _ = commands.send(command);
        }
        let _ = self.wake.write(1);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.commands.lock().take();
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn open_fifo(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| at(path, error))
}

struct Pumped {
    log: Option<LogFile>,
    fan: broadcast::Sender<Piece>,
    tokens: Vec<u64>,
    dropped: u64,
}

struct Input {
    id: String,
    stream: Stream,
    fifo: File,
    /// How much of the unfinished line in the FIFO was shown to attached clients already.
    shown: usize,
    /// An unfinished line waits since this moment.
    waiting_since: Option<std::time::Instant>,
}

struct Worker {
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    clock: Arc<dyn Clock>,
    epoll: Epoll,
    containers: HashMap<String, Pumped>,
    inputs: HashMap<u64, Input>,
    /// Streams whose turn ended before they were empty.
    ready: Vec<u64>,
    next_token: u64,
    scratch: (OwnedFd, OwnedFd),
    look: Vec<u8>,
    records: Vec<u8>,
}

/// State of a FIFO after a turn.
#[derive(PartialEq, Eq)]
enum Turn {
    Empty,
    More,
}

impl Worker {
    fn new(commands: Receiver<Command>, wake: Arc<EventFd>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let (reader, writer) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
        Ok(Self {
            commands,
            wake,
            clock,
            epoll,
            containers: HashMap::new(),
            inputs: HashMap::new(),
            ready: Vec::new(),
            next_token: WAKE + 1,
            scratch: (reader, writer),
            look: Vec::new(),
            records: Vec::new(),
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!(%errno, "log pump cannot wait for output, it ends");
                    return;
                }
            };
            let mut turn: Vec<u64> = std::mem::take(&mut self.ready);
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        let _ = self.wake.read();
                    }
                    token if !turn.contains(&token) => turn.push(token),
                    _ => {}
                }
            }
            for token in turn {
                if self.pump(token, false, TURN_MAX_STEPS) == Turn::More {
                    self.ready.push(token);
                }
            }
            self.flush_partials();
            loop {
                use std::sync::mpsc::TryRecvError;
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        if !self.ready.is_empty() {
            return EpollTimeout::ZERO;
        }
        let now = self.clock.monotonic();
        let due = |since: std::time::Instant| (since + PARTIAL_MAX_AGE).saturating_duration_since(now);
        let next = self
            .inputs
            .values()
            .filter_map(|input| input.waiting_since)
            .map(due)
            .min();
        match next {
            // One millisecond more, so that the deadline is past when the wait ends.
            Some(wait) => {
                EpollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(EpollTimeout::NONE)
            }
            None => EpollTimeout::NONE,
        }
    }

    fn flush_partials(&mut self) {
        let now = self.clock.monotonic();
        let old = |input: &Input| {
            input
                .waiting_since
                .is_some_and(|since| now.duration_since(since) >= PARTIAL_MAX_AGE)
        };
        let due: Vec<u64> = self
            .inputs
            .iter()
            .filter(|(_, input)| old(input))
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.pump(token, true, TURN_MAX_STEPS);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(id, streams, log, fan) => {
                let mut tokens = Vec::new();
                for (stream, fifo) in streams {
                    let token = self.next_token;
                    self.next_token += 1;
                    let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token);
                    if let Err(errno) = self.epoll.add(&fifo, event) {
                        tracing::error!(container = %id, %errno, "cannot watch a container's output");
                        continue;
                    }
                    let input = Input {
                        id: id.clone(),
                        stream,
                        fifo,
                        shown: 0,
                        waiting_since: None,
                    };
                    self.inputs.insert(token, input);
                    tokens.push(token);
                    // What was written before the watch began does not make an event on its own.
                    self.ready.push(token);
                }
                self.containers.insert(
                    id,
                    Pumped {
                        log,
                        fan,
                        tokens,
                        dropped: 0,
                    },
                );
            }
            Command::Finish(id, done) => {
                let tokens = self
                    .containers
                    .get(&id)
                    .map(|pumped| pumped.tokens.clone())
                    .unwrap_or_default();
                for token in tokens {
                    while self.pump(token, true, TURN_MAX_STEPS) == Turn::More {}
                    if let Some(input) = self.inputs.remove(&token) {
                        let _ = self.epoll.delete(&input.fifo);
                    }
                    self.ready.retain(|other| *other != token);
                }
                if let Some(pumped) = self.containers.remove(&id)
                    && pumped.dropped > 0
                {
                    tracing::warn!(container = %id, bytes = pumped.dropped, "log output was dropped");
                }
                let _ = done.send(());
            }
            Command::Reopen(id, done) => {
                let log = self
                    .containers
                    .get_mut(&id)
                    .and_then(|pumped| pumped.log.as_mut());
                let _ = done.send(log.map_or(Ok(()), LogFile::reopen));
            }
        }
    }

    /// Moves what is in a FIFO, at most `steps` times a pipe full.
    fn pump(&mut self, token: u64, flush: bool, steps: usize) -> Turn {
        let Some(input) = self.inputs.get_mut(&token) else {
            return Turn::Empty;
        };
        let Some(pumped) = self.containers.get_mut(&input.id) else {
            return Turn::Empty;
        };
        for _ in 0..steps {
            let seen = match look(&input.fifo, &self.scratch, &mut self.look) {
                Ok(0) => {
                    input.waiting_since = None;
                    return Turn::Empty;
                }
                Ok(seen) => seen,
                Err(error) => {
                    tracing::error!(container = %input.id, %error, "cannot read a container's output");
                    return Turn::Empty;
                }
            };
            let data = &self.look[..seen];
            if seen > input.shown && pumped.fan.receiver_count() > 0 {
                let fresh = Bytes::copy_from_slice(&data[input.shown..]);
                let _ = pumped.fan.send((input.stream, fresh));
            }
            self.records.clear();
            let time = super::rfc3339(self.clock.now());
            let taken = log::format(data, &time, input.stream.name(), flush, &mut self.records);
            if taken == 0 {
                input.shown = seen;
                input.waiting_since.get_or_insert_with(|| self.clock.monotonic());
                return Turn::Empty;
            }
            if let Some(log) = &mut pumped.log
                && let Err(error) = log.append(&self.records)
            {
                if pumped.dropped == 0 {
                    tracing::warn!(container = %input.id, %error, "cannot write a container's log, dropping output");
                }
                pumped.dropped += taken as u64;
            }
            if let Err(error) = input.fifo.read_exact(&mut self.look[..taken]) {
                tracing::error!(container = %input.id, %error, "cannot take a container's output");
                return Turn::Empty;
            }
            input.shown = seen - taken;
            input.waiting_since = None;
        }
        Turn::More
    }
}

/// Copies what is in the FIFO into `buffer` without taking it out; 0 when there is nothing now.
fn look(fifo: &File, scratch: &(OwnedFd, OwnedFd), buffer: &mut Vec<u8>) -> io::Result<usize> {
    // SAFETY: both descriptors are open pipes; the result is checked.
    let copied = unsafe {
        libc::tee(
            fifo.as_raw_fd(),
            scratch.1.as_raw_fd(),
            STEP_MAX_BYTES,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    if copied < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
            _ => Err(error),
        };
    }
    let copied = copied as usize;
    buffer.resize(copied.max(buffer.len()), 0);
    let mut filled = 0;
    while filled < copied {
        match nix::unistd::read(scratch.0.as_fd(), &mut buffer[filled..copied]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn fifo(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        nix::unistd::mkfifo(
            &path,
            nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
        )
        .unwrap();
        path
    }

    /// Holds both ends, as the shim does.
    fn hold(path: &Path) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .unwrap()
    }

    fn texts(log: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    fn source(stdout: &Path, log: &Path) -> Source {
        let (stdout, log) = (stdout.to_path_buf(), Some(log.to_path_buf()));
        Source {
            stdout,
            stderr: None,
            log,
            limits: LogLimits::default(),
        }
    }

    #[tokio::test]
    async fn a_restart_loses_nothing_and_an_unfinished_line_survives_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (fifo(folder.path(), "out"), folder.path().join("0.log"));
        let mut shim = hold(&path);
        let clock = skiff_base::clock::system();
        let pump = Pump::start(clock.clone()).unwrap();
        pump.add("c", &source(&path, &log)).unwrap();
        let mut attached = pump.subscribe("c").unwrap();
        shim.write_all(b"one\ntw").unwrap();
        assert_eq!(attached.recv().await.unwrap().1, &b"one\ntw"[..]);
        drop(pump); // skiff goes
        shim.write_all(b"o\nthree\n").unwrap(); // the container goes on
        let pump = Pump::start(clock).unwrap(); // skiff is back
        pump.add("c", &source(&path, &log)).unwrap();
        pump.finish("c").await;
        assert_eq!(texts(&log), ["stdout F one", "stdout F two", "stdout F three"]);
    }

    #[tokio::test]
    async fn more_than_a_pipe_full_arrives_in_order_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (fifo(folder.path(), "out"), folder.path().join("0.log"));
        let shim = hold(&path);
        let pump = Pump::start(skiff_base::clock::system()).unwrap();
        pump.add("c", &source(&path, &log)).unwrap();
        let writer = path.clone();
        tokio::task::spawn_blocking(move || {
            let mut out = OpenOptions::new().write(true).open(writer).unwrap();
            for number in 0..50_000 {
                writeln!(out, "line {number}").unwrap();
            }
        })
        .await
        .unwrap();
        pump.finish("c").await;
        drop(shim);
        let lines = texts(&log);
        assert_eq!(lines.len(), 50_000);
        assert!(
            lines
                .iter()
                .enumerate()
                .all(|(number, line)| *line == format!("stdout F line {number}"))
        );
    }

    #[tokio::test]
    async fn a_prompt_is_logged_as_a_part_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = (fifo(folder.path(), "out"), folder.path().join("0.log"));
        let mut shim = hold(&path);
        let clock = skiff_base::clock::ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
        let pump = Pump::start(clock.clone()).unwrap();
        pump.add("c", &source(&path, &log)).unwrap();
        let mut attached = pump.subscribe("c").unwrap();
        shim.write_all(b"password: ").unwrap();
        attached.recv().await.unwrap();
        assert_eq!(texts(&log), Vec::<String>::new());
        clock.advance(PARTIAL_MAX_AGE);
        pump.reopen("c").await.unwrap(); // two turns of the loop: the first one may have begun before
        pump.reopen("c").await.unwrap();
        assert_eq!(texts(&log), ["stdout P password: "]);
        shim.write_all(b"secret\n").unwrap();
        pump.finish("c").await;
        assert_eq!(texts(&log), ["stdout P password: ", "stdout F secret"]);
    }
}
