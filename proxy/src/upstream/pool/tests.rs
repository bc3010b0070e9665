//! Pools over in-memory connections with scripted peers.

// The deprecated fields are the shortest way to say it.
#![allow(deprecated)]

use super::*;
use crate::{
    base::Address,
    http::{BodySink, BodySource, Protocol as HttpProtocol, RequestHead, ResponseEvent},
    observe::stats::{Registry, StatFilter, StatValue},
    transport::{Io, tls::secrets::NoSecrets},
    upstream::{
        Cluster, ClusterId, ClusterStats, ClusterTable, LbContext, Names, ProtocolChoice, StreamRequest, ThreadCluster,
        ThreadHost, Upstreams,
        connect::{Connect, ConnectError, Connected, Connecting, Target},
    },
};
use http::Method;
use std::{future::poll_fn, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use weft_config::{Context, cluster::Cluster as Config};
use weft_control_api::envoy::config::{
    cluster::v3 as pb,
    core::v3 as core,
    endpoint::v3::{self as endpoint, lb_endpoint::HostIdentifier},
};

/// What happens to the next connections.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Answer,
    Hang,
    Refuse,
}

/// Hands the far ends of connections to the test.
struct Fake {
    then: Cell<Then>,
    ends: RefCell<VecDeque<DuplexStream>>,
    made: Cell<usize>,
}

impl Connect for Rc<Fake> {
    fn connect(&self, target: Target) -> Connecting {
        let fake = self.clone();
        Box::pin(async move {
            match fake.then.get() {
                Then::Answer => {
                    let (near, far) = tokio::io::duplex(1 << 16);
                    fake.ends.borrow_mut().push_back(far);
                    fake.made.set(fake.made.get() + 1);
                    Ok(Connected::bare(Io::Boxed(Box::new(near)), None, target.host.address.clone()))
                }
                Then::Hang => std::future::pending().await,
                Then::Refuse => Err(ConnectError {
                    reason: ResetReason::RemoteConnectionFailure,
                    details: "delayed connect error: Connection refused".into(),
                    bind: false,
                }),
            }
        })
    }
}

struct Rig {
    fake: Rc<Fake>,
    registry: Registry,
    upstreams: Rc<Upstreams>,
    cluster: Rc<ThreadCluster>,
}

fn host(port: u32) -> endpoint::LbEndpoint {
    let socket = core::SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let host = endpoint::Endpoint { address: Some(address), ..Default::default() };
    endpoint::LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..Default::default() }
}

pub(in crate::upstream) fn config(change: impl FnOnce(&mut pb::Cluster)) -> Config {
    let localities = endpoint::LocalityLbEndpoints { lb_endpoints: vec![host(80)], ..Default::default() };
    let mut p = pb::Cluster {
        name: "u".into(),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: "u".into(),
            endpoints: vec![localities],
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut p);
    let mut cx = Context::new();
    let read = Config::from_proto(p, &mut cx);
    cx.finish(read).unwrap().0
}

fn table(config: Config) -> ClusterTable {
    let mut names = Names::default();
    let id = names.intern("u");
    ClusterTable::new(
        [Cluster::compile(id, Arc::new(config), None, None, false, &NoSecrets, &mut Context::new())],
        Arc::new(names),
    )
}

impl Rig {
    fn new(change: impl FnOnce(&mut pb::Cluster)) -> Self {
        let fake = Rc::new(Fake { then: Cell::new(Then::Answer), ends: RefCell::default(), made: Cell::new(0) });
        let registry = Registry::new();
        let upstreams = Upstreams::with_connector(registry.clone(), true, Rc::new(fake.clone()));
        upstreams.apply(&table(config(change)));
        let cluster = upstreams.get(ClusterId(0)).unwrap();
        Self { fake, registry, upstreams, cluster }
    }

    fn host(&self) -> Rc<ThreadHost> {
        self.cluster.choose_host(&LbContext::default()).unwrap()
    }

    fn stream(&self) -> impl Future<Output = Result<Opened, StreamError>> + use<> {
        let wanted = StreamRequest {
            downstream_protocol: HttpProtocol::Http11,
            priority: Priority::Default,
            protocol: ProtocolChoice::Http,
            connection: None,
            names: Default::default(),
        };
        self.cluster.http_stream(&self.host(), wanted)
    }

    fn stats(&self) -> &ClusterStats {
        self.cluster.stats()
    }

    fn end(&self) -> DuplexStream {
        self.fake.ends.borrow_mut().pop_front().unwrap()
    }
}

/// Runs a test as a worker runs its streams.
fn worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Lets the connections' tasks run.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A GET over an HTTP/1 stream, answered at the far end with `answer`.
async fn exchange(stream: &mut UpstreamStream, far: &mut DuplexStream, answer: &[u8]) -> u16 {
    let mut head = RequestHead::new(Method::GET, "/");
    head.authority = "h".into();
    stream.send_head(&head, true).unwrap();
    poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
    let mut request = [0; 1024];
    assert!(far.read(&mut request).await.unwrap() > 0);
    far.write_all(answer).await.unwrap();
    match poll_fn(|cx| stream.poll_response(cx)).await.unwrap() {
        ResponseEvent::Head(head, mut body) => {
            while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
                frame.unwrap();
            }
            head.status.as_u16()
        }
        ResponseEvent::Informational(head) => head.status.as_u16(),
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_connection_is_used_again() {
    worker(async {
        let rig = Rig::new(|_| {});
        let (mut stream, connection) = rig.stream().await.unwrap();
        let mut far = rig.end();
        assert_eq!(exchange(&mut stream, &mut far, OK).await, 200);
        drop(stream);
        assert!(!connection.was_reused());
        let (mut stream, again) = rig.stream().await.unwrap();
        assert_eq!((again.id(), again.was_reused()), (connection.id(), true));
        assert_eq!(exchange(&mut stream, &mut far, OK).await, 200);
        drop(stream);
        let stats = rig.stats();
        assert_eq!(
            [stats.upstream_cx_total.get(), stats.upstream_rq_total.get(), stats.upstream_rq_active.get()],
            [1, 2, 0]
        );
        assert_eq!([stats.upstream_rq_pending_total.get(), stats.upstream_rq_pending_active.get()], [1, 0]);
    });
}

#[test]
fn an_idle_connection_that_the_peer_closed_is_replaced() {
    worker(async {
        let rig = Rig::new(|_| {});
        let (mut stream, _) = rig.stream().await.unwrap();
        let mut far = rig.end();
        exchange(&mut stream, &mut far, OK).await;
        drop((stream, far));
        settle().await;
        assert_eq!(rig.stats().upstream_cx_destroy_remote.get(), 1);
        let (mut stream, _) = rig.stream().await.unwrap();
        let mut far = rig.end();
        assert_eq!(exchange(&mut stream, &mut far, b"HTTP/1.1 204 No\r\nconnection: close\r\n\r\n").await, 204);
        drop(stream);
        settle().await;
        assert_eq!((rig.stats().upstream_cx_active.get(), rig.fake.made.get()), (0, 2));
    });
}

#[test]
fn waiting_is_limited_and_leaves_no_trace() {
    worker(async {
        let rig = Rig::new(|p| {
            let one = pb::circuit_breakers::Thresholds {
                max_connections: Some(1),
                max_pending_requests: Some(1),
                ..Default::default()
            };
            p.circuit_breakers = Some(pb::CircuitBreakers { thresholds: vec![one], ..Default::default() });
        });
        let (mut first, _) = rig.stream().await.unwrap();
        let waits = rig.stream();
        let over = rig.stream().await.err().unwrap();
        assert_eq!(over.reason, ResetReason::Overflow);
        let stats = rig.stats();
        assert_eq!([stats.upstream_rq_pending_overflow.get(), stats.upstream_cx_overflow.get()], [1, 1]);
        drop(waits);
        assert_eq!([stats.upstream_rq_cancelled.get(), stats.upstream_rq_pending_active.get()], [1, 0]);
        let waits = tokio::task::spawn_local(rig.stream());
        settle().await;
        let mut far = rig.end();
        exchange(&mut first, &mut far, OK).await;
        drop(first);
        assert!(waits.await.unwrap().unwrap().1.was_reused());
        assert_eq!(rig.fake.made.get(), 1);
    });
}

#[test]
fn a_failed_connection_fails_all_who_wait() {
    worker(async {
        let rig = Rig::new(|_| {});
        rig.fake.then.set(Then::Refuse);
        let (a, b) = tokio::join!(rig.stream(), rig.stream());
        for error in [a.err().unwrap(), b.err().unwrap()] {
            assert_eq!(error.reason, ResetReason::RemoteConnectionFailure);
            assert_eq!(error.details, "delayed connect error: Connection refused");
        }
        let stats = rig.stats();
        assert_eq!([stats.upstream_cx_connect_fail.get(), stats.upstream_rq_pending_failure_eject.get()], [2, 2]);
        assert_eq!([stats.upstream_cx_active.get(), stats.upstream_rq_pending_active.get()], [0, 0]);
    });
}

#[test]
fn connecting_takes_no_longer_than_its_timeout() {
    worker(async {
        let rig = Rig::new(|p| {
            p.connect_timeout = Some(weft_control_api::Duration { seconds: 0, nanos: 300_000_000 });
        });
        rig.fake.then.set(Then::Hang);
        let start = tokio::time::Instant::now();
        assert_eq!(rig.stream().await.err().unwrap().reason, ResetReason::ConnectionTimeout);
        assert_eq!(start.elapsed(), Duration::from_millis(300));
        assert_eq!(rig.stats().upstream_cx_connect_timeout.get(), 1);
    });
}

#[test]
fn connections_have_limits() {
    worker(async {
        let rig = Rig::new(|p| p.max_requests_per_connection = Some(2));
        for _ in 0..2 {
            let (mut stream, _) = rig.stream().await.unwrap();
            let mut far = rig.end();
            exchange(&mut stream, &mut far, OK).await;
            drop(stream);
            rig.fake.ends.borrow_mut().push_front(far);
        }
        settle().await;
        assert_eq!([rig.stats().upstream_cx_max_requests.get(), rig.stats().upstream_cx_active.get()], [1, 0]);
        let (mut stream, _) = rig.stream().await.unwrap();
        let mut far = rig.fake.ends.borrow_mut().pop_back().unwrap();
        exchange(&mut stream, &mut far, OK).await;
        drop(stream);
        tokio::time::sleep(Duration::from_secs(3601)).await;
        assert_eq!([rig.stats().upstream_cx_idle_timeout.get(), rig.stats().upstream_cx_active.get()], [1, 0]);
    });
}

#[test]
fn hosts_that_stay_keep_their_connections() {
    worker(async {
        let rig = Rig::new(|_| {});
        let (mut stream, _) = rig.stream().await.unwrap();
        let mut far = rig.end();
        exchange(&mut stream, &mut far, OK).await;
        drop(stream);
        let cluster = rig.upstreams.clusters()[0].clone();
        let before = Cluster::with_hosts(cluster.info(), cluster.host_set());
        let mut assignment = cluster.info().config.load_assignment.clone();
        assignment.localities[0].endpoints[0].load_balancing_weight = 5;
        let mut names = Names::default();
        names.intern("u");
        let names = Arc::new(names);
        let reweighted = before.with_assignment(&assignment);
        rig.upstreams.apply(&ClusterTable::new([reweighted.clone()], names.clone()));
        let (stream, again) = rig.stream().await.unwrap();
        assert!(again.was_reused());
        assert_eq!(
            (rig.host().host().weight, rig.host().address()),
            (5, &Address::Ip("127.0.0.1:80".parse().unwrap()))
        );
        assignment.localities[0].endpoints.clear();
        rig.upstreams.apply(&ClusterTable::new([reweighted.with_assignment(&assignment)], names));
        assert!(rig.cluster.choose_host(&LbContext::default()).is_none());
        assert_eq!(rig.stats().upstream_cx_active.get(), 1);
        drop(stream);
        settle().await;
        assert_eq!(rig.stats().upstream_cx_active.get(), 0);
        let changes = StatFilter { name: Some(&|name| name == "cluster.u.membership_change"), ..StatFilter::default() };
        assert_eq!(rig.registry.read(&changes)[0].value, StatValue::Counter(2));
    });
}

#[test]
fn http2_carries_many_streams_on_few_connections() {
    worker(async {
        let rig = Rig::new(|p| {
            p.http2_protocol_options =
                Some(core::Http2ProtocolOptions { max_concurrent_streams: Some(2), ..Default::default() });
        });
        let waiting: Vec<_> = (0..3).map(|_| tokio::task::spawn_local(rig.stream())).collect();
        settle().await;
        let mut streams = Vec::new();
        for waiting in waiting {
            streams.push(waiting.await.unwrap().unwrap());
        }
        assert_eq!((rig.fake.made.get(), rig.stats().upstream_cx_http2_total.get()), (2, 2));
        assert_eq!(rig.stats().upstream_rq_active.get(), 3);
        drop(streams);
        settle().await;
        assert_eq!((rig.stats().upstream_rq_active.get(), rig.stats().upstream_cx_active.get()), (0, 2));
        assert!(rig.stream().await.is_ok());
        assert_eq!(rig.fake.made.get(), 2);
    });
}

#[test]
fn streams_of_a_connection_that_is_gone_hold_no_place() {
    for http2 in [false, true] {
        worker(async {
            let rig = Rig::new(|p| {
                p.http2_protocol_options = http2.then(core::Http2ProtocolOptions::default);
            });
            let opening = rig.stream();
            let (opened, far) = tokio::join!(opening, async {
                settle().await;
                rig.end()
            });
            let (mut stream, _) = opened.unwrap();
            let mut head = RequestHead::new(Method::GET, "/");
            head.authority = "h".into();
            stream.send_head(&head, true).unwrap();
            settle().await;
            assert_eq!(rig.stats().upstream_rq_active.get(), 1);
            drop(far);
            settle().await;
            let ended = poll_fn(|cx| stream.poll_response(cx)).await;
            assert!(ended.is_err());
            drop(stream);
            settle().await;
            assert_eq!(rig.stats().upstream_rq_active.get(), 0, "HTTP/2: {http2}");
            assert_eq!(rig.cluster.info().breakers.of(Priority::Default).requests.current(), 0);
        });
    }
}
