//! Waiting for log files to change: one inotify instance for all followers of a node (a machine has few of them), with
//! a watch per folder that is shared by the followers of its container.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Weak};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

type Watches = HashMap<WatchDescriptor, (watch::Sender<()>, usize)>;

/// With the descriptor readiness is asked of.
struct Instance(Inotify);

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Hub {
    inotify: Arc<AsyncFd<Instance>>,
    watches: Arc<Mutex<Watches>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches folders. Nothing is open while nobody follows.
#[derive(Default)]
pub struct Watcher {
    hub: Mutex<Weak<Hub>>,
}

/// A watched folder.
pub struct Watch {
    hub: Arc<Hub>,
    id: WatchDescriptor,
    changed: watch::Receiver<()>,
}

impl Watcher {
    /// Begins to watch a folder.
    pub fn watch(&self, folder: &Path) -> io::Result<Watch> {
        let mut slot = self.hub.lock();
        let hub = match slot.upgrade() {
            Some(hub) => hub,
            None => {
                let hub = Arc::new(Hub::start()?);
                *slot = Arc::downgrade(&hub);
                hub
            }
        };
        drop(slot);
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        let mut watches = hub.watches.lock();
        let id = hub.inotify.get_ref().0.add_watch(folder, flags)?;
        let (sender, users) = watches.entry(id).or_insert_with(|| (watch::channel(()).0, 0));
        *users += 1;
        let changed = sender.subscribe();
        drop(watches);
        Ok(Watch { hub, id, changed })
    }
}

impl Hub {
    fn start() -> io::Result<Hub> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the instance owns its descriptor, which does not change and is closed only with it.
        let inotify = Arc::new(unsafe { AsyncFd::register(Instance(inotify)) }?);
        let watches: Arc<Mutex<Watches>> = Arc::default();
        let task = tokio::spawn(read(inotify.clone(), watches.clone())).abort_handle();
        Ok(Hub {
            inotify,
            watches,
            task,
        })
    }
}

async fn read(inotify: Arc<AsyncFd<Instance>>, watches: Arc<Mutex<Watches>>) {
    loop {
        let Ok(mut ready) = inotify.readable().await else {
            return;
        };
        match inotify.get_ref().0.read_events() {
            Ok(events) => {
                let watches = watches.lock();
                // What the kernel had no room for may have concerned anyone.
                let lost = events
                    .iter()
                    .any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
                if lost {
                    watches.values().for_each(|(sender, _)| sender.send_replace(()));
                    continue;
                }
                for event in &events {
                    if let Some((sender, _)) = watches.get(&event.wd) {
                        sender.send_replace(());
                    }
                }
            }
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "log files cannot be watched any more");
                // Every follower sees its watch end and gives up.
                watches.lock().clear();
                return;
            }
        }
    }
}

impl Watch {
    /// Waits for a change since the last call; false when there will be no more news.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.hub.watches.lock();
        if let Some((_, users)) = watches.get_mut(&self.id) {
            *users -= 1;
            if *users == 0 {
                watches.remove(&self.id);
                // Fails when the folder is gone, and the watch with it.
                let _ = self.hub.inotify.get_ref().0.rm_watch(self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_of_one_folder_share_a_watch() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let watcher = Watcher::default();
        let mut first = watcher.watch(folders[0].path()).unwrap();
        let second = watcher.watch(folders[0].path()).unwrap();
        let mut other = watcher.watch(folders[1].path()).unwrap();
        assert_eq!(first.id, second.id);
        drop(second);
        std::fs::write(folders[0].path().join("0.log"), "x").unwrap();
        assert!(first.changed().await);
        std::fs::rename(folders[0].path().join("0.log"), folders[1].path().join("0.log")).unwrap();
        assert!(other.changed().await);
        drop((first, other));
        assert!(watcher.hub.lock().upgrade().is_none(), "nothing stays open");
    }

    #[tokio::test]
    async fn a_missing_folder_is_an_error() {
        assert!(
            Watcher::default()
                .watch(Path::new("/nonexistent/folder"))
                .is_err()
        );
    }
}
