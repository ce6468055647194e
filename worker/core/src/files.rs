//! Are the files that a snapshot's processes had open here, as CRIU will want them? Every mismatch is a value with its
//! remedy.
//!
//! CRIU checks the same when it opens each file, which is after it has read all memory, and names the first one only.

use std::fmt;

/// What the snapshot says of a file. What CRIU will not check is None or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub path: String,
    pub bytes: Option<u64>,
    /// As in `st_mode`, with the kind of file.
    pub mode: Option<u32>,
    /// Of a program or library.
    pub build_id: Vec<u8>,
}

/// What is at that path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub bytes: u64,
    pub mode: u32,
    /// Empty if there is none, or it was not looked for.
    pub build_id: Vec<u8>,
}

/// Why a file would fail the restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Missing {
        path: String,
    },
    Bytes {
        path: String,
        wanted: u64,
        found: u64,
    },
    Mode {
        path: String,
        wanted: u32,
        found: u32,
    },
    Program {
        path: String,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(
                out,
                "{path} is not here: put it on a volume that every host mounts, or into the image, or let it travel with \
                 the job (--preserve)"
            ),
            Self::Bytes {
                path,
                wanted,
                found,
            } => write!(
                out,
                "{path} has {found} bytes instead of {wanted}: use the same image, and let nothing else write the file; one that the \
                 job writes can travel with it (--preserve)"
            ),
            Self::Mode {
                path,
                wanted,
                found,
            } => write!(
                out,
                "{path} has the mode {found:o} instead of {wanted:o}: chmod it back"
            ),
            Self::Program { path } => write!(
                out,
                "{path} is another build (its build id differs): use the same image"
            ),
        }
    }
}

/// The first reason why a file would fail the restore; `found` is None if there is nothing at its path.
pub fn mismatch(wanted: &Wanted, found: Option<&Found>) -> Option<Mismatch> {
    let path = wanted.path.clone();
    let Some(found) = found else {
        return Some(Mismatch::Missing { path });
    };
    if let Some(bytes) = wanted.bytes
        && bytes != found.bytes
    {
        return Some(Mismatch::Bytes {
            path,
            wanted: bytes,
            found: found.bytes,
        });
    }
    if let Some(mode) = wanted.mode
        && mode != found.mode
    {
        return Some(Mismatch::Mode {
            path,
            wanted: mode,
            found: found.mode,
        });
    }
    let ids = [&wanted.build_id, &found.build_id];
    let is_other = ids.iter().all(|id| !id.is_empty()) && ids[0] != ids[1];
    is_other.then_some(Mismatch::Program { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_is_named_with_its_remedy() {
        let wanted = Wanted {
            path: "/a".into(),
            bytes: Some(7),
            mode: Some(0o100_644),
            build_id: vec![1, 2],
        };
        let found = Found {
            bytes: 7,
            mode: 0o100_644,
            build_id: vec![1, 2],
        };
        let said = |found: Option<Found>| {
            mismatch(&wanted, found.as_ref()).map(|mismatch| mismatch.to_string())
        };
        let starts = |found: Option<Found>, words: &str| {
            let said = said(found).expect("it differs");
            assert!(said.starts_with(words), "{said}");
        };
        assert_eq!(said(Some(found.clone())), None);
        starts(None, "/a is not here: put it on a volume");
        let other = Found {
            bytes: 5,
            ..found.clone()
        };
        starts(
            Some(other),
            "/a has 5 bytes instead of 7: use the same image",
        );
        let other = Found {
            mode: 0o100_600,
            ..found.clone()
        };
        starts(
            Some(other),
            "/a has the mode 100600 instead of 100644: chmod",
        );
        let other = Found {
            build_id: vec![1, 3],
            ..found
        };
        starts(Some(other), "/a is another build");
        // What is not known is not held against it.
        let unknown = Found {
            build_id: Vec::new(),
            ..found
        };
        assert_eq!(said(Some(unknown)), None);
        let nothing_wanted = Wanted {
            path: "/a".into(),
            ..Wanted::default()
        };
        assert_eq!(mismatch(&nothing_wanted, Some(&found)), None);
    }
}
