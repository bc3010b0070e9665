//! Two cores against each other without I/O, with everything that chance can decide decided by a seed; and one against
//! frames that mean nothing.

use super::{
    core::{Core, Fatal, Left},
    frame::{Code, FIRST_WINDOW, HEAD, PREFACE, flag, kind, put_head, put_number, put_settings},
    options::{Http2Options, ServerOptions},
    receive::Step,
    streams::Over,
};
use crate::http::{RequestHead, ResponseHead};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{collections::HashMap, sync::Arc};

fn options(random: &mut fastrand::Rng) -> Http2Options {
    Http2Options {
        initial_stream_window_size: FIRST_WINDOW + random.u32(..100_000),
        initial_connection_window_size: FIRST_WINDOW + random.u32(..100_000),
        hpack_table_size: random.u32(..5000),
        max_concurrent_streams: random.u32(1..30),
        ..Http2Options::default()
    }
}

/// Takes what waits to be written; the socket takes everything.
fn written(core: &mut Core) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        core.pump();
        assert!(core.window >= 0);
        if core.out.pending() == 0 {
            return all;
        }
        all.extend(core.out.take());
    }
}

/// One stream as both ends see it.
#[derive(Default)]
struct Pair {
    client: u32,
    server: Option<u32>,
    /// What is still to be sent, and what came, of the request and of the response.
    to_send: [usize; 2],
    sent: [usize; 2],
    got: [usize; 2],
    ended: [bool; 2],
    answered: bool,
    trailers: bool,
    over: bool,
}

struct World {
    random: fastrand::Rng,
    client: Core,
    server: Core,
    options: ServerOptions,
    /// On their way to the client, to the server.
    pipes: [Vec<u8>; 2],
    inputs: [BytesMut; 2],
    pairs: Vec<Pair>,
    by_id: HashMap<u32, usize>,
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (client, server) = (options(&mut random), options(&mut random));
        Self {
            client: Core::new(true, &client, (60, 100), Arc::default()),
            server: Core::new(false, &server, (60, 100), Arc::default()),
            options: ServerOptions { http2: server, ..Default::default() },
            random,
            pipes: Default::default(),
            inputs: Default::default(),
            pairs: Vec::new(),
            by_id: HashMap::new(),
        }
    }

    fn start(&mut self) {
        let key = self.client.reserve(1);
        let mut request = RequestHead::new(Method::POST, "/");
        request.scheme = Bytes::from_static(b"http");
        request.authority = Bytes::from_static(b"h");
        let number = HeaderValue::from(self.pairs.len());
        request.headers.insert("x-number", number);
        for i in 0..self.random.usize(..5) {
            let name = HeaderName::try_from(format!("x-{i}")).expect("a name");
            request.headers.insert(name, HeaderValue::from(self.random.u16(..4)));
        }
        let to_send = [self.random.usize(..150_000), self.random.usize(..150_000)];
        self.client.send_request(key, &request, to_send[0] == 0).expect("open");
        let trailers = self.random.bool();
        let mut pair = Pair { client: key, to_send, trailers, ..Pair::default() };
        pair.ended[1] = to_send[0] == 0;
        self.pairs.push(pair);
    }

    /// Sends a piece of one side's body.
    fn send(&mut self, i: usize, way: usize) {
        let pair = &mut self.pairs[i];
        let (core, key) =
            if way == 0 { (&mut self.client, Some(pair.client)) } else { (&mut self.server, pair.server) };
        let Some(key) = key.filter(|_| !pair.over && pair.sent[way] < pair.to_send[way]) else { return };
        if way == 1 && !pair.answered {
            pair.answered = true;
            core.send_response(key, &ResponseHead::new(StatusCode::OK), false, false).expect("open");
        }
        let n = self.random.usize(1..40_000).min(pair.to_send[way] - pair.sent[way]);
        let data: Vec<u8> = (pair.sent[way]..pair.sent[way] + n).map(pattern).collect();
        pair.sent[way] += n;
        let last = pair.sent[way] == pair.to_send[way];
        let trailers = last && pair.trailers;
        core.send_data(key, data.into(), last && !trailers).expect("open");
        if trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-t", HeaderValue::from_static("1"));
            core.send_trailers(key, trailers).expect("open");
        }
    }

    /// Reads a piece of one side's body, as its reader does.
    fn read(&mut self, i: usize, way: usize) {
        let pair = &mut self.pairs[i];
        let (core, key) =
            if way == 0 { (&mut self.server, pair.server) } else { (&mut self.client, Some(pair.client)) };
        let Some(key) = key.filter(|_| !pair.over) else { return };
        let stream = &mut core.streams[key];
        if let Some(data) = stream.received.pop_front() {
            assert!(data.iter().enumerate().all(|(at, byte)| *byte == pattern(pair.got[way] + at)), "in order");
            pair.got[way] += data.len();
            stream.unread -= data.len();
            core.release_window(Some(key), data.len());
        } else if stream.got_end {
            pair.ended[1 - way] = true;
            assert_eq!(stream.got_trailers.is_some(), pair.trailers && pair.to_send[way] > 0);
            assert_eq!(pair.got[way], pair.to_send[way], "whole");
        }
    }

    /// Lets a part of what is on its way arrive.
    fn arrive(&mut self, at_server: bool) {
        let way = usize::from(at_server);
        let (from, to) =
            if at_server { (&mut self.client, &mut self.server) } else { (&mut self.server, &mut self.client) };
        self.pipes[way].extend(written(from));
        let n = if self.pipes[way].is_empty() { 0 } else { self.random.usize(..=self.pipes[way].len()) };
        self.inputs[way].extend_from_slice(&self.pipes[way][..n]);
        self.pipes[way].drain(..n);
        loop {
            match to.receive(&mut self.inputs[way]).expect("valid") {
                Step::More => return,
                Step::Request(id, incoming, end) => {
                    let (head, length) = incoming.request(&self.options).expect("valid");
                    let number: usize = head.headers["x-number"].to_str().expect("text").parse().expect("a number");
                    let key = to.accept(id, end, length, 1);
                    self.pairs[number].server = Some(key);
                    self.by_id.insert(id, number);
                }
                // It did not know better.
                Step::TooMany(id) => to.put_reset(id, Code::REFUSED_STREAM),
                Step::Malformed => panic!("malformed"),
            }
        }
    }

    /// Lets go of streams that are over in one way or another.
    fn settle(&mut self) {
        for pair in &mut self.pairs {
            let refused = self.client.streams[pair.client].over;
            if pair.over {
                continue;
            }
            assert!(matches!(refused, None | Some(Over::Remote(Code::REFUSED_STREAM))), "{refused:?}");
            if refused.is_some() {
                assert!(pair.server.is_none());
                pair.over = true;
                self.client.let_go(pair.client);
            } else if pair.got == pair.to_send && pair.ended == [true, true] {
                pair.over = true;
                assert_eq!(self.client.let_go(pair.client), Left::Nothing);
                if let Some(server) = pair.server {
                    assert_eq!(self.server.let_go(server), Left::Nothing);
                }
            }
        }
    }
}

#[test]
fn nothing_is_lost_or_out_of_order_whatever_the_interleaving() {
    for seed in 0..16 {
        let mut world = World::new(seed);
        for turn in 0.. {
            assert!(turn < 200_000, "seed {seed}: it stands still");
            if world.pairs.len() < 12 && world.random.u8(..) < 32 {
                world.start();
            }
            for _ in 0..3 {
                let i = world.random.usize(..world.pairs.len().max(1));
                if i < world.pairs.len() {
                    let way = world.random.usize(..2);
                    if world.random.bool() { world.send(i, way) } else { world.read(i, way) }
                }
            }
            let at_server = world.random.bool();
            world.arrive(at_server);
            world.settle();
            // An answer without a body has to be sent too.
            for pair in &mut world.pairs {
                if let Some(server) = pair.server.filter(|_| !pair.over && !pair.answered && pair.to_send[1] == 0) {
                    pair.answered = true;
                    world.server.send_response(server, &ResponseHead::new(StatusCode::OK), false, true).expect("open");
                }
            }
            if world.pairs.len() == 12 && world.pairs.iter().all(|pair| pair.over) {
                break;
            }
        }
        for core in [&mut world.client, &mut world.server] {
            core.rest();
            assert!(core.streams.is_empty() && core.row.is_empty() && core.open == 0, "seed {seed}");
        }
    }
}

fn server() -> Core {
    let mut core = Core::new(false, &Http2Options::default(), (60, 100), Arc::default());
    let mut input = BytesMut::from(&PREFACE[..]);
    let mut settings = Vec::new();
    put_settings(&mut settings, &[]);
    input.extend_from_slice(&settings);
    assert!(matches!(core.receive(&mut input), Ok(Step::More)));
    core.out.take();
    core
}

#[test]
fn rubbish_ends_the_connection_or_is_taken_within_bounds() {
    for seed in 0..1000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut core, mut input) = (server(), BytesMut::new());
        for _ in 0..60 {
            let mut frame = Vec::new();
            let length = random.usize(..40);
            put_head(&mut frame, length, random.u8(..11), random.u8(..), random.u32(..8));
            frame.extend((0..length).map(|_| random.u8(..)));
            // Heads that are some, now and then.
            if random.u8(..) < 64 {
                frame.clear();
                put_head(&mut frame, 4, kind::HEADERS, flag::END_HEADERS | random.u8(..2), random.u32(..9) | 1);
                frame.extend([0x82, 0x84, 0x86, 0x41 + random.u8(..2)]);
                frame.truncate(HEAD + 4);
            }
            input.extend_from_slice(&frame);
            let fatal = loop {
                match core.receive(&mut input) {
                    Ok(Step::More) => break false,
                    Ok(Step::Request(id, incoming, end)) => match incoming.request(&ServerOptions::default()) {
                        Ok((_, length)) => {
                            core.accept(id, end, length, 1);
                        }
                        Err(_) => core.put_reset(id, Code::PROTOCOL_ERROR),
                    },
                    Ok(Step::TooMany(id)) => core.put_reset(id, Code::REFUSED_STREAM),
                    Ok(Step::Malformed) => panic!("a client's"),
                    Err(Fatal::Error(code)) => {
                        core.fail(code, crate::base::ResetReason::ProtocolError, "");
                        break true;
                    }
                    Err(Fatal::Killed) => break true,
                }
            };
            assert!(input.len() < HEAD + 16_384 && core.out.pending() < 1 << 16, "seed {seed}");
            if fatal {
                break;
            }
        }
    }
}

#[test]
fn windows_of_streams_may_become_negative_and_recover() {
    let mut core = server();
    let mut input = BytesMut::new();
    let mut frame = Vec::new();
    // A request whose answer is held back by a window that shrinks after it was used.
    let block = [0x82, 0x86, 0x84, 0x01, 0x01, b'h'];
    put_head(&mut frame, block.len(), kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1);
    frame.extend(block);
    input.extend_from_slice(&frame);
    let Ok(Step::Request(id, incoming, true)) = core.receive(&mut input) else { panic!("no request") };
    assert!(incoming.request(&ServerOptions::default()).is_ok());
    let key = core.accept(id, true, None, 1);
    core.send_response(key, &ResponseHead::new(StatusCode::OK), false, false).expect("open");
    core.send_data(key, vec![1; 100_000].into(), true).expect("open");
    written(&mut core);
    assert_eq!((core.window, core.streams[key].unsent_bytes), (0, 100_000 - FIRST_WINDOW as usize));
    frame.clear();
    put_settings(&mut frame, &[(4, 10)]);
    put_number(&mut frame, kind::WINDOW_UPDATE, 0, 1_000_000);
    input.extend_from_slice(&frame);
    assert!(matches!(core.receive(&mut input), Ok(Step::More)));
    assert_eq!(core.streams[key].window, 10 - i64::from(FIRST_WINDOW));
    let before = core.streams[key].unsent_bytes;
    written(&mut core);
    assert_eq!(core.streams[key].unsent_bytes, before, "nothing is sent on credit");
    frame.clear();
    put_number(&mut frame, kind::WINDOW_UPDATE, 1, 1_000_000);
    input.extend_from_slice(&frame);
    assert!(matches!(core.receive(&mut input), Ok(Step::More)));
    written(&mut core);
    assert!(core.streams[key].end_sent);
    assert_eq!(core.let_go(key), Left::Nothing);
    assert!(core.streams.is_empty());
}
