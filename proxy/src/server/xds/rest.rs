//! A source that is polled over HTTP (`api_type: REST`): requests and answers are JSON, and the version that was
//! accepted goes with the next request.

use super::{Source, count_failure, handle, joined, pass_unknown};
use crate::{
    http::RequestHead,
    server::control::Control,
    upstream::http_call::{Answer, call},
};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use std::{rc::Rc, time::Instant};
use tokio::time::{Duration, sleep, timeout};
use weft_config::config_source::RestConfigSource;
use weft_control_api::{
    Message as _, Name as _, PrintOptions, ResourceType,
    client::{Request, read_file},
    envoy::service::discovery::v3::DiscoveryRequest,
    print,
    text::Format,
};

/// Answers are no longer than this.
const MOST: usize = 256 << 20;

pub(super) async fn run(control: Rc<Control>, source: Rc<Source>, kind: ResourceType, config: RestConfigSource) {
    let Some(path) = path(kind) else { return };
    let mut request = None;
    let mut answers = 0u64;
    source.engine.borrow_mut().start();
    source.engine.borrow_mut().on_stream_open(Instant::now());
    loop {
        settle(&control, &source, &mut request);
        if let Some(request) = &request {
            let failure = match timeout(config.request_timeout, ask(&control, &config, path, request)).await {
                Ok(Ok(content)) => match read_file(&content, Format::Json)
                    .and_then(|(response, unknown)| pass_unknown(&control, &config.cluster, unknown).map(|()| response))
                {
                    Ok(mut response) => {
                        answers += 1;
                        response.nonce = answers.to_string();
                        response.type_url = kind.url().into();
                        source.engine.borrow_mut().on_response(response, Instant::now());
                        None
                    }
                    Err(problems) => Some(joined(&problems)),
                },
                Ok(Err(error)) => Some(error),
                Err(_) => Some(format!("no answer within {:?}", config.request_timeout)),
            };
            if let Some(why) = failure {
                tracing::warn!(target: "config", "REST config source {} failed: {why}", config.cluster);
                count_failure(&control, &source);
            }
        }
        settle(&control, &source, &mut request);
        let jitter = fastrand::u64(..config.refresh_delay.as_millis().max(1) as u64);
        let pause = sleep(config.refresh_delay + Duration::from_millis(jitter));
        tokio::pin!(pause);
        // A fetch may take too long while nobody is asked.
        loop {
            let deadline = source.engine.borrow().poll_timeout();
            let expiry = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut pause => break,
                () = expiry => {
                    source.engine.borrow_mut().on_timeout(Instant::now());
                    settle(&control, &source, &mut request);
                }
                () = source.changed.notified() => break,
            }
        }
    }
}

/// Handles what the engine says, and keeps what it would ask now.
fn settle(control: &Rc<Control>, source: &Rc<Source>, request: &mut Option<DiscoveryRequest>) {
    loop {
        let event = source.engine.borrow_mut().poll_event();
        match event {
            Some(event) => handle(control, source, event),
            None => break,
        }
    }
    loop {
        let next = source.engine.borrow_mut().poll_request(Instant::now());
        match next {
            // Nonces and errors are for streams; Envoy's polls do not have them.
            Some(Request::StateOfTheWorld(next)) => {
                *request = Some(DiscoveryRequest { response_nonce: String::new(), error_detail: None, ..next });
            }
            Some(Request::Delta(_)) => {}
            None => break,
        }
    }
}

async fn ask(
    control: &Control,
    config: &RestConfigSource,
    path: &'static str,
    request: &DiscoveryRequest,
) -> Result<Vec<u8>, String> {
    let json = print(&DiscoveryRequest::full_name(), &request.encode_to_vec(), PrintOptions::default())
        .map_err(|_| "the request cannot be printed".to_owned())?;
    let cluster = control.upstreams.by_name(&config.cluster).ok_or("the cluster is not there")?;
    let mut head = RequestHead::new(Method::POST, Bytes::from_static(path.as_bytes()));
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let answer = call(&cluster, head, json.to_string().into(), MOST).await.map_err(|e| e.to_string())?;
    match answer {
        Answer { status: StatusCode::OK, body, .. } => Ok(body),
        Answer { status, .. } => Err(format!("found status {status}, allowed: 200")),
    }
}

/// The path of a kind. Virtual hosts and the like are not polled.
fn path(kind: ResourceType) -> Option<&'static str> {
    Some(match kind {
        ResourceType::Runtime => "/v3/discovery:runtime",
        ResourceType::Cluster => "/v3/discovery:clusters",
        ResourceType::Endpoint => "/v3/discovery:endpoints",
        ResourceType::Secret => "/v3/discovery:secrets",
        ResourceType::Listener => "/v3/discovery:listeners",
        ResourceType::ScopedRouteConfiguration => "/v3/discovery:scoped-routes",
        ResourceType::RouteConfiguration => "/v3/discovery:routes",
        ResourceType::ExtensionConfig => "/v3/discovery:extension_configs",
        ResourceType::VirtualHost => return None,
    })
}
