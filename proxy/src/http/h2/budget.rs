//! Envoy's limits on frames that cost their sender nothing, over the life of a connection.

use super::{
    frame::{FrameHead, flag, kind},
    options::Http2Options,
    stats::Http2Stats,
};
use std::time::Instant;

pub(super) struct Budget {
    max_empty: u32,
    max_priority: u64,
    max_window_update: u64,
    max_frames: u32,
    max_control: u32,
    empty: u32,
    priority: u64,
    window_update: u64,
    /// Streams that were begun, and DATA frames that we sent.
    pub opened: u64,
    pub data_sent: u64,
    resets: f64,
    resets_at: Instant,
    reset_burst: f64,
    reset_rate: f64,
}

impl Budget {
    pub fn new(options: &Http2Options) -> Self {
        Self {
            max_empty: options.max_consecutive_inbound_frames_with_empty_payload,
            max_priority: options.max_inbound_priority_frames_per_stream.into(),
            max_window_update: options.max_inbound_window_update_frames_per_data_frame_sent.into(),
            max_frames: options.max_outbound_frames,
            max_control: options.max_outbound_control_frames,
            empty: 0,
            priority: 0,
            window_update: 0,
            opened: 0,
            data_sent: 0,
            resets: options.stream_reset_burst as f64,
            resets_at: Instant::now(),
            reset_burst: options.stream_reset_burst as f64,
            reset_rate: options.stream_reset_rate as f64,
        }
    }

    /// Counts a frame from the peer; false when that is one too many. `empty`: it carries nothing.
    pub fn received(&mut self, frame: FrameHead, empty: bool, stats: &Http2Stats) -> bool {
        match frame.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => {
                let empty = empty && !frame.has(flag::END_STREAM);
                self.empty = if empty { self.empty + 1 } else { 0 };
                if self.empty > self.max_empty {
                    stats.inbound_empty_frames_flood.inc();
                    return false;
                }
            }
            kind::PRIORITY => {
                self.priority += 1;
                if self.priority > self.max_priority.saturating_mul(1 + self.opened) {
                    stats.inbound_priority_frames_flood.inc();
                    return false;
                }
            }
            kind::WINDOW_UPDATE => {
                self.window_update += 1;
                let per_data = self.max_window_update.saturating_mul(self.data_sent);
                if self.window_update > per_data.saturating_add(self.opened).saturating_mul(2).saturating_add(5) {
                    stats.inbound_window_update_frames_flood.inc();
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// Looks at what waits to be written, (all frames, control frames); false if the peer reads too little of it.
    pub fn waiting(&self, (frames, control): (u32, u32), stats: &Http2Stats) -> bool {
        if control > self.max_control {
            stats.outbound_control_flood.inc();
            return false;
        }
        if frames > self.max_frames {
            stats.outbound_flood.inc();
            return false;
        }
        true
    }

    /// Takes a token for an RST_STREAM at `now`; false when there is none left.
    pub fn reset(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.resets_at).as_secs_f64();
        self.resets = (self.resets + passed * self.reset_rate).min(self.reset_burst);
        self.resets_at = now;
        self.resets -= 1.0;
        self.resets >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_end_where_envoy_ends_them() {
        let stats = Http2Stats::default();
        let head = |kind, length| FrameHead { length, kind, flags: 0, stream: 1 };
        let mut budget = Budget::new(&Http2Options::default());
        let mut allowed =
            |kind, length| (0..10_000).take_while(|_| budget.received(head(kind, length), length == 0, &stats)).count();
        assert_eq!(allowed(kind::DATA, 0), 1);
        assert_eq!(allowed(kind::PRIORITY, 5), 100);
        assert_eq!(allowed(kind::WINDOW_UPDATE, 4), 5);
        assert_eq!(allowed(kind::DATA, 1), 10_000);
        let now = budget.resets_at;
        assert_eq!((0..2000).take_while(|_| budget.reset(now)).count(), 1000);
        assert!(budget.reset(now + std::time::Duration::from_secs(40)));
        assert!(budget.waiting((10_000, 1000), &stats));
        assert!(!budget.waiting((10_001, 0), &stats) && !budget.waiting((1001, 1001), &stats));
        assert_eq!((stats.outbound_flood.get(), stats.outbound_control_flood.get()), (1, 1));
    }
}
