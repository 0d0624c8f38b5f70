//! Network namespaces: open, make, pin, remove, and run code inside.
//!
//! `setns(2)` moves one thread, so code that must run inside a namespace gets a thread of its own that ends with it:
//! no worker of a shared pool ever changes its namespace.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::Error;

/// The namespace of the calling thread, as a file.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives at least as long as this value. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NetNs {
    path: PathBuf,
    file: Arc<File>,
}

impl NetNs {
    /// Opens a pinned namespace (`/run/netns/x`) or one of a process (`/proc/N/ns/net`).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| failed("open", path, source))?;
        // SAFETY: the descriptor is open for the whole call and the request takes no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the file is not a network namespace");
            return Err(failed("open", path, source));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN)
    }

    /// Makes a new, empty namespace and pins it to a file by a bind mount. The file must not exist.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let fail = |source| failed("create", path, source);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(fail)?;
        let pinned = on_thread(path, || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            nix::mount::mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })?;
        if let Err(errno) = pinned {
            let _ = std::fs::remove_file(path);
            return Err(fail(errno.into()));
        }
        Self::open(path)
    }

    /// Unpins a namespace and removes its file; nothing to do when it is gone. The kernel frees the namespace, with
    /// every link in it, when the last process and handle leave it.
    pub fn remove(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(failed("unmount", path, errno.into())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
            _ => Ok(()),
        }
    }

    /// The file this namespace was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same namespace of the kernel.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.file.metadata(), other.file.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn enter(&self) -> Result<(), Error> {
        nix::sched::setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| failed("enter", &self.path, errno.into()))
    }

    /// Runs a closure on a thread inside the namespace and waits for it. Meant for a few system calls.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(&self.path, || self.enter().map(|()| work()))?
    }

    /// Runs a future on a thread inside the namespace, with a single-threaded runtime of its own: everything it
    /// opens and spawns belongs to the namespace. Dropping the returned future does not stop the thread.
    pub async fn run_async<F, T>(&self, work: impl FnOnce() -> F + Send + 'static) -> Result<T, Error>
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let (done, result) = tokio::sync::oneshot::channel();
        let namespace = self.clone();
        std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let run = || {
                    namespace.enter()?;
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .map_err(|source| failed("enter", &namespace.path, source))?;
                    Ok(runtime.block_on(work()))
                };
                // The receiver may be gone: then nobody wants the result.
                let _ = done.send(run());
            })
            .map_err(|source| failed("enter", &self.path, source))?;
        result.await.unwrap_or_else(|_| {
            Err(Error::ThreadDied {
                path: self.path.clone(),
            })
        })
    }
}

/// `NS_GET_NSTYPE` of linux/nsfs.h: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

fn on_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|source| failed("enter", path, source))?
            .join()
            .map_err(|_| Error::ThreadDied {
                path: path.to_owned(),
            })
    })
}

fn failed(verb: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Namespace {
        verb,
        path: path.to_owned(),
        source,
    }
}
