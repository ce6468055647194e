//! `reprieve inspect`: what is in a snapshot, as a document about the job at one moment.

use serde::Serialize;

use super::anatomy::{Anatomy, OneProcess, RemovedFile, SharedMemory, Values};
use super::{Answer, Failure, Job, SCHEMA, Selector, text};

/// One snapshot, opened.
#[derive(Debug, Serialize)]
pub(super) struct Inspected {
    schema: u32,
    job: String,
    generation: u64,
    taken_at_ms: u64,
    processes: Vec<OneProcess>,
    shared_memory: Vec<SharedMemory>,
    removed_files: Vec<RemovedFile>,
}

pub(super) async fn inspect(
    job: &Job,
    which: &Selector,
    values: Values,
) -> Result<Inspected, Failure> {
    let contained = job.contained().await?;
    let known = job.find(&contained, which)?;
    let anatomy = Anatomy::read(job, &known, values).await?;
    let manifest = &anatomy.snapshot.manifest;
    Ok(Inspected {
        schema: SCHEMA,
        job: job.name.clone(),
        generation: manifest.generation,
        taken_at_ms: manifest.taken_at_ms,
        processes: anatomy.processes,
        shared_memory: anatomy.shared,
        removed_files: anatomy.removed_files,
    })
}

impl Answer for Inspected {
    fn human(&self) -> String {
        let mut text = String::new();
        for process in &self.processes {
            text.push_str(&describe(process));
            text.push('\n');
        }
        for shared in &self.shared_memory {
            text.push_str(&format!(
                "shared memory {:x}: {}, {} new\n",
                shared.id,
                text::bytes(shared.memory.held_bytes),
                text::bytes(shared.memory.new_bytes)
            ));
        }
        for file in &self.removed_files {
            let name = file.name.as_deref().unwrap_or("without a name");
            let size = file
                .bytes
                .map_or(String::new(), |bytes| format!(", {}", text::bytes(bytes)));
            text.push_str(&format!(
                "removed file {name}{size}, kept in the snapshot\n"
            ));
        }
        text
    }
}

fn describe(process: &OneProcess) -> String {
    let unknown = || "not in the snapshot".to_owned();
    let memory = &process.memory;
    let mut text = format!("process {} ({})\n", process.pid, process.command);
    let mut fields = vec![
        ("  state", process.state.to_owned()),
        ("  parent", process.parent.to_string()),
        ("  threads", process.threads.to_string()),
        (
            "  command line",
            process
                .arguments
                .as_ref()
                .map_or_else(unknown, |words| words.join(" ")),
        ),
        (
            "  executable",
            process.executable.clone().unwrap_or_else(unknown),
        ),
        (
            "  directory",
            process.directory.clone().unwrap_or_else(unknown),
        ),
    ];
    if let (Some(user), Some(group)) = (process.user, process.user_group) {
        fields.push(("  user", format!("{user}, group {group}")));
    }
    fields.push((
        "  memory",
        format!(
            "{}, of it {} zeros and {} new in this snapshot",
            text::bytes(memory.held_bytes),
            text::bytes(memory.zero_bytes),
            text::bytes(memory.new_bytes)
        ),
    ));
    text.push_str(&text::fields(&fields));
    let variables = process.environment.iter().flatten();
    let variables: Vec<String> = variables
        .map(|variable| match &variable.value {
            Some(value) => format!("{}={value}", variable.name),
            None => variable.name.clone(),
        })
        .collect();
    if !variables.is_empty() {
        text.push_str(&format!(
            "  environment\n    {}\n",
            variables.join("\n    ")
        ));
    }
    text.push_str(&indented(&descriptors(process)));
    text.push_str(&indented(&mappings(process)));
    text
}

fn descriptors(process: &OneProcess) -> String {
    let rows: Vec<_> = process
        .descriptors
        .iter()
        .map(|descriptor| {
            vec![
                descriptor.number.to_string(),
                word(descriptor.kind),
                descriptor
                    .position
                    .map_or(String::new(), |position| position.to_string()),
                descriptor.name.clone().unwrap_or_default(),
            ]
        })
        .collect();
    text::table(&["FD", "KIND", "POSITION", "WHAT"], &rows)
}

/// Mappings of which the snapshot holds anything.
fn mappings(process: &OneProcess) -> String {
    let held = process
        .mappings
        .iter()
        .filter(|mapping| mapping.memory.held_bytes > 0);
    let rows: Vec<_> = held
        .map(|mapping| {
            vec![
                format!("{:x}-{:x}", mapping.start, mapping.end),
                mapping.permissions.clone(),
                text::bytes(mapping.memory.held_bytes),
                text::bytes(mapping.memory.new_bytes),
                mapping.name.clone().unwrap_or_else(|| word(mapping.kind)),
            ]
        })
        .collect();
    text::table(&["MEMORY", "MAY", "HELD", "NEW", "WHAT"], &rows)
}

/// A choice as JSON names it, with spaces.
pub(super) fn word(choice: impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
