//! The gRPC side: every discovery service, each stream a task with a [`Session`].
//!
//! A client that does not read holds up its own stream only, with one response in memory.

use super::{
    Event, SnapshotCache,
    listen::{self, Listener},
    rate_limit::{self, RateLimitService},
    session::{Misuse, Request, Response, Service, Session},
};
use crate::{
    Message,
    envoy::{config::core::v3::Node, service::discovery::v3 as discovery},
    resource::{Protocol, ResourceType},
};
use futures_util::{Stream, stream};
use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::mpsc;
use tonic::{
    Status, Streaming,
    body::Body,
    server::{Grpc, StreamingService},
    service::Routes,
    transport::Server,
};
use tonic_prost::ProstCodec;

/// Clients whose machine is gone are noticed by this.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Requests are no longer than this.
const MOST: usize = 16 << 20;
/// What a node says of itself is kept as long as its stream lives, and is no longer than this.
const MOST_OF_NODE: usize = 1 << 20;
/// Of a refusal's reason, so much is told.
const MOST_OF_REASON: usize = 16 << 10;
/// Streams of one connection at a time: a client has one, or one for each kind and cluster.
const STREAMS: u32 = 4096;
/// Requests that wait while a stream's responses are not read.
const WAITING: usize = 1;

/// Serves the cache until `until` is ready.
///
/// # Errors
/// What ended the listener.
pub async fn serve(
    listener: Listener,
    cache: Arc<SnapshotCache>,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    serve_with_limits(listener, cache, None, until).await
}

/// Serves the cache, and rate limits beside it, until `until` is ready.
///
/// # Errors
/// What ended the listener.
pub async fn serve_with_limits(
    listener: Listener,
    cache: Arc<SnapshotCache>,
    limits: Option<Arc<RateLimitService>>,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .add_routes(routes(&cache, limits));
    match listener {
        Listener::Tcp(tcp) => router.serve_with_incoming_shutdown(listen::tcp(tcp), until).await,
        Listener::Unix(unix) => router.serve_with_incoming_shutdown(listen::unix(unix), until).await,
    }
}

fn routes(cache: &Arc<SnapshotCache>, limits: Option<Arc<RateLimitService>>) -> Routes {
    let mut router = Routes::default().into_axum_router();
    if let Some(limits) = limits {
        router = router.route_service(rate_limit::METHOD, rate_limit::Method(limits));
    }
    for protocol in [Protocol::StateOfTheWorld, Protocol::Delta] {
        let aggregated = Method { cache: cache.clone(), service: Service::Aggregated, protocol };
        router = router.route_service(protocol.aggregated_method(), aggregated);
        for kind in ResourceType::ALL {
            if let Some(path) = kind.method(protocol) {
                router = router
                    .route_service(path, Method { cache: cache.clone(), service: Service::Single(kind), protocol });
            }
        }
    }
    router.into()
}

/// One method of one service.
#[derive(Clone)]
struct Method {
    cache: Arc<SnapshotCache>,
    service: Service,
    protocol: Protocol,
}

type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<axum::body::Body>> for Method {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<axum::body::Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            Ok(match method.protocol {
                Protocol::StateOfTheWorld => {
                    let codec = ProstCodec::<discovery::DiscoveryResponse, discovery::DiscoveryRequest>::default();
                    Grpc::new(codec).max_decoding_message_size(MOST).streaming(method, request).await
                }
                Protocol::Delta => {
                    let codec =
                        ProstCodec::<discovery::DeltaDiscoveryResponse, discovery::DeltaDiscoveryRequest>::default();
                    Grpc::new(codec).max_decoding_message_size(MOST).streaming(method, request).await
                }
            })
        })
    }
}

/// A request of one of the two protocols.
trait Asks: Message + Default + 'static {
    fn node(&mut self) -> Option<Node>;
    fn request(self) -> Request;
}

impl Asks for discovery::DiscoveryRequest {
    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }
    fn request(self) -> Request {
        Request::StateOfTheWorld(self)
    }
}

impl Asks for discovery::DeltaDiscoveryRequest {
    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }
    fn request(self) -> Request {
        Request::Delta(self)
    }
}

impl StreamingService<discovery::DiscoveryRequest> for Method {
    type Response = discovery::DiscoveryResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Self::Response, Status>> + Send>>;
    type Future = Answering<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<discovery::DiscoveryRequest>>) -> Self::Future {
        let responses = self.start(request, |response| match response {
            Response::StateOfTheWorld(response) => Some(response),
            Response::Delta(_) => None,
        });
        Box::pin(async move { Ok(tonic::Response::new(responses)) })
    }
}

impl StreamingService<discovery::DeltaDiscoveryRequest> for Method {
    type Response = discovery::DeltaDiscoveryResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Self::Response, Status>> + Send>>;
    type Future = Answering<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<discovery::DeltaDiscoveryRequest>>) -> Self::Future {
        let responses = self.start(request, |response| match response {
            Response::Delta(response) => Some(response),
            Response::StateOfTheWorld(_) => None,
        });
        Box::pin(async move { Ok(tonic::Response::new(responses)) })
    }
}

impl Method {
    /// Starts a stream's task; gives what it says.
    fn start<Q: Asks, R: Send + 'static>(
        &self,
        request: tonic::Request<Streaming<Q>>,
        of: fn(Response) -> Option<R>,
    ) -> Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>> {
        let peer = request.remote_addr().as_ref().map(SocketAddr::to_string).unwrap_or_else(|| "unix".to_owned());
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut client =
            Client { session: Session::new(self.service, self.protocol), cache: self.cache.clone(), node: None, peer };
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = client.run(&mut requests, &sender, of).await {
                // The client may be gone already.
                let _ = sender.send(Err(status)).await;
            }
            if let Some(node) = client.node {
                client.cache.tell(Event::Disconnected { node: node.id, peer: client.peer });
            }
        });
        Box::pin(stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|item| (item, receiver)) }))
    }
}

/// One stream's task.
struct Client {
    session: Session,
    cache: Arc<SnapshotCache>,
    node: Option<Node>,
    peer: String,
}

impl Client {
    async fn run<Q: Asks, R>(
        &mut self,
        requests: &mut Streaming<Q>,
        responses: &mpsc::Sender<Result<R, Status>>,
        of: fn(Response) -> Option<R>,
    ) -> Result<(), Status> {
        let mut changes = self.cache.changes();
        loop {
            while let Some(response) = self.session.poll_response().and_then(of) {
                if responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => self.on_request(request)?,
                    None => return Ok(()),
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    if let Some(node) = &self.node {
                        self.session.set_snapshot(self.cache.snapshot(node));
                    }
                }
                () = responses.closed() => return Ok(()),
            }
        }
    }

    fn on_request<Q: Asks>(&mut self, mut request: Q) -> Result<(), Status> {
        let said = request.node();
        if self.node.is_none() {
            // The first request says who asks; later ones need not.
            let node = said.unwrap_or_default();
            if node.encoded_len() > MOST_OF_NODE {
                let about = format!("a node of {} bytes, allowed: at most {MOST_OF_NODE}", node.encoded_len());
                return Err(Status::resource_exhausted(about));
            }
            self.session.set_snapshot(self.cache.snapshot(&node));
            self.cache.tell(Event::Connected { node: node.id.clone(), peer: self.peer.clone() });
            self.node = Some(node);
        }
        let answer = self.session.on_request(request.request()).map_err(|misuse| match misuse {
            Misuse::WrongType(url) => {
                Status::invalid_argument(format!("found type URL {url:?}, which this service does not carry"))
            }
            Misuse::TooManyNames => Status::resource_exhausted("more names than a stream may subscribe to"),
        })?;
        if let (Some(answer), Some(node)) = (answer, &self.node) {
            let (node, kind, version) = (node.id.clone(), answer.kind, answer.version);
            self.cache.tell(match answer.refused {
                None => Event::Acked { node, kind, version },
                Some(mut message) => {
                    message.truncate(message.floor_char_boundary(MOST_OF_REASON));
                    Event::Nacked { node, kind, version, message }
                }
            });
        }
        Ok(())
    }
}
