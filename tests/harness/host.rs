//! One throw-away host: how it is ordered, started, watched, used and done away with.

use std::fs::{self, File};
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::bundle::{Access, Bind, Bundle};
use super::output::{Output, tail};
use super::process::{self as proc, Exit, Process};
use super::workshop::workshop;
use super::{LIMIT, Rootfs, project_path, wait_for};

/// Makes the writable layer and starts the container, all in a mount namespace that only the container inherits:
/// when its last process ends, the layer and every mount are gone. Signals that whoever runs the tests ignores (nohup,
/// some shells) are not handed down.
const START: &str = r#"
set -e
cd "$1"; lower=$2; shift 2
mkdir lower writable rootfs
mount --bind "$lower" lower
mount -t tmpfs -o mode=755 writable writable
mkdir writable/upper writable/work
mount -t overlay -o lowerdir=lower,upperdir=writable/upper,workdir=writable/work overlay rootfs
exec env --default-signal runc "$@"
"#;

/// What one of the first process's three standard streams is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stdio {
    /// `/dev/null`
    Null,
    /// A pipe: output is captured; input comes from [`Host::write`] and ends with [`Host::close_stdin`].
    #[default]
    Pipe,
    /// A file on this machine, opened for appending or for reading.
    File(PathBuf),
    /// A pipe whose other end is closed already: writing fails, reading finds the end.
    BrokenPipe,
    /// No open descriptor at all.
    Closed,
}

/// Where hosts have the worker.
const WORKER: &str = "/usr/local/bin/reprieve";

/// A port of loopback where nothing can be.
const NOBODY: &str = "http://127.0.0.1:1";

/// An order for a host. Without any option: a Debian with an own loopback network, the worker at
/// `/usr/local/bin/reprieve`, the test apps at `/apps`, no input, captured output.
pub(crate) struct Builder {
    rootfs: Rootfs,
    bundle: Bundle,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    /// In seconds.
    clock_ahead: u64,
}

impl Builder {
    /// The command of the first process, PID 1.
    pub(crate) fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.bundle.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// The command is run by this one, which is given it as its last arguments.
    pub(crate) fn run_by<'a>(mut self, program: impl IntoIterator<Item = &'a str>) -> Self {
        let program = program.into_iter().map(str::to_owned);
        self.bundle.arguments.splice(0..0, program);
        self
    }

    /// `reprieve run OPTIONS -- APP`
    pub(crate) fn reprieve<S: Into<String>, T: Into<String>>(
        self,
        options: impl IntoIterator<Item = S>,
        app: impl IntoIterator<Item = T>,
    ) -> Self {
        let command = ["reprieve", "run"].into_iter().map(String::from);
        let options = options.into_iter().map(Into::into);
        let app = app.into_iter().map(Into::into);
        self.args(command.chain(options).chain(["--".to_owned()]).chain(app))
    }

    pub(crate) fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        // Of two with one name a program sees either.
        self.bundle.environment.retain(|(other, _)| *other != name);
        self.bundle.environment.push((name, value.into()));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.bundle.environment.retain(|(other, _)| other != name);
        self
    }

    pub(crate) fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.bundle.working_directory = directory.into();
        self
    }

    pub(crate) fn user(mut self, uid: u32, gid: u32) -> Self {
        self.bundle.user = (uid, gid);
        self
    }

    /// Shares a directory or file of this machine, such as the store, with the container.
    pub(crate) fn bind(self, outside: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        self.mount(outside.into(), inside.into(), Access::ReadWrite)
    }

    pub(crate) fn bind_read_only(
        self,
        outside: impl Into<PathBuf>,
        inside: impl Into<PathBuf>,
    ) -> Self {
        self.mount(outside.into(), inside.into(), Access::ReadOnly)
    }

    fn mount(mut self, outside: PathBuf, inside: PathBuf, access: Access) -> Self {
        self.bundle.binds.push(Bind {
            outside,
            inside,
            access,
        });
        self
    }

    /// Another build of the worker, at the usual place.
    pub(crate) fn worker(mut self, binary: impl Into<PathBuf>) -> Self {
        let usual = |bind: &&mut Bind| bind.inside == Path::new(WORKER);
        let bind = self.bundle.binds.iter_mut().find(usual);
        bind.expect("each host has a worker").outside = binary.into();
        self
    }

    pub(crate) fn rootfs(mut self, rootfs: Rootfs) -> Self {
        self.rootfs = rootfs;
        self
    }

    /// On top of Docker's set, CHECKPOINT_RESTORE and SYS_PTRACE. Written as in `CAP_SYS_ADMIN`.
    pub(crate) fn add_capability(mut self, name: impl Into<String>) -> Self {
        self.bundle.extra_capabilities.push(name.into());
        self
    }

    pub(crate) fn drop_capability(mut self, name: impl Into<String>) -> Self {
        self.bundle.dropped_capabilities.push(name.into());
        self
    }

    /// The container may use this character device, as `docker run --device` allows it.
    pub(crate) fn allow_device(mut self, major: u32, minor: u32) -> Self {
        self.bundle.devices.push((major, minor));
        self
    }

    /// For users other than root, who lose all others at exec.
    pub(crate) fn ambient_capability(mut self, name: impl Into<String>) -> Self {
        self.bundle.ambient_capabilities.push(name.into());
        self
    }

    pub(crate) fn no_new_privileges(mut self) -> Self {
        self.bundle.no_new_privileges = true;
        self
    }

    pub(crate) fn read_only_root(mut self) -> Self {
        self.bundle.read_only_root = true;
        self
    }

    /// `/run`, `/tmp` and `/dev/shm` are directories of the root.
    pub(crate) fn without_tmpfs(mut self) -> Self {
        self.bundle.no_tmpfs = true;
        self
    }

    /// A limit of the container's cgroup, as runc's configuration has it: `memory`, `{"limit": 1048576}`.
    pub(crate) fn limit(mut self, what: &str, limits: serde_json::Value) -> Self {
        self.bundle.resources.insert(what.to_owned(), limits);
        self
    }

    /// Puts the container under a (harmless) seccomp filter, as container engines do by default.
    pub(crate) fn seccomp(mut self) -> Self {
        self.bundle.seccomp = true;
        self
    }

    /// The container uses the network of the test, so that a server on the test's loopback can be reached.
    pub(crate) fn share_net(mut self) -> Self {
        self.bundle.own_network = false;
        // The clouds' metadata services have addresses beyond the test's own; nobody listens here.
        self.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", NOBODY)
            .env("GCE_METADATA_HOST", NOBODY.trim_start_matches("http://"))
            .env("GCE_METADATA_IP", NOBODY.trim_start_matches("http://"))
            .env("IDENTITY_ENDPOINT", NOBODY)
            .env("REPRIEVE_AZURE_METADATA_ENDPOINT", NOBODY)
    }

    /// Standard streams are one terminal of this size; what it shows is captured as stdout.
    pub(crate) fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.bundle.terminal = Some((rows, columns));
        self
    }

    /// A machine whose monotonic clock began so much earlier than this one's.
    pub(crate) fn up_for_longer(mut self, seconds: u64) -> Self {
        self.clock_ahead = seconds;
        self
    }

    pub(crate) fn stdin(mut self, stdin: Stdio) -> Self {
        self.stdin = stdin;
        self
    }

    pub(crate) fn stdout(mut self, stdout: Stdio) -> Self {
        self.stdout = stdout;
        self
    }

    pub(crate) fn stderr(mut self, stderr: Stdio) -> Self {
        self.stderr = stderr;
        self
    }

    /// Starts the container and returns once its first process runs.
    #[track_caller]
    pub(crate) fn start(mut self) -> Host {
        let workshop = workshop();
        let (id, directory) = workshop.place(&self.bundle.hostname);
        self.close_streams();
        let root = directory.join("rootfs");
        let config = self.bundle.config(&root, &format!("/{id}"));
        fs::write(directory.join("config.json"), config.to_string())
            .expect("the workshop is writable");
        let pid_file = directory.join("pid");
        let console = directory.join("console");

        let mut command = Command::new("unshare");
        if self.clock_ahead > 0 {
            let ahead = self.clock_ahead.to_string();
            // The boot clock stays: runc knows its containers again by the time of their start.
            command.args(["--time", "--monotonic", &ahead]);
        }
        command.args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            START,
            "start",
        ]);
        command
            .arg(&directory)
            .arg(workshop.root(self.rootfs.key()));
        command
            .arg("--root")
            .arg(workshop.state())
            .args(["run", "--detach", "--bundle"])
            .arg(&directory);
        command.arg("--pid-file").arg(&pid_file);
        let mut streams;
        let console_socket = self
            .bundle
            .terminal
            .map(|_| UnixListener::bind(&console).expect("the path is short"));
        if console_socket.is_some() {
            command
                .arg("--console-socket")
                .arg(&console)
                .stdin(process::Stdio::null());
            streams = Streams {
                stdin: None,
                stdout: Output::absent(),
                stderr: Output::absent(),
                terminal: None,
            };
            let (reader, writer) = io::pipe().expect("pipes can be made");
            streams.stderr = Output::capture(reader);
            command.stdout(process::Stdio::null()).stderr(writer);
        } else {
            streams = self.connect(&mut command);
        }
        let mut starting = command
            .arg(&id)
            .spawn()
            .expect("unshare (util-linux) can be started");
        // The command holds our copies of the pipes' other ends.
        drop(command);
        let started = starting.wait().expect("nobody else waits for it");
        if !started.success() {
            // runc reports a first process that cannot be executed in this way, too.
            streams.stderr.wait_for_end(LIMIT);
            panic!(
                "runc could not start host {id} ({started}):\n{}",
                tail(&streams.stderr.text())
            );
        }
        if let Some(socket) = console_socket {
            let terminal =
                receive_terminal(&socket).expect("runc hands over the terminal before it ends");
            streams.stdout =
                Output::capture(terminal.try_clone().expect("descriptors can be copied"));
            streams.terminal = Some(terminal);
        }
        let pid = fs::read_to_string(&pid_file).expect("runc writes it before it ends");
        let init = Init::watch(pid.trim().parse().expect("runc writes a number"));
        Host {
            id,
            directory,
            init,
            streams: Mutex::new(streams),
        }
    }

    /// runc opens whatever it finds closed, so a shell inside closes it again and becomes the command.
    fn close_streams(&mut self) {
        let streams = [
            (&self.stdin, "<&-"),
            (&self.stdout, ">&-"),
            (&self.stderr, "2>&-"),
        ];
        let closing: Vec<&str> = streams
            .into_iter()
            .filter(|(stream, _)| **stream == Stdio::Closed)
            .map(|(_, text)| text)
            .collect();
        if !closing.is_empty() {
            let shell = [
                "/bin/sh".to_owned(),
                "-c".to_owned(),
                format!("exec \"$@\" {}", closing.join(" ")),
                "sh".to_owned(),
            ];
            self.bundle.arguments.splice(0..0, shell);
        }
    }

    fn connect(&self, command: &mut Command) -> Streams {
        let mut input = None;
        match &self.stdin {
            Stdio::Null | Stdio::Closed => command.stdin(process::Stdio::null()),
            Stdio::File(path) => {
                command.stdin(File::open(path).expect("the test names a readable file"))
            }
            Stdio::Pipe | Stdio::BrokenPipe => {
                let (reader, writer) = io::pipe().expect("pipes can be made");
                input = Some(writer).filter(|_| self.stdin == Stdio::Pipe);
                command.stdin(reader)
            }
        };
        let (stdout, captured_stdout) = sink(&self.stdout);
        let (stderr, captured_stderr) = sink(&self.stderr);
        command.stdout(stdout).stderr(stderr);
        Streams {
            stdin: input,
            stdout: captured_stdout,
            stderr: captured_stderr,
            terminal: None,
        }
    }
}

fn sink(stream: &Stdio) -> (process::Stdio, Output) {
    match stream {
        Stdio::Null | Stdio::Closed => (process::Stdio::null(), Output::absent()),
        Stdio::File(path) => {
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .expect("the test names a writable file");
            (file.into(), Output::absent())
        }
        Stdio::Pipe => {
            let (reader, writer) = io::pipe().expect("pipes can be made");
            (writer.into(), Output::capture(reader))
        }
        Stdio::BrokenPipe => {
            let (_, writer) = io::pipe().expect("pipes can be made");
            (writer.into(), Output::absent())
        }
    }
}

/// runc sends the terminal's controlling side as a message with one descriptor.
fn receive_terminal(socket: &UnixListener) -> io::Result<File> {
    let (connection, _) = socket.accept()?;
    let mut name = [0; 4096];
    let mut slices = [io::IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(
        connection.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let descriptor = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| io::Error::other("runc sent no descriptor"))?;
    // SAFETY: the kernel made this descriptor for us with the message, and nothing else knows its number.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

struct Streams {
    stdin: Option<PipeWriter>,
    stdout: Output,
    stderr: Output,
    terminal: Option<File>,
}

/// The container's first process, as a child of this program.
#[derive(Clone)]
struct Init {
    pid: i32,
    end: Arc<(Mutex<Option<Exit>>, Condvar)>,
}

impl Init {
    fn watch(pid: i32) -> Self {
        let init = Self {
            pid,
            end: Arc::default(),
        };
        let watcher = init.clone();
        std::thread::spawn(move || {
            let child = Pid::from_raw(watcher.pid);
            // Look first and take it away under the lock: until then the number cannot belong to anything else, so a
            // signal sent under the lock hits the right process.
            while let Err(nix::Error::EINTR) =
                waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            {}
            let mut end = watcher.lock();
            *end = Some(match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
                other => unreachable!("waiting for an ended child gives its end, not {other:?}"),
            });
            watcher.end.1.notify_all();
        });
        init
    }

    fn lock(&self) -> MutexGuard<'_, Option<Exit>> {
        self.end
            .0
            .lock()
            .expect("nobody panics while holding the lock")
    }

    fn wait(&self, limit: Duration) -> Option<Exit> {
        let waited = self
            .end
            .1
            .wait_timeout_while(self.lock(), limit, |end| end.is_none());
        *waited.expect("nobody panics while holding the lock").0
    }

    fn signal(&self, signal: i32) -> bool {
        let end = self.lock();
        // SAFETY: kill() only takes numbers; the process is our child and not yet waited for.
        // (nix has no way to name real-time signals.)
        end.is_none() && unsafe { libc::kill(self.pid, signal) } == 0
    }
}

/// A running (or ended) container. Dropping it destroys it.
pub(crate) struct Host {
    id: String,
    directory: PathBuf,
    init: Init,
    streams: Mutex<Streams>,
}

impl Host {
    pub(crate) fn builder(name: &str) -> Builder {
        let bundle = Bundle {
            hostname: name.to_owned(),
            arguments: ["sleep", "infinity"].map(String::from).to_vec(),
            environment: vec![
                (
                    "PATH".to_owned(),
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                ),
                ("HOME".to_owned(), "/root".to_owned()),
            ],
            working_directory: "/".to_owned(),
            user: (0, 0),
            extra_capabilities: Vec::new(),
            dropped_capabilities: Vec::new(),
            ambient_capabilities: Vec::new(),
            binds: Vec::new(),
            terminal: None,
            own_network: true,
            no_new_privileges: false,
            seccomp: false,
            read_only_root: false,
            no_tmpfs: false,
            resources: serde_json::Map::new(),
            devices: Vec::new(),
        };
        Builder {
            rootfs: Rootfs::Debian,
            bundle,
            stdin: Stdio::Null,
            stdout: Stdio::Pipe,
            stderr: Stdio::Pipe,
            clock_ahead: 0,
        }
        .bind_read_only(env!("CARGO_BIN_EXE_reprieve"), WORKER)
        .bind_read_only(project_path("tests/apps"), "/apps")
    }

    /// What the first process and its children wrote to stdout, or the terminal shows.
    pub(crate) fn stdout(&self) -> Output {
        self.streams().stdout.clone()
    }

    pub(crate) fn stderr(&self) -> Output {
        self.streams().stderr.clone()
    }

    /// Writes to stdin, which must be a pipe or a terminal.
    #[track_caller]
    pub(crate) fn write(&self, text: &str) {
        // A copy, since writing may take as long as the reader likes, and output must be readable meanwhile.
        let streams = self.streams();
        let copy = match (&streams.stdin, &streams.terminal) {
            (Some(pipe), _) => pipe.try_clone().map(OwnedFd::from),
            (None, Some(terminal)) => terminal.try_clone().map(OwnedFd::from),
            (None, None) => panic!("host {} has no stdin to write to", self.id),
        };
        drop(streams);
        let written = copy.and_then(|copy| File::from(copy).write_all(text.as_bytes()));
        written.unwrap_or_else(|error| panic!("writing to stdin of host {}: {error}", self.id));
    }

    pub(crate) fn close_stdin(&self) {
        self.streams().stdin = None;
    }

    /// Changes the terminal's size, which tells its foreground group with SIGWINCH.
    #[track_caller]
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let streams = self.streams();
        let terminal = streams
            .terminal
            .as_ref()
            .expect("the host was ordered with a terminal");
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCSWINSZ reads one winsize, which lives until after the call.
        let result =
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(
            result,
            0,
            "a terminal can be resized: {}",
            io::Error::last_os_error()
        );
    }

    /// Sends a signal to PID 1 from outside, as a container engine does. Real-time signals go by their numbers.
    #[track_caller]
    pub(crate) fn signal(&self, signal: i32) {
        assert!(
            self.init.signal(signal),
            "signal {signal} found no running host {}",
            self.id
        );
    }

    /// Sends a signal to any process, named by its id inside the container.
    #[track_caller]
    pub(crate) fn signal_process(&self, inner: i32, signal: i32) {
        let outer = proc::outer_pid(self.init.pid, inner).unwrap_or_else(|| {
            panic!(
                "no process {inner} in host {}, only:\n{}",
                self.id,
                self.process_table()
            )
        });
        // SAFETY: kill() only takes numbers.
        let result = unsafe { libc::kill(outer, signal) };
        assert_eq!(
            result, 0,
            "process {inner} of host {} ended before signal {signal}",
            self.id
        );
    }

    pub(crate) fn pid1_host_pid(&self) -> i32 {
        self.init.pid
    }

    /// Gives loopback another address, as the machine's own that its clients know.
    #[track_caller]
    pub(crate) fn add_address(&self, address: &str) {
        let pid = self.init.pid.to_string();
        let added = Command::new("nsenter")
            .args(["--target", &pid, "--net", "ip", "address", "add", address])
            .args(["dev", "lo"])
            .status();
        assert!(
            added.is_ok_and(|status| status.success()),
            "host {} got no address {address}",
            self.id
        );
    }

    /// Whether PID 1 still runs.
    pub(crate) fn is_running(&self) -> bool {
        self.init.lock().is_none()
    }

    /// How PID 1 ended. Output is complete by then.
    #[track_caller]
    pub(crate) fn wait_exit(&self, limit: Duration) -> Exit {
        let Some(end) = self.init.wait(limit) else {
            panic!(
                "host {} still runs after {limit:?}:\n{}",
                self.id,
                self.process_table()
            );
        };
        // The kernel killed whatever else was in the container before the end was reported.
        self.stdout().wait_for_end(LIMIT);
        self.stderr().wait_for_end(LIMIT);
        end
    }

    /// All processes, numbered as inside the container. Empty when it is gone.
    pub(crate) fn processes(&self) -> Vec<Process> {
        proc::list(&self.path("/proc"))
    }

    /// The process whose command line begins with `text`, once there is exactly one.
    #[track_caller]
    pub(crate) fn wait_for_process(&self, text: &str, limit: Duration) -> Process {
        wait_for(
            limit,
            &format!("one process of host {} that was started as {text}", self.id),
            || {
                let mut found = self
                    .processes()
                    .into_iter()
                    .filter(|process| process.command_line.starts_with(text));
                found.next().filter(|_| found.next().is_none())
            },
        )
    }

    /// For messages: one line for each process.
    pub(crate) fn process_table(&self) -> String {
        self.processes()
            .iter()
            .map(|process| format!("  {process}\n"))
            .collect()
    }

    /// A field of `/proc/PID/status`, such as `SigBlk`; None when there is no such process (any more).
    pub(crate) fn status_field(&self, inner: i32, field: &str) -> Option<String> {
        proc::status_field(&self.path(&format!("/proc/{inner}")), field)
    }

    /// Where this machine finds a path of the container, as long as PID 1 runs. Absolute links inside lead astray.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init.pid)).join(inside.trim_start_matches('/'))
    }

    /// Runs a command inside, with the capabilities and environment of PID 1, and waits for its end.
    #[track_caller]
    pub(crate) fn exec<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        self.spawn(arguments).wait(LIMIT)
    }

    /// The same for a command that must succeed; returns its output.
    #[track_caller]
    pub(crate) fn exec_ok<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(|argument| argument.as_ref().to_owned())
            .collect();
        let ran = self.exec(&arguments);
        assert_eq!(
            ran.code,
            0,
            "{arguments:?} in host {} said:\n{}\n{}",
            self.id,
            tail(&ran.stdout),
            tail(&ran.stderr)
        );
        ran.stdout
    }

    /// Starts a command inside, next to PID 1.
    #[track_caller]
    pub(crate) fn spawn<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Guest {
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(|argument| argument.as_ref().to_owned())
            .collect();
        let mut child = Command::new("runc")
            .arg("--root")
            .arg(workshop().state())
            .args(["exec", &self.id])
            .args(&arguments)
            .stdin(process::Stdio::null())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("runc is installed by infra/local/setup");
        let stdout = Output::capture(child.stdout.take().expect("it was asked for"));
        let stderr = Output::capture(child.stderr.take().expect("it was asked for"));
        Guest {
            arguments,
            child,
            stdout,
            stderr,
        }
    }

    /// From now on the machine stands still. Returns what was stopped, for [`Self::go_on`].
    ///
    /// What CRIU has stopped stays as it is, because CRIU stands still as well: a signal would be one more for it to find. (The
    /// freezer of cgroups does not freeze a process that is traced.)
    #[track_caller]
    pub(crate) fn stand_still(&self) -> Vec<i32> {
        let mut stopped = Vec::new();
        let mut stop = |which: &dyn Fn(&Process) -> bool| {
            for process in self.processes().iter().filter(|process| which(process)) {
                let is_free = self.status_field(process.pid, "TracerPid").as_deref() == Some("0");
                if is_free && !stopped.contains(&process.pid) {
                    self.signal_process(process.pid, libc::SIGSTOP);
                    stopped.push(process.pid);
                }
            }
        };
        // Those first who start, stop or trace others.
        stop(&|process| process.pid == 1);
        stop(&|process| process.name == "criu");
        stop(&|_| true);
        stopped
    }

    /// It goes on as if no time had passed.
    #[track_caller]
    pub(crate) fn go_on(&self, stopped: &[i32]) {
        for pid in stopped.iter().rev() {
            self.signal_process(*pid, libc::SIGCONT);
        }
    }

    /// The machine is gone: no warning, nothing left of it. What it wrote can still be read.
    pub(crate) fn destroy(&self) {
        self.init.signal(libc::SIGKILL);
        let ended = self.init.wait(LIMIT).is_some();
        // Removes runc's record and the cgroup. A failure here must not hide the failure of a test; the janitor
        // tries again.
        let removed = Command::new("runc")
            .arg("--root")
            .arg(workshop().state())
            .args(["delete", "--force", &self.id])
            .output()
            .is_ok_and(|output| output.status.success());
        if ended && removed {
            // Only a directory without mounts is left; a failure leaves litter for the janitor.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        // A panic while writing to stdin must not hide the captured output.
        self.streams
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- host {} {}",
                self.id,
                if self.is_running() {
                    "(running)"
                } else {
                    "(ended)"
                }
            );
            eprint!("{}", self.process_table());
            eprintln!("--- its stdout:\n{}", tail(&self.stdout().text()));
            eprintln!("--- its stderr:\n{}", tail(&self.stderr().text()));
        }
        if self.directory.exists() {
            self.destroy();
        }
    }
}

/// What a command run inside left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    /// 128 + n when signal n ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command started inside a host, next to its PID 1.
pub(crate) struct Guest {
    arguments: Vec<String>,
    child: Child,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Guest {
    #[track_caller]
    pub(crate) fn wait(mut self, limit: Duration) -> Ran {
        let child = &mut self.child;
        let status = wait_for(limit, &format!("the end of {:?}", self.arguments), || {
            child.try_wait().expect("nobody else waits for it")
        });
        self.stdout.wait_for_end(LIMIT);
        self.stderr.wait_for_end(LIMIT);
        Ran {
            code: status.code().expect("runc exec turns signals into codes"),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Guest {
    /// Ends runc's relay when a test gives up early; the command itself ends with its host.
    fn drop(&mut self) {
        // It has ended already in the ordinary case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
