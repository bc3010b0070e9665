//! What the connection manager makes of a response's head before it goes to the client.

use super::{ResponseHead, date, header_names::*, request_headers::append};
use http::{
    HeaderValue,
    header::{self, Entry},
};
use weft_config::http_connection_manager::{HttpConnectionManager, ServerHeaderTransformation};

/// The parts of the configuration that every response needs, made once.
#[derive(Debug)]
pub struct ResponseRules {
    pub server: HeaderValue,
    pub transformation: ServerHeaderTransformation,
    /// Empty: none.
    pub via: String,
    pub always_set_request_id: bool,
}

impl ResponseRules {
    pub fn new(config: &HttpConnectionManager) -> Self {
        Self {
            server: HeaderValue::try_from(&config.server_name).unwrap_or(HeaderValue::from_static("envoy")),
            transformation: config.server_header_transformation,
            via: config.via.clone(),
            always_set_request_id: config.always_set_request_id_in_response,
        }
    }

    /// Applies them. `is_upgrade`: the connection turns into a tunnel, and its hop-by-hop words are meant for the client.
    /// `request_id`: the request's, to be echoed where that is asked for.
    pub fn apply(
        &self,
        head: &mut ResponseHead,
        is_upgrade: bool,
        request_id: Option<&HeaderValue>,
        force_request_id: bool,
    ) {
        let headers = &mut head.headers;
        if let Entry::Vacant(entry) = headers.entry(header::DATE) {
            entry.insert(date::now());
        }
        match self.transformation {
            ServerHeaderTransformation::Overwrite => {
                headers.insert(header::SERVER, self.server.clone());
            }
            ServerHeaderTransformation::AppendIfAbsent => {
                headers.entry(header::SERVER).or_insert_with(|| self.server.clone());
            }
            ServerHeaderTransformation::PassThrough => {}
        }
        if has_connection_headers(headers) {
            if !is_upgrade {
                headers.remove(header::CONNECTION);
                headers.remove(header::UPGRADE);
            }
            headers.remove(header::TRANSFER_ENCODING);
            headers.remove(KEEP_ALIVE);
            headers.remove(PROXY_CONNECTION);
        }
        if (self.always_set_request_id || force_request_id)
            && let Some(id) = request_id
        {
            headers.insert(REQUEST_ID, id.clone());
        }
        if !self.via.is_empty() {
            append(headers, header::VIA, self.via.as_bytes(), ", ");
        }
    }
}
