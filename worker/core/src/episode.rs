//! Many announcements, one end of the machine: what of all that was said counts now, and by when.
//!
//! One eviction arrives as up to four messages, some of them repeatedly. Each announcement is a claim; claims that tell
//! of the same event are one episode: those with the same identity, and those of one fate whose times lie close to each
//! other, whoever said so. Of all claims the earliest deadline counts. A withdrawal undoes what the same identity
//! claimed and nothing else. The wall clock is asked once, when an announcement is heard: from then on it may jump.

use crate::lifecycle::RequestId;
use crate::notice::{Announcement, Fate, Moment, Says, Source, WallMs};

/// Times of one event, told by two sources, differ by this at most: EventBridge tells when it was decided and leaves
/// the two minutes to the reader, and the metadata service says that its time is approximate.
const TOLERANCE_MS: u64 = 180_000;

/// A time that lies further in the past belongs to an event that is over: queues keep messages for days, and a metadata
/// service may keep a notice that was not carried out.
const STALE_MS: u64 = 600_000;

/// The time that is taken to be left when the announced one has passed and the machine is still there.
const LATE_MS: u64 = 30_000;

/// Two SIGTERMs that come within this time are one: both leave the same time.
const ONE_SIGNAL_MS: u64 = 1_000;

/// Times are told to the second, and corrected by clocks that are.
const ROUNDING_MS: u64 = 2_000;

/// Identities that were heard are remembered, so that one that is told again later is not news.
const REMEMBERED: usize = 1_000;

#[derive(Clone, Debug)]
struct Claim {
    source: Source,
    identity: String,
    fate: Fate,
    at: Option<WallMs>,
    deadline: Option<Moment>,
    heard: Moment,
    episode: u64,
    waiting: Vec<RequestId>,
}

/// What an announcement amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The first word of an event.
    News { episode: u64 },
    /// More word of an event that is known.
    Joined { episode: u64 },
    /// It was said before, and what it led to is over.
    Over,
    /// Its time has passed long ago.
    Stale { by_ms: u64 },
    /// What it said before does not count any more; these waited for it.
    Withdrawn(Vec<RequestId>),
}

/// The end that is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Going {
    pub fate: Fate,
    pub source: Source,
    /// None where the provider gives no time: it may be any moment.
    pub deadline: Option<Moment>,
    /// When the first of all announcements of an end was heard; of one without a time, when it was.
    pub since: Moment,
    /// Whoever said so waits for our end, or it may come at any moment.
    pub at_once: bool,
}

/// Everything that was announced and still counts.
#[derive(Debug, Default)]
pub struct Episodes {
    claims: Vec<Claim>,
    /// With the time that was announced last.
    remembered: Vec<(Source, String, Option<WallMs>)>,
    begun: u64,
}

impl Episodes {
    /// Takes an announcement in. `id` waits for what becomes of it, unless it is answered by the result.
    pub fn hear(
        &mut self,
        announcement: Announcement,
        id: RequestId,
        now: Moment,
        wall_now: WallMs,
    ) -> Heard {
        let Announcement {
            source,
            identity,
            says,
        } = announcement;
        let (fate, at) = match says {
            Says::Goes { fate, at } => (fate, at),
            Says::Withdrawn => return Heard::Withdrawn(self.withdraw(source, &identity)),
        };
        let past_ms = at.map_or(0, |at| wall_now.0.saturating_sub(at.0));
        if past_ms > STALE_MS {
            return Heard::Stale { by_ms: past_ms };
        }
        let deadline = at.map(|at| match at.0.saturating_sub(wall_now.0) {
            0 => now.plus_ms(LATE_MS),
            left => now.plus_ms(left),
        });
        let known = |claim: &&mut Claim| claim.source == source && claim.identity == identity;
        if let Some(claim) = self.claims.iter_mut().find(known) {
            // A new time is the provider's word; the same time, seen through a clock that was set, can only be taken
            // for the worse.
            claim.deadline = match (claim.at == at, claim.deadline, deadline) {
                (true, Some(before), Some(after)) => Some(before.min(after)),
                (_, _, after) => after,
            };
            claim.at = at;
            claim.fate = fate;
            claim.waiting.push(id);
            return Heard::Joined {
                episode: claim.episode,
            };
        }
        if let Some(before) = self.remembered_time(source, &identity) {
            if !is_put_off(before, at, wall_now) {
                return Heard::Over;
            }
            self.forget(source, &identity);
        }
        let related = self.claims.iter().find(|claim| same(claim, fate, at));
        let (episode, heard) = match related {
            Some(claim) => {
                let episode = claim.episode;
                (episode, Heard::Joined { episode })
            }
            None => {
                self.begun += 1;
                let episode = self.begun;
                (episode, Heard::News { episode })
            }
        };
        self.claims.push(Claim {
            source,
            identity,
            fate,
            at,
            deadline,
            heard: now,
            episode,
            waiting: vec![id],
        });
        heard
    }

    /// SIGTERM, or what settings take for it. Whether it is news. One that is sent again while nothing is done about the
    /// first, because that failed, begins a time of its own: whoever sends it does not end us before. So does one that comes
    /// while something is done about the first, which then has still to be done in the first one's time; the second's
    /// counts if that has passed in vain.
    pub fn terminated(&mut self, deadline: Moment, now: Moment, is_done_about: bool) -> bool {
        let is_signal = |claim: &Claim| claim.source == Source::Signal;
        let mut known = self.claims.iter().filter(|claim| is_signal(claim));
        let (first, is_only) = (known.next().map(|claim| claim.deadline), known.count() == 0);
        if let Some(first) = first {
            let apart = first.map_or(0, |first| first.ms_until(deadline));
            match is_done_about {
                true if apart <= ONE_SIGNAL_MS => return false,
                // Each further one takes the second's place.
                true if is_only => {}
                true => {
                    let second = self.claims.iter_mut().rfind(|claim| is_signal(claim));
                    if let Some(second) = second {
                        second.deadline = second.deadline.max(Some(deadline));
                    }
                    return false;
                }
                false => self.give_up_signal(),
            }
        }
        let related = self.claims.iter().find(|claim| claim.fate != Fate::AtRisk);
        let episode = match related {
            Some(claim) => claim.episode,
            None => {
                self.begun += 1;
                self.begun
            }
        };
        self.claims.push(Claim {
            source: Source::Signal,
            identity: "SIGTERM".to_owned(),
            fate: Fate::Terminate,
            at: None,
            deadline: Some(deadline),
            heard: now,
            episode,
            waiting: Vec::new(),
        });
        first.is_none()
    }

    /// The end of the machine that has to be reckoned with: the earliest of all that were announced.
    pub fn going(&self) -> Option<Going> {
        let ends = || {
            self.claims
                .iter()
                .filter(|claim| claim.fate != Fate::AtRisk)
        };
        let first = ends().min_by_key(|claim| claim.deadline.unwrap_or(Moment(0)))?;
        Some(Going {
            fate: first.fate,
            source: first.source,
            deadline: first.deadline,
            since: match first.deadline {
                Some(_) => ends().map(|claim| claim.heard).min()?,
                None => first.heard,
            },
            at_once: first.deadline.is_none() || ends().any(|claim| claim.source == Source::Signal),
        })
    }

    /// SIGTERM was received: whoever sent it waits for our end.
    pub fn is_terminated(&self) -> bool {
        self.claims
            .iter()
            .any(|claim| claim.source == Source::Signal)
    }

    /// Since when the machine is said to be at risk, and by whom.
    pub fn at_risk(&self) -> Option<(Moment, Source)> {
        let risks = self
            .claims
            .iter()
            .filter(|claim| claim.fate == Fate::AtRisk);
        risks.map(|claim| (claim.heard, claim.source)).min()
    }

    /// The job is safe as of `moment`: those who announced a risk before can be told.
    pub fn safe(&mut self, moment: Moment) -> Vec<RequestId> {
        let told = |claim: &&mut Claim| {
            matches!(claim.fate, Fate::AtRisk | Fate::Hibernate) && claim.heard <= moment
        };
        let claims = self.claims.iter_mut().filter(told);
        claims.flat_map(|claim| claim.waiting.drain(..)).collect()
    }

    /// Ends every claim of an end whose deadline has come, and returns those who waited for it.
    pub fn pass(&mut self, now: Moment) -> Vec<RequestId> {
        self.end(|claim| {
            claim.fate != Fate::AtRisk && claim.deadline.is_some_and(|deadline| deadline <= now)
        })
    }

    /// The job cannot be saved from what SIGTERM told of.
    pub fn give_up_signal(&mut self) {
        self.end(|claim| claim.source == Source::Signal);
    }

    /// Ends every claim without a time: what could be done was done.
    pub fn give_up_undated(&mut self) -> Vec<RequestId> {
        self.end(|claim| claim.fate != Fate::AtRisk && claim.deadline.is_none())
    }

    /// Ends everything, and returns those who waited.
    pub fn close(&mut self) -> Vec<RequestId> {
        self.end(|_| true)
    }

    fn withdraw(&mut self, source: Source, identity: &str) -> Vec<RequestId> {
        let ended = self.end(|claim| claim.source == source && claim.identity == identity);
        // Said again after it was taken back, it is news.
        self.forget(source, identity);
        ended
    }

    fn forget(&mut self, source: Source, identity: &str) {
        self.remembered
            .retain(|(by, known, _)| *by != source || known != identity);
    }

    fn end(&mut self, ends: impl Fn(&Claim) -> bool) -> Vec<RequestId> {
        let mut waited = Vec::new();
        for claim in self.claims.extract_if(.., |claim| ends(claim)) {
            waited.extend(claim.waiting);
            if claim.source != Source::Signal {
                self.remembered
                    .push((claim.source, claim.identity, claim.at));
            }
        }
        let surplus = self.remembered.len().saturating_sub(REMEMBERED);
        self.remembered.drain(..surplus);
        waited
    }

    /// The time that was announced of what is over, if this is.
    fn remembered_time(&self, source: Source, identity: &str) -> Option<Option<WallMs>> {
        let mut remembered = self.remembered.iter();
        remembered
            .find(|(by, known, _)| *by == source && known == identity)
            .map(|(_, _, at)| *at)
    }
}

/// What is over and is told again is to come all the same, if its time is another one now and lies ahead: an instance that
/// hibernated is interrupted again, or the provider took longer than it had said.
fn is_put_off(before: Option<WallMs>, at: Option<WallMs>, wall_now: WallMs) -> bool {
    at.is_some_and(|at| {
        at > wall_now && before.is_none_or(|before| at.0 > before.0.saturating_add(ROUNDING_MS))
    })
}

fn same(claim: &Claim, fate: Fate, at: Option<WallMs>) -> bool {
    claim.fate == fate
        && match (claim.at, at) {
            (Some(one), Some(other)) => one.0.abs_diff(other.0) <= TOLERANCE_MS,
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Moment = Moment(1_000_000);
    const WALL: WallMs = WallMs(1_700_000_000_000);

    fn goes(source: Source, identity: &str, fate: Fate, in_ms: Option<i64>) -> Announcement {
        Announcement {
            source,
            identity: identity.to_owned(),
            says: Says::Goes {
                fate,
                at: in_ms.map(|ms| WallMs(WALL.0.saturating_add_signed(ms))),
            },
        }
    }

    fn spot(identity: &str, in_ms: i64) -> Announcement {
        goes(Source::Ec2Metadata, identity, Fate::Terminate, Some(in_ms))
    }

    fn hear(episodes: &mut Episodes, announcement: Announcement, id: u64) -> Heard {
        episodes.hear(announcement, RequestId(id), NOW, WALL)
    }

    #[test]
    fn one_interruption_told_by_two_sources_is_one_episode_with_the_earlier_deadline() {
        let mut all = Episodes::default();
        assert_eq!(
            hear(&mut all, spot("a", 120_000), 1),
            Heard::News { episode: 1 }
        );
        let bridge = goes(Source::Sqs, "b", Fate::Terminate, Some(117_000));
        assert_eq!(hear(&mut all, bridge, 2), Heard::Joined { episode: 1 });
        let going = all.going().expect("it goes");
        assert_eq!(going.deadline, Some(NOW.plus_ms(117_000)));
        assert_eq!(all.close(), [RequestId(1), RequestId(2)]);
    }

    #[test]
    fn what_is_told_again_is_no_news_and_a_new_time_counts() {
        let mut all = Episodes::default();
        hear(&mut all, spot("a", 120_000), 1);
        assert_eq!(
            hear(&mut all, spot("a", 120_000), 2),
            Heard::Joined { episode: 1 }
        );
        hear(&mut all, spot("a", 300_000), 3);
        assert_eq!(
            all.going().and_then(|going| going.deadline),
            Some(NOW.plus_ms(300_000))
        );
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_give_more_time() {
        let mut all = Episodes::default();
        hear(&mut all, spot("a", 120_000), 1);
        let later = WallMs(WALL.0 - 3_600_000);
        all.hear(spot("a", 120_000), RequestId(2), NOW, later);
        assert_eq!(
            all.going().and_then(|going| going.deadline),
            Some(NOW.plus_ms(120_000))
        );
    }

    #[test]
    fn a_withdrawal_undoes_its_own_and_the_next_deadline_counts() {
        let mut all = Episodes::default();
        hear(&mut all, spot("a", 60_000), 1);
        hear(
            &mut all,
            goes(Source::Azure, "m", Fate::Maintenance, Some(900_000)),
            2,
        );
        let withdrawal = Announcement {
            says: Says::Withdrawn,
            ..spot("a", 0)
        };
        assert_eq!(
            hear(&mut all, withdrawal.clone(), 3),
            Heard::Withdrawn(vec![RequestId(1)])
        );
        assert_eq!(all.going().map(|going| going.fate), Some(Fate::Maintenance));
        assert_eq!(hear(&mut all, withdrawal, 4), Heard::Withdrawn(vec![]));
        assert!(matches!(
            hear(&mut all, spot("a", 60_000), 5),
            Heard::News { .. }
        ));
    }

    #[test]
    fn a_time_just_passed_leaves_little_and_one_long_passed_counts_for_nothing() {
        let mut all = Episodes::default();
        assert_eq!(
            hear(&mut all, spot("old", -3_600_000), 1),
            Heard::Stale { by_ms: 3_600_000 }
        );
        assert_eq!(all.going(), None);
        hear(&mut all, spot("late", -5_000), 2);
        assert_eq!(
            all.going().and_then(|going| going.deadline),
            Some(NOW.plus_ms(LATE_MS))
        );
    }

    #[test]
    fn what_is_over_is_not_begun_again() {
        let mut all = Episodes::default();
        hear(&mut all, spot("a", 60_000), 1);
        assert_eq!(all.pass(NOW.plus_ms(59_999)), []);
        assert_eq!(all.pass(NOW.plus_ms(60_000)), [RequestId(1)]);
        assert_eq!(hear(&mut all, spot("a", 60_000), 2), Heard::Over);
    }

    #[test]
    fn what_is_over_and_gets_a_time_that_lies_ahead_is_to_come_again() {
        let mut all = Episodes::default();
        hear(&mut all, spot("a", 10_000), 1);
        hear(&mut all, goes(Source::Azure, "b", Fate::Stop, None), 2);
        all.pass(NOW.plus_ms(10_000));
        all.give_up_undated();
        let now = |announcement, id, all: &mut Episodes| {
            let later = WallMs(WALL.0 + 10_000);
            all.hear(announcement, RequestId(id), NOW.plus_ms(10_000), later)
        };
        // The same, and the same as a clock that is told to the second has it.
        for in_ms in [10_000, 11_500] {
            assert_eq!(now(spot("a", in_ms), 3, &mut all), Heard::Over);
        }
        let undated = goes(Source::Azure, "b", Fate::Stop, None);
        assert_eq!(now(undated, 4, &mut all), Heard::Over);
        assert!(matches!(
            now(spot("a", 130_000), 5, &mut all),
            Heard::News { .. }
        ));
        let left = all.going().and_then(|going| going.deadline);
        assert_eq!(left, Some(NOW.plus_ms(130_000)));
        // It is forgotten once, and remembered again.
        all.pass(NOW.plus_ms(130_000));
        assert_eq!(now(spot("a", 130_000), 6, &mut all), Heard::Over);
        let dated = goes(Source::Azure, "b", Fate::Stop, Some(60_000));
        assert!(matches!(now(dated, 7, &mut all), Heard::News { .. }));
    }

    #[test]
    fn a_second_sigterm_has_a_time_of_its_own_that_counts_after_the_first_ones() {
        let mut all = Episodes::default();
        let at = |ms| NOW.plus_ms(ms);
        let left = |all: &Episodes| all.going().and_then(|going| going.deadline);
        assert!(all.terminated(at(10_000), NOW, false));
        // A burst is one.
        assert!(!all.terminated(at(10_500), at(500), true));
        all.pass(at(10_000));
        assert_eq!(left(&all), None);
        assert!(all.terminated(at(30_000), at(20_000), false));
        for second in [25_000, 27_000, 29_000] {
            assert!(!all.terminated(at(second + 10_000), at(second), true));
        }
        assert_eq!(left(&all), Some(at(30_000)), "the earlier one counts");
        all.pass(at(30_000));
        assert_eq!(left(&all), Some(at(39_000)), "the newest is not lost");
        // One that comes while nothing is done takes the place of all before.
        assert!(!all.terminated(at(50_000), at(38_000), false));
        assert_eq!(left(&all), Some(at(50_000)));
        all.pass(at(50_000));
        assert_eq!(left(&all), None);
    }

    proptest! {
        /// Whatever is said in whatever order, whoever waits is answered exactly once.
        #[test]
        fn nobody_is_forgotten(script in proptest::collection::vec((0u8..6, 0u8..4, 0i64..400_000), 1..60)) {
            let mut all = Episodes::default();
            let mut answered = Vec::new();
            let mut asked = 0;
            for (kind, name, ms) in script {
                let identity = name.to_string();
                let fate = [Fate::Terminate, Fate::Maintenance, Fate::AtRisk][usize::from(name % 3)];
                let at = (fate != Fate::AtRisk).then_some(ms - 50_000);
                let source = if kind % 2 == 0 { Source::Sqs } else { Source::Ec2Metadata };
                let said = match kind {
                    0..=3 => goes(source, &identity, fate, at),
                    4 => Announcement { says: Says::Withdrawn, ..goes(source, &identity, fate, at) },
                    _ => {
                        answered.extend(all.pass(NOW.plus_ms(ms.unsigned_abs())));
                        continue;
                    }
                };
                asked += 1;
                let id = RequestId(asked);
                match all.hear(said, id, NOW, WALL) {
                    Heard::News { .. } | Heard::Joined { .. } => {}
                    Heard::Over | Heard::Stale { .. } => answered.push(id),
                    Heard::Withdrawn(waited) => { answered.extend(waited); answered.push(id); }
                }
            }
            answered.extend(all.close());
            answered.sort_by_key(|id| id.0);
            prop_assert_eq!(answered, (1..=asked).map(RequestId).collect::<Vec<_>>());
        }
    }
}
