//! Memory of this process as the kernel counts it, for `/memory` and `server.memory_*`.

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident and not shared with others.
    pub allocated: u64,
    /// What the heap has reserved.
    pub heap_size: u64,
    /// Resident.
    pub physical: u64,
}

impl Memory {
    /// What is in use now; zeros if the kernel does not say.
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/statm").unwrap_or_default())
    }

    /// `statm`: pages of size, resident, shared, text, library, data.
    fn parse(statm: &str) -> Self {
        let page = rustix::param::page_size() as u64;
        let pages: Vec<u64> = statm.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let &[_, resident, shared, _, _, data, ..] = &pages[..] else { return Self::default() };
        Self { allocated: resident.saturating_sub(shared) * page, heap_size: data * page, physical: resident * page }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let memory = Memory::read();
        assert!(memory.physical >= memory.allocated && memory.allocated > 0);
        assert_eq!(Memory::parse("garbage"), Memory::default());
    }
}
