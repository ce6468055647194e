//! Lets only so many uploads go side by side as the store bears.
//!
//! How many that is follows from its answers ([`Window`]). A turn is taken for each attempt and given back before the pause
//! that follows a refusal, so that those who wait for their turn have it meanwhile; waiting takes nothing of the attempt's
//! own time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reprieve_core::pace::{Answer, Round, Window};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{StoreError, StoreErrorKind};

/// The turns of those who upload to one store.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
    given_back: Notify,
}

#[derive(Debug)]
struct State {
    window: Window,
    /// Fewer may be wanted than the store bears.
    wanted: u32,
    under_way: usize,
}

/// The right to make one attempt.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    begun: Round,
}

impl Turns {
    /// Never more than `most` at once.
    pub fn new(most: u32) -> Self {
        let window = Window::new(most);
        Self {
            state: Mutex::new(State {
                window,
                wanted: most.max(1),
                under_way: 0,
            }),
            given_back: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no more than so many.
    pub fn want(&self, wanted: u32) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.wanted, wanted.max(1)) < wanted {
            drop(state);
            self.given_back.notify_waiters();
        }
    }

    fn try_take(&self) -> Option<Turn<'_>> {
        let mut state = self.lock();
        let has_room = state.window.has_room_beside(state.under_way)
            && state.under_way < state.wanted as usize;
        has_room.then(|| {
            state.under_way += 1;
            Turn {
                turns: self,
                begun: state.window.begin(),
            }
        })
    }

    /// Waits for one, until `deadline`.
    pub async fn take(&self, deadline: Instant) -> Option<Turn<'_>> {
        let taken = async {
            loop {
                // Listened for before the look, so that none is missed in between.
                let given_back = self.given_back.notified();
                if let Some(turn) = self.try_take() {
                    return turn;
                }
                given_back.await;
            }
        };
        timeout_at(deadline, taken).await.ok()
    }
}

impl Turn<'_> {
    /// The store has answered.
    pub fn ended<T>(self, result: &Result<T, StoreError>) {
        let answer = match result {
            Ok(_) => Answer::Stored,
            Err(error) if error.kind == StoreErrorKind::Throttled => Answer::SlowDown,
            Err(_) => Answer::Other,
        };
        self.turns.lock().window.ended(self.begun, answer);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().under_way -= 1;
        // There may be room for several, or, after a refusal, for none: each of them looks.
        self.turns.given_back.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn slow_down() -> Result<(), StoreError> {
        Err(StoreError::new(
            StoreErrorKind::Throttled,
            "put",
            "x",
            "simulated",
        ))
    }

    #[tokio::test]
    async fn a_turn_that_is_given_back_is_anothers_and_a_refusal_leaves_fewer() {
        let turns = Turns::new(2);
        let first = turns.take(soon()).await.expect("there is room");
        let second = turns.take(soon()).await.expect("there is room");
        assert!(turns.take(Instant::now()).await.is_none());
        let (third, ()) = tokio::join!(turns.take(soon()), async { drop(first) });
        assert!(third.is_some());
        second.ended(&slow_down());
        assert!(
            turns.take(Instant::now()).await.is_none(),
            "one is under way, one is the most"
        );
        drop(third);
        let alone = turns.take(soon()).await.expect("nobody else is there");
        assert!(turns.take(Instant::now()).await.is_none());
        alone.ended(&Ok(()));
        let both = (turns.take(soon()).await, turns.take(soon()).await);
        assert!(both.0.is_some() && both.1.is_some());
        drop(both);
        // Where fewer are wanted there are fewer, and more again when they are.
        turns.want(1);
        let alone = turns.take(soon()).await.expect("one is always wanted");
        assert!(turns.take(Instant::now()).await.is_none());
        let (other, ()) = tokio::join!(turns.take(soon()), async { turns.want(2) });
        assert!(other.is_some());
        drop(alone);
    }
}
