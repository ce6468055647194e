//! How answers look to people: sizes, ages, tables, and a line of progress on a terminal.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks of the progress line.
const REFRESH: Duration = Duration::from_millis(100);

/// A size with three digits or so: `0 B`, `812 KiB`, `1.43 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (u64::BITS - 1 - bytes.leading_zeros()) / 10;
    // Hundredths, rounded down: a part is never shown as a whole.
    let hundredths = u128::from(bytes) * 100 / (1 << (10 * power));
    let unit = UNITS[power as usize - 1];
    match hundredths {
        0..1_000 => format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100),
        1_000..10_000 => format!("{}.{} {unit}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{} {unit}", hundredths / 100),
    }
}

/// An age in its two largest units: `5s`, `3m 20s`, `2d 4h`.
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let largest = units.iter().position(|(length, _)| seconds >= *length);
    let first = largest.unwrap_or(units.len() - 1);
    let mut left = seconds;
    let mut words = Vec::new();
    for (at, (length, unit)) in units.iter().enumerate().skip(first).take(2) {
        let count = left / length;
        left %= length;
        if count > 0 || at == first {
            words.push(format!("{count}{unit}"));
        }
    }
    words.join(" ")
}

/// Columns as wide as they need to be, two spaces apart.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| {
        let cells = all().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names and what they are, one a line.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = fields
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"));
    lines.collect()
}

/// How far a long command is, on stderr, and only if that is a terminal.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: Cell<u64>,
    shown: Cell<Option<Instant>>,
    is_seen: bool,
}

impl Progress {
    /// `total` bytes are to be gone through.
    pub(super) fn start(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            done: Cell::new(0),
            shown: Cell::new(None),
            is_seen: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn advance(&self, count: u64) {
        self.done.set(self.done.get() + count);
        let is_due = self
            .shown
            .get()
            .is_none_or(|shown| shown.elapsed() >= REFRESH);
        if self.is_seen && is_due {
            self.shown.set(Some(Instant::now()));
            let percent = (u128::from(self.done.get()) * 100)
                .checked_div(self.total.into())
                .unwrap_or(100)
                .min(100);
            self.show(&format!(
                "{}: {percent} % ({} of {})",
                self.what,
                bytes(self.done.get()),
                bytes(self.total)
            ));
        }
    }

    fn show(&self, line: &str) {
        // A terminal that is gone needs no progress.
        drop(write!(std::io::stderr(), "\r{line}\x1b[K"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.get().is_some() {
            self.show("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (831_488, "812 KiB"),
            (1024 * 1024 - 1, "1023 KiB"),
            (1_535_424_512, "1.42 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn ages_have_two_units() {
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (5_000, "5s"),
            (60_000, "1m"),
            (200_000, "3m 20s"),
            (3_605_000, "1h"),
            (187_200_000, "2d 4h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["1".to_owned(), "änders".into()],
            vec!["10".into(), "x".into()],
        ];
        assert_eq!(
            table(&["N", "WORD"], &rows),
            "N   WORD\n1   änders\n10  x\n"
        );
    }
}
