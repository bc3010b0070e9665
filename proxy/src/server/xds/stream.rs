//! A source that is a gRPC stream: carries the engine's messages, opening the stream again whenever it ends.

use super::{Source, count_failure, handle};
use crate::{server::control::Control, upstream::grpc_stream::GrpcStream};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Instant,
};
use weft_config::config_source::ApiConfigSource;
use weft_control_api::client::{Event, FrameDecoder};

/// Responses are no longer than this where nothing else is said.
const MOST: usize = 256 << 20;

/// Carries one stream's messages, opening it again whenever it ends.
pub(super) async fn run(control: Rc<Control>, source: Rc<Source>, api: ApiConfigSource) {
    let most = api.service.max_receive_message_length.map_or(MOST, |most| most as usize);
    source.engine.borrow_mut().start();
    let mut stream: Option<(GrpcStream, FrameDecoder)> = None;
    let connected = |is: bool| {
        if let Some(stats) = &source.control_plane {
            stats.connected_state.set(u64::from(is));
        }
    };
    loop {
        loop {
            let event = source.engine.borrow_mut().poll_event();
            match event {
                Some(Event::Connect) => {
                    stream = open(&control, &source, &api).await.map(|s| (s, FrameDecoder::new(most)));
                    let now = Instant::now();
                    match &stream {
                        Some(_) => source.engine.borrow_mut().on_stream_open(now),
                        None => drop(source.engine.borrow_mut().on_stream_closed(now)),
                    }
                    connected(stream.is_some());
                }
                Some(event) => handle(&control, &source, event),
                None => break,
            }
        }
        if let Some((stream, _)) = &mut stream {
            while let Some(request) = source.engine.borrow_mut().poll_request(Instant::now()) {
                stream.send(request.frame());
            }
        }
        let timeout = source.engine.borrow().poll_timeout();
        let mut changed = pin!(source.changed.notified());
        let mut sleep = timeout.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        let woken = poll_fn(|cx| {
            if let Some((stream, _)) = &mut stream
                && let Poll::Ready(read) = stream.poll(cx)
            {
                return Poll::Ready(Some(read));
            }
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            match &mut sleep {
                Some(sleep) => sleep.as_mut().poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await;
        let now = Instant::now();
        let mut ended = None;
        match (woken, &mut stream) {
            (Some(Ok(bytes)), Some((_, decoder))) => {
                decoder.push(&bytes);
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => {
                            if let Err(error) = source.engine.borrow_mut().on_message(message, now) {
                                ended = Some(error.to_string());
                            }
                        }
                        Ok(None) => break,
                        Err(error) => {
                            ended = Some(error.to_string());
                            break;
                        }
                    }
                }
            }
            (Some(Err(end)), _) => ended = Some(format!("{}, {}", end.status, end.message)),
            _ => source.engine.borrow_mut().on_timeout(now),
        }
        if let Some(why) = ended {
            tracing::warn!(target: "config", "gRPC config stream to {} closed: {why}", api.service.cluster);
            stream = None;
            connected(false);
            source.engine.borrow_mut().on_stream_closed(now);
            count_failure(&control, &source);
        }
    }
}

async fn open(control: &Rc<Control>, source: &Source, api: &ApiConfigSource) -> Option<GrpcStream> {
    let method = source.engine.borrow().method()?;
    let cluster = control.upstreams.by_name(&api.service.cluster)?;
    match GrpcStream::open(&cluster, method, &api.service.authority, &api.service.initial_metadata).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::warn!(target: "config", "gRPC config stream to {} cannot be opened: {error}", api.service.cluster);
            count_failure(control, source);
            None
        }
    }
}
