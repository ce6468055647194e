//! Whatever reads what others wrote, in one table: for the fuzzers (`fuzz/`), and for the test that replays what they found.
//!
//! What was written by somebody without the key never gets as far as most of these; what was written by a holder of the
//! key, or by a damaged machine, does.

use std::ffi::OsString;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::BytesMut;
use reprieve_core::command::Command;
use reprieve_core::document::{self, Envelope, Stored};
use reprieve_core::head::Head;
use reprieve_core::manifest::{self, Manifest};
use reprieve_core::report::Report;
use reprieve_core::worker::Worker;
use reprieve_hooks::parsers::Parser;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::control::protocol;
use crate::images;
use crate::pages::codec;
use crate::pages::index::{Block, Codec, Index};
use crate::pages::known::{self, Known};
use crate::pages::load::{Blocks, Snapshot};
use crate::pages::seal::AttemptKey;
use crate::pages::{capture, serve};
use crate::settings::{Environment, Layers, Settings};
use crate::store::{DirectoryStore, cloud};

/// By name; those of the sources of notices are in [`reprieve_hooks::parsers`].
pub const PARSERS: &[(&str, Parser)] = &[
    ("document", document_of_any_kind),
    ("manifest", read_manifest),
    ("head", |bytes| drop(round_trip::<Head>(bytes))),
    ("worker", |bytes| drop(document::from_json::<Worker>(bytes))),
    ("report", read_report),
    ("index", packed_index),
    ("index-plain", plain_index),
    ("block", block),
    ("command", command),
    ("control", control),
    ("criu-images", criu_images),
    ("page-server", |bytes| drop(capture::digest(bytes))),
    ("streamer", streamer),
    ("settings", settings),
    ("listing", |bytes| {
        cloud::digest(&String::from_utf8_lossy(bytes));
    }),
];

/// The parser of this name.
///
/// # Panics
/// When there is none.
pub fn named(name: &str) -> Parser {
    let mut all = PARSERS.iter().chain(reprieve_hooks::parsers::PARSERS);
    let found = all.find(|(known, _)| *known == name);
    found
        .unwrap_or_else(|| panic!("no parser is called {name}"))
        .1
}

fn document_of_any_kind(bytes: &[u8]) {
    use_up(Envelope::parse(
        "manifest",
        Manifest::OLDEST..=Manifest::VERSION,
        bytes,
    ));
    use_up(Manifest::from_bytes(bytes));
    use_up(Head::from_bytes(bytes));
    use_up(Worker::from_bytes(bytes));
    let text = String::from_utf8_lossy(bytes);
    use_up(manifest::parse_key(&text));
    use_up(manifest::data_attempt(&text));
}

/// What is read is what is written again.
fn round_trip<T: Stored + PartialEq + std::fmt::Debug>(json: &[u8]) -> Option<T> {
    let value: T = document::from_json(json).ok()?;
    let stored = document::seal(T::KIND, value.version(), &value);
    let again = document::open(T::KIND, T::OLDEST..=T::VERSION, &stored).expect("we wrote it");
    assert_eq!(value, again);
    Some(value)
}

/// Fractions in a report's history may lose their last digit.
fn read_report(json: &[u8]) {
    if let Ok(report) = document::from_json::<Report>(json) {
        let stored = document::seal(Report::KIND, report.version(), &report);
        let versions = Report::OLDEST..=Report::VERSION;
        let again = document::open::<Report>(Report::KIND, versions, &stored);
        use_up(again.expect("we wrote it"));
    }
}

fn read_manifest(json: &[u8]) {
    if let Some(manifest) = round_trip::<Manifest>(json) {
        use_up(manifest.key());
    }
}

/// As an index is stored.
fn packed_index(bytes: &[u8]) {
    use_up(Index::from_bytes(bytes.to_vec(), 2, None));
    use_up(Index::from_bytes(bytes.to_vec(), 2, Some(&attempt_key())));
}

/// As it is when it was unpacked; then it is used.
fn plain_index(bytes: &[u8]) {
    let packed = zstd::bulk::compress(bytes, 1).expect("memory");
    let Ok(index) = Index::from_bytes(packed, PARTS, None) else {
        return;
    };
    let hashes = vec![vec![0; 12]; index.memories.len()];
    use_up(Known::files(&index));
    use_up(Known::new(&index, &manifest().parts, hashes, 2));
    let snapshot = snapshot(index);
    for number in 0..snapshot.index.memories.len() {
        use_up(snapshot.pagemap(number));
        use_up(snapshot.find(&known::hashes_name(number)));
    }
    RUNTIME.block_on(async {
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        let mut blocks = Blocks::new(&snapshot, deadline);
        for file in &snapshot.index.files {
            for number in &file.blocks {
                use_up(blocks.get(*number as usize).await);
            }
        }
    });
}

/// The first bytes say what the index says of it, the rest are its bytes.
fn block(bytes: &[u8]) {
    let Some(([codec, raw @ ..], stored)) = bytes.split_first_chunk::<5>() else {
        return;
    };
    let block = Block {
        part: 0,
        offset: 0,
        stored: u32::try_from(stored.len()).unwrap_or(u32::MAX),
        raw: u32::from_le_bytes(*raw),
        codec: i32::from(*codec),
        digest: blake3::hash(stored).as_bytes().to_vec(),
        number: 3,
    };
    if let Ok(unpacked) = codec::unpack(&block, BytesMut::from(stored), None) {
        assert_eq!(unpacked.len(), block.raw as usize);
        assert!(unpacked.len() <= crate::pages::BLOCK || block.codec == Codec::Raw as i32);
    }
    assert!(codec::unpack(&block, BytesMut::from(stored), Some(&attempt_key())).is_err());
}

fn command(bytes: &[u8]) {
    if let Ok(command) = Command::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(Command::parse(&command.to_text()).as_ref(), Ok(&command));
    }
}

fn control(line: &[u8]) {
    if let Ok(request) = protocol::Request::parse(line) {
        let again = protocol::Request::parse(request.to_line().as_bytes());
        assert_eq!(again.expect("we wrote it"), request);
    }
    if let Ok(answer) = protocol::Answer::parse(line) {
        protocol::Answer::parse(answer.to_line().as_bytes()).expect("we wrote it");
    }
}

fn criu_images(image: &[u8]) {
    use_up(images::entries::<images::Process>(image));
    use_up(images::first::<images::Core>(image));
    for space in images::entries::<images::AddressSpace>(image).unwrap_or_default() {
        for mapping in &space.mappings {
            use_up((mapping.kind(), mapping.permissions()));
        }
    }
    let memfds: Vec<images::MemfdInode> = images::entries(image).unwrap_or_default();
    for file in images::entries::<images::OpenFile>(image).unwrap_or_default() {
        use_up((file.kind(), file.wanted(), file.name(&memfds)));
        use_up((file.position(), file.size()));
    }
    for remap in images::entries::<images::Remap>(image).unwrap_or_default() {
        use_up(remap.ghost());
    }
    let rules = ["10.0.0.1:10.0.0.2", "[::]:[::2]"].map(|rule| rule.parse().expect("it is a rule"));
    use_up(images::with_moved(image, &rules));
    use_up(images::first::<images::Ghost>(image));
    use_up(images::entries::<images::Descriptor>(image));
    use_up(images::entries::<images::Directories>(image));
}

fn streamer(bytes: &[u8]) {
    static SNAPSHOT: LazyLock<Arc<Snapshot>> =
        LazyLock::new(|| Arc::new(snapshot(Index::default())));
    use_up(serve::digest(
        Arc::clone(&SNAPSHOT),
        RUNTIME.handle(),
        bytes,
    ));
}

/// A settings file.
fn settings(bytes: &[u8]) {
    struct Nothing;
    impl Environment for Nothing {
        fn variables(&self) -> Vec<(OsString, OsString)> {
            Vec::new()
        }
    }
    let path = DIRECTORY.path().join("reprieve.toml");
    std::fs::write(&path, bytes).expect("the directory is ours");
    let layers = Layers {
        flags: Vec::new(),
        file: Some(path),
        default_file: Path::new("/nonexistent/reprieve.toml"),
        environment: &Nothing,
    };
    use_up(Settings::load(&layers, &["/bin/app".into()]));
}

// ---- What the parsers need around them

/// So that nothing of it is left out as unused.
fn use_up<T>(value: T) {
    drop(black_box(value));
}

const PARTS: usize = 2;

static DIRECTORY: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
});

fn attempt_key() -> AttemptKey {
    AttemptKey::new("job", "attempt", &[7; 32])
}

/// The one of the corpus: a sound manifest is its first.
fn manifest() -> Manifest {
    let json = include_bytes!("../../fuzz/corpus/manifest/sound");
    document::from_json(json).expect("it is sound")
}

fn snapshot(index: Index) -> Snapshot {
    let store = DirectoryStore::new(DIRECTORY.path().to_owned());
    Snapshot::for_tests(manifest(), index, Arc::new(store), "jobs/fuzz/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzers were given and what they found; it stays when the parser is mended.
    #[test]
    fn each_parser_bears_everything_that_the_fuzzers_found() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let targets = include_str!("../../fuzz/Cargo.toml");
        for (name, parser) in PARSERS.iter().chain(reprieve_hooks::parsers::PARSERS) {
            assert!(
                targets.contains(&format!("name = \"{name}\"")),
                "fuzz/Cargo.toml has no target {name}"
            );
            let directory = corpus.join(name);
            let inputs = std::fs::read_dir(&directory)
                .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            let mut count = 0;
            for input in inputs {
                let path = input.expect("it can be listed").path();
                let bytes = std::fs::read(&path).expect("it can be read");
                // The last one printed is the one that it fell over.
                println!("{}", path.display());
                parser(&bytes);
                count += 1;
            }
            assert!(count > 0, "{} is empty", directory.display());
        }
    }
}
