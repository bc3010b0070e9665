//! How many CPUs this process may use: those that it may run on, and no more than its control groups allow.
//!
//! Asked once, at the start, where the command line does not say how many workers there are to be. Everything is read out of
//! `/proc` and the mounted hierarchies; what cannot be read limits nothing.

use std::path::{Path, PathBuf};

/// CPUs to use, at least one: a quota of one and a half is two.
pub fn usable() -> usize {
    count(&|path| std::fs::read_to_string(path).ok()).unwrap_or_else(|| {
        // There is no /proc.
        std::thread::available_parallelism().map_or(1, usize::from)
    })
}

type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn count(read: Read<'_>) -> Option<usize> {
    let status = read("/proc/self/status".as_ref())?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let allowed = listed(allowed)?.max(1);
    Some(quota(read).map_or(allowed, |quota| (quota.ceil() as usize).clamp(1, allowed)))
}

/// How many numbers a list such as `0-3,8` has.
fn listed(text: &str) -> Option<usize> {
    text.trim().split(',').try_fold(0, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + (last + 1).checked_sub(first)?)
    })
}

/// The least of what this process' groups and those above them allow, in CPUs.
fn quota(read: Read<'_>) -> Option<f64> {
    let (groups, mounts) = (read("/proc/self/cgroup".as_ref())?, read("/proc/self/mountinfo".as_ref())?);
    let of_group = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|controller| controller == "cpu") {
            return None;
        }
        let (root, point) = mounts.lines().find_map(|line| mount(line, unified))?;
        // Within a namespace of its own the path may be one that is not mounted here: then the mount is the group.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let below = if below.components().any(|c| c.as_os_str() == "..") { Path::new("") } else { below };
        let mut directory = PathBuf::from(point).join(below);
        let mut least = None::<f64>;
        loop {
            let own = if unified { unified_quota(read, &directory) } else { divided_quota(read, &directory) };
            least = least.into_iter().chain(own).reduce(f64::min);
            if directory == Path::new(point) || !directory.pop() {
                return least;
            }
        }
    };
    groups.lines().filter_map(of_group).reduce(f64::min)
}

/// The root and the mount point of a line of `mountinfo`, if it is the hierarchy that has the CPU's controller.
fn mount(line: &str, unified: bool) -> Option<(&str, &str)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1).unwrap_or_default());
    let wanted = match unified {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "cpu"),
    };
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    wanted.then_some((root, point))
}

/// `cpu.max`: `max 100000` or `150000 100000`.
fn unified_quota(read: Read<'_>, directory: &Path) -> Option<f64> {
    let text = read(&directory.join("cpu.max"))?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// Version 1: a quota below zero is none.
fn divided_quota(read: Read<'_>, directory: &Path) -> Option<f64> {
    let number = |name: &str| read(&directory.join(name))?.trim().parse::<f64>().ok();
    ratio(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 1 0:22 / /sys rw - sysfs sysfs rw\n30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";

    fn cpus(files: &[(&str, &str)]) -> Option<usize> {
        count(&|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn affinity_alone() {
        assert_eq!(cpus(&[("/proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8,10-11\n")]), Some(7));
        assert_eq!(cpus(&[]), None);
        assert!(usable() >= 1);
    }

    #[test]
    fn the_tightest_group_of_all_above_counts() {
        let status = ("/proc/self/status", "Cpus_allowed_list:\t0-7");
        let files = [
            status,
            ("/proc/self/cgroup", "0::/kubepods/pod1/container"),
            ("/proc/self/mountinfo", UNIFIED),
            ("/sys/fs/cgroup/kubepods/pod1/container/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/kubepods/pod1/cpu.max", "250000 100000\n"),
            ("/sys/fs/cgroup/kubepods/cpu.max", "600000 100000\n"),
        ];
        assert_eq!(cpus(&files), Some(3));
        assert_eq!(cpus(&files[..4]), Some(8), "no quota");
    }

    #[test]
    fn a_group_that_is_mounted_as_the_root() {
        let status = ("/proc/self/status", "Cpus_allowed_list:\t0-7");
        let own = ("/sys/fs/cgroup/cpu.max", "20000 100000");
        for group in ["0::/", "0::/../elsewhere"] {
            let files = [status, ("/proc/self/cgroup", group), ("/proc/self/mountinfo", UNIFIED), own];
            assert_eq!(cpus(&files), Some(1), "{group}");
        }
    }

    #[test]
    fn version_1_with_the_path_of_the_host() {
        let mounts = "40 30 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                      41 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let files = [
            ("/proc/self/status", "Cpus_allowed_list:\t0-15"),
            ("/proc/self/cgroup", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc/inner\n0::/docker/abc"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(cpus(&files), Some(4));
        assert_eq!(cpus(&files[..6]), Some(16), "half of a quota is none");
    }
}
