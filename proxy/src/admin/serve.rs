//! Serves the admin API over HTTP/1.1 on its own socket, on the control thread.

use super::{
    endpoints,
    message::{Reply, Request},
    view::ServerView,
};
use crate::{
    base::{Address, ConnectionInfo},
    http::{
        message::{Protocol, RequestHead},
        stats::{ConnectionManagerStats, ListenerHttpStats},
    },
    observe::{StreamInfo, access_log::AccessLogs, format::Facts},
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    cell::Cell,
    convert::Infallible,
    io,
    os::unix::fs::PermissionsExt as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use weft_config::{Address as ConfigAddress, string_matcher::StringMatcher};

/// A form in a request's body may have this many bytes.
const MAX_BODY: usize = 1 << 20;

/// A pause after the system refused a connection, for instance because all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

crate::stats! {
    /// `listener.admin.*`
    pub struct AdminListenerStats {
        gauge downstream_cx_active,
        counter downstream_cx_destroy,
        histogram(Milliseconds) downstream_cx_length_ms,
        counter downstream_cx_overflow,
        counter downstream_cx_overload_reject,
        counter downstream_cx_total,
        counter downstream_cx_transport_socket_connect_timeout,
        counter downstream_global_cx_overflow,
        counter downstream_listener_filter_error,
        counter downstream_listener_filter_remote_close,
        gauge downstream_pre_cx_active,
        counter downstream_pre_cx_timeout,
        gauge main_thread_cx_active as "main_thread.downstream_cx_active",
        counter main_thread_cx_total as "main_thread.downstream_cx_total",
        counter no_filter_chain_match,
    }
}

/// The bound socket of the admin API.
pub struct AdminSocket {
    kind: Kind,
    address: Address,
}

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AdminSocket {
    /// Binds to the bootstrap's address. Needs a runtime.
    ///
    /// # Errors
    /// The address is in use, or not one of this machine.
    pub fn bind(address: &ConfigAddress) -> io::Result<Self> {
        let unusable = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        match address {
            ConfigAddress::Socket(socket) => {
                let ip = socket.host.parse().map_err(|_| unusable(format!("{} is no IP address", socket.host)))?;
                let address = std::net::SocketAddr::new(ip, socket.port);
                let listener = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                listener.set_reuse_address(true)?;
                if address.is_ipv6() {
                    listener.set_only_v6(!socket.ipv4_compat)?;
                }
                listener.bind(&address.into())?;
                listener.listen(128)?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener.into())?;
                let address = listener.local_addr()?.into();
                Ok(Self { kind: Kind::Tcp(listener), address })
            }
            ConfigAddress::Pipe(pipe) => {
                let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                let name = match pipe.path.strip_prefix('@') {
                    Some(name) => format!("\0{name}"),
                    None => {
                        // What an earlier process left behind.
                        let _ = std::fs::remove_file(&pipe.path);
                        pipe.path.clone()
                    }
                };
                listener.bind(&SockAddr::unix(name)?)?;
                if pipe.mode != 0 && !pipe.path.starts_with('@') {
                    std::fs::set_permissions(&pipe.path, std::fs::Permissions::from_mode(pipe.mode))?;
                }
                listener.listen(128)?;
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener.into())?;
                Ok(Self { kind: Kind::Unix(listener), address: Address::Unix(pipe.path.as_str().into()) })
            }
            ConfigAddress::Internal(_) => Err(unusable("the admin API needs a socket".to_owned())),
        }
    }

    /// What it is bound to, with the port that the system chose if it was to choose one; for `--admin-address-path`.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// The admin API with what it needs.
pub struct Admin {
    view: Rc<dyn ServerView>,
    /// Empty: all.
    allow_paths: Vec<StringMatcher>,
    access_logs: AccessLogs,
    http: Arc<ConnectionManagerStats>,
    listener: Arc<AdminListenerStats>,
    listener_http: Arc<ListenerHttpStats>,
    connections: Cell<u64>,
}

impl Admin {
    /// The admin API over `view`, with the bootstrap's `admin.allow_paths` and compiled `admin.access_log`.
    pub fn new(view: Rc<dyn ServerView>, allow_paths: Vec<StringMatcher>, access_logs: AccessLogs) -> Rc<Self> {
        let registry = view.registry().clone();
        Rc::new(Self {
            view,
            allow_paths,
            access_logs,
            http: registry.attach("http.admin"),
            listener: registry.attach("listener.admin"),
            listener_http: registry.attach("listener.admin.http.admin"),
            connections: Cell::new(0),
        })
    }

    /// Serves forever. Runs where tasks may be spawned that stay on their thread.
    pub async fn serve(self: Rc<Self>, socket: AdminSocket) {
        let local = socket.address;
        loop {
            let accepted = match &socket.kind {
                Kind::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    tokio::task::spawn_local(self.clone().connection(stream, local.clone(), peer.into()));
                }),
                Kind::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::task::spawn_local(self.clone().connection(stream, local.clone(), Address::Unix("".into())));
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(target: "admin", "cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn connection(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, local: Address, remote: Address) {
        let id = self.connections.get() + 1;
        self.connections.set(id);
        let open = Open::new(&self);
        let connection = Rc::new(ConnectionInfo::accepted(id, local, remote));
        let service = service_fn(|request| {
            let (admin, connection) = (self.clone(), connection.clone());
            async move { Ok::<_, Infallible>(admin.exchange(request, connection).await) }
        });
        // A client that goes away, or sends what is no HTTP, is its own business.
        let result = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        if result.is_err_and(|error| error.is_parse()) {
            self.http.downstream_cx_protocol_error.inc();
        }
        drop(open);
    }

    async fn exchange(&self, request: http::Request<Incoming>, connection: Rc<ConnectionInfo>) -> Response<OneChunk> {
        self.http.downstream_rq_total.inc();
        self.http.downstream_rq_http1_total.inc();
        self.http.downstream_rq_active.inc();
        let mut info = StreamInfo::new(connection);
        let (head, body) = request.into_parts();
        let is_form = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        let reply = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => {
                let body = body.to_bytes();
                info.bytes.received = body.len() as u64;
                let form = std::str::from_utf8(&body).ok().filter(|_| is_form);
                let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
                self.answer(&Request::new(head.method.clone(), target, form))
            }
            Err(_) => Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"),
        };
        self.http.downstream_rq_active.dec();
        self.http.downstream_rq.inc(reply.status.as_u16());
        self.listener_http.downstream_rq.inc(reply.status.as_u16());
        self.http.downstream_rq_time.record(info.start.elapsed().as_millis() as u64);
        if !self.access_logs.is_empty() {
            self.log(&head, &reply, info);
        }
        response(reply)
    }

    /// Answers a request that is allowed.
    pub(super) fn answer(&self, request: &Request) -> Reply {
        if !self.allow_paths.is_empty() && !self.allow_paths.iter().any(|matcher| matcher.matches(&request.path)) {
            return Reply::error(StatusCode::FORBIDDEN, format!("request to path {} not allowed", request.path));
        }
        endpoints::answer(request, &*self.view)
    }

    fn log(&self, head: &http::request::Parts, reply: &Reply, mut info: StreamInfo) {
        info.protocol = Some(Protocol::Http11.as_str());
        info.response_code = reply.status.as_u16();
        info.set_details("via_upstream");
        info.bytes.sent = reply.body.len() as u64;
        info.points.end = Some(Instant::now());
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = RequestHead::new(head.method.clone(), Bytes::copy_from_slice(target.as_bytes()));
        request.headers = head.headers.clone();
        if let Some(host) = request.headers.remove(header::HOST) {
            request.authority = Bytes::copy_from_slice(host.as_bytes());
        }
        let facts = Facts { request: Some(&request), log_type: "DownstreamEnd", ..Facts::new(&info) };
        self.access_logs.log(&facts, &self.view.runtime_snapshot());
    }
}

/// Counts a connection while it is open.
struct Open {
    http: Arc<ConnectionManagerStats>,
    listener: Arc<AdminListenerStats>,
    start: Instant,
}

impl Open {
    fn new(admin: &Admin) -> Self {
        let (http, listener) = (admin.http.clone(), admin.listener.clone());
        http.downstream_cx_total.inc();
        http.downstream_cx_http1_total.inc();
        http.downstream_cx_active.inc();
        http.downstream_cx_http1_active.inc();
        listener.downstream_cx_total.inc();
        listener.downstream_cx_active.inc();
        listener.main_thread_cx_total.inc();
        listener.main_thread_cx_active.inc();
        Self { http, listener, start: Instant::now() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Self { http, listener, start } = self;
        http.downstream_cx_active.dec();
        http.downstream_cx_http1_active.dec();
        http.downstream_cx_destroy.inc();
        http.downstream_cx_destroy_remote.inc();
        http.downstream_cx_length_ms.record(start.elapsed().as_millis() as u64);
        listener.downstream_cx_active.dec();
        listener.downstream_cx_destroy.inc();
        listener.main_thread_cx_active.dec();
        listener.downstream_cx_length_ms.record(start.elapsed().as_millis() as u64);
    }
}

fn response(reply: Reply) -> Response<OneChunk> {
    let mut response = Response::new(OneChunk(Some(reply.body.into())));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::DATE, crate::http::date::now());
    headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
    response
}

/// A body that does not say its length beforehand, so that it goes chunked, as Envoy's admin API sends it.
struct OneChunk(Option<Bytes>);

impl Body for OneChunk {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().filter(|chunk| !chunk.is_empty()).map(|chunk| Ok(Frame::data(chunk))))
    }
}
