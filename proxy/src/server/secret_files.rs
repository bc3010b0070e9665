//! Files that secrets and validation contexts are read from: read again when they are moved into place.
//!
//! Follows the store: the directories that it names are watched, no others. What is no good is counted, and changes nothing.

use super::{
    control::Control,
    file_watch::{self, Watch},
};
use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc};
use tokio::sync::Notify;

/// The watches of all directories that hold such files.
#[derive(Default)]
pub struct SecretFiles {
    watches: RefCell<BTreeMap<String, Option<Watch>>>,
    moved: Rc<Notify>,
}

impl SecretFiles {
    /// Watches what the store says has to be watched.
    pub fn follow(&self, control: &Control) {
        let Some(wanted) = control.store.borrow_mut().watched_directories() else { return };
        let mut watches = self.watches.borrow_mut();
        watches.retain(|directory, _| wanted.contains(directory));
        for directory in wanted {
            let start = |directory: &String| file_watch::watch_moves(Path::new(directory), self.moved.clone());
            watches.entry(directory).or_insert_with_key(start);
        }
    }

    /// Reads files again whenever some are moved.
    pub async fn run(control: Rc<Control>) {
        let moved = control.secret_files.moved.clone();
        loop {
            moved.notified().await;
            let failed = control.store.borrow_mut().reload_files();
            for (name, problems) in failed {
                let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::warn!(target: "config", "the files of secret {name:?} are not taken: {text}");
                control.xds.secret_stats(&control, &name).key_rotation_failed.inc();
            }
            control.settle();
        }
    }
}
