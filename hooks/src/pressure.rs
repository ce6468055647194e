//! Memory pressure: the container comes near its memory limit, and the kernel may soon end the job.
//!
//! Read from the cgroup (version 2) that the worker is in. The machine counts as at risk from the moment that little is
//! left, or less than usual and its processes stand still for want of it (pressure stall information), and no longer as
//! soon as there is clearly more again.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use reprieve_core::notice::{Announcement, Fate, Says};
use tokio::time::sleep;

use crate::Ear;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Of the limit, in percent: from here on it is at risk, and below there not any more.
const HIGH: u64 = 90;
const LOW: u64 = 80;

/// Of the last ten seconds, in percent, that all processes of the container waited for memory.
const STALLED: f64 = 10.0;

const ROOT: &str = "/sys/fs/cgroup";

/// Listens for as long as it is let.
pub async fn listen(ear: Ear) {
    let mut watch = Watch::default();
    loop {
        match look(Path::new(ROOT)) {
            Ok(Some(seen)) => {
                ear.works(crate::time::now());
                if let Some(says) = watch.see(seen) {
                    let announcement = Announcement {
                        source: ear.source(),
                        identity: format!("memory-{}", watch.times),
                        says,
                    };
                    if ear.say(announcement).await.is_none() {
                        return;
                    }
                }
            }
            Ok(None) => {
                ear.absent("this container has no memory limit".to_owned());
                return;
            }
            Err(error) => ear.fails(
                format!("the cgroup's memory cannot be read: {error}"),
                "mount cgroup version 2 at /sys/fs/cgroup, or leave memory-pressure out of --sources",
            ),
        }
        sleep(EVERY).await;
    }
}

/// One look.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    /// Bytes, without what can be given back.
    used: u64,
    limit: u64,
    /// Percent of the last ten seconds; 0 where the kernel does not tell.
    stalled: f64,
}

/// None without a limit.
fn look(root: &Path) -> io::Result<Option<Seen>> {
    let number = |name: &str| -> io::Result<Option<u64>> {
        Ok(fs::read_to_string(root.join(name))?.trim().parse().ok())
    };
    let Some(limit) = number("memory.max")? else {
        return Ok(None);
    };
    let current = number("memory.current")?.unwrap_or(0);
    let stat = fs::read_to_string(root.join("memory.stat"))?;
    let inactive = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok())
        .unwrap_or(0);
    // A kernel may be without it, or have it switched off.
    let pressure = fs::read_to_string(root.join("memory.pressure")).unwrap_or_default();
    Ok(Some(Seen {
        used: current.saturating_sub(inactive),
        limit,
        stalled: stalled(&pressure),
    }))
}

fn stalled(pressure: &str) -> f64 {
    let full = pressure.lines().find_map(|line| line.strip_prefix("full "));
    let recent = full.and_then(|full| {
        let mut fields = full.split(' ');
        fields.find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
    });
    recent.unwrap_or(0.0)
}

#[derive(Debug, Default)]
struct Watch {
    /// How often it came near the limit.
    times: u64,
    near: bool,
}

impl Watch {
    fn see(&mut self, seen: Seen) -> Option<Says> {
        let Seen {
            used,
            limit,
            stalled,
        } = seen;
        let of_limit = |percent: u64| limit / 100 * percent;
        let is_little = used >= of_limit(HIGH) || (used >= of_limit(LOW) && stalled >= STALLED);
        if !self.near && is_little {
            self.near = true;
            self.times += 1;
            return Some(Says::Goes {
                fate: Fate::AtRisk,
                at: None,
            });
        }
        if self.near && used < of_limit(LOW) {
            self.near = false;
            return Some(Says::Withdrawn);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_taken_back_once() {
        let mut watch = Watch::default();
        let said: Vec<bool> = [50, 89, 90, 99, 85, 80, 79, 85, 95]
            .map(|used| watch.see(seen(used, 0.0)).is_some())
            .to_vec();
        let expected = [false, false, true, false, false, false, true, false, true];
        assert_eq!(said, expected);
        assert_eq!(watch.times, 2);
    }

    fn seen(percent: u64, stalled: f64) -> Seen {
        Seen {
            used: percent * 1_000,
            limit: 100_000,
            stalled,
        }
    }

    #[test]
    fn what_stands_still_for_want_of_memory_is_at_risk_sooner() {
        let mut watch = Watch::default();
        let said: Vec<bool> = [(79, 90.0), (80, 9.9), (80, 10.0), (85, 0.0), (79, 50.0)]
            .map(|(used, stalled)| watch.see(seen(used, stalled)).is_some())
            .to_vec();
        assert_eq!(said, [false, false, true, false, true]);
    }

    #[test]
    fn files_of_the_cgroup_are_read_and_no_limit_is_none() {
        let directory = std::env::temp_dir().join(format!("cgroup-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("a file");
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 700\ninactive_file 150\n");
        let mut expected = Seen {
            used: 750,
            limit: 1000,
            stalled: 0.0,
        };
        assert_eq!(look(&directory).expect("it is there"), Some(expected));
        let pressure = "some avg10=20.00 avg60=1.00 avg300=0.00 total=5\n\
                        full avg10=12.34 avg60=1.00 avg300=0.00 total=4\n";
        write("memory.pressure", pressure);
        expected.stalled = 12.34;
        assert_eq!(look(&directory).expect("it is there"), Some(expected));
        write("memory.max", "max\n");
        assert_eq!(look(&directory).expect("it is there"), None);
        fs::remove_dir_all(&directory).expect("it was ours");
    }
}
