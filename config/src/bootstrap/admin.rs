//! The admin API: where it listens, who may ask what, where its requests are logged.

use crate::{Address, Context, string_matcher::StringMatcher};
use weft_control_api::{
    Any, Message as _, Name,
    envoy::{
        config::{accesslog::v3::AccessLog, bootstrap::v3 as pb},
        extensions::access_loggers::file::v3::FileAccessLog,
    },
};

/// The admin API's settings.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `None`: the admin API does not listen.
    pub address: Option<Address>,
    /// Encoded `envoy.config.accesslog.v3.AccessLog`s.
    pub access_log: Vec<Vec<u8>>,
    /// Paths that may be asked for; empty: all.
    pub allow_paths: Vec<StringMatcher>,
}

impl Admin {
    pub(super) fn from_proto(pb: pb::Admin, cx: &mut Context) -> Option<Self> {
        let pb::Admin {
            access_log,
            access_log_path,
            profile_path,
            address,
            socket_options,
            ignore_global_conn_limit,
            allow_paths,
        } = pb;
        cx.ignored_if("profile_path", !profile_path.is_empty());
        cx.unsupported_if("socket_options", !socket_options.is_empty());
        // There is no global limit, so nothing to be excepted from.
        cx.ignored_if("ignore_global_conn_limit", ignore_global_conn_limit);
        let mut access_log: Vec<Vec<u8>> = access_log.iter().map(|log| log.encode_to_vec()).collect();
        if !access_log_path.is_empty() {
            access_log.push(file_log(access_log_path));
        }
        let address = match address {
            Some(address) => Some(cx.field("address", |cx| {
                let address = Address::from_proto(address, cx)?;
                match &address {
                    Address::Socket(socket) => _ = cx.field("socket_address", |cx| socket.required_ip(cx)),
                    Address::Pipe(_) => {}
                    Address::Internal(_) => {
                        cx.problem_at("envoy_internal_address", "is no address that the admin API can listen on");
                    }
                }
                Some(address)
            })?),
            None => None,
        };
        let allow_paths = cx.elements("allow_paths", allow_paths, |cx, pb| StringMatcher::from_proto(pb, cx));
        Some(Self { address, access_log, allow_paths })
    }
}

/// The old spelling of one file log.
fn file_log(path: String) -> Vec<u8> {
    let file = FileAccessLog { path, ..FileAccessLog::default() };
    let any = Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() };
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(weft_control_api::envoy::config::accesslog::v3::access_log::ConfigType::TypedConfig(any)),
        ..AccessLog::default()
    }
    .encode_to_vec()
}
