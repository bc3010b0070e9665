//! A task of the control thread that ends with whoever holds it.

use std::future::Future;
use tokio::task::JoinHandle;

/// Ends the task when it is dropped.
pub struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(task: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
