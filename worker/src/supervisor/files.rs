//! Compares the files of a snapshot's processes with those of this host, before memory is read and CRIU is started.
//!
//! Only what CRIU will look at itself is compared, and what cannot be looked at is left to it: a snapshot that it would
//! restore is never refused here.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use reprieve_core::files::{Found, Mismatch, Wanted, mismatch};
use tokio::time::Instant;

use crate::images::{OpenFile, Remap, entries};
use crate::pages::load::{Snapshot, Unusable};
use crate::programs::build_id;

/// What is there when the processes and their terminals are.
const MADE: [&str; 2] = ["/proc/", "/dev/pts/"];

/// Every file that CRIU would stumble over.
pub(super) async fn mismatches(
    snapshot: &Snapshot,
    deadline: Instant,
) -> Result<Vec<Mismatch>, Unusable> {
    let files: Vec<OpenFile> = image(snapshot, "files.img", deadline).await?;
    let remaps: Vec<Remap> = image(snapshot, "remap-fpath.img", deadline).await?;
    // What had no name any more comes out of the snapshot.
    let remapped: HashSet<u32> = remaps.iter().map(|remap| remap.file).collect();
    let watched = files.iter().flat_map(OpenFile::watched);
    let wanted: Vec<Wanted> = files
        .iter()
        .filter(|file| !remapped.contains(&file.number))
        .filter_map(OpenFile::wanted)
        .chain(watched)
        .filter(|wanted| !MADE.iter().any(|made| wanted.path.starts_with(made)))
        .collect();
    // A file may lie on a network.
    let looked = tokio::task::spawn_blocking(move || compare(&wanted)).await;
    Ok(looked.unwrap_or_default())
}

async fn image<M: prost::Message + Default>(
    snapshot: &Snapshot,
    name: &str,
    deadline: Instant,
) -> Result<Vec<M>, Unusable> {
    let Some(file) = snapshot.find(name) else {
        return Ok(Vec::new());
    };
    let image = snapshot.file(file, deadline).await?;
    entries(&image).map_err(|source| Unusable::Image {
        name: name.to_owned(),
        source,
    })
}

fn compare(wanted: &[Wanted]) -> Vec<Mismatch> {
    let mut found: Vec<Mismatch> = Vec::new();
    for one in wanted {
        let there = match look(one) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // CRIU may be allowed more than we are, and says what is the matter.
            Err(_) => continue,
        };
        let differs = mismatch(one, there.as_ref());
        // One file may be open many times.
        found.extend(differs.filter(|differs| !found.contains(differs)));
    }
    found
}

fn look(wanted: &Wanted) -> io::Result<Found> {
    let path = Path::new(&wanted.path);
    // linux/stat.h: what was opened was the link itself.
    const KIND: u32 = 0o170_000;
    const LINK: u32 = 0o120_000;
    let metadata = match wanted.mode {
        Some(mode) if mode & KIND == LINK => fs::symlink_metadata(path)?,
        _ => fs::metadata(path)?,
    };
    let build_id = match wanted.build_id.is_empty() {
        true => Vec::new(),
        false => build_id(path).unwrap_or_default(),
    };
    Ok(Found {
        bytes: metadata.len(),
        mode: metadata.mode(),
        build_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::of_program;

    /// A program with one segment of notes: one of another kind, and the build id.
    fn program(id: &[u8]) -> Vec<u8> {
        let mut notes = Vec::new();
        for (kind, body) in [(1_u32, &b"abc"[..]), (3, id)] {
            let length = u32::try_from(body.len()).expect("it is short");
            notes.extend([4, length, kind].iter().flat_map(|word| word.to_le_bytes()));
            notes.extend(b"GNU\0");
            notes.extend(body);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let mut head = b"\x7fELF\x02\x01".to_vec();
        head.resize(64 + 56, 0);
        head[32] = 64;
        head[54] = 56;
        head[56] = 1;
        head[64] = 4;
        head[64 + 8] = 120;
        head[64 + 32] = u8::try_from(notes.len()).expect("they are short");
        head.extend(notes);
        head
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        assert_eq!(
            of_program(&program(b"12345678")).as_deref(),
            Some(&b"12345678"[..])
        );
        assert_eq!(
            of_program(&program(b"123456")).as_deref(),
            Some(&b"123456\0\0"[..])
        );
    }

    #[test]
    fn what_is_no_program_or_is_cut_has_none() {
        let whole = program(b"12345678");
        assert_eq!(of_program(b"#!/bin/sh"), None);
        for length in 0..whole.len() {
            assert_eq!(of_program(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn only_what_is_known_to_differ_is_told_and_once() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("file").display().to_string();
        fs::write(&path, "1234567").expect("the directory is writable");
        let wanted = |bytes| Wanted {
            path: path.clone(),
            bytes,
            ..Wanted::default()
        };
        assert_eq!(compare(&[wanted(None), wanted(Some(7))]), []);
        assert_eq!(compare(&[wanted(Some(5)), wanted(Some(5))]).len(), 1);
        let missing = Wanted {
            path: format!("{path}-not"),
            ..Wanted::default()
        };
        assert!(matches!(
            compare(&[missing])[..],
            [Mismatch::Missing { .. }]
        ));
    }
}
