//! Tries a store call again while that can help: the one place that does.
//!
//! Adapters make one attempt per call and name its outcome; this decides whether another is worth making. It never works
//! past the deadline, bounds each attempt, and spreads its pauses at random so that many workers that lost the same store
//! at once do not come back at once. What a lost reply may have done is for the caller to find out: a `put` that is told
//! [`StoreErrorKind::ConditionFailed`] on its second attempt may be looking at its own first one.

use std::future::Future;
use std::time::Duration;

use reprieve_core::pace;
use tokio::time::{Instant, sleep, timeout};

use super::turns::Turns;
use super::{ATTEMPT_LIMIT, StoreError, StoreErrorKind};
use crate::metrics::{self, StoreOperation, StoreOutcome};

/// The first pause is drawn from nothing to this; each further one from twice as much.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// No pause is longer: near an eviction a store that is back should be noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// With less time than this left another attempt is not begun: no store answers that fast.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(10);

/// Calls `op` until it succeeds, fails for good, or `deadline` comes. `name` says what is tried, for messages and, when
/// it is one of the port's calls, for the metrics.
///
/// An attempt that is cut off is dropped, and counts as [`StoreErrorKind::Unavailable`]. The error returned is the last
/// attempt's, with the number of attempts added.
pub async fn retry<T, F, Fut>(deadline: Instant, name: &str, op: F) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    attempts(|| deadline, name, None, op).await
}

/// The same for one of many, each attempt of which waits for its turn, and with a deadline that may change.
pub async fn retry_in_turn<T, F, Fut>(
    deadline: impl Fn() -> Instant,
    name: &str,
    turns: &Turns,
    op: F,
) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    attempts(deadline, name, Some(turns), op).await
}

async fn attempts<T, F, Fut>(
    deadline: impl Fn() -> Instant,
    name: &str,
    turns: Option<&Turns>,
    mut op: F,
) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, StoreError>>,
{
    let started = Instant::now();
    let mut attempts = 0_u32;
    let mut silent = 0_u32;
    let mut last: Option<StoreError> = None;
    loop {
        let turn = match turns {
            Some(turns) => turns.take(deadline()).await,
            None => None,
        };
        let left = deadline().saturating_duration_since(Instant::now());
        if left >= SHORTEST_ATTEMPT && turns.is_some() && turn.is_none() {
            // There is more time than when it began to wait.
            continue;
        }
        if left < SHORTEST_ATTEMPT {
            let error = last.unwrap_or_else(|| no_answer(name, "no time is left for it"));
            return Err(with_attempts(error, attempts, started));
        }
        attempts += 1;
        if attempts > 1 {
            metrics::store_retried();
        }
        let limit = pace::attempt_limit(left, ATTEMPT_LIMIT, silent);
        let result = timeout(limit, op()).await.unwrap_or_else(|_| {
            silent += 1;
            let message = format!("no answer within {:.1} s", limit.as_secs_f64());
            Err(no_answer(name, &message))
        });
        if let Some(turn) = turn {
            turn.ended(&result);
        }
        let error = match result {
            Ok(value) => {
                count(name, StoreOutcome::Ok);
                return Ok(value);
            }
            Err(error) => error,
        };
        count(name, error.kind.into());
        if !error.kind.is_retryable() {
            return Err(with_attempts(error, attempts, started));
        }
        let left = deadline().saturating_duration_since(Instant::now());
        last = Some(error);
        // Half of what is left at most, so that a long pause never takes the place of the last attempts.
        sleep(pause(attempts, fastrand::f64()).min(left / 2)).await;
    }
}

fn count(name: &str, outcome: StoreOutcome) {
    if let Some(operation) = StoreOperation::from_name(name) {
        metrics::store_request_ended(operation, outcome);
    }
}

/// Full jitter: anything from nothing to the doubled limit, by a `chance` from 0 to 1.
fn pause(attempts: u32, chance: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    FIRST_PAUSE
        .saturating_mul(1 << doublings)
        .min(LONGEST_PAUSE)
        .mul_f64(chance)
}

fn no_answer(name: &str, message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "wait for", name, message)
}

fn with_attempts(mut error: StoreError, attempts: u32, started: Instant) -> StoreError {
    if attempts != 1 {
        let seconds = started.elapsed().as_secs_f64();
        error.message = format!(
            "{} (gave up after {attempts} attempts in {seconds:.1} s)",
            error.message
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn failure(kind: StoreErrorKind) -> StoreError {
        StoreError::new(kind, "put", "file:///x/HEAD", "simulated")
    }

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn tries_again_until_it_succeeds() {
        let calls = Cell::new(0);
        let answer = retry(soon(10_000), "put", || async {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => Err(failure(StoreErrorKind::Throttled)),
                2 => Err(failure(StoreErrorKind::Conflict)),
                3 => Err(failure(StoreErrorKind::Unavailable)),
                _ => Ok(calls.get()),
            }
        })
        .await;
        assert_eq!(answer.expect("the fourth attempt succeeds"), 4);
    }

    #[tokio::test]
    async fn a_deadline_that_is_put_off_gives_an_attempt_more() {
        let begun = Instant::now();
        // At first there are 100 ms; after 50 ms there are ten minutes.
        let deadline = move || match begun.elapsed() < Duration::from_millis(50) {
            true => begun + Duration::from_millis(100),
            false => begun + Duration::from_secs(600),
        };
        let (calls, turns) = (Cell::new(0), Turns::new(1));
        let answer = retry_in_turn(deadline, "put", &turns, || async {
            calls.set(calls.get() + 1);
            if calls.get() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(calls.get())
        });
        assert_eq!(answer.await.expect("there was time for another one"), 2);
    }

    #[tokio::test]
    async fn a_refusal_is_not_repeated() {
        for kind in [
            StoreErrorKind::NotFound,
            StoreErrorKind::NoSuchStore,
            StoreErrorKind::Denied,
            StoreErrorKind::ConditionFailed,
            StoreErrorKind::Full,
            StoreErrorKind::BadSize,
            StoreErrorKind::Other,
        ] {
            let calls = Cell::new(0);
            let error = retry(soon(10_000), "put", || async {
                calls.set(calls.get() + 1);
                Err::<(), _>(failure(kind))
            })
            .await
            .expect_err("it always fails");
            assert_eq!((error.kind, calls.get()), (kind, 1));
            assert_eq!(error.message, "simulated");
        }
    }

    #[tokio::test]
    async fn gives_up_at_the_deadline_and_says_how_often_it_tried() {
        let deadline = soon(200);
        let calls = Cell::new(0);
        let error = retry(deadline, "put", || async {
            calls.set(calls.get() + 1);
            Err::<(), _>(failure(StoreErrorKind::Unavailable))
        })
        .await
        .expect_err("it always fails");
        assert!(calls.get() > 1);
        assert!(
            error
                .message
                .contains(&format!("after {} attempts", calls.get())),
            "{error}"
        );
        // Pauses never reach past it; what is allowed here is the machine being busy.
        assert!(Instant::now() < deadline + Duration::from_secs(5));
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_cut_off_at_the_deadline() {
        let error = retry(
            soon(50),
            "commit",
            std::future::pending::<Result<(), StoreError>>,
        )
        .await
        .expect_err("it hangs");
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert!(
            error
                .to_string()
                .starts_with("wait for commit: no answer within 0.0 s"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_leaves_time_for_another() {
        let calls = Cell::new(0);
        let answer = retry(soon(6_000), "put", async || {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => std::future::pending().await,
                _ => Ok(calls.get()),
            }
        })
        .await;
        assert_eq!(answer.expect("the second attempt succeeds"), 2);
    }

    #[tokio::test]
    async fn nothing_is_begun_after_the_deadline() {
        let error = retry(Instant::now(), "commit", || async {
            Ok::<_, StoreError>(())
        })
        .await
        .expect_err("too late");
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert!(error.message.contains("no time is left"), "{error}");
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let longest: Vec<u128> = (1..=9)
            .map(|attempts| pause(attempts, 1.0).as_millis())
            .collect();
        assert_eq!(longest, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause(5, 0.0), Duration::ZERO);
        assert_eq!(pause(u32::MAX, 1.0), LONGEST_PAUSE);
    }
}
