//! How answers look to people: sizes, ages, tables, and on a terminal colours and bars of progress.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

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
    let widest = |column: usize| {
        let cells = all().filter_map(|row| row.get(column));
        cells.map(|cell| width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(widest).collect();
    let mut text = String::new();
    for (at, row) in all().enumerate() {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, wanted)| format!("{cell}{}", " ".repeat(wanted - width(cell))))
            .collect();
        let line = line.join("  ");
        let line = line.trim_end();
        match at {
            0 => text.push_str(&coloured(line, Colour::Heading)),
            _ => text.push_str(line),
        }
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
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// `total` bytes are to be gone through.
    pub(super) fn start(what: &'static str, total: u64) -> Self {
        Self::with(
            what,
            total,
            "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        )
    }

    /// `total` things are to be gone through.
    pub(super) fn count(what: &'static str, total: u64) -> Self {
        Self::with(what, total, "{msg} {wide_bar} {pos} of {len}, {eta} left")
    }

    fn with(what: &'static str, total: u64, template: &str) -> Self {
        // It draws nothing where there is no terminal.
        let bar = ProgressBar::new(total).with_message(what);
        let style = ProgressStyle::with_template(template);
        bar.set_style(
            style
                .expect("the templates are valid")
                .progress_chars("=> "),
        );
        Self(bar)
    }

    pub(super) fn advance(&self, count: u64) {
        self.0.inc(count);
    }

    /// So much is done, of so much.
    pub(super) fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Heading,
    Bad,
}

/// The text in a colour if stdout is a terminal that takes it, and nobody set NO_COLOR.
pub(super) fn coloured(text: &str, colour: Colour) -> String {
    if !takes_colours() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Heading => 1,
        Colour::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

fn takes_colours() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Without what colours it.
fn width(cell: &str) -> usize {
    let mut width = 0;
    let mut is_escape = false;
    for letter in cell.chars() {
        match (is_escape, letter) {
            (false, '\x1b') => is_escape = true,
            (false, _) => width += 1,
            (true, 'm') => is_escape = false,
            (true, _) => {}
        }
    }
    width
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
        let red = "\x1b[31mbad\x1b[0m";
        let rows = [vec![red.to_owned(), "x".into()]];
        assert_eq!(
            table(&["WORD", "N"], &rows),
            format!("WORD  N\n{red}   x\n")
        );
    }
}
