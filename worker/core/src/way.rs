//! How fast the way to the store is: learned from the time in which at least one upload was under way, of checkpoints and
//! of seeding, also of small ones.
//!
//! Networks become slow from one moment to the next, often just when a machine is about to go, and a deadline that is
//! missed costs more than one that is met too early. So a mean that follows bytes, not samples, says what is usual; what
//! was seen last counts at once if it is slower than that, and is forgotten only as bytes come through faster.

const MIB: f64 = (1 << 20) as f64;

/// Fewer bytes tell of latency; they are kept until there are more.
const TELLING: u64 = 1 << 20;

/// So many MiB have the weight of all that was carried before.
const HALF: f64 = 64.0;

/// What reached the store, and how long at least one upload was under way for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub bytes: u64,
    pub busy_ms: u64,
}

impl Carried {
    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            busy_ms: self.busy_ms.saturating_add(other.busy_ms),
        }
    }

    fn mib(self) -> f64 {
        self.bytes as f64 / MIB
    }

    /// Milliseconds per MiB.
    fn pace(self) -> f64 {
        self.busy_ms as f64 / self.mib()
    }
}

/// A mean in which each sample has the weight of its bytes, and how far samples lie from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usual {
    mean: f64,
    deviation: f64,
}

impl Usual {
    fn first(pace: f64) -> Self {
        Self {
            mean: pace,
            // One sample says nothing of its spread.
            deviation: pace / 4.0,
        }
    }

    fn add(&mut self, of: Carried) {
        let weight = of.mib() / (of.mib() + HALF);
        let error = of.pace() - self.mean;
        self.mean += weight * error;
        self.deviation += weight * (error.abs() - self.deviation);
    }
}

/// What is known of the way to the store, in milliseconds per MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    usual: Option<Usual>,
    /// Of the newest that told.
    newest: f64,
    /// Of uploads without company.
    alone: Option<Usual>,
    /// Too little to tell, so far.
    small: Carried,
    small_alone: Carried,
}

impl Way {
    /// A checkpoint's uploads, as many side by side as there are.
    pub fn carried(&mut self, of: Carried) {
        let Some(of) = enough(&mut self.small, of) else {
            return;
        };
        self.newest = of.pace();
        match &mut self.usual {
            Some(usual) => usual.add(of),
            None => self.usual = Some(Usual::first(of.pace())),
        }
    }

    /// Uploads one after the other, as seeding's are. Many side by side are no slower than that; how much faster, the way's
    /// usual pace says.
    pub fn carried_alone(&mut self, of: Carried) {
        let Some(of) = enough(&mut self.small_alone, of) else {
            return;
        };
        let pace = of.pace();
        match &mut self.usual {
            None => (self.usual, self.newest) = (Some(Usual::first(pace)), pace),
            Some(usual) => {
                let slower = self
                    .alone
                    .map_or(1.0, |alone| pace / alone.mean.max(f64::EPSILON));
                // What became this much slower for one did so for many.
                let many = (usual.mean * slower.max(1.0)).min(pace);
                self.newest = self.newest.min(pace).max(many);
                usual.mean = usual.mean.min(pace);
            }
        }
        match &mut self.alone {
            Some(alone) => alone.add(of),
            None => self.alone = Some(Usual::first(pace)),
        }
    }

    /// What a MiB hardly takes longer than. None before anything was carried.
    pub fn ms_per_mib_at_most(&self) -> Option<f64> {
        let usual = self.usual?;
        let pace = usual.mean.max(self.newest);
        // That it became slower is no spread of what it is now.
        Some(pace + (2.0 * usual.deviation).min(pace / 2.0))
    }

    /// Bytes per second, as they were seen last or as is usual, whichever is fewer. None before anything was carried.
    pub fn bytes_per_second(&self) -> Option<f64> {
        let pace = self.usual?.mean.max(self.newest);
        (pace > 0.0).then(|| MIB * 1000.0 / pace)
    }

    /// The same of a single upload.
    pub fn alone_bytes_per_second(&self) -> Option<f64> {
        let pace = self.alone?.mean;
        (pace > 0.0).then(|| MIB * 1000.0 / pace)
    }
}

/// Together with what was too little before, if that is enough.
fn enough(small: &mut Carried, of: Carried) -> Option<Carried> {
    let of = small.and(of);
    let tells = of.bytes >= TELLING;
    *small = if tells { Carried::default() } else { of };
    tells.then_some(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// So many KiB at so many milliseconds per MiB.
    fn at(kib: u64, pace: u64) -> Carried {
        Carried {
            bytes: kib << 10,
            busy_ms: kib * pace / 1024,
        }
    }

    fn after(all: &[Carried]) -> Way {
        let mut way = Way::default();
        for carried in all {
            way.carried(*carried);
        }
        way
    }

    #[test]
    fn a_way_that_becomes_slow_is_known_from_few_bytes() {
        let mut way = after(&[at(2 << 20, 4)]);
        way.carried(at(15 << 10, 40));
        let at_most = way.ms_per_mib_at_most().expect("something was carried");
        // That it was fast before makes it no worse than it is.
        assert!((40.0..=60.0).contains(&at_most), "{at_most}");
        // What is fast again is believed after as many bytes as it takes.
        way.carried(at(15 << 10, 4));
        let still = way.ms_per_mib_at_most().expect("something was carried");
        assert!((8.0..40.0).contains(&still), "{still}");
        for _ in 0..8 {
            way.carried(at(256 << 10, 4));
        }
        let again = way.ms_per_mib_at_most().expect("something was carried");
        assert!((4.0..6.0).contains(&again), "{again}");
    }

    #[test]
    fn a_lone_upload_that_becomes_slow_tells_of_many_and_a_fast_one_of_the_least() {
        let mut way = after(&[at(2 << 20, 4)]);
        way.carried_alone(at(8 << 10, 16));
        // Four side by side are as fast as before, as far as this tells.
        assert_eq!(way.newest, 4.0);
        way.carried_alone(at(8 << 10, 80));
        assert!((19.0..21.0).contains(&way.newest), "{}", way.newest);
        way.carried_alone(at(8 << 10, 2));
        assert!(way.bytes_per_second() >= Some(500.0 * MIB));
    }

    fn any() -> impl Strategy<Value = Carried> {
        (1u64..4 << 20, 1u64..500).prop_map(|(kib, pace)| at(kib, pace))
    }

    proptest! {
        #[test]
        fn nothing_is_promised_to_be_faster_than_what_was_seen_last(
            before in proptest::collection::vec(any(), 0..20), kib in 1024u64..1 << 20, pace in 1u64..1000,
        ) {
            let mut way = after(&before);
            way.carried(at(kib, pace));
            // Nor than what was too little to tell together with it.
            let seen = at(kib, pace).pace();
            let small = before.iter().any(|of| of.bytes < TELLING);
            prop_assert!(small || way.ms_per_mib_at_most() >= Some(seen));
        }

        #[test]
        fn many_small_ones_tell_what_one_large_one_does(kib in 64u64..1024, pace in 16u64..500) {
            let number = 64 * 1024 / kib;
            let one = at(kib, pace);
            let mut way = Way::default();
            for _ in 0..number {
                way.carried(one);
            }
            let told = way.bytes_per_second().expect("enough was carried") / MIB;
            let is = 1000.0 / one.pace();
            prop_assert!((told / is - 1.0).abs() < 0.01, "{told} for {is}");
        }

        #[test]
        fn a_steady_way_is_promised_as_it_is(kib in 1024u64..1 << 18, pace in 2u64..500) {
            let way = after(&[at(kib, pace); 12]);
            let at_most = way.ms_per_mib_at_most().expect("it was carried");
            let seen = at(kib, pace).pace();
            prop_assert!(at_most >= seen && at_most <= seen * 1.5 + 0.01, "{at_most} for {seen}");
        }
    }
}
