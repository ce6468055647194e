//! `reprieve doctor`: whether checkpoints will work here, tried and not guessed.
//!
//! It looks at the container as a start of `run` would, tries the store's conditional writes out, asks for credentials, opens
//! the job with its keys, listens to the sources of notices for a moment, and ends with a
//! rehearsal: a small child with a listening socket is run by this same binary, checkpointed into a directory and resumed
//! from it. `criu check` proves little; this proves the whole way but the store. Nothing of the job is touched, and what
//! the rehearsal made is removed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::ProvideCredentials;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Pid;
use reprieve_core::checkup::{Reason, ghost_limit};
use reprieve_core::compat;
use reprieve_core::notice::Source;
use reprieve_core::sweep::PROBE_PREFIX;
use reprieve_hooks::{Condition as How, Health};
use serde::Serialize;

use crate::catalog::{self, Catalog};
use crate::checkup::{self, Given};
use crate::clocks::{self, Means};
use crate::control::client::Format;
use crate::control::protocol::{JobClocks, Obstacle};
use crate::engine::criu::Program;
use crate::failure::{ExitCode, Failure};
use crate::host::{self, CGROUP, Limit, Limits, number};
use crate::settings::{ProfileChoice, QueueUse, Settings, Sources as Switched};
use crate::sources::Sources;
use crate::store::selftest::{self, SelfTestError};
use crate::store::{Condition, Store};
use crate::supervisor::{proc, with_causes};
use crate::{aws, operate, place, queue};

/// What is not needed for the rehearsal.
const BESIDE: [&str; 5] = ["store", "credentials", "keys", "queue", "job"];

/// How long credentials may take: from the machine's metadata or a token service.
const CREDENTIALS_LIMIT: Duration = Duration::from_secs(10);

/// Credentials that end sooner are worth a word, if nothing renews them.
const CREDENTIALS_LAST: Duration = Duration::from_secs(60 * 60);

/// How long sources of notices may take to find out whether they work.
const NOTICES_LIMIT: Duration = Duration::from_secs(12);

/// They are asked faster than usual, to be done soon.
const NOTICES_PACE: Duration = Duration::from_millis(200);

/// How long the queue may take.
const QUEUE_LIMIT: Duration = Duration::from_secs(15);

/// How long each step of the rehearsal may take.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// How long CRIU may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// From this kernel on, CRIU before 4.2 cannot dump internet sockets (the project's own trials; docs/limits.md).
const NEW_SOCKETS: (u64, u64) = (6, 16);

/// CRIU's small images and our sockets fit well into this, in bytes.
const WORK_SPACE: u64 = 64 << 20;

/// What a snapshot needs besides the job's memory, in bytes: docs/limits.md.
const MEMORY_NEEDED: u64 = 64 << 20;

/// Process ids that a checkpoint and a restore take, ours and CRIU's.
const PROCESSES_NEEDED: u64 = 32;

/// Between the store's clock and ours; S3 refuses requests of 15 minutes.
const SKEW_LIMIT: Duration = Duration::from_secs(60);

/// What the rehearsal's child says to whoever calls.
const CHILD_ANSWER: &str = "here";

/// Between two lines of the rehearsal's child.
const CHILD_PACE: Duration = Duration::from_millis(20);

/// The command, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub settings: Settings,
    pub rehearsal: Rehearsal,
    /// A process to look over, with all below it.
    pub pid: Option<i32>,
    pub format: Format,
}

/// Whether a child is checkpointed and resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehearsal {
    Held,
    LeftOut,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// Null: nothing needs to be done.
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self {
            level: Level::Warning,
            remedy: Some(remedy.to_owned()),
            ..Self::ok(check, found)
        }
    }

    fn fatal(check: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self {
            level: Level::Fatal,
            ..Self::warning(check, found, remedy)
        }
    }
}

/// All of them.
#[derive(Debug, Serialize)]
struct Examined {
    schema: u32,
    verdict: Level,
    findings: Vec<Finding>,
}

impl Request {
    /// Looks at everything and prints it to `out`.
    pub async fn carry_out(self, out: &mut impl Write) -> Result<(), Failure> {
        let settings = &self.settings;
        let mut findings = container();
        findings.push(profile(settings.profile));
        findings.push(users());
        let limits = Limits::read(Path::new(CGROUP));
        findings.push(cgroup(&limits));
        findings.push(pid_budget(&limits.processes));
        findings.push(memory(&limits.memory));
        findings.push(pipes(host::gets_short_pipes()));
        findings.push(security_module());
        findings.push(criu(settings.criu.as_deref()));
        let work = host::work_directory(settings.work_dir.as_deref());
        findings.push(work_directory(work.as_ref().map(PathBuf::as_path)));
        findings.extend(credentials(settings).await);
        findings.extend(store(settings).await);
        findings.extend(notices(settings).await);
        findings.extend(queue(settings).await);
        findings.extend(self.pid.map_or_else(Vec::new, |pid| {
            let room = work.as_ref().map_or(0, |work| host::room(work));
            let given = Given {
                ghost_limit: ghost_limit(settings.ghost_limit_bytes, room),
                watched: &settings.watched,
            };
            let mut found = job(pid, given);
            found.extend(clocks_of(pid));
            found
        }));
        let has_worked = findings
            .iter()
            .all(|one| one.level < Level::Fatal || BESIDE.contains(&one.check));
        match (self.rehearsal, work) {
            (Rehearsal::Held, Ok(work)) if has_worked => {
                let (criu, profile) = (settings.criu.clone(), settings.profile);
                let held =
                    tokio::task::spawn_blocking(move || rehearse(&work, criu.as_deref(), profile))
                        .await;
                findings.push(held.unwrap_or_else(|error| {
                    Finding::fatal(
                        "rehearsal",
                        format!("it panicked: {error}"),
                        "please report this",
                    )
                }));
            }
            (Rehearsal::Held, _) => findings.push(Finding::warning(
                "rehearsal",
                "not held, because of what is above",
                "mend that and run this again",
            )),
            (Rehearsal::LeftOut, _) => {}
        }
        let verdict = findings
            .iter()
            .map(|one| one.level)
            .max()
            .unwrap_or(Level::Ok);
        let examined = Examined {
            schema: operate::SCHEMA,
            verdict,
            findings,
        };
        let text = match self.format {
            Format::Human => examined.human(),
            Format::Json => {
                let json = serde_json::to_string(&examined);
                json.expect("our own types have string keys and finite numbers") + "\n"
            }
        };
        // Whoever asked and does not read has nothing to be told.
        drop(out.write_all(text.as_bytes()));
        examined.verdict()
    }
}

impl Examined {
    fn human(&self) -> String {
        let mut text = String::new();
        for one in &self.findings {
            let level = match one.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Fatal => "FATAL",
            };
            text.push_str(&format!("{level:8}{:18}{}\n", one.check, one.found));
            if let Some(remedy) = &one.remedy {
                text.push_str(&format!("{:26}-> {remedy}\n", ""));
            }
        }
        text
    }

    fn verdict(&self) -> Result<(), Failure> {
        let count = |level| {
            self.findings
                .iter()
                .filter(|one| one.level == level)
                .count()
        };
        match self.verdict {
            Level::Ok => Ok(()),
            Level::Warning => Err(Failure::new(
                ExitCode::Warnings,
                format!(
                    "checkpoints work here, with {} warnings",
                    count(Level::Warning)
                ),
            )
            .remedy("see them above")),
            Level::Fatal => Err(Failure::new(
                ExitCode::Unfit,
                format!(
                    "jobs cannot be checkpointed here, for {} reasons",
                    count(Level::Fatal)
                ),
            )
            .remedy("see them above, each with what to do")),
        }
    }
}

/// What a start of `run` would refuse.
fn container() -> Vec<Finding> {
    let facts = host::facts("");
    let mut found: Vec<Finding> = host::obstacles()
        .into_iter()
        .map(|obstacle| {
            let (what, remedy) = obstacle.split_once("; ").unwrap_or((&obstacle, ""));
            Finding::fatal("container", what, remedy)
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok(
            "container",
            "capabilities, seccomp and ptrace allow checkpoints",
        ));
    }
    found.push(Finding::ok(
        "kernel",
        format!(
            "Linux {}, {}, pages of {} bytes",
            facts.kernel, facts.arch, facts.page_size
        ),
    ));
    found
}

/// Which profile a job would run in. Whether the namespaces can really be made is shown by the rehearsal.
fn profile(asked: ProfileChoice) -> Finding {
    const CHECK: &str = "profile";
    let lacks = host::lacks_for_full().join(", ");
    let minimal = "minimal: the app lives in the container's namespaces";
    match (asked, lacks.is_empty()) {
        (ProfileChoice::Minimal, _) => {
            Finding::ok(CHECK, format!("{minimal}, as the settings say"))
        }
        (_, true) => Finding::ok(
            CHECK,
            "full: the app gets namespaces of its own for processes, System V IPC, clocks and mounts",
        ),
        (ProfileChoice::Auto, false) => {
            Finding::ok(CHECK, format!("{minimal}; for the full profile: {lacks}"))
        }
        (ProfileChoice::Full, false) => Finding::fatal(
            CHECK,
            format!("full was asked for: {lacks}"),
            "run the container as root with --cap-add SYS_ADMIN and --cap-add SYS_TIME, or leave --profile at auto",
        ),
    }
}

/// Whether the processes of a job may belong to several users, which is the same in both profiles.
fn users() -> Finding {
    let lacks = host::lacks_for_users();
    let found = match lacks.is_empty() {
        true => "a job's processes may run as several users, in either profile".to_owned(),
        false => format!(
            "all of a job's processes have to run as this user, in either profile; for several: {}",
            lacks.join(", ")
        ),
    };
    Finding::ok("users", found)
}

/// By what the clocks of these processes go on at a resume; nothing if there are none.
fn clocks_of(pid: i32) -> Option<Finding> {
    const CHECK: &str = "clocks";
    const REMEDY: &str = "the full profile, or --on-clock-behind wait or refuse (docs/limits.md)";
    proc::process(pid)?;
    // What is the matter is told about the job.
    let means = clocks::means(pid).ok()?;
    let said = JobClocks::of(&means).sentence();
    let found = match means {
        Means::Library(others) if !others.is_empty() => Finding::warning(CHECK, said, REMEDY),
        // Without means it is as with whatever was not started by us.
        _ => Finding::ok(CHECK, said),
    };
    Some(found)
}

/// What a checkpoint of these processes would fail at.
fn job(pid: i32, given: Given<'_>) -> Vec<Finding> {
    const CHECK: &str = "job";
    if proc::process(pid).is_none() {
        let remedy = "`reprieve status` tells the app's pid";
        return vec![Finding::fatal(
            CHECK,
            format!("there is no process {pid} here"),
            remedy,
        )];
    }
    match checkup::of_tree(pid, &[], given) {
        Ok(found) if found.is_empty() => vec![Finding::ok(
            CHECK,
            format!(
                "nothing known stands in the way of a checkpoint of process {pid} and those below it"
            ),
        )],
        Ok(found) => found
            .iter()
            .map(|one| Finding::fatal(CHECK, Obstacle::of(one).sentence(), one.reason.remedy()))
            .collect(),
        Err(error) => vec![Finding::warning(
            CHECK,
            format!("the processes cannot be looked at: {error}"),
            "mount /proc in the container",
        )],
    }
}

/// The first two numbers of a kernel's version.
fn kernel_version() -> (u64, u64) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn criu(asked: Option<&Path>) -> Finding {
    let missing = "copy /reprieve of the project's image, install CRIU 4.2 or later, or set --criu to its path";
    let program = match std::env::current_exe() {
        Ok(own) => Program::find(asked, &own),
        Err(error) => {
            let found = format!("the path of this program is not known: {error}");
            return Finding::fatal("criu", found, "mount /proc in the container");
        }
    };
    let shown = program.path.display();
    let mut command = program.command(None);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let answer = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => answer(child, VERSION_LIMIT),
        Err(error) => return Finding::fatal("criu", format!("{shown}: {error}"), missing),
    };
    let version = answer
        .lines()
        .find_map(|line| line.strip_prefix("Version: "));
    let Some(version) = version.map(str::trim) else {
        return Finding::fatal(
            "criu",
            format!("{shown} is not CRIU, or does not answer"),
            missing,
        );
    };
    if compat::version(version) < compat::version("4.2") && kernel_version() >= NEW_SOCKETS {
        return Finding::fatal(
            "criu",
            format!("version {version} cannot dump internet sockets on this kernel"),
            missing,
        );
    }
    Finding::ok("criu", format!("version {version} at {shown}"))
}

/// The version of the CRIU that would be used here; None if there is none.
pub(crate) fn criu_version(asked: Option<&Path>) -> Option<String> {
    let program = Program::find(asked, &std::env::current_exe().ok()?);
    let mut command = program.command(None);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let said = answer(command.stdout(Stdio::piped()).spawn().ok()?, VERSION_LIMIT);
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    Some(version.trim().to_owned())
}

/// What a process says until it ends; it is ended if that takes longer than the limit.
fn answer(mut child: Child, limit: Duration) -> String {
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stdout) = stdout {
            drop(stdout.read_to_string(&mut text));
        }
        // Nobody listens any more after the limit.
        drop(sender.send(text));
    });
    let text = receiver.recv_timeout(limit).unwrap_or_default();
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
    text
}

/// Whether the container's limits can be known.
fn cgroup(limits: &Limits) -> Finding {
    const CHECK: &str = "cgroup";
    match limits.version {
        Some(2) => Finding::ok(CHECK, format!("version 2 at {CGROUP}")),
        Some(version) => Finding::ok(
            CHECK,
            format!("version {version} at {CGROUP}: memory pressure is not told by it"),
        ),
        None => Finding::warning(
            CHECK,
            format!("none at {CGROUP}, so the container's limits are not known"),
            "mount it there, read-only, as Docker and Kubernetes do",
        ),
    }
}

fn pid_budget(limit: &Limit) -> Finding {
    let most = number("/proc/sys/kernel/pid_max").unwrap_or(32_768);
    let used = limit.used;
    match limit.most {
        Some(limit) if limit.saturating_sub(used) < PROCESSES_NEEDED => Finding::fatal(
            "processes",
            format!("the container may have {limit} and has {used}"),
            "raise the container's limit (--pids-limit): a checkpoint and a restore start some of their own",
        ),
        Some(limit) => Finding::ok(
            "processes",
            format!("{used} of {limit} that the container may have"),
        ),
        None => Finding::ok(
            "processes",
            format!("no limit is known below the kernel's {most}"),
        ),
    }
}

fn pipes(are_short: bool) -> Finding {
    match are_short {
        true => Finding::fatal("pipes", Reason::Pipe.cause(), Reason::Pipe.remedy()),
        false => Finding::ok("pipes", "a new one is as large as pipes are"),
    }
}

fn memory(limit: &Limit) -> Finding {
    let Some(most) = limit.most else {
        return Finding::ok("memory", "no limit of the container is known");
    };
    let free = most.saturating_sub(limit.used);
    let found = format!(
        "{} MiB free of {} MiB that the container may have",
        free >> 20,
        most >> 20
    );
    match free < MEMORY_NEEDED {
        true => Finding::warning(
            "memory",
            found,
            "raise the container's limit: a checkpoint needs some 64 MiB besides the job's own memory",
        ),
        false => Finding::ok("memory", found),
    }
}

fn security_module() -> Finding {
    confined_as(&fs::read_to_string("/proc/self/attr/current").unwrap_or_default())
}

/// By the label that the kernel's security module gives us.
fn confined_as(label: &str) -> Finding {
    match label.trim_matches(['\0', '\n', ' ']) {
        "" | "unconfined" | "kernel" => Finding::ok("security module", "none confines us"),
        label => Finding::warning(
            "security module",
            format!("we are confined as {label}"),
            "if checkpoints fail, run the container with --security-opt apparmor=unconfined or label=disable",
        ),
    }
}

fn work_directory(found: Result<&Path, &std::io::Error>) -> Finding {
    const CHECK: &str = "work directory";
    let path = match found {
        Ok(path) => path,
        Err(error) => {
            return Finding::fatal(
                CHECK,
                error.to_string(),
                "give the container a tmpfs at /run, or set --work-dir to a directory that can be written",
            );
        }
    };
    let shown = path.display();
    match statfs(path) {
        Err(error) => Finding::warning(CHECK, format!("{shown}: {error}"), "see the cause"),
        Ok(stat) => {
            let free = host::free(&stat);
            let found = format!("{shown}, {} MiB free", free >> 20);
            if free < WORK_SPACE {
                Finding::warning(
                    CHECK,
                    found,
                    "a checkpoint writes CRIU's small images there; give it more room",
                )
            } else if stat.filesystem_type() != TMPFS_MAGIC {
                Finding::warning(
                    CHECK,
                    format!("{found}, not in memory"),
                    "give the container a tmpfs at /run, so that no disk is waited for",
                )
            } else {
                Finding::ok(CHECK, found)
            }
        }
    }
}

/// Whether the store answers, keeps conditions, and has the same time.
async fn store(settings: &Settings) -> Vec<Finding> {
    let Some(address) = &settings.store else {
        return vec![Finding::warning(
            "store",
            "none is set, so nothing would be checkpointed",
            "give --store, as to `reprieve run`",
        )];
    };
    let store = match place::open(&settings.store_settings(address)).await {
        Ok(store) => store,
        Err(failure) => {
            return vec![Finding::fatal("store", failure.to_string(), "see above")];
        }
    };
    let catalog = Catalog::new(store, &settings.job);
    let deadline = tokio::time::Instant::now() + settings.boot_timeout;
    let key = format!("{}{PROBE_PREFIX}{}", catalog.root(), catalog::nonce());
    let begun = Instant::now();
    let tested = selftest::check(catalog.store().as_ref(), &key, deadline).await;
    let mut findings = vec![match tested {
        Ok(()) => Finding::ok(
            "store",
            format!(
                "{address} answers and keeps the conditions of writes ({} ms for six requests)",
                begun.elapsed().as_millis()
            ),
        ),
        Err(SelfTestError::Store(error)) => Finding::fatal(
            "store",
            with_causes(&error),
            "the worker needs to read, write, list and remove objects below the job's prefix",
        ),
        Err(error) => Finding::fatal(
            "store",
            with_causes(&error),
            "two workers could run one job on such a store; use another",
        ),
    }];
    if findings[0].level == Level::Ok {
        findings.push(clock(catalog.store().as_ref(), &key, deadline).await);
        findings.push(keys(settings, address, &catalog, deadline).await);
    }
    findings
}

/// Whether the keys that are set open what is there of the job.
async fn keys(
    settings: &Settings,
    address: &str,
    catalog: &Catalog,
    deadline: tokio::time::Instant,
) -> Finding {
    const CHECK: &str = "keys";
    let fit =
        "give the key that the job was stored with; see --key-file, --kms-key and --on-unsealed";
    let ring = match place::keys(&settings.keys, &settings.store_settings(address)).await {
        Ok(ring) => ring,
        Err(failure) => return Finding::fatal(CHECK, failure.to_string(), fit),
    };
    let seals = ring.seals();
    let catalog = Catalog::with_keys(Arc::clone(catalog.store()), &settings.job, ring);
    match (catalog.find(deadline).await, seals) {
        (Err(error), _) => Finding::fatal(CHECK, with_causes(&error), fit),
        (Ok(found), true) if found.head.is_some() => {
            Finding::ok(CHECK, format!("they open job {}", settings.job))
        }
        (Ok(_), true) => Finding::ok(
            CHECK,
            format!(
                "there is one; job {} is new, so that it opens nothing yet",
                settings.job
            ),
        ),
        (Ok(_), false) => Finding::ok(
            CHECK,
            "none is set: whoever reads the store reads the job's memory",
        ),
    }
}

/// Whether AWS can be asked for anything, if it is to be, and for how long.
async fn credentials(settings: &Settings) -> Option<Finding> {
    const CHECK: &str = "credentials";
    let store = settings.store.as_deref().unwrap_or_default();
    if !store.starts_with("s3://") && settings.queue == QueueUse::Off {
        return None;
    }
    let get = "give this machine or container a role, or set the AWS_ variables";
    let asked = async {
        let shared = aws::shared(settings.s3_region.clone()).await;
        let provider = shared.credentials_provider()?;
        Some(provider.provide_credentials().await)
    };
    let credentials = match tokio::time::timeout(CREDENTIALS_LIMIT, asked).await {
        Ok(Some(Ok(credentials))) => credentials,
        Ok(Some(Err(error))) => {
            let found = reprieve_hooks::http::chain(&error);
            return Some(Finding::fatal(CHECK, found, get));
        }
        Ok(None) => return Some(Finding::fatal(CHECK, "there are none", get)),
        Err(_) => {
            let found = format!("no answer within {CREDENTIALS_LIMIT:?}");
            return Some(Finding::fatal(CHECK, found, get));
        }
    };
    let id = credentials.access_key_id();
    // Enough to tell them apart.
    let shown: String = id.chars().take(8).collect();
    Some(expiry(
        &format!("{shown}…"),
        credentials.expiry(),
        credentials.session_token().is_some(),
        SystemTime::now(),
    ))
}

/// What the time of their end means.
fn expiry(shown: &str, ends: Option<SystemTime>, is_temporary: bool, now: SystemTime) -> Finding {
    const CHECK: &str = "credentials";
    let fresh = "use a role, whose credentials are renewed by themselves";
    match ends {
        Some(ends) => {
            let left = ends.duration_since(now).unwrap_or_default();
            let at = humantime::format_rfc3339_seconds(ends);
            let found = format!("{shown}, until {at}");
            match left {
                Duration::ZERO => {
                    Finding::fatal(CHECK, format!("{found}: they have expired"), fresh)
                }
                left if left < CREDENTIALS_LAST => Finding::warning(
                    CHECK,
                    found,
                    "nothing to do if a role gives them: then they are renewed; others have to be replaced in time",
                ),
                _ => Finding::ok(CHECK, found),
            }
        }
        None if is_temporary => Finding::warning(
            CHECK,
            format!("{shown} are temporary, and nothing tells until when"),
            fresh,
        ),
        None => Finding::ok(CHECK, format!("{shown}, for good")),
    }
}

/// Listens to the metadata services for a moment.
async fn notices(settings: &Settings) -> Vec<Finding> {
    let mut settings = settings.clone();
    settings.metadata_poll = settings.metadata_poll.min(NOTICES_PACE);
    // That one takes messages.
    settings.queue = QueueUse::Off;
    if let Switched::Only(named) = &mut settings.sources {
        named.retain(|source| *source != Source::Sqs);
    }
    let sources = Sources::start(&settings);
    let known = || {
        let all = sources.health();
        all.iter()
            .all(|one| one.condition != How::Starting)
            .then_some(all)
    };
    let begun = Instant::now();
    let all = loop {
        if let Some(all) = known() {
            break all;
        }
        if begun.elapsed() > NOTICES_LIMIT {
            break sources.health();
        }
        tokio::time::sleep(CHILD_PACE).await;
    };
    all.into_iter().map(|one| notice(&one)).collect()
}

fn notice(health: &Health) -> Finding {
    const CHECK: &str = "notices";
    let source = health.source.as_str();
    match &health.condition {
        How::Working => Finding::ok(CHECK, format!("{source} works")),
        How::Absent { reason } => Finding::ok(CHECK, format!("{source} is not there: {reason}")),
        How::Degraded { reason, remedy } => {
            Finding::warning(CHECK, format!("{source}: {reason}"), remedy)
        }
        How::Starting => Finding::warning(
            CHECK,
            format!("{source} does not answer"),
            "see whether containers may reach it: on EC2 the hop limit of the metadata service has to be 2",
        ),
    }
}

/// Whether the queue can be read.
async fn queue(settings: &Settings) -> Option<Finding> {
    const CHECK: &str = "queue";
    if settings.queue == QueueUse::Off {
        return None;
    }
    let looked = tokio::time::timeout(QUEUE_LIMIT, queue::look(settings)).await;
    Some(match looked {
        Ok(None) => return None,
        Ok(Some(Ok(Some(url)))) => Finding::ok(CHECK, format!("{url} can be read")),
        Ok(Some(Ok(None))) => Finding::ok(CHECK, "it is not there yet; the worker makes it"),
        Ok(Some(Err(error))) => Finding::fatal(CHECK, error.reason, error.remedy),
        Err(_) => Finding::fatal(
            CHECK,
            format!("no answer within {QUEUE_LIMIT:?}"),
            "check the way to SQS, and the region",
        ),
    })
}

/// The store's clock against ours, by the time that it gives an object written now.
async fn clock(store: &dyn Store, key: &str, deadline: tokio::time::Instant) -> Finding {
    let key = format!("{key}-clock");
    let before = host::wall_ms();
    let looked = async {
        store
            .put(&key, bytes::Bytes::from_static(b"clock"), Condition::Always)
            .await?;
        store.list(&key, None, 1).await
    };
    let looked = tokio::time::timeout_at(deadline, looked).await;
    drop(tokio::time::timeout_at(deadline, store.delete(&key)).await);
    let after = host::wall_ms();
    let Ok(Ok(entries)) = looked else {
        return Finding::warning("clock", "the store's time is not known", "see the store");
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == key) else {
        return Finding::warning(
            "clock",
            "the store does not list what it took",
            "see the store",
        );
    };
    clocks(before, after, entry.modified_ms)
}

/// An object that was written between two moments of our clock, and when by the store's; in milliseconds.
fn clocks(before: u64, after: u64, modified: u64) -> Finding {
    let limit = u64::try_from(SKEW_LIMIT.as_millis()).unwrap_or(u64::MAX);
    let skew = match modified {
        // Stores round to seconds.
        modified if modified + 1000 < before => before - modified,
        modified => modified.saturating_sub(after),
    };
    match skew > limit {
        true => Finding::warning(
            "clock",
            format!("{} s away from the store's", skew / 1000),
            "set the host's clock (NTP): S3 refuses requests 15 minutes off, and ages and deadlines are wrong before",
        ),
        false => Finding::ok("clock", "agrees with the store's to within a minute"),
    }
}

/// The child of a rehearsal: a process with a listening socket that says its port and counts. Ends with its parent's pipe.
pub fn rehearsal_child() -> u8 {
    let mut out = std::io::stdout();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let bound = listener.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
    let (port, listener) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            // Whoever asked has gone if it is not read.
            drop(writeln!(out, "no listening socket: {error}"));
            return 0;
        }
    };
    std::thread::spawn(move || {
        for mut caller in listener.incoming().flatten() {
            // A caller that has gone needs no answer.
            drop(caller.write_all(CHILD_ANSWER.as_bytes()));
        }
    });
    for number in std::iter::once(u64::from(port)).chain(1..) {
        if writeln!(out, "{number}")
            .and_then(|()| out.flush())
            .is_err()
        {
            break;
        }
        std::thread::sleep(CHILD_PACE);
    }
    0
}

/// Whether the child's listening socket is heard and answers.
fn call(port: u64) -> Result<(), String> {
    let called = || {
        let port = u16::try_from(port).map_err(std::io::Error::other)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, STEP_LIMIT)?;
        stream.set_read_timeout(Some(STEP_LIMIT))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    match called() {
        Ok(answer) if answer == CHILD_ANSWER => Ok(()),
        Ok(answer) => Err(format!("its listening socket answers {answer:?}")),
        Err(error) => Err(format!("its listening socket does not answer: {error}")),
    }
}

/// Removes what the rehearsal made, however it ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A supervisor with the child, ended with the value.
struct Stage {
    supervisor: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // After its end this does nothing.
        drop(self.supervisor.kill());
        drop(self.supervisor.wait());
    }
}

fn rehearse(work: &Path, criu: Option<&Path>, profile: ProfileChoice) -> Finding {
    let scratch = Scratch(
        // Short, because paths of sockets are.
        work.join(format!("doctor-{}", std::process::id())),
    );
    match rehearsed(&scratch.0, criu, profile) {
        Ok((checkpoint, resume)) => Finding::ok(
            "rehearsal",
            format!(
                "a child with a listening socket was checkpointed in {} ms and resumed in {} ms, and answers there",
                checkpoint.as_millis(),
                resume.as_millis()
            ),
        ),
        Err(why) => Finding::fatal(
            "rehearsal",
            why,
            "docs/troubleshooting.md explains what CRIU says; without this no job can be saved here",
        ),
    }
}

fn rehearsed(
    scratch: &Path,
    criu: Option<&Path>,
    profile: ProfileChoice,
) -> Result<(Duration, Duration), String> {
    let prepared = ["store", "work"].map(|name| fs::create_dir_all(scratch.join(name)));
    for made in prepared {
        made.map_err(|error| format!("no directory for it: {error}"))?;
    }
    let mut first = Stage::open(scratch, criu, profile, "first")?;
    let port = first.count(Instant::now() + STEP_LIMIT)?;
    call(port)?;
    let heard = first.count(Instant::now() + STEP_LIMIT)?;
    let begun = Instant::now();
    let last = first.leave(heard)?;
    let checkpoint = begun.elapsed();
    let begun = Instant::now();
    let mut second = Stage::open(scratch, criu, profile, "second")?;
    let next = second.count(Instant::now() + STEP_LIMIT)?;
    let resume = begun.elapsed();
    if next != last + 1 {
        return Err(format!("it went on with {next} after {last}"));
    }
    call(port).map_err(|why| format!("after the resume {why}"))?;
    second.leave(next)?;
    Ok((checkpoint, resume))
}

impl Stage {
    /// Starts the child, or resumes it.
    fn open(
        scratch: &Path,
        criu: Option<&Path>,
        profile: ProfileChoice,
        name: &str,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("it could not be started: {error}");
        let own = std::env::current_exe().map_err(failed)?;
        let log = scratch.join(name);
        let settings = scratch.join("settings.toml");
        fs::write(&settings, "").map_err(failed)?;
        let mut command = Command::new(&own);
        // Nothing of this job's settings is to reach it.
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
        command.arg("run").arg("--config").arg(settings);
        command
            .arg("--store")
            .arg(format!("file://{}", scratch.join("store").display()));
        command.args([
            "--job",
            "rehearsal",
            "--term-grace",
            "30s",
            "--log-format",
            "json",
        ]);
        command.arg("--work-dir").arg(scratch.join("work"));
        command
            .arg("--control-socket")
            .arg(scratch.join("control.sock"));
        command.arg("--profile").arg(profile.as_str());
        if let Some(criu) = criu {
            command.arg("--criu").arg(criu);
        }
        command.arg("--").arg(&own).arg(CHILD_COMMAND);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(fs::File::create(&log).map_err(failed)?);
        let mut supervisor = command.spawn().map_err(failed)?;
        let stdout = supervisor.stdout.take().expect("it was asked for");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            supervisor,
            lines,
            log,
        })
    }

    /// The next number that the child says.
    fn count(&mut self, deadline: Instant) -> Result<u64, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => line.parse().map_err(|_| line),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.why(&format!("nothing came of it in {STEP_LIMIT:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.why("it ended")),
        }
    }

    /// Evicts it, and returns the last number that was said, `last` being one that was heard already.
    fn leave(&mut self, mut last: u64) -> Result<u64, String> {
        let deadline = Instant::now() + STEP_LIMIT;
        let pid = i32::try_from(self.supervisor.id()).expect("process ids fit");
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .map_err(|error| format!("it could not be told to stop: {error}"))?;
        // Its output ends when it does.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => last = line.parse().map_err(|_| line)?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.why(&format!("the checkpoint took more than {STEP_LIMIT:?}")));
                }
            }
        }
        let status = self.supervisor.wait().map_err(|error| error.to_string())?;
        let wanted = ExitCode::Checkpointed.number();
        match status.code() {
            Some(code) if code == i32::from(wanted) => Ok(last),
            _ => Err(self.why(&format!("it was not checkpointed ({status})"))),
        }
    }

    /// What happened, with the last word of the log.
    fn why(&self, what: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let reason = log.lines().rev().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line.get("reason")?.as_str().map(str::to_owned)
        });
        let last = reason.or_else(|| log.lines().last().map(str::to_owned));
        match last {
            Some(last) => format!("{what}: {last}"),
            None => what.to_owned(),
        }
    }
}

/// The word by which this binary becomes the child of a rehearsal.
pub const CHILD_COMMAND: &str = "rehearsal-child";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_judged_by_their_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let hour = Duration::from_secs(3600);
        for (ends, is_temporary, level, said) in [
            (None, false, Level::Ok, "AKIA…, for good"),
            (None, true, Level::Warning, "nothing tells until when"),
            (
                Some(now + 2 * hour),
                true,
                Level::Ok,
                "until 2023-11-15T00:13:20Z",
            ),
            (
                Some(now + hour / 2),
                true,
                Level::Warning,
                "until 2023-11-14T22:43:20Z",
            ),
            (Some(now - hour), true, Level::Fatal, "they have expired"),
        ] {
            let found = expiry("AKIA…", ends, is_temporary, now);
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.found.contains(said), "{found:?}");
            assert_eq!(found.remedy.is_some(), level > Level::Ok, "{found:?}");
        }
    }

    #[test]
    fn a_clock_is_judged_by_the_stores() {
        const NOW: u64 = 1_700_000_000_000;
        for (modified, level) in [
            (NOW, Level::Ok),
            // Rounded down to a second.
            (NOW - 900, Level::Ok),
            (NOW - 50_000, Level::Ok),
            (NOW + 50_000, Level::Ok),
            (NOW - 100_000, Level::Warning),
            (NOW + 100_000, Level::Warning),
        ] {
            let found = clocks(NOW, NOW + 20, modified);
            assert_eq!(found.level, level, "{found:?}");
        }
        let found = clocks(NOW, NOW, NOW - 100_000).found;
        assert_eq!(found, "100 s away from the store's");
    }

    #[test]
    fn a_label_of_a_security_module_is_told() {
        for label in ["", "\0", "unconfined\n", "kernel"] {
            assert_eq!(confined_as(label).level, Level::Ok, "{label:?}");
        }
        for label in [
            "docker-default (enforce)\n",
            "system_u:system_r:container_t:s0:c1,c2\0",
        ] {
            let found = confined_as(label);
            assert_eq!(found.level, Level::Warning, "{label:?}");
            let name = label.trim_matches(['\0', '\n']);
            assert_eq!(found.found, format!("we are confined as {name}"));
        }
    }

    /// A directory as a container sees it.
    fn limits(files: &[(&str, &str)]) -> Limits {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
            fs::write(path, text).expect("it is ours");
        }
        Limits::read(root.path())
    }

    #[test]
    fn limits_are_read_from_either_version_of_cgroups() {
        let two = limits(&[
            ("cgroup.controllers", "memory pids\n"),
            ("pids.max", "40\n"),
            ("pids.current", "9\n"),
            ("memory.max", "max\n"),
            ("memory.current", "4096\n"),
        ]);
        assert_eq!(two.version, Some(2));
        assert_eq!((two.processes.most, two.memory.most), (Some(40), None));
        // There is too little for a checkpoint, and no limit is no fault.
        assert_eq!(pid_budget(&two.processes).level, Level::Fatal);
        assert_eq!(memory(&two.memory).level, Level::Ok);
        let one = limits(&[
            ("pids/pids.max", "max\n"),
            ("pids/pids.current", "9\n"),
            ("memory/memory.limit_in_bytes", "104857600\n"),
            ("memory/memory.usage_in_bytes", "94371840\n"),
        ]);
        assert_eq!((one.version, one.processes.most), (Some(1), None));
        let found = memory(&one.memory);
        assert_eq!(found.level, Level::Warning, "{found:?}");
        assert!(
            found.found.starts_with("10 MiB free of 100 MiB"),
            "{found:?}"
        );
        assert_eq!(cgroup(&one).level, Level::Ok);
        let unlimited = limits(&[("memory/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!((unlimited.version, unlimited.memory.most), (Some(1), None));
        let none = limits(&[]);
        assert_eq!(none.version, None);
        assert_eq!(cgroup(&none).level, Level::Warning);
    }

    #[test]
    fn the_worst_finding_decides() {
        let examined = |findings: Vec<Finding>| Examined {
            schema: 1,
            verdict: findings
                .iter()
                .map(|one| one.level)
                .max()
                .expect("there are some"),
            findings,
        };
        let ok = || Finding::ok("kernel", "Linux");
        let warning = || Finding::warning("memory", "little", "more");
        let fatal = || Finding::fatal("criu", "none", "install it");
        assert!(examined(vec![ok()]).verdict().is_ok());
        for (findings, code, words) in [
            (vec![ok(), warning()], ExitCode::Warnings, "1 warnings"),
            (
                vec![fatal(), warning(), fatal()],
                ExitCode::Unfit,
                "2 reasons",
            ),
        ] {
            let failure = examined(findings).verdict().expect_err("it is not well");
            assert_eq!(failure.code(), code);
            assert!(failure.to_string().contains(words), "{failure}");
        }
        let text = examined(vec![ok(), fatal()]).human();
        assert_eq!(
            text,
            "ok      kernel            Linux\nFATAL   criu              none\n                          -> install it\n"
        );
    }
}
