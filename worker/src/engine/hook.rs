//! How CRIU asks its supervisor, in the middle of a dump or a restore, whether to go on.
//!
//! CRIU runs an action script at each stage and waits for it. Our script is this program again: told by its environment
//! that it is one, it connects to the supervisor's socket, says which stage it is and ends with the answer it gets. No
//! answer is a no.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as SyncStream;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Names the socket, in the environment of CRIU and so of the script.
pub(crate) const SOCKET_VARIABLE: &str = "REPRIEVE_CRIU_HOOK";

/// CRIU's own variable, criu/action-scripts.c.
const STAGE_VARIABLE: &str = "CRTOOLS_SCRIPT_ACTION";

/// When this process is CRIU's action script: asks the supervisor and returns the exit code that CRIU is to see.
/// To be called first thing in main.
pub fn run_if_called(variable: impl Fn(&str) -> Option<OsString>) -> Option<u8> {
    let (socket, stage) = (variable(SOCKET_VARIABLE)?, variable(STAGE_VARIABLE)?);
    Some(match ask(Path::new(&socket), &stage.to_string_lossy()) {
        Ok(true) => 0,
        Ok(false) | Err(_) => 1,
    })
}

fn ask(socket: &Path, stage: &str) -> std::io::Result<bool> {
    let mut socket = SyncStream::connect(socket)?;
    socket.write_all(format!("{stage}\n").as_bytes())?;
    let mut answer = [0];
    // The supervisor has a limit for every step and closes the socket when it gives up; there is none here.
    socket.read_exact(&mut answer)?;
    Ok(answer == *b"y")
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Hooks {
    listener: UnixListener,
    pub(crate) path: PathBuf,
}

/// A script that waits. Dropped without an answer it says no.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `post-dump`, `post-restore`, ...
    pub(crate) stage: String,
    socket: UnixStream,
}

impl Hooks {
    pub(crate) fn bind(path: PathBuf) -> std::io::Result<Self> {
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// The next stage that CRIU reached.
    pub(crate) async fn next(&self) -> std::io::Result<Asked> {
        let (socket, _) = self.listener.accept().await?;
        let mut line = String::new();
        let mut reader = BufReader::new(socket);
        // One of our own processes wrote it; nobody else can reach this directory.
        reader.read_line(&mut line).await?;
        Ok(Asked {
            stage: line.trim_end().to_owned(),
            socket: reader.into_inner(),
        })
    }
}

impl Asked {
    /// Lets CRIU go on.
    pub(crate) async fn go_on(mut self) {
        // It fails only when CRIU is gone, and then whoever waits for CRIU says so.
        drop(self.socket.write_all(b"y").await);
    }
}
