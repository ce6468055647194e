//! Wall clock times as providers write them.

use std::time::{SystemTime, UNIX_EPOCH};

use reprieve_core::notice::WallMs;

/// Now, by this machine's clock.
pub(crate) fn now() -> WallMs {
    millis(SystemTime::now()).unwrap_or(WallMs(0))
}

/// `2026-11-21T02:00:00Z`
pub(crate) fn rfc3339(text: &str) -> Option<WallMs> {
    millis(humantime::parse_rfc3339(text.trim()).ok()?)
}

/// `Mon, 19 Sep 2016 18:29:47 GMT`, and the same without the weekday, as EC2 writes its maintenance events.
pub(crate) fn http_date(text: &str) -> Option<WallMs> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = text.split_once(", ").map_or(text, |(_, rest)| rest);
    let [day, month, year, time, "GMT" | "UTC"] = text.split_whitespace().collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let day: u8 = day.parse().ok()?;
    rfc3339(&format!("{year}-{month:02}-{day:02}T{time}Z"))
}

fn millis(time: SystemTime) -> Option<WallMs> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(WallMs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_providers_are_read() {
        let cases = [
            ("21 Jan 2019 09:00:43 GMT", "2019-01-21T09:00:43Z"),
            ("1 Feb 2019 09:00:43 GMT", "2019-02-01T09:00:43Z"),
            ("Mon, 19 Sep 2016 18:29:47 GMT", "2016-09-19T18:29:47Z"),
            ("Sat, 05 Jun 2016 15:10:09 GMT", "2016-06-05T15:10:09Z"),
        ];
        for (text, same) in cases {
            assert!(rfc3339(same).is_some());
            assert_eq!(http_date(text), rfc3339(same), "{text}");
        }
        for bad in [
            "",
            "soon",
            "21 Foo 2019 09:00:43 GMT",
            "32 Jan 2019 09:00:43 GMT",
            "21 Jan 2019 09:00:43 CET",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
        assert_eq!(rfc3339("<html>"), None);
    }
}
