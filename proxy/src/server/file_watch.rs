//! Tells the control thread that something changed in a directory: files renamed into place, symlinks swapped.

use super::task::Task;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{ModifyKind, RenameMode},
};
use std::{path::Path, rc::Rc};
use tokio::sync::{Notify, mpsc::unbounded_channel};

/// A watch; ends when it is dropped.
pub struct Watch {
    _watcher: RecommendedWatcher,
    _task: Task,
}

/// Watches a directory; `None` (with a line in the log) if that cannot be done.
pub fn watch(directory: &Path, changed: Rc<Notify>) -> Option<Watch> {
    start(directory, changed, |kind| !kind.is_access())
}

/// The same, for what is moved into the directory alone: files that are being written are nobody's business.
pub fn watch_moves(directory: &Path, changed: Rc<Notify>) -> Option<Watch> {
    let is_move = |kind: EventKind| {
        matches!(kind, EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both | RenameMode::Any)))
    };
    start(directory, changed, is_move)
}

fn start(directory: &Path, changed: Rc<Notify>, is_meant: fn(EventKind) -> bool) -> Option<Watch> {
    let (sender, mut receiver) = unbounded_channel();
    let tell = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_meant(event.kind)) {
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
    let task = Task::spawn(async move {
        while receiver.recv().await.is_some() {
            changed.notify_one();
        }
    });
    Some(Watch { _watcher: watcher, _task: task })
}
