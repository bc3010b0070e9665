//! A source that is a SPIFFE Workload API: identities and authorities, taken as the secrets that SPIRE's own SDS has.
//!
//! Invariant: what the agent no longer vouches for is used no longer: what is not in its last word is unloaded, and all of
//! it is if it says that there is nothing for this workload. An agent that is not there changes nothing.

use super::{Source, count_failure, handle};
use crate::{server::control::Control, upstream::grpc_stream::GrpcStream};
use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};
use weft_config::{bootstrap::Resource, config_source::ApiConfigSource};
use weft_control_api::{
    Any, Message as _, Name as _, ResourceType,
    client::{FrameDecoder, encode_frame},
    envoy::{
        config::{
            cluster::v3 as pb,
            core::v3::{self as core, address, socket_address},
            endpoint::v3 as endpoint,
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
        service::discovery::v3::DiscoveryResponse,
    },
    workload::{FETCH_X509_SVID, METADATA, X509SvidResponse},
};

/// The name of the cluster whose hosts speak the Workload API.
pub const CLUSTER: &str = "spiffe_workload_api";

/// Responses are no longer than this.
const MOST: usize = 64 << 20;
/// Between attempts, and what it grows to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;

/// The cluster for an endpoint as `SPIFFE_ENDPOINT_SOCKET` names it.
///
/// # Errors
/// It is none.
pub fn cluster(uri: &str) -> Result<Resource, String> {
    let bad = || format!("found {uri:?}, allowed are unix:///PATH and tcp://IP:PORT");
    let path = uri.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
    let address = match (path, uri.strip_prefix("tcp://")) {
        (Some(path), _) if path.starts_with('/') => {
            address::Address::Pipe(core::Pipe { path: path.to_owned(), ..core::Pipe::default() })
        }
        (None, Some(at)) => {
            let at: SocketAddr = at.parse().map_err(|_| bad())?;
            address::Address::SocketAddress(core::SocketAddress {
                address: at.ip().to_string(),
                port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
                ..core::SocketAddress::default()
            })
        }
        _ => return Err(bad()),
    };
    let http2 = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default())),
        })),
        ..HttpProtocolOptions::default()
    };
    let options = Any { type_url: HttpProtocolOptions::type_url(), value: http2.encode_to_vec() };
    let host =
        endpoint::Endpoint { address: Some(core::Address { address: Some(address) }), ..endpoint::Endpoint::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)),
        ..endpoint::LbEndpoint::default()
    };
    let cluster = pb::Cluster {
        name: CLUSTER.into(),
        typed_extension_protocol_options: [(HttpProtocolOptions::full_name(), options)].into_iter().collect(),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: CLUSTER.into(),
            endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() }],
            ..Default::default()
        }),
        ..pb::Cluster::default()
    };
    Ok(Resource { type_url: pb::Cluster::type_url(), name: CLUSTER.into(), bytes: cluster.encode_to_vec() })
}

/// Where it stands between attempts.
#[derive(Default)]
struct Progress {
    /// The agent's last word; `None` if there is none.
    said: Option<X509SvidResponse>,
    responses: u64,
}

pub(super) async fn run(control: Rc<Control>, source: Rc<Source>, api: ApiConfigSource) {
    let mut progress = Progress::default();
    let mut pause = PAUSE.0;
    source.engine.borrow_mut().start();
    source.engine.borrow_mut().on_stream_open(Instant::now());
    loop {
        let (status, message) = stream(&control, &source, &api, &mut progress, &mut pause).await;
        tracing::warn!(target: "config", "the SPIFFE Workload API at {} ended: {message} ({status})", api.service.cluster);
        count_failure(&control, &source);
        if let Some(stats) = &source.control_plane {
            stats.connected_state.set(0);
        }
        if status == PERMISSION_DENIED && progress.said.take().is_some() {
            take(&control, &source, &mut progress);
        }
        // Asking again would get the same answer.
        let until = match status {
            INVALID_ARGUMENT => None,
            _ => Some(Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)),
        };
        pause = (pause * 2).min(PAUSE.1);
        while until.is_none_or(|until| Instant::now() < until) {
            settle(&control, &source);
            let next = source.engine.borrow().poll_timeout().into_iter().chain(until).min();
            wait(next, &source).await;
            source.engine.borrow_mut().on_timeout(Instant::now());
        }
    }
}

/// Listens until the stream ends; gives gRPC's status and why.
async fn stream(
    control: &Rc<Control>,
    source: &Rc<Source>,
    api: &ApiConfigSource,
    progress: &mut Progress,
    pause: &mut Duration,
) -> (u32, String) {
    const UNAVAILABLE: u32 = 14;
    let Some(cluster) = control.upstreams.by_name(&api.service.cluster) else {
        return (UNAVAILABLE, "the cluster is not there".into());
    };
    let mut metadata = api.service.initial_metadata.clone();
    metadata.push((METADATA.0.into(), METADATA.1.into()));
    let mut stream = match GrpcStream::open(&cluster, FETCH_X509_SVID, &api.service.authority, &metadata).await {
        Ok(stream) => stream,
        Err(error) => return (UNAVAILABLE, error.to_string()),
    };
    stream.send(encode_frame(&()));
    stream.end();
    let mut decoder = FrameDecoder::new(MOST);
    loop {
        settle(control, source);
        let timeout = source.engine.borrow().poll_timeout();
        let mut woken = pin!(wait(timeout, source));
        let read = poll_fn(|cx| match stream.poll(cx) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => woken.as_mut().poll(cx).map(|()| None),
        })
        .await;
        match read {
            None => {
                source.engine.borrow_mut().on_timeout(Instant::now());
                // Somebody may ask for what was said already.
                take(control, source, progress);
                continue;
            }
            Some(Err(ended)) => return (ended.status, ended.message),
            Some(Ok(bytes)) => decoder.push(&bytes),
        }
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => match X509SvidResponse::decode(message) {
                    Ok(response) => {
                        *pause = PAUSE.0;
                        if let Some(stats) = &source.control_plane {
                            stats.connected_state.set(1);
                        }
                        progress.said = Some(response);
                        take(control, source, progress);
                    }
                    Err(error) => return (UNAVAILABLE, error.to_string()),
                },
                Ok(None) => break,
                Err(error) => return (UNAVAILABLE, error.to_string()),
            }
        }
    }
}

/// Until then, or until something else is asked for.
async fn wait(until: Option<Instant>, source: &Source) {
    let sleep = async {
        match until {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sleep => {}
        () = source.changed.notified() => {}
    }
}

/// Puts what the agent said in the place of all that it said before.
fn take(control: &Rc<Control>, source: &Rc<Source>, progress: &mut Progress) {
    let mut resources = Vec::new();
    let mut gone = false;
    for name in control.xds.secret_names(source) {
        match progress.said.as_ref().and_then(|said| said.secret(&name)) {
            Some(secret) => {
                resources.push(Any { type_url: ResourceType::Secret.url().into(), value: secret.encode_to_vec() })
            }
            None => {
                for of in control.xds.secrets_of(control, source, &name) {
                    gone |= control.store.borrow_mut().unload_secret(&of);
                }
            }
        }
    }
    if gone {
        control.settle();
    }
    if !resources.is_empty() {
        progress.responses += 1;
        let response = DiscoveryResponse {
            version_info: progress.responses.to_string(),
            nonce: progress.responses.to_string(),
            type_url: ResourceType::Secret.url().into(),
            resources,
            ..DiscoveryResponse::default()
        };
        source.engine.borrow_mut().on_response(response, Instant::now());
    }
    settle(control, source);
}

/// Handles what the engine makes of it; an agent is told nothing.
fn settle(control: &Rc<Control>, source: &Rc<Source>) {
    loop {
        let event = source.engine.borrow_mut().poll_event();
        match event {
            Some(event) => handle(control, source, event),
            None => break,
        }
    }
    while source.engine.borrow_mut().poll_request(Instant::now()).is_some() {}
}
