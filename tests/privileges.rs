//! What Reprieve may do is what it does: the actions of AWS that it calls against those that the policy grants, and a job that
//! is evicted and resumed with the fewest rights that a container can have.

mod harness;
mod job;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use harness::{
    Builder, DOCKER_CAPABILITIES, Exit, Fault, Host, LIMIT, Lab, Lookalike, Proxy, project_path,
    wait_until,
};
use job::{Store, assert_counts, evict, resumed, wait_for_log, wait_for_output};
use serde_json::{Value, json};

/// Granted, and not called by a worker.
const OF_OTHERS: [(&str, &str); 4] = [
    ("bucket-key", "S3 calls KMS itself, in the worker's name"),
    ("scale-in", "the machine's service ends the machine"),
    ("logs", "the container engine sends the output"),
    ("registry", "the container engine fetches the image"),
];

/// What the policy grants a worker of which everything is used.
fn granted() -> BTreeSet<String> {
    let text = fs::read_to_string(project_path("infra/policy/worker.iam.json"));
    let policy: Value = serde_json::from_str(&text.expect("it is there")).expect("it is JSON");
    let actions = policy["actions"].as_array().expect("it is a list");
    for (needs, reason) in OF_OTHERS {
        assert!(
            actions.iter().any(|action| action["needs"] == needs),
            "nothing is excepted any more because {reason}"
        );
    }
    let is_ours = |action: &&Value| !OF_OTHERS.iter().any(|(needs, _)| action["needs"] == *needs);
    let names = actions
        .iter()
        .filter(is_ours)
        .map(|action| &action["action"]);
    names
        .map(|name| name.as_str().expect("it has a name").to_owned())
        .collect()
}

/// Everything that AWS is, for one account.
struct Account {
    server: Lookalike,
    lab: Lab,
    /// In front of the two.
    aws: Proxy,
    scaling: Proxy,
    /// A directory in whose sight the job goes on until there is something in it.
    end: tempfile::TempDir,
}

impl Account {
    fn start() -> Self {
        let (server, lab) = (Lookalike::start(), Lab::start());
        Self {
            aws: Proxy::start(&server.url),
            scaling: Proxy::start(&lab.url),
            end: tempfile::tempdir().expect("a temporary directory can be made"),
            server,
            lab,
        }
    }

    /// At the address where its requests are seen.
    fn queue(&self, name: &str, attributes: &Value) -> String {
        let request = json!({ "QueueName": name, "Attributes": attributes });
        let made = self.server.sqs("CreateQueue", &request);
        let url = made["QueueUrl"].as_str().expect("it has a URL");
        url.replace(&self.server.url, self.aws.url())
    }

    fn send(&self, queue: &str, body: &str) {
        let queue = queue.replace(self.aws.url(), &self.server.url);
        let request = json!({ "QueueUrl": queue, "MessageBody": body });
        self.server.sqs("SendMessage", &request);
    }

    fn count(&self, queue: &str) -> u64 {
        let queue = queue.replace(self.aws.url(), &self.server.url);
        let request = json!({ "QueueUrl": queue, "AttributeNames": ["All"] });
        let answer = self.server.sqs("GetQueueAttributes", &request);
        let count = answer["Attributes"]["ApproximateNumberOfMessages"].as_str();
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    fn host(&self, name: &str, options: &[&str]) -> Builder {
        let always = [
            "--s3-endpoint",
            self.aws.url(),
            "--term-grace",
            "60s",
            "--on-other-owner",
            "take-over",
        ];
        let app = [
            "bash",
            "-c",
            "echo ready; while [ ! -e /end/now ]; do sleep 0.05; done",
        ];
        Host::builder(name)
            .share_net()
            .bind_read_only(self.end.path(), "/end")
            .env("AWS_ENDPOINT_URL", self.aws.url())
            .env("AWS_ENDPOINT_URL_AUTO_SCALING", self.scaling.url())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIDFORTESTS")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")
            .reprieve(always.into_iter().chain(options.iter().copied()), app)
    }

    fn called(&self) -> BTreeSet<String> {
        let all = self.aws.log().into_iter().chain(self.scaling.log());
        all.filter_map(|request| request.action).collect()
    }
}

#[test]
fn the_actions_that_are_called_are_those_that_are_granted() {
    let account = Account::start();
    account.server.make_bucket("jobs");
    let key = account.server.make_kms_key();
    let instance = account.server.make_instance();
    let replies = account.queue("replies", &json!({}));
    let with_everything = [
        "--store",
        "s3://jobs/prefix",
        "--job",
        "job",
        "--kms-key",
        &key,
        "--queue",
        "own",
        "--reply-queue",
        &replies,
        "--queue-lease",
        "3s",
        "--instance-id",
        &instance,
        "--instance-tags",
        "on",
        "--lifecycle-hook",
        "goodbye",
        "--cpu-baseline",
        "auto-from-launch-template",
    ];
    account.server.ec2(
        "Action=CreateLaunchTemplate&LaunchTemplateName=fleet&LaunchTemplateData.InstanceType=m6a.large",
    );

    // Its group takes the machine, as its metadata tell.
    let options = [
        &with_everything[..],
        &["--ec2-metadata-endpoint", &account.lab.url],
    ]
    .concat();
    let host = account.host("first", &options).start();
    wait_for_output(&host, "ready");
    wait_for_log(&host, "the CPU baseline is what all instance types");
    let line = wait_for_log(&host, "a queue was made for the job");
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    let own = line["url"].as_str().expect("it names the queue").to_owned();
    let command = json!({ "v": 1, "id": "1", "command": "checkpoint", "target": { "job": "job" }, "afterwards": "continue" });
    account.send(&own, &command.to_string());
    wait_until(LIMIT, "the reply", || account.count(&replies) > 0);
    // A checkpoint that is over at once needs no sign of life.
    let slow = Fault::Delay(Duration::from_secs(2));
    account
        .aws
        .fail_next(slow, 1, |request| request.is("PUT", "/manifests/"));
    account.lab.notice(json!({ "kind": "asg" }));
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    host.destroy();

    // The next one has no metadata, and the job comes to its end there.
    let next = account
        .host("next", &with_everything)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .start();
    resumed(&next);
    // Signs of life of a queue begin some time after the start.
    wait_until(3 * LIMIT, "what is not done at once", || {
        let called = account.called();
        ["ec2:DescribeInstances", "sqs:TagQueue", "sqs:ListQueues"]
            .iter()
            .all(|action| called.contains(*action))
    });
    fs::write(account.end.path().join("now"), "").expect("it is ours");
    assert_eq!(next.wait_exit(LIMIT), Exit::Code(0));
    next.destroy();
    fs::remove_file(account.end.path().join("now")).expect("it is ours");

    // Another job, whose name only EC2 knows, with a queue for many.
    let dead = account.queue("dead", &json!({}));
    let redrive = json!({ "deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": "5" });
    let shared = account.queue("shared", &json!({ "RedrivePolicy": redrive.to_string() }));
    account.server.ec2(&format!(
        "Action=CreateTags&ResourceId.1={instance}&Tag.1.Key=reprieve%3Ajob&Tag.1.Value=tagged"
    ));
    let options = [
        "--store",
        "s3://jobs/prefix",
        "--defaults-from-tags",
        "on",
        "--instance-id",
        &instance,
        "--queue",
        "shared",
        "--queue-url",
        &shared,
    ];
    let last = account
        .host("last", &options)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .start();
    wait_for_output(&last, "ready");
    let command =
        json!({ "v": 1, "id": "2", "command": "status", "target": { "job": "of-others" } });
    account.send(&shared, &command.to_string());
    wait_until(LIMIT, "that it is given back", || {
        account.called().contains("sqs:ChangeMessageVisibility")
    });
    account.send(&shared, "nobody understands this");
    wait_until(LIMIT, "the dead letter", || account.count(&dead) > 0);
    evict(&last);

    let (called, granted) = (account.called(), granted());
    let missing: Vec<_> = called.difference(&granted).collect();
    assert!(missing.is_empty(), "called and not granted: {missing:?}");
    let superfluous: Vec<_> = granted.difference(&called).collect();
    assert!(
        superfluous.is_empty(),
        "granted and not called: {superfluous:?}"
    );
}

const EPERM: i64 = 1;
const ENOSYS: i64 = 38;

/// Everything that `rights.py` asked for.
#[track_caller]
fn assert_refused(line: &str) {
    let answers: Value = serde_json::from_str(line).expect("it is JSON");
    let answers = answers.as_object().expect("it is a table");
    for (call, errno) in answers {
        let errno = errno.as_i64();
        assert!(
            matches!(errno, Some(EPERM | ENOSYS)),
            "{call} answers {errno:?} in {answers:?}"
        );
    }
    assert!(answers.len() > 20, "{answers:?}");
}

#[test]
fn a_job_is_evicted_and_resumed_with_the_fewest_rights_there_can_be() {
    let store = Store::new();
    fs::set_permissions(store.path(), PermissionsExt::from_mode(0o777)).expect("it is ours");
    let least = |name: &str| {
        let host = store
            .host(name, &["python3", "/apps/rights.py"])
            .user(1000, 1000)
            .no_new_privileges()
            .read_only_root();
        let host = DOCKER_CAPABILITIES
            .into_iter()
            .fold(host, Builder::drop_capability);
        ["CAP_CHECKPOINT_RESTORE", "CAP_SYS_PTRACE"]
            .into_iter()
            .fold(host, Builder::ambient_capability)
    };
    let host = least("host").start();
    let line = host
        .stdout()
        .wait_for_line("what is allowed", LIMIT, |line| line.starts_with('{'));
    // What a seccomp filter like Docker's would deny is denied by the lack of capabilities.
    assert_refused(&line);
    wait_for_output(&host, "line 50");
    host.signal(libc::SIGTERM);
    assert_eq!(host.wait_exit(LIMIT), Exit::Code(75));
    let counted = |text: String| -> String {
        text.lines()
            .filter(|line| line.starts_with("line "))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let before = counted(host.stdout().text());
    host.destroy();
    let next = least("next").start();
    resumed(&next);
    wait_for_output(&next, "line 200");
    evict(&next);
    assert_counts(&(before + &counted(next.stdout().text())), None);
}

#[test]
fn a_filter_of_the_job_refuses_what_dockers_does_and_comes_back_with_it() {
    let store = Store::new();
    let app = ["python3", "/apps/rights.py", "--filtered"];
    let options = ["--profile", "full", "--seccomp", "job"];
    let host = |name: &str| {
        let host = store.host_with(name, &options, &app);
        host.add_capability("CAP_SYS_ADMIN")
            .add_capability("CAP_SYS_TIME")
            .start()
    };
    let first = host("first");
    let told = |line: &str| line.starts_with('{');
    assert_refused(&first.stdout().wait_for_line("answers", LIMIT, told));
    wait_for_output(&first, "line 50");
    evict(&first);
    first.destroy();
    let second = host("second");
    wait_for_log(&second, "the job is resumed");
    let app = second.wait_for_process("python3 /apps/rights.py --filtered", LIMIT);
    second.exec_ok(["sh", "-c", &format!("kill -USR1 {}", app.pid)]);
    assert_refused(&second.stdout().wait_for_line("answers", LIMIT, told));
    evict(&second);
    second.destroy();
    // Where nobody may suspend it, it is not put on, and the job is not begun without.
    let (store, options) = (Store::new(), ["--seccomp", "job"]);
    let third = store
        .host_with("third", &options, &["sleep", "1000"])
        .start();
    assert_eq!(third.wait_exit(LIMIT), Exit::Code(170));
    let log = third.stderr().text();
    assert!(log.contains("cannot be stored in this container"), "{log}");
    assert_eq!(third.stdout().text(), "");
}

#[test]
fn criu_stores_nothing_that_is_under_a_filter_of_the_container() {
    // One that denies next to nothing, and with the capability that suspends filters. When a CRIU to come does it, there is a
    // profile to be written; until then this is why there is none.
    let host = Host::builder("filtered")
        .args(["sleep", "1000"])
        .seccomp()
        .add_capability("CAP_SYS_ADMIN")
        .start();
    let dump = "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &\n\
                criu dump --unprivileged --leave-running -t $! -D /tmp -o log -v1; code=$?; cat /tmp/log; exit $code";
    let ran = host.exec(["sh", "-c", dump]);
    assert_ne!(ran.code, 0);
    assert!(
        ran.stdout.contains("suspending seccomp failed"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
}
