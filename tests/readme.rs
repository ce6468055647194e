//! The documents say what the code does: command lines are parsed or run as written, and every exit code, metric, flag,
//! message and link in them exists. What the README shows of the demo is what the demo prints.
//!
//! Blocks are marked with a comment in front of them, which readers of the rendered page do not see.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Exit, Host, LIMIT, Lookalike, project_path};
use reprieve::cli::{self, Invocation};
use reprieve::control::protocol;
use reprieve::failure::ExitCode;
use reprieve::metrics;
use reprieve::settings::Environment;
use reprieve_core::capacity;

/// Every document, by its path in the project.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for directory in ["", "docs"] {
        for entry in fs::read_dir(project_path(directory)).expect("the project is here") {
            let name = entry.expect("the project is here").file_name();
            let path = Path::new(directory).join(name);
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(project_path(&path.to_string_lossy()));
                found.insert(path, text.expect("a document is text"));
            }
        }
    }
    assert!(found.len() > 10, "{:?}", found.keys());
    found
}

fn document(name: &str) -> String {
    fs::read_to_string(project_path(name)).expect("the document is there")
}

/// The fenced blocks behind a comment that begins with `mark`.
fn blocks(text: &str, mark: &str) -> Vec<String> {
    let comment = format!("<!-- {mark}");
    let found: Vec<String> = text
        .split(&comment)
        .skip(1)
        .map(|rest| {
            let (_, fenced) = rest.split_once("```").expect("a block follows the mark");
            let (_, body) = fenced.split_once('\n').expect("the block has lines");
            body.split("```").next().unwrap_or_default().to_owned()
        })
        .collect();
    assert!(!found.is_empty(), "no block is marked {mark:?}");
    found
}

/// The commands of a block: lines, with continued ones joined, in words. The documents quote nothing.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

struct Variables(Vec<(OsString, OsString)>);

impl Environment for Variables {
    fn variables(&self) -> Vec<(OsString, OsString)> {
        self.0.clone()
    }
}

/// What a documented line, with variables in front or not, asks for.
fn parsed(line: &[String]) -> Invocation {
    let variables = line.iter().map_while(|word| {
        let (name, value) = word.split_once('=')?;
        name.starts_with("REPRIEVE_")
            .then(|| (name.into(), value.into()))
    });
    let variables: Vec<(OsString, OsString)> = variables.collect();
    let words = line.iter().skip(variables.len()).map(OsString::from);
    cli::parse(words, &Variables(variables)).unwrap_or_else(|failure| panic!("{line:?}: {failure}"))
}

#[test]
fn documented_command_lines_are_valid() {
    let mut seen = 0;
    for (path, text) in documents() {
        for block in text.split("```sh\n").skip(1) {
            for line in commands(block.split("```").next().unwrap_or_default()) {
                let word = |word: &String| word != "reprieve" && !word.starts_with("REPRIEVE_");
                if line.iter().position(word) == Some(0) || !line.contains(&"reprieve".into()) {
                    continue;
                }
                assert!(
                    !matches!(parsed(&line), Invocation::Print(_)),
                    "{}: {line:?}",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 7, "only {seen} command lines were found");
}

#[test]
fn the_readmes_commands_run_as_written() {
    let readme = document("README.md");
    let [run, inside] = &blocks(&readme, "run as written")[..] else {
        panic!("the README has another number of blocks that are run")
    };
    let [run] = &commands(run)[..] else {
        panic!("{run:?}")
    };
    let store = tempfile::tempdir().expect("a temporary directory can be made");
    let host = |name: &str| {
        Host::builder(name)
            .bind(store.path(), "/mnt/snapshots")
            .bind_read_only(project_path("tests/apps/ticker.py"), "/train.py")
            .args(run.clone())
            .start()
    };
    let first = host("first");
    first.stdout().wait_for_line("a line", LIMIT, |_| true);
    for line in commands(inside) {
        let ran = first.exec(&line);
        assert_eq!(ran.code, 0, "{line:?}: {}{}", ran.stdout, ran.stderr);
    }
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait_exit(LIMIT), Exit::Code(75));
    first.destroy();
    let second = host("second");
    second.stderr().wait_for_line("a resume", LIMIT, |line| {
        line.contains("the job is resumed")
    });
}

/// What leads a program to a look-alike of AWS instead of AWS.
fn beside(server: &Lookalike) -> [(&'static str, &str); 6] {
    [
        ("AWS_ENDPOINT_URL", &server.url),
        ("REPRIEVE_S3_ENDPOINT", &server.url),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "AKIDFORTESTS"),
        ("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
}

/// Runs a documented line on this machine, which must succeed, and returns what it says.
#[track_caller]
fn run_from(directory: &Path, variables: &[(&str, &str)], line: &[String]) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_reprieve"))
        .args(&line[1..])
        .envs(variables.iter().copied())
        .current_dir(directory)
        .output()
        .expect("the binary was built");
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(ran.status.success(), "{line:?}: {said}");
    said
}

#[test]
fn the_commands_through_a_queue_run_as_written() {
    let block = blocks(&document("docs/commands.md"), "run with a look-alike").remove(0);
    let [checkpoint, status] = &commands(&block)[..] else {
        panic!("{block}")
    };
    let value = |flag: &str| {
        let pairs: Vec<&[String]> = [&checkpoint[..], &status[..]]
            .into_iter()
            .flat_map(|line| line.windows(2))
            .collect();
        let pair = pairs.into_iter().find(|pair| pair[0] == flag);
        pair.unwrap_or_else(|| panic!("{flag} is not in {block}"))[1].clone()
    };
    let server = Lookalike::start();
    server.make_bucket("my-bucket");
    let there = Lookalike::at(&server.url, "eu-central-1");
    for flag in ["--queue-url", "--reply-queue"] {
        let url = value(flag);
        let (_, name) = url.rsplit_once('/').expect("it has a name");
        there.make_queue(name);
    }
    let mut settings = vec!["--sources".to_owned(), "sqs".to_owned()];
    settings.extend(["--queue", "shared", "--term-grace", "60s"].map(str::to_owned));
    for flag in ["--store", "--job", "--queue-url", "--reply-queue"] {
        settings.extend([flag.to_owned(), value(flag)]);
    }
    let variables = beside(&server);
    let host = Host::builder(&value("--worker")).share_net();
    let host = variables
        .iter()
        .fold(host, |host, (name, value)| host.env(*name, *value))
        .reprieve(settings, ["python3", "/apps/ticker.py"].map(str::to_owned))
        .start();
    host.stdout().wait_for_line("a line", LIMIT, |_| true);
    host.stderr().wait_for_line("the queue", LIMIT, |line| {
        line.contains("a source of notices works")
    });
    let here = Path::new("/");
    run_from(here, &variables, checkpoint);
    host.stderr().wait_for_line("the snapshot", LIMIT, |line| {
        line.contains("checkpoint is durable")
    });
    let said = run_from(here, &variables, status);
    assert!(said.contains("running"), "{said}");
    let listed = ["reprieve", "snapshots", "--store", &value("--store")].map(str::to_owned);
    let listed = [&listed[..], &["--job".to_owned(), value("--job")]].concat();
    harness::wait_until(LIMIT, "the tag", || {
        run_from(here, &variables, &listed).contains(&value("--tag"))
    });
}

/// The first `run` with a bucket, and every command about it: all have the same store and job.
#[test]
fn the_commands_about_a_bucket_run_as_written() {
    const MARK: &str = "run with a look-alike of S3";
    let readme = document("README.md");
    let run = commands(&blocks(&readme, "checked: these are valid")[0]).remove(0);
    let [doctor, operator] = &blocks(&readme, MARK)[..] else {
        panic!("the README has another number of blocks about a bucket")
    };
    let server = Lookalike::start();
    server.make_bucket("my-bucket");
    let variables = beside(&server);
    let host = Host::builder("host").share_net();
    let host = host.bind_read_only(project_path("tests/apps/ticker.py"), "/train.py");
    let host = variables
        .iter()
        .fold(host, |host, (name, value)| host.env(*name, *value))
        .env("REPRIEVE_SOURCES", "none")
        .args(run)
        .start();
    host.stdout().wait_for_line("a line", LIMIT, |_| true);
    for line in commands(doctor) {
        let ran = host.exec(&line);
        assert_eq!(ran.code, 0, "{line:?}: {}{}", ran.stdout, ran.stderr);
    }
    // The documents speak of the twelfth snapshot.
    for _ in 0..12 {
        let ran = host.exec(["reprieve", "checkpoint", "--leave-running"]);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    }
    let elsewhere = tempfile::tempdir().expect("a temporary directory can be made");
    let runs = |line: &[String]| run_from(elsewhere.path(), &variables, line);
    let mut told = String::new();
    for line in commands(operator) {
        told += &runs(&line);
    }
    assert!(elsewhere.path().join("images/inventory.img").exists());
    for wanted in ["before-the-merge", "python3", "what-if", "running"] {
        assert!(told.contains(wanted), "{wanted:?} is not in {told}");
    }
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    for line in commands(&blocks(&document("docs/reports.md"), MARK)[0]) {
        runs(&line);
    }
}

#[test]
fn the_documented_container_has_what_the_test_hosts_have() {
    let readme = document("README.md");
    let block = blocks(&readme, "checked: the capabilities").remove(0);
    let [docker] = &commands(&block)[..] else {
        panic!("{block}")
    };
    let values = |flag: &str| -> BTreeSet<&str> {
        let pairs = docker.windows(2).filter(|pair| pair[0] == flag);
        pairs.map(|pair| pair[1].as_str()).collect()
    };
    let bundle = document("tests/harness/bundle.rs");
    let (_, ours) = bundle
        .split_once("REPRIEVE_CAPABILITIES: [&str; 2] = [")
        .expect("the harness lists them");
    let ours: BTreeSet<&str> = ours
        .split(']')
        .next()
        .unwrap_or_default()
        .split('"')
        .filter_map(|word| word.strip_prefix("CAP_"))
        .collect();
    assert_eq!(values("--cap-add"), ours);
    // The demo must not get by with more.
    let demo = document("infra/local/demo");
    let demo = demo
        .split("CAPABILITIES = \"\"\"")
        .nth(1)
        .unwrap_or_default();
    let demo = demo.split("\"\"\"").next().unwrap_or_default();
    assert_eq!(demo.split_whitespace().count(), 14 + ours.len(), "{demo}");
    let variables = values("--env")
        .into_iter()
        .map(str::to_owned)
        .chain(["reprieve", "run", "--", "app"].map(str::to_owned));
    let Invocation::Run(settings, _) = parsed(&variables.collect::<Vec<_>>()) else {
        panic!("it is a run")
    };
    let stop: BTreeSet<String> = [format!("{}", settings.term_grace.as_secs())].into();
    let stop: BTreeSet<&str> = stop.iter().map(String::as_str).collect();
    assert_eq!(
        values("--stop-timeout"),
        stop,
        "both sides' grace is the same"
    );
}

#[test]
fn getting_started_shows_what_runs() {
    let text = document("docs/getting-started.md");
    let docker = blocks(&document("docs/docker.md"), "run as written").remove(0);
    assert_eq!(blocks(&text, "the same as in docker.md"), [docker]);

    let pod = blocks(&text, "checked: settings, capabilities and grace").remove(0);
    let value_of = |name: &str| -> String {
        let (_, rest) = pod.split_once(name).expect(name);
        let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric());
        words
            .find(|word| !word.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    let variables = pod.lines().filter_map(|line| {
        let (name, value) = line
            .trim()
            .strip_prefix("- { name: ")?
            .split_once(", value: \"")?;
        Some(format!("{name}={}", value.trim_end_matches("\" }")))
    });
    let words = ["reprieve", "run", "--", "app"].map(str::to_owned);
    let line: Vec<String> = variables.chain(words).collect();
    assert_eq!(line.len(), 3 + 4, "{line:?}");
    let Invocation::Run(settings, _) = parsed(&line) else {
        panic!("it is a run")
    };
    assert_eq!(
        value_of("terminationGracePeriodSeconds"),
        settings.term_grace.as_secs().to_string(),
        "both sides' grace is the same"
    );
    let (_, added) = pod.split_once("add: [").expect("it adds capabilities");
    let added = added.split(']').next().unwrap_or_default().replace('"', "");
    assert_eq!(added, "CHECKPOINT_RESTORE, SYS_PTRACE");
    assert_eq!(value_of("seccompProfile: { type"), "Unconfined");
}

#[test]
fn documented_exit_codes_exist_with_their_meaning() {
    let readme = document("README.md");
    let (_, table) = readme.split_once("### Exit codes").expect("the section");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let mut listed = BTreeSet::new();
    for row in rows.take_while(|row| !row.is_empty()).skip(1) {
        let cell = row.split('|').nth(1).unwrap_or_default();
        listed.extend(cell.split(',').filter_map(|n| n.trim().parse::<u8>().ok()));
    }
    let runs = ExitCode::ALL
        .iter()
        .filter(|code| code.commands().split(", ").any(|command| command == "run"))
        .chain([&ExitCode::SettingsInvalid]);
    let runs: BTreeSet<u8> = runs.map(|code| code.number()).collect();
    assert_eq!(listed, runs);
    let troubleshooting = document("docs/troubleshooting.md");
    for code in ExitCode::ALL {
        let number = code.number().to_string();
        assert!(
            code == &ExitCode::Checkpointed || troubleshooting.contains(&number),
            "{code} is not in docs/troubleshooting.md"
        );
    }
}

/// Names in documents that look like metrics and are none.
const NO_METRICS: &[&str] = &[
    "reprieve_core",
    "reprieve_hooks",
    "reprieve_bin",
    "reprieve_job",
];

#[test]
fn documented_metrics_and_flags_exist() {
    let metrics: BTreeSet<&str> = metrics::TABLE.iter().map(|metric| metric.name).collect();
    let definition = cli::definition();
    let commands = definition.get_subcommands().chain([&definition]);
    let flags: BTreeSet<String> = commands
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
        .collect();
    for (path, text) in documents() {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
        for word in words {
            let is_metric = word.starts_with("reprieve_") && !NO_METRICS.contains(&word);
            assert!(
                !is_metric || metrics.contains(word),
                "{}: there is no metric {word}",
                path.display()
            );
        }
        // Prose names a flag as code that begins with it; other programs' flags stand behind their program.
        for code in text.split('`').skip(1).step_by(2) {
            let flag = code.split_whitespace().next().unwrap_or_default();
            let others = [
                "--cap-add",
                "--security-opt",
                "--privileged",
                "--init",
                "--stop-timeout",
                "--innodb-use-native-aio=0",
            ];
            assert!(
                !flag.starts_with("--")
                    || flag == "--"
                    || flags.contains(flag)
                    || others.contains(&flag),
                "{}: there is no flag {flag}",
                path.display()
            );
        }
    }
}

/// The table of docs/capacity.md, by the formula that stands above it.
fn capacity_table() -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mut table = String::from(
        "| Network, Gbit/s | 30 s, all new | 30 s, a tenth new | 120 s, all new | 120 s, a tenth new |\n|---|---|---|---|---|\n",
    );
    for gigabits in [0.5, 1.0, 2.5, 5.0, 10.0, 25.0] {
        let cell = |notice_ms, new| {
            let facts = capacity::Facts {
                notice_ms,
                margin_ms: 1_000,
                look: 800.0 * MIB,
                upload: gigabits * 1e9 / 8.0,
                new,
                shrinks_to: 1.0,
            };
            let largest = capacity::largest(&facts).expect("there is time");
            format!("{:.1}", largest / 1024.0 / MIB)
        };
        let cells = [(30_000, 1.0), (30_000, 0.1), (120_000, 1.0), (120_000, 0.1)]
            .map(|(notice_ms, new)| cell(notice_ms, new));
        table += &format!("| {gigabits} | {} |\n", cells.join(" | "));
    }
    table
}

#[test]
fn the_table_of_what_fits_is_the_formulas() {
    const BEGIN: &str = "<!-- computed by tests/readme.rs -->\n";
    const END: &str = "<!-- end -->";
    let text = document("docs/capacity.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table has a place");
    let (table, after) = rest.split_once(END).expect("the table has an end");
    let computed = format!("\n{}\n", capacity_table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{before}{BEGIN}{computed}{END}{after}");
        fs::write(project_path("docs/capacity.md"), text).expect("the document can be written");
        return;
    }
    assert_eq!(
        table, computed,
        "run: UPDATE_DOCS=1 cargo test -p reprieve --test readme the_table"
    );
}

#[test]
fn documented_protocol_lines_are_the_protocols() {
    let events = document("docs/events.md");
    for block in blocks(&events, "checked: lines of the protocol") {
        for line in block.lines() {
            let written = if line.contains("\"request\"") {
                protocol::Request::parse(line.as_bytes()).map(|request| request.to_line())
            } else {
                protocol::Answer::parse(line.as_bytes()).map(|answer| answer.to_line())
            };
            let written = written.unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(
                written.trim_end(),
                line,
                "fields are missing or in another order"
            );
        }
    }
}

#[test]
fn relative_links_resolve() {
    let documents = documents();
    let anchors = |path: &Path| -> BTreeSet<String> {
        let text = documents.get(path).map(String::as_str).unwrap_or_default();
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let words = line.trim_start_matches('#').trim().to_lowercase();
                let kept = words
                    .chars()
                    .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect()
            })
            .collect()
    };
    for (path, text) in &documents {
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let joined = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            let plain = plain(&joined);
            assert!(
                project_path(&plain.to_string_lossy()).exists(),
                "{}: nothing is at {target}",
                path.display()
            );
            assert!(
                anchor.is_empty() || anchors(&plain).contains(anchor),
                "{}: no heading for {target}",
                path.display()
            );
        }
    }
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

// ---- Messages

fn all_sources() -> String {
    let parts = ["worker/src", "worker/core/src", "hooks/src"];
    parts.map(sources).concat()
}

/// All of the worker's code, with string literals that go on in the next line joined.
fn sources(directory: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(project_path(directory)).expect("the sources are here") {
        let path = entry.expect("the sources are here").path();
        if path.is_dir() {
            let inner = format!(
                "{directory}/{}",
                path.file_name().unwrap_or_default().display()
            );
            text += &sources(&inner);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).expect("sources are text");
            // What tests say is no message.
            text += code.split("#[cfg(test)]").next().unwrap_or_default();
        }
    }
    let mut joined = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\\\n") {
        joined += before;
        rest = after.trim_start();
    }
    joined + rest
}

/// The fixed pieces of a message, longest first; what varies is `…` in documents and `{...}` in the code.
fn pieces(message: &str) -> Vec<String> {
    let mut fixed = vec![String::new()];
    let mut depth = 0;
    for c in message.chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                fixed.push(String::new());
            }
            '…' | '`' => fixed.push(String::new()),
            c if depth == 0 => fixed.last_mut().expect("never empty").push(c),
            _ => {}
        }
    }
    let mut fixed: Vec<String> = fixed.iter().map(|piece| piece.trim().to_owned()).collect();
    fixed.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    fixed
}

/// The first string literal in each pair of parentheses that begins with `before`.
fn literals<'a>(code: &'a str, before: &str) -> Vec<&'a str> {
    let found = code.split(before).skip(1).filter_map(|rest| {
        let (between, rest) = rest.split_once('"')?;
        if between.contains([')', ';', '{']) {
            return None;
        }
        let end = rest
            .char_indices()
            .find(|&(at, c)| c == '"' && !rest[..at].ends_with('\\'))?;
        Some(&rest[..end.0])
    });
    found.collect()
}

/// The last string literal among the arguments of each call that begins with `before`: the message of a log line.
fn last_literals<'a>(code: &'a str, before: &str) -> Vec<&'a str> {
    let last_of = |rest: &'a str| {
        let (mut depth, mut begin, mut last) = (1, None, None);
        let mut escaped = false;
        for (at, c) in rest.char_indices() {
            match (c, begin) {
                _ if escaped => escaped = false,
                ('\\', Some(_)) => escaped = true,
                ('"', None) => begin = Some(at + 1),
                ('"', Some(from)) => {
                    last = Some(&rest[from..at]);
                    begin = None;
                }
                ('(', None) => depth += 1,
                (')', None) => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        last
    };
    code.split(before).skip(1).filter_map(last_of).collect()
}

/// Messages that no user can meet, each with its reason.
const UNLISTED: &[(&str, &str)] = &[
    ("error: ", "taken off the complaints of the command line"),
    (
        "the line",
        "answers of the control protocol, in docs/events.md",
    ),
    (
        "the other side speaks version",
        "answers of the control protocol",
    ),
    (
        "no control socket: ",
        "listed by its beginning: what follows has backticks",
    ),
    (
        "its page hashes do not fit its index",
        "logged; the snapshot is then stored whole",
    ),
    (
        "it has no page hashes",
        "logged; the snapshot is then stored whole",
    ),
];

#[test]
fn every_message_has_its_line_in_troubleshooting() {
    let troubleshooting = document("docs/troubleshooting.md");
    let quoted: Vec<&str> = troubleshooting.split('`').skip(1).step_by(2).collect();
    let code = all_sources();
    let mut messages = literals(&code, "#[error(");
    for before in ["Failure::new(", "before(", "before_ready("] {
        messages.extend(literals(&code, before));
    }
    let logged = ["warn!(", "error!(", "dangers.push(", "tell_of_failure("]
        .map(|before| last_literals(&code, before))
        .concat();
    assert!(logged.len() > 80, "only {} were found", logged.len());
    messages.extend(logged);
    assert!(messages.len() > 60, "only {} were found", messages.len());
    let missing: Vec<&str> = messages
        .into_iter()
        .filter(|message| {
            let mut fixed = pieces(&message.replace("\\\"", "\""));
            // With only a colon or less that is fixed, the message is its cause's.
            fixed.retain(|piece| piece.len() > 3);
            let has_all = |quoted: &&str| fixed.iter().all(|piece| quoted.contains(piece.as_str()));
            !fixed.is_empty()
                && !quoted.iter().any(has_all)
                && !UNLISTED.iter().any(|(part, _)| message.contains(part))
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md lacks a line for: {missing:#?}"
    );
}

#[test]
fn every_quoted_message_is_in_the_code() {
    let code = all_sources().replace("\\\"", "\"");
    let check = |path: &str, cell: usize| {
        let text = document(path);
        let (mut seen, mut ours) = (0, false);
        for line in text.lines() {
            if line.starts_with("| ") && line.contains("Message") {
                ours = true;
                continue;
            }
            ours &= line.starts_with('|');
            if !ours {
                continue;
            }
            let quoted = line.split('|').nth(cell).unwrap_or_default();
            for message in quoted.split('`').skip(1).step_by(2) {
                seen += 1;
                for piece in pieces(message).iter().filter(|piece| piece.len() > 3) {
                    assert!(
                        code.contains(piece.as_str()) || FROM_OTHERS.contains(&piece.as_str()),
                        "{path}: no message has {piece:?}"
                    );
                }
            }
        }
        assert!(seen > 15, "{path}: only {seen} messages");
    };
    check("docs/troubleshooting.md", 1);
    check("docs/events.md", 1);
}

/// What the command line's library and S3 say.
const FROM_OTHERS: &[&str] = &["unexpected argument", "unrecognized subcommand", "403"];

// ---- The demo

#[test]
fn the_demo_finds_lost_repeated_and_altered_lines() {
    let ran = Command::new(project_path("infra/local/demo"))
        .arg("--self-test")
        .output()
        .expect("the demo is executable");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("found a lost line"), "{said}");
}

#[test]
fn the_demo_prints_what_the_readme_shows() {
    let ran = Command::new(project_path("infra/local/demo"))
        .arg(env!("CARGO_BIN_EXE_reprieve"))
        .output()
        .expect("the demo is executable");
    let told = String::from_utf8_lossy(&ran.stdout);
    let complaint = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{told}\n{complaint}");
    let shown = blocks(&document("README.md"), "transcript").remove(0);
    assert_eq!(without_numbers(&told), without_numbers(&shown));
}

/// The text with every number and the spaces in front of it replaced: both have the width of the moment.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    for c in text.trim().chars() {
        if c.is_ascii_digit() {
            let kept = plain.trim_end_matches([' ', '.', '#']).len();
            plain.truncate(kept);
            plain.push('#');
        } else {
            plain.push(c);
        }
    }
    plain
}
