//! Whoever hands out credentials to a container, as ECS and EKS do: one pair after another, each with its end.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

#[derive(Default)]
struct State {
    pair: usize,
    life: Duration,
    pairs_end_by_themselves: bool,
    times_asked: usize,
    ended: bool,
}

/// The server. It ends when this is dropped.
pub(crate) struct Handout {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Handout {
    /// Its pairs are said to last an hour.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Mutex::new(State {
            life: Duration::from_secs(3600),
            ..State::default()
        }));
        let serving = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = serving.lock().expect("nobody panics with it");
                if state.ended {
                    return;
                }
                let answer = state.answer();
                drop(state);
                // A client that goes away asks again.
                drop(serve(&client, &answer));
            }
        });
        Self { address, state }
    }

    /// As `AWS_CONTAINER_CREDENTIALS_FULL_URI` wants it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/credentials", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// The id of the key that is handed out now.
    pub(crate) fn key_id(&self) -> String {
        self.lock().key_id()
    }

    /// From now on the next pair is handed out. Returns the id of the key before.
    pub(crate) fn renew(&self) -> String {
        let mut state = self.lock();
        let before = state.key_id();
        state.pair += 1;
        before
    }

    /// From now on each answer has a pair of its own, which lasts this long.
    pub(crate) fn set_life(&self, life: Duration) {
        let mut state = self.lock();
        state.life = life;
        state.pairs_end_by_themselves = true;
    }

    pub(crate) fn times_asked(&self) -> usize {
        self.lock().times_asked
    }
}

impl State {
    fn key_id(&self) -> String {
        format!("ASIAPAIR{}", self.pair)
    }

    fn answer(&mut self) -> String {
        self.times_asked += 1;
        if self.pairs_end_by_themselves {
            self.pair += 1;
        }
        let end = SystemTime::now() + self.life;
        let body = serde_json::json!({
            "AccessKeyId": self.key_id(),
            "SecretAccessKey": "a-secret-that-stays-one",
            "Token": format!("token-{}", self.pair),
            "Expiration": humantime::format_rfc3339_seconds(end).to_string(),
        })
        .to_string();
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }
}

impl Drop for Handout {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.ended = true;
        }
        // Wakes the one that accepts; without success there is nobody to wake.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(client: &TcpStream, answer: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut client = client;
    client.write_all(answer.as_bytes())
}
