//! `envoy.filters.network.direct_response`: writes its text and closes.

use super::{CompileContext, Connection, NetworkFilter, Terminal};
use crate::{http::Thread, observe::StreamInfo};
use bytes::Bytes;
use std::{future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_config::{Context, data_source::DataSource};
use weft_control_api::{Any, envoy::extensions::filters::network::direct_response::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.direct_response.v3.Config";

struct DirectResponse(Bytes);

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn NetworkFilter>> {
    let pb::Config { response } = cx.unpack("", any)?;
    let data = match response {
        Some(p) => cx.field("response", |cx| DataSource::from_proto(p, cx))?.data,
        None => Bytes::new(),
    };
    Some(Arc::new(DirectResponse(data)))
}

impl NetworkFilter for DirectResponse {
    fn activate(self: Arc<Self>, _: &Rc<Thread>) -> Rc<dyn Terminal> {
        Rc::new(DirectResponse(self.0.clone()))
    }
}

impl Terminal for DirectResponse {
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let mut io = connection.io;
            if let Some(facts) = &connection.facts {
                let mut info = StreamInfo::new(connection.info.clone());
                info.set_details("direct_response");
                info.bytes.sent = self.0.len() as u64;
                info.bytes.downstream_wire_sent = info.bytes.sent;
                facts.set(Some(Box::new(info)));
            }
            if io.write_all(&self.0).await.is_err() || io.shutdown().await.is_err() {
                return;
            }
            // What the client still sends must not turn into a reset that takes the text with it.
            let mut rest = [0; 4096];
            let _ =
                tokio::time::timeout(Duration::from_secs(1), async { while let Ok(1..) = io.read(&mut rest).await {} })
                    .await;
        })
    }
}
