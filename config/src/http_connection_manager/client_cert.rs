//! What upstreams are told of the client's certificate: `x-forwarded-client-cert`.

use super::hcm::{self, ForwardClientCertDetails};
use crate::Context;
use weft_control_api::Any;

pub use hcm::ForwardClientCertFormat as ClientCertFormat;

/// What becomes of the header.
#[derive(Clone, Debug, Default)]
pub struct ClientCertForwarding {
    pub mode: ForwardClientCertDetails,
    pub details: ClientCertDetails,
}

/// What is said of the client's certificate besides its digest and who we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
    pub issuer: bool,
    pub format: ClientCertFormat,
}

impl ClientCertForwarding {
    /// Reads the connection manager's own two fields.
    pub(super) fn from_fields(mode: i32, details: Option<hcm::SetCurrentClientCertDetails>, cx: &mut Context) -> Self {
        let read = |p, cx: &mut Context| ClientCertDetails::from_proto(p, cx);
        Self {
            mode: cx.enumeration("forward_client_cert_details", mode),
            details: details.map(|p| cx.field("set_current_client_cert_details", |cx| read(p, cx))).unwrap_or_default(),
        }
    }

    /// Reads an action of `forward_client_cert_matcher`.
    pub(super) fn from_any(any: &Any, cx: &mut Context) -> Option<Self> {
        let hcm::ForwardClientCertConfig { forward_client_cert_details, set_current_client_cert_details } =
            cx.unpack("", any)?;
        Some(Self::from_fields(forward_client_cert_details, set_current_client_cert_details, cx))
    }
}

impl ClientCertDetails {
    fn from_proto(p: hcm::SetCurrentClientCertDetails, cx: &mut Context) -> Self {
        let hcm::SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } = p;
        Self {
            subject: subject.unwrap_or(false),
            cert,
            chain,
            dns,
            uri,
            issuer,
            format: cx.enumeration("format", format),
        }
    }
}
