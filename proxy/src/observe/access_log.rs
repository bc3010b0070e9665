//! Access logs: which streams are logged, and the way of a line to its file.
//!
//! Workers format a line and put it into a bounded queue; one thread writes. A full queue drops lines and counts them:
//! logging never holds traffic up.

use super::format::{Facts, Format};
use crate::base::RuntimeSnapshot;
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};
use weft_config::{
    Context,
    access_log::{AccessLog as Config, AccessLogFilter, Comparison, Sink},
};

/// Envoy's default text.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// The access logs of one connection manager, TCP proxy or listener.
#[derive(Default)]
pub struct AccessLogs(Vec<Log>);

struct Log {
    filter: Option<LogFilter>,
    format: Format,
    file: LogFile,
}

impl AccessLogs {
    /// Compiles logs and opens their files.
    pub fn compile(name: &str, configs: &[Config], writer: &LogWriter, cx: &mut Context) -> Self {
        let compile = |(i, config): (usize, &Config)| {
            cx.element(name, i, |cx| {
                let format = cx.field("typed_config", |cx| match &config.format {
                    Some(format) => Format::compile(format, cx),
                    None => Format::compile_log_text(DEFAULT, cx),
                })?;
                let path = match &config.sink {
                    Sink::File(path) => path.as_str(),
                    Sink::Stdout => "/dev/stdout",
                    Sink::Stderr => "/dev/stderr",
                };
                let file = writer
                    .open(path)
                    .map_err(|e| {
                        cx.problem_at("typed_config.path", format!("found {path:?}, which cannot be opened: {e}"))
                    })
                    .ok()?;
                Some(Log { filter: config.filter.clone().map(LogFilter), format, file })
            })
        };
        Self(configs.iter().enumerate().filter_map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if a filter or format needs the response's headers.
    pub fn reads_response(&self) -> bool {
        self.0.iter().any(|log| log.format.reads_response() || log.filter.as_ref().is_some_and(|f| f.reads_response()))
    }

    /// Logs a stream to every log that takes it.
    pub fn log(&self, facts: &Facts<'_>, runtime: &RuntimeSnapshot) {
        for log in &self.0 {
            if log.filter.as_ref().is_none_or(|filter| filter.matches(facts, runtime)) {
                log.file.write(log.format.text(facts));
            }
        }
    }
}

/// A filter over a stream's facts.
#[derive(Clone, Debug)]
pub struct LogFilter(pub AccessLogFilter);

impl LogFilter {
    pub fn matches(&self, facts: &Facts<'_>, runtime: &RuntimeSnapshot) -> bool {
        matches(&self.0, facts, runtime)
    }

    fn reads_response(&self) -> bool {
        fn reads(filter: &AccessLogFilter) -> bool {
            match filter {
                AccessLogFilter::GrpcStatus { .. } => true,
                AccessLogFilter::And(filters) | AccessLogFilter::Or(filters) => filters.iter().any(reads),
                _ => false,
            }
        }
        reads(&self.0)
    }
}

fn matches(filter: &AccessLogFilter, facts: &Facts<'_>, runtime: &RuntimeSnapshot) -> bool {
    let info = facts.info;
    let compare = |comparison: &Comparison, found: u64| {
        let value = if comparison.runtime_key.is_empty() { None } else { runtime.integer(&comparison.runtime_key) };
        comparison.holds(found, value.unwrap_or(u64::from(comparison.value)))
    };
    match filter {
        AccessLogFilter::StatusCode(comparison) => compare(comparison, u64::from(info.response_code)),
        AccessLogFilter::Duration(comparison) => {
            let end = info.points.end.unwrap_or_else(Instant::now);
            compare(comparison, end.saturating_duration_since(info.start).as_millis() as u64)
        }
        AccessLogFilter::NotHealthCheck => !info.is_health_check,
        AccessLogFilter::Traceable => info.trace_id.is_some(),
        AccessLogFilter::Runtime { key, percent, use_independent_randomness } => {
            let random =
                if *use_independent_randomness { None } else { info.stream_id.as_deref().and_then(stable_random) };
            let fraction =
                weft_config::percent::RuntimeFractionalPercent { default: *percent, runtime_key: key.clone() };
            runtime.takes(&fraction, random.unwrap_or_else(|| fastrand::u64(..)))
        }
        AccessLogFilter::And(filters) => filters.iter().all(|f| matches(f, facts, runtime)),
        AccessLogFilter::Or(filters) => filters.iter().any(|f| matches(f, facts, runtime)),
        AccessLogFilter::Header(matcher) => match facts.request {
            Some(head) => crate::route::header_matches(matcher, head),
            None => matcher.matches(None),
        },
        AccessLogFilter::ResponseFlag(flags) => {
            if flags.is_empty() {
                !info.flags.is_empty()
            } else {
                info.flags.iter().any(|flag| flags.iter().any(|f| f == flag.short()))
            }
        }
        AccessLogFilter::GrpcStatus { statuses, exclude } => {
            let status = facts
                .response_trailers
                .and_then(crate::http::grpc::status)
                .or_else(|| crate::http::grpc::status(&facts.response?.headers))
                .unwrap_or_else(|| {
                    http::StatusCode::from_u16(info.response_code).map_or(2, crate::http::grpc::status_of)
                });
            statuses.contains(&status) != *exclude
        }
        AccessLogFilter::Metadata { matcher, match_if_key_not_found } => match matcher {
            None => *match_if_key_not_found,
            Some(matcher) => {
                let namespace = info.dynamic_metadata.get(matcher.filter.as_str());
                let keys = &matcher.path;
                let first = keys.first().and_then(|key| namespace?.get(key));
                let found =
                    keys.iter().skip(1).try_fold(first, |value, key| Some(value?.as_object()?.get(key))).flatten();
                match found {
                    Some(value) => matcher.value.matches(Some(value)) != matcher.invert,
                    None => *match_if_key_not_found,
                }
            }
        },
        AccessLogFilter::LogType { types, exclude } => types.contains(&facts.log_type) != *exclude,
    }
}

/// The same number for the same request id, so that all hops log the same requests.
fn stable_random(id: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(id).ok()?;
    u64::from_str_radix(text.get(..8)?, 16).ok()
}

/// Lines that wait; more are dropped.
const QUEUE: usize = 16_384;

/// An open log file. Cheap to clone; shared by everything that logs to its path.
#[derive(Clone)]
pub struct LogFile {
    number: usize,
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Open(File, String),
    Line(usize, String),
    Reopen,
    Flush(SyncSender<()>),
}

impl LogFile {
    /// Hands a line on; it already ends as it should.
    pub fn write(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Line(self.number, line)) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Opens log files and owns the thread that writes them.
#[derive(Clone)]
pub struct LogWriter {
    queue: SyncSender<Message>,
    files: Arc<Mutex<HashMap<String, usize>>>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    /// Starts the writing thread. A file's lines wait no longer than `interval` for their write, and until there are
    /// `least` bytes of them.
    pub fn start(interval: Duration, least: usize) -> std::io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        thread::Builder::new().name("access-log".into()).spawn(move || run(&messages, interval, least))?;
        Ok(Self { queue, files: Arc::default(), dropped: Arc::default() })
    }

    /// Opens a file for appending, once for all that log to it.
    pub fn open(&self, path: &str) -> std::io::Result<LogFile> {
        let mut files = self.files.lock().map_err(|_| std::io::Error::other("a log writer panicked"))?;
        let next = files.len();
        let number = match files.get(path) {
            Some(number) => *number,
            None => {
                let file = open(path)?;
                self.queue
                    .send(Message::Open(file, path.to_owned()))
                    .map_err(|_| std::io::Error::other("the log writer is gone"))?;
                files.insert(path.to_owned(), next);
                next
            }
        };
        Ok(LogFile { number, queue: self.queue.clone(), dropped: self.dropped.clone() })
    }

    /// Opens all files again by their paths (log rotation).
    pub fn reopen(&self) {
        let _ = self.queue.send(Message::Reopen);
    }

    /// Writes out what waits; returns when it is done.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }

    /// Lines dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

struct Open {
    file: File,
    path: String,
    buffer: Vec<u8>,
}

impl Open {
    fn write_out(&mut self) {
        // A full disk loses lines, never the proxy.
        let _ = self.file.write_all(&self.buffer);
        self.buffer.clear();
    }
}

fn run(messages: &Receiver<Message>, interval: Duration, least: usize) {
    let mut files: Vec<Open> = Vec::new();
    let mut deadline: Option<Instant> = None;
    loop {
        let message = match deadline {
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match message {
            Ok(Message::Open(file, path)) => files.push(Open { file, path, buffer: Vec::new() }),
            Ok(Message::Line(number, line)) => {
                let Some(file) = files.get_mut(number) else { continue };
                file.buffer.extend_from_slice(line.as_bytes());
                if file.buffer.len() >= least {
                    file.write_out();
                }
                deadline.get_or_insert_with(|| Instant::now() + interval);
                if deadline.is_some_and(|at| at > Instant::now()) {
                    continue;
                }
            }
            Ok(Message::Reopen) => {
                for file in &mut files {
                    file.write_out();
                    if let Ok(new) = open(&file.path) {
                        file.file = new;
                    }
                }
                continue;
            }
            Ok(Message::Flush(done)) => {
                files.iter_mut().for_each(Open::write_out);
                let _ = done.send(());
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                files.iter_mut().for_each(Open::write_out);
                return;
            }
        }
        files.iter_mut().filter(|file| !file.buffer.is_empty()).for_each(Open::write_out);
        deadline = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_and_files_reopened() {
        let dir = std::env::temp_dir().join(format!("weft-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.log");
        let writer = LogWriter::start(Duration::from_secs(3600), 64 << 10).unwrap();
        let file = writer.open(path.to_str().unwrap()).unwrap();
        let again = writer.open(path.to_str().unwrap()).unwrap();
        file.write("one\n".into());
        again.write("two\n".into());
        writer.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        std::fs::rename(&path, dir.join("b.log")).unwrap();
        writer.reopen();
        file.write("three\n".into());
        writer.flush();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
