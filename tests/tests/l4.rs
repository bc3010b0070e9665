//! TCP through Weft and through Envoy: the same bytes, ends, log lines and stats.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};
use weft_tests::{
    Client, Kind, Proxy,
    bulk::{MIB, pattern, read_pattern, server},
    differential, free_port, until, yaml,
};

/// A listener whose only network filter is the TCP proxy to cluster `t`; `fields` go into the filter.
fn tcp_listener(port: u16, fields: &str, listener_fields: &str) -> String {
    format!(
        "{{name: l, stat_prefix: l, {listener_fields} address: {{socket_address: {{address: 127.0.0.1, port_value: \
         {port}}}}}, filter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.\
         extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: t, {fields} access_log: [{LOG}]}}}}]}}]}}"
    )
}

const LOG: &str = "{name: stderr, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.\
                   v3.StderrAccessLog, log_format: {text_format_source: {inline_string: \"LOG %RESPONSE_FLAGS% \
                   %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
                   %UPSTREAM_TRANSPORT_FAILURE_REASON% %ACCESS_LOG_TYPE%\\n\"}}}}";

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// What comes until the end, and whether that was a reset.
fn rest(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut bytes = Vec::new();
    let reset = stream.read_to_end(&mut bytes).is_err();
    (bytes, reset)
}

#[test]
fn either_side_may_end_its_half_first() {
    let client_first = server(|mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = write!(stream, "{} bytes", all.len());
    });
    let server_first = server(|mut stream| {
        let _ = stream.write_all(b"hello");
        let _ = stream.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    });
    for (upstream, speaks) in [(client_first, false), (server_first, true)] {
        let port = free_port();
        let config = || yaml::bootstrap(&[tcp_listener(port, "", "")], &[yaml::cluster("t", upstream)]);
        differential(config, |proxy| {
            let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            let early = if speaks { rest(&mut client) } else { Default::default() };
            client.write_all(&[7; 3000]).expect("it reads");
            client.shutdown(Shutdown::Write).expect("half of it");
            let late = rest(&mut client);
            proxy.wait_for_stat("cluster.t.upstream_cx_active", 0);
            let by =
                ["local", "remote"].map(|by| proxy.stat(&format!("cluster.t.upstream_cx_destroy_{by}_with_active_rq")));
            (early, late, proxy.log_lines(1), by, proxy.stat("tcp.t.downstream_cx_rx_bytes_total"))
        });
    }
}

#[test]
fn a_reset_goes_through() {
    let upstream = server(|mut stream| {
        let mut one = [0];
        let _ = stream.read(&mut one);
        // Unread bytes make the close a reset.
    });
    let port = free_port();
    let config = || yaml::bootstrap(&[tcp_listener(port, "", "")], &[yaml::cluster("t", upstream)]);
    differential(config, |proxy| {
        let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        client.write_all(b"hello").expect("it reads");
        (rest(&mut client), proxy.log_lines(1))
    });
}

#[test]
fn a_refused_connection_is_tried_as_often_as_configured() {
    let (port, nobody) = (free_port(), free_port());
    let config =
        || yaml::bootstrap(&[tcp_listener(port, "max_connect_attempts: 3,", "")], &[yaml::cluster("t", nobody)]);
    differential(config, |proxy| {
        let closed = Client::connect(("127.0.0.1", port)).expect("it listens").is_closed();
        let stats = ["upstream_cx_connect_fail", "upstream_cx_connect_attempts_exceeded", "upstream_cx_total"];
        (closed, proxy.log_lines(1), stats.map(|name| proxy.stat(&format!("cluster.t.{name}"))))
    });
}

#[test]
fn idle_and_long_connections_end() {
    let upstream = server(echo);
    for fields in ["idle_timeout: 0.3s,", "max_downstream_connection_duration: 0.3s,"] {
        let port = free_port();
        let config = || yaml::bootstrap(&[tcp_listener(port, fields, "")], &[yaml::cluster("t", upstream)]);
        differential(config, |proxy| {
            let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            client.write_all(b"x").expect("it reads");
            let stats = ["idle_timeout", "max_downstream_connection_duration"];
            (rest(&mut client), proxy.log_lines(1), stats.map(|name| proxy.stat(&format!("tcp.t.{name}"))))
        });
    }
}

#[test]
fn a_tunnel_over_connect_carries_the_bytes() {
    let upstream = server(|mut stream| {
        let mut head = Vec::new();
        let mut one = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut one).is_ok() {
            head.push(one[0]);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        let _ = stream.write_all(&head);
        echo(stream);
    });
    let port = free_port();
    let fields = "tunneling_config: {hostname: \"a.test:1\", headers_to_add: [{header: {key: x-a, value: \
                  \"%UPSTREAM_CLUSTER%\"}}]},";
    let config = || yaml::bootstrap(&[tcp_listener(port, fields, "")], &[yaml::cluster("t", upstream)]);
    differential(config, |_| {
        let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
        client.send("hello");
        let expected = "CONNECT a.test:1 HTTP/1.1\r\nhost: a.test:1\r\nx-a: t\r\n\r\nhello";
        client.exactly(expected.len()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    });
}

/// Resident memory of a process, in KiB.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// The sender offers a gigabyte; what the reader does not take must not be held by the proxy.
#[test]
fn a_slow_reader_costs_no_more_than_the_buffers() {
    let upstream = server(|stream| {
        thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    let port = free_port();
    let listener = tcp_listener(port, "", "per_connection_buffer_limit_bytes: 32768,");
    let proxy = Proxy::start(&Kind::Weft, &yaml::bootstrap(&[listener], &[yaml::cluster("t", upstream)]));
    // What the first connection of all needs is not counted.
    let first = TcpStream::connect(("127.0.0.1", port)).and_then(|mut first| first.write_all(&[1; 64 << 10]));
    first.expect("it listens");
    let read = || proxy.stat("tcp.t.downstream_cx_rx_bytes_total").filter(|read| *read == 64 << 10);
    until("the first bytes to be taken", read);
    let before = resident(proxy.id());
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    client.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let chunk = vec![1; 1 << 20];
    let sent = (0..1024).take_while(|_| client.write_all(&chunk).is_ok()).count();
    assert!(sent < 1024, "the sender was not held back");
    let grown = resident(proxy.id()).saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB more");
    assert!(proxy.stat("tcp.t.downstream_flow_control_paused_reading_total") > Some(0));
}

/// Sends `length` bytes of a pattern in pieces of changing size, and ends.
fn send_pattern(mut stream: &TcpStream, pattern: &[u8], length: usize) {
    let bytes: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
    let mut rest = &bytes[..];
    // Long stretches of large pieces and of small ones: both ways of moving them, and back.
    for piece in [MIB, MIB, MIB, 700, 3, 90, 5000, 1].into_iter().cycle() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        if now.is_empty() || stream.write_all(now).is_err() {
            break;
        }
        rest = later;
    }
    let _ = stream.shutdown(Shutdown::Write);
}

#[test]
fn much_goes_both_ways_at_once_and_nothing_is_lost_or_doubled() {
    const UP: usize = 40 * MIB + 12_345;
    const DOWN: usize = 30 * MIB + 1;
    let (tell, told) = std::sync::mpsc::channel();
    let [up, down] = [1, 2].map(|seed| Arc::new(pattern(seed)));
    let (theirs, ours) = (down.clone(), up.clone());
    let upstream = server(move |stream| {
        thread::scope(|scope| {
            scope.spawn(|| send_pattern(&stream, &theirs, DOWN));
            let _ = tell.send(read_pattern(&stream, &ours));
        });
    });
    for limit in ["", "per_connection_buffer_limit_bytes: 20000,"] {
        let port = free_port();
        let config = yaml::bootstrap(&[tcp_listener(port, "", limit)], &[yaml::cluster("t", upstream)]);
        let proxy = Proxy::start(&Kind::Weft, &config);
        let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        thread::scope(|scope| {
            scope.spawn(|| send_pattern(&client, &up, UP));
            assert_eq!(read_pattern(&client, &down), Some(DOWN));
        });
        assert_eq!(told.recv().ok(), Some(Some(UP)));
        assert_eq!(proxy.log_lines(1), [format!("LOG - {UP} {DOWN} t 1 - TcpConnectionEnd")]);
        for (stat, bytes) in [
            ("tcp.t.downstream_cx_rx_bytes_total", UP),
            ("tcp.t.downstream_cx_tx_bytes_total", DOWN),
            ("cluster.t.upstream_cx_rx_bytes_total", DOWN),
            ("cluster.t.upstream_cx_tx_bytes_total", UP),
        ] {
            assert_eq!(proxy.stat(stat), Some(bytes as u64), "{stat}");
        }
    }
}

/// Urgent data is left out, as by Envoy; all that goes in order comes, and so does the end.
#[test]
fn urgent_data_holds_nothing_up() {
    let bytes = Arc::new(pattern(1));
    let (tell, told) = std::sync::mpsc::channel();
    let theirs = bytes.clone();
    let upstream = server(move |stream| {
        let _ = tell.send(read_pattern(&stream, &theirs));
    });
    let port = free_port();
    let config = yaml::bootstrap(&[tcp_listener(port, "", "")], &[yaml::cluster("t", upstream)]);
    let _proxy = Proxy::start(&Kind::Weft, &config);
    for more in [4000, 3 * bytes.len()] {
        let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        for _ in 0..6 {
            client.write_all(&bytes).expect("it is taken");
        }
        socket2::SockRef::from(&client).send_out_of_band(b"!").expect("it is sent");
        let rest: Vec<u8> = bytes.iter().copied().cycle().take(more).collect();
        client.write_all(&rest).expect("it is taken");
        drop(client);
        assert_eq!(told.recv().ok(), Some(Some(6 * bytes.len() + more)));
    }
}

/// Either side goes away in the midst of much that flows both ways; what the proxy held of it goes too.
#[test]
fn aborted_transfers_leave_nothing_behind() {
    const TRANSFERS: usize = 100;
    let bytes = Arc::new(pattern(1));
    let theirs = bytes.clone();
    let upstream = server(move |stream| {
        thread::scope(|scope| {
            scope.spawn(|| send_pattern(&stream, &theirs, 3 * MIB));
            let mut buffer = vec![0; 64 << 10];
            let mut left = 700 * 1024;
            // Every other one is cut by the server.
            let is_cut = stream.peer_addr().is_ok_and(|peer| peer.port() % 2 == 0);
            while let Ok(n @ 1..) = (&stream).read(&mut buffer) {
                left -= n.min(left);
                if is_cut && left == 0 {
                    let _ = stream.shutdown(Shutdown::Both);
                    break;
                }
            }
        });
    });
    let port = free_port();
    let config = yaml::bootstrap(&[tcp_listener(port, "", "")], &[yaml::cluster("t", upstream)]);
    let proxy = Proxy::start(&Kind::Weft, &config);
    let open = |kind: &str| proxy.descriptors(kind);
    let before = (open(""), open("pipe:"));
    let transfer = |turn: usize| {
        let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        thread::scope(|scope| {
            scope.spawn(|| send_pattern(&client, &bytes, 2 * MIB));
            let mut buffer = vec![0; 64 << 10];
            let mut left = (turn % 40) * 32 * 1024;
            while left > 0
                && let Ok(n @ 1..) = (&client).read(&mut buffer)
            {
                left -= n.min(left);
            }
            // With bytes unread this resets the connection.
            let _ = client.shutdown(Shutdown::Both);
        });
    };
    (0..TRANSFERS).for_each(transfer);
    // Where both ends are slow the bytes come in small pieces, and these are copied.
    until("the kernel to have moved something", || {
        transfer(TRANSFERS - 1);
        (open("pipe:") > before.1).then_some(())
    });
    proxy.wait_for_stat("cluster.t.upstream_cx_active", 0);
    proxy.wait_for_stat("listener.l.downstream_cx_active", 0);
    // A thread keeps a few pipes for the next.
    let spare = 2 * 16 * std::thread::available_parallelism().map_or(1, usize::from);
    assert!(open("") <= before.0 + spare, "{before:?} descriptors before, {} after", open(""));
}
