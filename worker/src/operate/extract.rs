//! `reprieve extract`: writes a snapshot as CRIU's own image files, for `criu` and `crit`.
//!
//! CRIU's small images are written as they are; `pages-N.img` and the pagemaps that belong to them are made from the
//! index, as for a restore. Every block is verified before it is written. What was begun and failed is taken away again, and
//! the image that CRIU begins with is written last, so that what CRIU accepts is a whole snapshot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use reprieve_core::manifest::Stdio;
use serde::Serialize;
use tokio::time::Instant;

use super::{Answer, ExitCode, Failure, Job, Known, SCHEMA, Selector, text};
use crate::pages::PAGE;
use crate::pages::index::{self, Memory, MemoryKind};
use crate::pages::known;
use crate::pages::load::{self, Blocks, Snapshot, Unusable};
use crate::supervisor::checkpoint::LIBRARY;

/// Where the streams of a restored app come from in the command that is shown: numbers of one digit, since some shells
/// take no others.
const STREAMS: [u32; 3] = [7, 8, 9];

/// The image that CRIU reads first, and without which it reads none.
const BEGINNING: &str = "inventory.img";

/// What was written.
#[derive(Debug, Serialize)]
pub(super) struct Extracted {
    schema: u32,
    job: String,
    generation: u64,
    directory: PathBuf,
    files: Vec<Written>,
    /// The version of CRIU that made the images.
    criu: String,
    root_pid: i32,
    /// What CRIU has to be given for the app's standard input, output and errors, or for its terminal.
    external_streams: Vec<String>,
    /// A command that restores it.
    restore: String,
}

/// One file.
#[derive(Debug, Serialize)]
struct Written {
    name: String,
    bytes: u64,
}

/// Why it could not be written.
enum ExtractError {
    Snapshot(Unusable),
    Directory(io::Error),
}

impl From<Unusable> for ExtractError {
    fn from(error: Unusable) -> Self {
        Self::Snapshot(error)
    }
}

impl From<io::Error> for ExtractError {
    fn from(error: io::Error) -> Self {
        Self::Directory(error)
    }
}

pub(super) async fn extract(
    job: &Job,
    which: &Selector,
    directory: &Path,
) -> Result<Extracted, Failure> {
    let contained = job.contained().await?;
    let known = job.find(&contained, which)?;
    let read = job.read(&known).await;
    let read = read.map_err(|error| job.unusable(&known, error))?;
    let deadline = Instant::now() + job.restore_limit;
    let snapshot = load::open(&job.catalog, read, deadline).await;
    let snapshot = snapshot.map_err(|error| job.unusable(&known, error))?;
    let mut output = Output::create(directory).map_err(|error| unwritable(directory, error))?;
    match write(job, &snapshot, &mut output).await {
        Ok(()) => Ok(extracted(job, &snapshot, directory, output.keep())),
        Err(error) => {
            output.remove();
            Err(failed(job, &known, directory, error))
        }
    }
}

fn failed(job: &Job, known: &Known, directory: &Path, error: ExtractError) -> Failure {
    match error {
        ExtractError::Snapshot(error) => job.unusable(known, error),
        ExtractError::Directory(error) => unwritable(directory, error),
    }
}

fn unwritable(directory: &Path, error: io::Error) -> Failure {
    Failure::new(
        ExitCode::NotDone,
        format!("the images cannot be written to {}", directory.display()),
    )
    .caused_by(error)
    .remedy("name a directory that is empty or not there yet, with room for the job's memory")
}

/// The directory and what was written to it so far.
struct Output {
    directory: PathBuf,
    is_ours: bool,
    written: Vec<Written>,
}

impl Output {
    fn create(directory: &Path) -> io::Result<Self> {
        let is_ours = match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        if fs::read_dir(directory)?.next().is_some() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        Ok(Self {
            directory: directory.to_owned(),
            is_ours,
            written: Vec::new(),
        })
    }

    /// A new file. It holds the job's memory, so nobody else may read it.
    fn file(&mut self, name: &str, bytes: u64) -> io::Result<File> {
        // Names come from the store; they are CRIU's, which has no directories.
        if name.contains('/') || name.starts_with('.') || name.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is not the name of an image"),
            ));
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.join(name))?;
        self.written.push(Written {
            name: name.to_owned(),
            bytes,
        });
        Ok(file)
    }

    fn keep(self) -> Vec<Written> {
        self.written
    }

    fn remove(self) {
        for written in &self.written {
            drop(fs::remove_file(self.directory.join(&written.name)));
        }
        if self.is_ours {
            drop(fs::remove_dir(&self.directory));
        }
    }
}

async fn write(job: &Job, snapshot: &Snapshot, output: &mut Output) -> Result<(), ExtractError> {
    let memory: u64 = snapshot.index.memories.iter().map(size).sum();
    let progress = text::Progress::start("extracting", memory);
    let mut blocks = Blocks::new(snapshot, Instant::now() + job.limit);
    // What the next snapshot compares with is of no use to anybody else.
    let wanted = |file: &&index::File| !known::is_hashes(&file.name);
    let (first, others): (Vec<_>, Vec<_>) =
        (snapshot.index.files.iter().filter(wanted)).partition(|file| file.name == BEGINNING);
    for file in others {
        write_file(job, file, &mut blocks, output).await?;
    }
    for (number, memory) in snapshot.index.memories.iter().enumerate() {
        let pagemap = snapshot.pagemap(number);
        let mut into = output.file(&pagemap_name(memory), pagemap.len() as u64)?;
        into.write_all(&pagemap)?;
        into.sync_all()?;
        let mut into = output.file(&format!("pages-{}.img", number + 1), size(memory))?;
        for segment in &memory.segments {
            let length = segment.pages as usize * PAGE;
            match segment.block() {
                // Left out of the file, where they read as zeros.
                None => drop(into.seek(SeekFrom::Current(
                    length.try_into().expect("a segment is small"),
                ))?),
                Some(block) => {
                    blocks.extend(Instant::now() + job.limit);
                    let start = segment.first as usize * PAGE;
                    into.write_all(&blocks.get(block).await?[start..start + length])?;
                }
            }
            progress.advance(length as u64);
        }
        into.set_len(size(memory))?;
        into.sync_all()?;
    }
    write_preserved(job, snapshot, &mut blocks, output).await?;
    for file in first {
        write_file(job, file, &mut blocks, output).await?;
    }
    Ok(())
}

/// The app's own files: a table, and the contents of each by its number there. Their paths are the app's choice, so that
/// nothing is made of them here.
async fn write_preserved(
    job: &Job,
    snapshot: &Snapshot,
    blocks: &mut Blocks<'_>,
    output: &mut Output,
) -> Result<(), ExtractError> {
    let files = &snapshot.index.preserved;
    if files.is_empty() {
        return Ok(());
    }
    let mut table = String::new();
    for (number, file) in files.iter().enumerate() {
        let row = serde_json::json!({
            "number": number,
            "path": String::from_utf8_lossy(&file.path),
            "role": format!("{:?}", file.role()).to_lowercase(),
            "mode": format!("{:o}", file.mode),
            "uid": file.uid,
            "gid": file.gid,
            "size": file.size,
            "target": String::from_utf8_lossy(&file.target),
        });
        table += &format!("{row}\n");
        if !file.is_regular() {
            continue;
        }
        let mut into = output.file(&format!("reprieve-preserved-{number}"), file.size)?;
        for extent in &file.extents {
            blocks.extend(Instant::now() + job.limit);
            into.seek(SeekFrom::Start(extent.offset))?;
            let (start, bytes) = (extent.first as usize, extent.bytes as usize);
            into.write_all(&blocks.get(extent.block as usize).await?[start..start + bytes])?;
        }
        into.set_len(file.size)?;
        into.sync_all()?;
    }
    let mut into = output.file("reprieve-preserved.json", table.len() as u64)?;
    into.write_all(table.as_bytes())?;
    Ok(into.sync_all()?)
}

async fn write_file(
    job: &Job,
    file: &index::File,
    blocks: &mut Blocks<'_>,
    output: &mut Output,
) -> Result<(), ExtractError> {
    let mut into = output.file(&file.name, file.size)?;
    for &block in &file.blocks {
        blocks.extend(Instant::now() + job.limit);
        into.write_all(&blocks.get(block as usize).await?)?;
    }
    Ok(into.sync_all()?)
}

fn size(memory: &Memory) -> u64 {
    let pages = memory
        .segments
        .iter()
        .map(|segment| u64::from(segment.pages));
    pages.sum::<u64>() * PAGE as u64
}

fn pagemap_name(memory: &Memory) -> String {
    match memory.kind() {
        MemoryKind::Shared => format!("pagemap-shmem-{}.img", memory.id),
        MemoryKind::Process | MemoryKind::Unknown => format!("pagemap-{}.img", memory.id),
    }
}

fn extracted(job: &Job, snapshot: &Snapshot, directory: &Path, files: Vec<Written>) -> Extracted {
    let app = &snapshot.manifest.app;
    let external_streams = match app.stdio {
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr]
            .map(|inode| format!("pipe:[{inode}]"))
            .to_vec(),
        Stdio::Terminal { rdev, dev } => vec![format!("tty[{rdev:x}:{dev:x}]")],
    };
    let inherited = external_streams
        .iter()
        .zip(STREAMS)
        .map(|(name, number)| format!(" --inherit-fd 'fd[{number}]:{name}'"));
    let inherited: String = inherited.collect();
    let redirected = ["7<&0", "8>&1", "9>&2"][..external_streams.len()].join(" ");
    // Whoever wrote the manifest decides on the path, and whoever reads the answer may paste it.
    let is_plain = |path: &&String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        path.starts_with('/') && path.chars().all(plain)
    };
    let library = match app.library.as_ref().filter(is_plain) {
        Some(path) => format!(
            "install -D -m 644 {}/{LIBRARY} {path} && ",
            directory.display()
        ),
        None => String::new(),
    };
    Extracted {
        schema: SCHEMA,
        job: job.name.clone(),
        generation: snapshot.manifest.generation,
        restore: format!(
            "{library}criu restore --images-dir {} --unprivileged --tcp-close --file-locks{inherited} {redirected}",
            directory.display()
        ),
        directory: directory.to_owned(),
        files,
        criu: snapshot.manifest.host.criu.clone(),
        root_pid: app.root_pid,
        external_streams,
    }
}

impl Answer for Extracted {
    fn human(&self) -> String {
        format!(
            "generation {}: {} files, {}, in {}\n\nTo restore it by hand, with CRIU {} or later, in a container like the \
             one it was taken in where no process has its numbers:\n  {}\n",
            self.generation,
            self.files.len(),
            text::bytes(self.files.iter().map(|file| file.bytes).sum()),
            self.directory.display(),
            self.criu,
            self.restore,
        )
    }
}
