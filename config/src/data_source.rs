//! Data that a configuration holds or points to (`envoy.config.core.v3.DataSource`), read when configuration is.

use crate::Context;
use bytes::Bytes;
use weft_control_api::envoy::config::core::v3::{self as pb, data_source::Specifier};

/// Data, and the file it came from if it was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource {
    pub data: Bytes,
    pub filename: Option<String>,
}

impl DataSource {
    /// Reads the data now; a file or environment variable that is not there is a problem.
    pub fn from_proto(p: pb::DataSource, cx: &mut Context) -> Option<Self> {
        let pb::DataSource { watched_directory, specifier } = p;
        // Watching is the business of those who can swap what they read: secrets.
        cx.unsupported_if("watched_directory", watched_directory.is_some());
        let (data, filename) = match specifier {
            Some(Specifier::InlineBytes(bytes)) => (bytes, None),
            Some(Specifier::InlineString(text)) => (text.into_bytes(), None),
            Some(Specifier::EnvironmentVariable(name)) => match std::env::var(&name) {
                Ok(text) => (text.into_bytes(), None),
                Err(_) => {
                    cx.problem_at("environment_variable", format!("found {name:?}, which is not set"));
                    return None;
                }
            },
            Some(Specifier::Filename(name)) => match std::fs::read(&name) {
                Ok(data) => (data, Some(name)),
                Err(e) => {
                    cx.problem_at("filename", format!("found {name:?}, which cannot be read: {e}"));
                    return None;
                }
            },
            None => {
                cx.problem("one of filename, inline_bytes, inline_string, environment_variable is required");
                return None;
            }
        };
        Some(Self { data: data.into(), filename })
    }

    /// The data as text.
    pub fn text(&self, cx: &mut Context) -> Option<&str> {
        std::str::from_utf8(&self.data).map_err(|_| cx.problem("found bytes that are no UTF-8 text")).ok()
    }
}
