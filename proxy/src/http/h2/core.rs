//! The state of a connection, without I/O: what came goes in through [`Core::receive`], what is to be written collects in
//! [`Core::out`], and streams are spoken for by their keys.
//!
//! `receive.rs` and `send.rs` are the two directions; here is what they share: how streams and the connection begin and
//! end. Invariants: nothing here calls anything but wakers; a stream that is closed has no unsent data; windows
//! are never exceeded in either direction.

use super::{
    budget::Budget,
    error,
    frame::{self, Code, FIRST_WINDOW, PREFACE, kind},
    hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder},
    options::Http2Options,
    output::Output,
    receive::Input,
    stats::Http2Stats,
    streams::{Over, ReceiveWindow, Streams},
};
use crate::base::{ResetReason, Side, StreamError};
use std::{collections::VecDeque, sync::Arc};

/// How many streams that the peer ended are remembered.
const REMEMBERED: usize = 32;

pub(super) struct Core {
    pub client: bool,
    pub stats: Arc<Http2Stats>,
    pub budget: Budget,
    /// Limits on heads: kilobytes, header lines.
    pub head_limits: (u32, u32),
    pub hpack_table_size: usize,
    pub max_streams: usize,
    pub stream_window: u32,

    pub out: Output,
    pub encoder: Encoder,
    pub streams: Streams,
    /// Streams that have data and a window for them, in their order of being served.
    pub row: VecDeque<u32>,
    /// Requests that wait until the peer takes another stream.
    pub waiting: VecDeque<u32>,
    pub window: i64,
    /// The peer's SETTINGS.
    pub peer_window: i64,
    pub peer_streams: usize,

    pub input: Input,
    pub decoder: Decoder,
    pub receive_window: ReceiveWindow,
    /// A server's: the last stream that was begun. A client's: the next one.
    pub last: u32,
    /// The first stream of the client's, and whether ids were left out after it.
    pub first: u32,
    pub skipped: bool,
    /// Streams that count as open.
    pub open: usize,
    remembered: [u32; REMEMBERED],
    remember_at: usize,

    /// The last stream that the peer's GOAWAY names.
    pub goaway: Option<u32>,
    /// The last stream that ours names.
    pub goaway_sent: Option<u32>,
    pub settings_acked: bool,
    /// Frames that came.
    pub frames: u64,
    /// What the last answer to a PING carried.
    pub pong: Option<[u8; 8]>,
    pub too_many_resets: bool,
    closed: Option<(ResetReason, &'static str)>,
    /// Nothing is read or written any more.
    killed: bool,
}

/// What is left of a stream when someone let go of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Left {
    Held,
    /// Nobody holds it, and it is still under way: it is to be given up.
    UnderWay,
    Nothing,
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fatal {
    /// By a GOAWAY with this code.
    Error(Code),
    /// At once. [`Core::closed`] says why.
    Killed,
}

impl Core {
    pub fn new(client: bool, options: &Http2Options, head_limits: (u32, u32), stats: Arc<Http2Stats>) -> Self {
        let mut core = Self {
            client,
            stats,
            budget: Budget::new(options),
            head_limits,
            hpack_table_size: options.hpack_table_size as usize,
            max_streams: options.max_concurrent_streams as usize,
            stream_window: options.initial_stream_window_size,
            out: Output::default(),
            encoder: Encoder::default(),
            streams: Streams::new(),
            row: VecDeque::new(),
            waiting: VecDeque::new(),
            window: FIRST_WINDOW.into(),
            peer_window: FIRST_WINDOW.into(),
            peer_streams: if client { options.max_concurrent_streams as usize } else { 0 },
            input: Input::new(client),
            decoder: Decoder::new(options.hpack_table_size as usize),
            receive_window: ReceiveWindow::new(options.initial_connection_window_size.max(FIRST_WINDOW)),
            last: u32::from(client),
            first: 0,
            skipped: false,
            open: 0,
            remembered: [0; REMEMBERED],
            remember_at: 0,
            goaway: None,
            goaway_sent: None,
            settings_acked: false,
            frames: 0,
            pong: None,
            too_many_resets: false,
            closed: None,
            killed: false,
        };
        if client {
            core.out.buf().extend_from_slice(PREFACE);
        }
        frame::put_settings(core.out.buf(), &options.settings(client));
        core.out.frame(true);
        let more = options.initial_connection_window_size.saturating_sub(FIRST_WINDOW);
        if more > 0 {
            frame::put_number(core.out.buf(), kind::WINDOW_UPDATE, 0, more);
            core.out.frame(false);
        }
        core
    }

    pub fn side(&self) -> Side {
        if self.client { Side::Upstream } else { Side::Downstream }
    }

    /// Ends the connection: nothing more is read or written. Streams get `reason`.
    pub fn kill(&mut self, reason: ResetReason, details: &'static str) -> Fatal {
        self.close(reason, details);
        self.killed = true;
        self.out.clear();
        Fatal::Killed
    }

    pub fn is_killed(&self) -> bool {
        self.killed
    }

    /// Notes why the connection ended, unless that is known already, and tells all streams.
    pub fn close(&mut self, reason: ResetReason, details: &'static str) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some((reason, details));
        self.row.clear();
        self.waiting.clear();
        for key in self.streams.keys() {
            let stream = &mut self.streams[key];
            stream.in_row = false;
            stream.drop_unsent();
            stream.wake_all();
            self.tidy(key);
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// What the end of the connection looks like to a stream, once it ended.
    pub fn closed(&self) -> Option<StreamError> {
        self.closed.map(|(reason, details)| StreamError::new(self.side(), reason, details))
    }

    /// Why a stream that is closed is so.
    pub fn error(&self, key: u32) -> Option<StreamError> {
        match self.streams[key].over {
            Some(over) => Some(error::stream_error(self.side(), over)),
            None => self.closed(),
        }
    }

    /// A record for a stream that has no id yet; `refs` are held on it.
    pub fn reserve(&mut self, refs: u8) -> u32 {
        let key = self.streams.insert();
        let stream = &mut self.streams[key];
        stream.refs = refs;
        stream.receive = ReceiveWindow::new(self.stream_window);
        stream.window = self.peer_window;
        key
    }

    /// The stream counts as open from now on.
    pub fn opened(&mut self, key: u32, id: u32) {
        self.streams.name(key, id);
        self.streams[key].counted = true;
        self.open += 1;
    }

    /// Someone let go of the key. What is left of the stream then.
    pub fn let_go(&mut self, key: u32) -> Left {
        let stream = &mut self.streams[key];
        stream.refs -= 1;
        if stream.refs > 0 {
            return Left::Held;
        }
        stream.sender = Default::default();
        stream.receiver = Default::default();
        stream.watcher = Default::default();
        let under_way = stream.id != 0 && !stream.is_closed() && self.closed.is_none();
        self.tidy(key);
        if under_way { Left::UnderWay } else { Left::Nothing }
    }

    /// What came of a stream and comes yet is not wanted.
    pub fn unwanted(&mut self, key: u32) {
        let stream = &mut self.streams[key];
        stream.unwanted = true;
        stream.received.clear();
        let unread = std::mem::take(&mut stream.unread);
        self.release_window(Some(key), unread);
    }

    /// Nobody wants what is still to come of a stream. What was given to it is still sent, if it is whole.
    pub fn abandon(&mut self, key: u32, code: Code) {
        let stream = &mut self.streams[key];
        if stream.end_queued && !stream.end_sent && stream.over.is_none() {
            stream.reset_after = Some(code);
        } else {
            self.reset(key, code, Over::Local);
        }
    }

    /// Resets a stream now.
    pub fn reset(&mut self, key: u32, code: Code, over: Over) {
        let stream = &mut self.streams[key];
        if stream.is_closed() || self.closed.is_some() {
            return;
        }
        if stream.id != 0 {
            let id = stream.id;
            self.put_reset(id, code);
        }
        self.ended(key, over);
    }

    /// Writes a reset, whatever is known of the stream.
    pub fn put_reset(&mut self, id: u32, code: Code) {
        frame::put_number(self.out.buf(), kind::RST_STREAM, id, code.0);
        self.out.frame(true);
        self.stats.tx_reset.inc();
    }

    /// A stream ended before its time.
    pub fn ended(&mut self, key: u32, over: Over) {
        let stream = &mut self.streams[key];
        if stream.is_closed() {
            return;
        }
        stream.over = Some(over);
        stream.drop_unsent();
        stream.wake_all();
        if matches!(over, Over::Remote(_)) {
            let id = stream.id;
            self.remember(id);
        }
        self.tidy(key);
    }

    /// Remembers a stream on which the peer may send nothing more.
    fn remember(&mut self, id: u32) {
        self.remembered[self.remember_at] = id;
        self.remember_at = (self.remember_at + 1) % REMEMBERED;
    }

    /// True if the peer ended this stream, not long ago.
    pub fn remembers(&self, id: u32) -> bool {
        self.remembered.contains(&id)
    }

    /// Counts a stream out when it is closed, and frees its record when nobody holds it.
    pub fn tidy(&mut self, key: u32) {
        let stream = &mut self.streams[key];
        let never_begun = stream.id == 0 && stream.refs == 0;
        if !(stream.is_closed() || self.closed.is_some() || never_begun) {
            return;
        }
        if std::mem::take(&mut stream.counted) {
            self.open -= 1;
        }
        if stream.in_row {
            stream.in_row = false;
            self.row.retain(|other| *other != key);
        }
        let stream = &mut self.streams[key];
        if stream.refs > 0 {
            return;
        }
        let (unread, got_end, id, over) = (stream.unread, stream.got_end, stream.id, stream.over);
        if id == 0 {
            self.waiting.retain(|other| *other != key);
        }
        self.streams.remove(key);
        if got_end && over.is_none() && id != 0 {
            self.remember(id);
        }
        self.release_connection(unread);
    }

    /// Ends the connection if the peer reads too little of what it makes us send.
    pub fn check_waiting(&mut self) -> Result<(), Fatal> {
        if self.budget.waiting(self.out.waiting(), &self.stats) {
            return Ok(());
        }
        Err(self.kill(ResetReason::ConnectionTermination, error::OUTBOUND_FLOOD))
    }

    /// Says that no stream after `last` will be served.
    pub fn put_goaway(&mut self, last: u32, code: Code) {
        self.goaway_sent = Some(last);
        frame::put_goaway(self.out.buf(), last, code);
        self.out.frame(false);
        self.stats.goaway_sent.inc();
    }

    /// Ends the connection with a GOAWAY, which is still to be written.
    pub fn fail(&mut self, code: Code, reason: ResetReason, details: &'static str) {
        if self.closed.is_none() {
            let last = if self.client { 0 } else { self.last };
            self.put_goaway(last, code);
            self.close(reason, details);
        }
    }

    /// Gives back what an idle connection does not need.
    pub fn rest(&mut self) {
        if self.streams.is_empty() {
            self.out.rest();
            self.streams.rest();
            self.decoder.rest();
            self.row = VecDeque::new();
            self.waiting = VecDeque::new();
        }
    }

    /// What the peer's SETTINGS say about HPACK's table; never more than the default is used.
    pub fn set_encoder_limit(&mut self, size: u32) {
        self.encoder.set_limit((size as usize).min(DEFAULT_TABLE_SIZE));
    }
}
