//! A table of single decisions, and random histories of everybody who writes to a job at once.

use proptest::prelude::*;

use super::*;
use crate::head::{Generation, Owner};
use crate::manifest::{AppFacts, HostFacts, Profile, Sizes, Stdio};
use crate::notice::{Afterwards, Source};
use crate::retention::{self, Policy};

fn attempt(number: usize) -> String {
    format!("{number:026}")
}

fn part(key: &str) -> Part {
    Part {
        key: key.to_owned(),
        bytes: 1,
        digest: String::new(),
    }
}

fn object(key: impl Into<String>, stored_at_ms: u64) -> Object {
    Object {
        key: key.into(),
        bytes: 1,
        stored_at_ms,
    }
}

fn generation(number: u64, manifest: String) -> Generation {
    Generation {
        generation: number,
        manifest,
        digest: String::new(),
        taken_at_ms: 0,
        stored_bytes: 0,
        pinned: false,
        tags: Vec::new(),
        commands: Vec::new(),
        unknown: crate::document::Unknown::new(),
    }
}

fn manifest_of(generation: u64, epoch: u64, attempt: &str, parts: Vec<Part>) -> Manifest {
    Manifest {
        job: "job".into(),
        generation,
        epoch,
        attempt: attempt.to_owned(),
        parent: None,
        taken_at_ms: 0,
        trigger: Some(Source::Control),
        decision: None,
        storing: None,
        commands: Vec::new(),
        afterwards: Afterwards::Continue,
        app: AppFacts {
            argv: Vec::new(),
            root_pid: 1,
            stdio: Stdio::Terminal { rdev: 0, dev: 0 },
            stdin_ended: false,
            processes: 1,
            monotonic_ms: 0,
            library: None,
            filtered: false,
            programs: Default::default(),
            by_host_clocks: None,
            clocks: None,
            needs: Profile::Minimal,
        },
        host: HostFacts {
            page_size: 4096,
            ..HostFacts::default()
        },
        parts,
        index: Vec::new(),
        sizes: Sizes::default(),
        keys: Default::default(),
    }
}

#[test]
fn every_object_has_its_reason() {
    const NOW: u64 = 10_000_000;
    let [one, two, three, four, five, six] = [1, 2, 3, 4, 5, 6].map(attempt);
    // Generation 2 counts, and refers to a part that generation 1 wrote; 1 was dropped.
    let manifest_2 = manifest::key(2, 4, &two);
    let mut head = Head {
        epoch: 4,
        next_generation: 3,
        generations: vec![generation(2, manifest_2.clone())],
        ..Head::new("job")
    };
    head.condemned.push(six.clone());
    let parts = [
        part(&format!("data/{one}/000000")),
        part(&format!("data/{two}/000000")),
    ];
    let live = [Live {
        generation: 2,
        parts: &parts,
    }];
    let expected: Vec<(Object, &str)> = vec![
        (object("HEAD", 0), "stays: it is the head"),
        (object(manifest_2, 0), "stays: manifest of generation 2"),
        (
            object(manifest::key(1, 4, &one), 0),
            "goes: its snapshot does not count any more",
        ),
        (
            object(format!("data/{one}/000000"), 0),
            "stays: referenced by generation 2",
        ),
        (
            object(format!("data/{one}/000001"), NOW - 1),
            "goes: its snapshot does not count any more",
        ),
        (
            object(format!("data/{two}/000000"), 0),
            "stays: referenced by generation 2",
        ),
        (
            object(format!("data/{two}/more"), 0),
            "stays: written for generation 2",
        ),
        // An earlier owner's, complete and never committed.
        (
            object(manifest::key(3, 3, &three), NOW - 1),
            "goes: its snapshot does not count any more",
        ),
        (
            object(format!("data/{three}/000000"), NOW - 1),
            "goes: its snapshot does not count any more",
        ),
        // One of these was written to just now, so the whole attempt is in flight.
        (
            object(format!("data/{four}/000000"), 0),
            "stays: of somebody who wrote 1 s ago and may still be at it",
        ),
        (
            object(format!("data/{four}/000001"), NOW - 1000),
            "stays: of somebody who wrote 1 s ago and may still be at it",
        ),
        (
            object(format!("data/{five}/000000"), NOW - 5000),
            "goes: of an attempt or a sweep that was given up",
        ),
        (
            object(manifest::key(3, 4, &five), NOW - 5000),
            "goes: of an attempt or a sweep that was given up",
        ),
        (
            object(format!("data/{six}/000000"), NOW - 1),
            "goes: of an attempt or a sweep that was given up",
        ),
        (
            object("clock/x", NOW - 1000),
            "stays: of somebody who wrote 1 s ago and may still be at it",
        ),
        (
            object("clock/y", 0),
            "goes: of an attempt or a sweep that was given up",
        ),
        (object("data/readme", 0), "stays: not a key of Reprieve's"),
        (object("notes", 0), "stays: not a key of Reprieve's"),
        (
            object("manifests/mine", 0),
            "stays: not a key of Reprieve's",
        ),
    ];
    let objects: Vec<Object> = expected.iter().map(|(object, _)| object.clone()).collect();
    let plan = plan(&Facts {
        head: &head,
        live: &live,
        objects: &objects,
        passed: &BTreeSet::new(),
        now_ms: NOW,
        grace_ms: 5000,
    });
    for (entry, (_, verdict)) in plan.entries.iter().zip(&expected) {
        assert_eq!(entry.verdict.to_string(), *verdict, "{}", entry.key);
    }
    assert_eq!(plan.condemned, [five]);
    let going = plan.going();
    assert_eq!((going.len() as u64, going.len()), (plan.freed(), 8));
    // Each manifest, its data right behind it, and what never had one at the end.
    for (at, entry) in going.iter().enumerate() {
        let Some((_, _, attempt)) = manifest::parse_key(&entry.key) else {
            continue;
        };
        let is_its = |other: &&&Entry| manifest::data_attempt(&other.key) == Some(attempt);
        assert!(!going[..at].iter().any(|other| is_its(&other)), "{going:?}");
        let its = going.iter().filter(is_its).count();
        let behind = going[at + 1..].iter().take_while(is_its).count();
        assert_eq!(behind, its, "{going:?}");
    }
}

#[test]
fn what_an_earlier_sweep_has_begun_with_goes_first_and_without_a_grace() {
    let [left, dropped, young] = [1, 2, 3].map(attempt);
    let head = Head {
        epoch: 1,
        next_generation: 3,
        ..Head::new("job")
    };
    let keys = [
        format!("data/{left}/000000"),
        format!("data/{dropped}/000000"),
        format!("data/{young}/000000"),
        manifest::key(2, 1, &dropped),
    ];
    let objects = keys.each_ref().map(|key| object(key.clone(), 0));
    let going = |passed: &BTreeSet<String>| -> Vec<String> {
        let plan = plan(&Facts {
            head: &head,
            live: &[],
            objects: &objects,
            passed,
            now_ms: 0,
            grace_ms: 1,
        });
        assert_eq!(plan.condemned, [""; 0]);
        plan.going().iter().map(|entry| entry.key.clone()).collect()
    };
    let [of_left, of_dropped, _, of_manifest] = keys;
    let forgotten = [of_manifest, of_dropped];
    assert_eq!(going(&BTreeSet::new()), forgotten);
    let remembered = [of_left].into_iter().chain(forgotten);
    assert_eq!(
        going(&BTreeSet::from([left])),
        remembered.collect::<Vec<_>>()
    );
}

#[test]
fn of_reports_the_newest_stay() {
    let head = Head::new("job");
    let surplus = 3;
    // Not in their order, as a listing could have them beside other objects.
    let objects: Vec<Object> = (0..report::KEPT + surplus)
        .rev()
        .map(|number| object(format!("reports/{}", attempt(number)), 0))
        .chain([object("reports/mine", 0)])
        .collect();
    let plan = plan(&Facts {
        head: &head,
        live: &[],
        objects: &objects,
        passed: &BTreeSet::new(),
        now_ms: 0,
        grace_ms: 0,
    });
    let mut going: Vec<&str> = plan.going().iter().map(|entry| &*entry.key).collect();
    going.sort_unstable();
    let oldest: Vec<String> = (0..surplus)
        .map(|number| format!("reports/{}", attempt(number)))
        .collect();
    assert_eq!(going, oldest);
    let last = plan.entries.last().expect("each object has its verdict");
    assert_eq!(last.verdict, Verdict::Stays(Stays::Unknown));
}

#[test]
fn a_commit_has_three_things_to_fear() {
    let [own, other] = [1, 2].map(attempt);
    let base = manifest::key(1, 1, &other);
    let head = Head {
        next_generation: 2,
        generations: vec![generation(1, base.clone())],
        ..Head::new("job")
    };
    let mine = part(&format!("data/{own}/000000"));
    let foreign = part(&format!("data/{other}/000000"));
    let manifest = |number| manifest_of(number, 1, &own, vec![mine.clone(), foreign.clone()]);
    let alone = manifest_of(2, 1, &own, vec![mine.clone()]);
    assert_eq!(may_commit(&head, &manifest(2), Some(&base)), Ok(()));
    assert_eq!(
        may_commit(&head, &manifest(1), Some(&base)),
        Err(Refusal::Taken(1))
    );
    let dropped = head.without(&[1], String::new());
    for (head, base) in [(&dropped, Some(base.as_str())), (&head, None)] {
        assert_eq!(may_commit(head, &manifest(2), base), Err(Refusal::Dropped));
        assert_eq!(may_commit(head, &alone, base), Ok(()));
    }
    let condemned = head.condemning(std::slice::from_ref(&own), String::new());
    assert_eq!(
        may_commit(&condemned, &manifest(2), Some(&base)),
        Err(Refusal::Condemned)
    );
}

/// What somebody does next; numbers choose among what is possible.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Takes the job over, going on from one of the newest snapshots.
    Claim(usize, usize),
    /// Begins an attempt, referring to about so many of eight of the newest snapshot's parts.
    Begin(usize, u8),
    Upload(usize),
    /// Stores memory ahead: so many parts, under a new attempt if the first is set.
    Seed(usize, bool, usize),
    Manifest(usize),
    Commit(usize),
    /// The reply is lost, so the writer goes on from what it knew before.
    CommitUnheard(usize),
    /// A whole checkpoint.
    Snapshot(usize, u8),
    Crash(usize),
    /// A sign of life, by which the owner also learns what others did to the head.
    Beat(usize),
    Prune(u8),
    Pass(u64),
    Look(usize),
    Condemn(usize),
    /// So many objects of those that it means to.
    Delete(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    // The second one is there to take over and to be fenced.
    let worker = prop_oneof![4 => Just(0usize), 1 => Just(1)];
    let sweeper = 0usize..2;
    prop_oneof![
        2 => (worker.clone(), 0usize..3).prop_map(|(worker, back)| Step::Claim(worker, back)),
        6 => (worker.clone(), any::<u8>()).prop_map(|(worker, reuse)| Step::Begin(worker, reuse)),
        4 => worker.clone().prop_map(Step::Upload),
        4 => (worker.clone(), any::<bool>(), 0usize..3)
            .prop_map(|(worker, anew, parts)| Step::Seed(worker, anew, parts)),
        6 => worker.clone().prop_map(Step::Manifest),
        6 => worker.clone().prop_map(Step::Commit),
        1 => worker.clone().prop_map(Step::CommitUnheard),
        6 => (worker.clone(), any::<u8>()).prop_map(|(worker, reuse)| Step::Snapshot(worker, reuse)),
        1 => worker.clone().prop_map(Step::Crash),
        3 => worker.prop_map(Step::Beat),
        4 => any::<u8>().prop_map(Step::Prune),
        2 => (0u64..20).prop_map(Step::Pass),
        4 => sweeper.clone().prop_map(Step::Look),
        4 => sweeper.clone().prop_map(Step::Condemn),
        4 => (sweeper, 1usize..10).prop_map(|(sweeper, count)| Step::Delete(sweeper, count)),
    ]
}

#[derive(Default)]
struct Worker {
    /// The head as it last wrote it.
    lease: Option<Head>,
    base: Option<Manifest>,
    attempt: Option<Manifest>,
    has_manifest: bool,
    /// What it stored ahead and may refer to.
    seeded: Vec<Part>,
}

#[derive(Default)]
struct Sweeper {
    planned_from: Option<(Head, Plan)>,
    deleting: Vec<String>,
    passed: BTreeSet<String>,
}

/// A store, and everybody who writes to the job.
struct World {
    objects: BTreeMap<String, u64>,
    manifests: BTreeMap<String, Manifest>,
    head: Head,
    now: u64,
    fresh: usize,
    workers: [Worker; 2],
    sweepers: [Sweeper; 2],
    commits: usize,
    deleted: usize,
}

const GRACE: u64 = 10;

impl World {
    /// A job that somebody runs already.
    fn new() -> Self {
        let mut world = Self {
            objects: BTreeMap::new(),
            manifests: BTreeMap::new(),
            head: Head::new("job"),
            now: 0,
            fresh: 0,
            workers: Default::default(),
            sweepers: Default::default(),
            commits: 0,
            deleted: 0,
        };
        world.step(Step::Claim(0, 0));
        world
    }

    fn fresh(&mut self) -> usize {
        self.fresh += 1;
        self.fresh
    }

    fn live<T>(&self, head: &Head, then: impl FnOnce(&[Live<'_>]) -> T) -> T {
        let live: Vec<Live<'_>> = head
            .generations
            .iter()
            .map(|known| Live {
                generation: known.generation,
                parts: &self.manifests[&known.manifest].parts,
            })
            .collect();
        then(&live)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Claim(worker, back) => {
                let word = self.fresh().to_string();
                let owner = Owner {
                    worker: word.clone(),
                    host: String::new(),
                    since_ms: 0,
                    beat: 0,
                };
                self.head = self.head.claimed(owner, word);
                let base = self.head.generations.get(back);
                self.workers[worker] = Worker {
                    lease: Some(self.head.clone()),
                    base: base.map(|base| self.manifests[&base.manifest].clone()),
                    ..Worker::default()
                };
            }
            Step::Begin(worker, reuse) => self.begin(worker, reuse),
            Step::Upload(worker) => {
                let number = self.fresh();
                if let Some(attempt) = &mut self.workers[worker].attempt
                    && !self.workers[worker].has_manifest
                {
                    let key = manifest::data_prefix(&attempt.attempt) + &number.to_string();
                    attempt.parts.push(part(&key));
                    self.objects.insert(key, self.now);
                }
            }
            Step::Seed(worker, anew, parts) => self.seed(worker, anew, parts),
            Step::Manifest(worker) => {
                let worker = &mut self.workers[worker];
                if let Some(attempt) = &worker.attempt {
                    worker.has_manifest = true;
                    self.manifests.insert(attempt.key(), attempt.clone());
                    self.objects.insert(attempt.key(), self.now);
                }
            }
            Step::Commit(worker) => self.commit(worker),
            Step::CommitUnheard(worker) => {
                let Worker { lease, base, .. } = &self.workers[worker];
                let (lease, base) = (lease.clone(), base.clone());
                self.commit(worker);
                if self.workers[worker].lease.is_some() {
                    self.workers[worker].lease = lease;
                    self.workers[worker].base = base;
                }
            }
            Step::Snapshot(worker, reuse) => {
                self.begin(worker, reuse);
                self.step(Step::Upload(worker));
                self.step(Step::Manifest(worker));
                self.commit(worker);
            }
            Step::Crash(worker) => self.workers[worker] = Worker::default(),
            Step::Beat(worker) => {
                let word = self.fresh().to_string();
                if let Some(lease) = &mut self.workers[worker].lease
                    && lease.has_same_owner(&self.head)
                {
                    self.head = self.head.beaten(word);
                    *lease = self.head.clone();
                }
            }
            Step::Prune(keep) => {
                let policy = Policy::last(usize::from(keep % 4));
                let dropped = retention::plan(&self.head.generations, policy).dropped();
                if !dropped.is_empty() {
                    let word = self.fresh().to_string();
                    self.head = self.head.without(&dropped, word);
                }
            }
            Step::Pass(time) => self.now += time,
            Step::Look(sweeper) => {
                let objects: Vec<Object> = self
                    .objects
                    .iter()
                    .map(|(key, stored_at_ms)| object(key.clone(), *stored_at_ms))
                    .collect();
                let passed = std::mem::take(&mut self.sweepers[sweeper].passed);
                let plan = self.live(&self.head, |live| {
                    plan(&Facts {
                        head: &self.head,
                        live,
                        objects: &objects,
                        passed: &passed,
                        now_ms: self.now,
                        grace_ms: GRACE,
                    })
                });
                self.sweepers[sweeper] = Sweeper {
                    planned_from: Some((self.head.clone(), plan)),
                    deleting: Vec::new(),
                    passed,
                };
            }
            Step::Condemn(sweeper) => {
                let word = self.fresh().to_string();
                let sweeper = &mut self.sweepers[sweeper];
                if let Some((head, plan)) = sweeper.planned_from.take()
                    && still_holds(&head, &self.head)
                {
                    if !plan.condemned.is_empty() {
                        self.head = self.head.condemning(&plan.condemned, word);
                    }
                    sweeper.deleting = plan
                        .going()
                        .iter()
                        .rev()
                        .map(|entry| entry.key.clone())
                        .collect();
                }
            }
            // However much later, and whatever happened since.
            Step::Delete(sweeper, count) => {
                for _ in 0..count {
                    let sweeper = &mut self.sweepers[sweeper];
                    if let Some(key) = sweeper.deleting.pop() {
                        if key.starts_with(manifest::PREFIX) {
                            sweeper.passed.extend(attempt_of(&key).map(str::to_owned));
                        }
                        self.objects.remove(&key);
                        self.deleted += 1;
                    }
                }
            }
        }
    }

    /// Not while a checkpoint is under way.
    fn seed(&mut self, worker: usize, anew: bool, parts: usize) {
        let (name, word) = (attempt(self.fresh()), self.fresh().to_string());
        let Worker {
            lease: Some(lease),
            attempt: None,
            ..
        } = &self.workers[worker]
        else {
            return;
        };
        if !lease.has_same_owner(&self.head) {
            return;
        }
        if anew || self.head.seeding.is_none() {
            self.workers[worker].seeded.clear();
            self.head = self.head.seeded(&name, word);
            self.workers[worker].lease = Some(self.head.clone());
        }
        let name = self.head.seeding.clone().expect("it was just set");
        for _ in 0..parts {
            let key = manifest::data_prefix(&name) + &self.fresh().to_string();
            self.objects.insert(key.clone(), self.now);
            self.workers[worker].seeded.push(part(&key));
        }
    }

    fn begin(&mut self, worker: usize, reuse: u8) {
        let name = attempt(self.fresh());
        let worker = &mut self.workers[worker];
        let (Some(lease), None) = (&worker.lease, &worker.attempt) else {
            return;
        };
        let base = worker.base.as_ref().filter(|base| {
            let named = lease.names(&base.key());
            // A base that is not whole any more is not built upon.
            named
                && base
                    .parts
                    .iter()
                    .all(|part| self.objects.contains_key(&part.key))
        });
        let reused = base.map_or_else(Vec::new, |base| {
            let chosen = (0..8).cycle().zip(&base.parts);
            chosen
                .filter(|(bit, _)| reuse & (1 << bit) != 0)
                .map(|(_, part)| part.clone())
                .collect()
        });
        let seeded = worker.seeded.iter().cloned();
        worker.attempt = Some(manifest_of(
            lease.next_generation,
            lease.epoch,
            &name,
            reused.into_iter().chain(seeded).collect(),
        ));
        worker.has_manifest = false;
    }

    /// The protocol of a commit, in the words of the catalog.
    fn commit(&mut self, worker: usize) {
        let word = self.fresh().to_string();
        let Worker {
            lease: Some(lease),
            attempt: Some(attempt),
            has_manifest: true,
            ..
        } = &self.workers[worker]
        else {
            return;
        };
        let (lease, attempt) = (lease.clone(), attempt.clone());
        let base = self.workers[worker].base.as_ref().map(Manifest::key);
        let is_ours = lease.has_same_owner(&self.head);
        let may = may_commit(&self.head, &attempt, base.as_deref()) == Ok(());
        if !is_ours {
            self.workers[worker] = Worker::default();
            return;
        }
        if may {
            let snapshot = generation(attempt.generation, attempt.key());
            let with = self.head.committed(snapshot, &[], String::new());
            let dropped = retention::plan(&with.generations, Policy::last(3)).dropped();
            self.head = with.without(&dropped, word);
            self.commits += 1;
            self.workers[worker].base = Some(attempt);
        }
        let worker = &mut self.workers[worker];
        worker.lease = Some(self.head.clone());
        worker.attempt = None;
    }

    /// What a live generation needs and the store does not have.
    fn lost(&self) -> Option<String> {
        let live = self.head.generations.iter();
        let mut needed = live.flat_map(|known| {
            let parts = self.manifests[&known.manifest].parts.iter();
            std::iter::once(&known.manifest).chain(parts.map(|part| &part.key))
        });
        needed.find(|key| !self.objects.contains_key(*key)).cloned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_history_loses_what_a_live_generation_needs(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for (at, step) in steps.iter().enumerate() {
            world.step(*step);
            prop_assert_eq!(world.lost(), None, "after step {}: {:?}", at, step);
        }
    }

    /// When everybody has left, one sweep leaves nothing but what counts.
    #[test]
    fn a_sweep_after_everybody_left_finds_all_litter(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(*step));
        world.head = world.head.released(None, String::new());
        world.now += GRACE;
        world.step(Step::Look(0));
        world.step(Step::Condemn(0));
        while !world.sweepers[0].deleting.is_empty() {
            world.step(Step::Delete(0, 100));
        }
        prop_assert_eq!(world.lost(), None);
        let needed: usize = world.head.generations.iter()
            .map(|known| &world.manifests[&known.manifest])
            .flat_map(|manifest| manifest.parts.iter().map(|part| part.key.clone()).chain([manifest.key()]))
            .collect::<BTreeSet<_>>()
            .len();
        prop_assert_eq!(world.objects.len(), needed, "{:?}", world.objects);
    }
}

/// The histories above are worth something only if they commit, build upon one another and sweep.
#[test]
fn the_histories_are_eventful() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut commits, mut deleted) = (0, 0);
    for _ in 0..100 {
        let steps = proptest::collection::vec(step(), 200)
            .new_tree(&mut runner)
            .expect("it is generated")
            .current();
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(*step));
        commits += world.commits;
        deleted += world.deleted;
    }
    assert!(
        commits > 200 && deleted > 200,
        "{commits} commits, {deleted} deleted"
    );
}

/// Histories that random ones meet too rarely.
#[test]
fn the_narrow_passages_lose_nothing() {
    use Step::*;
    let sweep = [Look(0), Condemn(0), Delete(0, 100)];
    let whole = Snapshot(0, 0);
    let histories: [(&str, Vec<Step>); 3] = [
        (
            "what a commit builds upon is pruned and swept before it",
            [
                whole,
                whole,
                whole,
                Claim(0, 2),
                Begin(0, 0xff),
                Upload(0),
                Prune(2),
            ]
            .into_iter()
            .chain(sweep)
            .chain([Manifest(0), Commit(0)])
            .collect(),
        ),
        (
            "a number is given away twice, and a sweep takes the second one for dropped",
            [
                whole,
                Begin(0, 0),
                Upload(0),
                Manifest(0),
                CommitUnheard(0),
                Begin(0, 0),
                Upload(0),
                Manifest(0),
            ]
            .into_iter()
            .chain(sweep)
            .chain([Commit(0)])
            .collect(),
        ),
        (
            "an attempt outlasts the grace and commits while it is swept",
            [
                whole,
                Begin(0, 0xff),
                Upload(0),
                Pass(GRACE),
                Look(0),
                Condemn(0),
            ]
            .into_iter()
            .chain([Beat(0), Manifest(0), Commit(0), Delete(0, 100)])
            .collect(),
        ),
    ];
    for (what, steps) in histories {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            assert_eq!(world.lost(), None, "{what}: after {step:?}");
        }
        assert!(world.deleted > 0, "{what}: nothing was swept");
    }
}
