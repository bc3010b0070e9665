//! What the measurements ran on.

use std::{fmt, fs, thread};

pub struct Machine {
    model: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    pub fn this() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            model: model.map_or("unknown CPU", |(_, name)| name).to_owned(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.split('-').next().unwrap_or_default().trim().to_owned(),
        }
    }

    /// The CPU's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// How many processes want the CPU on the average of the last minute.
    pub fn busy() -> f64 {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores, Linux {}", self.model, self.cores, self.kernel)
    }
}
