//! The commands on a job's snapshots: which one, on which, and where the job is.

use std::path::PathBuf;

use clap::Args;

use super::Invocation;
use super::flags::{Flags, Keeping, Place};
use crate::failure::Failure;
use crate::operate::{
    Action, Detail, Hosts, Prune as How, Request, Selector, Source, Tag as TagName, Values, Which,
    WhichReport,
};
use crate::settings::{FlagValue, JobSettings, Layers};

/// What all of them take.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// The settings file, in TOML [environment: REPRIEVE_CONFIG]
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) place: Flags<Place>,

    /// Print the answer as a line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    fn invocation<'a>(
        self,
        layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
        action: Action,
        more: Vec<FlagValue>,
    ) -> Result<Invocation, Failure> {
        let given = self.place.given.into_iter().chain(more).collect();
        Ok(Invocation::Operate(Box::new(Request {
            settings: JobSettings::load(&layers(self.config, given))?,
            action,
            format: super::format(self.json),
        })))
    }
}

/// Declares a command: its arguments, what it asks for, and its examples.
macro_rules! command {
    (
        $(#[$attribute:meta])* $name:ident = $word:literal,
        { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)* },
        $action:expr, examples: $examples:literal
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Args)]
        #[command(after_long_help = format!(
            concat!("Examples:\n", $examples, "\n{}"), super::after_help(Some($word))
        ))]
        pub(super) struct $name {
            $($(#[$field_attribute])* $field: $type,)*

            #[command(flatten)]
            common: Common,
        }

        impl $name {
            pub(super) fn invocation<'a>(
                self,
                layers: impl FnOnce(Option<PathBuf>, Vec<FlagValue>) -> Layers<'a>,
            ) -> Result<Invocation, Failure> {
                let Self { $($field,)* common } = self;
                #[allow(clippy::redundant_closure_call, reason = "one form for all commands")]
                let (action, more) = ($action)($($field),*);
                common.invocation(layers, action, more)
            }
        }
    };
}

command! {
    /// List the snapshots of a job, newest first
    Snapshots = "snapshots",
    {
        /// Say which of them this host can run, and why not the others: processor, kernel, CRIU, programs and libraries
        #[arg(long)]
        for_host: bool,
    },
    |for_host| match for_host {
        true => (Action::List(Hosts::This), Vec::new()),
        false => (Action::List(Hosts::Any), Vec::new()),
    },
    examples: "  reprieve snapshots --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Say everything about a snapshot
    Show = "show",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION")]
        which: Selector,
    },
    |which| (Action::Show(which), Vec::new()),
    examples: "  reprieve show newest --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Say what is in a snapshot: processes, files, sockets and memory
    ///
    /// The values of environment variables are left out unless they are asked for.
    Inspect = "inspect",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION", default_value = "newest")]
        which: Selector,

        /// Show the values of environment variables, which may be secrets
        #[arg(long)]
        show_environment: bool,
    },
    |which, show_environment| match show_environment {
        true => (Action::Inspect(which, Values::Shown), Vec::new()),
        false => (Action::Inspect(which, Values::Masked), Vec::new()),
    },
    examples: "  reprieve inspect newest --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Say what changed in the job between two snapshots
    Diff = "diff",
    {
        /// The earlier one: a generation's number or a tag
        #[arg(value_name = "BEFORE")]
        before: Selector,

        /// The later one: a generation's number, a tag, or "newest"
        #[arg(value_name = "AFTER", default_value = "newest")]
        after: Selector,
    },
    |before, after| (Action::Diff(before, after), Vec::new()),
    examples: "  reprieve diff 11 12 --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Read every byte of a snapshot and check it
    ///
    /// Ends with 176 if anything is damaged, and says what.
    Verify = "verify",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION", default_value = "newest")]
        which: Selector,

        /// Verify every snapshot of the job
        #[arg(long, conflicts_with = "which")]
        all: bool,
    },
    |which, all| match all {
        true => (Action::Verify(Which::All), Vec::new()),
        false => (Action::Verify(Which::One(which)), Vec::new()),
    },
    examples: "  reprieve verify --all --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Write a snapshot as CRIU's own image files
    ///
    /// `criu` and `crit` can read them.
    Extract = "extract",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION")]
        which: Selector,

        /// Where to; it has to be empty or not there yet
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
    |which, directory| (Action::Extract(which, directory), Vec::new()),
    examples: "  reprieve extract newest ./images --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Give a snapshot a name, by which it stays
    Tag = "tag",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION")]
        which: Selector,

        /// 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter
        #[arg(value_name = "TAG")]
        tag: TagName,
    },
    |which, tag| (Action::Tag(which, tag), Vec::new()),
    examples: "  reprieve tag 12 before-the-merge --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Take a name from its snapshot
    Untag = "untag",
    {
        /// The tag
        #[arg(value_name = "TAG")]
        tag: TagName,
    },
    |tag| (Action::Untag(tag), Vec::new()),
    examples: "  reprieve untag before-the-merge --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Keep a snapshot until it is unpinned
    Pin = "pin",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION")]
        which: Selector,
    },
    |which| (Action::Pin(which), Vec::new()),
    examples: "  reprieve pin newest --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Keep a snapshot no longer than others
    Unpin = "unpin",
    {
        /// A generation's number, a tag, or "newest"
        #[arg(value_name = "GENERATION")]
        which: Selector,
    },
    |which| (Action::Unpin(which), Vec::new()),
    examples: "  reprieve unpin 12 --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Remove snapshots that are not to be kept, and what nothing needs
    ///
    /// A running job does this by itself; here it is done now, or with other settings. It is safe beside a running job.
    Prune = "prune",
    {
        /// Only say what would go and why everything else stays
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        keeping: Flags<Keeping>,
    },
    |dry_run, keeping: Flags<Keeping>| match dry_run {
        true => (Action::Prune(How::DryRun), keeping.given),
        false => (Action::Prune(How::CarryOut), keeping.given),
    },
    examples: "  reprieve prune --dry-run --keep-daily 7 --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Say why a checkpoint failed, or how an eviction went
    ///
    /// Workers leave a report in the store of each checkpoint that failed, each end of the machine that was missed, and each
    /// eviction; the newest 20 stay. Without a name they are listed, the newest last.
    Reports = "reports",
    {
        /// A report's name, or "newest"
        #[arg(value_name = "REPORT")]
        which: Option<WhichReport>,

        /// Print CRIU's log and nothing else
        #[arg(long, requires = "which")]
        criu_log: bool,
    },
    |which, criu_log| match (which, criu_log) {
        (None, _) => (Action::Reports, Vec::new()),
        (Some(which), false) => (Action::Report(which, Detail::Whole), Vec::new()),
        (Some(which), true) => (Action::Report(which, Detail::Log), Vec::new()),
    },
    examples: "  reprieve reports --store s3://my-bucket/jobs --job nightly\n  \
               reprieve reports newest --store s3://my-bucket/jobs --job nightly\n"
}

command! {
    /// Begin a new job with a snapshot of another one
    ///
    /// The new job gets copies of everything; from then on neither knows of the other. `reprieve run --job NAME` resumes it, and
    /// as many clones side by side as the machine has room for.
    Clone = "clone",
    {
        /// The other job and its snapshot, a generation's number, a tag, or "newest"; --job names the new one
        #[arg(value_name = "JOB/GENERATION")]
        source: Source,
    },
    |source| (Action::Clone(source), Vec::new()),
    examples: "  reprieve clone nightly/newest --store s3://my-bucket/jobs --job what-if\n  \
               reprieve clone server/warmed-up --store s3://my-bucket/jobs --job server-2\n"
}
