//! `/logging`: shows and changes log levels.

use super::{
    message::{Reply, Request},
    view::ServerView,
};
use std::fmt::Write as _;

const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

/// `/logging`.
pub(super) fn show(request: &Request, view: &dyn ServerView) -> Reply {
    let levels = || {
        let mut out = "active loggers:\n".to_owned();
        for (name, level) in view.log_levels() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {name}: {level}");
        }
        out.push('\n');
        out
    };
    match change(request, view) {
        Ok(()) => Reply::text(levels()),
        Err(problem) => Reply::bad_request(format!(
            "error: {problem}\n\n\
             usage: /logging?<name>=<level> (change single level)\n\
             usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
             usage: /logging?level=<level> (change all levels)\n\
             usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
             levels: {} \n{}",
            LEVELS.join(" "),
            levels()
        )),
    }
}

fn change(request: &Request, view: &dyn ServerView) -> Result<(), &'static str> {
    let (name, value) = match &request.params[..] {
        [] => return Ok(()),
        [(name, value)] => (name.as_str(), value.as_str()),
        _ => return Err("invalid number of parameters"),
    };
    match name {
        "level" => view.set_log_level(None, level(value)?).then_some(()).ok_or("unknown logger name"),
        "group" => Err("group parameter requires fine-grain logging to be enabled"),
        "paths" => {
            let mut changes = Vec::new();
            for pair in value.split(',').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once(':').unwrap_or((pair, ""));
                if name.is_empty() || value.is_empty() {
                    return Err("empty logger name or empty logger level");
                }
                changes.push((name, level(value)?));
            }
            set(&changes, view)
        }
        name => set(&[(name, level(value)?)], view),
    }
}

/// All changes or none.
fn set(changes: &[(&str, &str)], view: &dyn ServerView) -> Result<(), &'static str> {
    let known = view.log_levels();
    if changes.iter().any(|(name, _)| !known.iter().any(|(component, _)| component == name)) {
        return Err("unknown logger name");
    }
    for (name, level) in changes {
        view.set_log_level(Some(name), level);
    }
    Ok(())
}

fn level(text: &str) -> Result<&'static str, &'static str> {
    LEVELS.into_iter().find(|level| *level == text).ok_or("unknown logger level")
}
