//! The measurements as a table, as raw values, and against the floors.

use crate::{
    machine::Machine,
    peer::Peer,
    rotation,
    samples::{Measure, Middle, Samples},
};
use serde_json::{Value, json};
use std::fmt::Write;

/// The row that shows what the load generator and the backend do without a proxy.
pub const DIRECT: &str = "direct";

/// What must hold of Weft against Envoy: the most that the ratio may be.
const FLOORS: [(&str, Measure, f64); 8] = [
    ("CPU a request, HTTP/1.1", Measure::CpuHttp1, 0.40),
    ("CPU a request, h2c", Measure::CpuHttp2, 0.40),
    ("p99 at a fixed rate", Measure::P99, 1.00),
    ("idle resident memory", Measure::Rss, 0.25),
    ("start to first request", Measure::Start, 0.20),
    ("CPU a request, mTLS on both sides", Measure::CpuMtls, 0.35),
    ("CPU a new mTLS connection", Measure::CpuNew, 0.70),
    ("CPU a new mTLS connection on both sides", Measure::CpuNewBoth, 0.70),
];

/// The longest that a certificate which was pushed may take to be served, with all connections under load.
const ROTATED_IN_MS: f64 = 100.0;

pub struct Report<'a> {
    pub machine: &'a Machine,
    pub peers: &'a [Peer],
    pub samples: &'a Samples,
    /// Requests a second of the latency measurement.
    pub rate: f64,
    pub rounds: usize,
}

impl Report<'_> {
    /// Markdown: one row a proxy, in brackets the median of the rounds' ratios to Envoy with their extremes; what was
    /// not measured of any is left out.
    pub fn tables(&self) -> String {
        let measured = |measure| self.peers.iter().any(|peer| !self.samples.of(peer.name, measure).is_empty());
        let mut text =
            format!("{}; {} rounds, medians; [x Envoy of the same round, least-most]\n", self.machine, self.rounds);
        if measured(Measure::CpuHttp1) {
            text += &self.plain();
        }
        if measured(Measure::CpuBulk) {
            text += &self.tcp();
        }
        if measured(Measure::CpuMtls) {
            text += &self.mtls();
        }
        if measured(Measure::Rotation) {
            text += &self.rotation();
        }
        text
    }

    fn mtls(&self) -> String {
        let mut text =
            "\n| mTLS | CPU us/req | CPU us/new connection | the same on both sides | with default groups | req/s | \
                        new connections/s |\n|---|---|---|---|---|---|---|\n"
                .to_owned();
        let peers = self.peers.iter().filter(|peer| peer.mtls.is_some()).map(|peer| peer.name);
        for name in peers.chain([DIRECT]) {
            let cell = |measure| self.cell(name, measure, 1.0, 1);
            let number = |measure| {
                self.samples.middle(name, measure).map_or("-".to_owned(), |middle| format!("{:.0}", middle.median))
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                if name == DIRECT { "no proxy" } else { name },
                cell(Measure::CpuMtls),
                cell(Measure::CpuNew),
                cell(Measure::CpuNewBoth),
                cell(Measure::CpuNewDefault),
                number(Measure::RateMtls),
                number(Measure::RateNew),
            );
        }
        text
    }

    fn tcp(&self) -> String {
        let mut text = "\n| TCP | CPU ms/GiB | CPU us/small exchange | CPU us/connection with one exchange | GiB/s |\n\
                        |---|---|---|---|---|\n"
            .to_owned();
        let peers = self.peers.iter().filter(|peer| peer.tcp.is_some()).map(|peer| peer.name);
        for name in peers.chain([DIRECT]) {
            let cell = |measure| self.cell(name, measure, 1.0, 1);
            let rate = self.samples.middle(name, Measure::RateBulk);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                if name == DIRECT { "no proxy" } else { name },
                cell(Measure::CpuBulk),
                cell(Measure::CpuSmall),
                cell(Measure::CpuChurn),
                rate.map_or("-".to_owned(), |middle| format!("{:.2}", middle.median)),
            );
        }
        text
    }

    fn rotation(&self) -> String {
        let mut text = format!(
            "\n| {} connections under load, certificates rotate | ms from push to first handshake with the new one | most |\n\
             |---|---|---|\n",
            rotation::CONNECTIONS
        );
        for peer in self.peers {
            if let Some(middle) = self.samples.middle(peer.name, Measure::Rotation) {
                let _ = writeln!(text, "| {} | {:.0} | {:.0} |", peer.name, middle.median, middle.most);
            }
        }
        text
    }

    fn plain(&self) -> String {
        let mut text = format!(
            "\n| | CPU us/req HTTP/1.1 | CPU us/req h2c | p50 us | p99 us at {:.0}/s | CPU us/req at that rate | \
             idle RSS MiB (PSS) | start ms | req/s HTTP/1.1 | req/s h2c |\n|---|---|---|---|---|---|---|---|---|---|\n",
            self.rate
        );
        let names = self.peers.iter().map(|peer| (peer.name, format!("{} {}", peer.name, peer.version)));
        for (name, title) in names.chain([(DIRECT, "no proxy".to_owned())]) {
            let cell = |measure, scale: f64, digits| self.cell(name, measure, scale, digits);
            let number = |measure, scale: f64, digits: usize| {
                self.samples
                    .middle(name, measure)
                    .map_or("-".to_owned(), |middle| format!("{:.digits$}", middle.median / scale))
            };
            const MIB: f64 = 1024.0 * 1024.0;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} ({}) | {} | {} | {} |",
                title.trim(),
                cell(Measure::CpuHttp1, 1.0, 1),
                cell(Measure::CpuHttp2, 1.0, 1),
                number(Measure::P50, 1.0, 0),
                cell(Measure::P99, 1.0, 0),
                cell(Measure::CpuFixed, 1.0, 1),
                cell(Measure::Rss, MIB, 1),
                number(Measure::Pss, MIB, 1),
                cell(Measure::Start, 1.0, 1),
                number(Measure::RateHttp1, 1.0, 0),
                number(Measure::RateHttp2, 1.0, 0),
            );
        }
        text
    }

    fn cell(&self, name: &str, measure: Measure, scale: f64, digits: usize) -> String {
        let Some(Middle { median, .. }) = self.samples.middle(name, measure) else { return "-".into() };
        let mut text = format!("{:.digits$}", median / scale);
        if !matches!(name, "envoy" | DIRECT)
            && let Some(ratio) = self.samples.ratio(name, "envoy", measure)
        {
            let _ = write!(text, " [{:.2}, {:.2}-{:.2}]", ratio.median, ratio.least, ratio.most);
        }
        text
    }

    /// Each floor and whether it holds; the second says whether all do. A measure that is missing does not hold.
    pub fn floors(&self) -> (String, bool) {
        let mut text = String::new();
        let mut all = true;
        for (name, measure, most) in FLOORS {
            let ratio = self.samples.ratio("weft", "envoy", measure);
            let holds = ratio.is_some_and(|ratio| ratio.median <= most);
            all &= holds;
            let found = ratio.map_or("not measured".to_owned(), |ratio| format!("{:.3} x Envoy", ratio.median));
            let word = if holds { "holds" } else { "MISSED" };
            let _ = writeln!(text, "{word}: {name}: {found}, at most {most:.2}");
        }
        let late = self.samples.middle("weft", Measure::Rotation).map(|middle| middle.most);
        let holds = late.is_some_and(|late| late <= ROTATED_IN_MS);
        all &= holds;
        let found = late.map_or("not measured".to_owned(), |late| format!("{late:.0} ms"));
        let word = if holds { "holds" } else { "MISSED" };
        let _ = writeln!(text, "{word}: a pushed certificate is served: after {found}, at most {ROTATED_IN_MS:.0} ms");
        (text, all)
    }

    /// Every value of every round.
    pub fn raw(&self) -> Value {
        let names = self.peers.iter().map(|peer| peer.name).chain([DIRECT]);
        let values: serde_json::Map<String, Value> = names
            .map(|name| {
                let values = Measure::ALL.iter().map(|m| (m.key().to_owned(), json!(self.samples.of(name, *m))));
                (name.to_owned(), Value::Object(values.collect()))
            })
            .collect();
        let versions: serde_json::Map<String, Value> =
            self.peers.iter().map(|peer| (peer.name.to_owned(), json!(peer.version))).collect();
        json!({
            "machine": self.machine.to_string(),
            "rounds": self.rounds,
            "fixed_rate_rps": self.rate,
            "versions": versions,
            "values": values,
        })
    }
}
