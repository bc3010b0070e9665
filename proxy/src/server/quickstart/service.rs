//! A service of the mesh: answers with the way that the request took, and may call another service through its sidecar.

use super::say;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};

/// Every proxy and service on the way adds its name.
const PATH: &str = "x-path";

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
        Ok(Self { listener, facts: Arc::new(Facts { name, outbound: outbound.to_owned(), next }) })
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
        let way = self.way(request.headers());
        let answer = match self.next.filter(|_| request.uri().path().starts_with("/chain")) {
            Some(next) => match self.call(next, request, &way).await {
                Ok(answer) => answer,
                Err(error) => (StatusCode::BAD_GATEWAY, format!("{way} -> {next}? {error}\n").into()),
            },
            None => (StatusCode::OK, format!("{way}\n").into()),
        };
        let (status, body) = answer;
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
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
