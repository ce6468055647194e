//! Which snapshots may go, and why each of the rest stays.

use crate::head::Generation;

/// How many of the newest snapshots stay at least; an older valid one is what a damaged newest one falls back on.
pub const LEAST_KEPT: usize = 2;

/// The generations that leave the head when another snapshot is committed, so that `keep` remain with it.
pub fn superseded(newest_first: &[Generation], keep: usize) -> Vec<u64> {
    let keep_of_these = keep.max(LEAST_KEPT) - 1;
    newest_first
        .iter()
        .skip(keep_of_these)
        .map(|known| known.generation)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generations(numbers: &[u64]) -> Vec<Generation> {
        numbers
            .iter()
            .map(|&generation| Generation {
                generation,
                manifest: String::new(),
                digest: String::new(),
                taken_at_ms: 0,
                stored_bytes: 0,
            })
            .collect()
    }

    #[test]
    fn the_oldest_go_once_there_are_more_than_are_kept() {
        assert_eq!(superseded(&generations(&[9, 8, 7, 6]), 3), vec![7, 6]);
        assert_eq!(superseded(&generations(&[9, 8]), 3), Vec::<u64>::new());
    }

    #[test]
    fn one_to_fall_back_on_stays_whatever_is_asked() {
        assert_eq!(superseded(&generations(&[9, 8]), 0), vec![8]);
    }
}
