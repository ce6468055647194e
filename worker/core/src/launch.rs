//! What the app is given when it starts from scratch, so that it can be checkpointed: variables of its environment, by
//! what settings want and what it has already.
//!
//! What somebody set is added to and never overwritten; where they decided the very thing, theirs counts.

/// How the app is kept from making an io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The kernel refuses, whatever the app is: a seccomp filter, which CRIU can store only with SYS_ADMIN.
    Filter,
    /// A library that is loaded first refuses: for dynamically linked programs that go through the C library or liburing.
    Preload,
}

/// Which way there is. CRIU suspends a filter with SYS_ADMIN, and only if it is under none itself.
pub fn denial(may_suspend_filters: bool, filtered_ourselves: bool) -> Denial {
    match may_suspend_filters && !filtered_ourselves {
        true => Denial::Filter,
        false => Denial::Preload,
    }
}

/// The JVM's file of performance data has its process id in its name and is mapped: a resume needs it, and the next host does
/// not have it.
const NO_PERF_DATA: &str = "-XX:-UsePerfData";

/// `JAVA_TOOL_OPTIONS` without performance data; None if it says something about them already.
pub fn without_perf_data(had: Option<&str>) -> Option<String> {
    let had = had.unwrap_or_default();
    (!had.contains("UsePerfData")).then(|| appended(had, " ", NO_PERF_DATA))
}

/// Listeners of Go are of multipath TCP from 1.24 on, which CRIU has no image for; older ones ignore it.
const NO_MULTIPATH_TCP: &str = "multipathtcp=0";

/// `GODEBUG` without multipath TCP; None if it says something about it already.
pub fn without_multipath_tcp(had: Option<&str>) -> Option<String> {
    let had = had.unwrap_or_default();
    let is_named = had
        .split(',')
        .any(|one| one.trim().starts_with("multipathtcp="));
    (!is_named).then(|| appended(had, ",", NO_MULTIPATH_TCP))
}

/// `LD_PRELOAD` with one more library, after those that are there; None if it is one of them.
pub fn preloading(had: Option<&str>, library: &str) -> Option<String> {
    let had = had.unwrap_or_default();
    let is_there = had.split([':', ' ']).any(|other| other == library);
    (!is_there).then(|| appended(had, ":", library))
}

/// A variable with more, after what is there and `between`; without that, what is there counts alone.
pub fn added(had: Option<&str>, between: Option<&str>, more: &str) -> Option<String> {
    match (had, between) {
        (None, _) => Some(more.to_owned()),
        (Some(had), Some(between)) => Some(appended(had, between, more)),
        (Some(had), None) => Some(had.to_owned()),
    }
}

fn appended(had: &str, between: &str, more: &str) -> String {
    match had.trim().is_empty() {
        true => more.to_owned(),
        false => format!("{had}{between}{more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept_and_what_was_decided_counts() {
        assert_eq!(without_perf_data(None).as_deref(), Some("-XX:-UsePerfData"));
        assert_eq!(
            without_perf_data(Some("-Xmx1g")).as_deref(),
            Some("-Xmx1g -XX:-UsePerfData")
        );
        assert_eq!(without_perf_data(Some("-XX:+UsePerfData")), None);
        assert_eq!(
            without_multipath_tcp(Some(" ")).as_deref(),
            Some("multipathtcp=0")
        );
        assert_eq!(
            without_multipath_tcp(Some("gctrace=1")).as_deref(),
            Some("gctrace=1,multipathtcp=0")
        );
        assert_eq!(
            without_multipath_tcp(Some("gctrace=1,multipathtcp=2")),
            None
        );
        assert_eq!(preloading(None, "/a.so").as_deref(), Some("/a.so"));
        assert_eq!(
            preloading(Some("/b.so /c.so"), "/a.so").as_deref(),
            Some("/b.so /c.so:/a.so")
        );
        assert_eq!(preloading(Some("/b.so:/a.so"), "/a.so"), None);
    }

    #[test]
    fn a_filter_is_for_those_who_can_suspend_it() {
        assert_eq!(denial(true, false), Denial::Filter);
        assert_eq!(denial(true, true), Denial::Preload);
        assert_eq!(denial(false, false), Denial::Preload);
    }
}
