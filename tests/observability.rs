//! The dashboard and the alert rules: every query runs against a real Prometheus that scrapes a real worker through an eviction.

mod harness;
mod job;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use harness::{Host, LIMIT, project_path, wait_for, wait_until};
use job::{COUNTER, Store, checkpoint_ok, evict, resumed, wait_for_output};
use reprieve::metrics;
use serde_json::Value;

fn tool(name: &str) -> Command {
    let mut command = Command::new(project_path("infra/local/prometheus"));
    command.arg(name);
    command.current_dir(project_path("infra/observability"));
    command
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let ran = command.output().expect("it can be started");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(
        ran.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn alerts_fire_when_they_should() {
    succeeds(tool("promtool").args(["check", "rules", "alerts.yml"]));
    succeeds(tool("promtool").args(["test", "rules", "alerts.test.yml"]));
}

#[test]
fn every_alert_has_its_test_and_every_metric_its_place() {
    let read = |name: &str| {
        let text = fs::read_to_string(project_path("infra/observability").join(name));
        text.expect("it is there")
    };
    let (rules, tests) = (read("alerts.yml"), read("alerts.test.yml"));
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut found = 0;
    for alert in alerts {
        found += 1;
        let fires = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels:");
        assert!(tests.contains(&fires), "{alert} is not seen to fire");
        let quiet = format!("alertname: {alert}, exp_alerts: []");
        assert!(tests.contains(&quiet), "{alert} is not seen to keep quiet");
    }
    assert!(found > 10, "{found}");
    let shown: Vec<String> = queries().into_iter().map(|(_, query)| query).collect();
    for metric in metrics::TABLE {
        let in_it = |text: &String| text.contains(metric.name);
        assert!(
            shown.iter().any(in_it) || in_it(&rules),
            "{} is neither shown nor watched",
            metric.name
        );
    }
}

/// Nobody listens there, and hardly anybody will soon.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    listener.local_addr().expect("it is bound").port()
}

/// A Prometheus that scrapes one worker. It ends when this is dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _data: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(worker: u16) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory can be made");
        let port = free_port();
        let config = serde_json::json!({
            "global": { "scrape_interval": "100ms", "scrape_timeout": "100ms", "evaluation_interval": "1s" },
            "rule_files": [project_path("infra/observability/alerts.yml")],
            "scrape_configs": [{
                "job_name": "reprieve",
                "static_configs": [{ "targets": [format!("127.0.0.1:{worker}")] }],
            }],
        });
        // JSON is YAML.
        let file = data.path().join("prometheus.yml");
        fs::write(&file, config.to_string()).expect("it is writable");
        let log = fs::File::create(data.path().join("log")).expect("it is writable");
        let child = tool("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                data.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it can be started");
        let prometheus = Self {
            child,
            port,
            _data: data,
        };
        // The first start downloads it.
        wait_until(LIMIT * 10, "Prometheus", || {
            prometheus
                .get("/-/ready")
                .is_some_and(|text| text.contains("Ready"))
        });
        prometheus
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }

    /// The samples that an expression has now; panics if it is no expression.
    #[track_caller]
    fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        let answer = answer.unwrap_or_else(|| panic!("{expression} is refused"));
        let answer: Value = serde_json::from_str(&answer).expect("it is JSON");
        answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| panic!("{expression}: {answer}"))
    }

    #[track_caller]
    fn wait_for(&self, expression: &str) {
        wait_until(LIMIT, expression, || !self.query(expression).is_empty());
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Only our own child; what it keeps goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each query of the dashboard, with the name of its panel.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(project_path("infra/observability/dashboard.json"));
    let dashboard: Value = serde_json::from_str(&text.expect("it is there")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let of = |panel: &Value| {
        let title = panel["title"].as_str().expect("it has one").to_owned();
        let targets = panel["targets"].as_array().expect("it has queries").clone();
        let expression = move |target: Value| {
            let text = target["expr"].as_str().expect("it is text");
            let text = text.replace("$__rate_interval", "1m");
            text.replace("$job", ".+").replace("$instance", ".+")
        };
        targets
            .into_iter()
            .map(move |target| (title.clone(), expression(target)))
    };
    panels.iter().flat_map(of).collect()
}

fn a_worker(store: &Store, name: &str, port: u16) -> Host {
    let listen = format!("127.0.0.1:{port}");
    let options = ["--metrics-listen", &listen, "--sources", "none"];
    store.host_with(name, &options, COUNTER).share_net().start()
}

#[test]
fn every_query_answers_about_a_real_eviction() {
    let store = Store::new();
    let port = free_port();
    let prometheus = Prometheus::scraping(port);
    let host = a_worker(&store, "first", port);
    wait_for_output(&host, "line 5");
    prometheus.wait_for("reprieve_checkpointable{verdict=\"yes\"} == 1");
    checkpoint_ok(&host);
    prometheus.wait_for("reprieve_checkpoints_total{outcome=\"durable\"} > 0");
    evict(&host);
    let host = a_worker(&store, "second", port);
    resumed(&host);
    prometheus.wait_for("reprieve_restores_total{outcome=\"resumed\"} == 1");
    checkpoint_ok(&host);
    prometheus.wait_for("reprieve_checkpoints_total{trigger=\"control\"} > 0 and on () reprieve_restores_total{outcome=\"resumed\"} == 1");

    let known: BTreeSet<&str> = metrics::TABLE.iter().map(|metric| metric.name).collect();
    let rules = fs::read_to_string(project_path("infra/observability/alerts.yml"));
    let mut texts = vec![rules.expect("it is there")];
    for (panel, query) in queries() {
        // These need what this eviction may not have left, a scrape in its last moments, and sources that work.
        let may_be_empty =
            panel.starts_with("Left of the deadline") || query.contains("last_success");
        let found = prometheus.query(&query);
        assert!(
            may_be_empty || !found.is_empty(),
            "{panel}: {query} finds nothing"
        );
        texts.push(query);
    }
    for word in texts
        .iter()
        .flat_map(|text| text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()))
    {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| word.strip_suffix(end))
            .unwrap_or(word);
        assert!(
            !word.starts_with("reprieve_") || known.contains(word) || known.contains(base),
            "{word} is not a metric"
        );
    }
    // Prometheus itself evaluates the rules, and nothing is wrong with this job.
    let rules = wait_for(LIMIT, "all rules to be evaluated", || {
        let rules: Value = serde_json::from_str(&prometheus.get("/api/v1/rules")?).ok()?;
        let rules = rules["data"]["groups"][0]["rules"].as_array()?.clone();
        let evaluated = |rule: &Value| rule["health"] != "unknown";
        (!rules.is_empty() && rules.iter().all(evaluated)).then_some(rules)
    });
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(rule["state"], "inactive", "{rule}");
    }
}
