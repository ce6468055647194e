//! The supervisor's end of the control socket. It takes requests from this user and from root, passes them on and says
//! how they ended; a caller that misbehaves costs a connection and nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use reprieve_core::notice::{Afterwards, Announcement, Says, Source, WallMs};
use reprieve_hooks::Heard;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::control::protocol::{self, Answer, LINE_LIMIT};
use crate::sources;
use crate::supervisor::Request;

/// Callers served at once; further ones wait.
const CALLERS: usize = 32;

/// How long a caller may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those who are being served.
#[derive(Clone, Debug)]
pub struct Callers(Arc<Semaphore>);

impl Callers {
    /// Waits until everybody has taken their answer and hung up: in a container, whoever asked ends with PID 1.
    pub async fn served(&self, limit: Duration) {
        let all = u32::try_from(CALLERS).unwrap_or(u32::MAX);
        // Too late is not worth a word: the supervisor is ending.
        drop(timeout(limit, self.0.acquire_many(all)).await);
    }
}

/// Listens at `path` and serves until the runtime ends. A socket left behind by a supervisor that is gone is replaced.
pub fn listen(path: &Path, requests: mpsc::Sender<Request>) -> io::Result<Callers> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let callers = Arc::new(Semaphore::new(CALLERS));
    tokio::spawn(serve(listener, requests, Arc::clone(&callers)));
    Ok(Callers(callers))
}

async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>, callers: Arc<Semaphore>) {
    loop {
        let accepted = listener.accept().await;
        let Ok(place) = Arc::clone(&callers).acquire_owned().await else {
            return;
        };
        match accepted {
            Ok((socket, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Err(error) = attend(socket, requests).await {
                        tracing::warn!(%error, "a caller at the control socket was turned away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; they come back when callers end.
                tracing::warn!(%error, "cannot accept a caller at the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn attend(mut socket: UnixStream, requests: mpsc::Sender<Request>) -> io::Result<()> {
    let caller = socket.peer_cred()?.uid();
    if caller != 0 && caller != geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "user {caller} may not ask this supervisor"
        )));
    }
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_LIMIT).unwrap_or(u64::MAX) + 1;
    let mut reader = BufReader::new((&mut socket).take(limit));
    timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let answer = match protocol::Request::parse(&line) {
        Ok(request) => pass_on(request, &requests).await,
        Err(error) => Answer::Invalid {
            reason: crate::supervisor::with_causes(&error),
        },
    };
    timeout(PATIENCE, socket.write_all(answer.to_line().as_bytes())).await??;
    // It hangs up when it has read the answer; that it takes its time is no fault.
    drop(timeout(PATIENCE, socket.read(&mut [0])).await);
    Ok(())
}

async fn pass_on(request: protocol::Request, requests: &mpsc::Sender<Request>) -> Answer {
    let over = || Answer::Invalid {
        reason: "the supervisor is ending".to_owned(),
    };
    match request {
        protocol::Request::Status(_) => {
            let (answer, status) = oneshot::channel();
            if requests.send(Request::Status { answer }).await.is_err() {
                return over();
            }
            status
                .await
                .map_or_else(|_| over(), |status| Answer::Status(Box::new(status)))
        }
        protocol::Request::Notice(notice) => {
            let at = |in_ms| WallMs(sources::wall_now().0.saturating_add(in_ms));
            let announcement = Announcement {
                source: Source::Control,
                identity: notice.identity,
                says: match notice.withdrawn {
                    true => Says::Withdrawn,
                    false => Says::Goes {
                        fate: notice.fate,
                        at: notice.in_ms.map(at),
                    },
                },
            };
            // What becomes of it is told by the status and the log.
            let (settled, _) = oneshot::channel();
            let heard = Heard {
                announcement,
                settled,
            };
            match requests.send(Request::Notice(heard)).await {
                Ok(()) => Answer::Noted {},
                Err(_) => over(),
            }
        }
        protocol::Request::Checkpoint(asked) => {
            let afterwards = if asked.leave_running {
                Afterwards::Continue
            } else {
                Afterwards::Stop
            };
            let (answer, outcome) = oneshot::channel();
            let request = Request::Checkpoint {
                afterwards,
                timeout: asked.timeout_ms.map(Duration::from_millis),
                answer,
            };
            if requests.send(request).await.is_err() {
                return over();
            }
            outcome.await.map_or_else(|_| over(), Answer::Checkpoint)
        }
    }
}
