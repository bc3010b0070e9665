//! Tells the control thread that something changed in a directory: files renamed into place, symlinks swapped.

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{path::Path, rc::Rc};
use tokio::{
    sync::{Notify, mpsc::unbounded_channel},
    task::JoinHandle,
};

/// A watch; ends when it is dropped.
pub struct Watch {
    _watcher: RecommendedWatcher,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches a directory; `None` (with a line in the log) if that cannot be done.
pub fn watch(directory: &Path, changed: Rc<Notify>) -> Option<Watch> {
    let (sender, mut receiver) = unbounded_channel();
    let tell = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.send(());
        }
    };
    let mut watcher = notify::recommended_watcher(tell)
        .map_err(|error| tracing::error!(target: "file", "cannot watch files: {error}"))
        .ok()?;
    watcher
        .watch(directory, RecursiveMode::NonRecursive)
        .map_err(|error| tracing::error!(target: "file", "cannot watch {}: {error}", directory.display()))
        .ok()?;
    let task = tokio::task::spawn_local(async move {
        while receiver.recv().await.is_some() {
            changed.notify_one();
        }
    });
    Some(Watch { _watcher: watcher, task })
}
