//! A way to a server that fails on cue: it stands between a host and an HTTP server, hands requests on, and does to some
//! of them what networks and overloaded services do. It keeps a log of every request, so that a test can wait for one
//! instead of sleeping.
//!
//! One request for each connection: whatever the answer, the connection is closed behind it. Nothing is waited for longer
//! than [`LIMIT`], except by requests that are meant to hang, which end with their client or with the proxy.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::LIMIT;

/// A request's head may not be longer.
const HEAD_LIMIT: usize = 64 * 1024;

/// The piece in which bodies are handed on, and paced.
const PIECE: usize = 16 * 1024;

/// A line that was not used for longer than this is not the faster for it afterwards.
const LATE: Duration = Duration::from_millis(50);

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is taken, and then nothing more is heard.
    Hang,
    /// The connection is reset; the server hears nothing of it.
    Reset,
    /// 503 SlowDown; the server hears nothing of it.
    SlowDown,
    /// 403 AccessDenied; the server hears nothing of it.
    Denied,
    /// 400 ExpiredToken, as S3 says it; the server hears nothing of it.
    Expired,
    /// The server does it and answers, but the connection is cut before the answer gets through.
    LoseReply,
    /// The server does not hear of the request's conditions (`If-Match`, `If-None-Match`).
    ForgetConditions,
    /// 500 InternalError; the server hears nothing of it.
    Broken,
    /// 403 RequestTimeTooSkewed, as to a machine whose clock is wrong; the server hears nothing of it.
    Skewed,
    /// 404 NoSuchBucket; the server hears nothing of it.
    NoBucket,
    /// The server does it and answers, but that is handed on only so much later.
    Delay(Duration),
    /// The server does it, and 500 InternalError is answered.
    DoneButFailed,
    /// The server does it twice; its second answer counts.
    Twice,
    /// The connection is reset when all of it has come, and the server does it so much later.
    Later(Duration),
    /// Of the answer's body only the first half comes, then the connection ends.
    Truncate,
    /// A bit of the answer's body is another one.
    Alter,
}

/// One request, as the log has it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With the query, as it was sent.
    pub(crate) path: String,
    /// Of its body.
    pub(crate) bytes: usize,
    /// The id of the key it is signed with.
    pub(crate) signed_by: Option<String>,
    /// What it asks of AWS, as policies call it: `sqs:ReceiveMessage`.
    pub(crate) action: Option<String>,
    /// How many requests had come when its answer was known.
    pub(crate) answered_at: Option<usize>,
    pub(crate) fault: Option<Fault>,
    /// What the server answered, whether or not that got through.
    pub(crate) status: Option<u16>,
}

impl Request {
    pub(crate) fn is(&self, method: &str, part_of_path: &str) -> bool {
        self.method == method && self.path.contains(part_of_path)
    }
}

struct Rule {
    fault: Fault,
    skip: usize,
    times: usize,
    which: Box<dyn FnMut(&Request) -> bool + Send>,
}

impl Rule {
    /// Whether this is one of those it is for; then it counts.
    fn strikes(&mut self, request: &Request) -> bool {
        if self.times == 0 || !(self.which)(request) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    log: Vec<Request>,
    bytes_per_second: Option<u32>,
    /// The connections of clients, to end them with the proxy.
    clients: HashMap<usize, TcpStream>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Until when it is taken by what is on its way: all connections share one line.
    line: Mutex<Option<Instant>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A rule that panicked fails its test; the others' log must still be readable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the request in the log and says what is to happen to it.
    fn decide(&self, mut request: Request) -> (usize, Option<Fault>) {
        let mut state = self.lock();
        let rule = state
            .rules
            .iter_mut()
            .find_map(|rule| rule.strikes(&request).then_some(rule.fault));
        request.fault = rule;
        state.log.push(request);
        (state.log.len() - 1, rule)
    }

    /// The answer is known: what follows from it at the client comes later.
    fn answered(&self, number: usize) {
        let mut state = self.lock();
        let come = state.log.len();
        state.log[number].answered_at = Some(come);
    }

    /// Takes the time that `count` bytes need on the line.
    fn pace(&self, count: usize) {
        let Some(rate) = self.lock().bytes_per_second else {
            return;
        };
        let takes = Duration::from_secs_f64(count as f64 / f64::from(rate));
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Whoever wakes late was not slow.
        let begins = line.map_or(now, |until| until.max(now - LATE));
        *line = Some(begins + takes);
        drop(line);
        std::thread::sleep((begins + takes).saturating_duration_since(now));
    }
}

pub(crate) struct Proxy {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Stands in front of the server at `url`.
    pub(crate) fn start(url: &str) -> Self {
        let server = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let Ok(client) = client else { continue };
                let copy = client.try_clone().expect("descriptors can be copied");
                let mut state = serving.lock();
                if state.ended {
                    return;
                }
                state.clients.insert(number, copy);
                drop(state);
                let (shared, server) = (Arc::clone(&serving), server.clone());
                std::thread::spawn(move || {
                    // A client or server that goes away is what this is for.
                    drop(serve(&shared, client, &server));
                    shared.lock().clients.remove(&number);
                });
            }
        });
        Self {
            url: format!("http://{address}"),
            address,
            shared,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// From now on, `fault` for every request that `which` is true for and no earlier rule strikes.
    pub(crate) fn fail(&self, fault: Fault, which: impl FnMut(&Request) -> bool + Send + 'static) {
        self.fail_some(fault, 0, usize::MAX, which);
    }

    /// The same for the next `times` of them.
    pub(crate) fn fail_next(
        &self,
        fault: Fault,
        times: usize,
        which: impl FnMut(&Request) -> bool + Send + 'static,
    ) {
        self.fail_some(fault, 0, times, which);
    }

    /// The same for all of them but the next `skip`.
    pub(crate) fn fail_after(
        &self,
        fault: Fault,
        skip: usize,
        which: impl FnMut(&Request) -> bool + Send + 'static,
    ) {
        self.fail_some(fault, skip, usize::MAX, which);
    }

    /// The same for the next `times` of them behind the next `skip`.
    pub(crate) fn fail_some(
        &self,
        fault: Fault,
        skip: usize,
        times: usize,
        which: impl FnMut(&Request) -> bool + Send + 'static,
    ) {
        self.shared.lock().rules.push(Rule {
            fault,
            skip,
            times,
            which: Box::new(which),
        });
    }

    /// From now on, what clients send goes at this rate, all together.
    pub(crate) fn limit_rate(&self, bytes_per_second: u32) {
        self.shared.lock().bytes_per_second = Some(bytes_per_second);
    }

    /// From now on nothing goes wrong with new requests.
    pub(crate) fn pass(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.bytes_per_second = None;
    }

    /// Of the requests that `which` is true for, with how many others of them each was under way when it came.
    pub(crate) fn side_by_side(&self, which: impl Fn(&Request) -> bool) -> Vec<(Request, usize)> {
        let log = self.log();
        let all: Vec<(usize, &Request)> = log
            .iter()
            .enumerate()
            .filter(|(_, request)| which(request))
            .collect();
        let under_way_at = |number: usize, one: &Request| {
            one.answered_at
                .is_none_or(|answered_at| answered_at > number)
        };
        all.iter()
            .map(|(number, request)| {
                let others = all.iter().take_while(|(other, _)| other < number);
                let beside = others.filter(|(_, one)| under_way_at(*number, one)).count();
                ((*request).clone(), beside)
            })
            .collect()
    }

    /// Every request so far, in the order of arrival.
    pub(crate) fn log(&self) -> Vec<Request> {
        self.shared.lock().log.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        for client in state.clients.values() {
            // It may have gone already.
            drop(client.shutdown(Shutdown::Both));
        }
        drop(state);
        // Wakes the one that accepts; without success there is nobody to wake.
        drop(TcpStream::connect(self.address));
        if std::thread::panicking() {
            eprintln!("--- requests to {}:", self.url);
            for Request {
                method,
                path,
                answered_at,
                fault,
                status,
                ..
            } in self.log()
            {
                eprintln!("{method} {path} {fault:?} {status:?} before {answered_at:?}");
            }
        }
    }
}

/// What came of a request so far.
struct Taken {
    head: String,
    body: Vec<u8>,
    /// Bytes that are still to come.
    left: usize,
}

fn serve(shared: &Shared, mut client: TcpStream, server: &str) -> io::Result<()> {
    client.set_write_timeout(Some(LIMIT))?;
    let mut taken = Vec::new();
    let Some(end) = take_head(&mut client, &mut taken)? else {
        return Ok(());
    };
    let head = String::from_utf8_lossy(&taken[..end]).into_owned();
    if is_form(&head) {
        // It names its action there.
        let whole = (end + content_length(&head)).min(HEAD_LIMIT);
        let mut piece = [0; 4096];
        while taken.len() < whole {
            match client.read(&mut piece)? {
                0 => return Ok(()),
                count => taken.extend_from_slice(&piece[..count]),
            }
        }
    }
    let mut words = head.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let body = content_length(&head);
    let request = Request {
        at: Instant::now(),
        method: word(),
        path: word(),
        bytes: body,
        signed_by: signer(&head),
        action: action(&head, &String::from_utf8_lossy(&taken[end..])),
        answered_at: None,
        fault: None,
        status: None,
    };
    let (number, fault) = shared.decide(request);
    let taken = Taken {
        left: body.saturating_sub(taken.len() - end),
        body: taken.split_off(end),
        head,
    };
    let answer = answer_to(shared, &mut client, number, fault, &taken, server);
    shared.answered(number);
    match answer? {
        Some(answer) => client.write_all(&answer),
        None => Ok(()),
    }
}

/// What the client is told, if anything.
fn answer_to(
    shared: &Shared,
    client: &mut TcpStream,
    number: usize,
    fault: Option<Fault>,
    request: &Taken,
    server: &str,
) -> io::Result<Option<Vec<u8>>> {
    match fault {
        Some(Fault::Hang) => io::copy(client, &mut io::sink()).map(|_| None),
        Some(Fault::Reset) => reset(client).map(|()| None),
        Some(Fault::SlowDown) => {
            refuse(client, request.left, "503 Slow Down", "SlowDown").map(Some)
        }
        Some(Fault::Denied) => {
            refuse(client, request.left, "403 Forbidden", "AccessDenied").map(Some)
        }
        Some(Fault::Expired) => {
            refuse(client, request.left, "400 Bad Request", "ExpiredToken").map(Some)
        }
        Some(Fault::Broken) => refuse(
            client,
            request.left,
            "500 Internal Server Error",
            "InternalError",
        )
        .map(Some),
        Some(Fault::Skewed) => refuse(
            client,
            request.left,
            "403 Forbidden",
            "RequestTimeTooSkewed",
        )
        .map(Some),
        Some(Fault::NoBucket) => {
            refuse(client, request.left, "404 Not Found", "NoSuchBucket").map(Some)
        }
        Some(Fault::Twice) => {
            let whole = take_all(shared, client, request)?;
            hand_on(shared, client, &whole, 0, server)?;
            let answer = hand_on(shared, client, &whole, 0, server)?;
            shared.lock().log[number].status = status_of(&answer);
            Ok(Some(answer))
        }
        Some(Fault::Later(pause)) => {
            let whole = take_all(shared, client, request)?;
            reset(client)?;
            client.shutdown(Shutdown::Both)?;
            std::thread::sleep(pause);
            let answer = hand_on(shared, client, &whole, 0, server)?;
            shared.lock().log[number].status = status_of(&answer);
            Ok(None)
        }
        Some(
            Fault::LoseReply
            | Fault::ForgetConditions
            | Fault::Delay(_)
            | Fault::DoneButFailed
            | Fault::Truncate
            | Fault::Alter,
        )
        | None => {
            let forgotten = match fault {
                Some(Fault::ForgetConditions) => without_conditions(&request.head),
                _ => request.head.clone(),
            };
            let forgotten = closing(&forgotten);
            let taken = [forgotten.as_bytes(), &request.body].concat();
            let answer = hand_on(shared, client, &taken, request.left, server)?;
            shared.lock().log[number].status = status_of(&answer);
            told_of(answer, fault, client)
        }
    }
}

/// What of the server's answer the client hears.
fn told_of(
    mut answer: Vec<u8>,
    fault: Option<Fault>,
    client: &mut TcpStream,
) -> io::Result<Option<Vec<u8>>> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = end.map_or(answer.len(), |end| end + 4);
    let middle = body + (answer.len() - body) / 2;
    match fault {
        Some(Fault::LoseReply) => return Ok(None),
        Some(Fault::Delay(pause)) => std::thread::sleep(pause),
        Some(Fault::DoneButFailed) => {
            return refuse(client, 0, "500 Internal Server Error", "InternalError").map(Some);
        }
        Some(Fault::Truncate) => answer.truncate(middle),
        Some(Fault::Alter) if middle < answer.len() => answer[middle] ^= 1,
        _ => {}
    }
    Ok(Some(answer))
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = String::from_utf8_lossy(&answer[..answer.len().min(16)]);
    line.split(' ').nth(1).and_then(|code| code.parse().ok())
}

/// The whole request, after whose answer the server hangs up.
fn take_all(shared: &Shared, client: &mut TcpStream, request: &Taken) -> io::Result<Vec<u8>> {
    let mut whole = [closing(&request.head).as_bytes(), &request.body].concat();
    let begun = whole.len();
    whole.resize(begun + request.left, 0);
    for piece in whole[begun..].chunks_mut(PIECE) {
        client.read_exact(piece)?;
        shared.pace(piece.len());
    }
    Ok(whole)
}

/// The same head, after whose answer the server hangs up: that is where the answer ends.
fn closing(head: &str) -> String {
    let is_connection = |line: &&str| line.to_ascii_lowercase().starts_with("connection:");
    let lines = head.split_inclusive("\r\n");
    let kept: String = lines.filter(|line| !is_connection(line)).collect();
    kept.replacen("\r\n", "\r\nConnection: close\r\n", 1)
}

/// The same head without its conditions.
fn without_conditions(head: &str) -> String {
    let is_condition = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        ["if-match", "if-none-match"]
            .iter()
            .any(|condition| name.eq_ignore_ascii_case(condition))
    };
    head.split_inclusive("\r\n")
        .filter(|line| !is_condition(line))
        .collect()
}

/// Reads until the empty line. Where it ends, or nothing when the client went before.
fn take_head(client: &mut TcpStream, taken: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = taken.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        let count = client.read(&mut piece)?;
        if count == 0 || taken.len() > HEAD_LIMIT {
            return Ok(None);
        }
        taken.extend_from_slice(&piece[..count]);
    }
}

/// Of `Authorization: AWS4-HMAC-SHA256 Credential=ID/...`.
fn signer(head: &str) -> Option<String> {
    let (_, rest) = head.split_once("Credential=")?;
    let (id, _) = rest.split_once('/')?;
    Some(id.to_owned())
}

fn field<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut found = fields.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    found.next().map(|(_, value)| value.trim())
}

fn content_length(head: &str) -> usize {
    field(head, "content-length").map_or(0, |length| length.parse().expect("a number"))
}

fn is_form(head: &str) -> bool {
    field(head, "content-type").is_some_and(|kind| kind.contains("x-www-form-urlencoded"))
}

/// AWS has three ways to say what is wanted: the method and path, a header, a field of a form.
fn action(head: &str, body: &str) -> Option<String> {
    let (_, scope) = head.split_once("Credential=")?;
    let service = scope.split(',').next()?.split('/').nth(3)?;
    if service == "s3" {
        return Some(action_of_s3(head));
    }
    let named = match field(head, "x-amz-target") {
        Some(target) => target.rsplit('.').next()?,
        None => body
            .split('&')
            .find_map(|field| field.strip_prefix("Action="))?,
    };
    // A batch is allowed by what it is a batch of.
    let name = named.strip_suffix("Batch").unwrap_or(named);
    Some(format!("{service}:{name}"))
}

fn action_of_s3(head: &str) -> String {
    let mut words = head.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let has_key = path.trim_matches('/').contains('/');
    let known = match (method, has_key) {
        ("GET" | "HEAD", false) if query.is_empty() || query.contains("list-type=2") => {
            "ListBucket"
        }
        ("GET" | "HEAD", true) if !query.contains("uploadId") => "GetObject",
        ("PUT" | "POST", true) => "PutObject",
        ("DELETE", true) if query.contains("uploadId") => "AbortMultipartUpload",
        ("DELETE", true) => "DeleteObject",
        ("POST", false) if query.starts_with("delete") => "DeleteObject",
        _ => return format!("s3:{method} {path}?{query}"),
    };
    format!("s3:{known}")
}

fn reset(client: &TcpStream) -> io::Result<()> {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // It takes effect when the last copy of the descriptor is closed, right after this.
    setsockopt(client, sockopt::Linger, &at_once).map_err(Into::into)
}

fn refuse(client: &mut TcpStream, left: usize, status: &str, code: &str) -> io::Result<Vec<u8>> {
    // A client that still sends would not read the answer.
    io::copy(&mut client.take(left as u64), &mut io::sink())?;
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>On purpose</Message></Error>"
    );
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    Ok(answer.into_bytes())
}

/// Has the server carry the request out, and returns its answer.
fn hand_on(
    shared: &Shared,
    client: &mut TcpStream,
    taken: &[u8],
    mut left: usize,
    server: &str,
) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_read_timeout(Some(LIMIT))?;
    upstream.set_write_timeout(Some(LIMIT))?;
    upstream.write_all(taken)?;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let most = left.min(PIECE);
        let count = client.read(&mut piece[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        shared.pace(count);
        upstream.write_all(&piece[..count])?;
        left -= count;
    }
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    Ok(answer)
}
