//! What is to hold of Weft against Envoy, and whether it does: goals, and the floors that `--check` holds to.

use super::Report;
use crate::{
    peers::{ENVOY, WEFT},
    rows::GROUPS,
};
use std::fmt::Write;

impl Report<'_> {
    /// Every figure that has a goal or a floor and was measured; whether all floors hold. A floor is the goal where there is no
    /// other one. A row that failed with Weft does not hold.
    pub fn goals(&self) -> (String, bool) {
        let mut text = String::new();
        let mut holds = true;
        for row in GROUPS.iter().flat_map(|group| group.rows).filter(|row| self.bench.wants(row)) {
            for figure in row.figures {
                let Some(floor) = figure.floor.or(figure.goal) else { continue };
                let key = format!("{}.{}", row.name, figure.key);
                let Some(ratio) = self.bench.samples.ratio(WEFT, ENVOY, &key) else { continue };
                let word = match figure.goal {
                    _ if ratio.median > floor => "BELOW THE FLOOR",
                    Some(goal) if ratio.median > goal => "goal missed",
                    _ => "holds",
                };
                holds &= ratio.median <= floor;
                let goal = figure.goal.map_or(String::new(), |goal| format!(", goal {goal:.2}"));
                let _ = writeln!(
                    text,
                    "{word}: {}, {}: {:.3} x Envoy, floor {floor:.2}{goal}",
                    row.title, figure.unit, ratio.median
                );
            }
        }
        for (peer, what) in self.bench.failed.iter().filter(|(peer, _)| *peer == WEFT) {
            holds = false;
            let _ = writeln!(text, "FAILED: {peer}, {what}");
        }
        (text, holds)
    }
}
