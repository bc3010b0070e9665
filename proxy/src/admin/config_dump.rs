//! `/config_dump`: all configuration in use, resource by resource, as it came; what is secret is hidden.
//!
//! The parts are built as messages of Envoy's admin API, so that field masks and redaction apply to them as to any message.

use super::{
    clusters::{locality, shown_health},
    listeners::address,
    message::{Reply, Request, error_line},
    view::{
        ConfigDump, DynamicListener, DynamicResource, Resource, ScopedRoutes, ServerView, UpdateFailure,
        VersionedResources,
    },
};
use crate::upstream::Cluster;
use http::StatusCode;
use regex::Regex;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_control_api::{
    Any, FieldMask, Message, Name, PrintOptions, Timestamp,
    envoy::{
        admin::v3::{
            self as pb, clusters_config_dump as clusters, ecds_config_dump as ecds, endpoints_config_dump as endpoints,
            listeners_config_dump as listeners, routes_config_dump as routes, scoped_routes_config_dump as scoped,
            secrets_config_dump as secrets,
        },
        config::{
            bootstrap::v3::Bootstrap,
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, cluster_load_assignment::Policy,
                endpoint::HealthCheckConfig, lb_endpoint::HostIdentifier,
            },
        },
    },
    schema,
    wire::{Parsed, Wire},
};

/// `/config_dump`.
pub(super) fn show(request: &Request, view: &dyn ServerView) -> Reply {
    dump(request, view).unwrap_or_else(|(status, problem)| Reply::error(status, problem))
}

type Problem = (StatusCode, String);

fn dump(request: &Request, view: &dyn ServerView) -> Result<Reply, Problem> {
    let bad = |problem: String| (StatusCode::BAD_REQUEST, problem);
    let names = request.param("name_regex").filter(|pattern| !pattern.is_empty());
    let names = names.map(|pattern| {
        let whole = Regex::new(&format!("^(?:{pattern})$"));
        whole.map_err(|error| {
            let problem = error_line(&error);
            bad(format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {problem}\n"))
        })
    });
    let names = names.transpose()?;
    let mask = request.param("mask").filter(|mask| !mask.is_empty());
    let parts = parts(view, request.has("include_eds"), names.as_ref());
    let configs = match request.param("resource").filter(|resource| !resource.is_empty()) {
        Some(resource) => one_list(&parts, resource, mask)?,
        None => all_parts(&parts, mask)?,
    };
    Ok(Reply::json(&if configs.is_empty() { json!({}) } else { json!({ "configs": configs }) }))
}

/// A message and its type.
struct Part {
    name: String,
    bytes: Vec<u8>,
}

impl Part {
    fn of<M: Message + Name>(message: &M) -> Self {
        Self { name: M::full_name(), bytes: message.encode_to_vec() }
    }

    /// As JSON, with its type, without secrets; only the fields of `mask`. `None`: the mask does not fit.
    fn print(&self, mask: Option<&str>) -> Option<Value> {
        let trimmed = mask.map(|mask| FieldMask::parse(mask).trim(&self.name, &self.bytes).ok());
        let bytes = match &trimmed {
            Some(trimmed) => trimmed.as_deref()?,
            None => &self.bytes,
        };
        let fields = weft_control_api::print(&self.name, bytes, PrintOptions { redact: true }).ok()?;
        Some(with_type(&self.name, fields))
    }
}

fn with_type(name: &str, fields: Value) -> Value {
    let mut out = json!({ "@type": format!("type.googleapis.com/{name}") });
    if let (Value::Object(out), Value::Object(fields)) = (&mut out, fields) {
        out.extend(fields);
    }
    out
}

fn all_parts(parts: &[Part], mask: Option<&str>) -> Result<Vec<Value>, Problem> {
    let shown: Vec<Value> = parts.iter().filter_map(|part| part.print(mask)).collect();
    match mask {
        Some(mask) if shown.is_empty() => Err((
            StatusCode::BAD_REQUEST,
            format!("FieldMask {mask} could not be successfully applied to any configs."),
        )),
        _ => Ok(shown),
    }
}

/// The elements of the list field `resource`, wherever it is.
fn one_list(parts: &[Part], resource: &str, mask: Option<&str>) -> Result<Vec<Value>, Problem> {
    for part in parts {
        let Some(message) = schema::message(&part.name) else { continue };
        let Some(field) = message.field_by_name(resource) else { continue };
        let schema::Kind::Message(element) = field.kind() else {
            return Err(not_a_list(resource));
        };
        if !field.is_repeated() {
            return Err(not_a_list(resource));
        }
        let parsed = Parsed::new(message, &part.bytes).ok();
        let values = parsed.as_ref().map(|parsed| parsed.values(field)).unwrap_or_default();
        let elements = values.iter().filter_map(|(_, value)| match value {
            Wire::Bytes(bytes) => Some(*bytes),
            _ => None,
        });
        return elements
            .map(|bytes| {
                let element = Part { name: element.full_name().to_owned(), bytes: bytes.to_vec() };
                element.print(mask).ok_or_else(|| {
                    let mask = mask.unwrap_or_default();
                    (StatusCode::BAD_REQUEST, format!("FieldMask {mask} could not be successfully used."))
                })
            })
            .collect();
    }
    Err((StatusCode::NOT_FOUND, format!("{resource} not found in config dump")))
}

fn not_a_list(field: &str) -> Problem {
    let problem = format!("{field} is not a repeated field. Use ?mask={field} to get only this field\n");
    (StatusCode::BAD_REQUEST, problem)
}

/// All parts in Envoy's order, with the resources whose name matches.
fn parts(view: &dyn ServerView, include_eds: bool, names: Option<&Regex>) -> Vec<Part> {
    let dump = view.config_dump();
    let named = |name: &str| names.is_none_or(|names| names.is_match(name));
    let mut out = Vec::new();
    if let Some(Resource { config, last_updated, .. }) = &dump.bootstrap {
        let bootstrap = Bootstrap::decode(&config.value[..]).ok();
        out.push(Part::of(&pb::BootstrapConfigDump { bootstrap, last_updated: Some(timestamp(*last_updated)) }));
    }
    out.push(clusters_part(&dump, &named));
    if !dump.extension_configs.is_empty() {
        out.push(ecds_part(&dump.extension_configs, &named));
    }
    if include_eds {
        out.push(endpoints_part(view.clusters(), &named));
    }
    out.push(listeners_part(dump.listeners_version, dump.static_listeners, dump.listeners, &named));
    if let Some(routes) = dump.routes {
        out.push(scoped_routes_part(&dump.scoped_routes, &named));
        out.push(routes_part(routes, &named));
    }
    out.push(secrets_part(dump.secrets, &named));
    out
}

fn clusters_part(dump: &ConfigDump, named: &dyn Fn(&str) -> bool) -> Part {
    let VersionedResources { version_info, fixed, active, warming } = &dump.clusters;
    let mut fixed: Vec<&Resource> = fixed.iter().filter(|r| named(&r.name)).collect();
    fixed.sort_by(|a, b| a.name.cmp(&b.name));
    let dynamic = |resources: &[DynamicResource]| {
        let mut resources: Vec<_> = resources.iter().filter(|r| named(r.name())).collect();
        resources.sort_by(|a, b| a.name().cmp(b.name()));
        let cluster = |r: &DynamicResource| clusters::DynamicCluster {
            version_info: r.version_info.clone(),
            cluster: r.config(),
            last_updated: r.last_updated(),
            error_state: r.error.as_ref().map(failure),
            ..clusters::DynamicCluster::default()
        };
        resources.into_iter().map(cluster).collect()
    };
    let fixed_cluster = |r: &Resource| clusters::StaticCluster {
        cluster: Some(r.config.clone()),
        last_updated: Some(timestamp(r.last_updated)),
    };
    Part::of(&pb::ClustersConfigDump {
        version_info: version_info.clone(),
        static_clusters: fixed.into_iter().map(fixed_cluster).collect(),
        dynamic_active_clusters: dynamic(active),
        dynamic_warming_clusters: dynamic(warming),
    })
}

fn listeners_part(
    version_info: String,
    fixed: Vec<Resource>,
    dynamic: Vec<DynamicListener>,
    named: &dyn Fn(&str) -> bool,
) -> Part {
    let state = |state: Option<(String, Resource)>| {
        state.map(|(version_info, r)| listeners::DynamicListenerState {
            version_info,
            listener: Some(r.config),
            last_updated: Some(timestamp(r.last_updated)),
        })
    };
    let dynamic = dynamic.into_iter().filter(|listener| named(&listener.name)).map(|listener| {
        let DynamicListener { name, active, warming, draining, error } = listener;
        listeners::DynamicListener {
            name,
            active_state: state(active),
            warming_state: state(warming),
            draining_state: state(draining),
            error_state: error.as_ref().map(failure),
            ..listeners::DynamicListener::default()
        }
    });
    let fixed = fixed
        .into_iter()
        .filter(|r| named(&r.name))
        .map(|r| listeners::StaticListener { listener: Some(r.config), last_updated: Some(timestamp(r.last_updated)) });
    Part::of(&pb::ListenersConfigDump {
        version_info,
        static_listeners: fixed.collect(),
        dynamic_listeners: dynamic.collect(),
    })
}

fn scoped_routes_part(all: &[ScopedRoutes], named: &dyn Fn(&str) -> bool) -> Part {
    let mut dump = pb::ScopedRoutesConfigDump::default();
    for ScopedRoutes { name, version_info, scopes, last_updated } in all.iter().filter(|routes| named(&routes.name)) {
        let (name, last_updated) = (name.clone(), Some(timestamp(*last_updated)));
        let scoped_route_configs = scopes.clone();
        match version_info.clone() {
            None => dump.inline_scoped_route_configs.push(scoped::InlineScopedRouteConfigs {
                name,
                scoped_route_configs,
                last_updated,
            }),
            Some(version_info) => dump.dynamic_scoped_route_configs.push(scoped::DynamicScopedRouteConfigs {
                name,
                version_info,
                scoped_route_configs,
                last_updated,
                ..scoped::DynamicScopedRouteConfigs::default()
            }),
        }
    }
    Part::of(&dump)
}

fn routes_part(resources: VersionedResources, named: &dyn Fn(&str) -> bool) -> Part {
    let fixed = resources.fixed.into_iter().filter(|r| named(&r.name)).map(|r| routes::StaticRouteConfig {
        route_config: Some(r.config),
        last_updated: Some(timestamp(r.last_updated)),
    });
    let dynamic = resources.active.iter().filter(|r| named(r.name())).map(|r| routes::DynamicRouteConfig {
        version_info: r.version_info.clone(),
        route_config: r.config(),
        last_updated: r.last_updated(),
        error_state: r.error.as_ref().map(failure),
        ..routes::DynamicRouteConfig::default()
    });
    Part::of(&pb::RoutesConfigDump { static_route_configs: fixed.collect(), dynamic_route_configs: dynamic.collect() })
}

fn secrets_part(resources: VersionedResources, named: &dyn Fn(&str) -> bool) -> Part {
    let fixed = resources.fixed.into_iter().filter(|r| named(&r.name)).map(|r| secrets::StaticSecret {
        name: r.name,
        secret: Some(r.config),
        ..secrets::StaticSecret::default()
    });
    let dynamic = |resources: &[DynamicResource]| {
        let secret = |r: &DynamicResource| secrets::DynamicSecret {
            name: r.name().to_owned(),
            version_info: r.version_info.clone(),
            last_updated: r.last_updated(),
            secret: r.config(),
            error_state: r.error.as_ref().map(failure),
            ..secrets::DynamicSecret::default()
        };
        resources.iter().filter(|r| named(r.name())).map(secret).collect()
    };
    Part::of(&pb::SecretsConfigDump {
        static_secrets: fixed.collect(),
        dynamic_active_secrets: dynamic(&resources.active),
        dynamic_warming_secrets: dynamic(&resources.warming),
    })
}

fn ecds_part(resources: &[DynamicResource], named: &dyn Fn(&str) -> bool) -> Part {
    let filter = |r: &DynamicResource| ecds::EcdsFilterConfig {
        version_info: r.version_info.clone(),
        ecds_filter: r.config(),
        last_updated: r.last_updated(),
        error_state: r.error.as_ref().map(failure),
        ..ecds::EcdsFilterConfig::default()
    };
    let filters = resources.iter().filter(|r| named(r.name())).map(filter);
    Part::of(&pb::EcdsConfigDump { ecds_filters: filters.collect() })
}

fn endpoints_part(mut clusters: Vec<Arc<Cluster>>, named: &dyn Fn(&str) -> bool) -> Part {
    clusters.retain(|cluster| named(cluster.info.name()));
    clusters.sort_by(|a, b| a.info.name().cmp(b.info.name()));
    let (dynamic, fixed): (Vec<_>, Vec<_>) = clusters.into_iter().partition(|cluster| cluster.info.added_via_api);
    let fixed = fixed.iter().map(|cluster| endpoints::StaticEndpointConfig {
        endpoint_config: Some(assignment(cluster)),
        ..endpoints::StaticEndpointConfig::default()
    });
    let dynamic = dynamic.iter().map(|cluster| endpoints::DynamicEndpointConfig {
        endpoint_config: Some(assignment(cluster)),
        ..endpoints::DynamicEndpointConfig::default()
    });
    Part::of(&pb::EndpointsConfigDump {
        static_endpoint_configs: fixed.collect(),
        dynamic_endpoint_configs: dynamic.collect(),
    })
}

/// The hosts that a cluster has now, as if they had been assigned to it.
fn assignment(cluster: &Cluster) -> Any {
    // By priority and locality.
    let mut groups: BTreeMap<(u32, _), LocalityLbEndpoints> = BTreeMap::new();
    for host in cluster.hosts.hosts() {
        let group = groups.entry((host.priority, host.locality.clone())).or_insert_with(|| LocalityLbEndpoints {
            locality: Some(locality(host)),
            priority: host.priority,
            load_balancing_weight: Some(0),
            ..LocalityLbEndpoints::default()
        });
        let endpoint = Endpoint {
            address: Some(address(&host.address)),
            health_check_config: Some(HealthCheckConfig::default()),
            hostname: host.hostname.to_string(),
            ..Endpoint::default()
        };
        group.lb_endpoints.push(LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
            health_status: shown_health(host).into(),
            load_balancing_weight: Some(host.weight),
            ..LbEndpoint::default()
        });
    }
    let policy = Policy { overprovisioning_factor: Some(cluster.hosts.overprovisioning_factor), ..Policy::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: cluster.info.name().to_owned(),
        endpoints: groups.into_values().collect(),
        policy: Some(policy),
        ..ClusterLoadAssignment::default()
    };
    Any { type_url: ClusterLoadAssignment::type_url(), value: assignment.encode_to_vec() }
}

impl DynamicResource {
    fn name(&self) -> &str {
        self.resource.as_ref().map(|r| r.name.as_str()).unwrap_or_default()
    }

    fn config(&self) -> Option<Any> {
        self.resource.as_ref().map(|r| r.config.clone())
    }

    fn last_updated(&self) -> Option<Timestamp> {
        self.resource.as_ref().map(|r| timestamp(r.last_updated))
    }
}

fn failure(failure: &UpdateFailure) -> pb::UpdateFailureState {
    let UpdateFailure { failed_configuration, last_update_attempt, details, version_info } = failure;
    pb::UpdateFailureState {
        failed_configuration: failed_configuration.clone(),
        last_update_attempt: Some(timestamp(*last_update_attempt)),
        details: details.clone(),
        version_info: version_info.clone(),
    }
}

/// In milliseconds, as Envoy keeps it.
fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_millis() as i32 * 1_000_000 }
}
