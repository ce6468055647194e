//! A fleet that Terraform made, evicted: the user data that EC2 would hand out is run on a machine with Docker, EventBridge
//! tells of the end, and a second machine goes on where the first one stood. `make test-terraform` applies
//! tests/terraform/eviction to a look-alike of AWS and runs this with what was made.
//!
//! Left out of what a machine does: systemd itself (its unit's command lines are run as it would run them), and the
//! download of the image.

mod harness;
mod job;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Docker, Lab, Lookalike, Output, wait_for, wait_until};
use job::{assert_counts, numbers};
use serde_json::{Value, json};

/// For what takes several seconds on processors that are shared.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a machine has and this one lacks: systemd, and a registry to pull from. A container uses the machine's network,
/// on which AWS and its metadata service are at other addresses than usual.
const STAND_INS: &str = r#"
set -e
mkdir -p /etc/systemd/system /usr/local/sbin
cat > /usr/local/bin/systemctl << 'END'
#!/bin/sh
echo "$*" >> /run/systemctl
END
cat > /usr/local/sbin/docker << END
#!/bin/bash
case \$1 in
    pull) exec /usr/bin/docker image inspect --format {{.Id}} "\${@: -1}" ;;
    run)
        shift
        exec /usr/bin/docker run --network host --env AWS_ENDPOINT_URL=$1 --env REPRIEVE_S3_ENDPOINT=$1 \
            --env AWS_ENDPOINT_URL_AUTO_SCALING=$2 --env AWS_EC2_METADATA_SERVICE_ENDPOINT=$2 \
            --env GCE_METADATA_HOST=127.0.0.1:1 --env REPRIEVE_AZURE_METADATA_ENDPOINT=http://127.0.0.1:1 "\$@"
        ;;
    *) exec /usr/bin/docker "\$@" ;;
esac
END
chmod 0755 /usr/local/bin/systemctl /usr/local/sbin/docker
"#;

/// What Terraform made, by the names of the stack's output.
struct Fleet {
    facts: Value,
}

impl Fleet {
    fn handed_over() -> Self {
        let path = std::env::var("REPRIEVE_TEST_FLEET")
            .expect("this is run by `make test-terraform`, which makes the fleet first");
        let text = std::fs::read(path).expect("it was written for us");
        Self {
            facts: serde_json::from_slice(&text).expect("it is JSON"),
        }
    }

    #[track_caller]
    fn fact(&self, name: &str) -> &str {
        let fact = self.facts[name].as_str();
        fact.unwrap_or_else(|| panic!("no {name} was handed over"))
    }
}

/// Runs a script on the machine, which must succeed.
#[track_caller]
fn run(docker: &Docker, arguments: &[&str], script: &str) -> String {
    let mut bash = docker.on_machine("bash");
    bash.args(["-s", "-"]).args(arguments);
    bash.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut bash = bash.spawn().expect("nsenter (util-linux) can be started");
    let mut input = bash.stdin.take().expect("it is piped");
    input.write_all(script.as_bytes()).expect("bash reads it");
    drop(input);
    let ran = bash.wait_with_output().expect("it is ours");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// The unit that the user data wrote, read as systemd reads it.
struct Unit {
    text: String,
}

impl Unit {
    #[track_caller]
    fn value(&self, key: &str) -> &str {
        let mut lines = self.text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key} in {}", self.text))
    }

    /// One of its command lines, not yet started.
    fn command(&self, docker: &Docker, key: &str) -> Command {
        let mut env = docker.on_machine("env");
        env.arg(self.value("Environment"));
        env.args(self.value(key).split_whitespace());
        env
    }

    /// Whether a code is in a list of codes.
    fn lists(&self, key: &str, code: i32) -> bool {
        let mut listed = self.value(key).split_whitespace();
        listed.any(|one| one == code.to_string())
    }
}

/// The service on one machine, from its start to its end.
struct Service<'a> {
    docker: &'a Docker,
    unit: &'a Unit,
    main: Child,
    stdout: Output,
    stderr: Output,
}

impl<'a> Service<'a> {
    #[track_caller]
    fn start(docker: &'a Docker, unit: &'a Unit) -> Self {
        let before = unit.command(docker, "ExecStartPre").output();
        let before = before.expect("nsenter can be started");
        assert!(before.status.success(), "{before:?}");
        let mut main = unit.command(docker, "ExecStart");
        main.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut main = main.spawn().expect("nsenter can be started");
        Self {
            docker,
            unit,
            stdout: Output::capture(main.stdout.take().expect("it is piped")),
            stderr: Output::capture(main.stderr.take().expect("it is piped")),
            main,
        }
    }

    #[track_caller]
    fn wait_for(&self, line: &str) {
        wait_until(PATIENCE, &format!("{line:?}"), || {
            self.stdout.lines().iter().any(|found| found == line)
        });
    }

    #[track_caller]
    fn wait_for_log(&self, words: &str) {
        let found = |line: &str| line.contains(words);
        self.stderr.wait_for_line(words, PATIENCE, found);
    }

    /// The code it ended with.
    #[track_caller]
    fn end(&mut self) -> i32 {
        let ended = wait_for(PATIENCE, "the end of the service", || {
            self.main.try_wait().expect("it is ours")
        });
        self.stdout.wait_for_end(PATIENCE);
        self.stderr.wait_for_end(PATIENCE);
        ended.code().expect("docker ends with a code")
    }

    /// `systemctl stop`
    #[track_caller]
    fn stop(&mut self) -> i32 {
        let stop = self.unit.command(self.docker, "ExecStop").output();
        let stop = stop.expect("nsenter can be started");
        assert!(stop.status.success(), "{stop:?}");
        self.end()
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the service's stderr:\n{}", self.stderr.text());
            // The engine, which ends with this program, removes the container.
        }
    }
}

#[test]
fn a_machine_of_the_fleet_is_evicted_and_the_next_one_goes_on() {
    let fleet = Fleet::handed_over();
    let docker = Docker::get();
    let aws = Lookalike::at(fleet.fact("aws"), fleet.fact("region"));
    let lab = Lab::start();
    let instance = fleet.fact("instance");
    let is_on = |instance: &str| {
        lab.facts(json!({"instance-id": instance, "region": fleet.fact("region"), "role": fleet.fact("role")}));
    };

    // The first boot of the machine that the group started.
    is_on(instance);
    run(docker, &[&aws.url, &lab.url], STAND_INS);
    run(docker, &[], fleet.fact("user_data"));
    let told = run(docker, &[], "cat /run/systemctl");
    assert!(told.ends_with("start --no-block reprieve-job.service\n"));
    let unit = Unit {
        text: run(
            docker,
            &[],
            "cat /etc/systemd/system/reprieve-job.service; rm -rf /run/systemctl",
        ),
    };
    let mut first = Service::start(docker, &unit);
    first.wait_for_log("this worker owns the job");
    first.wait_for("line 20");
    wait_until(PATIENCE, "the machine's tag", || {
        aws.tags_of(instance)
            .get("reprieve:job")
            .is_some_and(|job| job == fleet.fact("job"))
    });

    // Its end, as AWS tells of it.
    aws.put_event(
        "aws.ec2",
        "EC2 Spot Instance Interruption Warning",
        &json!({"instance-id": instance, "instance-action": "terminate"}),
    );
    let token = "0f14d0ab-9605-4a62-a9e4-5ed26688389b";
    aws.put_event(
        "aws.autoscaling",
        "EC2 Instance-terminate Lifecycle Action",
        &json!({"LifecycleActionToken": token, "AutoScalingGroupName": fleet.fact("group"), "EC2InstanceId": instance,
                "LifecycleHookName": fleet.fact("hook"), "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING"}),
    );
    let code = first.end();
    assert_eq!(code, 75, "{}", first.stderr.text());
    // systemd takes that for a success and leaves the job to the next machine.
    assert!(unit.lists("SuccessExitStatus", code));
    assert!(unit.lists("RestartPreventExitStatus", code));

    // The snapshot is in the bucket, where the role lets the worker write.
    let keys = aws.keys(fleet.fact("bucket"));
    let below = format!("jobs/{}/", fleet.fact("job"));
    let allowed = |key: &String| key.starts_with(&below) || key.starts_with("jobs/~workers/");
    assert!(keys.iter().all(allowed), "{keys:?}");
    let manifests = format!("{below}manifests/");
    assert!(keys.iter().any(|key| key.starts_with(&manifests)));
    // Auto Scaling may end the machine, whose tags say what became of its job.
    let actions = lab.actions();
    let last = actions.last().expect("Auto Scaling was called");
    assert_eq!(last["Action"], "CompleteLifecycleAction", "{actions:?}");
    assert_eq!(last["LifecycleActionResult"], "CONTINUE");
    assert_eq!(last["LifecycleActionToken"], token);
    assert_eq!(last["AutoScalingGroupName"], fleet.fact("group"));
    assert_eq!(last["LifecycleHookName"], fleet.fact("hook"));
    let tags = aws.tags_of(instance);
    assert_eq!(tags["reprieve:state"], "over", "{tags:?}");
    assert!(tags.contains_key("reprieve:snapshot"), "{tags:?}");
    // Both events are done with, and neither was for nobody.
    for queue in ["queue", "dead"] {
        let request = json!({"QueueUrl": fleet.fact(queue), "AttributeNames": ["All"]});
        let held = aws.sqs("GetQueueAttributes", &request);
        let count = |name: &str| held["Attributes"][name] == "0";
        assert!(
            count("ApproximateNumberOfMessages") && count("ApproximateNumberOfMessagesNotVisible"),
            "{queue}: {held}"
        );
    }

    // The machine that replaces it: the same user data, nothing else.
    is_on(&aws.make_instance());
    let before = first.stdout.text();
    let mut second = Service::start(docker, &unit);
    second.wait_for_log("the job is resumed");
    second.wait_for(&format!("line {}", numbers(&before).len() + 5));
    let code = second.stop();
    assert_eq!(code, 75, "{}", second.stderr.text());
    assert_counts(&format!("{before}{}", second.stdout.text()), None);
}
