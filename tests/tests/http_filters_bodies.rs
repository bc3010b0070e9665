//! HTTP filters that compress and decompress bodies, beside Envoy.

use weft_tests::{Client, Proxy, Reply, Response, Upstream, differential, free_port, yaml};

const EX: &str = "type.googleapis.com/envoy.extensions";

fn library(kind: &str, direction: &str) -> String {
    let mut message = kind.to_owned();
    message[..1].make_ascii_uppercase();
    format!(
        "{direction}_library: {{name: lib-{kind}, typed_config: {{\"@type\": {EX}.compression.{kind}.{direction}.v3.{message}}}}}"
    )
}

fn compressor(kind: &str, fields: &str) -> String {
    format!(
        "{{name: c-{kind}, typed_config: {{\"@type\": {EX}.filters.http.compressor.v3.Compressor, {}, {fields}}}}}",
        library(kind, "compressor")
    )
}

fn decompressor(kind: &str, fields: &str) -> String {
    format!(
        "{{name: d-{kind}, typed_config: {{\"@type\": {EX}.filters.http.decompressor.v3.Decompressor, {}, {fields}}}}}",
        library(kind, "decompressor")
    )
}

fn listener(name: &str, port: u16, filters: &[String], routes: &str) -> String {
    let filters: String = filters.iter().map(|filter| format!("{filter}, ")).collect();
    yaml::http_listener(name, port, "", &format!("{{name: v, domains: [\"*\"], routes: [{routes}]}}"))
        .replacen("http_filters: [", &format!("http_filters: [{filters}"), 1)
        .replacen("stat_prefix: http", &format!("stat_prefix: {name}"), 1)
}

/// Answers with what the request's headers ask for.
fn scripted() -> Upstream {
    Upstream::start(|seen| {
        let size = seen.header("x-size").and_then(|size| size.parse().ok()).unwrap_or(2000);
        let status = seen.header("x-status").and_then(|status| status.parse().ok()).unwrap_or(200);
        let mut headers = vec![("content-type".to_owned(), seen.header("x-type").unwrap_or("text/plain").to_owned())];
        let more = seen.header("x-more").into_iter().flat_map(|more| more.split('|')).filter_map(|h| h.split_once('='));
        headers.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Reply::Message(status, headers, vec![b'x'; size])
    })
}

fn ask(port: u16, request: &str, body: &[u8]) -> Response {
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    client.send([request.as_bytes(), body].concat());
    client.response().expect("a response")
}

fn get(port: u16, path: &str, headers: &str) -> Response {
    ask(port, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}connection: close\r\n\r\n"), b"")
}

/// What two libraries may not write alike is left out: the bytes of a compressed body.
fn seen(response: &Response) -> (u16, Vec<(String, String)>, usize) {
    let varies = ["date", "x-envoy-upstream-service-time"];
    let mut headers = response.headers.clone();
    headers.retain(|(name, _)| !varies.contains(&name.as_str()));
    headers.sort();
    let size = if response.header("content-encoding").is_some() { 0 } else { response.body.len() };
    (response.status, headers, size)
}

fn stats(proxy: &Proxy) -> Vec<String> {
    let ours = |line: &&str| {
        line.contains("compressor.")
            && !line.contains("total_compressed_bytes")
            && !line.contains("zlib")
            && !line.contains("zstd_")
            && !line.contains("brotli_")
    };
    proxy.page("/stats").lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn responses_are_compressed_for_whom_and_what_envoy_does() {
    let upstream = scripted();
    let ports = [0; 5].map(|_| free_port());
    let chains: [Vec<String>; 5] = [
        vec![compressor("gzip", "")],
        vec![compressor("gzip", ""), compressor("brotli", ""), compressor("zstd", "")],
        vec![
            compressor("gzip", "choose_first: true"),
            compressor("brotli", "response_direction_config: {common_config: {content_type: [text/html]}}"),
        ],
        vec![compressor(
            "gzip",
            "response_direction_config: {common_config: {min_content_length: 1000}, disable_on_etag_header: true, remove_accept_encoding_header: true, uncompressible_response_codes: [404]}",
        )],
        vec![compressor(
            "gzip",
            "response_direction_config: {common_config: {enabled: {default_value: false, runtime_key: x}}, weaken_etag_on_compress: true}",
        )],
    ];
    let per = |fields: &str| format!("{{\"@type\": {EX}.filters.http.compressor.v3.CompressorPerRoute, {fields}}}");
    let routes = format!(
        "{{match: {{prefix: /off}}, route: {{cluster: u}}, typed_per_filter_config: {{c-gzip: {}}}}}, {{match: {{prefix: /on}}, route: {{cluster: u}}, typed_per_filter_config: {{c-gzip: {}}}}}, {{match: {{prefix: /}}, route: {{cluster: u}}}}",
        per("disabled: true"),
        per("overrides: {response_direction_config: {remove_accept_encoding_header: true}}")
    );
    let config = || {
        let all = chains.iter().zip(ports).enumerate();
        let all: Vec<_> = all.map(|(i, (chain, port))| listener(&format!("l{i}"), port, chain, &routes)).collect();
        yaml::bootstrap(&all, &[yaml::cluster("u", upstream.port())])
    };
    differential(config, |proxy| {
        let mut answers = Vec::new();
        for port in ports {
            for accept in [
                "gzip",
                "gzip;q=0",
                "gzip;q=0.5, identity;q=1",
                "*",
                "identity",
                "deflate",
                "br, gzip",
                "GZIP",
                "zstd;q=0.9, br;q=0.9",
                "*;q=0",
                "",
                "gzip;q=junk",
                "deflate, *;q=0.1",
                "gzip, br",
                "br;q=1.0, *;q=0.5",
                "gzip\r\naccept-encoding: br",
                "gzip ;q=0.5 , br ; q=0.6",
                "gzip;level=1",
            ] {
                answers.push((accept, seen(&get(port, "/", &format!("accept-encoding: {accept}\r\n")))));
            }
            for headers in [
                "x-size: 29",
                "x-size: 30",
                "x-size: 0",
                "x-type: text/html; charset=utf-8",
                "x-type: TEXT/HTML",
                "x-type: image/png",
                "x-type: image/svg+xml",
                "x-type: application/grpc",
                "x-type: text/javascript",
                "x-more: content-encoding=x",
                "x-more: cache-control=private, no-transform",
                "x-more: etag=\"a\"",
                "x-more: etag=W/\"a\"",
                "x-more: etag=x",
                "x-more: vary=Cookie",
                "x-more: vary=*",
                "x-more: vary=accept-encoding",
                "x-more: vary=Cookie,Accept-Encoding",
                "x-status: 404",
                "x-status: 206",
                "x-status: 500",
            ] {
                answers.push((headers, seen(&get(port, "/", &format!("accept-encoding: gzip\r\n{headers}\r\n")))));
            }
            for path in ["/off", "/on"] {
                answers.push((path, seen(&get(port, path, "accept-encoding: gzip\r\n"))));
            }
            answers.push(("none", seen(&get(port, "/", ""))));
        }
        let accepted: Vec<_> =
            upstream.take().iter().map(|seen| seen.header("accept-encoding").map(str::to_owned)).collect();
        (answers, accepted, stats(proxy))
    });
}

/// A proxy compresses, the next one decompresses: whoever it is, what comes out is what went in.
#[test]
fn bodies_come_out_as_they_went_in() {
    let upstream = Upstream::start(|seen| {
        let headers =
            ["content-encoding", "accept-encoding"].map(|name| seen.header(name).unwrap_or("none").to_owned());
        let text = format!(
            "{} {} {} {}",
            headers[0],
            headers[1],
            seen.body.len(),
            String::from_utf8_lossy(&seen.body).repeat(3)
        );
        Reply::Message(200, vec![("content-type".into(), "text/plain".into())], text.into_bytes())
    });
    for kind in ["gzip", "brotli", "zstd"] {
        let (front, back) = (free_port(), free_port());
        let both = "request_direction_config: {common_config: {enabled: {default_value: true, runtime_key: x}}}";
        let routes = |cluster: &str| format!("{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}");
        let config = || {
            // The first listener compresses requests and decompresses responses, the second one the other way round.
            let first = [
                decompressor(
                    kind,
                    "request_direction_config: {common_config: {enabled: {default_value: false, runtime_key: x}}}",
                ),
                compressor(kind, both),
            ];
            let second = [
                compressor(kind, ""),
                decompressor(
                    kind,
                    "response_direction_config: {common_config: {enabled: {default_value: false, runtime_key: x}}}",
                ),
            ];
            let listeners =
                [listener("front", front, &first, &routes("back")), listener("back", back, &second, &routes("u"))];
            yaml::bootstrap(&listeners, &[yaml::cluster("back", back), yaml::cluster("u", upstream.port())])
        };
        differential(config, |proxy| {
            let mut answers = Vec::new();
            for n in [0, 3, 40, 5000, 200_000] {
                // Not so regular that it becomes much smaller: Envoy leaves out what grows too much.
                let mut random = 0x2545_f491_4f6c_dd1d_u64;
                let letter = |_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    b'a' + (random % 26) as u8
                };
                let body: Vec<u8> = (0..n).map(letter).collect();
                let head =
                    format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {n}\r\n\r\n");
                let response = ask(front, &head, &body);
                let len = response.body.len();
                answers.push((n, seen(&response), len, response.body[..len.min(30)].to_vec()));
            }
            (answers, stats(proxy))
        });
    }
}
