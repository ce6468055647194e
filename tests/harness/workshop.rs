//! Where one test program keeps its containers, and the root file systems it makes them from. Made once per program.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::project_path;

/// Short, because unix sockets live below it and their paths may not exceed 107 bytes.
const WORKSHOPS: &str = "/run/reprieve-tests";

pub(super) struct Workshop {
    pub(super) directory: PathBuf,
    roots: HashMap<String, PathBuf>,
    made: AtomicU32,
    /// Locked as long as this program lives; the janitor waits for it.
    _alive: File,
}

/// The workshop, made on first use.
pub(super) fn workshop() -> &'static Workshop {
    static WORKSHOP: LazyLock<Workshop> = LazyLock::new(Workshop::open);
    &WORKSHOP
}

impl Workshop {
    fn open() -> Self {
        let roots = set_up();
        let (directory, alive) =
            claim().expect("a directory below /run can be made (run the tests as root)");
        // runc leaves the container's first process to the nearest subreaper: to us, so that we learn how it ends.
        nix::sys::prctl::set_child_subreaper(true).expect("any process may become a subreaper");
        start_janitor(&directory).expect("the janitor starts");
        Self {
            directory,
            roots,
            made: AtomicU32::new(0),
            _alive: alive,
        }
    }

    /// `rootfs`, `empty` or `nothing`, as `infra/local/setup` calls them.
    pub(super) fn root(&self, name: &str) -> &Path {
        self.roots
            .get(name)
            .unwrap_or_else(|| panic!("infra/local/setup --paths names no root called {name}"))
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("runc")
    }

    /// A container id and a directory that nothing else uses.
    pub(super) fn place(&self, name: &str) -> (String, PathBuf) {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let workshop = self
            .directory
            .file_name()
            .expect("claim() gave it a name")
            .to_string_lossy();
        let directory = self.directory.join(format!("{number}-{name}"));
        fs::create_dir(&directory).expect("the workshop is writable");
        (
            format!("reprieve-test-{workshop}-{number}-{name}"),
            directory,
        )
    }
}

fn set_up() -> HashMap<String, PathBuf> {
    let script = project_path("infra/local/setup");
    // These roots take longer to make and nothing else needs them.
    let what = match env!("CARGO_CRATE_NAME") {
        "benchmarks" => "--bench-paths",
        "slurm" => "--slurm-paths",
        // All apps, or those that need no more than the tests have anyway.
        "apps" if std::env::var_os("APPS").is_some() => "--apps-paths",
        "contrib_apps" => "--apps-paths",
        _ => "--paths",
    };
    let output = Command::new(&script)
        .arg(what)
        .output()
        .expect("infra/local/setup can be started");
    assert!(
        output.status.success(),
        "infra/local/setup failed, so there is nothing to start hosts from:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
        .collect()
}

/// The lock is taken before the directory gets a name that janitors look at.
fn claim() -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(WORKSHOPS)?;
    let unnamed = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(WORKSHOPS)?
        .keep();
    let alive = File::create(unnamed.join("alive"))?;
    alive.lock()?;
    let name = unnamed
        .file_name()
        .expect("tempdir_in() gave it a name")
        .to_string_lossy()
        .replace(".new-", "");
    let directory = Path::new(WORKSHOPS).join(name);
    fs::rename(&unnamed, &directory)?;
    Ok((directory, alive))
}

fn start_janitor(own: &Path) -> io::Result<()> {
    let janitor = Command::new("sh")
        .arg(project_path("tests/harness/janitor.sh"))
        .arg(WORKSHOPS)
        .arg(own)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C on the test run must not reach it.
        .process_group(0)
        .spawn()?;
    // It outlives us by design.
    drop(janitor);
    Ok(())
}
