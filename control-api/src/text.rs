//! Configuration files by their extension, as Envoy picks them: `.yaml`, `.yml`, `.pb`, `.pb_text`, all else JSON.
//!
//! Used for the bootstrap, for resources read from files and by the reference control plane.

use crate::{
    encode::{EncodeOptions, Encoded, encode, encode_partly},
    json,
    node::Node,
    problem::Problem,
    schema, yaml,
};
use std::path::Path;

/// How a file says what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
    /// The message on the wire.
    Wire,
}

impl Format {
    /// The format of the file `path`.
    ///
    /// # Errors
    /// protobuf's text format is not supported.
    pub fn of(path: &Path) -> Result<Self, Problem> {
        let name = path.as_os_str().to_string_lossy().to_ascii_lowercase();
        if name.ends_with(".yaml") || name.ends_with(".yml") {
            Ok(Self::Yaml)
        } else if name.ends_with(".pb") {
            Ok(Self::Wire)
        } else if name.ends_with(".pb_text") {
            Err(Problem::new("", "protobuf's text format (.pb_text) is not supported; use .yaml, .json or .pb"))
        } else {
            Ok(Self::Json)
        }
    }
}

/// Reads the content of a file in `format` as the message `name`.
///
/// # Errors
/// Everything that keeps the content from being that message, with places where it is text. Constraints are not
/// checked here; see [`crate::check()`].
pub fn read(content: &[u8], format: Format, name: &str, options: EncodeOptions) -> Result<Encoded, Vec<Problem>> {
    if format == Format::Wire {
        debug_assert!(schema::message(name).is_some());
        return Ok(Encoded::from_wire(content.to_vec()));
    }
    encode(tree(content, format).map_err(|problem| vec![problem])?, name, options)
}

/// Reads as [`read`] does, but gives what can be had of a content that is not quite the message, beside all that is
/// wrong with it. `None`: nothing can be had.
pub fn read_partly(
    content: &[u8],
    format: Format,
    name: &str,
    options: EncodeOptions,
) -> (Option<Encoded>, Vec<Problem>) {
    if format == Format::Wire {
        return match read(content, format, name, options) {
            Ok(encoded) => (Some(encoded), Vec::new()),
            Err(problems) => (None, problems),
        };
    }
    match tree(content, format) {
        Ok(node) => {
            let (encoded, problems) = encode_partly(node, name, options);
            (Some(encoded), problems)
        }
        Err(problem) => (None, vec![problem]),
    }
}

fn tree(content: &[u8], format: Format) -> Result<Node, Problem> {
    let text = std::str::from_utf8(content).map_err(|e| {
        let line = content.get(..e.valid_up_to()).map_or(0, |valid| valid.iter().filter(|b| **b == b'\n').count());
        Problem::new("", format!("is not UTF-8 (line {})", line + 1))
    })?;
    // A byte order mark is no content.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if format == Format::Yaml { yaml::parse(text) } else { json::parse(text) }
}
