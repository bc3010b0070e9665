//! One table, a line a figure: Weft, its ratio to Envoy, what it is to be, and the peers.

use super::Report;
use crate::{
    peers::{BASELINE, DIRECT, ENVOY, WEFT},
    row::{Figure, Load, RATE, Rate, Row},
    rows::GROUPS,
};
use std::fmt::Write;

/// The columns of peers that have a ratio to Envoy in brackets.
const OTHERS: [&str; 3] = ["haproxy", "nginx", "hyper"];

impl Report<'_> {
    /// Markdown. What was not measured of any is left out.
    pub fn table(&self) -> String {
        let peers = &self.bench.peers;
        let versions: Vec<_> = peers.iter().map(|peer| format!("{} {}", peer.name, peer.version)).collect();
        let mut text = format!("{}; {}; rounds: {}\n\n", self.machine, versions.join(", "), self.bench.lengths.rounds);
        let baseline = peers.iter().any(|peer| peer.name == BASELINE);
        let others: Vec<_> = OTHERS.into_iter().chain(baseline.then_some(BASELINE)).collect();
        let _ = writeln!(
            text,
            "| work | figure | weft | x envoy (least-most) | goal | envoy | {} | a second: weft | no proxy |\n|---|---|{}",
            others.join(" | "),
            "---|".repeat(others.len() + 6)
        );
        for row in GROUPS.iter().flat_map(|group| group.rows) {
            for figure in row.figures {
                self.line(&mut text, row, figure, &others);
            }
        }
        for note in &self.bench.notes {
            let _ = write!(text, "\n- {note}");
        }
        text
    }

    fn line(&self, text: &mut String, row: &Row, figure: &Figure, others: &[&str]) {
        let samples = &self.bench.samples;
        let key = format!("{}.{}", row.name, figure.key);
        if !self.bench.peers.iter().any(|peer| !samples.of(peer.name, &key).is_empty()) {
            return;
        }
        let digits = figure.digits;
        let number = |peer: &str| {
            samples.middle(peer, &key).map_or("-".to_owned(), |middle| format!("{:.digits$}", middle.median))
        };
        let ratio = |peer: &str| samples.ratio(peer, ENVOY, &key);
        let spread =
            ratio(WEFT).map_or("-".to_owned(), |r| format!("**{:.2}** ({:.2}-{:.2})", r.median, r.least, r.most));
        let goal = figure.goal.map_or(String::new(), |goal| format!("{goal:.2}"));
        let _ = write!(
            text,
            "| {}{} | {} | {} | {spread} | {goal} | {} |",
            row.title,
            self.at(row),
            figure.unit,
            number(WEFT),
            number(ENVOY)
        );
        for name in others {
            let x = ratio(name).map_or(String::new(), |ratio| format!(" ({:.2})", ratio.median));
            let _ = write!(text, " {}{x} |", number(name));
        }
        // How many a second stands beside what each of them costs, except where the rate is given.
        let rate = format!("{}.{RATE}", row.name);
        let rate = |peer: &str| samples.middle(peer, &rate).map(|rate| rate.median).filter(|_| figure.key == "cpu");
        let show = |rate: Option<f64>| match rate {
            Some(rate) if rate < 100.0 => format!("{rate:.2}"),
            Some(rate) => format!("{rate:.0}"),
            None => String::new(),
        };
        let direct = match row.load {
            Load::Open(..) => {
                samples.middle(DIRECT, &key).map(|middle| format!("{:.0} us", middle.median)).unwrap_or_default()
            }
            _ => show(rate(DIRECT)),
        };
        let _ = writeln!(text, " {} | {direct} |", show(rate(WEFT)));
    }

    /// The rate of this run, where a row does not say it.
    fn at(&self, row: &Row) -> String {
        match row.load {
            Load::Open(rate @ Rate::OfSlowest(_), _) => {
                self.bench.rate(rate).map_or(String::new(), |rate| format!(" ({rate:.0}/s)"))
            }
            _ => String::new(),
        }
    }
}
