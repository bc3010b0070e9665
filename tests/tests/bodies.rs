//! Big bodies of HTTP/1.1: whole, counted, bounded, and gone without a trace where a side dies in their midst.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use weft_tests::{
    Client, Kind, PATIENCE, Proxy,
    bulk::{MIB, pattern, server},
    free_port, until, yaml,
};

const LOG: &str = "access_log: [{name: stderr, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.\
     v3.StderrAccessLog, log_format: {text_format_source: {inline_string: \"LOG %RESPONSE_CODE% %RESPONSE_FLAGS% \
     %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_CODE_DETAILS%\\n\"}}}}]";

/// A proxy in front of `upstream`; `limit` is that of buffers, on both sides, `fields` are the connection manager's.
fn proxy(upstream: u16, limit: Option<u32>, fields: &str) -> (Proxy, u16) {
    let port = free_port();
    let host = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u, timeout: 0s}}]}";
    let limit = limit.map_or(String::new(), |limit| format!("{{per_connection_buffer_limit_bytes: {limit}, "));
    let limited = |part: String| if limit.is_empty() { part } else { part.replacen('{', &limit, 1) };
    let listener = limited(yaml::http_listener("l", port, &format!("{LOG}{fields}"), host));
    let config = yaml::bootstrap(&[listener], &[limited(yaml::cluster("u", upstream))]);
    (Proxy::start(&Kind::Weft, &config), port)
}

/// A request's path and the length of its body, which is not read yet; `None` at the end.
fn request(reader: &mut impl BufRead) -> Option<(String, usize)> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Some((path?, length));
        }
        if path.is_none() {
            path = line.split(' ').nth(1).map(str::to_owned);
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
    }
}

/// `length` bytes of the pattern.
fn body(pattern: &[u8], length: usize) -> Vec<u8> {
    pattern.iter().copied().cycle().take(length).collect()
}

/// Reads a request's body and answers with as much, framed as the path says.
fn mirror(stream: &TcpStream, pattern: &[u8]) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let (path, length) = request(&mut reader)?;
        let mut got = vec![0; length];
        reader.read_exact(&mut got).ok()?;
        let same = got == body(pattern, length);
        let framing = match path.as_str() {
            "/length" => format!("content-length: {length}\r\n"),
            "/chunked" => "transfer-encoding: chunked\r\n".to_owned(),
            _ => "connection: close\r\n".to_owned(),
        };
        writer.write_all(format!("HTTP/1.1 200 OK\r\nx-same: {same}\r\n{framing}\r\n").as_bytes()).ok()?;
        match path.as_str() {
            "/chunked" => {
                for chunk in got.chunks(150_000) {
                    writer.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).ok()?;
                    writer.write_all(chunk).ok()?;
                    writer.write_all(b"\r\n").ok()?;
                }
                writer.write_all(b"0\r\n\r\n").ok()?;
            }
            "/length" => writer.write_all(&got).ok()?,
            _ => {
                writer.write_all(&got).ok()?;
                return None;
            }
        }
    }
}

#[test]
fn bodies_of_all_sizes_pass_whole_and_are_counted() {
    let bytes = Arc::new(pattern(7));
    let theirs = bytes.clone();
    let upstream = server(move |stream| _ = mirror(&stream, &theirs));
    for limit in [None, Some(20_000)] {
        let (proxy, port) = proxy(upstream, limit, "");
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        let (mut lines, mut sum) = (0, 0);
        for length in [1, 16_000, 65_536, 131_071, 150_000, 1 << 20, 7 * MIB + 13] {
            for path in ["/length", "/chunked", "/close"] {
                let mut sent =
                    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n").into_bytes();
                let all = body(&bytes, length);
                sent.extend_from_slice(&all);
                assert!(client.send(&sent));
                let response = client.response().expect("a response");
                assert_eq!((response.status, response.header("x-same")), (200, Some("true")), "{path} {length}");
                assert!(response.body == all, "{path} {length}: {} bytes", response.body.len());
                lines += 1;
                sum += length;
                let logged = format!("LOG 200 - {length} {length} via_upstream");
                assert_eq!(proxy.log_lines(lines).last(), Some(&logged));
            }
        }
        for stat in ["http.http.downstream_cx_rx_bytes_total", "cluster.u.upstream_cx_tx_bytes_total"] {
            let counted = proxy.stat(stat).unwrap_or_default() as usize;
            assert!((sum..sum + lines * 400).contains(&counted), "{stat} is {counted}, of {sum}");
        }
        for stat in ["http.http.downstream_cx_tx_bytes_total", "cluster.u.upstream_cx_rx_bytes_total"] {
            let counted = proxy.stat(stat).unwrap_or_default() as usize;
            assert!((sum..sum + sum / 1000 + lines * 400).contains(&counted), "{stat} is {counted}, of {sum}");
        }
    }
}

/// The most that the kernel gives a socket's buffer of this kind, in bytes.
fn kernel_limit(name: &str) -> usize {
    let all = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("Linux tells it");
    all.split_whitespace().last().and_then(|most| most.parse().ok()).expect("three numbers")
}

/// It takes two megabytes a second: what waits for it moves, however little of it.
#[test]
fn a_slow_reader_costs_no_more_than_the_buffers_and_is_not_idle() {
    // What the kernel may hold between the ends: the proxy's receive buffer, and two send buffers.
    let held = kernel_limit("tcp_rmem") + 2 * kernel_limit("tcp_wmem") + 4 * MIB;
    let length = 4 * held;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let upstream = server(move |stream| {
        let _ = request(&mut BufReader::new(&stream));
        let mut writer = &stream;
        let _ = writer.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        let chunk = vec![1; 64 << 10];
        while writer.write_all(&chunk).is_ok() {
            counted.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    });
    let (proxy, port) = proxy(upstream, None, ", stream_idle_timeout: 1s");
    let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    socket2::SockRef::from(&client).set_recv_buffer_size(256 << 10).expect("a buffer of its own size");
    (&client).write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("it reads");
    let mut buffer = vec![0; 200 << 10];
    for _ in 0..30 {
        (&client).read_exact(&mut buffer).expect("the stream goes on");
        thread::sleep(Duration::from_millis(100));
    }
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < held + 30 * buffer.len(), "{sent} bytes were taken of the upstream, where {held} can wait");
    drop(client);
    let line = proxy.log_lines(1).remove(0);
    assert!(line.starts_with("LOG 200 DC 0 "), "{line}");
}

/// How a peer goes away.
fn cut(stream: &TcpStream, by_reset: bool) {
    if by_reset {
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    } else {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn read_up_to(mut stream: impl Read, mut left: usize) {
    let mut buffer = [0; 64 << 10];
    while left > 0
        && let Ok(n @ 1..) = stream.read(&mut buffer[..left.min(64 << 10)])
    {
        left -= n;
    }
}

/// What each kind of proxy is to go through; with both, ten thousand.
const TRANSFERS: usize = 5_000;
const THREADS: usize = 8;
const LENGTH: usize = 600 << 10;

/// One end of a transfer, as the path of its request tells the upstream: `/up/AT/RESET` or `/down/AT/RESET`; AT beyond the
/// length: it is the client that goes.
fn serve_and_cut(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(&stream);
    let Some((path, length)) = request(&mut reader) else { return };
    let mut words = path.split('/').skip(1);
    let up = words.next() == Some("up");
    let at = words.next().and_then(|at| at.parse().ok()).unwrap_or(0);
    let by_reset = words.next() == Some("true");
    let _ = stream.set_read_timeout(Some(PATIENCE));
    if up {
        read_up_to(&mut reader, length.min(at));
    } else {
        let mut writer = &stream;
        let _ = writer
            .write_all(format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {LENGTH}\r\n\r\n").as_bytes());
        let _ = writer.write_all(&vec![1; LENGTH.min(at)]);
    }
    if at > LENGTH {
        let _ = (&stream).read(&mut [0; 1]);
    }
    cut(&stream, by_reset);
}

/// Many transfers in one direction or the other, each cut at some byte, by an end or a reset of one side or the other.
fn abort_transfers(port: u16, seed: u64) {
    eprintln!("seed {seed}");
    let transfers = move |thread: u64| {
        let mut state = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + thread) | 1;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..TRANSFERS / THREADS {
            let (up, client_cuts, by_reset) = (random(2) == 0, random(2) == 0, random(2) == 0);
            let at = random(LENGTH);
            let (mine, theirs) = if client_cuts { (at, 2 * LENGTH) } else { (LENGTH, at) };
            let (kind, length) = if up { ("up", LENGTH) } else { ("down", 0) };
            let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            let _ = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
            let lines = format!("host: a\r\nconnection: close\r\ncontent-length: {length}\r\n");
            let head = format!("POST /{kind}/{theirs}/{by_reset} HTTP/1.1\r\n{lines}\r\n");
            let _ = (&stream).write_all(head.as_bytes());
            if up {
                let _ = (&stream).write_all(&vec![1; mine]);
            }
            match (client_cuts, up) {
                (true, true) => {}
                (true, false) => read_up_to(&stream, mine),
                (false, _) => read_up_to(&stream, 2 * LENGTH),
            }
            cut(&stream, by_reset);
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            scope.spawn(move || transfers(thread));
        }
    });
}

/// What was held of it goes too.
fn aborted_transfers_leave_nothing_behind(proxy: &Proxy, port: u16) {
    let before = proxy.descriptors("");
    abort_transfers(port, u64::from(std::process::id()));
    proxy.wait_for_stat("cluster.u.upstream_cx_active", 0);
    // A thread keeps a few pipes for the next.
    let spare = 2 * 16;
    until("descriptors to be given back", || (proxy.descriptors("") <= before + spare).then_some(()));
    assert!((1..=spare).contains(&proxy.descriptors("pipe:")), "{} ends of pipes", proxy.descriptors("pipe:"));
}

#[test]
fn aborted_bodies_leave_nothing_behind() {
    // Who answers in the midst of a request is not to wait for the rest of it.
    let (proxy, port) = proxy(server(serve_and_cut), None, ", delayed_close_timeout: 0s");
    aborted_transfers_leave_nothing_behind(&proxy, port);
    let all = TRANSFERS / THREADS * THREADS;
    proxy.wait_for_stat("http.http.downstream_rq_total", all as u64);
    proxy.wait_for_stat("http.http.downstream_rq_active", 0);
    assert_eq!(proxy.log_lines(all).len(), all, "each ended once");
}

#[test]
fn aborted_connections_leave_nothing_behind() {
    let port = free_port();
    let cluster = yaml::cluster("u", server(serve_and_cut));
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[yaml::tcp_listener("l", port, "u")], &[cluster]));
    aborted_transfers_leave_nothing_behind(&proxy, port);
}

/// Much went through each of them; then they wait.
#[test]
fn idle_connections_hold_no_pipe() {
    const CONNECTIONS: usize = 60;
    let upstream = server(|stream| {
        let mut buffer = [0; 64 << 10];
        while (&stream).read_exact(&mut buffer).is_ok() && (&stream).write_all(&buffer).is_ok() {}
    });
    let port = free_port();
    let proxy = Proxy::start(
        &Kind::Weft,
        &yaml::bootstrap(&[yaml::tcp_listener("l", port, "u")], &[yaml::cluster("u", upstream)]),
    );
    let bytes = vec![1; 2 * MIB];
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            thread::scope(|scope| {
                scope.spawn(|| (&client).write_all(&bytes));
                (&client).read_exact(&mut vec![0; bytes.len()]).expect("it comes back");
            });
            client
        })
        .collect();
    let pipes = proxy.descriptors("pipe:");
    assert!((1..=2 * 16).contains(&pipes), "{pipes} ends of pipes for {} connections", clients.len());
}
