//! `envoy.filters.network.ext_authz`: asks a service whether connections may pass.
//!
//! As with the RBAC filter the decision is made before the filters behind this one see the connection, so that one that is
//! denied reaches no upstream. Without an answer connections are closed, unless the configuration says otherwise.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{
    filters::ext_authz::{CHECK, ask},
    http::Thread,
    stats,
    upstream::grpc_call,
};
use std::{collections::HashMap, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use weft_config::{
    Context, GrpcService,
    metadata::{MetadataMatcher, fields, merge, object},
};
use weft_control_api::{
    Any,
    envoy::{
        config::core::v3 as core,
        extensions::filters::network::ext_authz::v3 as pb,
        service::auth::v3::{AttributeContext, CheckRequest, CheckResponse},
    },
};

pub const TYPE: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";

const NAMESPACE: &str = "envoy.filters.network.ext_authz";

stats! {
    /// `ext_authz.PREFIX.*`
    pub struct NetworkAuthzStats {
        gauge active,
        counter cx_closed,
        counter denied,
        counter disabled,
        counter error,
        counter failure_mode_allowed,
        counter ok,
        counter total,
    }
}

struct ExtAuthz {
    service: GrpcService,
    timeout: Duration,
    stat_prefix: String,
    failure_mode_allow: bool,
    include_peer_certificate: bool,
    include_tls_session: bool,
    enabled_metadata: Option<MetadataMatcher>,
    metadata_namespaces: Vec<String>,
}

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let pb::ExtAuthz {
        stat_prefix,
        grpc_service,
        failure_mode_allow,
        include_peer_certificate,
        transport_api_version,
        filter_enabled_metadata,
        bootstrap_metadata_labels_key,
        include_tls_session,
        send_tls_alert_on_denial,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        shadow_mode,
    } = cx.unpack("", any)?;
    if transport_api_version != core::ApiVersion::V3 as i32 {
        cx.problem_at("transport_api_version", "must be V3");
    }
    cx.unsupported_if("bootstrap_metadata_labels_key", !bootstrap_metadata_labels_key.is_empty());
    cx.unsupported_if("send_tls_alert_on_denial", send_tls_alert_on_denial);
    cx.unsupported_if("typed_metadata_context_namespaces", !typed_metadata_context_namespaces.is_empty());
    cx.unsupported_if("shadow_mode", shadow_mode);
    let service = cx.required("grpc_service", grpc_service)?;
    let service = cx.field("grpc_service", |cx| GrpcService::from_proto(service, cx))?;
    Some(Arc::new(ExtAuthz {
        timeout: service.timeout.unwrap_or(Duration::from_millis(200)),
        service,
        stat_prefix,
        failure_mode_allow,
        include_peer_certificate,
        include_tls_session,
        enabled_metadata: filter_enabled_metadata
            .and_then(|p| cx.field("filter_enabled_metadata", |cx| MetadataMatcher::from_proto(p, cx))),
        metadata_namespaces: metadata_context_namespaces,
    }))
}

impl GateFilter for ExtAuthz {
    fn activate(self: Arc<Self>, thread: &Rc<Thread>) -> Rc<dyn Gate> {
        let stats = thread.registry.attach(&format!("ext_authz.{}", self.stat_prefix));
        Rc::new(Active { config: self, stats })
    }
}

/// One worker's part.
struct Active {
    config: Arc<ExtAuthz>,
    stats: Arc<NetworkAuthzStats>,
}

impl Gate for Active {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        Box::pin(self.ask(connection))
    }
}

impl Active {
    async fn ask(&self, connection: &mut Connection) -> Admission {
        let (config, stats) = (&self.config, &self.stats);
        let matcher = config.enabled_metadata.as_ref();
        if matcher.is_some_and(|matcher| !matcher.matches(|name| connection.dynamic_metadata.get(name))) {
            stats.disabled.inc();
            return Admission::Pass;
        }
        stats.total.inc();
        stats.active.inc();
        let _active = ActiveCheck(stats.clone());
        let request = self.request(connection);
        let thread = &connection.thread;
        let answer: Result<CheckResponse, _> =
            grpc_call::call(&thread.upstreams, thread.local.address, &config.service, CHECK, &request, config.timeout)
                .await;
        let Ok(answer) = answer else {
            stats.error.inc();
            if config.failure_mode_allow {
                stats.failure_mode_allowed.inc();
                return Admission::Pass;
            }
            stats.cx_closed.inc();
            return self.close(connection, "ext_authz_error");
        };
        if let Some(metadata) = answer.dynamic_metadata {
            merge(connection.dynamic_metadata.entry(NAMESPACE.into()).or_default(), &object(metadata));
        }
        if answer.status.is_some_and(|status| status.code != 0) {
            stats.denied.inc();
            stats.cx_closed.inc();
            return self.close(connection, "ext_authz_denied");
        }
        stats.ok.inc();
        Admission::Pass
    }

    fn close(&self, connection: &Connection, details: &'static str) -> Admission {
        connection.info.termination_details.replace(Some(details.into()));
        Admission::Close
    }

    fn request(&self, connection: &Connection) -> CheckRequest {
        let (config, info) = (&self.config, &connection.info);
        let metadata = config
            .metadata_namespaces
            .iter()
            .filter_map(|name| Some((name.clone(), fields(connection.dynamic_metadata.get(name.as_str())?.clone()))));
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(ask::source(info, &info.remote, config.include_peer_certificate)),
                destination: Some(ask::destination(info)),
                request: None,
                context_extensions: HashMap::new(),
                metadata_context: Some(core::Metadata { filter_metadata: metadata.collect(), ..Default::default() }),
                route_metadata_context: None,
                tls_session: ask::tls_session(info).filter(|_| config.include_tls_session),
            }),
        }
    }
}

/// A check that runs, whatever becomes of its connection.
struct ActiveCheck(Arc<NetworkAuthzStats>);

impl Drop for ActiveCheck {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}
