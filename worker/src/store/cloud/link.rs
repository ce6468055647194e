//! The connection to a store of Google's or Azure's, and to whoever hands out credentials for it: the client that talks to
//! AWS, lent to `object_store` so that it brings none of its own. One attempt per request, each wait with a limit.

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest as SmithyRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, StatusCode};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use tokio::time::timeout;

use super::super::wire::{self, Cause, Limits};
use crate::aws;

/// Of an answer with credentials in it.
const CREDENTIALS_LIMIT: u64 = 1 << 20;

/// What a server says, its body unread.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ByteStream,
}

/// Why there is no answer, or no useful one to a request for credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("no answer within {:.1} s from {host}", .limit.as_secs_f64())]
    Silent { host: String, limit: Duration },
    #[error("no answer from {host}: {}", .cause.innermost())]
    Unsent { host: String, cause: Cause },
    #[error("{host} answers {status} to a request for credentials")]
    Refused { host: String, status: StatusCode },
    #[error("the answer of {host} cannot be read")]
    Broken { host: String },
}

#[derive(Clone, Debug)]
pub(super) struct Link {
    connector: SharedHttpConnector,
    limits: Limits,
}

impl Link {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            connector: aws::connector_within(limits.connect),
            limits,
        }
    }

    /// The beginning of the answer, no longer waited for than the size of what is sent allows.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<Answer, LinkError> {
        let (parts, body) = request.into_parts();
        let host = parts.uri.authority().map(ToString::to_string);
        let host = host.unwrap_or_default();
        let unsent = |error: &(dyn Error + 'static)| LinkError::Unsent {
            host: host.clone(),
            cause: Cause::of(error),
        };
        // In memory as it is, in one piece.
        let body = body.collect().await.map_err(|error| unsent(&error))?;
        let body = body.to_bytes();
        let limit = self.limits.upload(body.len() as u64);
        let request = hyper::Request::from_parts(parts, SdkBody::from(body));
        let request = SmithyRequest::try_from(request).map_err(|error| unsent(&error))?;
        let answer = timeout(limit, self.connector.call(request)).await;
        let answer = answer
            .map_err(|_| LinkError::Silent {
                host: host.clone(),
                limit,
            })?
            .map_err(|error| unsent(&error))?;
        let answer = answer.try_into_http1x().map_err(|error| unsent(&error))?;
        let (parts, body) = answer.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: ByteStream::new(body),
        })
    }

    async fn credentials(&self, request: HttpRequest) -> Result<HttpResponse, LinkError> {
        let host = request.uri().authority().map(ToString::to_string);
        let host = host.unwrap_or_default();
        let answer = self.send(request).await?;
        if !answer.status.is_success() {
            return Err(LinkError::Refused {
                host,
                status: answer.status,
            });
        }
        let body = wire::read(answer.body, 0, CREDENTIALS_LIMIT, self.limits.answer).await;
        let body = body.map_err(|_| LinkError::Broken { host })?;
        let mut response = HttpResponse::new(body.into());
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}

#[async_trait]
impl HttpService for Link {
    /// Only credentials are asked for this way.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.credentials(request).await;
        answer.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))
    }
}

impl HttpConnector for Link {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}
