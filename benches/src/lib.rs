//! Load and micro benches: Weft against its peers in one run.
