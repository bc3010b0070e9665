//! The process: command line, logs, runtime layers; boot, signals, threads.

pub mod boot;
mod certificates;
pub mod cli;
pub mod control;
mod cpus;
pub mod discovery;
pub mod file_watch;
mod health_checks;
mod host_weights;
pub mod load_reports;
mod log_format;
pub mod logging;
mod on_demand;
mod outliers;
pub mod quickstart;
pub mod resident;
pub mod runtime;
pub mod secret_files;
mod task;
pub mod view;
pub mod worker;
pub mod xds;
