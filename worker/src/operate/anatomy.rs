//! What a snapshot holds, put together from CRIU's images and our index: processes, their files and their memory.
//!
//! `inspect` prints it, `diff` compares two of them. Nothing here restores anything, so a snapshot for another host can
//! be looked at as well.

use std::collections::HashMap;

use reprieve_core::manifest;
use serde::Serialize;
use tokio::time::Instant;

use super::{Failure, Job, Known};
use crate::images::{
    AddressSpace, Core, Descriptor, Directories, FileKind, Ghost, ImageError, Mapping, MappingKind,
    MemfdInode, OpenFile, Process, Remap, entries, first,
};
use crate::pages::PAGE;
use crate::pages::index::{Memory, MemoryKind, Segment};
use crate::pages::load::{self, Blocks, Snapshot, Unusable};

/// The longest text that is taken from a process's memory, in bytes: Linux's limit for arguments and environment
/// together is 6 MiB.
const TEXT_LIMIT: u64 = 6 << 20;

/// A snapshot that was opened, and what is in it.
pub(super) struct Anatomy {
    pub snapshot: Snapshot,
    pub processes: Vec<OneProcess>,
    pub shared: Vec<SharedMemory>,
    pub removed_files: Vec<RemovedFile>,
}

/// One process, its threads included.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OneProcess {
    pub pid: u32,
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    pub threads: usize,
    pub command: String,
    pub state: &'static str,
    pub user: Option<u32>,
    pub user_group: Option<u32>,
    /// Null: that memory is not in the snapshot.
    pub arguments: Option<Vec<String>>,
    pub environment: Option<Vec<Variable>>,
    pub executable: Option<String>,
    pub directory: Option<String>,
    pub descriptors: Vec<OneDescriptor>,
    pub mappings: Vec<OneMapping>,
    pub memory: Pages,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Variable {
    pub name: String,
    /// Null: not asked for.
    pub value: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct OneDescriptor {
    pub number: u32,
    pub kind: FileKind,
    pub name: Option<String>,
    pub position: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct OneMapping {
    pub start: u64,
    pub end: u64,
    pub permissions: String,
    pub kind: MappingKind,
    /// The mapped file.
    pub name: Option<String>,
    pub file_offset: u64,
    pub memory: Pages,
}

/// Memory that the snapshot holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pages {
    pub held_bytes: u64,
    /// Of it, only zeros.
    pub zero_bytes: u64,
    /// Of it, stored by this snapshot and not by an earlier one.
    pub new_bytes: u64,
}

/// Memory that does not belong to one process.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SharedMemory {
    pub id: u64,
    pub memory: Pages,
}

/// A file that was open and had no name any more; its contents are in the snapshot.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RemovedFile {
    pub name: Option<String>,
    pub user: u32,
    pub user_group: u32,
    pub mode: u32,
    pub bytes: Option<u64>,
}

/// Whether the values of environment variables are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    Masked,
    Shown,
}

impl Anatomy {
    pub(super) async fn read(job: &Job, known: &Known, values: Values) -> Result<Self, Failure> {
        let manifest = job.manifest(known).await;
        let manifest = manifest.map_err(|error| job.unusable(known, error))?;
        let deadline = Instant::now() + job.restore_limit;
        let opened = load::open(job.store(), &job.catalog.root(), manifest, deadline).await;
        let snapshot = opened.map_err(|error| job.unusable(known, error))?;
        let images = Images::read(&snapshot, deadline).await;
        let images = images.map_err(|error| job.unusable(known, error))?;
        let read = Reader {
            snapshot: &snapshot,
            images: &images,
            deadline,
            values,
        };
        let processes = read.processes().await;
        let processes = processes.map_err(|error| job.unusable(known, error))?;
        let shared = read.shared();
        let removed_files = images.removed_files();
        let removed_files = removed_files.map_err(|error| job.unusable(known, error))?;
        Ok(Self {
            snapshot,
            processes,
            shared,
            removed_files,
        })
    }
}

/// CRIU's small images, by name.
struct Images {
    contents: HashMap<String, Vec<u8>>,
    files: HashMap<u32, OpenFile>,
    memfds: Vec<MemfdInode>,
}

fn damaged(name: &str, source: ImageError) -> Unusable {
    Unusable::Image {
        name: name.to_owned(),
        source,
    }
}

impl Images {
    async fn read(snapshot: &Snapshot, deadline: Instant) -> Result<Self, Unusable> {
        let wanted = [
            "pstree.img",
            "files.img",
            "memfd.img",
            "remap-fpath.img",
            "core-",
            "mm-",
            "fs-",
            "fdinfo-",
            "ids-",
            "ghost-file-",
        ];
        let mut contents = HashMap::new();
        for file in &snapshot.index.files {
            if wanted.iter().any(|name| file.name.starts_with(name)) {
                contents.insert(file.name.clone(), snapshot.file(file, deadline).await?);
            }
        }
        let mut images = Self {
            contents,
            files: HashMap::new(),
            memfds: Vec::new(),
        };
        let files: Vec<OpenFile> = images.all("files.img")?;
        images.files = files.into_iter().map(|file| (file.number, file)).collect();
        images.memfds = images.all("memfd.img")?;
        Ok(images)
    }

    /// Every entry of an image; none if there is no such image.
    fn all<M: prost::Message + Default>(&self, name: &str) -> Result<Vec<M>, Unusable> {
        match self.contents.get(name) {
            Some(image) => entries(image).map_err(|error| damaged(name, error)),
            None => Ok(Vec::new()),
        }
    }

    /// The one entry of an image, if there is such an image.
    fn one<M: prost::Message + Default>(&self, name: &str) -> Result<Option<M>, Unusable> {
        let image = self.contents.get(name);
        let read = image.map(|image| first(image).map_err(|error| damaged(name, error)));
        read.transpose()
    }

    fn name(&self, file: u32) -> Option<String> {
        self.files.get(&file)?.name(&self.memfds)
    }

    fn removed_files(&self) -> Result<Vec<RemovedFile>, Unusable> {
        let remaps: Vec<Remap> = self.all("remap-fpath.img")?;
        let mut found = Vec::new();
        for remap in remaps {
            let Some(image) = remap.ghost() else { continue };
            if let Some(ghost) = self.one::<Ghost>(&image)? {
                found.push(RemovedFile {
                    name: self.name(remap.file),
                    user: ghost.user,
                    user_group: ghost.group,
                    mode: ghost.mode,
                    bytes: ghost.size,
                });
            }
        }
        Ok(found)
    }
}

struct Reader<'a> {
    snapshot: &'a Snapshot,
    images: &'a Images,
    deadline: Instant,
    values: Values,
}

impl Reader<'_> {
    async fn processes(&self) -> Result<Vec<OneProcess>, Unusable> {
        let mut found = Vec::new();
        for process in self.images.all::<Process>("pstree.img")? {
            found.push(self.process(&process).await?);
        }
        Ok(found)
    }

    async fn process(&self, process: &Process) -> Result<OneProcess, Unusable> {
        let pid = process.pid;
        let core: Core = self
            .images
            .one(&format!("core-{pid}.img"))?
            .unwrap_or_default();
        let task = core.task.unwrap_or_default();
        let credentials = core.thread.and_then(|thread| thread.credentials);
        let space: Option<AddressSpace> = self.images.one(&format!("mm-{pid}.img"))?;
        let directories: Option<Directories> = self.images.one(&format!("fs-{pid}.img"))?;
        let ids = match core.ids {
            Some(ids) => Some(ids),
            None => self.images.one(&format!("ids-{pid}.img"))?,
        };
        let descriptors = match ids {
            Some(ids) => self.descriptors(ids.files)?,
            None => Vec::new(),
        };
        let memory = self.memory(pid);
        let (mut arguments, mut environment) = (None, None);
        if let (Some(space), Some(memory)) = (&space, memory) {
            let text = self
                .text(memory, space.arguments_start, space.arguments_end)
                .await?;
            arguments = text.map(|text| strings(&text));
            let text = self
                .text(memory, space.environment_start, space.environment_end)
                .await?;
            environment = text.map(|text| self.variables(&text));
        }
        let mappings = space.iter().flat_map(|space| &space.mappings);
        let mappings: Vec<_> = mappings
            .map(|mapping| self.mapping(mapping, memory))
            .collect();
        Ok(OneProcess {
            pid,
            parent: process.parent,
            group: process.group,
            session: process.session,
            threads: process.threads.len(),
            command: task.command,
            state: match task.state {
                1 => "running",
                2 => "dead",
                3 => "stopped",
                _ => "other",
            },
            user: credentials.map(|credentials| credentials.user),
            user_group: credentials.map(|credentials| credentials.group),
            arguments,
            environment,
            executable: space.and_then(|space| self.images.name(space.executable)),
            directory: directories.and_then(|fs| self.images.name(fs.working)),
            descriptors,
            mappings,
            memory: memory
                .map(|memory| self.pages(&memory.segments))
                .unwrap_or_default(),
        })
    }

    fn descriptors(&self, files: u32) -> Result<Vec<OneDescriptor>, Unusable> {
        let all: Vec<Descriptor> = self.images.all(&format!("fdinfo-{files}.img"))?;
        let mut found: Vec<_> = all
            .iter()
            .map(|descriptor| {
                let file = self.images.files.get(&descriptor.file);
                OneDescriptor {
                    number: descriptor.number,
                    kind: file.map_or(FileKind::Other, OpenFile::kind),
                    name: self.images.name(descriptor.file),
                    position: file.and_then(OpenFile::position),
                }
            })
            .collect();
        found.sort_by_key(|descriptor| descriptor.number);
        Ok(found)
    }

    fn mapping(&self, mapping: &Mapping, memory: Option<&Memory>) -> OneMapping {
        let kind = mapping.kind();
        let is_file = matches!(kind, MappingKind::PrivateFile | MappingKind::SharedFile);
        let object = u32::try_from(mapping.object).ok().filter(|_| is_file);
        let inside = memory.map(|memory| within(memory, mapping.start, mapping.end));
        OneMapping {
            start: mapping.start,
            end: mapping.end,
            permissions: mapping.permissions(),
            kind,
            name: object.and_then(|object| self.images.name(object)),
            file_offset: mapping.file_offset,
            memory: inside.map(|inside| self.pages(&inside)).unwrap_or_default(),
        }
    }

    fn memory(&self, pid: u32) -> Option<&Memory> {
        self.snapshot
            .index
            .memories
            .iter()
            .find(|memory| memory.kind() == MemoryKind::Process && memory.id == u64::from(pid))
    }

    fn shared(&self) -> Vec<SharedMemory> {
        let all = self.snapshot.index.memories.iter();
        all.filter(|memory| memory.kind() == MemoryKind::Shared)
            .map(|memory| SharedMemory {
                id: memory.id,
                memory: self.pages(&memory.segments),
            })
            .collect()
    }

    fn pages(&self, segments: &[Segment]) -> Pages {
        let own = manifest::data_prefix(&self.snapshot.manifest.attempt);
        let mut pages = Pages::default();
        for segment in segments {
            let bytes = u64::from(segment.pages) * PAGE as u64;
            pages.held_bytes += bytes;
            match segment.block() {
                None => pages.zero_bytes += bytes,
                Some(block) => {
                    let part = self.snapshot.index.blocks[block].part as usize;
                    if self.snapshot.manifest.parts[part].key.starts_with(&own) {
                        pages.new_bytes += bytes;
                    }
                }
            }
        }
        pages
    }

    /// Bytes of a process's memory, if the snapshot holds all of them.
    async fn text(
        &self,
        memory: &Memory,
        start: u64,
        end: u64,
    ) -> Result<Option<Vec<u8>>, Unusable> {
        if end < start || end - start > TEXT_LIMIT {
            return Ok(None);
        }
        let page = PAGE as u64;
        let first_page = start - start % page;
        let mut bytes = Vec::new();
        let mut blocks = Blocks::new(self.snapshot, self.deadline);
        for segment in within(memory, first_page, end.next_multiple_of(page)) {
            if segment.vaddr != first_page + bytes.len() as u64 {
                return Ok(None);
            }
            let length = segment.pages as usize * PAGE;
            match segment.block() {
                None => bytes.resize(bytes.len() + length, 0),
                Some(block) => {
                    let from = segment.first as usize * PAGE;
                    bytes.extend_from_slice(&blocks.get(block).await?[from..from + length]);
                }
            }
        }
        let at = |address: u64| usize::try_from(address - first_page).unwrap_or(usize::MAX);
        Ok(bytes.get(at(start)..at(end)).map(<[u8]>::to_vec))
    }

    fn variables(&self, text: &[u8]) -> Vec<Variable> {
        let all = strings(text).into_iter();
        all.map(|variable| {
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            Variable {
                name: name.to_owned(),
                value: (self.values == Values::Shown).then(|| value.to_owned()),
            }
        })
        .collect()
    }
}

/// What lies between two addresses, cut to them.
pub(super) fn within(memory: &Memory, start: u64, end: u64) -> Vec<Segment> {
    let page = PAGE as u64;
    let overlapping = memory
        .segments
        .iter()
        .filter(|segment| segment.end() > start && segment.vaddr < end);
    overlapping
        .map(|segment| {
            let from = segment.vaddr.max(start);
            let to = segment.end().min(end);
            let count = |bytes: u64| u32::try_from(bytes / page).expect("within one segment");
            let skipped = count(from - segment.vaddr);
            Segment {
                vaddr: from,
                pages: count(to - from),
                source: segment.source,
                first: match segment.source {
                    0 => 0,
                    _ => segment.first + skipped,
                },
            }
        })
        .collect()
}

/// Strings that each end with a zero byte.
fn strings(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(vaddr: u64, pages: u32, source: u32, first: u32) -> Segment {
        Segment {
            vaddr,
            pages,
            source,
            first,
        }
    }

    #[test]
    fn a_range_of_memory_is_cut_out_of_its_segments() {
        let memory = Memory {
            kind: MemoryKind::Process as i32,
            id: 1,
            segments: vec![
                segment(0x1000, 4, 1, 8),
                segment(0x5000, 2, 0, 0),
                segment(0x9000, 1, 2, 0),
            ],
        };
        assert_eq!(
            within(&memory, 0x2000, 0x6000),
            [segment(0x2000, 3, 1, 9), segment(0x5000, 1, 0, 0)]
        );
        assert_eq!(within(&memory, 0x7000, 0x9000), []);
        assert_eq!(within(&memory, 0, u64::MAX), memory.segments);
    }

    #[test]
    fn strings_end_with_zero_bytes() {
        assert_eq!(
            strings(b"python3\0-c\0\0x y\0"),
            ["python3", "-c", "", "x y"]
        );
        assert_eq!(strings(b"sshd: renamed"), ["sshd: renamed"]);
        assert!(strings(b"").is_empty());
    }
}
