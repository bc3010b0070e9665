//! What the stages of a request cost in instructions: `weft-benches --instructions`.
//!
//! The whole binary runs under callgrind, one worker, and is asked one thing after the other on one connection; a count is from dump to
//! dump. So it holds whatever the code looks like inside, and other work on the machine changes next to nothing. A stage is
//! either a whole request, or what a request costs more than another one that lacks the stage.

use crate::{
    machine::Machine,
    peers::Folders,
    ports,
    process::Process,
    talk::{
        Client, backend, http1,
        http1::{Exchange, KIB_64},
        http2::{self, Shape},
        tls::{Ends, Secure},
        websocket,
    },
};
use serde_json::{Map, Value, json};
use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The part by which a stage may have grown over the baseline.
const MARGIN: f64 = 0.05;
/// What a stage may differ by from run to run without having grown, in instructions: nothing is so small that it matters.
const NOISE: f64 = 150.0;
/// Requests before those that are counted, and before all.
const WARM: usize = 200;
const WARM_PROCESS: usize = 1_000;
/// Each stage is counted so often.
const BATCHES: usize = 5;

/// Under which key the file says what it is of.
const RECORDED_ON: &str = "recorded on";

struct Stage {
    name: &'static str,
    title: &'static str,
    to: SocketAddr,
    ask: Ask,
    requests: usize,
    /// At a time.
    depth: usize,
    /// The stage that this one is more than, and how often it is done in a request.
    over: Option<(&'static str, f64)>,
}

#[derive(Clone, Copy)]
enum Ask {
    Http1(Exchange),
    /// With so many header lines more.
    Headers(usize),
    Http2(Shape),
    WebSocket,
    Mtls,
}

const fn small(name: &'static str, title: &'static str, to: SocketAddr) -> Stage {
    Stage { name, title, to, ask: Ask::Http1(Exchange::Small), requests: 200, depth: 1, over: None }
}

/// One that costs more than a small request.
const fn more(name: &'static str, title: &'static str, to: SocketAddr) -> Stage {
    Stage { over: Some(("http1", 1.0)), ..small(name, title, to) }
}

const LINES: usize = 20;

const STAGES: [Stage; 14] = [
    small("direct", "HTTP/1.1 request: head in, direct response, head out", ports::DIRECT_RESPONSE),
    small("http1", "HTTP/1.1 request, forwarded, 128 bytes back", ports::HTTP1),
    Stage {
        ask: Ask::Headers(LINES),
        over: Some(("http1", LINES as f64)),
        ..small("header", "a header line more: in and out", ports::HTTP1)
    },
    Stage { ask: Ask::Http1(Exchange::Download(KIB_64)), requests: 60, ..more("body", "64 KiB of body", ports::HTTP1) },
    more("routes", "route match among 1,000 virtual hosts and 100 routes", ports::ROUTES),
    more("rules", "header rules: 6 added, 4 removed", ports::RULES),
    more("rbac", "RBAC of ten policies", ports::RBAC),
    small("hosts", "HTTP/1.1 request, forwarded to one of ten hosts, least request", ports::HOSTS),
    Stage { ask: Ask::Http2(Shape::Plain), ..small("http2-one", "HTTP/2 request, one at a time", ports::HTTP2) },
    Stage {
        ask: Ask::Http2(Shape::Plain),
        depth: 100,
        requests: 1_000,
        ..small("http2", "HTTP/2 request, 100 at a time", ports::HTTP2)
    },
    Stage {
        ask: Ask::Http2(Shape::Unary),
        depth: 100,
        requests: 1_000,
        ..small("grpc", "gRPC call, 100 at a time", ports::UNARY)
    },
    Stage { ask: Ask::WebSocket, ..small("websocket", "WebSocket message, to and fro", ports::WEBSOCKET) },
    Stage { ..small("tcp", "TCP, small messages to and fro", ports::TCP_SMALL) },
    Stage { ask: Ask::Mtls, ..more("mtls", "mTLS on both sides of a request", ports::MTLS) },
];

/// Counts, says what was counted and, with `check`, whether all is within the margin of the baseline; or makes that.
///
/// # Errors
/// Weft does not start, or does not answer.
pub fn run(weft: &Path, folders: &Folders, ends: &Ends, check: bool, write: bool) -> Result<bool, String> {
    backend::more_hosts().map_err(|e| format!("backend: {e}"))?;
    let counts = match count(weft, folders, ends)? {
        Ok(counts) => counts,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(true);
        }
    };
    let file = folders.configs.join("../instructions.json");
    if write {
        let mut values: Map<String, Value> =
            counts.iter().map(|(name, n)| ((*name).to_owned(), json!(n.round()))).collect();
        values.insert(RECORDED_ON.into(), kind().into());
        fs::write(&file, format!("{:#}\n", Value::Object(values))).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    let baseline: Value = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    println!("| stage | instructions | recorded | change |\n|---|---|---|---|");
    let mut holds = true;
    for (stage, (name, count)) in STAGES.iter().zip(&counts) {
        let recorded = baseline[name].as_f64();
        let change = recorded.map(|recorded| count / recorded - 1.0);
        let fell = recorded.is_some_and(|recorded| *count < recorded * (1.0 - MARGIN) - NOISE);
        let grew = recorded.is_none_or(|recorded| *count > recorded * (1.0 + MARGIN) + NOISE);
        holds &= !grew;
        println!(
            "| {} | {count:.0} | {} | {}{} |",
            stage.title,
            recorded.map_or("-".to_owned(), |n| format!("{n:.0}")),
            change.map_or("-".to_owned(), |part| format!("{:+.1} %", part * 100.0)),
            if grew {
                " GREW"
            } else if fell {
                " fell: record it"
            } else {
                ""
            }
        );
    }
    let recorded_on = baseline[RECORDED_ON].as_str().unwrap_or_default();
    if check && recorded_on != kind() {
        println!("skipped: recorded on {recorded_on}, which is not comparable with {}", kind());
        return Ok(true);
    }
    if check && !holds {
        println!("a stage grew: make it cheaper, or say why in the commit that records it (`make instructions`)");
    }
    Ok(holds || !check)
}

/// What the counts are of beside the code: another kind of CPU has other instructions, another compiler makes others.
fn kind() -> String {
    let rustc = Command::new("rustc").arg("--version").output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("{}, {rustc}", Machine::this().model())
}

/// By name, in the order of the stages; or why nothing could be counted.
type Counts = Result<Vec<(&'static str, f64)>, String>;

fn count(weft: &Path, folders: &Folders, ends: &Ends) -> Result<Counts, String> {
    for tool in ["valgrind", "vgdb"] {
        if crate::peers::in_path(tool).is_none() {
            return Ok(Err(format!("there is no {tool}")));
        }
    }
    let config = configure(folders)?;
    let out = folders.results.join("callgrind");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let out = out.join("out");
    let file = format!("--callgrind-out-file={}", out.display());
    let (weft, config) = (weft.display().to_string(), config.display().to_string());
    let command = ["valgrind", "--tool=callgrind", &file, &weft, "--concurrency", "1", "-l", "error", "-c", &config];
    let process = Process::start(&command.map(str::to_owned), ports::HTTP1, &folders.results.join("callgrind/log"))?;
    let mut dumps = Dumps { process: process.id(), out, number: 0 };
    Conversation::open(&STAGES[1], ends)?.go(WARM_PROCESS)?;
    let mut whole: Vec<(&str, f64)> = Vec::new();
    let mut counts = Vec::new();
    for stage in &STAGES {
        let talk = |e: String| format!("{}: {e}", stage.name);
        let mut requests = Conversation::open(stage, ends).map_err(talk)?;
        requests.go(WARM.max(stage.depth)).map_err(talk)?;
        if let Err(why) = dumps.next() {
            return Ok(Err(why));
        }
        // What is not a request's own (timers, a read that came in two) only ever adds to it: the least counts.
        let mut found = f64::INFINITY;
        for _ in 0..BATCHES {
            requests.go(stage.requests).map_err(talk)?;
            match dumps.next() {
                Ok(count) => found = found.min(count as f64 / stage.requests as f64),
                Err(why) => return Ok(Err(why)),
            }
        }
        whole.push((stage.name, found));
        let base = |name| whole.iter().find(|(is, _)| *is == name).map_or(0.0, |(_, n)| *n);
        counts.push((stage.name, stage.over.map_or(found, |(name, times)| (found - base(name)) / times)));
    }
    Ok(Ok(counts))
}

fn configure(folders: &Folders) -> Result<PathBuf, String> {
    let (from, to) = (folders.configs.join("stages.yaml"), folders.results.join("stages.yaml"));
    let text = fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
    let (mut hosts, mut routes) = (String::new(), String::new());
    for i in 0..1_000 {
        let _ = writeln!(
            hosts,
            "            - {{ name: host-{i}, domains: [host-{i}.example], routes: [{{ match: {{ prefix: / }}, route: {{ \
             cluster: http1 }} }}] }}"
        );
    }
    for i in 0..100 {
        let _ =
            writeln!(routes, "              - {{ match: {{ prefix: /service-{i}/ }}, route: {{ cluster: http1 }} }}");
    }
    let text = text
        .replace("\nHOSTS\n", &format!("\n{hosts}"))
        .replace("\nROUTES\n", &format!("\n{routes}"))
        .replace("FOLDER", &folders.certificates.display().to_string());
    fs::write(&to, text).map_err(|e| format!("{}: {e}", to.display()))?;
    Ok(to)
}

/// What callgrind writes down when it is told to; each starts again at nothing.
struct Dumps {
    process: u32,
    out: PathBuf,
    number: usize,
}

impl Dumps {
    /// Instructions since the last one.
    fn next(&mut self) -> Result<u64, String> {
        let output = Command::new("vgdb")
            .args([&format!("--pid={}", self.process), "dump"])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("vgdb: {e}"))?;
        self.number += 1;
        let path = format!("{}.{}", self.out.display(), self.number);
        let said = || format!("vgdb: {}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
        let text = fs::read_to_string(&path).map_err(|_| said())?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        total.ok_or(format!("{path}: no total"))
    }
}

/// One connection, and what is asked on it, so many at a time.
struct Conversation {
    stream: TcpStream,
    client: Box<dyn Client>,
    depth: usize,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Conversation {
    fn open(stage: &Stage, ends: &Ends) -> Result<Self, String> {
        let stream = TcpStream::connect(stage.to).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut out = Vec::new();
        let client: Box<dyn Client> = match stage.ask {
            Ask::Http1(exchange) => Box::new(http1::Client::new(exchange)),
            Ask::Headers(count) => Box::new(http1::Client::with_lines(count)),
            Ask::Http2(shape) => Box::new(http2::Client::new(shape, &mut out)),
            Ask::WebSocket => Box::new(websocket::Client::default()),
            Ask::Mtls => Box::new(Secure::client(&ends.client, |_| http1::Client::new(Exchange::Small))),
        };
        Ok(Self { stream, client, depth: stage.depth, input: Vec::new(), out })
    }

    fn go(&mut self, requests: usize) -> Result<(), String> {
        let mut piece = [0; 64 << 10];
        for _ in 0..requests / self.depth {
            for _ in 0..self.depth {
                self.client.begin(&mut self.out);
            }
            let mut left = self.depth;
            while left > 0 {
                self.stream.write_all(&self.out).map_err(|e| e.to_string())?;
                self.out.clear();
                let n = self.stream.read(&mut piece).map_err(|e| e.to_string())?;
                if n == 0 {
                    return Err("the connection was closed".into());
                }
                self.input.extend_from_slice(&piece[..n]);
                let (used, ended) = self.client.receive(&self.input, &mut self.out)?;
                self.input.drain(..used);
                left -= ended;
            }
        }
        Ok(())
    }
}
