//! Data that a configuration holds or points to (`envoy.config.core.v3.DataSource`), read when configuration is.

use crate::Context;
use bytes::Bytes;
use std::path::Path;
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
        Self::read(p, is_no_pem, cx)
    }

    /// Reads data that nobody may see: a problem does not repeat what may be such data in the wrong field.
    pub fn secret_from_proto(p: pb::DataSource, cx: &mut Context) -> Option<Self> {
        Self::read(p, is_name, cx)
    }

    fn read(p: pb::DataSource, may_be_shown: fn(&str) -> bool, cx: &mut Context) -> Option<Self> {
        let pb::DataSource { watched_directory, specifier } = p;
        // Watching is the business of those who can swap what they read: secrets.
        cx.unsupported_if("watched_directory", watched_directory.is_some());
        let shown = |name: &str| if may_be_shown(name) { format!("{name:?}") } else { "a text, [redacted]".to_owned() };
        let (data, filename) = match specifier {
            Some(Specifier::InlineBytes(bytes)) => (bytes, None),
            Some(Specifier::InlineString(text)) => (text.into_bytes(), None),
            Some(Specifier::EnvironmentVariable(name)) => match std::env::var(&name) {
                Ok(text) => (text.into_bytes(), None),
                Err(_) => {
                    cx.problem_at("environment_variable", format!("found {}, which is not set", shown(&name)));
                    return None;
                }
            },
            Some(Specifier::Filename(name)) => match std::fs::read(&name) {
                Ok(data) => (data, Some(name)),
                Err(e) => {
                    cx.problem_at("filename", cannot_be_read(&shown(&name), &e));
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

    /// The file that it is from, or that it stands in the configuration itself, as Envoy says it.
    pub fn origin(&self) -> &str {
        origin(self.filename.as_deref())
    }

    /// The data as text.
    pub fn text(&self, cx: &mut Context) -> Option<&str> {
        std::str::from_utf8(&self.data).map_err(|_| cx.problem("found bytes that are no UTF-8 text")).ok()
    }
}

/// How a message names the file that data are from; `None`: they stand in the configuration itself.
pub fn origin(filename: Option<&str>) -> &str {
    filename.unwrap_or(INLINE)
}

/// In place of a file's name, where there is none.
pub(crate) const INLINE: &str = "<inline>";

/// What is wrong with the name of a file. `shown`: the name, as it may be shown.
pub(crate) fn cannot_be_read(shown: &str, e: &std::io::Error) -> String {
    match shown {
        "\"\"" => "is empty: the name of a file is needed".to_owned(),
        _ => format!("found {shown}, which cannot be read: {e}"),
    }
}

/// False for a PEM text that stands where a name should.
pub(crate) fn is_no_pem(text: &str) -> bool {
    !text.contains("-----") && !text.contains('\n')
}

/// True if a text is the name of a file or variable for sure, and no key or password that stands in its place.
pub(crate) fn is_name(text: &str) -> bool {
    let path = Path::new(text);
    let is_in_directory = path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir());
    // Base64 has no dots.
    let begins_as_path = ["/", "./", "../"].iter().any(|begin| text.starts_with(begin)) && text.contains('.');
    let endings = ["pem", "key", "crt", "cert", "cer", "txt", "bin"];
    let ends_as_file = path.extension().is_some_and(|found| endings.iter().any(|ending| found == *ending));
    let is_variable = text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    is_no_pem(text) && (is_in_directory || begins_as_path || ends_as_file || is_variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(specifier: Specifier, is_secret: bool) -> String {
        let mut cx = Context::new();
        let read = if is_secret { DataSource::secret_from_proto } else { DataSource::from_proto };
        let source = read(pb::DataSource { watched_directory: None, specifier: Some(specifier) }, &mut cx);
        cx.finish(source).expect_err("a problem")[0].to_string()
    }

    #[test]
    fn what_may_be_a_key_is_not_repeated() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n";
        for text in [pem, "MIGHAgEAMBMGByqGSM49", "hunter2", "AA/MIGHAgEA+/a=", "/MIGHAgEA/b=="] {
            for specifier in [Specifier::Filename(text.into()), Specifier::EnvironmentVariable(text.into())] {
                let said = problem(specifier, true);
                assert!(!said.contains(text) && !said.contains("MIGH"), "{said}");
                assert!(said.contains("found a text, [redacted], which"), "{said}");
            }
        }
        assert!(!problem(Specifier::Filename(pem.into()), false).contains("MIGH"));
    }

    #[test]
    fn names_are_said() {
        for name in ["/no/such/file.pem", "./key.pem", "server.key", "/nosuchfile"] {
            let said = problem(Specifier::Filename(name.into()), true);
            assert!(said.starts_with(&format!("filename: found {name:?}, which cannot be read: ")), "{said}");
        }
        let said = problem(Specifier::EnvironmentVariable("NO_SUCH_KEY".into()), true);
        assert_eq!(said, "environment_variable: found \"NO_SUCH_KEY\", which is not set");
        let said = problem(Specifier::Filename(String::new()), true);
        assert_eq!(said, "filename: is empty: the name of a file is needed");
    }
}
