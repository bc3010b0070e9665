//! The application log: Envoy's components, levels that change at run time, one line an event.
//!
//! Events come from `tracing` with a component as their target: `tracing::info!(target: "upstream", ...)`. An event below
//! its component's level costs one load: whether it is wanted is cached at its call site until a level changes.

use crate::server::{
    cli::LogOptions,
    log_format::{Format, Line, write_escaped},
};
use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::SystemTime,
};
use tracing::{Event, Metadata, Subscriber, field, span, subscriber::Interest};

/// The names of Envoy's loggers, in the order in which `/logging` prints them.
#[rustfmt::skip]
pub const COMPONENTS: [&str; 73] = [
    "a2a", "admin", "ai_protocol_manager", "alternate_protocols_cache", "aws", "assert", "backtrace", "basic_auth",
    "cache_filter", "client", "config", "connection", "conn_handler", "compression", "credential_injector",
    "decompression", "dns", "dubbo", "envoy_bug", "ext_authz", "ext_proc", "rocketmq", "file", "filter",
    "forward_proxy", "geolocation", "grpc", "happy_eyeballs", "hc", "health_checker", "http", "http2", "hystrix",
    "init", "io", "jwt", "json_rpc", "kafka", "key_value_store", "lua", "local_rate_limit", "main", "matcher", "mcp",
    "misc", "mongo", "multi_connection", "notification", "oauth2", "quic", "quic_stream", "pool", "rate_limit_quota",
    "rbac", "rds", "redis", "router", "runtime", "stats", "secret", "sse", "tap", "testing", "thrift", "tracing",
    "upstream", "udp", "wasm", "websocket", "golang", "stats_sinks", "dynamic_modules", "ip_tagging",
];

/// What an event without a known component counts as.
const MISC: &str = "misc";

/// How much is logged: this and all that is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl Level {
    const ALL: [Self; 7] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical, Self::Off];

    /// As the log and the admin API write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::TRACE => Self::Trace,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::INFO => Self::Info,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::ERROR if metadata.fields().field("critical").is_some() => Self::Critical,
            tracing::Level::ERROR => Self::Error,
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level =
            Self::ALL.into_iter().find(|level| level.name() == text || (text == "warn" && *level == Self::Warning));
        level.ok_or_else(|| format!("invalid log level specified '{text}'"))
    }
}

/// `upstream:debug,config:trace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentLevels {
    text: String,
    levels: Vec<(usize, Level)>,
}

impl ComponentLevels {
    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }
}

impl FromStr for ComponentLevels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut levels = Vec::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, level) =
                pair.split_once(':').ok_or_else(|| format!("component log level not correctly specified '{pair}'"))?;
            let level = level.parse()?;
            let component = component(name).ok_or_else(|| format!("invalid component specified '{name}'"))?;
            levels.push((component, level));
        }
        Ok(Self { text: text.to_owned(), levels })
    }
}

fn component(name: &str) -> Option<usize> {
    COMPONENTS.iter().position(|component| *component == name)
}

/// The component of an event; what libraries log counts as the component they serve.
fn component_of(target: &str) -> usize {
    let name = match target.split("::").next().unwrap_or(target) {
        "h2" => "http2",
        "hyper" | "hyper_util" => "http",
        "hickory_resolver" | "hickory_proto" => "dns",
        "rustls" => "connection",
        name => name,
    };
    component(name).or_else(|| component(MISC)).unwrap_or_default()
}

static LEVELS: [AtomicU8; COMPONENTS.len()] = [const { AtomicU8::new(Level::Info as u8) }; COMPONENTS.len()];
static OUTPUT: OnceLock<Mutex<Output>> = OnceLock::new();

/// Starts logging, for the whole process. `to_stderr`: even if there is to be a log file.
///
/// # Errors
/// The log file cannot be opened, or logging was started already.
pub fn start(options: &LogOptions, to_stderr: bool) -> Result<(), String> {
    let file = match &options.log_path {
        Some(path) if !to_stderr => Some(LogFile::open(path)?),
        _ => None,
    };
    let output = Output { format: Format::parse(&options.log_format), escaped: options.log_format_escaped, file };
    OUTPUT.set(Mutex::new(output)).map_err(|_| "the log is started already".to_owned())?;
    set_all_levels(options.log_level);
    for (component, level) in &options.component_log_level.levels {
        LEVELS[*component].store(*level as u8, Relaxed);
    }
    tracing::subscriber::set_global_default(Log).map_err(|error| error.to_string())
}

/// Every component with its level, as `/logging` prints them.
pub fn levels() -> Vec<(&'static str, Level)> {
    let level = |i: usize| Level::ALL[usize::from(LEVELS[i].load(Relaxed)).min(Level::ALL.len() - 1)];
    COMPONENTS.iter().enumerate().map(|(i, name)| (*name, level(i))).collect()
}

/// Changes one component's level; false if there is no such component.
pub fn set_level(name: &str, level: Level) -> bool {
    let Some(component) = component(name) else { return false };
    LEVELS[component].store(level as u8, Relaxed);
    tracing::callsite::rebuild_interest_cache();
    true
}

/// Changes the level of all components.
pub fn set_all_levels(level: Level) {
    for component in &LEVELS {
        component.store(level as u8, Relaxed);
    }
    tracing::callsite::rebuild_interest_cache();
}

/// Opens the log file anew, after it was moved away; the old one stays in use if that fails.
pub fn reopen() {
    let Some(Ok(mut output)) = OUTPUT.get().map(Mutex::lock) else { return };
    if let Some(file) = &mut output.file
        && let Ok(new) = LogFile::open(&file.path)
    {
        *file = new;
    }
}

/// Logs what ends the process, at Envoy's level `critical`.
#[macro_export]
macro_rules! critical {
    (target: $target:expr, $($message:tt)+) => { tracing::error!(target: $target, critical = true, $($message)+) };
}

struct Output {
    format: Format,
    /// `--log-format-escaped`.
    escaped: bool,
    /// `None`: the standard error.
    file: Option<LogFile>,
}

struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, String> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| format!("cannot open the log file {}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl Output {
    fn write(&mut self, line: &Line<'_>) {
        let mut text = String::with_capacity(128 + line.message.len());
        self.format.write(&mut text, line);
        if self.escaped {
            let mut escaped = String::with_capacity(text.len() + 8);
            // Writing to a string cannot fail.
            let _ = write_escaped(&mut escaped, text.trim_end());
            text = escaped;
        }
        text.push('\n');
        // There is nowhere to say that the log cannot be written.
        let _ = match &mut self.file {
            Some(file) => file.file.write_all(text.as_bytes()),
            None => std::io::stderr().write_all(text.as_bytes()),
        };
    }
}

/// The process's one subscriber. Spans mean nothing to it.
struct Log;

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && Level::of(metadata) as u8 >= LEVELS[component_of(metadata.target())].load(Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        thread_local! {
            // SAFETY: gettid has no arguments and cannot fail.
            static THREAD: i64 = i64::from(unsafe { libc::gettid() });
        }
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let line = Line {
            time: SystemTime::now(),
            thread: THREAD.with(|thread| *thread),
            level: Level::of(metadata).name(),
            component: COMPONENTS[component_of(metadata.target())],
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            message: &message.finish(),
        };
        if let Some(Ok(mut output)) = OUTPUT.get().map(Mutex::lock) {
            output.write(&line);
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message, with its other fields after it.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Message {
    fn finish(mut self) -> String {
        self.text.push_str(&self.fields);
        self.text
    }
}

impl field::Visit for Message {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            "critical" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_components_are_read() {
        assert_eq!("warn".parse(), Ok(Level::Warning));
        assert_eq!("bad".parse::<Level>(), Err("invalid log level specified 'bad'".to_owned()));
        let levels: ComponentLevels = "upstream:debug,http:off".parse().expect("valid");
        assert_eq!(levels.levels.len(), 2);
        assert_eq!("nope:debug".parse::<ComponentLevels>(), Err("invalid component specified 'nope'".to_owned()));
        assert_eq!(
            "http".parse::<ComponentLevels>(),
            Err("component log level not correctly specified 'http'".to_owned())
        );
        assert_eq!(COMPONENTS[component_of("h2::codec")], "http2");
        assert_eq!(COMPONENTS[component_of("weft_proxy::x")], "misc");
    }
}
