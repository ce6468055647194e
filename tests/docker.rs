//! Docker's real engine: the image is built by the project's Dockerfile, started with the documented flags, stopped with
//! `docker stop`, and resumed by `docker start` and by other containers. Where Docker cannot work these fail, with
//! what the engine said.

mod harness;
mod job;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::{Docker, LIMIT, Lookalike, project_path, wait_until};
use job::{assert_counts, numbers};

/// Counts in a shell, with a child process for each line.
const COUNT: &[&str] = &[
    "sh",
    "-c",
    "i=0; while :; do i=$((i + 1)); echo \"line $i\"; sleep 0.05; done",
];

fn image<'a>(name: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&[name], command].concat()
}

/// The options by which a container finds its snapshots in a volume.
fn stored_in(volume: &str) -> [String; 4] {
    [
        "--volume".to_owned(),
        format!("{volume}:/snapshots"),
        "--env".to_owned(),
        "REPRIEVE_STORE=file:///snapshots".to_owned(),
    ]
}

fn words(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// What was counted goes on in `after` where it ended in `before`.
#[track_caller]
fn assert_goes_on(before: &str, after: &str) {
    assert_counts(&format!("{before}{after}"), None);
    assert!(!numbers(before).is_empty() && !numbers(after).is_empty());
}

#[test]
fn a_stopped_container_resumes_when_it_is_started_again_and_its_log_goes_on() {
    let docker = Docker::get();
    let volume = docker.volume();
    let container = docker.run(
        "again",
        &words(&stored_in(&volume)),
        &image("reprieve", COUNT),
    );
    container.wait_for_line("line 5");
    assert_eq!(container.stop(), 75, "{}", container.stderr());
    let before = container.stdout();
    container.start();
    let next = numbers(&before).len() + 5;
    container.wait_for_line(&format!("line {next}"));
    assert!(container.stderr().contains("the job is resumed"));
    // Stored a second time, and all of it is one log.
    assert_eq!(container.stop(), 75);
    assert!(container.stdout().starts_with(&before));
    assert_counts(&container.stdout(), None);
}

#[test]
fn a_second_container_goes_on_where_the_first_was_stopped() {
    let docker = Docker::get();
    let volume = docker.volume();
    let options = stored_in(&volume);
    let first = docker.run("first", &words(&options), &image("reprieve", COUNT));
    first.wait_for_line("line 5");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    drop(first);
    let second = docker.run("second", &words(&options), &image("reprieve", COUNT));
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
}

#[test]
fn a_user_without_privileges_is_stored_and_resumed_and_gains_none() {
    let docker = Docker::get();
    docker.build_image("reprieve:nonroot", &["--target", "nonroot"]);
    let volume = docker.volume();
    let options = stored_in(&volume);
    let first = docker.run(
        "nonroot",
        &words(&options),
        &image("reprieve:nonroot", COUNT),
    );
    first.wait_for_line("line 5");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    drop(first);
    let second = docker.run(
        "nonroot",
        &words(&options),
        &image("reprieve:nonroot", COUNT),
    );
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
    // The supervisor has what CRIU needs (CHECKPOINT_RESTORE, SYS_PTRACE, SETPCAP), the app has nothing.
    let of = |pid: &str| {
        let status = format!("/proc/{pid}/status");
        let text = second.exec(["grep", "-E", "^(Uid|CapPrm|CapEff|CapAmb)", &status]);
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let uid = "Uid: 65532 65532 65532 65532";
    assert_eq!(
        of("1"),
        format!("{uid} CapPrm: 0000010000080100 CapEff: 0000010000080100 CapAmb: 0000000000000000")
    );
    assert_eq!(
        of("301"),
        format!("{uid} CapPrm: 0000000000000000 CapEff: 0000000000000000 CapAmb: 0000000000000000")
    );
}

/// AWS Batch and ECS can neither add single capabilities nor lift the seccomp filter.
#[test]
fn a_privileged_container_is_stored_and_resumed() {
    let docker = Docker::get();
    let volume = docker.volume();
    let mut options = stored_in(&volume).to_vec();
    options.push("--privileged".to_owned());
    let run = |name: &str| docker.run_with(name, &words(&options), &image("reprieve", COUNT));
    let first = run("privileged");
    first.wait_for_line("line 5");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    drop(first);
    let second = run("privileged");
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
}

/// What the manifests for Kubernetes grant, as their schema check (infra/local/test-kubernetes) says it is written.
#[test]
fn the_security_context_for_kubernetes_is_enough_and_nothing_in_it_is_too_much() {
    let manifest = fs::read_to_string(project_path("infra/kubernetes/base/job/job.yaml"))
        .expect("it is there");
    let (_, context) = manifest
        .split_once("securityContext:")
        .expect("the container has one");
    let granted = ["CHECKPOINT_RESTORE", "SYS_PTRACE"];
    assert!(context.contains(&format!("add: [{}]", granted.join(", "))));
    assert!(context.contains("drop: [ALL]") && context.contains("type: Unconfined"));
    assert!(context.contains("allowPrivilegeEscalation: false"));
    let options = |granted: &[&str], volume: &str| {
        let mut options = vec![
            "--cap-drop=ALL".to_owned(),
            "--security-opt=no-new-privileges".to_owned(),
            "--security-opt=seccomp=unconfined".to_owned(),
        ];
        options.extend(granted.iter().map(|name| format!("--cap-add={name}")));
        options.extend(stored_in(volume));
        options
    };
    let docker = Docker::get();
    let volume = docker.volume();
    let run = |name: &str| {
        let image = image("reprieve", COUNT);
        docker.run_with(name, &words(&options(&granted, &volume)), &image)
    };
    let first = run("pod");
    first.wait_for_line("line 5");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    drop(first);
    let second = run("pod");
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
    drop(second);
    // Without the first the start is refused. The second is for where Yama restricts who may look into processes.
    let refused = docker.run_with(
        "pod",
        &words(&options(&granted[1..], &volume)),
        &image("reprieve", COUNT),
    );
    assert_eq!(refused.exit_code(), 170, "{}", refused.stderr());
    assert!(refused.stderr().contains("CHECKPOINT_RESTORE"));
}

#[test]
fn it_is_pid_1_without_an_init_and_reaps_and_passes_on_codes_and_signals() {
    let docker = Docker::get();
    let script = "trap 'echo told; exit 43' USR1; (sleep 0.2 & echo $! > /orphan); echo ready; while :; do sleep 0.05; done";
    let container = docker.run("init", &[], &["reprieve", "sh", "-c", script]);
    container.wait_for_line("ready");
    let first = container.exec(["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"]);
    assert!(first.starts_with("/reprieve/reprieve run -- sh"), "{first}");
    // The orphan becomes ours when its parent ends, and is gone for good when it has ended itself.
    wait_until(LIMIT, "the orphan is reaped", || {
        container.exec(["sh", "-c", "test -e /proc/$(cat /orphan) || echo gone"]) == "gone\n"
    });
    docker.ok(["kill", "--signal", "USR1", &container.name]);
    assert_eq!(container.exit_code(), 43);
    assert!(container.stdout().ends_with("told\n"));
}

#[test]
fn the_container_gets_healthy() {
    let docker = Docker::get();
    let volume = docker.volume();
    let mut options = stored_in(&volume).to_vec();
    options.push("--health-interval=1s".to_owned());
    let container = docker.run("health", &words(&options), &image("reprieve", COUNT));
    wait_until(2 * LIMIT, "the container is healthy", || {
        container.inspect("{{.State.Health.Status}}") == "healthy"
    });
}

#[test]
fn dockers_own_seccomp_profile_is_refused_with_what_to_do() {
    let docker = Docker::get();
    let ran = docker
        .command([
            "run",
            "--network=none",
            "--cap-add=CHECKPOINT_RESTORE",
            "--cap-add=SYS_PTRACE",
            "--env=REPRIEVE_STORE=file:///snapshots",
            "reprieve",
            "true",
        ])
        .output()
        .expect("nsenter can be started");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(170), "{said}");
    assert!(said.contains("--security-opt seccomp=unconfined"), "{said}");
}

#[test]
fn the_image_says_what_it_is_and_has_no_more_than_it_needs() {
    let docker = Docker::get();
    let inspect = |format: &str| docker.ok(["inspect", "--format", format, "reprieve"]);
    let labels = inspect("{{json .Config.Labels}}");
    for label in ["title", "source", "licenses", "version", "revision"] {
        let name = format!("\"org.opencontainers.image.{label}\":\"");
        assert!(labels.contains(&name), "{label}: {labels}");
    }
    assert!(
        labels.contains("version\":\"0.") && !labels.contains("unknown"),
        "{labels}"
    );
    assert_eq!(
        inspect("{{.Config.StopSignal}} {{.Architecture}}"),
        "SIGTERM amd64\n"
    );
    // What the build needed stayed in its stage: above the base there is one layer, of these files.
    let changed = [
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=sh",
        "reprieve",
        "-c",
    ];
    let script = "ls / /usr/local/bin /reprieve | grep reprieve; test ! -e /usr/sbin/criu; cat /etc/apt/sources.list.d/* 2>&1; \
                  du -s /reprieve/criu | cut -f1";
    let listed = docker.ok(changed.iter().copied().chain([script]));
    let size = listed
        .lines()
        .last()
        .and_then(|line| line.parse::<u32>().ok());
    assert!(
        size.is_some_and(|kib| kib < 16 * 1024),
        "CRIU is small: {listed}"
    );
    assert!(
        !listed.contains("deb "),
        "no source of packages is left: {listed}"
    );
    let sources = [
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=cat",
        "reprieve",
    ];
    let sources = docker.ok(sources
        .into_iter()
        .chain(["/reprieve/criu/licences/sources"]));
    assert!(sources.contains("criu 4."), "{sources}");
}

#[test]
fn the_documented_commands_run_as_written() {
    let docker = Docker::get();
    let documented = fs::read_to_string(project_path("docs/docker.md")).expect("it is there");
    let (_, marked) = documented
        .split_once("<!-- run as written by tests/docker.rs -->\n```sh\n")
        .expect("the document marks what is run");
    let (block, _) = marked.split_once("```").expect("the block ends");
    // The image is there; between the steps a reader looks at the log.
    let block = block.replace("make image\n", "");
    let block = block.replace("docker stop", "counted 3\ndocker stop");
    let block = block.replace("docker logs", "counted 30\ndocker logs");
    let client = docker.client().join(" ");
    let script = format!(
        "set -e\ndocker() {{ {client} docker \"$@\"; }}\n\
         counted() {{ until docker logs counter 2> /dev/null | grep -q \"line $1\"; do read -rt 0.1 || true; done; }}\n{block}"
    );
    let mut bash = Command::new("timeout");
    bash.args(["120", "bash", "-c", &script, "documented"]);
    let ran = bash.output().expect("bash can be started");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("the job is resumed"), "{said}");
    let log = String::from_utf8_lossy(&ran.stdout);
    let lines = log.lines().filter(|line| line.starts_with("line "));
    assert_counts(
        &lines.map(|line| format!("{line}\n")).collect::<String>(),
        None,
    );
    docker.ok(["rm", "--force", "counter"]);
}

/// An image with the two documented lines, on top of a user land, is evicted and resumed.
#[track_caller]
fn own_image_works(name: &str, root: &str, files: &[(&str, PathBuf)], extra: &str, app: &[&str]) {
    let docker = Docker::get();
    docker.import(root, &format!("own-{name}:base"));
    let documented = fs::read_to_string(project_path("docs/docker.md")).expect("it is there");
    let (_, block) = documented
        .split_once("```dockerfile\n")
        .expect("the document has the two lines");
    let lines: Vec<&str> = block.lines().take_while(|line| *line != "```").collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let tag = format!("own-{name}");
    let dockerfile = format!("FROM own-{name}:base\n{extra}\n{}\n", lines.join("\n"));
    docker.build(&tag, &dockerfile, files);

    let volume = docker.volume();
    let options = stored_in(&volume);
    let first = docker.run(name, &words(&options), &image(&tag, app));
    first.wait_for_line("line 3");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    drop(first);
    let second = docker.run(name, &words(&options), &image(&tag, app));
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
}

#[test]
fn an_own_image_with_an_older_c_library_works() {
    own_image_works("bookworm", "bookworm", &[], "", COUNT);
}

#[test]
fn an_own_image_of_nothing_but_busybox_works() {
    own_image_works("busybox", "empty", &[], "", COUNT);
}

#[test]
fn an_own_image_with_musl_works() {
    let built = tempfile::tempdir().expect("a temporary directory can be made");
    let counter = built.path().join("counter");
    let compiled = Command::new("musl-gcc")
        .arg("-o")
        .arg(&counter)
        .arg(project_path("tests/apps/counter.c"))
        .status()
        .expect("infra/local/setup --docker installed it");
    assert!(compiled.success());
    own_image_works(
        "musl",
        "musl",
        &[("counter", counter)],
        "COPY counter /counter",
        &["/counter"],
    );
}

#[test]
fn an_own_image_without_a_shell_works_whatever_it_preloads() {
    let code = "import itertools, time\nfor n in itertools.count(1): print('line', n, flush=True); time.sleep(0.05)";
    // A library of the image's own C library would not do for CRIU's.
    let preload = "ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libm.so.6 LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu";
    own_image_works(
        "distroless",
        "distroless",
        &[],
        preload,
        &["/usr/bin/python3", "-c", code],
    );
}

/// `docker compose` with one of the examples.
fn compose(example: &str, arguments: &[&str]) -> Command {
    let file = project_path("infra/image/examples").join(example);
    let file = fs::canonicalize(file).expect("the example exists");
    let start = ["compose", "-f", &file.to_string_lossy()].map(str::to_owned);
    let arguments = arguments.iter().map(|&argument| argument.to_owned());
    Docker::get().command(start.into_iter().chain(arguments))
}

#[track_caller]
fn compose_ok(example: &str, arguments: &[&str]) -> String {
    let output = compose(example, arguments)
        .output()
        .expect("nsenter can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn log_of(example: &str, service: &str) -> String {
    let log = compose_ok(example, &["logs", "--no-log-prefix", "--no-color", service]);
    // Compose clears each line of the terminal, also where there is none.
    let lines = log.lines().map(|line| line.trim_start_matches("\u{1b}[2K"));
    let lines = lines.filter(|line| line.starts_with("line "));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_first_example_is_stopped_and_started() {
    const EXAMPLE: &str = "first-contact.yaml";
    Docker::get();
    compose_ok(EXAMPLE, &["up", "--detach"]);
    wait_until(LIMIT, "the job counts", || {
        log_of(EXAMPLE, "job").contains("line 3\n")
    });
    compose_ok(EXAMPLE, &["stop"]);
    let before = log_of(EXAMPLE, "job");
    compose_ok(EXAMPLE, &["start"]);
    wait_until(LIMIT, "the job goes on", || {
        log_of(EXAMPLE, "job").len() > before.len()
    });
    assert_counts(&log_of(EXAMPLE, "job"), None);
    compose_ok(EXAMPLE, &["down", "--volumes", "--timeout", "1"]);
}

#[test]
fn three_jobs_on_one_host_each_resume_their_own() {
    const EXAMPLE: &str = "three-jobs.yaml";
    const JOBS: [&str; 3] = ["red", "green", "blue"];
    Docker::get();
    compose_ok(EXAMPLE, &["up", "--detach"]);
    for job in JOBS {
        wait_until(LIMIT, "each job counts", || {
            log_of(EXAMPLE, job).contains("line 3\n")
        });
    }
    compose_ok(EXAMPLE, &["stop"]);
    let before = JOBS.map(|job| log_of(EXAMPLE, job));
    compose_ok(EXAMPLE, &["up", "--detach", "--force-recreate"]);
    for (job, before) in JOBS.iter().zip(&before) {
        wait_until(LIMIT, "each job goes on", || {
            !log_of(EXAMPLE, job).is_empty()
        });
        assert_goes_on(before, &log_of(EXAMPLE, job));
    }
    compose_ok(EXAMPLE, &["down", "--volumes", "--timeout", "1"]);
}

#[test]
fn the_s3_example_stores_in_a_bucket_and_resumes_from_it() {
    let docker = Docker::get();
    let server = Lookalike::start();
    server.make_bucket("snapshots");
    let config = compose("s3.yaml", &["config", "--format", "json"])
        .output()
        .expect("nsenter can be started");
    assert!(
        String::from_utf8_lossy(&config.stderr).contains("such as s3://my-bucket/jobs"),
        "without an address it says what is missing"
    );
    let example = |arguments: &[&str]| {
        let mut command = compose("s3.yaml", arguments);
        command
            .env("STORE", "s3://snapshots/jobs")
            .env("S3_ENDPOINT", &server.url)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b");
        let output = command.output().expect("nsenter can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let config: serde_json::Value =
        serde_json::from_str(&example(&["config", "--format", "json"])).expect("it is JSON");
    let job = &config["services"]["job"];
    // This engine has no bridge, so the container is started from the example's values on the machine's network.
    let mut options = vec!["--network=host".to_owned()];
    for (name, value) in job["environment"].as_object().expect("it has variables") {
        options.push(format!(
            "--env={name}={}",
            value.as_str().unwrap_or_default()
        ));
    }
    let command: Vec<String> = job["command"]
        .as_array()
        .expect("it has a command")
        .iter()
        .map(|word| word.as_str().unwrap_or_default().replace("$$", "$"))
        .collect();
    let mut words_after: Vec<&str> = vec!["reprieve"];
    words_after.extend(command.iter().map(String::as_str));
    let first = docker.run("bucket", &words(&options), &words_after);
    first.wait_for_line("line 3");
    assert_eq!(first.stop(), 75, "{}", first.stderr());
    let before = first.stdout();
    assert!(
        server
            .keys("snapshots")
            .iter()
            .any(|key| key.starts_with("jobs/counter/manifests/"))
    );
    drop(first);
    let second = docker.run("bucket", &words(&options), &words_after);
    let next = numbers(&before).len() + 3;
    second.wait_for_line(&format!("line {next}"));
    assert_goes_on(&before, &second.stdout());
}
