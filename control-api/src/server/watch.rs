//! Waits until something changes in a directory.
//!
//! Used by [`Directory`](super::Directory). What comes in several steps (an editor's way to write, a ConfigMap's links
//! that are swapped) is waited for until it is over. A directory that is replaced by another one, as when the link to it
//! is changed, is followed.

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// How long nothing must happen after a change.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never comes to rest is read this often.
const MOST: Duration = Duration::from_millis(500);
/// How often it is looked whether the directory is still the same one.
const LOOK: Duration = Duration::from_millis(500);

/// Device, inode, and when that was made: inodes are used again.
type Identity = (u64, u64, Option<SystemTime>);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Watch {
    events: mpsc::UnboundedReceiver<()>,
    /// Watches for as long as it is there.
    _watcher: RecommendedWatcher,
    mode: RecursiveMode,
    /// Which directory is watched, unless it is gone.
    watched: Option<Identity>,
}

impl Watch {
    /// Watches the directory `root`, and all below it.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn start(root: &Path) -> io::Result<Self> {
        Self::with(root, RecursiveMode::Recursive)
    }

    /// Watches the directory `root`, and nothing below it.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn flat(root: &Path) -> io::Result<Self> {
        Self::with(root, RecursiveMode::NonRecursive)
    }

    fn with(root: &Path, mode: RecursiveMode) -> io::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        // After an error, events may be missing: that is a reason to look as well.
        let tell = move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = sender.send(());
            }
        };
        let watched = identity(root);
        let mut watcher = notify::recommended_watcher(tell).map_err(io::Error::other)?;
        watcher.watch(root, mode).map_err(io::Error::other)?;
        Ok(Self { events, _watcher: watcher, mode, watched })
    }

    /// Waits for a change in `root`, or, if it `is_lost`, for a while.
    pub async fn change(&mut self, root: &Path, is_lost: bool) {
        loop {
            if timeout(LOOK, self.events.recv()).await.is_ok_and(|event| event.is_some()) {
                break;
            }
            let is_same = self.watched.is_some() && identity(root) == self.watched && !self.events.is_closed();
            if !is_same {
                match Self::with(root, self.mode) {
                    Ok(other) => *self = other,
                    Err(_) => {
                        self.watched = None;
                        sleep(LOOK).await;
                    }
                }
            }
            if !is_same || is_lost {
                return;
            }
        }
        let rest = async { while timeout(QUIET, self.events.recv()).await.is_ok_and(|event| event.is_some()) {} };
        let _ = timeout(MOST, rest).await;
        while self.events.try_recv().is_ok() {}
    }
}

fn identity(root: &Path) -> Option<Identity> {
    fs::metadata(root).ok().map(|directory| (directory.dev(), directory.ino(), directory.created().ok()))
}
