//! The gRPC side: every discovery service, each stream a task with a [`Session`].
//!
//! A client that does not read holds up its own stream only, with one response in memory.

use super::{
    Event, SnapshotCache,
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
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tonic::{
    Status, Streaming,
    body::Body,
    server::{Grpc, StreamingService},
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

/// Where clients connect to.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `host:port` or `unix:PATH`. A socket file that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: &str) -> io::Result<Self> {
        let Some(path) = address.strip_prefix("unix:") else {
            return TcpListener::bind(address).await.map(Self::Tcp);
        };
        if std::os::unix::net::UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
        UnixListener::bind(path).map(Self::Unix)
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            Self::Unix(unix) => {
                let address = unix.local_addr().ok();
                let path = address.as_ref().and_then(|a| a.as_pathname());
                path.map(|path| format!("unix:{}", path.display())).unwrap_or_default()
            }
        }
    }
}

/// Clients whose machine is gone are noticed by this.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Requests are no longer than this.
const MOST: usize = 16 << 20;
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
    let mut server =
        Server::builder().http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE));
    let router = server.add_routes(routes(&cache));
    match listener {
        Listener::Tcp(tcp) => {
            router.serve_with_incoming_shutdown(TcpIncoming::from(tcp).with_nodelay(Some(true)), until).await
        }
        Listener::Unix(unix) => {
            let incoming = stream::unfold(unix, |unix| async {
                let accepted = unix.accept().await.map(|(stream, _)| stream);
                Some((accepted, unix))
            });
            router.serve_with_incoming_shutdown(incoming, until).await
        }
    }
}

fn routes(cache: &Arc<SnapshotCache>) -> Routes {
    let mut router = Routes::default().into_axum_router();
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
                Some(message) => Event::Nacked { node, kind, version, message },
            });
        }
        Ok(())
    }
}
