//! HTTP to a service of this machine or its network: one kept connection, one request at a time, no proxy, no redirects,
//! and a limit to every wait and every size. Trying again is left to the sources.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{DATE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use reprieve_core::notice::WallMs;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Documents of metadata services are a few KiB; whatever is larger is something else.
pub const LARGEST_BODY: usize = 256 << 10;

/// Where a service is: `http://HOST:PORT`, possibly with a path in front of all paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As the `Host` header has it.
    authority: HeaderValue,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    prefix: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an address of the form http://HOST:PORT")]
pub struct BadEndpoint(pub String);

impl Endpoint {
    /// # Errors
    /// Unless it is a URL with plain HTTP and a host.
    pub fn parse(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        if uri.scheme_str() != Some("http") || authority.as_str().contains('@') {
            return Err(bad());
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() || uri.query().is_some() {
            return Err(bad());
        }
        Ok(Self {
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(self.authority.as_bytes()).into_owned()
    }
}

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// From the request to the last byte of its answer.
    pub answer: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no connection to {endpoint}")]
    Connect {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    /// It took the connection and is silent.
    #[error("{endpoint} took the request and does not answer within {}", humantime::format_duration(*.after))]
    Silent { endpoint: String, after: Duration },
    #[error("{endpoint} hung up in the middle of an answer")]
    Broken {
        endpoint: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the answer of {endpoint} is longer than {LARGEST_BODY} bytes")]
    TooLong { endpoint: String },
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What time it is for whoever answered, to the second.
    pub fn date(&self) -> Option<WallMs> {
        crate::time::http_date(self.headers.get(DATE)?.to_str().ok()?)
    }
}

/// A client of one service.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    limits: Limits,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes. It is ended with us: a request that is given up must not keep its connection.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    pub fn new(endpoint: Endpoint, limits: Limits) -> Self {
        Self {
            endpoint,
            limits,
            connection: None,
        }
    }

    pub fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// # Errors
    /// When there is no whole answer within the limits. Any status is an answer.
    pub async fn get(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, HttpError> {
        self.request(Method::GET, path, headers, Bytes::new()).await
    }

    /// Sends the request, on the connection there is or on a new one. It may arrive twice if a kept connection ends at
    /// that moment, so it has to be one that may.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Result<Answer, HttpError> {
        let kept = self
            .connection
            .take()
            .filter(|connection| !connection.sender.is_closed());
        if let Some(connection) = kept {
            let request = self.compose(&method, path, headers, body.clone());
            match self.exchange(connection, request).await {
                // The other side had given it up before it saw the request, which is everybody's right.
                Err(HttpError::Broken { .. }) => {}
                answered => return answered,
            }
        }
        let connection = self.connect().await?;
        let request = self.compose(&method, path, headers, body);
        self.exchange(connection, request).await
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        let failed = |source| HttpError::Connect {
            endpoint: self.endpoint.shown(),
            source,
        };
        let address = (self.endpoint.host.as_str(), self.endpoint.port);
        let stream = match timeout(self.limits.connect, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        // Requests are single small packets; waiting to fill them helps nobody. Without it they are only later.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source.into()))?;
        let driver = tokio::spawn(async move {
            // How it ended is seen by the request that it ended.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver })
    }

    fn compose(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let target = format!("{}{path}", self.endpoint.prefix);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = target.parse().expect("paths are literals or were checked");
        request
            .headers_mut()
            .insert(HOST, self.endpoint.authority.clone());
        for (name, value) in headers {
            // A value that cannot be sent is left out and leads to a refusal, which says more than we could.
            if let Ok(value) = HeaderValue::from_str(value) {
                request
                    .headers_mut()
                    .insert(HeaderName::from_static(name), value);
            }
        }
        request
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, HttpError> {
        let within = self.limits.answer;
        let exchanged = timeout(within, async {
            connection
                .sender
                .ready()
                .await
                .map_err(|source| self.broken(source.into()))?;
            let answered = connection.sender.send_request(request).await;
            self.whole(answered.map_err(|source| self.broken(source.into()))?)
                .await
        });
        let answer = match exchanged.await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(HttpError::Silent {
                    endpoint: self.endpoint.shown(),
                    after: within,
                });
            }
        };
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn whole(&self, response: Response<hyper::body::Incoming>) -> Result<Answer, HttpError> {
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, LARGEST_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(HttpError::TooLong {
                    endpoint: self.endpoint.shown(),
                });
            }
            Err(error) => return Err(self.broken(error)),
        };
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> HttpError {
        HttpError::Broken {
            endpoint: self.endpoint.shown(),
            source,
        }
    }
}

/// An error with its causes, for a person.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// As a part of a URL or of a form: everything but what RFC 3986 leaves as it is.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_http_with_a_host() {
        let parsed = |text| {
            let Endpoint {
                host, port, prefix, ..
            } = Endpoint::parse(text).expect("it is one");
            (host, port, prefix)
        };
        let of = |host: &str, port, prefix: &str| (host.to_owned(), port, prefix.to_owned());
        assert_eq!(
            parsed("http://169.254.169.254"),
            of("169.254.169.254", 80, "")
        );
        assert_eq!(
            parsed("http://169.254.169.254/"),
            of("169.254.169.254", 80, "")
        );
        assert_eq!(
            parsed("http://[fd00:ec2::254]"),
            of("fd00:ec2::254", 80, "")
        );
        assert_eq!(parsed("http://[::1]:1338/"), of("::1", 1338, ""));
        assert_eq!(
            parsed("http://169.254.170.2/v4/abc"),
            of("169.254.170.2", 80, "/v4/abc")
        );
        for bad in [
            "",
            "169.254.169.254",
            "https://169.254.169.254",
            "http://",
            "http://a@b",
            "http://a?b",
            "file:///x",
        ] {
            assert_eq!(Endpoint::parse(bad), Err(BadEndpoint(bad.to_owned())));
        }
    }
}
