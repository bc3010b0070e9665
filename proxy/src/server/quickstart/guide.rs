//! What the user is told: that the mesh is up, and what to try.

use super::{NODES, START, children::end_of_log, ports::Ports, say};
use std::{path::Path, time::Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Duration, sleep, timeout},
};

/// Waits until all proxies serve, shows what to try, and then waits for ever. Returns if one does not come up.
pub async fn show_when_ready(dir: &Path, ports: &Ports) -> String {
    let begin = Instant::now();
    for node in NODES {
        let admin = ports.address(&format!("{node}-admin"));
        while !is_ready(&admin).await {
            if begin.elapsed() > START {
                return format!("{node} does not come up; the end of its log:\n{}", end_of_log(dir, node));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    say(&text(dir, ports));
    std::future::pending().await
}

async fn is_ready(admin: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await.ok()?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1).map(|status| status == "200")
    };
    timeout(Duration::from_secs(2), ask).await.ok().flatten().unwrap_or(false)
}

fn text(dir: &Path, ports: &Ports) -> String {
    let dir = dir.display();
    let [gateway, admin, a, b, a_inbound, b_service] =
        ["gateway", "gateway-admin", "sidecar-a-admin", "sidecar-b-admin", "a-inbound", "b-service"]
            .map(|name| ports.of(name));
    format!(
        "\
The mesh is up: a gateway, two services with a sidecar each, and their control plane.

  curl localhost:{gateway}/          the way that a request takes to service a
  curl localhost:{gateway}/b/        ... to service b
  curl localhost:{gateway}/chain     ... to service a, which calls service b

Change it while it runs:

  {dir}/gateway/routes.yaml      which request goes where: let service-b answer for service-a
  {dir}/endpoints.yaml           where the services are
  {dir}/sidecar-a/, sidecar-b/   what the sidecars do

A change is in use as soon as it is saved. A mistake is refused and said here, and nothing breaks: misspell a field, or
write a regular expression that is none, as  match: {{safe_regex: {{regex: \"(\"}}}}  .

When things fail:

  curl localhost:{gateway}/flaky     fails every other time, until its route gets the retry that stands beside it
  curl localhost:{gateway}/slow      takes a second; gateway/clusters.yaml says how many may at once
  curl localhost:{b_service}/break     breaks service b until /mend: as a second host of service-a in endpoints.yaml it is left out
                              after three failures (http://localhost:{admin}/clusters), and comes back

Between each other the proxies speak mTLS: the control plane issues them SPIFFE identities, spiffe://quickstart.local/NODE,
and new certificates every five minutes, without a lost request.

  curl localhost:{a}/certs            which identity sidecar a has, and until when
  curl localhost:{a_inbound}                  without one you are not let in

Look inside:

  http://localhost:{admin}   the gateway's admin API: /config_dump /stats /clusters /listeners
  http://localhost:{a}   sidecar a's
  http://localhost:{b}   sidecar b's
  {dir}/.run/            bootstraps and logs of the three

Ctrl-C ends all of it; the files stay.
"
    )
}
