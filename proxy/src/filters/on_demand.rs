//! `envoy.filters.http.on_demand`: a request whose virtual host or cluster is not known waits until it was asked for.
//!
//! Virtual hosts are asked for where the route configuration has `vhds`, clusters where the filter or the route has `odcds`.
//! What is not found, or not in time, is as if nobody had asked: 404 without a route, 503 without a cluster.

use super::{
    Action, ActiveFilter, FilterConfig, FilterFactory, FilterScope, HttpFilter, Resume, RouteFilterConfig,
    most_specific,
};
use crate::http::{demand::Wanted, stream::Stream};
use std::{rc::Rc, sync::Arc};
use weft_config::{Context, on_demand::OnDemandClusters};
use weft_control_api::envoy::extensions::filters::http::on_demand::v3 as pb;

pub const FACTORY: FilterFactory = FilterFactory {
    name: "envoy.filters.http.on_demand",
    type_name: "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    parse: |any, cx| {
        let pb::OnDemand { odcds } = cx.unpack("typed_config", any)?;
        cx.field("typed_config", |cx| Some(Arc::new(OnDemand::read(odcds, cx)?) as Arc<dyn FilterConfig>))
    },
    route: Some(("envoy.extensions.filters.http.on_demand.v3.PerRouteConfig", |any, cx| {
        let pb::PerRouteConfig { odcds } = cx.unpack("", any)?;
        Some(Arc::new(OnDemand::read(odcds, cx)?) as RouteFilterConfig)
    })),
};

struct OnDemand {
    clusters: Option<OnDemandClusters>,
}

impl OnDemand {
    fn read(odcds: Option<pb::OnDemandCds>, cx: &mut Context) -> Option<Self> {
        Some(Self {
            clusters: match odcds {
                Some(p) => Some(cx.field("odcds", |cx| OnDemandClusters::from_http(p, cx))?),
                None => None,
            },
        })
    }
}

impl FilterConfig for OnDemand {
    fn activate(self: Arc<Self>, _: &FilterScope<'_>) -> Rc<dyn ActiveFilter> {
        Rc::new(Active(self))
    }
}

struct Active(Arc<OnDemand>);

impl ActiveFilter for Active {
    fn create(&self, _: &Stream, routes: &[RouteFilterConfig]) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Filter(most_specific::<OnDemand>(routes).unwrap_or_else(|| self.0.clone()))))
    }
}

struct Filter(Arc<OnDemand>);

impl HttpFilter for Filter {
    fn on_request(&mut self, stream: &mut Stream, _end: bool) -> Action {
        let Some(route) = stream.route.clone() else { return ask_for_routes(stream) };
        let Some(clusters) = &self.0.clusters else { return Action::Continue };
        let thread = stream.connection.thread.clone();
        if route.cluster(&thread.upstreams, &stream.request).is_some() {
            return Action::Continue;
        }
        let Some(name) = route.cluster_name(&thread.upstreams, &stream.request) else { return Action::Continue };
        let waiting = thread.demands.ask(Wanted::Cluster(name), Some(&clusters.source));
        let timeout = clusters.timeout;
        Action::Await(Box::pin(async move {
            // Found or not, and in time or not: the router sees what there is.
            let _ = tokio::time::timeout(timeout, waiting).await;
            Box::new(|_: &mut Stream| Action::Continue) as Resume
        }))
    }
}

fn ask_for_routes(stream: &Stream) -> Action {
    let wanted = match &stream.table {
        Some(table) if table.vhds.is_some() => {
            Wanted::VirtualHost(table.name.to_string(), table.host_of(&stream.request.authority))
        }
        Some(_) => return Action::Continue,
        None => match stream.connection.routes_on_demand(&stream.request) {
            Some(name) => Wanted::Routes(name.to_string()),
            None => return Action::Continue,
        },
    };
    let waiting = stream.connection.thread.demands.ask(wanted, None);
    Action::Await(Box::pin(async move {
        let is_there = waiting.await;
        Box::new(move |stream: &mut Stream| {
            if is_there {
                stream.take_new_routes();
            }
            Action::Continue
        }) as Resume
    }))
}
