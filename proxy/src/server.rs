//! The process: command line, logs, runtime layers; boot, signals, threads.

pub mod cli;
pub mod log_format;
pub mod logging;
