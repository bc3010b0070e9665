//! Access logs: where they go, what they say, and which streams they take (`envoy.config.accesslog.v3`).

use crate::{
    Context,
    header_matcher::HeaderMatcher,
    metadata::{self, MetadataMatcher},
    percent::FractionalPercent,
    substitution_format::{FormatSource, SubstitutionFormatString},
};
use weft_control_api::{
    Any,
    envoy::{
        config::{accesslog::v3 as pb, core::v3 as core},
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log},
            stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
        },
    },
};

/// One access log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    pub filter: Option<AccessLogFilter>,
    pub sink: Sink,
    /// `None`: Envoy's default text.
    pub format: Option<SubstitutionFormatString>,
}

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    File(String),
    Stdout,
    Stderr,
}

/// Which streams are logged.
#[derive(Clone, Debug)]
pub enum AccessLogFilter {
    StatusCode(Comparison),
    /// Milliseconds.
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    Runtime {
        key: String,
        percent: FractionalPercent,
        use_independent_randomness: bool,
    },
    And(Vec<AccessLogFilter>),
    Or(Vec<AccessLogFilter>),
    Header(HeaderMatcher),
    /// Short names; empty: any flag.
    ResponseFlag(Vec<String>),
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
    Metadata {
        matcher: Option<MetadataMatcher>,
        match_if_key_not_found: bool,
    },
    /// Names of access log types.
    LogType {
        types: Vec<&'static str>,
        exclude: bool,
    },
}

pub use pb::comparison_filter::Op;

/// A comparison with a number that a runtime key may override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub op: Op,
    pub value: u32,
    pub runtime_key: String,
}

impl Comparison {
    fn from_proto(p: Option<pb::ComparisonFilter>, cx: &mut Context) -> Option<Self> {
        let pb::ComparisonFilter { op, value } = cx.required("comparison", p)?;
        cx.field("comparison", |cx| {
            let core::RuntimeUInt32 { default_value, runtime_key } = cx.required("value", value)?;
            Some(Self { op: cx.enumeration("op", op), value: default_value, runtime_key })
        })
    }

    /// Compares; `value` is the configured number or what the runtime says.
    pub fn holds(&self, found: u64, value: u64) -> bool {
        match self.op {
            Op::Eq => found == value,
            Op::Ge => found >= value,
            Op::Le => found <= value,
            Op::Ne => found != value,
        }
    }
}

impl AccessLog {
    pub fn from_proto(p: pb::AccessLog, cx: &mut Context) -> Option<Self> {
        let pb::AccessLog { name: _, filter, config_type } = p;
        let filter = match filter {
            Some(p) => Some(cx.field("filter", |cx| AccessLogFilter::from_proto(p, cx))?),
            None => None,
        };
        let Some(pb::access_log::ConfigType::TypedConfig(any)) = config_type else {
            cx.problem("typed_config is required");
            return None;
        };
        let (sink, format) = cx.field("typed_config", |cx| sink(&any, cx))?;
        Some(Self { filter, sink, format })
    }
}

fn sink(any: &Any, cx: &mut Context) -> Option<(Sink, Option<SubstitutionFormatString>)> {
    let log_format = |p, cx: &mut Context| cx.field("log_format", |cx| SubstitutionFormatString::from_proto(p, cx));
    let plain = |format| {
        Some(SubstitutionFormatString {
            format,
            omit_empty_values: false,
            content_type: String::new(),
            sort_properties: false,
        })
    };
    match any.type_url.rsplit('.').next().unwrap_or_default() {
        "StdoutAccessLog" => {
            let StdoutAccessLog { access_log_format } = cx.unpack("", any)?;
            Some((
                Sink::Stdout,
                match access_log_format {
                    Some(stdout_access_log::AccessLogFormat::LogFormat(p)) => Some(log_format(p, cx)?),
                    None => None,
                },
            ))
        }
        "StderrAccessLog" => {
            let StderrAccessLog { access_log_format } = cx.unpack("", any)?;
            Some((
                Sink::Stderr,
                match access_log_format {
                    Some(stderr_access_log::AccessLogFormat::LogFormat(p)) => Some(log_format(p, cx)?),
                    None => None,
                },
            ))
        }
        "FileAccessLog" => {
            use file_access_log::AccessLogFormat as Format;
            let FileAccessLog { path, access_log_format } = cx.unpack("", any)?;
            let format = match access_log_format {
                None => None,
                Some(Format::Format(text)) if text.is_empty() => None,
                Some(Format::Format(text)) => plain(FormatSource::Text(text)),
                Some(Format::JsonFormat(fields) | Format::TypedJsonFormat(fields)) => {
                    plain(FormatSource::Json(metadata::object(fields)))
                }
                Some(Format::LogFormat(p)) => Some(log_format(p, cx)?),
            };
            Some((Sink::File(path), format))
        }
        _ => {
            cx.problem(format!(
                "found {:?}, which is not supported: file, stdout and stderr access logs are",
                any.type_url
            ));
            None
        }
    }
}

impl AccessLogFilter {
    pub fn from_proto(p: pb::AccessLogFilter, cx: &mut Context) -> Option<Self> {
        use pb::access_log_filter::FilterSpecifier as Filter;
        Some(match cx.required("filter_specifier", p.filter_specifier)? {
            Filter::StatusCodeFilter(p) => {
                Self::StatusCode(cx.field("status_code_filter", |cx| Comparison::from_proto(p.comparison, cx))?)
            }
            Filter::DurationFilter(p) => {
                Self::Duration(cx.field("duration_filter", |cx| Comparison::from_proto(p.comparison, cx))?)
            }
            Filter::NotHealthCheckFilter(_) => Self::NotHealthCheck,
            Filter::TraceableFilter(_) => Self::Traceable,
            Filter::RuntimeFilter(p) => {
                let pb::RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness } = p;
                let percent = match percent_sampled {
                    Some(p) => cx.field("runtime_filter.percent_sampled", |cx| FractionalPercent::from_proto(p, cx)),
                    None => FractionalPercent { numerator: 0, denominator: 100 },
                };
                Self::Runtime { key: runtime_key, percent, use_independent_randomness }
            }
            Filter::AndFilter(p) => Self::And(
                cx.field("and_filter", |cx| cx.elements("filters", p.filters, |cx, p| Self::from_proto(p, cx))),
            ),
            Filter::OrFilter(p) => {
                Self::Or(cx.field("or_filter", |cx| cx.elements("filters", p.filters, |cx, p| Self::from_proto(p, cx))))
            }
            Filter::HeaderFilter(p) => {
                let header = cx.required("header_filter.header", p.header)?;
                Self::Header(cx.field("header_filter.header", |cx| HeaderMatcher::from_proto(header, cx))?)
            }
            Filter::ResponseFlagFilter(p) => Self::ResponseFlag(p.flags),
            Filter::GrpcStatusFilter(p) => Self::GrpcStatus {
                statuses: p.statuses.into_iter().filter_map(|status| u32::try_from(status).ok()).collect(),
                exclude: p.exclude,
            },
            Filter::MetadataFilter(p) => Self::Metadata {
                matcher: match p.matcher {
                    Some(p) => Some(cx.field("metadata_filter.matcher", |cx| MetadataMatcher::from_proto(p, cx))?),
                    None => None,
                },
                match_if_key_not_found: p.match_if_key_not_found.unwrap_or(true),
            },
            Filter::LogTypeFilter(p) => {
                use weft_control_api::envoy::data::accesslog::v3::AccessLogType;
                Self::LogType {
                    types: p
                        .types
                        .into_iter()
                        .filter_map(|t| AccessLogType::try_from(t).ok())
                        .map(|t| t.as_str_name())
                        .collect(),
                    exclude: p.exclude,
                }
            }
            Filter::ExtensionFilter(_) => {
                cx.problem_at("extension_filter", "is not supported");
                return None;
            }
        })
    }
}
