//! The time, read once for a stretch of work that takes no time.
//!
//! A stream asks for the time at every turn of its life; within one poll all answers are the same to any purpose of ours,
//! and reading the clock costs more than the rest of what is done with it. Called by the codecs, which poll streams
//! within [`hold`], and by what runs in streams. Invariant: outside of `hold`, [`now`] is the time itself.

use std::{cell::Cell, time::Instant};

thread_local! {
    static HELD: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time: that at which the present [`hold`] began, if there is one.
pub fn now() -> Instant {
    HELD.get().unwrap_or_else(Instant::now)
}

/// Runs `work`, for which the time stands still.
pub fn hold<T>(work: impl FnOnce() -> T) -> T {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            HELD.set(None);
        }
    }
    let _release = Release;
    HELD.set(Some(Instant::now()));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_while_it_is_held() {
        let (first, second) = hold(|| {
            let first = now();
            while Instant::now() == first {}
            (first, now())
        });
        assert_eq!(first, second);
        assert!(now() > first);
    }

    #[test]
    fn a_panic_does_not_stop_the_clock() {
        let held = std::panic::catch_unwind(|| hold(|| panic!("in the work")));
        assert!(held.is_err());
        assert_eq!(HELD.get(), None);
    }
}
