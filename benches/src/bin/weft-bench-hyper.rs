//! A bare reverse proxy on hyper: what a request costs with no features at all. `make bench` measures it beside the others.
//!
//! A thread a core, each with a runtime of its own, its own SO_REUSEPORT listeners and a list of idle connections to each backend.
//! It changes no header, matches no route, counts nothing and has no timeouts; it is a yardstick, not a proxy.

use clap::Parser;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, client::conn, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use socket2::{Domain, Socket, Type};
use std::{
    cell::RefCell,
    error::Error,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Fault = Box<dyn Error + Send + Sync>;

/// Each listener is PORT=PORT: where it listens and where the backend is, on localhost.
#[derive(Parser, Clone)]
struct Options {
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long)]
    http1: Vec<String>,
    #[arg(long)]
    http2: Vec<String>,
    /// TLS to clients only
    #[arg(long)]
    tls: Vec<String>,
    #[arg(long)]
    tls_http2: Vec<String>,
    /// On both sides
    #[arg(long)]
    mtls: Vec<String>,
}

fn main() -> Result<(), Fault> {
    let options = Options::parse();
    let tls = Arc::new(Tls::new(&options.certificates)?);
    let threads: Vec<_> = (0..options.threads)
        .map(|_| {
            let (options, tls) = (options.clone(), tls.clone());
            thread::spawn(move || work(&options, &tls))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(())
}

fn work(options: &Options, tls: &Tls) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    let kinds = [
        (&options.http1, false, None, None),
        (&options.http2, true, None, None),
        (&options.tls, false, Some(&tls.server), None),
        (&options.tls_http2, true, Some(&tls.server_http2), None),
        (&options.mtls, false, Some(&tls.mutual), Some(&tls.client)),
    ];
    for (listeners, http2, down, up) in kinds {
        for ports in listeners {
            let (from, to) = ports.split_once('=').ok_or("PORT=PORT is wanted")?;
            let local = |port: &str| Ok::<_, Fault>(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?)));
            let pool = Rc::new(Pool { to: local(to)?, http2, tls: up.cloned(), ..Pool::default() });
            tasks.spawn_local(listen(local(from)?, down.cloned(), pool));
        }
    }
    runtime.block_on(tasks);
    Ok(())
}

async fn listen(at: SocketAddr, tls: Option<Arc<ServerConfig>>, pool: Rc<Pool>) -> Result<(), Fault> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(1024)?;
    let listener = TcpListener::from_std(socket.into())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tls, pool) = (tls.clone(), pool.clone());
        spawn_local(async move {
            match tls {
                None => serve(stream, pool).await,
                Some(config) => serve(TlsAcceptor::from(config).accept(stream).await?, pool).await,
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, pool: Rc<Pool>) -> Result<(), Fault> {
    let http2 = pool.http2;
    let forward = service_fn(move |request| {
        let pool = pool.clone();
        async move { pool.forward(request).await }
    });
    let io = TokioIo::new(stream);
    if http2 {
        server::conn::http2::Builder::new(Local).serve_connection(io, forward).await?;
    } else {
        server::conn::http1::Builder::new().serve_connection(io, forward).await?;
    }
    Ok(())
}

/// Connections to a backend: idle ones of HTTP/1.1, or the one of HTTP/2.
struct Pool {
    to: SocketAddr,
    http2: bool,
    tls: Option<Arc<ClientConfig>>,
    idle: RefCell<Vec<conn::http1::SendRequest<Incoming>>>,
    shared: RefCell<Option<conn::http2::SendRequest<Incoming>>>,
}

impl Default for Pool {
    fn default() -> Self {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { to, http2: false, tls: None, idle: RefCell::default(), shared: RefCell::default() }
    }
}

impl Pool {
    async fn forward(self: &Rc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Fault> {
        if self.http2 {
            let sender = self.shared.borrow().clone();
            let mut sender = match sender {
                Some(sender) if !sender.is_closed() => sender,
                _ => {
                    let io = TokioIo::new(self.connect().await?);
                    let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
                    spawn_local(connection);
                    self.shared.replace(Some(sender.clone()));
                    sender
                }
            };
            return Ok(sender.send_request(request).await?.map(BodyExt::boxed_unsync));
        }
        let ready = loop {
            match self.idle.borrow_mut().pop() {
                Some(sender) if sender.is_ready() => break Some(sender),
                Some(_) => {}
                None => break None,
            }
        };
        let mut sender = match ready {
            Some(sender) => sender,
            None => {
                let stream = self.connect().await?;
                let (sender, connection) = match &self.tls {
                    None => {
                        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
                        (sender, Box::pin(connection) as std::pin::Pin<Box<dyn Future<Output = hyper::Result<()>>>>)
                    }
                    Some(config) => {
                        let name = ServerName::try_from("bench.example")?;
                        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
                        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
                        (sender, Box::pin(connection) as _)
                    }
                };
                spawn_local(connection);
                sender
            }
        };
        let mut request = request;
        *request.version_mut() = hyper::Version::HTTP_11;
        let response = sender.send_request(request).await?;
        let pool = self.clone();
        // It is idle again when the connection says so, which is after the body.
        spawn_local(async move {
            if sender.ready().await.is_ok() {
                pool.idle.borrow_mut().push(sender);
            }
        });
        Ok(response.map(BodyExt::boxed_unsync))
    }

    async fn connect(&self) -> Result<TcpStream, Fault> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, hyper::Error>;

/// Tasks of HTTP/2 stay on their thread.
#[derive(Clone)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

struct Tls {
    server: Arc<ServerConfig>,
    server_http2: Arc<ServerConfig>,
    mutual: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    fn new(folder: &Path) -> Result<Self, Fault> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("authority.crt"))?)?;
        let roots = Arc::new(roots);
        let chain = vec![CertificateDer::from_pem_file(folder.join("proxy.crt"))?];
        let key = PrivateKeyDer::from_pem_file(folder.join("proxy.key"))?;
        let server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain.clone(), key.clone_key())?;
        let mut server_http2 = server.clone();
        server_http2.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = WebPkiClientVerifier::builder(roots.clone()).build()?;
        let mutual = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let mut client = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            server: Arc::new(server),
            server_http2: Arc::new(server_http2),
            mutual: Arc::new(mutual),
            client: Arc::new(client),
        })
    }
}
