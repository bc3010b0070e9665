//! `weft-control` with clients that mean harm, or are just broken: they never disturb the others.
//!
//! The clients are written frame by frame, so that they can do what no library would.

use h2::{RecvStream, SendStream, client};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use weft_control_api::{
    Message, Protocol, ResourceType,
    client::{FrameDecoder, encode_frame},
    envoy::{
        config::{cluster::v3::Cluster, core::v3::Node},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        },
    },
    google::rpc::Status,
};
use weft_tests::{Control, PATIENCE};

const AGGREGATED: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// A stream of a connection of its own.
struct Client {
    send: SendStream<bytes::Bytes>,
    receive: RecvStream,
    frames: FrameDecoder,
}

impl Client {
    async fn open(control: &Control, path: &str) -> Self {
        let tcp = tokio::net::TcpStream::connect(control.address()).await.expect("it listens");
        let (mut requests, connection) = client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        let request = http::Request::post(format!("http://control{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (response, send) = requests.send_request(request, false).expect("a stream");
        let receive = response.await.expect("a response").into_body();
        Self { send, receive, frames: FrameDecoder::new(usize::MAX) }
    }

    async fn delta(control: &Control) -> Self {
        Self::open(control, Protocol::Delta.aggregated_method()).await
    }

    fn bytes(&mut self, bytes: impl Into<bytes::Bytes>) {
        // That the stream was reset shows when reading.
        let _ = self.send.send_data(bytes.into(), false);
    }

    fn ask(&mut self, request: &impl Message) {
        self.bytes(encode_frame(request));
    }

    /// The next response; `None` at the end of the stream.
    async fn response<R: Message + Default>(&mut self) -> Option<R> {
        loop {
            if let Some(message) = self.frames.next_message().expect("good frames") {
                return Some(R::decode(message).expect("a response"));
            }
            let data = timeout(PATIENCE, self.receive.data()).await.expect("an answer in time")?.ok()?;
            self.receive.flow_control().release_capacity(data.len()).expect("it was received");
            self.frames.push(&data);
        }
    }

    /// The status that ends the stream.
    async fn end(&mut self) -> Option<String> {
        while self.response::<DiscoveryResponse>().await.is_some() {}
        let trailers = timeout(PATIENCE, self.receive.trailers()).await.expect("an end in time").ok()??;
        Some(trailers.get("grpc-status")?.to_str().ok()?.to_owned())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), ..Default::default() })
}

fn clusters(nonce: &str) -> DiscoveryRequest {
    let type_url = ResourceType::Cluster.url().to_owned();
    DiscoveryRequest { node: node("n"), type_url, response_nonce: nonce.to_owned(), ..Default::default() }
}

/// A file with `count` clusters, which all have this `alt_stat_name`.
fn file(count: usize, text: &str) -> String {
    let cluster = |i| {
        format!(
            "- {{\"@type\": {}, name: c{i}, connect_timeout: 1s, alt_stat_name: {text}}}\n",
            ResourceType::Cluster.url()
        )
    };
    format!("resources:\n{}", (0..count).map(cluster).collect::<String>())
}

#[test]
fn bytes_that_are_no_requests_end_their_stream_only() {
    let control = Control::start(&[("c.yaml", &file(1, "a"))]);
    runtime().block_on(async {
        let mut good = Client::open(&control, AGGREGATED).await;
        good.ask(&clusters(""));
        let first: DiscoveryResponse = good.response().await.expect("clusters");
        good.ask(&clusters(&first.nonce));

        for bytes in [&b"nonsense\r\n\r\n"[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[0; 4096], &[0xff; 70_000]] {
            let mut tcp = TcpStream::connect(control.address()).expect("it listens");
            tcp.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let _ = tcp.write_all(bytes);
            let mut answer = Vec::new();
            let end = tcp.read_to_end(&mut answer);
            assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        }
        let frames: [&[u8]; 5] = [
            b"\x00\x00\x00\x00\x03\xff\xff\xff",
            b"\x01\x00\x00\x00\x03abc",
            b"\x07\x00\x00\x00\x00",
            b"\x00\xff\xff\xff\xff",
            b"\x00\x02\x00\x00\x00",
        ];
        for frame in frames {
            let mut bad = Client::open(&control, AGGREGATED).await;
            bad.bytes(frame);
            assert!(bad.end().await.is_some_and(|status| status != "0"), "{frame:?}");
        }
        let mut wrong = Client::open(&control, ResourceType::Listener.method(Protocol::Delta).expect("a path")).await;
        wrong.ask(&DeltaDiscoveryRequest { type_url: ResourceType::Cluster.url().to_owned(), ..Default::default() });
        assert_eq!(wrong.end().await.as_deref(), Some("3"));
        let mut boast = Client::open(&control, AGGREGATED).await;
        boast.ask(&DiscoveryRequest { node: node(&"n".repeat(2 << 20)), ..clusters("") });
        assert_eq!(boast.end().await.as_deref(), Some("8"));

        control.write("c.yaml", &file(1, "b"));
        let next: DiscoveryResponse = good.response().await.expect("a change");
        assert_ne!(next.version_info, first.version_info);
    });
}

#[test]
fn a_refusal_cannot_pass_for_something_else() {
    let control = Control::start(&[("c.yaml", &file(1, "a"))]);
    runtime().block_on(async {
        let mut client = Client::open(&control, AGGREGATED).await;
        client.ask(&clusters(""));
        let response: DiscoveryResponse = client.response().await.expect("clusters");
        let message = format!("no\nnode \"other\" refused everything\x1b[2J{}", "x".repeat(1 << 20));
        let error_detail = Some(Status { message, ..Default::default() });
        client.ask(&DiscoveryRequest { error_detail, ..clusters(&response.nonce) });
        control.wait_for_line(&["node \"n\" refused cluster resources", ": no"]);
        let line = control.wait_for_line(&["refused everything"]);
        assert!(line.starts_with("    node \"other\" refused everything\\u{1b}[2Jxxx"), "{}", &line[..80]);
        assert!(line.len() < 20_000);
    });
}

#[test]
fn who_asks_without_end_or_never_reads_holds_up_nobody() {
    let control = Control::start(&[("c.yaml", &file(3000, &"s".repeat(1000)))]);
    let before = control.resident();
    runtime().block_on(async {
        let mut silent = Vec::new();
        for i in 0..20 {
            let mut client = Client::open(&control, AGGREGATED).await;
            client.ask(&clusters(""));
            for name in 0..500 {
                // Each takes another interest, so that none is cheap.
                let resource_names = vec![format!("c{}", (name * 7 + i) % 3000)];
                client.ask(&DiscoveryRequest { resource_names, ..clusters("") });
            }
            silent.push(client);
        }
        let mut good = Client::delta(&control).await;
        let request = |nonce: &str| DeltaDiscoveryRequest {
            node: node("good"),
            type_url: ResourceType::Cluster.url().to_owned(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        good.ask(&request(""));
        let all: DeltaDiscoveryResponse = good.response().await.expect("clusters");
        assert_eq!(all.resources.len(), 3000);
        good.ask(&request(&all.nonce));
        let start = Instant::now();
        control.write("d.yaml", &file(1, "new").replace("c0", "d0"));
        let one: DeltaDiscoveryResponse = good.response().await.expect("a change");
        assert_eq!(one.resources.iter().map(|r| &*r.name).collect::<Vec<_>>(), ["d0"]);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // A response of 3 MB each, which is encoded and waits, and its copy on the way.
        let more = control.resident().saturating_sub(before);
        assert!(more < 300 << 20, "{} MiB more", more >> 20);
        drop(silent);
    });
}

#[test]
fn of_ten_thousand_clusters_the_one_that_changed_is_sent() {
    let many = file(10_000, "a");
    let control = Control::start(&[("c.yaml", &many)]);
    runtime().block_on(async {
        let mut client = Client::delta(&control).await;
        let type_url = ResourceType::Cluster.url().to_owned();
        client.ask(&DeltaDiscoveryRequest { node: node("n"), type_url: type_url.clone(), ..Default::default() });
        let all: DeltaDiscoveryResponse = client.response().await.expect("clusters");
        assert_eq!(all.resources.len(), 10_000);
        client.ask(&DeltaDiscoveryRequest { type_url, response_nonce: all.nonce, ..Default::default() });
        control.write("c.yaml", &many.replace("c77, connect_timeout: 1s", "c77, connect_timeout: 2s"));
        let one: DeltaDiscoveryResponse = client.response().await.expect("a change");
        let [Resource { name, resource: Some(body), .. }] = &one.resources[..] else { panic!("{one:?}") };
        let cluster = Cluster::decode(&*body.value).expect("a cluster");
        assert_eq!((&**name, cluster.connect_timeout.map(|t| t.seconds)), ("c77", Some(2)));
        assert!(one.removed_resources.is_empty());
    });
}
