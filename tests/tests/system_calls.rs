//! What requests and bodies cost in system calls, counted with strace.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};
use weft_tests::{Client, Kind, Proxy, Reply, Upstream, bulk::MIB, bulk::server, free_port, tools, yaml};

const HOST: &str = "{name: v, domains: [\"*\"], routes: [{match: {prefix: /}, route: {cluster: u}}]}";

/// A proxy in front of `upstream`, and where it listens.
fn proxy(upstream: u16) -> (Proxy, u16) {
    let port = free_port();
    let config = yaml::bootstrap(&[yaml::http_listener("l", port, "", HOST)], &[yaml::cluster("u", upstream)]);
    (Proxy::start(&Kind::Weft, &config), port)
}

/// System calls of a proxy from here on.
struct Watch {
    strace: Child,
    output: std::path::PathBuf,
}

impl Watch {
    fn begin(proxy: &Proxy) -> Self {
        let output = std::env::temp_dir().join(format!("weft-strace-{}", proxy.id()));
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=network,read,readv,write,writev,splice,epoll_ctl", "-o"]).arg(&output);
        let mut strace =
            command.args(["-p", &proxy.id().to_string()]).stderr(Stdio::piped()).spawn().expect("strace runs");
        let mut said = BufReader::new(strace.stderr.take().expect("it is piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says that it watches");
        assert!(line.contains("attached"), "{line}");
        // What more it says must not hold it up.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { strace, output }
    }

    /// How often each was called.
    fn end(mut self) -> HashMap<String, usize> {
        let told = Command::new("kill").args(["-INT", &self.strace.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()));
        let _ = self.strace.wait();
        let text = std::fs::read_to_string(&self.output).expect("what it wrote");
        let _ = std::fs::remove_file(&self.output);
        let mut calls = HashMap::new();
        for line in text.lines().filter(|line| !line.contains("resumed>")) {
            let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('('));
            if let Some((name, _)) = call {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }
}

fn sum(calls: &HashMap<String, usize>, names: &[&str]) -> usize {
    names.iter().filter_map(|name| calls.get(*name)).sum()
}

const RECEIVES: &[&str] = &["recvfrom", "recvmsg", "read", "readv"];
const SENDS: &[&str] = &["sendto", "sendmsg", "write", "writev"];

#[test]
fn a_small_request_is_received_twice_and_sent_twice() {
    const REQUESTS: usize = 200;
    if !tools::strace() {
        return;
    }
    let upstream = Upstream::start(|_| Reply::text("hello"));
    let (proxy, port) = proxy(upstream.port());
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    let mut ask = || assert_eq!(client.get("/", &[]).map(|r| r.status), Some(200));
    (0..10).for_each(|_| ask());
    let watch = Watch::begin(&proxy);
    (0..REQUESTS).for_each(|_| ask());
    let calls = watch.end();
    let (receives, sends) = (sum(&calls, RECEIVES), sum(&calls, SENDS));
    assert!((2 * REQUESTS - 10..2 * REQUESTS + 10).contains(&receives), "{calls:?}");
    assert!((2 * REQUESTS - 10..2 * REQUESTS + 10).contains(&sends), "{calls:?}");
    assert_eq!(calls.get("epoll_ctl"), None, "{calls:?}");
}

/// No byte of them is seen by the process, but those that come with heads.
#[test]
fn much_is_spliced() {
    const LENGTH: usize = 16 * MIB;
    if !tools::strace() {
        return;
    }
    let upstream = server(|stream: TcpStream| {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        let body = vec![1; LENGTH];
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            if line == "\r\n" {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
                if (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&body)).is_err() {
                    return;
                }
            }
            line.clear();
        }
    });
    let (proxy, port) = proxy(upstream);
    let mut client = Client::connect(("127.0.0.1", port)).expect("it listens");
    let watch = Watch::begin(&proxy);
    for _ in 0..4 {
        assert_eq!(client.get("/", &[]).map(|r| r.body.len()), Some(LENGTH));
    }
    let calls = watch.end();
    assert!(sum(&calls, &["splice"]) >= 4 * 2 * LENGTH / MIB / 4, "{calls:?}");
    assert!(sum(&calls, SENDS) < 40, "{calls:?}");
}
