//! `envoy.filters.network.sni_cluster`: the server name that the client asked for is the TCP proxy's cluster.

use super::{Admission, CompileContext, Connection, Gate, GateFilter};
use crate::{http::Thread, observe::stream_info::FilterState};
use bytes::Bytes;
use std::{future::Future, pin::Pin, rc::Rc, sync::Arc};
use weft_config::Context;
use weft_control_api::{Any, envoy::extensions::filters::network::sni_cluster::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

/// The filter state that names a TCP proxy's cluster, for one connection.
pub const CLUSTER_KEY: &str = "envoy.tcp_proxy.cluster";

struct SniCluster;

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn GateFilter>> {
    let pb::SniCluster {} = cx.unpack("", any)?;
    Some(Arc::new(SniCluster))
}

impl GateFilter for SniCluster {
    fn activate(self: Arc<Self>, _: &Rc<Thread>) -> Rc<dyn Gate> {
        Rc::new(Self)
    }
}

impl Gate for SniCluster {
    fn admit<'a>(&'a self, connection: &'a mut Connection) -> Pin<Box<dyn Future<Output = Admission> + 'a>> {
        if let Some(name) = connection.info.requested_server_name.as_deref().filter(|name| !name.is_empty()) {
            let state = FilterState { text: Bytes::copy_from_slice(name.as_bytes()), is_mutable: true };
            connection.filter_state.insert(CLUSTER_KEY.into(), state);
        }
        Box::pin(std::future::ready(Admission::Pass))
    }
}
