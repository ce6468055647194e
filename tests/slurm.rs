//! Slurm itself, of Debian: a cluster of one node in a host, with the settings and the job of infra/slurm. A job that is
//! preempted, and one that is requeued, goes on where it stood.

mod harness;
mod job;

use std::fs;
use std::time::Duration;

use harness::{Host, Rootfs, project_path};
use job::{Store, assert_counts};

/// Makes a cluster of what infra/slurm has and what a cluster has besides. Slurm looks for addresses other than those of
/// loopback; this one leads nowhere.
const CLUSTER: &str = r#"
set -e
ip addr add 192.0.2.1/32 dev lo
echo 192.0.2.1 cluster >> /etc/hosts
mkdir -p /run/munge /run/slurm /var/spool/slurmctld /var/spool/slurmd /shared/snapshots
chown munge:munge /run/munge
cat <(grep -v "^$1" /example/slurm.conf) - > /etc/slurm/slurm.conf << END
ClusterName=test
SlurmctldHost=cluster(192.0.2.1)
NodeName=cluster NodeAddr=192.0.2.1 CPUs=1 State=UNKNOWN
SlurmUser=root
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldPidFile=/run/slurm/slurmctld.pid
END
echo CgroupPlugin=disabled > /etc/slurm/cgroup.conf
setpriv --reuid munge --regid munge --clear-groups munged
slurmd
exec slurmctld -D
"#;

/// Slurm looks for something to do every few seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a command on the cluster's node prints, which must succeed.
#[track_caller]
fn shell(cluster: &Host, script: &str) -> String {
    let ran = cluster.spawn(["bash", "-c", script]).wait(PATIENCE);
    assert_eq!(ran.code, 0, "{script}: {}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// Waits on the node until a command succeeds.
#[track_caller]
fn shell_until(cluster: &Host, condition: &str) {
    shell(
        cluster,
        &format!("until {condition}; do sleep 0.1; done 2> /dev/null"),
    );
}

/// The lines of the job's log that are the job's, and how often it was resumed.
fn log(store: &Store) -> (String, usize) {
    let log = fs::read_to_string(store.path().join("train-1.log")).expect("the job has a log");
    let lines = log.lines().filter(|line| line.starts_with("line "));
    let lines = lines.map(|line| format!("{line}\n")).collect();
    (lines, log.matches("the job is resumed").count())
}

/// A cluster that works, with a job that has begun.
#[track_caller]
fn cluster(store: &Store, without: &str) -> Host {
    let cluster = Host::builder("cluster")
        .rootfs(Rootfs::Slurm)
        // For addresses, and for the namespace that the job is put into.
        .add_capability("CAP_NET_ADMIN")
        .add_capability("CAP_SYS_ADMIN")
        .bind(store.path(), "/shared")
        .bind_read_only(project_path("infra/slurm"), "/example")
        .cwd("/shared")
        .args(["bash", "-c", CLUSTER, "cluster", without])
        .start();
    shell_until(&cluster, "sinfo --noheader --format %T | grep -q idle");
    shell(
        &cluster,
        "cd /shared && sbatch /example/job.sh python3 /apps/counter.py --pace 0.02",
    );
    shell_until(&cluster, "grep -q '^line 20$' /shared/train-1.log");
    cluster
}

/// A job that is more urgent takes the node, and when it is done the first one gets it back.
#[track_caller]
fn preempt(cluster: &Host, store: &Store) {
    shell(
        cluster,
        "sbatch --partition urgent --output /shared/urgent --wrap 'echo done'",
    );
    shell_until(cluster, "grep -q done /shared/urgent");
    assert_eq!(log(store).1, 0);
    goes_on(cluster, store, 1);
}

/// Waits until the job was resumed so often, and for its next lines. Slurm lets a job rest for two minutes whenever it is
/// queued again; this one is spared that.
#[track_caller]
fn goes_on(cluster: &Host, store: &Store, resumes: usize) {
    shell_until(
        cluster,
        &format!(
            "scontrol update JobId=1 StartTime=now; \
             test \"$(grep -c 'the job is resumed' /shared/train-1.log)\" = {resumes}"
        ),
    );
    let next = log(store).0.lines().count() + 20;
    shell_until(
        cluster,
        &format!("grep -q '^line {next}$' /shared/train-1.log"),
    );
}

/// Ends the job and looks at all it wrote.
#[track_caller]
fn end(cluster: &Host, store: &Store, wanted_resumes: usize) {
    shell(cluster, "scancel 1");
    shell_until(cluster, "test -z \"$(squeue --noheader --jobs 1)\"");
    let (lines, resumed) = log(store);
    assert_counts(&lines, None);
    assert_eq!(resumed, wanted_resumes);
}

#[test]
fn a_job_that_slurm_preempts_or_requeues_goes_on_where_it_stood() {
    let store = Store::new();
    let cluster = cluster(&store, "#");
    preempt(&cluster, &store);
    // Queued again by its exit code, and by nothing else.
    let job = shell(&cluster, "scontrol show job 1");
    assert!(job.contains("Restarts=1"), "{job}");
    // Somebody wants it to run elsewhere.
    shell(&cluster, "scontrol requeue 1");
    goes_on(&cluster, &store, 2);
    end(&cluster, &store, 2);
    cluster.destroy();
}

#[test]
fn a_job_queues_itself_again_where_slurm_does_not_know_the_exit_code() {
    let store = Store::new();
    let cluster = cluster(&store, "RequeueExit=");
    preempt(&cluster, &store);
    end(&cluster, &store, 1);
    cluster.destroy();
}

/// The settings that are shown agree with one another and with the program.
#[test]
fn the_example_agrees_with_the_program_and_with_itself() {
    let text = |name: &str| {
        fs::read_to_string(project_path("infra/slurm").join(name)).expect("it is there")
    };
    let (conf, script) = (text("slurm.conf"), text("job.sh"));
    let code = reprieve::failure::ExitCode::Checkpointed.number();
    assert!(conf.contains(&format!("\nRequeueExit={code}\n")));
    assert!(script.contains(&format!("$code == {code} ")));
    let seconds = |text: &str, before: &str| -> Duration {
        let (_, rest) = text
            .split_once(before)
            .unwrap_or_else(|| panic!("{before}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Duration::from_secs(digits.parse().expect("it is a number"))
    };
    let grace = seconds(&script, "REPRIEVE_TERM_GRACE=");
    for granted in [
        seconds(&conf, "GraceTime="),
        seconds(&conf, "KillWait="),
        seconds(&script, "TERM@"),
    ] {
        assert!(grace <= granted, "{grace:?} of {granted:?}");
    }
}
