//! The client's side of the control socket: ask, wait no longer than a limit, and say what came of it.
//!
//! An answer that is good news is printed to stdout; anything else becomes a [`Failure`] with an exit code of its own, so
//! that a script can tell "the job runs on without a snapshot" from "nobody is there". With JSON the answer is printed
//! as it came in both cases.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::control::protocol::{
    Answer, Checkpoint, Durable, LINE_LIMIT, Outcome, ProtocolError, Rehearsal, Request,
    SourceHealth, Status, StatusQuery, Until, Wait, Waited,
};
use crate::failure::{ExitCode, Failure};

/// The supervisor answers at the deadline; this much later it is taken for stuck.
pub const ANSWER_SLACK: Duration = Duration::from_secs(5);
/// How long a supervisor may take to say how it is.
pub const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Human,
    Json,
}

/// `reprieve checkpoint`, ready to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRequest {
    pub control_socket: PathBuf,
    pub leave_running: bool,
    pub timeout: Duration,
    pub format: Format,
}

/// `reprieve status`, ready to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRequest {
    pub control_socket: PathBuf,
    pub format: Format,
}

/// `reprieve wait`, ready to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitRequest {
    pub control_socket: PathBuf,
    pub until: Until,
    pub timeout: Duration,
    pub format: Format,
}

/// Between two tries to reach a supervisor that is not there yet.
const KNOCK: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("the supervisor closed the connection without an answer")]
    NoAnswer,
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TooLate(Duration),
    #[error("the answer cannot be read")]
    Unreadable(#[source] ProtocolError),
}

impl CheckpointRequest {
    /// Asks for the checkpoint, waits for its end and prints it to `out`.
    pub fn carry_out(&self, out: &mut impl Write) -> Result<(), Failure> {
        let request = Request::Checkpoint(Checkpoint {
            leave_running: self.leave_running,
            timeout_ms: Some(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)),
        });
        let limit = self.timeout.saturating_add(ANSWER_SLACK);
        let answer = ask(&self.control_socket, &request, limit).map_err(|error| match error {
            ClientError::TooLate(_) => Failure::new(
                ExitCode::TimedOut,
                "whether the checkpoint became durable is not known",
            )
            .caused_by(error)
            .remedy(
                "ask again with `reprieve status`; the supervisor's log says what it was doing",
            ),
            error => unreachable_supervisor(&self.control_socket, error),
        })?;
        match (&answer, self.format) {
            (Answer::Checkpoint(Outcome::Durable(durable)), Format::Human) => {
                print(out, &describe_durable(durable))
            }
            (Answer::Checkpoint(Outcome::Durable(_)), Format::Json) => {
                print(out, &answer.to_line())
            }
            (_, format) => {
                if format == Format::Json {
                    print(out, &answer.to_line())?;
                }
                Err(unwelcome(&self.control_socket, answer))
            }
        }
    }
}

impl StatusRequest {
    /// Asks how things are and prints it to `out`.
    pub fn carry_out(&self, out: &mut impl Write) -> Result<(), Failure> {
        let request = Request::Status(StatusQuery {});
        let answer = ask(&self.control_socket, &request, STATUS_LIMIT)
            .map_err(|error| unreachable_supervisor(&self.control_socket, error))?;
        match (&answer, self.format) {
            (Answer::Status(status), Format::Human) => print(out, &describe_status(status)),
            (Answer::Status(_), Format::Json) => print(out, &answer.to_line()),
            _ => Err(unwelcome(&self.control_socket, answer)),
        }
    }
}

impl WaitRequest {
    /// Waits, and says on `out` what came of it. A container that was just started may have no supervisor yet.
    pub fn carry_out(&self, out: &mut impl Write) -> Result<(), Failure> {
        let started = Instant::now();
        let answer = loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            let request = Request::Wait(Wait {
                until: self.until,
                timeout_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            });
            match ask(&self.control_socket, &request, left + ANSWER_SLACK) {
                Ok(answer) => break answer,
                Err(ClientError::Connect(error)) if is_not_there_yet(&error) && left > KNOCK => {
                    std::thread::sleep(KNOCK);
                }
                Err(error) => return Err(unreachable_supervisor(&self.control_socket, error)),
            }
        };
        if self.format == Format::Json {
            print(out, &answer.to_line())?;
        }
        match answer {
            Answer::Wait(Waited::Reached { state, generation }) => match self.format {
                Format::Json => Ok(()),
                Format::Human => print(out, &describe_reached(&state, generation)),
            },
            Answer::Wait(Waited::Failed { reason }) => Err(Failure::new(
                ExitCode::CheckpointFailed,
                format!("the checkpoint that was waited for failed: {reason}"),
            )
            .remedy("`reprieve status` says how the job is; the next one can be waited for")),
            Answer::Wait(Waited::TimedOut {}) => Err(Failure::new(
                ExitCode::TimedOut,
                format!(
                    "it was not so within {}",
                    humantime::format_duration(self.timeout)
                ),
            )
            .remedy("allow more time with --timeout; `reprieve status` says how the job is")),
            Answer::Wait(Waited::Gone {}) => Err(Failure::new(
                ExitCode::NoSupervisor,
                "the supervisor ended before it was so",
            )
            .remedy("its log and the container's exit code say why")),
            Answer::Wait(Waited::Refused { reason }) => Err(Failure::new(
                ExitCode::Refused,
                format!("the supervisor lets nobody else wait: {reason}"),
            )
            .remedy("ask with `reprieve status` instead")),
            other => Err(unwelcome(&self.control_socket, other)),
        }
    }
}

fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn describe_reached(state: &str, generation: Option<u64>) -> String {
    match generation {
        Some(generation) => format!("{state}; the newest snapshot is generation {generation}\n"),
        None => format!("{state}; there is no snapshot yet\n"),
    }
}

/// Sends the request and waits for the answer, all within `limit`.
pub fn ask(
    control_socket: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Answer, ClientError> {
    let started = Instant::now();
    let left = || match limit.saturating_sub(started.elapsed()) {
        Duration::ZERO => Err(ClientError::TooLate(limit)),
        left => Ok(left),
    };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TooLate(limit),
        _ => ClientError::Broken(error),
    };
    let mut stream = connect_within(control_socket, left()?).map_err(|errno| match errno {
        Errno::EAGAIN => ClientError::TooLate(limit),
        errno => ClientError::Connect(errno.into()),
    })?;
    stream.set_write_timeout(Some(left()?)).map_err(broken)?;
    stream
        .write_all(request.to_line().as_bytes())
        .map_err(broken)?;

    let mut line = Vec::new();
    let mut part = [0; 4096];
    while !line.contains(&b'\n') {
        if line.len() > LINE_LIMIT {
            return Err(ClientError::Unreadable(ProtocolError::TooLong));
        }
        stream.set_read_timeout(Some(left()?)).map_err(broken)?;
        match stream.read(&mut part) {
            Ok(0) => return Err(ClientError::NoAnswer),
            Ok(count) => line.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    Answer::parse(&line).map_err(ClientError::Unreadable)
}

/// Connects; a supervisor whose queue is full would otherwise hold us for as long as it likes.
fn connect_within(control_socket: &Path, limit: Duration) -> nix::Result<UnixStream> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    setsockopt(
        &socket,
        sockopt::SendTimeout,
        &TimeVal::new(seconds, limit.subsec_micros().into()),
    )?;
    let address = UnixAddr::new(control_socket)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)?;
    Ok(UnixStream::from(socket))
}

fn unreachable_supervisor(control_socket: &Path, error: ClientError) -> Failure {
    let path = control_socket.display();
    let (what, remedy) = match &error {
        ClientError::Connect(cause) if cause.kind() == io::ErrorKind::PermissionDenied => (
            format!("may not connect to the control socket {path}"),
            "run this command as the user that reprieve runs as, in most containers root",
        ),
        ClientError::Connect(_) => (
            format!("cannot reach a supervisor at the control socket {path}"),
            "is reprieve running in this container? If its control-socket setting differs, give it here too with \
             --control-socket or REPRIEVE_CONTROL_SOCKET",
        ),
        ClientError::Unreadable(_) => (
            format!("what answers at the control socket {path} is not a reprieve of this version"),
            "use the `reprieve` program that supervises this container",
        ),
        ClientError::Broken(_) | ClientError::NoAnswer | ClientError::TooLate(_) => (
            format!("the supervisor at the control socket {path} went away or is stuck"),
            "its log and the container's exit code say whether it ended",
        ),
    };
    Failure::new(ExitCode::NoSupervisor, what)
        .caused_by(error)
        .remedy(remedy)
}

/// Every answer that is not what was asked for.
fn unwelcome(control_socket: &Path, answer: Answer) -> Failure {
    match answer {
        Answer::Checkpoint(Outcome::Failed {
            reason,
            remedy,
            job_runs_on,
        }) => {
            let job = if job_runs_on { "the job runs on" } else { "the job does not run on" };
            Failure::new(
                ExitCode::CheckpointFailed,
                format!("the checkpoint failed: {reason}; {job}"),
            )
            .remedy(remedy)
        }
        Answer::Checkpoint(Outcome::Refused { reason }) => Failure::new(
            ExitCode::Refused,
            format!("the supervisor refused the checkpoint: {reason}"),
        ),
        Answer::Checkpoint(Outcome::TimedOut { reason }) => [reason]
            .into_iter()
            .filter(|reason| !reason.is_empty())
            .fold(
                Failure::new(
                    ExitCode::TimedOut,
                    "the checkpoint was not durable in time and was given up; the job runs on",
                ),
                Failure::detail,
            )
        .remedy("allow more time with --timeout; reprieve_checkpoint_phase_seconds tells which step takes it"),
        Answer::Invalid { reason } => Failure::new(
            ExitCode::Refused,
            format!("the supervisor did not understand the request: {reason}"),
        )
        .remedy("use the `reprieve` program that supervises this container"),
        Answer::Checkpoint(Outcome::Durable(_))
        | Answer::Status(_)
        | Answer::Wait(_)
        | Answer::Noted {} => {
            Failure::new(
            ExitCode::NoSupervisor,
            format!(
                "what answers at the control socket {} gave an answer to another question",
                control_socket.display()
            ),
        )
        .remedy("use the `reprieve` program that supervises this container")
        }
    }
}

fn print(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read the first lines and left did so on purpose (`| head -1`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            ExitCode::Internal,
            "the answer cannot be printed",
        )
        .caused_by(error)
        .remedy("the request itself was carried out; can stdout be written to?")),
        _ => Ok(()),
    }
}

fn describe_durable(durable: &Durable) -> String {
    format!(
        "generation {} is durable after {}; the job stood still for {} and {}\n{} stored for {} of memory and files\n",
        durable.generation,
        milliseconds(durable.wall_ms),
        milliseconds(durable.frozen_ms),
        if durable.left_running {
            "runs on"
        } else {
            "was stopped"
        },
        bytes(durable.bytes_stored),
        bytes(durable.bytes_logical),
    )
}

fn describe_machine(status: &Status) -> String {
    let machine = status.machine.as_ref();
    let said = [
        status.instance.clone(),
        machine.and_then(|machine| machine.kind.clone()),
        machine
            .and_then(|machine| machine.purchase)
            .map(|purchase| purchase.as_str().replace('_', " ")),
        machine.and_then(|machine| machine.zone.clone()),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    match said.is_empty() {
        true => "unknown".to_owned(),
        false => said.join(", "),
    }
}

fn describe_status(status: &Status) -> String {
    let snapshot = match (status.last_generation, status.last_snapshot_age_ms) {
        (Some(generation), Some(age)) => format!("generation {generation}, {} ago", seconds(age)),
        (Some(generation), None) => format!("generation {generation}"),
        (None, _) => "none".into(),
    };
    let app = match (status.app_pid, status.resumed_from) {
        (None, _) => "not running".into(),
        (Some(pid), None) => format!("pid {pid}, started from scratch"),
        (Some(pid), Some(generation)) => format!("pid {pid}, resumed from generation {generation}"),
    };
    let mut rows = vec![
        ("state", status.state.clone()),
        ("job", status.job.clone()),
        ("machine", describe_machine(status)),
        (
            "store",
            status
                .store
                .clone()
                .unwrap_or_else(|| "none, nothing is checkpointed".into()),
        ),
        ("app", app),
        ("last snapshot", snapshot),
        (
            "checkpoints",
            format!(
                "{} durable, {} failed",
                status.checkpoints_durable, status.checkpoints_failed
            ),
        ),
    ];
    rows.extend(
        status
            .last_failure
            .clone()
            .map(|reason| ("last failure", reason)),
    );
    rows.extend(
        status
            .owner_epoch
            .map(|epoch| ("owner epoch", epoch.to_string())),
    );
    rows.extend(
        status
            .sources
            .iter()
            .map(|source| ("source", describe_source(source))),
    );
    rows.extend(status.obstacles.iter().map(|obstacle| {
        let text = format!("{}; {}", obstacle.sentence(), obstacle.remedy);
        ("in the way", text)
    }));
    let more = status
        .obstacles_total
        .saturating_sub(status.obstacles.len());
    rows.extend((more > 0).then(|| ("in the way", format!("and {more} more"))));
    rows.extend(
        status
            .rehearsal
            .as_ref()
            .map(|rehearsal| ("rehearsal", describe_rehearsal(rehearsal))),
    );
    rows.extend(
        status
            .clocks
            .as_ref()
            .map(|clocks| ("clocks", clocks.sentence())),
    );
    rows.extend(status.plan.clone().map(|plan| ("plan", plan)));
    rows.extend(
        status
            .storing
            .as_ref()
            .map(|storing| ("storing", storing.describe())),
    );
    rows.extend(
        status
            .deadline_ms
            .map(|left| ("deadline", format!("in {}", seconds(left)))),
    );
    rows.extend(
        status
            .to_safe_ms
            .map(|needed| ("safe within", milliseconds(needed))),
    );
    rows.push(("up for", seconds(status.uptime_ms)));
    rows.push(("version", status.version.clone()));
    rows.iter()
        .map(|(name, value)| format!("{name:<14} {value}\n"))
        .collect()
}

fn describe_rehearsal(rehearsal: &Rehearsal) -> String {
    match (rehearsal.frozen_ms, &rehearsal.reason) {
        (Some(frozen), _) => format!("worked; the job stood still for {}", milliseconds(frozen)),
        (None, Some(reason)) => {
            let more = rehearsal.remedy.iter().map(|remedy| format!("; {remedy}"));
            format!(
                "{}: {reason}{}",
                rehearsal.outcome,
                more.collect::<String>()
            )
        }
        (None, None) => rehearsal.outcome.replace('_', " "),
    }
}

fn describe_source(health: &SourceHealth) -> String {
    let mut text = format!("{} is {}", health.source, health.condition);
    if let Some(age) = health.last_success_age_ms {
        text.push_str(&format!(", last seen to work {} ago", seconds(age)));
    }
    if health.failures > 0 {
        text.push_str(&format!(", {} failures in a row", health.failures));
    }
    for more in health.reason.iter().chain(&health.remedy) {
        text.push_str(&format!("; {more}"));
    }
    text
}

fn milliseconds(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn seconds(ms: u64) -> String {
    humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
}

/// With one decimal, in the largest unit that leaves a whole part.
fn bytes(bytes: u64) -> String {
    let unit = [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes >> shift > 0);
    match unit {
        // Tenths in integers: a snapshot's size has more digits than a float shows exactly.
        Some((name, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use reprieve_core::worker::{Machine, Purchase};

    use super::*;
    use crate::control::protocol::{JobClocks, Obstacle};
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A supervisor that takes one request and sends `answer`; gives the socket's directory and the request's line.
    struct Supervisor {
        _dir: tempfile::TempDir,
        socket: PathBuf,
        request: thread::JoinHandle<String>,
    }

    impl Supervisor {
        fn that_answers(answer: impl Into<Vec<u8>>) -> Self {
            let answer = answer.into();
            Self::that(move |stream| {
                // A client that gave up early is what some tests are about.
                let _ = stream.write_all(&answer);
            })
        }

        fn that(act: impl FnOnce(&mut UnixStream) + Send + 'static) -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let socket = dir.path().join("control.sock");
            let listener = UnixListener::bind(&socket).expect("a new socket");
            let request = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("the client connects");
                let mut line = String::new();
                let reader = stream.try_clone().expect("a second handle");
                io::BufReader::new(reader)
                    .read_line(&mut line)
                    .expect("the client sends a line");
                act(&mut stream);
                line
            });
            Self {
                _dir: dir,
                socket,
                request,
            }
        }

        fn checkpoint(&self, format: Format) -> (String, Result<(), Failure>) {
            let request = CheckpointRequest {
                control_socket: self.socket.clone(),
                leave_running: true,
                timeout: Duration::from_secs(20),
                format,
            };
            let mut out = Vec::new();
            let result = request.carry_out(&mut out);
            (String::from_utf8(out).expect("text"), result)
        }

        fn status(&self, format: Format) -> (String, Result<(), Failure>) {
            let request = StatusRequest {
                control_socket: self.socket.clone(),
                format,
            };
            let mut out = Vec::new();
            let result = request.carry_out(&mut out);
            (String::from_utf8(out).expect("text"), result)
        }
    }

    fn durable() -> Answer {
        Answer::Checkpoint(Outcome::Durable(Durable {
            generation: 7,
            bytes_stored: 1_300_000,
            bytes_logical: 5 << 30,
            frozen_ms: 812,
            wall_ms: 4_020,
            left_running: true,
        }))
    }

    fn status() -> Answer {
        Answer::Status(Box::new(Status {
            version: "0.1.0".into(),
            state: "running".into(),
            job: "nightly".into(),
            instance: Some("i-1".into()),
            machine: Some(Machine {
                cloud: "ec2".into(),
                kind: Some("m7i.large".into()),
                zone: Some("eu-central-1b".into()),
                purchase: Some(Purchase::Spot),
            }),
            store: Some("s3://b/p".into()),
            last_generation: Some(7),
            last_snapshot_age_ms: Some(61_700),
            app_pid: Some(17),
            checkpoints_durable: 2,
            checkpoints_failed: 1,
            last_failure: Some("the store is full".into()),
            resumed_from: Some(5),
            owner_epoch: Some(3),
            sources: vec![SourceHealth {
                source: "sqs".into(),
                condition: "degraded".into(),
                reason: Some("it does not answer".into()),
                remedy: Some("see its log".into()),
                last_success_age_ms: Some(61_000),
                failures: 4,
                restarts: 0,
            }],
            plan: Some("nothing is to be expected".into()),
            decision: None,
            storing: None,
            deadline_ms: Some(90_000),
            to_safe_ms: Some(700),
            protected: true,
            unprotected_because: None,
            obstacles: vec![Obstacle {
                reason: "io_uring".into(),
                pid: 301,
                command: "node".into(),
                what: "descriptor 7 (anon_inode:[io_uring])".into(),
                cause: "CRIU cannot store an io_uring".into(),
                remedy: "do without".into(),
            }],
            obstacles_total: 3,
            rehearsal: Some(Rehearsal {
                outcome: "worked".into(),
                frozen_ms: Some(61),
                wall_ms: Some(90),
                memory_bytes: Some(4096),
                files_bytes: Some(0),
                reason: None,
                remedy: None,
            }),
            clocks: Some(JobClocks {
                by: "library".into(),
                by_host: vec!["307 tool (a static program)".into()],
            }),
            uptime_ms: 3_600_000,
        }))
    }

    #[test]
    fn a_durable_checkpoint_is_printed() {
        let supervisor = Supervisor::that_answers(durable().to_line());
        let (out, result) = supervisor.checkpoint(Format::Human);
        result.expect("the snapshot is durable");
        assert_eq!(
            out,
            "generation 7 is durable after 4s 20ms; the job stood still for 812ms and runs on\n\
             1.2 MiB stored for 5.0 GiB of memory and files\n"
        );
        assert_eq!(
            supervisor.request.join().expect("the supervisor's thread"),
            "{\"v\":1,\"request\":\"checkpoint\",\"leave_running\":true,\"timeout_ms\":20000}\n"
        );
    }

    #[test]
    fn json_is_printed_as_it_came() {
        let supervisor = Supervisor::that_answers(durable().to_line());
        let (out, result) = supervisor.checkpoint(Format::Json);
        result.expect("the snapshot is durable");
        assert_eq!(out, durable().to_line());

        let refused = Answer::Checkpoint(Outcome::Refused {
            reason: "no store".into(),
        });
        let (out, result) = Supervisor::that_answers(refused.to_line()).checkpoint(Format::Json);
        assert_eq!(out, refused.to_line());
        assert_eq!(result.expect_err("refused").code(), ExitCode::Refused);

        let (out, result) = Supervisor::that_answers(status().to_line()).status(Format::Json);
        result.expect("a status");
        assert_eq!(out, status().to_line());
    }

    #[test]
    fn status_is_printed() {
        let (out, result) = Supervisor::that_answers(status().to_line()).status(Format::Human);
        result.expect("a status");
        assert_eq!(
            out,
            "state          running\n\
             job            nightly\n\
             machine        i-1, m7i.large, spot, eu-central-1b\n\
             store          s3://b/p\n\
             app            pid 17, resumed from generation 5\n\
             last snapshot  generation 7, 1m 1s ago\n\
             checkpoints    2 durable, 1 failed\n\
             last failure   the store is full\n\
             owner epoch    3\n\
             source         sqs is degraded, last seen to work 1m 1s ago, 4 failures in a row; it does not answer; see its log\n\
             in the way     301 (node), descriptor 7 (anon_inode:[io_uring]): CRIU cannot store an io_uring; do without\n\
             in the way     and 2 more\n\
             rehearsal      worked; the job stood still for 61ms\n\
             clocks         processes go by the host's clocks: 307 tool (a static program)\n\
             plan           nothing is to be expected\n\
             deadline       in 1m 30s\n\
             safe within    700ms\n\
             up for         1h\n\
             version        0.1.0\n"
        );
    }

    #[test]
    fn answers_that_are_not_good_news_have_codes_of_their_own() {
        let failed = |job_runs_on| {
            Answer::Checkpoint(Outcome::Failed {
                reason: "no space".into(),
                remedy: "make some".into(),
                job_runs_on,
            })
        };
        let table = [
            (
                failed(true),
                ExitCode::CheckpointFailed,
                "no space; the job runs on\n  remedy: make some",
            ),
            (
                failed(false),
                ExitCode::CheckpointFailed,
                "the job does not run on",
            ),
            (
                Answer::Checkpoint(Outcome::Refused {
                    reason: "no store is set".into(),
                }),
                ExitCode::Refused,
                "refused the checkpoint: no store is set",
            ),
            (
                Answer::Checkpoint(Outcome::TimedOut {
                    reason: "it was given up while storing".into(),
                }),
                ExitCode::TimedOut,
                "while storing\n  remedy: allow more time with --timeout",
            ),
            (
                Answer::Invalid { reason: "v".into() },
                ExitCode::Refused,
                "did not understand the request: v",
            ),
            (
                status(),
                ExitCode::NoSupervisor,
                "an answer to another question",
            ),
        ];
        for (answer, code, part) in table {
            let (out, result) =
                Supervisor::that_answers(answer.to_line()).checkpoint(Format::Human);
            let failure = result.expect_err("not durable");
            assert_eq!(failure.code(), code, "{failure}");
            assert!(failure.to_string().contains(part), "{failure}");
            assert_eq!(out, "");
        }
    }

    #[test]
    fn lines_that_are_no_answer_mean_no_supervisor() {
        let table: [(Vec<u8>, &str); 5] = [
            (b"".to_vec(), "closed the connection without an answer"),
            (
                b"{\"v\":1,\"answer\":".to_vec(),
                "closed the connection without an answer",
            ),
            (
                b"HTTP/1.1 400 Bad Request\n".to_vec(),
                "the line is not JSON",
            ),
            (b"{\"v\":9}\n".to_vec(), "speaks version 9"),
            (
                vec![b' '; 4 * LINE_LIMIT],
                "the line has more than 65536 bytes",
            ),
        ];
        for (answer, part) in table {
            let (_, result) = Supervisor::that_answers(answer).status(Format::Human);
            let failure = result.expect_err("no answer");
            assert_eq!(failure.code(), ExitCode::NoSupervisor);
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }

    #[test]
    fn nobody_there_says_so_and_what_to_do() {
        let request = StatusRequest {
            control_socket: "/nowhere/control.sock".into(),
            format: Format::Human,
        };
        let failure = request
            .carry_out(&mut Vec::new())
            .expect_err("nobody listens");
        assert_eq!(
            failure.to_string(),
            "reprieve: cannot reach a supervisor at the control socket /nowhere/control.sock\n  \
               because: cannot connect\n  \
               because: No such file or directory (os error 2)\n  \
               remedy: is reprieve running in this container? If its control-socket setting differs, give it here too \
             with --control-socket or REPRIEVE_CONTROL_SOCKET\n  \
               exit code: 181 (no supervisor)\n"
        );
    }

    /// Neither silence nor a byte now and then may outlast the limit.
    #[test]
    fn a_stuck_supervisor_is_given_up() {
        let limit = Duration::from_millis(200);
        for drip in [Duration::from_secs(3), Duration::from_millis(20)] {
            let supervisor = Supervisor::that(move |stream| {
                let started = Instant::now();
                while started.elapsed() < Duration::from_secs(3) && stream.write_all(b" ").is_ok() {
                    thread::sleep(drip);
                }
            });
            let error = ask(&supervisor.socket, &Request::Status(StatusQuery {}), limit)
                .expect_err("no answer");
            assert!(matches!(error, ClientError::TooLate(_)), "{error:?}");
        }
    }

    #[test]
    fn a_supervisor_that_does_not_accept_is_given_up() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let full = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        nix::sys::socket::bind(
            std::os::fd::AsRawFd::as_raw_fd(&full),
            &UnixAddr::new(&path).expect("a short path"),
        )
        .expect("a new path");
        let backlog = nix::sys::socket::Backlog::new(0).expect("zero is allowed");
        nix::sys::socket::listen(&full, backlog).expect("a bound socket");
        let limit = Duration::from_millis(100);
        // The first fills the queue and then waits for its answer, the second waits for a place in it.
        let first = connect_within(&path, limit).expect("one place");
        assert_eq!(
            connect_within(&path, limit).expect_err("no place"),
            Errno::EAGAIN
        );
        drop(first);
    }

    #[test]
    fn sizes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_300_000, "1.2 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
