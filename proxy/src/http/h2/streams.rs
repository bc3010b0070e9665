//! The streams of a connection: a record for each, kept for the next one when it ends, and found by id.
//!
//! Invariant: a record lives for as long as anybody refers to it or its stream has something to say or hear; its key names
//! no other stream until then.

use super::frame::Code;
use crate::http::ResponseHead;
use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use http::HeaderMap;
use std::{
    collections::VecDeque,
    ops::{Index, IndexMut},
    task::{Context, Waker},
};

/// Records that an idle connection keeps.
const KEPT: usize = 4;

/// Whom to wake.
#[derive(Default)]
pub(super) struct Wait(Option<Waker>);

impl Wait {
    pub fn set(&mut self, cx: &Context<'_>) {
        match &mut self.0 {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    pub fn wake(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// How a stream ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// We reset it.
    Local,
    /// The peer reset it.
    Remote(Code),
    /// The peer broke HTTP's rules on it.
    Messaging,
    /// The peer's head is more than we take.
    TooLarge,
    /// The peer's GOAWAY says that it did nothing with it.
    Refused,
}

/// What the peer may still send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReceiveWindow {
    size: u32,
    left: i64,
    /// Handed on, but not yet told to the peer.
    owed: u32,
}

impl ReceiveWindow {
    pub fn new(size: u32) -> Self {
        Self { size, left: size.into(), owed: 0 }
    }

    /// Counts data; false if the peer sent more than it may.
    pub fn received(&mut self, n: usize) -> bool {
        self.left -= n as i64;
        self.left >= 0
    }

    /// Counts data that were handed on. What the peer is to be told, once it is worth a frame: half of the window.
    pub fn release(&mut self, n: usize) -> Option<u32> {
        self.owed += n as u32;
        if self.owed == 0 || self.owed < self.size / 2 {
            return None;
        }
        self.left += i64::from(self.owed);
        Some(std::mem::take(&mut self.owed))
    }
}

/// One stream.
#[derive(Default)]
pub(super) struct Stream {
    /// 0 until it has one.
    pub id: u32,
    /// Those who hold its key.
    pub refs: u8,
    /// It counts as open.
    pub counted: bool,
    pub over: Option<Over>,

    /// Our head is out, or with `end_sent` everything.
    pub head_sent: bool,
    pub end_sent: bool,
    /// Everything of ours was given to the stream.
    pub end_queued: bool,
    pub window: i64,
    pub unsent: VecDeque<Bytes>,
    pub unsent_bytes: usize,
    pub trailers: Option<Box<HeaderMap>>,
    /// It stands in the row of those who have something to send.
    pub in_row: bool,
    /// Comes after what is unsent.
    pub reset_after: Option<Code>,
    /// The level of unsent bytes that `sender` waits for.
    pub level: usize,

    pub got_head: bool,
    pub got_end: bool,
    /// What `content-length` promises, less what came.
    pub promised: Option<u64>,
    pub receive: ReceiveWindow,
    pub received: VecDeque<Bytes>,
    /// Nobody reads what comes.
    pub unwanted: bool,
    /// Bytes that came and were not handed on.
    pub unread: usize,
    pub got_trailers: Option<Box<HeaderMap>>,

    /// A client's: what came before the body, and what the request was like.
    pub informational: VecDeque<ResponseHead>,
    pub response: Option<ResponseHead>,
    pub is_head_request: bool,
    /// The head of a request that waits for its turn, and whether it is all.
    pub waits: Option<Box<(crate::http::RequestHead, bool)>>,

    pub sender: Wait,
    pub receiver: Wait,
    pub watcher: Wait,
}

impl Stream {
    /// True if nothing passes any more in either direction.
    pub fn is_closed(&self) -> bool {
        self.over.is_some() || (self.end_sent && self.got_end)
    }

    pub fn wake_all(&mut self) {
        self.sender.wake();
        self.receiver.wake();
        self.watcher.wake();
    }

    /// Drops what was to be sent, and lets the sender go on.
    pub fn drop_unsent(&mut self) {
        self.unsent.clear();
        self.unsent_bytes = 0;
        self.trailers = None;
        self.waits = None;
    }
}

/// All records of a connection.
pub(super) struct Streams {
    records: Vec<Stream>,
    free: Vec<u32>,
    ids: HashMap<u32, u32>,
}

impl Streams {
    pub fn new() -> Self {
        Self { records: Vec::new(), free: Vec::new(), ids: HashMap::new() }
    }

    /// A new record; its key.
    pub fn insert(&mut self) -> u32 {
        if let Some(key) = self.free.pop() {
            return key;
        }
        self.records.push(Stream::default());
        self.records.len() as u32 - 1
    }

    /// Gives the record its stream's id.
    pub fn name(&mut self, key: u32, id: u32) {
        self[key].id = id;
        self.ids.insert(id, key);
    }

    pub fn find(&self, id: u32) -> Option<u32> {
        self.ids.get(&id).copied()
    }

    /// Frees a record; its queues stay with it for the next stream.
    pub fn remove(&mut self, key: u32) {
        let stream = &mut self[key];
        let id = stream.id;
        let (mut unsent, mut received) = (std::mem::take(&mut stream.unsent), std::mem::take(&mut stream.received));
        let mut informational = std::mem::take(&mut stream.informational);
        unsent.clear();
        received.clear();
        informational.clear();
        *stream = Stream { unsent, received, informational, ..Stream::default() };
        if id != 0 {
            self.ids.remove(&id);
        }
        self.free.push(key);
    }

    /// Keys of all streams, in no order.
    pub fn keys(&self) -> Vec<u32> {
        let free = |key: &u32| self[*key].refs == 0 && self[*key].id == 0;
        (0..self.records.len() as u32).filter(|key| !free(key)).collect()
    }

    /// True if there is no record.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.records.len()
    }

    /// Gives back memory that is not in use.
    pub fn rest(&mut self) {
        if self.is_empty() && self.records.len() > KEPT {
            *self = Self::new();
        }
    }
}

impl Index<u32> for Streams {
    type Output = Stream;

    fn index(&self, key: u32) -> &Stream {
        &self.records[key as usize]
    }
}

impl IndexMut<u32> for Streams {
    fn index_mut(&mut self, key: u32) -> &mut Stream {
        &mut self.records[key as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_by_halves() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.received(60) && window.received(40) && !window.received(1));
        let mut window = ReceiveWindow::new(100);
        assert!(window.received(100));
        assert_eq!([window.release(49), window.release(1), window.release(49)], [None, Some(50), None]);
        assert!(window.received(50) && !window.received(1));
    }

    #[test]
    fn records_are_used_again() {
        let mut streams = Streams::new();
        let first = streams.insert();
        streams.name(first, 1);
        assert_eq!((streams.find(1), streams.keys().len()), (Some(first), 1));
        streams[first].got_end = true;
        streams.remove(first);
        assert!(streams.is_empty() && streams.find(1).is_none());
        assert_eq!(streams.insert(), first);
        assert!(!streams[first].got_end);
    }
}
