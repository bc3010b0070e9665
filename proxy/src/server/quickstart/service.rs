//! A service of the mesh: answers with the way that the request took, and may call another service through its sidecar.
//!
//! It has weaknesses to try policies on: `/flaky` fails every other time, `/slow` takes a second, and whoever asks it past the
//! mesh can break and mend it.

use super::say;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

/// Every proxy and service on the way adds its name.
const PATH: &str = "x-path";
/// What `/slow` takes.
const SLOW: Duration = Duration::from_secs(1);

/// One service.
pub struct Service {
    listener: TcpListener,
    facts: Arc<Facts>,
}

struct Facts {
    name: &'static str,
    /// The address of its sidecar for what it sends.
    outbound: String,
    /// The service that `/chain` goes on to.
    next: Option<&'static str>,
    /// Every answer is an error.
    is_broken: AtomicBool,
    /// Requests for `/flaky`.
    flaky: AtomicU32,
}

impl Service {
    /// A service that listens, but does not serve yet.
    pub async fn bind(
        name: &'static str,
        address: &str,
        outbound: &str,
        next: Option<&'static str>,
    ) -> Result<Self, String> {
        let listener = TcpListener::bind(address).await.map_err(|e| format!("{name} at {address}: {e}"))?;
        Ok(Self {
            listener,
            facts: Arc::new(Facts {
                name,
                outbound: outbound.to_owned(),
                next,
                is_broken: AtomicBool::new(false),
                flaky: AtomicU32::new(0),
            }),
        })
    }

    /// Serves for ever.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let facts = self.facts.clone();
                    tokio::spawn(async move {
                        let service = service_fn(|request| {
                            let facts = facts.clone();
                            async move { Ok::<_, Infallible>(facts.answer(&request).await) }
                        });
                        // The peer's end of a connection is its own affair.
                        let _ =
                            server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
                Err(error) => {
                    say(&format!("{}: {error}", self.facts.name));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Facts {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = self.status_and_body(request).await;
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }

    async fn status_and_body(&self, request: &Request<Incoming>) -> (StatusCode, Bytes) {
        let way = self.way(request.headers());
        let is_direct = !request.headers().contains_key(PATH);
        let answer = |status, what: &str| (status, format!("{way}{what}\n").into());
        match request.uri().path() {
            path @ ("/break" | "/mend") if is_direct => {
                self.is_broken.store(path == "/break", Relaxed);
                answer(StatusCode::OK, if path == "/break" { ": broken" } else { ": mended" })
            }
            _ if self.is_broken.load(Relaxed) => answer(StatusCode::SERVICE_UNAVAILABLE, ": broken"),
            "/flaky" if self.flaky.fetch_add(1, Relaxed).is_multiple_of(2) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, ": try again")
            }
            path => {
                if path == "/slow" {
                    tokio::time::sleep(SLOW).await;
                }
                match self.next.filter(|_| path.starts_with("/chain")) {
                    Some(next) => match self.call(next, request, &way).await {
                        Ok(answer) => answer,
                        Err(error) => (StatusCode::BAD_GATEWAY, format!("{way} -> {next}? {error}\n").into()),
                    },
                    None => answer(StatusCode::OK, ""),
                }
            }
        }
    }

    /// The way up to here.
    fn way(&self, headers: &HeaderMap) -> String {
        let before = headers.get_all(PATH).iter().filter_map(|name| name.to_str().ok());
        let names: Vec<&str> = before.flat_map(|names| names.split(',')).map(str::trim).chain([self.name]).collect();
        names.join(" -> ")
    }

    async fn call(
        &self,
        next: &str,
        request: &Request<Incoming>,
        way: &str,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.outbound).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut onward = Request::get(request.uri().path()).header(header::HOST, next).header(PATH, way);
        // So that logs and traces of all proxies on the way belong together.
        if let Some(id) = request.headers().get("x-request-id") {
            onward = onward.header("x-request-id", id);
        }
        let answer = sender.send_request(onward.body(Empty::<Bytes>::new())?).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}
