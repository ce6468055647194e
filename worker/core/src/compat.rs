//! Can this host run that snapshot? Every mismatch is a value that can be printed, never a bare no.

use std::fmt;

use crate::cpu::{self, Level};
use crate::manifest::{AppFacts, HostFacts, Manifest, Profile};

/// The instruction sets that a program may have chosen at its start and would die without (SIGILL after a resume that
/// CRIU called successful). Names as in `/proc/cpuinfo`; what only the kernel uses is left out on purpose.
const USER_FEATURES: &[&str] = &[
    "abm",
    "adx",
    "aes",
    "avx",
    "avx2",
    "avx512",
    "avx_",
    "amx",
    "bmi1",
    "bmi2",
    "clflushopt",
    "clwb",
    "cx16",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "gfni",
    "lahf_lm",
    "lzcnt",
    "movbe",
    "movdir",
    "mmx",
    "pclmulqdq",
    "pku",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rtm",
    "serialize",
    "sha",
    "sse",
    "ssse3",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xop",
    "xsave",
];

/// Of all flags in `/proc/cpuinfo`, those a snapshot depends on; sorted.
pub fn user_features<'a>(flags: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut features: Vec<String> = flags
        .filter(|flag| {
            USER_FEATURES
                .iter()
                .any(|feature| flag.starts_with(feature))
        })
        .map(str::to_owned)
        .collect();
    features.sort();
    features.dedup();
    features
}

/// One reason why a host cannot run a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Architecture {
        snapshot: String,
        host: String,
    },
    PageSize {
        snapshot: u64,
        host: u64,
    },
    /// Images of a newer CRIU are not readable by an older one.
    OlderCriu {
        snapshot: String,
        host: String,
    },
    CpuLacks {
        features: Vec<String>,
        snapshot_cpu: String,
        host_cpu: String,
    },
    /// The host cannot hold the state of the snapshot's processor.
    Xsave {
        snapshot: u32,
        host: u32,
    },
    /// Its processes are under a seccomp filter.
    CannotFilter,
    /// A program or library that its processes have mapped is another one here.
    Program {
        path: String,
        snapshot: String,
        host: String,
    },
    /// Only the full profile can give it what it needs.
    Profile,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture { snapshot, host } => {
                write!(out, "it was taken on {snapshot}, this host is {host}")
            }
            Self::PageSize { snapshot, host } => {
                write!(
                    out,
                    "it was taken with pages of {snapshot} bytes, this host has pages of {host}"
                )
            }
            Self::OlderCriu { snapshot, host } => {
                write!(
                    out,
                    "it was taken by CRIU {snapshot}, this host has the older CRIU {host}"
                )
            }
            Self::CpuLacks {
                features,
                snapshot_cpu,
                host_cpu,
            } => write!(
                out,
                "this host's CPU ({host_cpu}) lacks {} of the snapshot's CPU ({snapshot_cpu})",
                features
                    .iter()
                    .map(|feature| cpu::described(feature))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            Self::Xsave { snapshot, host } => write!(
                out,
                "its processor state takes {snapshot} bytes with XSAVE, this host has {host}"
            ),
            Self::Program {
                path,
                snapshot,
                host,
            } => write!(out, "{path} is another one here: it had {snapshot}, this host has {host}"),
            Self::CannotFilter => out.write_str(
                "its processes are under a seccomp filter of Reprieve's, and this container has no SYS_ADMIN",
            ),
            Self::Profile => write!(
                out,
                "it holds System V shared memory, semaphores or message queues, which need the full profile; here the \
                 minimal one is in force"
            ),
        }
    }
}

/// Every reason why `host` cannot run this snapshot; empty when it can. `program` says what lies at a path here, None if that
/// cannot be told.
pub fn unfit(
    snapshot: &Manifest,
    host: &HostFacts,
    program: impl Fn(&str) -> Option<String>,
) -> Vec<Mismatch> {
    let mut found = mismatches(&snapshot.host, host);
    if matches!(found[..], [Mismatch::Architecture { .. }]) {
        return found;
    }
    for (path, had) in &snapshot.app.programs {
        if let Some(has) = program(path).filter(|has| has != had) {
            found.push(Mismatch::Program {
                path: path.clone(),
                snapshot: had.clone(),
                host: has,
            });
        }
    }
    if snapshot.app.filtered && !host.may_filter {
        found.push(Mismatch::CannotFilter);
    }
    found
}

/// Every reason why `host` cannot run a snapshot taken on `snapshot`; empty when it can.
pub fn mismatches(snapshot: &HostFacts, host: &HostFacts) -> Vec<Mismatch> {
    let mut found = Vec::new();
    if snapshot.arch != host.arch {
        // Everything else would follow from it and only hide it.
        return vec![Mismatch::Architecture {
            snapshot: snapshot.arch.clone(),
            host: host.arch.clone(),
        }];
    }
    if snapshot.page_size != host.page_size {
        found.push(Mismatch::PageSize {
            snapshot: snapshot.page_size,
            host: host.page_size,
        });
    }
    if version(&host.criu) < version(&snapshot.criu) {
        found.push(Mismatch::OlderCriu {
            snapshot: snapshot.criu.clone(),
            host: host.criu.clone(),
        });
    }
    let baseline = snapshot.cpu_baseline.as_deref().and_then(Level::from_text);
    let is_demanded = |feature: &&String| !baseline.is_some_and(|level| level.holds_back(feature));
    let features: Vec<String> = snapshot
        .cpu_features
        .iter()
        .filter(is_demanded)
        .filter(|feature| !host.cpu_features.contains(feature))
        .cloned()
        .collect();
    // What a baseline holds back is never in the state.
    let has_whole_state = baseline.is_none();
    if has_whole_state && host.xsave_bytes > 0 && host.xsave_bytes < snapshot.xsave_bytes {
        found.push(Mismatch::Xsave {
            snapshot: snapshot.xsave_bytes,
            host: host.xsave_bytes,
        });
    }
    if !features.is_empty() {
        found.push(Mismatch::CpuLacks {
            features,
            snapshot_cpu: snapshot.cpu_model.clone(),
            host_cpu: host.cpu_model.clone(),
        });
    }
    found
}

/// Whether the profile in force on `host` can give the app what it needs.
pub fn lacks_profile(app: &AppFacts, host: &HostFacts) -> Option<Mismatch> {
    (app.needs == Profile::Full && host.profile == Profile::Minimal).then_some(Mismatch::Profile)
}

/// `4.2.1` as numbers that compare as versions do; whatever is no number counts as zero.
pub fn version(text: &str) -> Vec<u64> {
    text.split('.')
        .map(|part| part.parse().unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts {
            hostname: "a".into(),
            arch: "x86_64".into(),
            kernel: "6.18".into(),
            cpu_model: "Zen".into(),
            cpu_features: vec!["avx".into(), "avx2".into()],
            page_size: 4096,
            criu: "4.2.1".into(),
            image: "Debian".into(),
            xsave_bytes: 2440,
            ..HostFacts::default()
        }
    }

    #[test]
    fn what_needs_the_full_profile_is_not_resumed_with_the_minimal_one() {
        use Profile::{Full, Minimal};
        let app = |needs| AppFacts {
            argv: Vec::new(),
            root_pid: 301,
            stdio: crate::manifest::Stdio::Terminal { rdev: 1, dev: 2 },
            stdin_ended: false,
            processes: 1,
            monotonic_ms: 0,
            clocks: None,
            needs,
            library: None,
            filtered: false,
            programs: Default::default(),
            by_host_clocks: None,
        };
        for (needs, profile, expected) in [
            (Minimal, Minimal, None),
            (Minimal, Full, None),
            (Full, Full, None),
            (Full, Minimal, Some(Mismatch::Profile)),
        ] {
            let host = HostFacts { profile, ..host() };
            assert_eq!(lacks_profile(&app(needs), &host), expected);
        }
    }

    #[test]
    fn what_only_the_kernel_uses_is_no_feature() {
        assert_eq!(
            user_features("ibrs avx2 avx512f nopl avx2 sse4_2".split(' ')),
            ["avx2", "avx512f", "sse4_2"]
        );
    }

    #[test]
    fn the_same_host_and_a_better_one_can() {
        let better = HostFacts {
            criu: "4.10".into(),
            cpu_features: vec!["avx".into(), "avx2".into(), "avx512f".into()],
            kernel: "7.0".into(),
            ..host()
        };
        assert_eq!(mismatches(&host(), &host()), []);
        assert_eq!(mismatches(&host(), &better), []);
    }

    #[test]
    fn each_lack_is_named() {
        let cases: Vec<(HostFacts, &str)> = vec![
            (
                HostFacts {
                    arch: "aarch64".into(),
                    ..host()
                },
                "it was taken on x86_64, this host is aarch64",
            ),
            (
                HostFacts {
                    page_size: 65536,
                    ..host()
                },
                "it was taken with pages of 4096 bytes, this host has pages of 65536",
            ),
            (
                HostFacts {
                    criu: "4.2".into(),
                    ..host()
                },
                "it was taken by CRIU 4.2.1, this host has the older CRIU 4.2",
            ),
            (
                HostFacts {
                    cpu_features: vec!["avx".into()],
                    cpu_model: "Old".into(),
                    ..host()
                },
                "this host's CPU (Old) lacks avx2 (CPUID 7.0 EBX bit 5) of the snapshot's CPU (Zen)",
            ),
            (
                HostFacts {
                    xsave_bytes: 832,
                    ..host()
                },
                "its processor state takes 2440 bytes with XSAVE, this host has 832",
            ),
        ];
        for (other, expected) in cases {
            let found: Vec<String> = mismatches(&host(), &other)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, [expected]);
        }
    }

    #[test]
    fn a_job_that_was_held_to_a_level_runs_on_any_host_that_has_it() {
        let has = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let held = HostFacts {
            cpu_features: has(&["aes", "avx", "avx2", "avx512f", "sse4_2"]),
            cpu_baseline: Some("x86-64-v3".into()),
            ..host()
        };
        let older = |names: &[&str]| HostFacts {
            cpu_features: has(names),
            xsave_bytes: 832,
            ..host()
        };
        assert_eq!(
            mismatches(&held, &older(&["aes", "avx", "avx2", "sse4_2"])),
            []
        );
        let said = |host: &HostFacts| mismatches(&held, host)[0].to_string();
        assert!(said(&older(&["aes", "avx", "sse4_2"])).contains("lacks avx2 (CPUID"));
        assert!(said(&older(&["avx", "avx2", "sse4_2"])).contains("lacks aes"));
    }
}
