//! A source that is a file: read whenever it is put in place, as if it came over a stream.

use super::{Source, count_failure, handle, joined, pass_unknown, refuse_text};
use crate::server::{control::Control, file_watch};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};
use tokio::sync::Notify;
use weft_config::config_source::PathConfigSource;
use weft_control_api::{
    Message as _, ResourceType, client,
    envoy::{
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::{DiscoveryResponse, Resource},
    },
    text::Format,
};

/// Reads a file whenever it is put in place, as if it came over a stream.
pub(super) async fn run(control: Rc<Control>, source: Rc<Source>, kind: ResourceType, config: PathConfigSource) {
    let file = PathBuf::from(&config.path);
    let changes = Rc::new(Notify::new());
    let watched =
        config.watched_directory.as_deref().map(PathBuf::from).or_else(|| file.parent().map(Path::to_path_buf));
    let _watch = watched.and_then(|directory| file_watch::watch(&directory, changes.clone()));
    let mut reads = 0u64;
    let mut last = None;
    let now = Instant::now();
    // What was subscribed to before this runs is in the first reading.
    tokio::select! {
        biased;
        () = source.changed.notified() => {}
        () = std::future::ready(()) => {}
    }
    source.engine.borrow_mut().start();
    source.engine.borrow_mut().on_stream_open(now);
    loop {
        let content = std::fs::read(&file).ok();
        if content != last
            && let Some(content) = &content
        {
            reads += 1;
            let read = Format::of(&file).map_err(|p| vec![p]).and_then(|format| client::read_file(content, format));
            match read {
                Err(problems) => {
                    tracing::warn!(target: "config", "{}: {}", config.path, joined(&problems));
                    count_failure(&control, &source);
                }
                Ok((mut response, unknown)) => match pass_unknown(&control, &config.path, unknown) {
                    Ok(()) => match unexpected(&control, &source, kind, &response) {
                        Some(why) => {
                            tracing::warn!(target: "config", "{}: {why}", config.path);
                            refuse_text(&control, &source, kind);
                        }
                        None => {
                            response.nonce = reads.to_string();
                            if response.type_url.is_empty() {
                                response.type_url = kind.url().into();
                            }
                            source.engine.borrow_mut().on_response(response, Instant::now());
                        }
                    },
                    Err(problems) => {
                        tracing::warn!(target: "config", "{} rejected: {}", config.path, joined(&problems));
                        refuse_text(&control, &source, kind);
                    }
                },
            }
            last = Some(content.clone());
        }
        loop {
            let event = source.engine.borrow_mut().poll_event();
            match event {
                Some(event) => handle(&control, &source, event),
                None => break,
            }
        }
        // A file is asked nothing.
        while source.engine.borrow_mut().poll_request(Instant::now()).is_some() {}
        let timeout = source.engine.borrow().poll_timeout();
        let sleep = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changes.notified() => {}
            () = source.changed.notified() => last = None,
            () = sleep => source.engine.borrow_mut().on_timeout(Instant::now()),
        }
    }
}

/// What is wrong with a file of secrets: it has the one that is looked for there, and no other.
fn unexpected(control: &Control, source: &Source, kind: ResourceType, response: &DiscoveryResponse) -> Option<String> {
    if kind != ResourceType::Secret {
        return None;
    }
    let [any] = &response.resources[..] else {
        return Some(format!("found {} secrets, allowed: exactly 1", response.resources.len()));
    };
    let found = if any.type_url == kind.url() {
        Secret::decode(&*any.value).ok()?.name
    } else {
        Resource::decode(&*any.value).ok()?.name
    };
    let wanted = control.xds.secret_names(source);
    let names = wanted.iter().cloned().collect::<Vec<_>>().join(", ");
    (!wanted.contains(&found)).then(|| format!("Unexpected SDS secret (expecting {names}): {found}"))
}
