//! Real apps of Debian and PyPI, each evicted under work and resumed on hosts with another address and another clock. What
//! became of each is the table of docs/apps.md.
//!
//! `make test` tries those that need little (`quick`). `make test-apps` tries all and writes the table; `APPS=redis,node`
//! tries those whose names contain one of these. An answer that is not the table's fails the test in both.
//!
//! A row says *yes* only if the app was stored under work, was resumed, lost nothing that it had acknowledged, came on by as much
//! as was asked of it, its own timers included, and found itself in order. In addition each trial compares what the checkup
//! (docs/checkup.md) says with what CRIU does, and sees that a checkpoint that fails, and one that leaves the job running, do not
//! disturb the app. These fail the test whatever the table says.

mod harness;
mod job;
mod trials;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::{Exit, Guest, Host, Rootfs, project_path};
use job::Store;
use serde_json::Value;
use trials::{APPS, App, Launch, Next, Progress, Service, Work};

/// What a container is given.
struct Profile {
    name: &'static str,
    capabilities: &'static [&'static str],
    options: &'static [&'static str],
    needs_root: bool,
}

const PROFILES: [Profile; 2] = [
    Profile {
        name: "minimal",
        capabilities: &[],
        options: &["--profile", "minimal"],
        needs_root: false,
    },
    Profile {
        name: "full",
        capabilities: &["CAP_SYS_ADMIN", "CAP_SYS_TIME"],
        options: &["--profile", "full"],
        needs_root: true,
    },
];

/// How many seconds the hosts of a trial have been up for longer than this machine, in their order.
const LATER: [u64; 3] = [50_000, 100_000, 150_000];
const EARLIER: [u64; 2] = [100_000, 0];

/// For one step of an app; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(25);

/// For a checkpoint or a restore of the largest one.
const LONG: Duration = Duration::from_secs(150);

/// At a checkpoint in which nothing is known to be in the way.
const ATTEMPTS: usize = 4;

/// Keeps a program in the windows of terminals busy.
const LOOP: &str = "while :; do sleep 0.05; echo $((++i)) > /data/t; mv /data/t /data/ticks; done";

// --- answers -------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No(String),
}

impl Answer {
    fn cell(&self) -> String {
        match self {
            Self::Yes => "yes".to_owned(),
            Self::No(why) => format!("no: {}", why.replace('|', "\\|")),
        }
    }
}

/// Why a trial is over.
#[derive(Debug)]
enum Fault {
    /// It is not stored, not resumed, or does not go on: a no.
    Not(String),
    /// It goes on and is not what it was, or somebody said what is not so: nothing that a table may say.
    Wrong(String),
}

type Tried<T> = Result<T, Fault>;

/// What is the matter in one line of a table.
fn in_short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(220) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

// --- one trial -----------------------------------------------------------------------------------------------------

struct Trial<'a> {
    app: &'a App,
    launch: &'a Launch,
    profile: &'a Profile,
    store: Store,
    volume: tempfile::TempDir,
    lanes: BTreeMap<u32, u64>,
    output: String,
}

impl<'a> Trial<'a> {
    fn new(app: &'a App, launch: &'a Launch, profile: &'a Profile) -> Self {
        let trial = Self {
            app,
            launch,
            profile,
            store: Store::new(),
            volume: tempfile::tempdir().expect("a temporary directory can be made"),
            lanes: BTreeMap::new(),
            output: String::new(),
        };
        let user = Some(launch.user);
        for directory in [trial.store.path(), trial.volume.path()] {
            chown(directory, user, user).expect("it is ours");
        }
        // Servers drop to users who have to come by here.
        fs::set_permissions(trial.volume.path(), fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        if !app.setup.is_empty() {
            let setup = trial.of_everything(Host::builder("setup"));
            let setup = setup.args(["bash", "-ec", app.setup]).start();
            let end = setup.wait_exit(LONG);
            assert_eq!(end, Exit::Code(0), "the setup of {}", app.name);
        }
        trial
    }

    /// What setup and hosts have in common.
    fn of_everything(&self, host: harness::Builder) -> harness::Builder {
        let rootfs = match all_are_asked_for() {
            true => Rootfs::Apps,
            false => Rootfs::Debian,
        };
        let host = host.rootfs(rootfs).bind(self.volume.path(), "/data");
        let host = host.env("LOOP", LOOP).env("PORT", self.port().to_string());
        let mut host = host.user(self.launch.user, self.launch.user);
        for (name, value) in self.launch.environment {
            host = host.env(*name, *value);
        }
        if self.launch.user != 0 {
            for capability in ["CAP_CHECKPOINT_RESTORE", "CAP_SYS_PTRACE", "CAP_SETPCAP"] {
                host = host.ambient_capability(capability);
            }
        }
        host
    }

    fn port(&self) -> u16 {
        match &self.app.work {
            Work::Serves(service) => service.port,
            Work::Ends { .. } => 0,
        }
    }

    fn host(&self, stage: usize, ahead: u64) -> Host {
        let options = ["--checkup-interval", "500ms", "--checkpoint-timeout", "3m"];
        let options = [&options[..], self.profile.options].concat();
        let app = ["bash", "-c", self.launch.command];
        let builder = self
            .store
            .host_with(&format!("host{stage}"), &options, &app);
        let address = format!("192.0.2.{stage}");
        let mut builder = self
            .of_everything(builder)
            .up_for_longer(ahead)
            .env("ADDRESS", &address)
            .env("STAGE", stage.to_string())
            // Where every user may make a socket.
            .env("REPRIEVE_CONTROL_SOCKET", "/tmp/control.sock");
        for capability in self.profile.capabilities {
            builder = builder.add_capability(*capability);
        }
        let host = builder.start();
        host.add_address(&format!("{address}/24"));
        host
    }

    /// Over as many hosts as there are clocks; Ok means yes.
    fn run(&mut self, clocks: &[u64]) -> Tried<()> {
        for (stage, ahead) in (1..).zip(clocks) {
            let host = self.host(stage, *ahead);
            let last = stage == clocks.len();
            let mut client = None;
            let went = self.on(&host, &mut client, stage, last);
            // What does not answer may not be there any more.
            let went = went.map_err(|fault| match fault {
                Fault::Not(what) if stage > 1 && !what.starts_with("not") => match crashed(&host) {
                    Some(end) => Fault::Not(end),
                    None => Fault::Not(what),
                },
                fault => fault,
            });
            if let Err(fault) = &went {
                eprintln!("    {fault:?}");
                tell(&host);
            }
            // Before the client: a relay that ends first leaves its process to nobody who waits for it.
            host.destroy();
            drop(client);
            went?;
        }
        Ok(())
    }

    fn on(
        &mut self,
        host: &Host,
        client: &mut Option<Client<'a>>,
        stage: usize,
        last: bool,
    ) -> Tried<()> {
        if stage > 1 {
            resumed(host)?;
        }
        if let Work::Serves(service) = &self.app.work {
            if stage == 1 {
                let wait = format!(
                    "until {{ {}; }} &> /dev/null; do sleep 0.2; done",
                    service.ready
                );
                script(host, "the app is not ready", &wait, LONG).map_err(wrong)?;
            }
            *client = Some(Client::start(host, service, &self.lanes));
        }
        // On the first host nothing has happened to it yet.
        let worked = self.work(host, client, stage, last);
        if stage == 1 {
            worked.map_err(wrong)?;
            self.check(host, client)?;
        } else {
            worked?;
        }
        if last {
            return Ok(());
        }
        self.evict(host)?;
        self.output += &host.stdout().text();
        // What was acknowledged until then counts.
        match client {
            Some(client) => client.read(&mut self.lanes),
            None => Ok(()),
        }
    }

    /// Sees that the app comes on, and that it is right.
    fn work(
        &mut self,
        host: &Host,
        client: &mut Option<Client<'_>>,
        stage: usize,
        last: bool,
    ) -> Tried<()> {
        match (&self.app.work, client) {
            (Work::Serves(service), Some(client)) => {
                client.works(&mut self.lanes)?;
                script(
                    host,
                    "the app finds itself out of order",
                    service.verify,
                    PATIENCE,
                )
                .map_err(wrong)
            }
            (Work::Ends { .. }, _) if last => {
                self.output += &ended(host)?;
                let expected = uninterrupted(self.app, self.launch);
                same(&expected, &self.output)
            }
            (Work::Ends { far_enough }, _) => progress(host, far_enough, stage),
            _ => unreachable!("a service has a client"),
        }
    }

    /// What the checkup says of the app is what CRIU does with it, and whatever that is, the app works on.
    fn check(&mut self, host: &Host, client: &mut Option<Client<'_>>) -> Tried<()> {
        let found = findings(host);
        let attempt = || {
            host.spawn([
                "reprieve",
                "checkpoint",
                "--leave-running",
                "--timeout",
                "120s",
            ])
            .wait(LONG)
        };
        let mut ran = attempt();
        // CRIU stumbles over things of a moment as well, such as a connection that nobody has accepted yet. An eviction is
        // tried again for as long as there is time, and so is this.
        for _ in 0..ATTEMPTS {
            if ran.code == 0 || !found.is_empty() {
                break;
            }
            eprintln!("    tried again after: {}", in_short(&ran.stderr));
            ran = attempt();
        }
        let not = match ran.code {
            0 => None,
            _ => Some(match kinds(host) {
                kinds if kinds.is_empty() => in_short(&ran.stderr),
                kinds => kinds,
            }),
        };
        if let Some(client) = client {
            let told = |fault| Fault::Wrong(format!("after a checkpoint ({not:?}): {fault:?}"));
            client.works(&mut self.lanes).map_err(told)?;
        }
        match (found.is_empty(), not) {
            (true, None) => Ok(()),
            (false, Some(not)) => Err(Fault::Not(not)),
            (true, Some(_)) => Err(Fault::Wrong(format!(
                "the checkup found nothing, and the checkpoint failed: {}",
                ran.stderr
            ))),
            (false, None) => Err(Fault::Wrong(format!(
                "the checkup found {found:?}, and the checkpoint did not fail"
            ))),
        }
    }

    fn evict(&self, host: &Host) -> Tried<()> {
        host.signal(libc::SIGTERM);
        // It is tried again until the time is over.
        if until(LONG, || (!host.is_running()).then_some(())).is_none() {
            let reason = reason(host, "checkpoint failed; the job runs on");
            return Err(Fault::Not(format!("not stored: {reason}")));
        }
        match host.wait_exit(PATIENCE) {
            Exit::Code(75) => Ok(()),
            end => Err(Fault::Wrong(format!("the supervisor ended with {end:?}"))),
        }
    }
}

fn wrong(fault: Fault) -> Fault {
    match fault {
        Fault::Not(what) | Fault::Wrong(what) => Fault::Wrong(what),
    }
}

/// None when the time is over.
fn until<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let found = attempt();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a script beside the job; `failing` says what it means if it fails.
fn script(host: &Host, failing: &str, text: &str, limit: Duration) -> Tried<()> {
    let seconds = limit.as_secs().to_string();
    let ran = host
        .spawn(["timeout", &seconds, "bash", "-c", text])
        .wait(limit + PATIENCE);
    match ran.code {
        0 => Ok(()),
        code => Err(Fault::Not(format!(
            "{failing} ({code}): {} {}",
            in_short(&ran.stdout),
            in_short(&ran.stderr)
        ))),
    }
}

/// How the job ended, if it did.
fn crashed(host: &Host) -> Option<String> {
    if host.is_running() {
        return None;
    }
    Some(match host.wait_exit(PATIENCE) {
        Exit::Code(code) => format!("it ends after the resume, with {code}"),
        Exit::Signal(signal) => format!("it ends after the resume, by signal {signal}"),
    })
}

fn resumed(host: &Host) -> Tried<()> {
    let is_resumed = || host.stderr().text().contains("the job is resumed");
    let over = until(LONG, || (is_resumed() || !host.is_running()).then_some(()));
    match over {
        Some(()) if is_resumed() => Ok(()),
        Some(()) => {
            // All of the log is there by then.
            host.wait_exit(PATIENCE);
            let reason = reason(host, "a snapshot is passed over");
            // What to do stands in the next row.
            let reason = reason
                .split(": put it on a volume")
                .next()
                .unwrap_or_default();
            Err(Fault::Not(format!("not resumed: {reason}")))
        }
        None => Err(Fault::Not("not resumed: it takes too long".to_owned())),
    }
}

/// The reason in the last line of the log that has this message.
fn reason(host: &Host, message: &str) -> String {
    let lines = host.stderr().lines();
    let line = lines.iter().rev().find(|line| line.contains(message));
    let line = line.and_then(|line| serde_json::from_str::<Value>(line).ok());
    let reason = line.and_then(|line| line["reason"].as_str().map(in_short));
    reason.unwrap_or_else(|| "nothing was said".to_owned())
}

/// What the looks at the job find. There are several in the time that is waited if they find nothing.
fn findings(host: &Host) -> Vec<Value> {
    const LOOKS: Duration = Duration::from_secs(2);
    let obstacles = || status(host)["obstacles"].as_array().cloned();
    until(LOOKS, || obstacles().filter(|found| !found.is_empty())).unwrap_or_default()
}

/// Nothing, where the app has ended.
fn status(host: &Host) -> Value {
    let ran = host.exec(["reprieve", "status", "--json"]);
    match ran.code {
        0 => serde_json::from_str(&ran.stdout).expect("it is JSON"),
        _ => Value::Null,
    }
}

/// What stands in the way, by the names that docs/checkup.md has for it.
fn kinds(host: &Host) -> String {
    let status = status(host);
    let obstacles = status["obstacles"].as_array().cloned().unwrap_or_default();
    let mut kinds: Vec<String> = obstacles
        .iter()
        .filter_map(|one| {
            one["reason"]
                .as_str()
                .map(|kind| format!("[`{kind}`](checkup.md)"))
        })
        .collect();
    kinds.dedup();
    kinds.join(", ")
}

/// For whoever wants to know more than the table says.
fn tell(host: &Host) {
    let lines = host.stderr().lines();
    for (left, line) in (0..lines.len()).rev().zip(&lines) {
        // What is bad, what the app said, and the end.
        let is_bad = ["warn", "error"]
            .iter()
            .any(|level| line.contains(&format!("\"level\":\"{level}\"")));
        if is_bad || !line.starts_with('{') || left < 4 {
            eprintln!("    | {line}");
        }
    }
    for directory in ["/run/reprieve", "/dev/shm/reprieve"] {
        for log in ["last-failed-dump.log", "last-failed-restore.log"] {
            let text = fs::read_to_string(host.path(directory).join(log)).unwrap_or_default();
            for line in text.lines().filter(|line| line.contains("Error")) {
                eprintln!("    {log}: {line}");
            }
        }
    }
}

// --- apps that serve -----------------------------------------------------------------------------------------------

/// Load from beside the job, as long as the host lives.
struct Client<'a> {
    service: &'a Service,
    guest: Guest,
    /// Lines that were read.
    read: usize,
    /// The lanes of which one step may have been on its way when the host before was taken. It may be done at the resume, or
    /// later: who waits for a lock waits on.
    on_their_way: BTreeSet<u32>,
    /// How far each lane came since it was last waited for.
    came: BTreeMap<u32, u64>,
    first_tick: Option<u64>,
    last_tick: u64,
}

impl<'a> Client<'a> {
    fn start(host: &Host, service: &'a Service, lanes: &BTreeMap<u32, u64>) -> Self {
        let command = format!(
            "exec python3 /apps/real/client.py {} $ADDRESS {} {}",
            service.client, service.port, service.lanes
        );
        Self {
            service,
            guest: host.spawn(["bash", "-c", &command]),
            read: 0,
            on_their_way: lanes.keys().copied().collect(),
            came: BTreeMap::new(),
            first_tick: None,
            last_tick: 0,
        }
    }

    /// Waits until each lane came on by so much, and the app's own clock as well.
    fn works(&mut self, lanes: &mut BTreeMap<u32, u64>) -> Tried<()> {
        self.came.clear();
        self.first_tick = None;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // What came before the client ended counts.
            let said = self.guest.stderr.text();
            self.read(lanes)?;
            let all = (0..self.service.lanes).all(|lane| {
                self.came
                    .get(&lane)
                    .is_some_and(|came| *came >= self.service.counts)
            });
            let ticks = self.first_tick.is_some_and(|first| self.last_tick > first);
            if all && ticks {
                return Ok(());
            }
            if said.contains("lane ") || Instant::now() > deadline {
                let what = match (said.contains("lane "), all) {
                    (true, _) => format!("it does not answer: {}", in_short(&said)),
                    (false, false) => format!("it stands still: {:?}", self.came),
                    (false, true) => "it answers, and its timers stand still".to_owned(),
                };
                return Err(Fault::Not(what));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes in what was acknowledged.
    fn read(&mut self, lanes: &mut BTreeMap<u32, u64>) -> Tried<()> {
        let lines = self.guest.stdout.lines();
        for line in &lines[self.read..] {
            let numbers: Vec<u64> = line
                .split(' ')
                .filter_map(|word| word.parse().ok())
                .collect();
            let [lane, count, ticks] = numbers[..] else {
                return Err(Fault::Wrong(format!("the client said {line:?}")));
            };
            let lane = u32::try_from(lane).expect("lanes are few");
            let follows = match (lanes.get(&lane), self.service.next) {
                (None, _) => true,
                (Some(last), Next::Higher) => count > *last,
                (Some(last), Next::Number) => {
                    count == last + 1 || count == last + 2 && self.on_their_way.remove(&lane)
                }
            };
            if !follows {
                let last = lanes[&lane];
                return Err(Fault::Wrong(format!("lane {lane}: {count} follows {last}")));
            }
            lanes.insert(lane, count);
            *self.came.entry(lane).or_default() += 1;
            self.first_tick.get_or_insert(ticks);
            self.last_tick = ticks;
        }
        self.read = lines.len();
        Ok(())
    }
}

// --- apps that end -------------------------------------------------------------------------------------------------

fn progress(host: &Host, far_enough: &Progress, stage: usize) -> Tried<()> {
    // On the first host it may have much to make ready.
    let limit = if stage == 1 { LONG } else { PATIENCE };
    let far = match far_enough {
        Progress::Lines(lines) => {
            let enough = || host.stdout().lines().len() >= *lines || !host.is_running();
            until(limit, || enough().then_some(()))
        }
        Progress::Script(condition) => {
            let wait = format!("until {condition}; do sleep 0.05; done 2> /dev/null");
            script(host, "", &wait, PATIENCE).ok()
        }
    };
    match far {
        Some(()) if host.is_running() => Ok(()),
        Some(()) => Err(Fault::Wrong(format!("it ended early, on host {stage}"))),
        None => Err(Fault::Not("it stands still".to_owned())),
    }
}

/// What it wrote on this host, where it ends.
fn ended(host: &Host) -> Tried<String> {
    let limit = PATIENCE * 3;
    if until(limit, || (!host.is_running()).then_some(())).is_none() {
        return Err(Fault::Not("it does not end".to_owned()));
    }
    match host.wait_exit(PATIENCE) {
        Exit::Code(0) => Ok(host.stdout().text()),
        end => Err(Fault::Wrong(format!("it ended with {end:?}"))),
    }
}

/// What it writes when nobody disturbs it: the same each time, so once is enough.
fn uninterrupted(app: &App, launch: &Launch) -> String {
    static KNOWN: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().expect("no holder of this lock panics");
    let key = key(app, launch);
    if let Some(output) = known.get(&key) {
        return output.clone();
    }
    let trial = Trial::new(app, launch, &PROFILES[0]);
    let host = trial.of_everything(Host::builder("alone"));
    let host = host.args(["bash", "-c", launch.command]).start();
    let end = host.wait_exit(LONG * 2);
    assert_eq!(end, Exit::Code(0), "{} alone", app.name);
    let output = host.stdout().text();
    assert!(output.lines().count() > 0, "{} says nothing", app.name);
    known.insert(key, output.clone());
    output
}

fn same(expected: &str, found: &str) -> Tried<()> {
    if expected == found {
        return Ok(());
    }
    let lines = expected.lines().zip(found.lines()).enumerate();
    let differs = lines
        .into_iter()
        .find(|(_, (expected, found))| expected != found);
    Err(Fault::Wrong(match differs {
        Some((number, (expected, found))) => {
            format!("line {}: {found:?} instead of {expected:?}", number + 1)
        }
        None => format!("{} bytes instead of {}", found.len(), expected.len()),
    }))
}

// --- the table -----------------------------------------------------------------------------------------------------

const BEGIN: &str = "<!-- apps: begin -->\n";
const END: &str = "<!-- apps: end -->";

/// Profile, later clock, earlier clock.
type Answers = Vec<[Answer; 2]>;

fn all_are_asked_for() -> bool {
    std::env::var_os("APPS").is_some()
}

fn is_asked_for(app: &App) -> bool {
    match std::env::var("APPS") {
        Err(_) => app.quick,
        Ok(names) => names
            .split(',')
            .any(|name| name == "all" || app.name.to_lowercase().contains(&name.to_lowercase())),
    }
}

/// What becomes of an app in each profile; Err has what no table may say.
fn answers(app: &App, launch: &Launch) -> Result<Answers, String> {
    let mut all = Vec::new();
    for profile in &PROFILES {
        if profile.needs_root && launch.user != 0 {
            let no = Answer::No("not without root".to_owned());
            all.push([no.clone(), no]);
            continue;
        }
        let mut of_profile = Vec::new();
        for clocks in [&LATER[..], &EARLIER[..]] {
            let begun = Instant::now();
            let went = Trial::new(app, launch, profile).run(clocks);
            eprintln!(
                "{}, {}, {}, clocks {clocks:?}: {went:?} ({:.0} s)",
                app.name,
                launch.how,
                profile.name,
                begun.elapsed().as_secs_f64()
            );
            of_profile.push(match went {
                Ok(()) => Answer::Yes,
                Err(Fault::Not(why)) => Answer::No(in_short(&why)),
                Err(Fault::Wrong(what)) => return Err(what),
            });
            // What is not resumed at all is not tried with another clock.
            if of_profile[0] != Answer::Yes {
                of_profile.push(of_profile[0].clone());
                break;
            }
        }
        all.push(of_profile.try_into().expect("there are two clocks"));
    }
    Ok(all)
}

/// The first two cells of a row.
fn key(app: &App, launch: &Launch) -> String {
    format!("| {} | {} |", app.name, launch.how)
}

fn row(app: &App, launch: &Launch, answers: &Answers, day: &str) -> String {
    let mut row = key(app, launch);
    for [later, earlier] in answers {
        let earlier = match later {
            Answer::Yes => earlier.cell(),
            Answer::No(_) => String::new(),
        };
        write!(row, " {} | {earlier} |", later.cell()).expect("text can be written");
    }
    format!("{row} {day} |\n").replace("  ", " ")
}

/// The yes and no of a row, without reasons and day.
fn verdicts(row: &str) -> Vec<&str> {
    let cells = row.split(" |").skip(2).map(str::trim);
    cells
        .take(2 * PROFILES.len())
        .map(|cell| cell.split(':').next().unwrap_or_default())
        .collect()
}

/// What `make test-apps` has not tried yet is not known, and is no difference there.
fn differ(known: &[&str], found: &[&str]) -> bool {
    let mut pairs = known.iter().zip(found);
    pairs.any(|(known, found)| known != found && !(known.is_empty() && all_are_asked_for()))
}

fn heading() -> String {
    let columns = PROFILES.iter().map(|profile| {
        let name = profile.name;
        format!(" {name}, later clock | {name}, earlier clock |")
    });
    let columns: String = columns.collect();
    let rules = "---|".repeat(3 + 2 * PROFILES.len());
    format!("| App | Started as |{columns} Tried on |\n|{rules}\n")
}

fn document() -> String {
    fs::read_to_string(project_path("docs/apps.md")).expect("the document is there")
}

fn known_row(document: &str, app: &App, launch: &Launch) -> Option<String> {
    let key = key(app, launch);
    let row = document.lines().find(|line| line.starts_with(&key))?;
    Some(format!("{row}\n"))
}

/// Puts the rows in the order of the apps into the document.
fn write_table(rows: &BTreeMap<String, String>) {
    let text = document();
    let (before, rest) = text.split_once(BEGIN).expect("the table has a place");
    let (_, after) = rest.split_once(END).expect("the table has an end");
    let mut table = heading();
    for (app, launch) in each_launch() {
        let known = known_row(&text, app, launch);
        let row = rows.get(&key(app, launch)).cloned().or(known);
        table.push_str(&row.unwrap_or_default());
    }
    let mut looked_at = String::from("\nWhat was looked at:\n\n");
    for app in APPS {
        writeln!(looked_at, "- {}: {}", app.name, app.seen).expect("text can be written");
    }
    let text = format!("{before}{BEGIN}{table}{looked_at}{END}{after}");
    fs::write(project_path("docs/apps.md"), text).expect("the document can be written");
}

fn each_launch() -> impl Iterator<Item = (&'static App, &'static Launch)> {
    let launches = |app: &'static App| app.launches.iter().map(move |launch| (app, launch));
    APPS.iter().flat_map(launches)
}

/// The day, as a person writes it, and the last commit that changed Reprieve; a plus stands for what is not committed yet.
fn today() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let day: String = now.chars().take(10).collect();
    let git = |arguments: &[&str]| {
        let said = Command::new("git")
            .args(arguments)
            .args(["--", "worker/src", "worker/core", "worker/preload", "hooks"])
            .current_dir(project_path("."))
            .output();
        // A tarball has no history.
        said.map_or(String::new(), |said| {
            String::from_utf8_lossy(&said.stdout).trim().to_owned()
        })
    };
    let commit = git(&["log", "-1", "--format=%h"]);
    match (
        commit.is_empty(),
        git(&["status", "--porcelain"]).is_empty(),
    ) {
        (true, _) => day,
        (false, true) => format!("{day}, {commit}"),
        (false, false) => format!("{day}, {commit}+"),
    }
}

#[test]
fn real_apps_fare_as_the_table_says() {
    let text = document();
    let mut rows = BTreeMap::new();
    let mut faults = Vec::new();
    for (app, launch) in each_launch().filter(|(app, _)| is_asked_for(app)) {
        let found = match answers(app, launch) {
            Ok(answers) => row(app, launch, &answers, &today()),
            Err(what) => {
                faults.push(format!("{}, {}: {what}", app.name, launch.how));
                continue;
            }
        };
        let known = known_row(&text, app, launch);
        // A row that the table does not have yet is new; without `make test-apps` it has to be there.
        let differs = match &known {
            Some(known) => differ(&verdicts(known), &verdicts(&found)),
            None => !all_are_asked_for(),
        };
        if differs {
            faults.push(format!("the table says {known:?}, and it is {found:?}"));
        }
        rows.insert(key(app, launch), found);
        if all_are_asked_for() {
            // Each at once: the next one may take a while.
            write_table(&rows);
        }
    }
    assert!(!rows.is_empty() || !faults.is_empty(), "APPS names no app");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_table_has_a_row_for_each_app_and_no_other() {
    let text = document();
    let (_, rest) = text.split_once(BEGIN).expect("the table has a place");
    let (table, _) = rest.split_once(END).expect("the table has an end");
    let expected: Vec<String> = each_launch()
        .map(|(app, launch)| key(app, launch))
        .collect();
    let rows = table.lines().skip(2).filter(|line| line.starts_with('|'));
    let rows: Vec<&str> = rows.collect();
    assert_eq!(rows.len(), expected.len(), "run: make test-apps");
    for (row, key) in rows.iter().zip(&expected) {
        assert!(row.starts_with(key.as_str()), "{row} instead of {key}");
        let known = verdicts(row);
        assert!(
            known.iter().all(|cell| ["yes", "no", ""].contains(cell)) && !known[0].is_empty(),
            "{row}"
        );
    }
    for app in APPS {
        assert!(table.contains(&format!("- {}: {}\n", app.name, app.seen)));
    }
}
