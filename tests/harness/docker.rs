//! Docker itself: an engine of this program's own (`infra/local/docker-engine`), images that are made in it, and its
//! client. Nothing of the machine's own Docker is used or changed.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use super::{project_path, wait_for};

/// The engine ends when its stdin is closed, which is when this program ends.
pub(crate) struct Docker {
    _engine: Child,
    pid: String,
    roots: HashMap<String, String>,
}

impl Docker {
    /// The one engine of this program, with the base image in it.
    pub(crate) fn engine() -> &'static Self {
        static DOCKER: LazyLock<Docker> = LazyLock::new(Docker::start);
        &DOCKER
    }

    /// The same with the image `reprieve`.
    pub(crate) fn get() -> &'static Self {
        static IMAGE: LazyLock<()> =
            LazyLock::new(|| Docker::engine().build_image("reprieve", &[]));
        LazyLock::force(&IMAGE);
        Self::engine()
    }

    fn start() -> Self {
        let roots = Command::new(project_path("infra/local/setup"))
            .arg("--docker")
            .stderr(Stdio::inherit())
            .output()
            .expect("infra/local/setup can be started");
        assert!(
            roots.status.success(),
            "infra/local/setup --docker failed, see its messages"
        );
        let roots = String::from_utf8_lossy(&roots.stdout)
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut engine = Command::new(project_path("infra/local/docker-engine"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("infra/local/docker-engine can be started");
        let mut line = String::new();
        BufReader::new(engine.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("its output can be read");
        let Some(pid) = line.trim_end().strip_prefix("ready ") else {
            panic!(
                "Docker does not work on this machine, so nothing can be said about the image; see the messages above"
            )
        };
        let docker = Self {
            _engine: engine,
            pid: pid.to_owned(),
            roots,
        };
        // What Docker Hub has under this name.
        docker.import("base", "debian:trixie-slim");
        docker
    }

    pub(crate) fn root(&self, name: &str) -> &Path {
        Path::new(
            self.roots
                .get(name)
                .unwrap_or_else(|| panic!("infra/local/setup --docker names no {name}")),
        )
    }

    /// What goes before `docker` on a command line.
    pub(crate) fn client(&self) -> [&str; 5] {
        ["nsenter", "--target", &self.pid, "--mount", "--"]
    }

    /// `docker ARGUMENTS`, not yet started.
    pub(crate) fn command<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.on_machine("docker");
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        command
    }

    /// A program of the Debian that the engine runs on, not yet started. What it writes there goes with the engine.
    pub(crate) fn on_machine(&self, program: &str) -> Command {
        let [nsenter, rest @ ..] = self.client();
        let mut command = Command::new(nsenter);
        command.args(rest).arg(program);
        command
    }

    /// What a command that must succeed printed.
    #[track_caller]
    pub(crate) fn ok<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        succeed(&mut self.command(arguments))
    }

    /// The image as a user builds it, with this machine's way to Debian.
    #[track_caller]
    pub(crate) fn build_image(&self, tag: &str, options: &[&str]) {
        let client = format!("{} docker", self.client().join(" "));
        let mut command = Command::new(project_path("infra/image/build"));
        command
            .env("DOCKER", client)
            .env("REPRIEVE_BINARY", env!("CARGO_BIN_EXE_reprieve"))
            .args(["--tag", tag, "--network", "host"])
            .arg("--build-arg")
            .arg(format!("DEBIAN_MIRROR={}", self.root("mirror").display()))
            .args(options);
        succeed(&mut command);
    }

    /// An image of the files below a root file system of `infra/local/setup`.
    #[track_caller]
    pub(crate) fn import(&self, root: &str, tag: &str) {
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(self.root(root))
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar can be started");
        let stream = tar.stdout.take().expect("it is piped");
        succeed(self.command(["import", "-", tag]).stdin(stream));
        assert!(tar.wait().expect("it is ours").success());
    }

    /// An image by a Dockerfile and files beside it.
    #[track_caller]
    pub(crate) fn build(&self, tag: &str, dockerfile: &str, files: &[(&str, PathBuf)]) {
        let context = tempfile::tempdir().expect("a temporary directory can be made");
        std::fs::write(context.path().join("Dockerfile"), dockerfile).expect("it is ours");
        for (name, from) in files {
            std::fs::copy(from, context.path().join(name)).expect("the test names files");
        }
        let tar = Command::new("tar")
            .arg("-C")
            .arg(context.path())
            .args(["-c", "."])
            .output()
            .expect("tar can be started");
        let mut build = self.command(["build", "--network", "host", "--tag", tag, "-"]);
        let mut build = build
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter (util-linux) can be started");
        let mut input = build.stdin.take().expect("it is piped");
        input.write_all(&tar.stdout).expect("docker reads it");
        drop(input);
        let output = build.wait_with_output().expect("it is ours");
        assert!(
            output.status.success(),
            "docker build failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Starts a container with what the documents ask for, a name, a volume for snapshots and further options.
    #[track_caller]
    pub(crate) fn run(&'static self, name: &str, options: &[&str], image: &[&str]) -> Container {
        let documented = [
            "--cap-add=CHECKPOINT_RESTORE",
            "--cap-add=SYS_PTRACE",
            "--security-opt=seccomp=unconfined",
        ];
        self.run_with(name, &[&documented, options].concat(), image)
    }

    /// The same with nothing but these options.
    #[track_caller]
    pub(crate) fn run_with(
        &'static self,
        name: &str,
        options: &[&str],
        image: &[&str],
    ) -> Container {
        let name = format!("{name}-{}", next());
        let start = ["run", "--detach", "--name", &name];
        let has_network = options.iter().any(|option| option.starts_with("--network"));
        let network: &[&str] = if has_network {
            &[]
        } else {
            &["--network=none"]
        };
        self.ok(start.iter().chain(network).chain(options).chain(image));
        Container { docker: self, name }
    }

    /// A name for a volume that nothing else uses.
    pub(crate) fn volume(&self) -> String {
        let name = format!("snapshots-{}", next());
        self.ok(["volume", "create", &name]);
        name
    }
}

fn next() -> u32 {
    static MADE: Mutex<u32> = Mutex::new(0);
    let mut made = MADE.lock().expect("nobody panics while holding it");
    *made += 1;
    *made
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program can be started");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A container of this engine; removed when dropped.
pub(crate) struct Container {
    docker: &'static Docker,
    pub(crate) name: String,
}

impl Container {
    /// All that was written to stdout since the container was made, as `docker logs` has it.
    pub(crate) fn stdout(&self) -> String {
        let output = self.docker.command(["logs", &self.name]).output();
        String::from_utf8_lossy(&output.expect("nsenter can be started").stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        let output = self.docker.command(["logs", &self.name]).output();
        String::from_utf8_lossy(&output.expect("nsenter can be started").stderr).into_owned()
    }

    #[track_caller]
    pub(crate) fn wait_for_line(&self, line: &str) {
        let found = wait_for(LIMIT, &format!("{line:?} of {}", self.name), || {
            // Looked at first: what it said before it ended is in the log by then.
            let is_running = self.is_running();
            let found = self.stdout().lines().any(|found| found == line);
            (found || !is_running).then_some(found)
        });
        assert!(found, "{} ended:\n{}", self.name, self.stderr());
    }

    pub(crate) fn is_running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    #[track_caller]
    pub(crate) fn inspect(&self, format: &str) -> String {
        let text = self.docker.ok(["inspect", "--format", format, &self.name]);
        text.trim_end().to_owned()
    }

    /// `docker stop` without options, and the code it ended with.
    #[track_caller]
    pub(crate) fn stop(&self) -> i32 {
        self.docker.ok(["stop", &self.name]);
        self.exit_code()
    }

    #[track_caller]
    pub(crate) fn start(&self) {
        self.docker.ok(["start", &self.name]);
    }

    /// The code, once it ended.
    #[track_caller]
    pub(crate) fn exit_code(&self) -> i32 {
        let code = self.docker.ok(["wait", &self.name]);
        code.trim_end().parse().expect("docker prints a number")
    }

    #[track_caller]
    pub(crate) fn exec<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let mut command = self.docker.command(["exec", &self.name]);
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        succeed(&mut command)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- container {}, its stderr:\n{}",
                self.name,
                self.stderr()
            );
        }
        let removed = self.docker.command(["rm", "--force", &self.name]).output();
        // A failure to remove must not hide the failure of a test, and the engine removes all of them at its end.
        drop(removed);
    }
}

/// Docker itself takes a second for some steps, on processors that are shared.
const LIMIT: Duration = Duration::from_secs(60);
