//! Connections within one worker: from a cluster with an internal address to the internal listener of that name.
//!
//! Listeners put themselves in, the upstream side connects; neither knows of the other.

use super::Io;
use crate::base::Address;
use foldhash::HashMap;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// What an internal listener does with a connection: its stream, its local and its remote address.
pub type Accept = Rc<dyn Fn(Io, Address, Address)>;

/// A worker's internal listeners.
pub struct Internals {
    /// Bytes that wait in each direction of a connection.
    buffer: Cell<usize>,
    listeners: RefCell<HashMap<Box<str>, Accept>>,
}

impl Default for Internals {
    fn default() -> Self {
        Self { buffer: Cell::new(1 << 20), listeners: RefCell::default() }
    }
}

impl Internals {
    /// Connections made from now on hold so many bytes in each direction.
    pub fn set_buffer(&self, bytes: usize) {
        self.buffer.set(bytes);
    }

    /// Connections to `name` go to `accept` from now on.
    pub fn listen(&self, name: &str, accept: Accept) {
        self.listeners.borrow_mut().insert(name.into(), accept);
    }

    /// `name` takes no more connections.
    pub fn close(&self, name: &str) {
        self.listeners.borrow_mut().remove(name);
    }

    /// A connection to the listener that `to` names; `None` if there is none.
    pub fn connect(&self, to: &Address) -> Option<Io> {
        let Address::Internal { listener, .. } = to else { return None };
        let accept = self.listeners.borrow().get(&**listener).cloned()?;
        let (here, there) = tokio::io::duplex(self.buffer.get());
        accept(Io::Boxed(Box::new(there)), to.clone(), client());
        Some(Io::Boxed(Box::new(here)))
    }
}

/// The address of the near end of every such connection.
pub fn client() -> Address {
    Address::Internal { listener: "internal_client_address".into(), endpoint_id: "".into() }
}
