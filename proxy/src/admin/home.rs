//! The home page: every endpoint as a link, or as a button if it changes something, with its parameters.

use super::{
    endpoints::{ENDPOINTS, Endpoint, ParamKind},
    message::{HTML, Reply, Request},
    view::ServerView,
};
use http::StatusCode;
use std::fmt::Write as _;

const HEAD: &str = "<!DOCTYPE html>\n<html lang='en'>\n<head>\n  <title>Weft Admin</title>\n  <style>\n    \
    body { font-family: sans-serif; }\n    td, th { text-align: left; padding: 4px 12px 4px 4px; vertical-align: top; }\n    \
    tr:nth-child(even) { background-color: #eee; }\n  </style>\n</head>\n<body>\n  <table>\n    \
    <tr><th>Command</th><th>Parameters</th><th>Description</th></tr>\n";

/// `/`.
pub(super) fn page(_: &Request, _: &dyn ServerView) -> Reply {
    let mut out = HEAD.to_owned();
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        row(&mut out, endpoint);
    }
    out.push_str("  </table>\n</body>\n</html>\n");
    Reply { status: StatusCode::OK, content_type: HTML, body: out }
}

fn row(out: &mut String, Endpoint { path, about, params, mutates, .. }: &Endpoint) {
    // Relative, so that it also works behind a proxy that adds a prefix.
    let name = &path[1..];
    let method = if *mutates { "post" } else { "get" };
    let mut fields = String::new();
    for param in *params {
        let (name, about) = (param.name, param.about);
        // Writing to a string cannot fail.
        let _ = match &param.kind {
            ParamKind::Flag => {
                write!(fields, "<label title='{about}'><input type='checkbox' name='{name}'>{name}</label> ")
            }
            ParamKind::Text => {
                write!(fields, "<label title='{about}'>{name} <input type='text' name='{name}'></label> ")
            }
            ParamKind::OneOf(values) => {
                let option = |value: &&str| format!("<option>{value}</option>");
                let options: String = values.iter().map(option).collect();
                write!(fields, "<label title='{about}'>{name} <select name='{name}'>{options}</select></label> ")
            }
        };
    }
    let command = if params.is_empty() && !mutates {
        format!("<a href='{name}'>{name}</a>")
    } else {
        format!("<button form='{name}'>{name}</button>")
    };
    let _ = writeln!(
        out,
        "    <tr><td>{command}</td><td><form action='{name}' method='{method}' id='{name}'>{fields}</form></td><td>{about}</td></tr>"
    );
}
