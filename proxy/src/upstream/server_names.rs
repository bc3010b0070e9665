//! The names that TLS towards a host takes from a request: `auto_sni`, `auto_san_validation`.

use crate::http::RequestHead;
use std::net::IpAddr;
use weft_config::http_protocol_options::UpstreamHttpProtocolOptions;

/// What a request says of the host's name, for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// Sent as SNI.
    pub sni: Option<Box<str>>,
    /// The host's certificate must be for it.
    pub san: Option<Box<str>>,
}

impl ServerNames {
    /// By a cluster's options; an address is no SNI.
    pub fn of(request: &RequestHead, options: &UpstreamHttpProtocolOptions) -> Self {
        if !options.auto_sni && !options.auto_san_validation {
            return Self::default();
        }
        let header = Some(&options.override_auto_sni_header).filter(|name| !name.is_empty());
        let header = header.and_then(|name| request.headers.get(name)?.to_str().ok()).filter(|value| !value.is_empty());
        let host = host_of(header.unwrap_or_else(|| std::str::from_utf8(&request.authority).unwrap_or_default()));
        let is_name = host.parse::<IpAddr>().is_err() && !host.is_empty();
        Self {
            sni: (options.auto_sni && is_name).then(|| host.into()),
            san: options.auto_san_validation.then(|| host.into()),
        }
    }
}

/// The host of an authority: without its port and the brackets of IPv6.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts_are_without_port_and_brackets() {
        let cases = [("a.test:99", "a.test"), ("a.test", "a.test"), ("[::1]:80", "::1"), ("::1", "::1"), ("", "")];
        cases.iter().for_each(|(authority, host)| assert_eq!(host_of(authority), *host));
    }
}
