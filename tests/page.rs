//! What a worker shows of itself over HTTP: readiness, its status, the stream of events, and the page in a real browser.

mod harness;
mod job;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};

use harness::{Browser, Exit, Host, LIMIT, project_path, wait_until};
use job::{
    COUNTER, Store, address, checkpoint, checkpoint_ok, get, notice, resumed, wait_for_log,
    wait_for_output,
};
use serde_json::{Value, json};

/// On the network of the test, on a port of its own.
fn shown(store: &Store, name: &str, app: &[&str]) -> Host {
    store
        .host_with(
            name,
            &[
                "--metrics-listen",
                "127.0.0.1:0",
                "--sources",
                "none",
                "--checkup-interval",
                "200ms",
            ],
            app,
        )
        .share_net()
        .start()
}

#[track_caller]
fn status(address: &str) -> Value {
    let (head, body) = get(address, "/status");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    serde_json::from_str(&body).expect("it is JSON")
}

/// The stream of events, as it comes.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream
            .set_read_timeout(Some(LIMIT))
            .expect("it is a socket");
        write!(stream, "GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("it reads");
        Self(BufReader::new(stream))
    }

    /// The name of the next event, and what it says; nothing at the end.
    #[track_caller]
    fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).expect("it goes on");
            if read == 0 {
                return None;
            }
            // Chunks of HTTP stand between the lines, and say nothing here.
            if let Some(event) = line.strip_prefix("event: ") {
                event.trim_end().clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).expect("it is JSON");
                return Some((name, data));
            }
        }
    }

    /// The first event from here on of which this holds.
    #[track_caller]
    fn wait_for(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (_, event) = self
                .next()
                .unwrap_or_else(|| panic!("it ended before {what}"));
            if holds(&event) {
                return event;
            }
        }
    }
}

fn newest<'a>(event: &'a Value, of: &str) -> &'a Value {
    let runs = event["history"][of].as_array().expect("it is a list");
    runs.last().unwrap_or(&Value::Null)
}

#[track_caller]
fn assert_whole(run: &Value, steps: &[&str]) {
    let taken = run["steps"].as_array().expect("it is a list");
    let names: Vec<&str> = taken
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    assert_eq!(names, steps, "{run}");
    for step in taken {
        assert_eq!(step["whole"], true, "{run}");
        assert!(step["to_ms"].as_u64() >= step["from_ms"].as_u64(), "{run}");
    }
}

const STEPS: [&str; 5] = ["prepare", "dump", "drain", "upload", "commit"];

#[test]
fn an_eviction_is_told_as_it_happens() {
    let store = Store::new();
    let host = shown(&store, "first", COUNTER);
    wait_for_output(&host, "line 5");
    let address = address(&host);
    wait_until(LIMIT, "readiness", || {
        get(&address, "/readyz").0.starts_with("HTTP/1.1 200 ")
    });

    let told = status(&address);
    let asked = host.exec_ok(["reprieve", "status", "--json"]);
    let asked: Value = serde_json::from_str(&asked).expect("it is JSON");
    for (name, value) in asked.as_object().expect("it is an object") {
        assert!(
            !told[name].is_null() || value.is_null(),
            "{name} is not in {told}"
        );
    }
    assert_eq!(told["state"], "running");
    assert_eq!(told["protected"], true);

    let mut events = Events::of(&address);
    checkpoint_ok(&host);
    let event = events.wait_for("the checkpoint", |event| {
        newest(event, "checkpoints")["outcome"] == "durable"
    });
    let run = newest(&event, "checkpoints");
    assert_whole(run, &STEPS);
    assert_eq!(run["by"], "control");
    assert_eq!(run["afterwards"], "continue");
    assert_eq!(event["last_generation"], run["generation"]);
    assert!(
        event["history"]["memory"]["total_bytes"].as_u64() > Some(0),
        "{event}"
    );
    let (_, metrics) = get(&address, "/metrics");
    for wanted in [
        "reprieve_checkpointable{verdict=\"yes\"} 1",
        "reprieve_lease{state=\"held\"} 1",
        "reprieve_work_at_risk_seconds 0",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in\n{metrics}");
    }

    host.signal(libc::SIGTERM);
    // Events that follow one another within milliseconds are one, so that a small job's freeze need not be among them.
    let mut last = None;
    while let Some(event) = events.next() {
        last = Some(event);
    }
    let (name, event) = last.expect("there is a last one");
    assert_eq!(name, "over");
    assert_eq!(event["state"], "over");
    let run = newest(&event, "checkpoints");
    assert_eq!(
        (&run["outcome"], &run["afterwards"]),
        (&"durable".into(), &"stop".into())
    );
    assert_whole(run, &STEPS);
    assert_eq!(newest(&event, "notices")["kind"], "terminate");
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    host.destroy();

    let host = shown(&store, "second", COUNTER);
    resumed(&host);
    let address = self::address(&host);
    wait_until(LIMIT, "that it is told", || {
        status(&address)["state"] == "running"
    });
    let told = status(&address);
    let run = newest(&told, "restores");
    assert_eq!(run["outcome"], "resumed", "{told}");
    assert_eq!(run["generation"], told["resumed_from"]);
    assert_whole(run, &["select", "restore"]);
}

#[test]
fn a_job_that_cannot_be_checkpointed_is_not_ready() {
    let host = Host::builder("alone")
        .reprieve(
            ["--metrics-listen", "127.0.0.1:0", "--sources", "none"],
            COUNTER.iter().copied(),
        )
        .share_net()
        .start();
    wait_for_output(&host, "line 5");
    let (head, body) = get(&address(&host), "/readyz");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "not ready: running, no_store\n");

    let store = Store::new();
    let host = shown(
        &store,
        "orphans",
        &["bash", "-c", "(sleep 1000 &); sleep 1000"],
    );
    let address = address(&host);
    // It is known before anybody asks for a checkpoint.
    wait_until(LIMIT, "a look at the job", || {
        get(&address, "/readyz").1 == "not ready: running, orphans\n"
    });
    assert_ne!(checkpoint(&host).code, 0);
    assert_eq!(get(&address, "/readyz").1, "not ready: running, orphans\n");
    let told = status(&address);
    let run = newest(&told, "checkpoints");
    assert_eq!(run["outcome"], "refused", "{told}");
    assert_eq!(run["steps"][0]["whole"], false, "{told}");
    let (_, metrics) = get(&address, "/metrics");
    assert!(
        metrics.contains("reprieve_checkpointable{verdict=\"orphans\"} 1"),
        "{metrics}"
    );
}

/// What a worker that is evicted without anybody to scrape it leaves behind.
#[test]
fn the_last_metrics_survive_the_eviction() {
    let gateway = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let statsd = UdpSocket::bind("127.0.0.1:0").expect("there are ports");
    statsd
        .set_read_timeout(Some(LIMIT))
        .expect("it is a socket");
    let address = |socket: std::io::Result<std::net::SocketAddr>| socket.expect("it is bound");
    let url = format!("http://{}", address(gateway.local_addr()));
    let pushed = std::thread::spawn(move || {
        let (mut stream, _) = gateway.accept().expect("somebody comes");
        let mut text = String::new();
        let mut reader = BufReader::new(stream.try_clone().expect("it is a socket"));
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("it is sent whole");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("it is a number");
            }
            text.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("it is sent whole");
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("it reads");
        text + &String::from_utf8(body).expect("it is text")
    });
    let store = Store::new();
    let to_statsd = address(statsd.local_addr()).to_string();
    let options = [
        "--sources",
        "none",
        "--push-gateway",
        &url,
        "--statsd",
        &to_statsd,
        "--emf",
        "stderr",
    ];
    let host = store
        .host_with("evicted", &options, COUNTER)
        .share_net()
        .start();
    wait_for_output(&host, "line 5");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let durable = "reprieve_checkpoints_total{trigger=\"signal\",outcome=\"durable\"} 1";
    let pushed = pushed.join().expect("it was pushed");
    assert!(
        pushed.starts_with("PUT /metrics/job/reprieve/reprieve_job/job HTTP/1.1"),
        "{pushed}"
    );
    assert!(pushed.contains(durable), "{pushed}");
    let mut datagrams = String::new();
    while !datagrams
        .contains("reprieve_checkpoints_total:1|c|#reprieve_job:job,trigger:signal,outcome:durable")
    {
        let mut datagram = [0; 2048];
        let length = statsd.recv(&mut datagram).expect("they come");
        datagrams.push_str(std::str::from_utf8(&datagram[..length]).expect("it is text"));
    }
    let line = wait_for_log(&host, "CloudWatchMetrics");
    let line: Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(line["reprieve_checkpoints_total.signal.durable"], 1.0);
}

#[test]
fn a_push_gateway_that_never_answers_holds_up_no_end() {
    // The kernel takes the connection; nobody reads.
    let gateway = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    let url = format!("http://{}", gateway.local_addr().expect("it is bound"));
    let store = Store::new();
    let options = ["--sources", "none", "--push-gateway", &url];
    let host = store.host_with("evicted", &options, COUNTER);
    let host = host.share_net().start();
    wait_for_output(&host, "line 5");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let line = wait_for_log(&host, "the last metrics could not be pushed");
    assert!(
        line.contains("it took longer than 2s") || line.contains("not reached"),
        "{line}"
    );
}

/// Notes each state that the page shows, and whether it counted down.
const WATCH: &str = "window.seen = []; window.counted = [];
    new MutationObserver(() => {
        const state = document.querySelector('#states [aria-current]')?.dataset.state;
        if (state && seen.at(-1) !== state) seen.push(state);
        if (!document.getElementById('eviction').hidden) counted.push(document.getElementById('countdown').textContent);
    }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true }); true";

#[test]
fn people_see_an_eviction_in_a_browser() {
    let store = Store::new();
    let app = ["python3", "/apps/churn.py", "192", "--still"];
    let host = shown(&store, "seen", &app);
    wait_for_output(&host, "ready");
    checkpoint_ok(&host);
    let address = address(&host);
    let pictures = project_path("target/status-page");

    let mut browser = Browser::start();
    browser.look_like(1200, 900, "light");
    browser.open(&format!("http://{address}/"));
    browser.wait_for_js(
        "document.querySelector('#states [aria-current]')?.dataset.state === 'running'",
    );
    browser.wait_for_js("document.getElementById('link').textContent === 'live'");
    for (part, text) in [
        ("job", "job"),
        ("store", "file:///snapshots"),
        ("age-note", "old: generation 1"),
        ("checkpoints", "durable"),
        ("checkpoints", "upload"),
        ("notices", "from control"),
        ("restores", "None"),
        ("counts", "1"),
        ("to-safe-note", "hardly ever more"),
        ("memory-note", "when last looked at"),
    ] {
        let shown = browser.js(&format!("document.getElementById('{part}').textContent"));
        let shown = shown.as_str().expect("it is text");
        assert!(
            shown.contains(text),
            "{part} shows {shown:?}, and not {text:?}"
        );
    }
    // By keyboard: the first stop leads past the head of the page.
    browser.press("Tab");
    assert_eq!(browser.js("document.activeElement.className"), "skip");
    // For screen readers: a language, a heading for each part, and changes are read out.
    assert_eq!(browser.js("document.documentElement.lang"), "en");
    assert_eq!(
        browser.js("[...document.querySelectorAll('section')].every(part => !part.hasAttribute('aria-labelledby') ? part.closest('noscript') : document.getElementById(part.getAttribute('aria-labelledby')))"),
        true
    );
    browser.wait_for_js("document.getElementById('announce').textContent.includes('running')");
    browser.js("document.activeElement.blur()");
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.js(ground);
    browser.screenshot(&pictures.join("running-light.png"));
    browser.look_like(390, 844, "dark");
    assert_ne!(browser.js(ground), light, "dark is as light");
    assert_eq!(
        browser.js("document.documentElement.scrollWidth <= window.innerWidth"),
        true,
        "it is wider than a phone"
    );
    browser.screenshot(&pictures.join("running-phone-dark.png"));
    browser.look_like(1200, 900, "dark");

    browser.js(WATCH);
    host.signal(libc::SIGTERM);
    browser.wait_for_js("document.getElementById('link').textContent.includes('has ended')");
    let seen = browser.js("seen");
    let seen = seen.as_array().expect("it is a list");
    assert!(
        seen.ends_with(&["checkpointing".into(), "over".into()]),
        "{seen:?}"
    );
    let counted = browser.js("counted.length");
    assert!(counted.as_u64() > Some(0), "nothing was counted down");
    assert_eq!(
        browser.js("document.getElementById('eviction').hidden"),
        true
    );
    browser
        .wait_for_js("document.getElementById('checkpoints').textContent.includes('generation 2')");
    // Each phase of the final checkpoint has its bar, and the decision its reason.
    for phase in ["dump", "drain", "upload", "commit"] {
        let bar = format!("#checkpoints li:first-child .bars .{phase}");
        assert_eq!(
            browser.js(&format!("document.querySelectorAll('{bar}').length")),
            1,
            "{phase}"
        );
    }
    browser
        .wait_for_js("document.querySelector('#decisions li:not(.none)')?.textContent.length > 10");
    browser.screenshot(&pictures.join("over-dark.png"));
    browser.screenshot(&pictures.join("over-dark.webp"));
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    host.destroy();

    let host = shown(&store, "again", &app);
    resumed(&host);
    browser.look_like(1200, 900, "light");
    browser.open(&format!("http://{}/", self::address(&host)));
    browser.wait_for_js("document.getElementById('restores').textContent.includes('generation 2')");
    browser.screenshot(&pictures.join("resumed-light.png"));
    let section = "document.getElementById('obstacles-section')";
    assert_eq!(browser.js(&format!("{section}.hidden")), true);

    let app = ["python3", "/apps/feature.py", "inotify-tmpfs"];
    let store = Store::new();
    let host = shown(&store, "watching", &app);
    wait_for_log(&host, "the job cannot be checkpointed as it is now");
    browser.open(&format!("http://{}/", self::address(&host)));
    browser.wait_for_js(&format!(
        "!{section}.hidden && {section}.textContent.includes('descriptor 3 (anon_inode:inotify)')"
    ));
    browser.wait_for_js("document.getElementById('plan').textContent.includes('Not protected')");
    browser.screenshot(&pictures.join("obstacle-light.png"));
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// `reprieve ps --serve` on a port of its own, ended with the value.
struct Served {
    process: Child,
    address: String,
}

impl Served {
    fn of(store: &Store) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_reprieve"))
            .args(["ps", "--serve", "127.0.0.1:0", "--store"])
            .arg(format!("file://{}", store.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        let mut line = String::new();
        let stdout = process.stdout.as_mut().expect("it is a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it says where it is");
        let address = line
            .strip_prefix("http://")
            .and_then(|rest| rest.strip_suffix("/ shows the store\n"));
        let address = address.unwrap_or_else(|| panic!("{line:?} is no address"));
        Self {
            address: address.to_owned(),
            process,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After its end this does nothing.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A host that runs a job of this name.
fn working(store: &Store, job: &str) -> Host {
    let options = [
        "--store",
        "file:///snapshots",
        "--job",
        job,
        "--term-grace",
        "60s",
    ];
    let more = ["--on-other-owner", "take-over", "--sources", "none"];
    Host::builder(&format!("host-of-{job}"))
        .bind(store.path(), "/snapshots")
        .reprieve([&options[..], &more[..]].concat(), COUNTER.iter().copied())
        .start()
}

#[test]
fn people_watch_a_whole_store_in_a_browser() {
    let store = Store::new();
    let mut served = Served::of(&store);
    let mut browser = Browser::start();
    browser.look_like(1200, 900, "light");
    browser.open(&format!("http://{}/", served.address));
    browser.wait_for_js("document.getElementById('none').textContent.includes('no jobs')");

    let (red, blue) = (working(&store, "red"), working(&store, "blue"));
    for host in [&red, &blue] {
        wait_for_output(host, "line 5");
    }
    checkpoint_ok(&red);
    // By itself: the page is not loaded again.
    let state = |job: &str, state: &str| {
        format!("document.querySelector('[data-job={job}] .tag')?.textContent === '{state}'")
    };
    browser.wait_for_js(&state("red", "running"));
    browser.wait_for_js(&state("blue", "running"));
    browser.wait_for_js("document.getElementById('running').textContent === '2'");
    browser.wait_for_js("document.getElementById('announce').textContent.includes('2 running')");

    // An end that is announced, far enough away that nothing else happens.
    let line = json!({ "v": 1, "request": "notice", "fate": "maintenance", "in_ms": 86_400_000, "identity": "far" });
    notice(&blue, &line);
    browser.wait_for_js(
        "document.querySelector('[data-job=blue] [data-end]')?.textContent === '24 h'",
    );

    // Filters.
    let shown =
        "[...document.querySelectorAll('#rows [data-job]')].map(row => row.dataset.job).join()";
    assert_eq!(browser.js(shown), "blue,red");
    let set = |id: &str, value: &str| {
        format!(
            "{{ const field = document.getElementById('{id}'); field.value = '{value}'; field.dispatchEvent(new Event('input')); }} true"
        )
    };
    browser.js(&set("word", "host-of-r"));
    assert_eq!(browser.js(shown), "red");
    browser.js(&set("word", "nowhere"));
    assert_eq!(
        browser.js("document.getElementById('none').textContent"),
        "None fits the filter."
    );
    browser.js(&set("word", ""));
    browser.js(&set("state", "running"));
    assert_eq!(browser.js(shown), "blue,red");

    // Drill-down by keyboard, which lives on as the job does.
    browser.js("document.querySelector('[data-job=red] button').focus()");
    browser.press("Enter");
    browser.wait_for_js("document.querySelector('tr.more')?.textContent.includes('valid')");
    assert_eq!(
        browser.js("document.activeElement.getAttribute('aria-expanded')"),
        "true"
    );
    red.signal(libc::SIGTERM);
    assert_eq!(red.wait_exit(LIMIT), Exit::Code(75));
    browser.js(&set("state", ""));
    browser.wait_for_js(&state("red", "stopped"));
    browser.wait_for_js(
        "document.querySelector('tr.more a')?.getAttribute('href').startsWith('jobs/red/reports/')",
    );
    browser.wait_for_js("document.querySelector('tr.more').textContent.includes('evicted')");
    let pictures = project_path("target/status-page");
    browser.screenshot(&pictures.join("store-light.png"));
    browser.screenshot(&pictures.join("store-light.webp"));
    browser.look_like(390, 844, "dark");
    assert_eq!(
        browser.js("document.documentElement.scrollWidth <= window.innerWidth"),
        true,
        "it is wider than a phone"
    );
    browser.screenshot(&pictures.join("store-phone-dark.png"));
    let report = browser.js("document.querySelector('tr.more a').getAttribute('href')");
    let report = format!("/{}", report.as_str().expect("it is text"));
    let (head, body) = get(&served.address, &report);
    assert!(
        head.starts_with("HTTP/1.1 200 ") && body.contains("checkpoint durable"),
        "{body}"
    );

    // A machine that is gone without a word: its entry is, its claim is not.
    blue.destroy();
    std::fs::remove_dir_all(store.path().join("~workers")).expect("it can be removed");
    browser.wait_for_js(&state("blue", "lost"));
    browser.js("document.getElementById('only-trouble').click()");
    assert_eq!(browser.js(shown), "blue");
    assert_eq!(browser.complaints, Vec::<String>::new());

    // Nothing else is told, and nothing is taken.
    for path in [
        "/jobs/..%2fred",
        "/jobs/../red",
        "/jobs/red/HEAD",
        "/jobs/red/reports/newest",
        "/status",
    ] {
        assert!(
            get(&served.address, path).0.starts_with("HTTP/1.1 404 "),
            "{path}"
        );
    }
    let mut stream = TcpStream::connect(&served.address).expect("it listens");
    write!(
        stream,
        "POST /ps HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let (_, told) = get(&served.address, "/ps");
    let told: Value = serde_json::from_str(&told).expect("it is JSON");
    assert_eq!(told["jobs"].as_array().map(Vec::len), Some(2), "{told}");

    let pid = i32::try_from(served.process.id()).expect("it is a number");
    // SAFETY: it takes no pointers, and the process is a child of ours that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let ended = served.process.wait().expect("it is our child");
    assert_eq!(ended.code(), Some(0));
}
