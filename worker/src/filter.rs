//! Seccomp filters that the app can be given at its start.
//!
//! One of the container's would be on CRIU as well, which stores nothing then. One of the app alone is suspended by CRIU
//! where it has SYS_ADMIN and is under none itself (`PTRACE_O_SUSPEND_SECCOMP`), and comes back with the app.
//!
//! What [`Filter::job`] refuses is what Docker's default filter refuses a container without further capabilities, but for
//! what programs ask for as a matter of course (NUMA policies, `personality`). infra/policy/job.seccomp.json says the same in
//! the form of the OCI.

use nix::libc::{self, sock_filter};

/// A filter, as the kernel takes it.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Vec<sock_filter>);

/// The numbers are the same on every architecture; in x32 they have this bit as well (asm/unistd.h).
const IO_URING_SETUP: u32 = 425;
const X32: u32 = 0x4000_0000;

/// The architecture whose numbers the tables have (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (linux/sched.h).
const NAMESPACES: u32 = 0x7e02_0000;

/// The fields of struct seccomp_data (linux/seccomp.h); of the first argument the lower half, on little-endian machines.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// linux/bpf_common.h and linux/seccomp.h: load a word, compare with it, look at some of its bits, answer.
const LOAD: u16 = 0x20;
const IS: u16 = 0x15;
const HAS: u16 = 0x45;
const ANSWER: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const NOT_PERMITTED: u32 = 0x0005_0000 | libc::EPERM as u32;

/// A system call, by name and number.
type Call = (&'static str, libc::c_long);

macro_rules! calls {
    ($($call:ident)*) => { &[$((stringify!($call), libc::$call)),*] };
}

/// Answered as by a kernel that does not have them, so that programs do without.
const ABSENT: &[Call] =
    calls![SYS_clone3 SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register];

/// Refused.
const REFUSED: &[Call] = calls![
    SYS_acct SYS_add_key SYS_bpf SYS_clock_adjtime SYS_clock_settime SYS_delete_module SYS_fanotify_init SYS_finit_module
    SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_init_module SYS_kexec_file_load SYS_kexec_load SYS_keyctl
    SYS_lookup_dcookie SYS_mount SYS_mount_setattr SYS_move_mount SYS_nfsservctl SYS_open_by_handle_at SYS_open_tree
    SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key
    SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2 SYS_unshare
    SYS_userfaultfd SYS_vhangup
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[Call] = calls![
    SYS_ioperm SYS_iopl SYS_sysfs SYS_uselib SYS_ustat
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[Call] = &[];

impl Filter {
    /// For a program of this architecture there is no io_uring; all others go on.
    pub(crate) fn no_io_uring() -> Self {
        Self(vec![
            step(LOAD, NUMBER, 0, 0),
            step(IS, IO_URING_SETUP, 2, 0),
            step(IS, X32 | IO_URING_SETUP, 1, 0),
            step(ANSWER, ALLOW, 0, 0),
            step(ANSWER, NO_SUCH_CALL, 0, 0),
        ])
    }

    /// What a job has no business with is refused, and a program of another architecture has no system calls.
    pub(crate) fn job() -> Self {
        let refused = || REFUSED.iter().chain(REFUSED_HERE);
        // Behind the comparisons come a look at what clone() is asked for, in three steps, and the answers.
        let mut to_come = ABSENT.len() + refused().count() + 3;
        let far =
            |steps: usize| u8::try_from(steps).expect("there are fewer steps than a jump has");
        let mut steps = vec![
            step(LOAD, ARCH, 0, 0),
            step(IS, ARCHITECTURE, 0, far(to_come + 4)),
            step(LOAD, NUMBER, 0, 0),
            step(HAS, X32, far(to_come + 2), 0),
        ];
        let (refuse, absent) = (1, 2);
        for (calls, answer) in [(ABSENT, absent), (REFUSED, refuse), (REFUSED_HERE, refuse)] {
            for (_, number) in calls {
                to_come -= 1;
                steps.push(step(IS, word(*number), far(to_come + answer), 0));
            }
        }
        steps.extend([
            step(IS, word(libc::SYS_clone), 0, 2),
            step(LOAD, FIRST_ARGUMENT, 0, 0),
            step(HAS, NAMESPACES, 1, 0),
            step(ANSWER, ALLOW, 0, 0),
            step(ANSWER, NOT_PERMITTED, 0, 0),
            step(ANSWER, NO_SUCH_CALL, 0, 0),
        ]);
        Self(steps)
    }

    /// The steps, for the kernel.
    pub(crate) fn into_steps(self) -> Vec<sock_filter> {
        self.0
    }
}

/// `jt` and `jf` are how many steps are left out if it is so, and if not.
fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn word(number: libc::c_long) -> u32 {
    u32::try_from(number).expect("system calls have small numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::assert_document;
    use serde_json::json;

    /// What the kernel would answer.
    fn answer(filter: &Filter, architecture: u32, number: u32, first: u32) -> u32 {
        let (mut at, mut word) = (0, 0);
        loop {
            let step = filter.0[at];
            at += 1;
            let is = match step.code {
                LOAD => {
                    word = match step.k {
                        NUMBER => number,
                        ARCH => architecture,
                        FIRST_ARGUMENT => first,
                        other => panic!("there is nothing at {other}"),
                    };
                    continue;
                }
                IS => word == step.k,
                HAS => word & step.k != 0,
                _ => return step.k,
            };
            at += usize::from(if is { step.jt } else { step.jf });
        }
    }

    fn of_job(call: libc::c_long, first: u32) -> u32 {
        answer(&Filter::job(), ARCHITECTURE, word(call), first)
    }

    #[test]
    fn each_call_is_answered_as_its_table_says_and_all_others_are_let_through() {
        for (name, number) in ABSENT {
            assert_eq!(of_job(*number, 0), NO_SUCH_CALL, "{name}");
        }
        for (name, number) in REFUSED.iter().chain(REFUSED_HERE) {
            assert_eq!(of_job(*number, 0), NOT_PERMITTED, "{name}");
        }
        let all = || [ABSENT, REFUSED, REFUSED_HERE].into_iter().flatten();
        for number in 0..500 {
            if all().all(|(_, listed)| *listed != number) {
                assert_eq!(of_job(number, 0), ALLOW, "{number}");
            }
        }
    }

    #[test]
    fn processes_and_threads_are_made_and_namespaces_are_not() {
        let flags = |flags: libc::c_int| u32::try_from(flags).expect("it is positive");
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::SIGCHLD;
        assert_eq!(of_job(libc::SYS_clone, flags(thread)), ALLOW);
        for namespace in [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ] {
            let asked = flags(namespace | libc::SIGCHLD);
            assert_eq!(of_job(libc::SYS_clone, asked), NOT_PERMITTED);
        }
    }

    #[test]
    fn other_numbers_of_the_same_calls_are_no_way_around_it() {
        let job = Filter::job();
        const I386: u32 = 0x4000_0003;
        assert_eq!(answer(&job, I386, 0, 0), NO_SUCH_CALL);
        assert_eq!(
            answer(&job, ARCHITECTURE, X32 | word(libc::SYS_mount), 0),
            NO_SUCH_CALL
        );
        let no_io_uring = Filter::no_io_uring();
        for (number, expected) in [
            (IO_URING_SETUP, NO_SUCH_CALL),
            (X32 | IO_URING_SETUP, NO_SUCH_CALL),
            (IO_URING_SETUP - 1, ALLOW),
        ] {
            assert_eq!(answer(&no_io_uring, I386, number, 0), expected);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_profile_that_is_shipped_says_the_same() {
        let names = |calls: &[&[Call]]| -> Vec<&str> {
            let all = calls.iter().flat_map(|calls| calls.iter());
            let mut names: Vec<_> = all
                .filter_map(|(name, _)| name.strip_prefix("SYS_"))
                .collect();
            names.sort_unstable();
            names
        };
        let refused = |names, code: libc::c_int| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": code });
        let mut calls = vec![
            refused(names(&[ABSENT]), libc::ENOSYS),
            refused(names(&[REFUSED, REFUSED_HERE]), libc::EPERM),
        ];
        for bit in (0..32).map(|bit| 1u32 << bit) {
            if NAMESPACES & bit != 0 {
                let mut clone = refused(vec!["clone"], libc::EPERM);
                clone["args"] = json!([{ "index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ" }]);
                calls.push(clone);
            }
        }
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": calls,
        });
        let text = serde_json::to_string_pretty(&profile).expect("it is JSON") + "\n";
        assert_document("../infra/policy/job.seccomp.json", &text);
    }
}
