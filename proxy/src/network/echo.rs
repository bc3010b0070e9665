//! `envoy.filters.network.echo`: sends back what it reads.

use super::{CompileContext, Connection, NetworkFilter, Terminal};
use crate::http::Thread;
use std::{future::Future, pin::Pin, rc::Rc, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_config::Context;
use weft_control_api::{Any, envoy::extensions::filters::network::echo::v3 as pb};

pub const TYPE: &str = "envoy.extensions.filters.network.echo.v3.Echo";

struct Echo;

pub fn compile(any: &Any, _: &mut CompileContext<'_>, cx: &mut Context) -> Option<Arc<dyn NetworkFilter>> {
    let pb::Echo {} = cx.unpack("", any)?;
    Some(Arc::new(Echo))
}

impl NetworkFilter for Echo {
    fn activate(self: Arc<Self>, _: &Rc<Thread>) -> Rc<dyn Terminal> {
        Rc::new(Echo)
    }
}

impl Terminal for Echo {
    fn serve(self: Rc<Self>, connection: Connection) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let mut io = connection.io;
            let mut buffer = vec![0; 16 << 10];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                if io.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            let _ = io.shutdown().await;
        })
    }
}
