//! The extensions that a bootstrap can name.

use crate::Context;
use weft_control_api::{
    Any, Message as _, Name,
    envoy::{
        config::{
            bootstrap::v3::{ListenerManager, ValidationListenerManager},
            core::v3::TypedExtensionConfig,
        },
        extensions::{
            bootstrap::internal_listener::v3::InternalListener as InternalListenerPb, regex_engines::v3::GoogleRe2,
        },
    },
};

/// Internal listeners may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalListener {
    /// Bytes that each direction of an internal connection buffers; default 1 MiB.
    pub buffer_size: u64,
}

/// True if `any` holds the message `name`.
fn holds(any: &Any, name: &str) -> bool {
    any.type_url.rsplit_once('/').is_some_and(|(_, found)| found == name)
}

fn unsupported(any: &Any, allowed: &str, cx: &mut Context) {
    cx.problem_at("typed_config", format!("{} is not supported, allowed: {allowed}", any.type_url));
}

/// Reads `bootstrap_extensions`.
pub(super) fn bootstrap_extensions(pb: Vec<TypedExtensionConfig>, cx: &mut Context) -> Option<InternalListener> {
    let read = cx.elements("bootstrap_extensions", pb, |cx, extension| {
        let TypedExtensionConfig { name: _, typed_config } = extension;
        let any = cx.required("typed_config", typed_config)?;
        if !holds(&any, &InternalListenerPb::full_name()) {
            unsupported(&any, &InternalListenerPb::full_name(), cx);
            return None;
        }
        let InternalListenerPb { buffer_size_kb } = InternalListenerPb::decode(&*any.value).ok()?;
        Some(InternalListener { buffer_size: u64::from(buffer_size_kb.unwrap_or(1024)) * 1024 })
    });
    read.last().copied()
}

/// Checks that `listener_manager` is the ordinary one.
pub(super) fn listener_manager(pb: Option<TypedExtensionConfig>, cx: &mut Context) {
    only("listener_manager", &[&ListenerManager::full_name(), &ValidationListenerManager::full_name()], pb, cx);
}

/// Checks that `default_regex_engine` is RE2, whose meaning ours has.
pub(super) fn regex_engine(pb: Option<TypedExtensionConfig>, cx: &mut Context) {
    only("default_regex_engine", &[&GoogleRe2::full_name()], pb, cx);
}

fn only(name: &str, allowed: &[&str], pb: Option<TypedExtensionConfig>, cx: &mut Context) {
    let Some(TypedExtensionConfig { name: _, typed_config }) = pb else { return };
    cx.field(name, |cx| {
        if let Some(any) = cx.required("typed_config", typed_config)
            && !allowed.iter().any(|allowed| holds(&any, allowed))
        {
            unsupported(&any, &allowed.join(", "), cx);
        }
    });
}
