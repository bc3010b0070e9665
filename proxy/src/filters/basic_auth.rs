//! `envoy.filters.http.basic_auth`: lets requests pass that name a user and the user's password (RFC 7617).
//!
//! Users are lines as `htpasswd -s` writes them. The header that tells the upstream who it is is never the client's own.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, LocalReply, RouteFilterConfig,
    challenge::challenge, most_specific,
};
use crate::{http::stream::Stream, stats};
use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use std::{collections::HashMap, rc::Rc, sync::Arc};
use weft_config::{Context, data_source::DataSource};
use weft_control_api::envoy::{config::core::v3 as core, extensions::filters::http::basic_auth::v3 as pb};

const NAMESPACE: &str = "envoy.filters.http.basic_auth";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.basic_auth",
    type_name: "envoy.extensions.filters.http.basic_auth.v3.BasicAuth",
    parse: |any, cx| {
        let config = cx.unpack("typed_config", any)?;
        let config = cx.field("typed_config", |cx| BasicAuth::from_proto(config, cx))?;
        Some(Arc::new(config) as Arc<dyn FilterConfig>)
    },
    route: Some(("envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute", |any, cx| {
        let pb::BasicAuthPerRoute { users, realm } = cx.unpack("", any)?;
        let realm = (!realm.is_empty()).then_some(realm);
        Some(Arc::new(Users { passwords: passwords(users, cx)?, realm }) as RouteFilterConfig)
    })),
};

stats! {
    /// `PREFIX.basic_auth.*`
    pub struct BasicAuthStats {
        counter allowed,
        counter denied,
    }
}

struct BasicAuth {
    users: Arc<Users>,
    /// Tells the upstream who it is.
    username_header: Option<HeaderName>,
    /// Has the credentials.
    header: HeaderName,
    allow_missing: bool,
    emit_metadata: bool,
}

/// The filter's users, or a route's in their place.
struct Users {
    /// SHA-1, base64.
    passwords: HashMap<String, String>,
    realm: Option<String>,
}

fn passwords(p: Option<core::DataSource>, cx: &mut Context) -> Option<HashMap<String, String>> {
    let p = cx.required("users", p)?;
    cx.field("users", |cx| {
        let data = DataSource::secret_from_proto(p, cx)?.data;
        let text = String::from_utf8_lossy(&data);
        let mut all = HashMap::new();
        // Lines are told by their numbers: they are secrets.
        for (i, line) in text.lines().map(str::trim_end).enumerate().filter(|(_, line)| !line.is_empty()) {
            let wrong = match line.split_once(':') {
                None => "invalid htpasswd format, username:password is expected",
                Some(("", _) | (_, "")) => "empty user name or password",
                Some((_, hash)) if !hash.starts_with("{SHA}") => "unsupported htpasswd format: please use {SHA}",
                Some((_, hash)) if hash.len() != 33 => "invalid htpasswd format, invalid SHA hash length",
                Some((name, _)) if all.contains_key(name) => "duplicate users",
                Some((name, hash)) => {
                    all.insert(name.to_owned(), hash[5..].to_owned());
                    continue;
                }
            };
            cx.problem(format!("line {}: basic auth: {wrong}", i + 1));
        }
        if all.is_empty() {
            cx.problem("has no users");
        }
        Some(all)
    })
}

impl BasicAuth {
    fn from_proto(p: pb::BasicAuth, cx: &mut Context) -> Option<Self> {
        let pb::BasicAuth {
            users,
            forward_username_header,
            authentication_header,
            allow_missing,
            emit_dynamic_metadata,
            realm,
        } = p;
        let header = |field: &str, text: String, cx: &mut Context| {
            let name = HeaderName::try_from(&text).ok();
            if name.is_none() && !text.is_empty() {
                cx.problem_at(field, format!("found {text:?}, which is no header name"));
            }
            name
        };
        let realm = (!realm.is_empty()).then_some(realm);
        Some(Self {
            username_header: header("forward_username_header", forward_username_header, cx),
            header: header("authentication_header", authentication_header, cx).unwrap_or(AUTHORIZATION),
            users: Arc::new(Users { passwords: passwords(users, cx)?, realm }),
            allow_missing,
            emit_metadata: emit_dynamic_metadata,
        })
    }
}

impl FilterConfig for BasicAuth {
    fn activate(self: Arc<Self>, scope: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        let stats = scope.thread.registry.attach(&format!("{}.basic_auth", scope.stat_prefix));
        Rc::new(Active { config: self, stats })
    }
}

/// One worker's part.
struct Active {
    config: Arc<BasicAuth>,
    stats: Arc<BasicAuthStats>,
}

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        let users = most_specific(routes).unwrap_or_else(|| self.config.users.clone());
        Some(Box::new(Filter { config: self.config.clone(), stats: self.stats.clone(), users }))
    }
}

struct Filter {
    config: Arc<BasicAuth>,
    stats: Arc<BasicAuthStats>,
    users: Arc<Users>,
}

/// Why a request may not pass: for the client, and for logs.
type Failure = (&'static str, &'static str);

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let config = &self.config;
        let credentials = stream.request.headers.get(&config.header).cloned();
        if let Some(name) = &config.username_header {
            stream.request.headers.remove(name);
        }
        if config.allow_missing && credentials.is_none() {
            self.stats.allowed.inc();
            return Action::Continue;
        }
        match self.user(credentials.as_ref()) {
            Ok(user) => {
                self.stats.allowed.inc();
                if let Some(name) = &config.username_header
                    && let Ok(value) = HeaderValue::try_from(&user)
                {
                    stream.request.headers.insert(name, value);
                }
                if config.emit_metadata {
                    let namespace = stream.info.dynamic_metadata.entry(NAMESPACE.into()).or_default();
                    namespace.insert("username".to_owned(), user.into());
                }
                Action::Continue
            }
            Err((why, details)) => {
                self.stats.denied.inc();
                let body = format!("User authentication failed. {why}");
                let mut reply = LocalReply::new(StatusCode::UNAUTHORIZED, body, details);
                if let Some(value) = challenge(stream, "Basic", self.users.realm.as_deref(), "") {
                    reply.headers.insert(WWW_AUTHENTICATE, value);
                }
                Action::Reply(reply)
            }
        }
    }
}

impl Filter {
    fn user(&self, credentials: Option<&HeaderValue>) -> Result<String, Failure> {
        let missing = ("Missing username and password.", "no_credential_for_basic_auth");
        let value = credentials.ok_or(missing)?;
        let encoded = value.as_bytes().strip_prefix(b"Basic ");
        let encoded = encoded.ok_or(("Expected 'Basic' authentication scheme.", "invalid_scheme_for_basic_auth"))?;
        let format = ("Invalid basic credential format.", "invalid_format_for_basic_auth");
        let decoded = BASE64.decode(encoded).map_err(|_| format)?;
        let colon = memchr::memchr(b':', &decoded).ok_or(format)?;
        let hash = BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &decoded[colon + 1..]));
        let user = std::str::from_utf8(&decoded[..colon]).ok();
        // Compared in any case, so that time does not tell which users there are.
        let known = user.and_then(|user| self.users.passwords.get(user)).map_or("", String::as_str);
        match (user, verify_slices_are_equal(hash.as_bytes(), known.as_bytes())) {
            (Some(user), Ok(())) => Ok(user.to_owned()),
            _ => Err(("Invalid username/password combination.", "invalid_credential_for_basic_auth")),
        }
    }
}
