//! A source that is a SPIFFE Workload API: identities and authorities, taken as the secrets that SPIRE's own SDS has.
//!
//! Invariant: what the agent no longer vouches for is used no longer: what is not in its last word is unloaded, and all of
//! it is if it goes on saying that there is nothing for this workload. Authorities that cannot be read are unloaded too: they
//! took the place of the old ones. An agent that is not there changes nothing.

use super::{Source, count_failure, handle};
use crate::{server::control::Control, transport::tls::verify, upstream::grpc_stream::GrpcStream};
use std::{
    collections::BTreeSet,
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
        extensions::{
            transport_sockets::tls::v3::secret,
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
        service::discovery::v3::DiscoveryResponse,
    },
    workload::{CLUSTER, FETCH_X509_SVID, METADATA, Statement, X509SvidResponse},
};

/// Responses are no longer than this.
const MOST: usize = 64 << 20;
/// Between attempts, and what it grows to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// So long may an agent say that there is nothing for this workload before that is taken for its word: one that was started
/// anew says so until it has heard from its server.
const DENIAL_GRACE: Duration = Duration::from_secs(10);
/// Between attempts while it does, at most.
const DENIED_PAUSE: Duration = Duration::from_secs(1);

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
    said: Option<Statement>,
    /// Secrets that were given to the store as it says.
    given: BTreeSet<String>,
    /// Secrets that are asked for and not issued, as was logged.
    unknown: BTreeSet<String>,
    denial: Denial,
    responses: u64,
}

/// Since when an agent says that there is nothing for this workload.
#[derive(Default)]
struct Denial {
    since: Option<Instant>,
}

impl Denial {
    /// It says so, or says so again; true once it has done so for long enough to be believed.
    fn goes_on(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_believed = since + DENIAL_GRACE <= now;
        if is_believed {
            self.ends();
        }
        is_believed
    }

    /// It says otherwise, or is not there.
    fn ends(&mut self) {
        self.since = None;
    }

    fn is_on(&self) -> bool {
        self.since.is_some()
    }
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
        match status {
            PERMISSION_DENIED if progress.said.is_some() => {
                if progress.denial.goes_on(Instant::now()) {
                    withdraw(&control, &source, &mut progress, control.xds.secret_names(&source));
                    progress.said = None;
                }
            }
            _ => progress.denial.ends(),
        }
        let most = if progress.denial.is_on() { DENIED_PAUSE } else { PAUSE.1 };
        pause = pause.min(most);
        // Asking again would get the same answer.
        let until = match status {
            INVALID_ARGUMENT => None,
            _ => Some(Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)),
        };
        pause = (pause * 2).min(most);
        while until.is_none_or(|until| Instant::now() < until) {
            take(&control, &source, &mut progress);
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
        // Somebody may ask for what was said already.
        take(control, source, progress);
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
                        hear(control, source, progress, response);
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

/// Puts what the agent says in the place of all that it said before.
fn hear(control: &Rc<Control>, source: &Rc<Source>, progress: &mut Progress, response: X509SvidResponse) {
    let said = Statement::new(response, verify::check_authority);
    progress.denial.ends();
    progress.given.clear();
    let names = control.xds.secret_names(source);
    for (domain, why) in said.refused() {
        tracing::warn!(
            target: "config",
            "the SPIFFE Workload API's authorities of {domain:?} cannot be read, so it has none: {why}"
        );
    }
    names.iter().filter(|name| said.is_maimed(name)).for_each(|name| count_rejected(control, name));
    progress.unknown.retain(|name| names.contains(name) && said.secret(name).is_none());
    let gone = names.into_iter().filter(|name| said.secret(name).is_none()).collect();
    withdraw(control, source, progress, gone);
    progress.said = Some(said);
    take(control, source, progress);
}

/// Gives the store what was said of secrets that are asked for, if it does not have it yet.
fn take(control: &Rc<Control>, source: &Rc<Source>, progress: &mut Progress) {
    settle(control, source);
    let Some(said) = progress.said.take() else { return };
    let names = control.xds.secret_names(source);
    progress.given.retain(|name| names.contains(name));
    for name in names {
        if !progress.given.insert(name.clone()) {
            continue;
        }
        let all = control.xds.secrets_of(control, source, &name);
        let Some(secret) = said.secret(&name) else {
            all.iter().for_each(|of| control.store.borrow_mut().give_up_secret(of));
            if !said.is_maimed(&name) && progress.unknown.insert(name.clone()) {
                tracing::warn!(
                    target: "config",
                    "the SPIFFE Workload API does not issue the secret {name:?}; it issues {:?}",
                    said.names()
                );
                count_rejected(control, &name);
            }
            control.settle();
            continue;
        };
        let mut store = control.store.borrow_mut();
        all.iter().for_each(|of| store.note_trust_domain(of, said.trust_domain_of(&name)));
        drop(store);
        let is_trust = matches!(secret.r#type, Some(secret::Type::ValidationContext(_)));
        progress.responses += 1;
        // Each by itself: what is wrong with one is not counted for others.
        let response = DiscoveryResponse {
            version_info: progress.responses.to_string(),
            nonce: progress.responses.to_string(),
            type_url: ResourceType::Secret.url().into(),
            resources: vec![Any { type_url: ResourceType::Secret.url().into(), value: secret.encode_to_vec() }],
            ..DiscoveryResponse::default()
        };
        source.engine.borrow_mut().on_response(response, Instant::now());
        settle(control, source);
        // An identity that is no good leaves the old one, which has an end. Authorities would go on trusting.
        let is_refused = || {
            let store = control.store.borrow();
            store.secrets.streamed().any(|seat| seat.failure.is_some() && all.contains(&seat.reference))
        };
        if is_trust && is_refused() {
            withdraw(control, source, progress, BTreeSet::from([name]));
        }
    }
    progress.said = Some(said);
}

/// Unloads secrets that the agent no longer vouches for.
fn withdraw(control: &Rc<Control>, source: &Rc<Source>, progress: &mut Progress, names: BTreeSet<String>) {
    let mut gone = Vec::new();
    for name in names {
        let all = control.xds.secrets_of(control, source, &name);
        // Each of them, though one suffices to say so.
        let count = all.iter().filter(|of| control.store.borrow_mut().unload_secret(of)).count();
        if count > 0 {
            let identity = progress.said.as_ref().and_then(|said| said.identity_of(&name)).filter(|id| *id != name);
            gone.push(identity.map_or_else(|| format!("{name:?}"), |id| format!("{name:?} ({id})")));
            // That it is not there is said herewith.
            progress.unknown.insert(name);
        }
    }
    if !gone.is_empty() {
        tracing::warn!(
            target: "config",
            "the SPIFFE Workload API vouches no longer for {}: withdrawn, handshakes that need it fail",
            gone.join(", ")
        );
        control.settle();
    }
}

fn count_rejected(control: &Rc<Control>, name: &str) {
    control.xds.stats(control, ResourceType::Secret, name).update_rejected.inc();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_believed_once_it_has_lasted() {
        let (mut denial, start) = (Denial::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!denial.goes_on(at(0)) && !denial.goes_on(at(9)) && denial.is_on());
        assert!(denial.goes_on(at(10)) && !denial.is_on());
        assert!(!denial.goes_on(at(11)), "it is done once, and begins anew");
        // An agent that is not there, or has something to say, has not gone on.
        denial.ends();
        assert!(!denial.goes_on(at(30)) && denial.goes_on(at(40)));
    }
}
