//! A text or JSON made of a stream's facts (`envoy.config.core.v3.SubstitutionFormatString`). The operators are
//! compiled by the proxy.

use crate::{Context, data_source::DataSource, metadata};
use serde_json::{Map, Value};
use weft_control_api::envoy::config::core::v3::{self as pb, substitution_format_string::Format as PbFormat};

/// A format and how it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct SubstitutionFormatString {
    pub format: FormatSource,
    /// What is not there becomes nothing instead of `-` or null.
    pub omit_empty_values: bool,
    /// Default: `text/plain`, or `application/json`.
    pub content_type: String,
    pub sort_properties: bool,
}

/// The format itself.
#[derive(Clone, Debug, PartialEq)]
pub enum FormatSource {
    Text(String),
    Json(Map<String, Value>),
}

impl SubstitutionFormatString {
    pub fn from_proto(p: pb::SubstitutionFormatString, cx: &mut Context) -> Option<Self> {
        let pb::SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options, format } =
            p;
        // Extension formatters bring operators that are built in here, or that the format names and is refused for.
        for (i, formatter) in formatters.iter().enumerate() {
            let known = formatter.typed_config.as_ref().is_some_and(|any| {
                ["req_without_query.v3.ReqWithoutQuery", "metadata.v3.Metadata"]
                    .iter()
                    .any(|known| any.type_url.ends_with(known))
            });
            cx.element("formatters", i, |cx| cx.unsupported_if("typed_config", !known));
        }
        let format = match format {
            Some(PbFormat::TextFormat(text)) => FormatSource::Text(text),
            Some(PbFormat::TextFormatSource(source)) => cx.field("text_format_source", |cx| {
                let source = DataSource::from_proto(source, cx)?;
                source.text(cx).map(|text| FormatSource::Text(text.to_owned()))
            })?,
            Some(PbFormat::JsonFormat(fields)) => FormatSource::Json(metadata::object(fields)),
            None => {
                cx.problem("one of text_format, json_format, text_format_source is required");
                return None;
            }
        };
        let default_type = if matches!(format, FormatSource::Json(_)) { "application/json" } else { "text/plain" };
        Some(Self {
            format,
            omit_empty_values,
            content_type: if content_type.is_empty() { default_type.into() } else { content_type },
            sort_properties: json_format_options.is_some_and(|options| options.sort_properties),
        })
    }
}
