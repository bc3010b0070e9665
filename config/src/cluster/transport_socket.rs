//! What stands between a cluster's bytes and its sockets.

use crate::{
    Context,
    metadata::{self, Metadata},
    tls::{self, UpstreamTlsContext},
};
use serde_json::{Map, Value};
use std::sync::Arc;
use weft_control_api::envoy::{
    config::{cluster::v3::cluster as pb, core::v3 as core},
    extensions::transport_sockets::{proxy_protocol::v3::ProxyProtocolUpstreamTransport, raw_buffer::v3::RawBuffer},
};

/// A transport socket towards upstreams.
#[derive(Clone, Debug, Default)]
pub enum TransportSocket {
    #[default]
    RawBuffer,
    Tls(Arc<UpstreamTlsContext>),
    ProxyProtocol(ProxyProtocol),
}

/// `envoy.transport_sockets.upstream_proxy_protocol`: a PROXY header goes ahead of the bytes.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    pub version: ProxyProtocolVersion,
    /// Written after the addresses, in v2 only: (type, value).
    pub added_tlvs: Vec<(u8, Vec<u8>)>,
    /// Of those that the client's own header had.
    pub passed_tlvs: PassTlvs,
    pub inner: Box<TransportSocket>,
}

/// Which TLVs of a PROXY header are passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PassTlvs {
    #[default]
    None,
    All,
    These(Vec<u8>),
}

impl PassTlvs {
    /// Reads the rule in field `field`.
    pub fn from_proto(field: &str, p: Option<core::ProxyProtocolPassThroughTlVs>, cx: &mut Context) -> Self {
        use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType as Match;
        let Some(core::ProxyProtocolPassThroughTlVs { match_type, tlv_type }) = p else { return Self::None };
        match cx.field(field, |cx| cx.enumeration("match_type", match_type)) {
            Match::IncludeAll => Self::All,
            Match::Include => Self::These(tlv_type.into_iter().filter_map(|kind| u8::try_from(kind).ok()).collect()),
        }
    }

    /// True if a TLV of this type is passed on.
    pub fn takes(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(kinds) => kinds.contains(&kind),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    V1,
    V2,
}

/// A transport socket for the endpoints whose metadata `envoy.transport_socket_match` has all these values.
#[derive(Clone, Debug)]
pub struct TransportSocketMatch {
    pub name: String,
    pub matches: Map<String, Value>,
    pub transport_socket: TransportSocket,
}

const RAW_BUFFER: &str = "envoy.transport_sockets.raw_buffer";

impl TransportSocket {
    /// True if ALPN can be agreed on.
    pub fn speaks_tls(&self) -> bool {
        match self {
            Self::RawBuffer => false,
            Self::Tls(_) => true,
            Self::ProxyProtocol(proxy) => proxy.inner.speaks_tls(),
        }
    }

    /// Reads the transport socket in field `field`.
    pub fn from_proto(field: &str, p: core::TransportSocket, cx: &mut Context) -> Option<Self> {
        let core::TransportSocket { name, config_type } = p;
        let any = config_type.map(|core::transport_socket::ConfigType::TypedConfig(any)| any);
        cx.field(field, |cx| {
            let type_name = any.as_ref().map(|any| any.type_url.rsplit('/').next().unwrap_or_default());
            match (type_name, any.as_ref()) {
                (Some("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"), Some(any)) => {
                    cx.unpack("typed_config", any).map(|RawBuffer {}| Self::RawBuffer)
                }
                (
                    Some("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"),
                    Some(any),
                ) => {
                    let p = cx.unpack("typed_config", any)?;
                    cx.field("typed_config", |cx| ProxyProtocol::from_proto(p, cx)).map(Self::ProxyProtocol)
                }
                (Some(tls::UPSTREAM), Some(any)) => {
                    let p = cx.unpack("typed_config", any)?;
                    cx.field("typed_config", |cx| UpstreamTlsContext::from_proto(p, cx))
                        .map(|context| Self::Tls(Arc::new(context)))
                }
                (Some(found), _) => {
                    cx.problem_at("typed_config", format!("{found} is not supported"));
                    None
                }
                (None, _) if name == RAW_BUFFER => Some(Self::RawBuffer),
                (None, _) => {
                    cx.problem(format!("{name:?} without typed_config is not supported"));
                    None
                }
            }
        })
    }
}

impl ProxyProtocol {
    fn from_proto(p: ProxyProtocolUpstreamTransport, cx: &mut Context) -> Option<Self> {
        use core::proxy_protocol_config::Version;
        let ProxyProtocolUpstreamTransport { config, transport_socket, allow_unspecified_address, tlv_as_pool_key } = p;
        cx.unsupported_if("allow_unspecified_address", allow_unspecified_address);
        // Header values that do not differ between requests need no pools of their own.
        cx.ignored_if("tlv_as_pool_key", tlv_as_pool_key);
        let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config.unwrap_or_default();
        let transport_socket = cx.required("transport_socket", transport_socket)?;
        let inner = TransportSocket::from_proto("transport_socket", transport_socket, cx)?;
        let passed_tlvs = PassTlvs::from_proto("config.pass_through_tlvs", pass_through_tlvs, cx);
        let version = match cx.enumeration("config.version", version) {
            Version::V1 => ProxyProtocolVersion::V1,
            Version::V2 => ProxyProtocolVersion::V2,
        };
        let added_tlvs = cx.elements("config.added_tlvs", added_tlvs, |cx, p| {
            let core::TlvEntry { r#type, value, format_string } = p;
            cx.unsupported_if("format_string", format_string.is_some());
            let Some(kind) = u8::try_from(r#type).ok() else {
                cx.problem_at("type", format!("found {}, allowed are 0 to 255", r#type));
                return None;
            };
            Some((kind, value))
        });
        Some(Self { version, added_tlvs, passed_tlvs, inner: Box::new(inner) })
    }
}

impl TransportSocketMatch {
    pub(super) fn from_proto(p: pb::TransportSocketMatch, cx: &mut Context) -> Option<Self> {
        let pb::TransportSocketMatch { name, r#match, transport_socket } = p;
        let transport_socket = match transport_socket {
            Some(p) => TransportSocket::from_proto("transport_socket", p, cx)?,
            None => TransportSocket::default(),
        };
        Some(Self { name, matches: r#match.map(metadata::object).unwrap_or_default(), transport_socket })
    }

    /// True if the metadata of an endpoint has all the values.
    pub fn takes(&self, endpoint: &Metadata) -> bool {
        let values = endpoint.get("envoy.transport_socket_match");
        self.matches.iter().all(|(key, value)| values.and_then(|values| values.get(key)) == Some(value))
    }
}
