//! Which files travel with a snapshot, and which of those in a snapshot may be put on this host.
//!
//! Patterns are absolute paths in which `*` and `?` stand for anything but a slash, `[abc]` for one of these, and `**`
//! for any directories; what lies below a path that matches is meant as well. An exclusion without a slash matches the
//! name of a file anywhere. Paths are bytes, as the kernel has them; they begin with a slash, and have neither empty
//! segments nor `.` nor `..`.

use std::fmt;

/// Names that begin like this are ours: files in the making, and what they replace until the job runs.
pub const OWN_NAME: &str = ".reprieve-";

/// The longest path that is kept: what the kernel takes.
pub const PATH_LIMIT: usize = 4095;

/// The longest name of a file.
const NAME_LIMIT: usize = 255;

/// A path with wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// `**`
    Any,
    Name(Vec<u8>),
}

impl Pattern {
    /// Reads an absolute pattern; says what is wrong with it.
    pub fn absolute(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("is not an absolute path");
        };
        Self::of(rest.trim_end_matches('/'))
    }

    /// The same; without a slash it is a name that may be anywhere.
    pub fn anywhere(text: &str) -> Result<Self, &'static str> {
        match text.contains('/') {
            true => Self::absolute(text),
            false => Self::of(&format!("**/{text}")),
        }
    }

    fn of(rest: &str) -> Result<Self, &'static str> {
        let segment = |text: &str| match text {
            "" => Err("has an empty segment"),
            "." | ".." => Err("has a segment . or .."),
            "**" => Ok(Segment::Any),
            name if name.contains("**") => Err("has ** beside something else in one segment"),
            name if name.matches('[').count() != name.matches(']').count() => {
                Err("has a bracket without its other half")
            }
            name => Ok(Segment::Name(name.as_bytes().to_vec())),
        };
        match rest {
            "" => Ok(Self(Vec::new())),
            rest => rest
                .split('/')
                .map(segment)
                .collect::<Result<_, _>>()
                .map(Self),
        }
    }

    /// The directory or file below which everything lies that can match.
    pub fn base(&self) -> Vec<u8> {
        let literal = self.0.iter().map_while(|segment| match segment {
            Segment::Name(name) if !name.iter().any(|byte| b"*?[".contains(byte)) => Some(name),
            _ => None,
        });
        let path: Vec<u8> = literal
            .flat_map(|name| [b"/", name.as_slice()].concat())
            .collect();
        match path.is_empty() {
            true => b"/".to_vec(),
            false => path,
        }
    }

    /// Whether the path or a directory on the way to it matches.
    pub fn covers(&self, path: &[u8]) -> bool {
        covers(&self.0, &segments(path))
    }

    /// Whether anything below this directory could match.
    pub fn reaches_into(&self, directory: &[u8]) -> bool {
        reaches(&self.0, &segments(directory))
    }
}

fn segments(path: &[u8]) -> Vec<&[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
        .collect()
}

fn covers(pattern: &[Segment], path: &[&[u8]]) -> bool {
    match (pattern, path) {
        ([], _) => true,
        ([Segment::Any, rest @ ..], _) => {
            covers(rest, path) && (!rest.is_empty() || !path.is_empty())
                || !path.is_empty() && covers(pattern, &path[1..])
        }
        ([Segment::Name(name), rest @ ..], [first, further @ ..]) => {
            matches(name, first) && covers(rest, further)
        }
        (_, []) => false,
    }
}

fn reaches(pattern: &[Segment], directory: &[&[u8]]) -> bool {
    match (pattern, directory) {
        ([], _) | (_, []) | ([Segment::Any, ..], _) => true,
        ([Segment::Name(name), rest @ ..], [first, further @ ..]) => {
            matches(name, first) && reaches(rest, further)
        }
    }
}

/// Whether a name matches a segment, in time that grows with the product of their lengths at most.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut on) = (0, 0);
    // Where to go on if what follows the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while on < name.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, on));
                at += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => one_of(&pattern[at..], name[on]),
            Some(byte) => (*byte == name[on]).then_some(1),
            None => None,
        };
        match (step, &mut star) {
            (Some(length), _) => (at, on) = (at + length, on + 1),
            (None, Some((after, from))) => {
                *from += 1;
                (at, on) = (*after, *from);
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// The length of a `[abc]` that this byte is one of.
fn one_of(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|&byte| byte == b']')?;
    let set = &pattern[1..end];
    let (set, wanted) = match set.strip_prefix(b"!") {
        Some(rest) => (rest, false),
        None => (set, true),
    };
    let mut at = 0;
    let mut found = false;
    while at < set.len() {
        match set[at..] {
            [from, b'-', to, ..] => {
                found |= (from..=to).contains(&byte);
                at += 3;
            }
            _ => {
                found |= set[at] == byte;
                at += 1;
            }
        }
    }
    (found == wanted).then_some(end + 1)
}

/// Whether special files and rights beyond the app's own may travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Privileged {
    #[default]
    Refuse,
    Keep,
}

/// What a worker was told to preserve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What changed on the container's own layer.
    pub auto: bool,
    pub named: Vec<Pattern>,
    pub excluded: Vec<Pattern>,
    pub privileged: Privileged,
}

/// Why a path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The settings name it.
    Named,
    /// It lies on the container's own layer.
    Layer,
}

/// Whether a path lies on the file system that the container's root is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    OwnLayer,
    OtherMount,
}

impl Rules {
    pub fn is_empty(&self) -> bool {
        !self.auto && self.named.is_empty()
    }

    /// Why the rules are about this path, if they are.
    pub fn reason(&self, path: &[u8], place: Place) -> Option<Reason> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if name.starts_with(OWN_NAME.as_bytes())
            || self.excluded.iter().any(|excluded| excluded.covers(path))
        {
            return None;
        }
        if self.named.iter().any(|named| named.covers(path)) {
            return Some(Reason::Named);
        }
        (self.auto && place == Place::OwnLayer).then_some(Reason::Layer)
    }

    /// Whether anything below this directory can matter.
    pub fn reaches_into(&self, directory: &[u8], place: Place) -> bool {
        let is_excluded = self
            .excluded
            .iter()
            .any(|excluded| excluded.covers(directory));
        let is_named = || {
            self.named
                .iter()
                .any(|named| named.covers(directory) || named.reaches_into(directory))
        };
        !is_excluded && (self.auto && place == Place::OwnLayer || is_named())
    }

    /// Where to begin looking: none lies below another.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        let mut bases: Vec<Vec<u8>> = self.named.iter().map(Pattern::base).collect();
        if self.auto {
            bases.push(b"/".to_vec());
        }
        bases.sort();
        bases.dedup();
        let all = bases.clone();
        bases.retain(|base| {
            !all.iter()
                .any(|other| other != base && is_below(base, other))
        });
        bases
    }
}

/// Whether a path lies below a directory.
pub fn is_below(path: &[u8], directory: &[u8]) -> bool {
    match directory {
        b"/" => path != b"/",
        _ => path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/')),
    }
}

/// Whether this is a path that a snapshot may have at all.
pub fn is_plain(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else {
        return false;
    };
    path.len() <= PATH_LIMIT
        && rest.split(|&byte| byte == b'/').all(|name| {
            !matches!(name, b"" | b"." | b"..")
                && name.len() <= NAME_LIMIT
                && !name.contains(&0)
                && !name.starts_with(OWN_NAME.as_bytes())
        })
}

/// The kinds of files, as `st_mode` has them.
pub mod kind {
    pub const MASK: u32 = 0o170_000;
    pub const FIFO: u32 = 0o010_000;
    pub const CHARACTER: u32 = 0o020_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const BLOCK: u32 = 0o060_000;
    pub const REGULAR: u32 = 0o100_000;
    pub const LINK: u32 = 0o120_000;
    pub const SOCKET: u32 = 0o140_000;
}

/// The extended attribute that gives a program capabilities.
pub const CAPABILITY: &[u8] = b"security.capability";

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;

/// The bits of a mode that make a program run with another's rights. On a directory, the group's bit only says whose
/// new files are.
pub fn privileged_bits(mode: u32) -> u32 {
    match mode & kind::MASK {
        kind::DIRECTORY => mode & SET_UID,
        _ => mode & (SET_UID | SET_GID),
    }
}

/// Whether an extended attribute travels. Others are the file system's or the security module's own business.
pub fn travels(attribute: &[u8], privileged: Privileged) -> bool {
    attribute.starts_with(b"user.")
        || matches!(
            attribute,
            b"system.posix_acl_access" | b"system.posix_acl_default"
        )
        || attribute == CAPABILITY && privileged == Privileged::Keep
}

/// Why a file of a snapshot is not put on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Outside,
    Device,
    Rights,
    Attribute,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Outside => {
                "is not what this worker was told to preserve: give it the --preserve that the snapshot was taken with"
            }
            Self::Device => "is a device: allow it with --preserve-privileged keep",
            Self::Rights => {
                "runs with another's rights (setuid, setgid or capabilities): allow it with --preserve-privileged keep"
            }
            Self::Attribute => "has an extended attribute that no file of a snapshot has",
        })
    }
}

/// Whether a file of a snapshot may be put here. A directory that is only on the way to a file is `implied`.
pub fn refusal<'a>(
    rules: &Rules,
    path: &[u8],
    place: Place,
    mode: u32,
    implied: bool,
    attributes: impl IntoIterator<Item = &'a [u8]>,
) -> Option<Refusal> {
    if rules.reason(path, place).is_none() && !(implied && rules.reaches_into(path, place)) {
        return Some(Refusal::Outside);
    }
    for attribute in attributes {
        if !travels(attribute, rules.privileged) {
            return Some(match attribute == CAPABILITY {
                true => Refusal::Rights,
                false => Refusal::Attribute,
            });
        }
    }
    match (rules.privileged, mode & kind::MASK) {
        (Privileged::Keep, _) => None,
        (_, kind::BLOCK | kind::CHARACTER) => Some(Refusal::Device),
        _ => (privileged_bits(mode) != 0).then_some(Refusal::Rights),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::absolute(text).expect("it is a pattern")
    }

    #[test]
    fn patterns_mean_what_they_look_like() {
        let table: [(&str, &[&str], &[&str]); 9] = [
            (
                "/data",
                &["/data", "/data/a/b"],
                &["/", "/datax", "/x/data"],
            ),
            ("/data/", &["/data/a"], &["/dat"]),
            (
                "/d/*.log",
                &["/d/a.log", "/d/.log", "/d/a.log/x"],
                &["/d/a", "/d/x/a.log"],
            ),
            (
                "/d/**/a",
                &["/d/a", "/d/x/y/a", "/d/a/z"],
                &["/d", "/d/x/b"],
            ),
            ("/d/**", &["/d/a", "/d/a/b"], &["/d", "/e"]),
            ("/d/?[a-c]", &["/d/xb"], &["/d/b", "/d/xd"]),
            ("/d/[!a]", &["/d/b"], &["/d/a", "/d/bb"]),
            ("/*/log", &["/a/log/x"], &["/log", "/a/b/log"]),
            ("/", &["/a"], &[]),
        ];
        for (text, inside, outside) in table {
            let pattern = pattern(text);
            for path in inside {
                assert!(pattern.covers(path.as_bytes()), "{text} and {path}");
            }
            for path in outside {
                assert!(!pattern.covers(path.as_bytes()), "{text} and {path}");
            }
        }
        assert_eq!(pattern("/d/*/x").base(), b"/d");
        assert_eq!(pattern("/**").base(), b"/");
        assert_eq!(pattern("/a/b").base(), b"/a/b");
        let anywhere = Pattern::anywhere("*.tmp").expect("it is a pattern");
        assert!(anywhere.covers(b"/x/a.tmp") && anywhere.covers(b"/a.tmp"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["data", "/a//b", "/a/../b", "/a/./b", "/a/x**", "/a/[b"] {
            assert!(Pattern::absolute(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_layer_counts_only_with_auto_and_exclusions_go_first() {
        let rules = |auto| Rules {
            auto,
            named: vec![pattern("/data")],
            excluded: vec![
                pattern("/data/cache"),
                Pattern::anywhere("*.tmp").expect("one"),
            ],
            ..Rules::default()
        };
        let reason = |auto, path: &str, place| rules(auto).reason(path.as_bytes(), place);
        assert_eq!(
            reason(false, "/data/a", Place::OtherMount),
            Some(Reason::Named)
        );
        assert_eq!(reason(false, "/etc/a", Place::OwnLayer), None);
        assert_eq!(reason(true, "/etc/a", Place::OwnLayer), Some(Reason::Layer));
        assert_eq!(reason(true, "/etc/a", Place::OtherMount), None);
        assert_eq!(reason(true, "/data/cache/a", Place::OwnLayer), None);
        assert_eq!(reason(true, "/etc/a.tmp", Place::OwnLayer), None);
        assert_eq!(reason(true, "/etc/.reprieve-1", Place::OwnLayer), None);
        assert_eq!(rules(false).roots(), [b"/data".to_vec()]);
        assert_eq!(rules(true).roots(), [b"/".to_vec()]);
        assert!(!rules(false).reaches_into(b"/etc", Place::OwnLayer));
        assert!(rules(false).reaches_into(b"/", Place::OwnLayer));
        assert!(!rules(true).reaches_into(b"/data/cache", Place::OwnLayer));
    }

    #[test]
    fn what_gives_rights_is_refused_unless_allowed() {
        let rules = |privileged| Rules {
            auto: true,
            privileged,
            ..Rules::default()
        };
        let refused = |privileged, mode, attribute: &[u8]| {
            refusal(
                &rules(privileged),
                b"/a",
                Place::OwnLayer,
                mode,
                false,
                [attribute],
            )
        };
        let harmless: &[u8] = b"user.a";
        for (mode, attribute, expected) in [
            (kind::REGULAR | 0o755, harmless, None),
            (kind::REGULAR | 0o4755, harmless, Some(Refusal::Rights)),
            (kind::REGULAR | 0o2755, harmless, Some(Refusal::Rights)),
            (kind::DIRECTORY | 0o2755, harmless, None),
            (kind::CHARACTER | 0o600, harmless, Some(Refusal::Device)),
            (kind::BLOCK | 0o600, harmless, Some(Refusal::Device)),
            (kind::REGULAR | 0o755, CAPABILITY, Some(Refusal::Rights)),
        ] {
            assert_eq!(
                refused(Privileged::Refuse, mode, attribute),
                expected,
                "{mode:o}"
            );
            assert_eq!(refused(Privileged::Keep, mode, attribute), None, "{mode:o}");
        }
        let overlay: &[u8] = b"trusted.overlay.opaque";
        assert_eq!(
            refused(Privileged::Keep, kind::REGULAR, overlay),
            Some(Refusal::Attribute)
        );
        let outside = refusal(
            &rules(Privileged::Keep),
            b"/a",
            Place::OtherMount,
            0,
            false,
            [],
        );
        assert_eq!(outside, Some(Refusal::Outside));
    }

    #[test]
    fn only_plain_paths_are_taken() {
        for path in ["/a", "/a/b.c", "/a/..b", "/a/b.."] {
            assert!(is_plain(path.as_bytes()), "{path}");
        }
        for path in [
            "",
            "/",
            "a",
            "//a",
            "/a/",
            "/a/../b",
            "/..",
            "/a/.",
            "/a\0b",
            "/x/.reprieve-1",
        ] {
            assert!(!is_plain(path.as_bytes()), "{path}");
        }
        assert!(!is_plain(&[b"/".as_slice(), &[b'a'; 256]].concat()));
    }

    proptest! {
        #[test]
        fn a_star_matches_as_one_that_tries_everything(
            pattern in "[ab*?]{0,8}", name in "[ab]{0,8}",
        ) {
            fn slow(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern, name) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => {
                        slow(rest, name) || !name.is_empty() && slow(pattern, &name[1..])
                    }
                    ([b'?', rest @ ..], [_, further @ ..]) => slow(rest, further),
                    ([byte, rest @ ..], [first, further @ ..]) => byte == first && slow(rest, further),
                    _ => false,
                }
            }
            prop_assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                slow(pattern.as_bytes(), name.as_bytes())
            );
        }

        #[test]
        fn a_directory_on_the_way_to_what_is_meant_is_entered(
            text in "(/([ab*?]{1,3}|\\*\\*)){1,4}", path in "(/[ab]{1,2}){1,5}",
        ) {
            let Ok(pattern) = Pattern::absolute(&text) else { return Ok(()) };
            if pattern.covers(path.as_bytes()) {
                for (at, _) in path.match_indices('/').skip(1) {
                    let above = &path.as_bytes()[..at];
                    prop_assert!(pattern.reaches_into(above) || pattern.covers(above));
                }
                let base = pattern.base();
                prop_assert!(base == path.as_bytes() || is_below(path.as_bytes(), &base));
            }
        }
    }
}
