//! Keeps objects in an S3 bucket, or in anything that speaks its protocol and keeps its conditional writes.
//!
//! One attempt per call: the SDK's own retries are off, since they would work past deadlines and could report our own
//! success as a failed condition. Every wait has a limit: connecting, the first byte of an answer, the time between two
//! pieces of it, and the whole attempt. The SDK's protection against stalled streams is off, as it takes slow for stalled.
//!
//! Bodies are in memory and sent unsigned with our own CRC64NVME, which is signed and which S3 checks and keeps. Left to
//! itself the SDK hashes each body with SHA-256, even over TLS, at half the speed.
//!
//! "Not found" is the answer that can cost a user's work, because "no snapshot yet" means starting over. It is therefore
//! only given when the store says that this key is missing; a 404 that could also mean a missing bucket is looked into.
//!
//! Credentials are kept until they are about to end, by the SDK. Where the store says earlier that they have ended, they are
//! asked for anew, and the attempt counts as one that another may better.
//!
//! Errors keep the text of their causes but not the SDK's values, whose debug form has whole responses in it, and those
//! can repeat keys and session tokens.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::{
    Config, Credentials, IdentityCache, Region, RequestChecksumCalculation,
    ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumMode, RequestPayer, ServerSideEncryption, StorageClass};
use aws_smithy_http_client::tls::TrustStore;
use aws_smithy_types::base64;
use bytes::Bytes;

use super::wire::{self, Cause, Limits, Place};
use super::{Condition, Entry, Object, Store, StoreError, StoreErrorKind, Tag, check_key};
use crate::aws;

/// How requests name the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the path with an endpoint of one's own, in the host name with AWS.
    #[default]
    Automatic,
    /// `https://host/bucket/key`
    Path,
    /// `https://bucket.host/key`
    VirtualHost,
}

/// How to talk to S3; the defaults are right for AWS with a role, a profile or variables in the environment.
#[derive(Clone, Default)]
pub struct S3Options {
    /// The URL of a store other than AWS's.
    pub endpoint: Option<String>,
    /// Else the environment's, the profile's or the machine's; `us-east-1` with an endpoint of one's own.
    pub region: Option<String>,
    pub addressing: Addressing,
    pub objects: S3Objects,
    /// Else the usual chain: environment, profile, web identity, container, machine.
    pub credentials: Option<Credentials>,
    pub limits: Limits,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.as_deref().map(without_user_info);
        f.debug_struct("S3Options")
            .field("endpoint", &endpoint)
            .field("region", &self.region)
            .field("addressing", &self.addressing)
            .field("objects", &self.objects)
            .field("credentials", &self.credentials.as_ref().map(|_| "given"))
            .field("limits", &self.limits)
            .finish()
    }
}

/// Which key S3 encrypts an object with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket says.
    #[default]
    Bucket,
    /// S3's own.
    Aes256,
    /// This one of KMS, or the account's own for S3; once, or twice (DSSE).
    Kms { key: Option<String>, twice: bool },
}

/// How objects are kept, and who pays for requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Objects {
    pub encryption: Encryption,
    /// Of objects that are written without a condition and have at least [`CLASS_FROM`] bytes, as S3 spells it.
    pub storage_class: Option<&'static str>,
    pub requester_pays: bool,
}

impl S3Objects {
    fn payer(&self) -> Option<RequestPayer> {
        self.requester_pays.then_some(RequestPayer::Requester)
    }
}

/// Smaller objects are billed as if they had this many bytes in every class but the standard one.
const CLASS_FROM: usize = 128 * 1024;

/// A client and the credentials that it keeps until they end.
#[derive(Debug)]
struct Session {
    client: Client,
    /// A request was answered, so its credentials were good then.
    proven: AtomicBool,
}

impl Session {
    fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            proven: AtomicBool::new(false),
        })
    }
}

/// A store in a bucket, or in the part of one below a prefix.
#[derive(Clone)]
pub struct S3Store {
    /// Replaced when the store says that its credentials have ended.
    session: Arc<Mutex<Arc<Session>>>,
    bucket: String,
    place: Place,
    objects: S3Objects,
    limits: Limits,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.address())
    }
}

impl S3Store {
    /// Reads the SDK's settings; asks the network at most for the machine's region, and the bucket for nothing.
    pub async fn open(bucket: &str, prefix: &str, options: &S3Options) -> Result<Self, StoreError> {
        let address = format!("s3://{bucket}/{prefix}");
        let refuse = |message: String| {
            StoreError::new(StoreErrorKind::Other, "open", address.clone(), message)
        };
        if let Some(fault) = options.endpoint.as_deref().and_then(endpoint_fault) {
            return Err(refuse(format!("the endpoint {fault}")));
        }
        let shared = tokio::time::timeout(
            options.limits.answer,
            Box::pin(sdk_config(options, trust_store())),
        )
        .await
        .map_err(|_| {
            let message = "the machine's region could not be found out in time; set it";
            let kind = StoreErrorKind::Unavailable;
            StoreError::new(kind, "open", address.clone(), message)
        })?;
        if shared.region().is_none() {
            return Err(refuse(
                "no region is set; set AWS_REGION or the store's region".to_owned(),
            ));
        }
        let by_path = match options.addressing {
            Addressing::Automatic => shared.endpoint_url().is_some(),
            Addressing::Path => true,
            Addressing::VirtualHost => false,
        };
        let config = Config::from(&shared)
            .to_builder()
            .force_path_style(by_path)
            .build();
        Ok(Self {
            objects: options.objects.clone(),
            ..Self::with_config(config, bucket, prefix, options.limits)
        })
    }

    fn with_config(config: Config, bucket: &str, prefix: &str, limits: Limits) -> Self {
        Self {
            session: Arc::new(Mutex::new(Session::new(Client::from_conf(config)))),
            bucket: bucket.to_owned(),
            place: Place::new(format!("s3://{bucket}"), prefix),
            objects: S3Objects::default(),
            limits,
        }
    }

    fn session(&self) -> MutexGuard<'_, Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store says that the credentials of this call have ended, maybe before they were to. From now on they are asked
    /// for anew. Another attempt can help if they were good once; those that never were may be all there are.
    fn renew(&self, call: &Call) -> StoreErrorKind {
        let mut session = self.session();
        if Arc::ptr_eq(&session, &call.session) {
            let config = session.client.config().to_builder();
            let kept_anew = IdentityCache::lazy().build();
            let client = Client::from_conf(config.identity_cache(kept_anew).build());
            *session = Session::new(client);
        }
        match call.session.proven.load(Ordering::Relaxed) {
            true => StoreErrorKind::Unavailable,
            false => StoreErrorKind::Denied,
        }
    }

    /// Waits for one request's answer, or for the headers of it, no longer than `limit`.
    async fn send<T, E, F>(&self, call: &Call, limit: Duration, sent: F) -> Result<T, Refusal>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    {
        // On the heap: the SDK's futures are large.
        match tokio::time::timeout(limit, Box::pin(sent)).await {
            Ok(Ok(output)) => {
                call.session.proven.store(true, Ordering::Relaxed);
                Ok(output)
            }
            Ok(Err(error)) => {
                let refusal = refusal(call, &error);
                Err(match (refusal, error.code()) {
                    (Refusal::Clear(mut refused), Some(code)) if has_expired(code) => {
                        refused.kind = self.renew(call);
                        Refusal::Clear(refused)
                    }
                    (refusal, _) => refusal,
                })
            }
            Err(_) => Err(Refusal::Clear(call.no_answer(limit))),
        }
    }

    /// Settles a 404 that may be the key's or the bucket's, by asking for the bucket.
    ///
    /// With a listing rather than with `HeadBucket`: its errors have a body that says which, and policies that allow only
    /// a prefix allow it. Refused for want of rights, the bucket at least exists; any other failure is the call's own,
    /// since a store that cannot be asked must not pass for one without the object.
    async fn settle(&self, refusal: Refusal, missing: StoreErrorKind) -> StoreError {
        let mut error = match refusal {
            Refusal::Clear(error) => return error,
            Refusal::NoSuchKey(error) => StoreError {
                kind: missing,
                ..error
            },
            Refusal::SomethingMissing(error) => match self.reach().await {
                Ok(()) => StoreError {
                    kind: missing,
                    ..error
                },
                Err(e) if e.kind == StoreErrorKind::Denied => StoreError {
                    kind: missing,
                    ..error
                },
                Err(e) => StoreError {
                    operation: error.operation,
                    key: error.key,
                    ..e
                },
            },
        };
        if missing == StoreErrorKind::ConditionFailed {
            error.message = format!("it is no longer there ({})", error.message);
        }
        error
    }

    async fn get_object(
        &self,
        call: &Call,
        range: Option<String>,
    ) -> Result<GetObjectOutput, StoreError> {
        let checked = range.is_none().then_some(ChecksumMode::Enabled);
        let request = call
            .session
            .client
            .get_object()
            .set_request_payer(self.objects.payer())
            .bucket(&self.bucket)
            .key(&call.full_key);
        // A part has no checksum of its own, so S3 is asked for one with the whole only.
        let sent = request.set_range(range).set_checksum_mode(checked).send();
        match self.send(call, self.limits.answer, sent).await {
            Ok(output) => Ok(output),
            Err(refusal) => Err(self.settle(refusal, StoreErrorKind::NotFound).await),
        }
    }

    /// All of a body, refused when it turns out to have more than `limit` bytes.
    async fn head(&self, call: &Call) -> Result<u64, StoreError> {
        let sent = call
            .session
            .client
            .head_object()
            .set_request_payer(self.objects.payer())
            .bucket(&self.bucket)
            .key(&call.full_key)
            .send();
        match self.send(call, self.limits.answer, sent).await {
            Ok(output) => call.content_length(output.content_length()),
            Err(refusal) => {
                let error = self.settle(refusal, StoreErrorKind::NotFound).await;
                Err(self.reason_for(error).await)
            }
        }
    }

    /// An answer to a HEAD has no body, and does not say that it is only the credentials that have ended; another does.
    async fn reason_for(&self, error: StoreError) -> StoreError {
        if !matches!(error.kind, StoreErrorKind::Denied | StoreErrorKind::Other) {
            return error;
        }
        match self.reach().await {
            Err(reached) if reached.kind == StoreErrorKind::Unavailable => StoreError {
                operation: error.operation,
                key: error.key,
                ..reached
            },
            _ => error,
        }
    }

    async fn whole(&self, call: &Call, limit: u64) -> Result<Object, StoreError> {
        let output = self.get_object(call, None).await?;
        let size = call.content_length(output.content_length())?;
        if size > limit {
            let message = format!("it has {size} bytes, more than the {limit} allowed");
            return Err(call.error(StoreErrorKind::BadSize, message));
        }
        let tag = call.tag(output.e_tag())?;
        Ok(Object {
            bytes: call
                .read(output.body, size, limit, self.limits.answer)
                .await?,
            tag,
        })
    }

    async fn part(&self, call: &Call, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let outside = || {
            let message = format!("{length} bytes from {offset} are not all inside it");
            call.error(StoreErrorKind::BadSize, message)
        };
        let end = offset.checked_add(length).ok_or_else(outside)?;
        if length == 0 {
            // HTTP has no empty range.
            return if end <= self.head(call).await? {
                Ok(Bytes::new())
            } else {
                Err(outside())
            };
        }
        let output = self
            .get_object(call, Some(format!("bytes={offset}-{}", end - 1)))
            .await?;
        // A store that does not know ranges sends the whole object; one that ends earlier sends what there is.
        let expected = format!("bytes {offset}-{}/", end - 1);
        if !output
            .content_range()
            .is_some_and(|range| range.starts_with(&expected))
        {
            return Err(outside());
        }
        let bytes = call
            .read(output.body, length, length, self.limits.answer)
            .await?;
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(outside())
        }
    }

    async fn upload(
        &self,
        call: &Call,
        bytes: Bytes,
        condition: &Condition,
    ) -> Result<Tag, StoreError> {
        let limit = self.limits.upload(bytes.len() as u64);
        let class = self
            .objects
            .storage_class
            .filter(|_| *condition == Condition::Always && bytes.len() >= CLASS_FROM);
        let request = call
            .session
            .client
            .put_object()
            .set_request_payer(self.objects.payer())
            .set_storage_class(class.map(StorageClass::from))
            .bucket(&self.bucket)
            .key(&call.full_key)
            // With its value: naming the algorithm alone makes the SDK announce a checksum that it does not send.
            .checksum_crc64_nvme(crc64_nvme(&bytes))
            .body(ByteStream::new(SdkBody::from(bytes)));
        let request = match &self.objects.encryption {
            Encryption::Bucket => request,
            Encryption::Aes256 => request.server_side_encryption(ServerSideEncryption::Aes256),
            Encryption::Kms { key, twice } => request
                .server_side_encryption(match twice {
                    false => ServerSideEncryption::AwsKms,
                    true => ServerSideEncryption::AwsKmsDsse,
                })
                .set_ssekms_key_id(key.clone()),
        };
        let request = match condition {
            Condition::Always => request,
            Condition::Absent => request.if_none_match("*"),
            Condition::Matches(tag) => request.if_match(&tag.0),
        };
        let sent = request.customize().disable_payload_signing().send();
        match self.send(call, limit, sent).await {
            Ok(output) => call.tag(output.e_tag()),
            Err(refusal) => {
                // AWS calls a condition on nothing "no such key"; without a condition a put has nothing to miss.
                let missing = match condition {
                    Condition::Matches(_) => StoreErrorKind::ConditionFailed,
                    Condition::Always | Condition::Absent => StoreErrorKind::Other,
                };
                Err(self.settle(refusal, missing).await)
            }
        }
    }

    async fn pages(
        &self,
        call: &Call,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut continuation = None;
        while entries.len() < limit {
            let page = usize::from(self.limits.page).min(limit - entries.len());
            let sent = call
                .session
                .client
                .list_objects_v2()
                .set_request_payer(self.objects.payer())
                .bucket(&self.bucket)
                .prefix(&call.full_key)
                .set_start_after(after.map(|after| self.place.full(after)))
                .set_continuation_token(continuation.take())
                .max_keys(i32::try_from(page).unwrap_or(1000))
                .send();
            let output = match self.send(call, self.limits.answer, sent).await {
                Ok(output) => output,
                // There is no key in question, so what is missing is the bucket.
                Err(refusal) => return Err(refusal.about_the_store()),
            };
            for object in output.contents() {
                let entry = self.entry(call, object)?;
                // "Folders" that consoles make are no objects of ours.
                entries.extend(entry.filter(|entry| check_key(&entry.key).is_ok()));
            }
            if output.is_truncated() != Some(true) {
                break;
            }
            continuation = output.next_continuation_token;
            if continuation.is_none() {
                // The rest would be missing without a word.
                let message = "the listing is cut off, and the store does not say how to go on";
                return Err(call.error(StoreErrorKind::Other, message));
            }
        }
        call.listed(entries, limit)
    }

    fn entry(
        &self,
        call: &Call,
        object: &aws_sdk_s3::types::Object,
    ) -> Result<Option<Entry>, StoreError> {
        let odd = |what: &str| {
            call.error(
                StoreErrorKind::Other,
                format!("the listing has an entry {what}"),
            )
        };
        let full_key = object.key().ok_or_else(|| odd("without a key"))?;
        let Some(key) = self.place.inside(full_key) else {
            return Err(odd("outside its prefix"));
        };
        let size = object.size().and_then(|size| u64::try_from(size).ok());
        let modified = object
            .last_modified()
            .and_then(|time| time.to_millis().ok());
        Ok(Some(Entry {
            key: key.to_owned(),
            size: size.ok_or_else(|| odd("without a size"))?,
            modified_ms: modified
                .and_then(|ms| u64::try_from(ms).ok())
                .ok_or_else(|| odd("without a time"))?,
        }))
    }

    fn call(&self, action: &'static str, of: wire::Call) -> Call {
        Call {
            session: Arc::clone(&self.session()),
            action,
            of,
        }
    }

    fn call_on(
        &self,
        operation: &'static str,
        action: &'static str,
        key: &str,
    ) -> Result<Call, StoreError> {
        Ok(self.call(action, self.place.call_on(operation, key)?))
    }
}

#[async_trait]
impl Store for S3Store {
    fn address(&self) -> String {
        self.place.address()
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        let call = self.call_on("get", "s3:GetObject", key)?;
        call.within(self.limits.attempt, self.whole(&call, limit))
            .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let call = self.call_on("get_range", "s3:GetObject", key)?;
        call.within(self.limits.attempt, self.part(&call, offset, length))
            .await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let call = self.call_on("size", "s3:GetObject", key)?;
        call.within(self.limits.attempt, self.head(&call)).await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        let call = self.call_on("put", "s3:PutObject", key)?;
        call.within(self.limits.attempt, self.upload(&call, bytes, &condition))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let call = self.call("s3:ListBucket", self.place.call_below(prefix)?);
        call.within(self.limits.attempt, self.pages(&call, after, limit))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let call = self.call_on("delete", "s3:DeleteObject", key)?;
        let sent = call
            .session
            .client
            .delete_object()
            .set_request_payer(self.objects.payer())
            .bucket(&self.bucket)
            .key(&call.full_key)
            .send();
        call.within(self.limits.attempt, async {
            match self.send(&call, self.limits.answer, sent).await {
                Ok(_) => Ok(()),
                Err(refusal) => match self.settle(refusal, StoreErrorKind::NotFound).await {
                    // AWS does not mind; others say so.
                    error if error.kind == StoreErrorKind::NotFound => Ok(()),
                    error => Err(error),
                },
            }
        })
        .await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        let call = self.call("s3:ListBucket", self.place.call("reach", ""));
        let request = call
            .session
            .client
            .list_objects_v2()
            .set_request_payer(self.objects.payer())
            .bucket(&self.bucket)
            .prefix(&call.full_key);
        match self
            .send(&call, self.limits.answer, request.max_keys(1).send())
            .await
        {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.about_the_store()),
        }
    }
}

/// What errors of one call have in common.
struct Call {
    session: Arc<Session>,
    /// The right it needs.
    action: &'static str,
    of: wire::Call,
}

impl Deref for Call {
    type Target = wire::Call;

    fn deref(&self) -> &wire::Call {
        &self.of
    }
}

impl Call {
    fn tag(&self, tag: Option<&str>) -> Result<Tag, StoreError> {
        match tag {
            Some(tag) => Ok(Tag(tag.to_owned())),
            None => Err(self.error(
                StoreErrorKind::Other,
                "the store gives no ETag, which conditional puts need",
            )),
        }
    }

    fn content_length(&self, length: Option<i64>) -> Result<u64, StoreError> {
        length
            .and_then(|length| u64::try_from(length).ok())
            .ok_or_else(|| {
                self.error(
                    StoreErrorKind::Other,
                    "the store does not say how large it is",
                )
            })
    }
}

// ---- Errors

/// A failed request, as far as its answer alone tells.
enum Refusal {
    Clear(StoreError),
    /// The store says that it is the key which is missing.
    NoSuchKey(StoreError),
    /// 404, and no more.
    SomethingMissing(StoreError),
}

impl Refusal {
    /// For requests that name no key.
    fn about_the_store(self) -> StoreError {
        match self {
            Self::Clear(error) => error,
            Self::NoSuchKey(error) | Self::SomethingMissing(error) => StoreError {
                kind: StoreErrorKind::NoSuchStore,
                ..error
            },
        }
    }
}

fn refusal<E>(call: &Call, error: &SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(answer) => answered(
            call,
            answer.raw(),
            answer.err().code(),
            answer.err().message(),
        ),
        SdkError::ResponseError(answer) if answer.raw().status().is_success() => {
            let damaged = call.error(
                StoreErrorKind::Unavailable,
                "the answer broke off or is not S3's",
            );
            Refusal::Clear(damaged.because(Cause::of(error)))
        }
        SdkError::ResponseError(answer) => answered(call, answer.raw(), None, None),
        _ => {
            let (kind, message) = unsent(error);
            Refusal::Clear(call.error(kind, message).because(Cause::of(error)))
        }
    }
}

/// No answer at all: where it failed decides whether another attempt can help.
fn unsent<E>(error: &SdkError<E, HttpResponse>) -> (StoreErrorKind, String)
where
    E: Error + Send + Sync + 'static,
{
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        match current.downcast_ref() {
            Some(
                CredentialsError::CredentialsNotLoaded(_)
                | CredentialsError::InvalidConfiguration(_),
            ) => {
                let message = "no credentials were found: give this machine a role, or set a profile or \
                               AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                return (StoreErrorKind::Denied, message.to_owned());
            }
            // Whoever hands them out may be back soon.
            Some(_) => {
                return (
                    StoreErrorKind::Unavailable,
                    "credentials could not be fetched".to_owned(),
                );
            }
            None => cause = current.source(),
        }
    }
    match error {
        SdkError::ConstructionFailure(_) => (
            StoreErrorKind::Other,
            "the request could not be made".to_owned(),
        ),
        SdkError::TimeoutError(_) => (
            StoreErrorKind::Unavailable,
            "no connection in time".to_owned(),
        ),
        _ => (
            StoreErrorKind::Unavailable,
            format!("no answer: {}", Cause::of(error).innermost()),
        ),
    }
}

fn answered(
    call: &Call,
    response: &HttpResponse,
    code: Option<&str>,
    text: Option<&str>,
) -> Refusal {
    let status = response.status().as_u16();
    let kind = kind_of(status, code);
    let mut message = status.to_string();
    if let Some(code) = code {
        message += &format!(" {code}");
    }
    if let Some(text) = text {
        // Stores write what they like; a message is for one line.
        let line: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        message += &format!(": {line}");
    }
    if let Some(hint) = hint(call, kind, code) {
        message += &format!("; {hint}");
    }
    if let Some(region) = response.headers().get("x-amz-bucket-region")
        && matches!(status, 301 | 307 | 400)
    {
        message += &format!("; the bucket is in {region}: set that region");
    }
    let error = call.error(kind, message);
    match code {
        Some("NoSuchKey") => Refusal::NoSuchKey(error),
        _ if kind == StoreErrorKind::NotFound => Refusal::SomethingMissing(error),
        _ => Refusal::Clear(error),
    }
}

/// By the code where it says more than the status, as with expired credentials, which are a plain 400.
fn kind_of(status: u16, code: Option<&str>) -> StoreErrorKind {
    match code.unwrap_or_default() {
        "NoSuchKey" => return StoreErrorKind::NotFound,
        "NoSuchBucket" => return StoreErrorKind::NoSuchStore,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "AuthorizationQueryParametersError"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "InvalidToken"
        | "NotSignedUp"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "UnauthorizedAccess" => return StoreErrorKind::Denied,
        // Moved to an archive: forbidden by status, but no right is missing.
        "InvalidObjectState" => return StoreErrorKind::Other,
        "PreconditionFailed" => return StoreErrorKind::ConditionFailed,
        "ConditionalRequestConflict" | "OperationAborted" => return StoreErrorKind::Conflict,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "BandwidthLimitExceeded"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "TooManyRequestsException" => return StoreErrorKind::Throttled,
        // Damaged on the way, or cut off.
        "BadDigest"
        | "InvalidDigest"
        | "IncompleteBody"
        | "RequestTimeout"
        | "XAmzContentChecksumMismatch"
        | "InternalError" => return StoreErrorKind::Unavailable,
        "EntityTooLarge" | "InvalidRange" => return StoreErrorKind::BadSize,
        "InsufficientStorage"
        | "QuotaExceeded"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded" => return StoreErrorKind::Full,
        _ => {}
    }
    wire::kind_of_status(status)
}

/// Whether this code says that credentials were good and are no more.
fn has_expired(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired"
    )
}

/// What to do about it, where the answer alone does not tell.
fn hint(call: &Call, kind: StoreErrorKind, code: Option<&str>) -> Option<String> {
    match code.unwrap_or_default() {
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => {
            Some("the credentials have expired".to_owned())
        }
        "InvalidAccessKeyId" | "InvalidToken" => Some("this store does not know the credentials".to_owned()),
        "SignatureDoesNotMatch" => Some("the secret key is wrong, or a proxy changes requests".to_owned()),
        "RequestTimeTooSkewed" => Some("this machine's clock is wrong".to_owned()),
        _ if kind != StoreErrorKind::Denied => None,
        // Without the right to list, S3 hides whether an object exists.
        _ if call.action == "s3:GetObject" => Some(
            "allow s3:GetObject on the objects and s3:ListBucket on the bucket, without which a missing object looks \
             the same"
                .to_owned(),
        ),
        _ => Some(format!("allow {}", call.action)),
    }
}

// ---- Settings of the SDK

/// The same for other services of AWS: no retries of the SDK's own, our certificates.
pub(crate) async fn sdk_config_for(
    region: Option<String>,
    connect: Duration,
) -> aws_config::SdkConfig {
    let limits = Limits {
        connect,
        ..Limits::default()
    };
    let options = S3Options {
        region,
        limits,
        ..S3Options::default()
    };
    sdk_config(&options, trust_store()).await
}

async fn sdk_config(options: &S3Options, trusted: TrustStore) -> aws_config::SdkConfig {
    let http = aws::http_client(trusted);
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(options.limits.connect)
                .build(),
        )
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let region = RegionProviderChain::first_try(options.region.clone().map(Region::new));
    if let Some(endpoint) = &options.endpoint {
        // Not AWS: the region is a formality, and there is no machine service to ask for it.
        let region = region
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::from_static("us-east-1"));
        loader = loader.endpoint_url(endpoint).region(region);
    } else if options.region.is_some() {
        loader = loader.region(region);
    }
    // Else the SDK looks for it by itself, at last at the machine's service, and does so with the HTTP client from above; a
    // provider that is made here would have none.
    if let Some(credentials) = &options.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    loader.load().await
}

/// The system's certificates (or `SSL_CERT_FILE`'s), and Mozilla's where there are none: we run inside the user's own
/// image, and the common small ones come without.
pub(crate) fn trust_store() -> TrustStore {
    if !rustls_native_certs::load_native_certs().certs.is_empty() {
        return TrustStore::default();
    }
    bundled_roots()
}

fn bundled_roots() -> TrustStore {
    let mut bundled = TrustStore::empty();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let body = base64::encode(certificate);
        bundled.add_pem_certificate(format!(
            "-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
        ));
    }
    bundled
}

/// What is wrong with an endpoint, which is never repeated: it may hold a password.
fn endpoint_fault(endpoint: &str) -> Option<&'static str> {
    match url::Url::parse(endpoint) {
        Err(_) => Some("is not a URL; write http://host:port or https://host"),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            Some("is not an HTTP URL; write http://host:port or https://host")
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => Some(
            "has credentials in it; they come from the environment, a profile or the machine's role",
        ),
        Ok(_) => None,
    }
}

fn without_user_info(endpoint: &str) -> String {
    match (endpoint.split_once("://"), endpoint.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => endpoint.to_owned(),
    }
}

fn crc64_nvme(bytes: &[u8]) -> String {
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    base64::encode(checksum.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::{ProvideCredentials, future};

    use super::*;

    fn options(endpoint: &str) -> S3Options {
        let credentials = Credentials::new("id", "secret", None, None, "test");
        S3Options {
            endpoint: Some(endpoint.to_owned()),
            credentials: Some(credentials),
            ..S3Options::default()
        }
    }

    fn store(config: Config) -> S3Store {
        S3Store::with_config(config, "bucket", "", Limits::default())
    }

    /// A chain of providers that ends this way.
    #[derive(Debug)]
    struct Fails(fn() -> CredentialsError);

    impl ProvideCredentials for Fails {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(Err(self.0()))
        }
    }

    #[tokio::test]
    async fn missing_credentials_are_a_denial_and_unreachable_ones_are_not() {
        let shared = sdk_config(&options("http://127.0.0.1:9"), trust_store()).await;
        let cases: [(fn() -> CredentialsError, _); 4] = [
            (
                || CredentialsError::not_loaded("none"),
                StoreErrorKind::Denied,
            ),
            (
                || CredentialsError::invalid_configuration("a loop"),
                StoreErrorKind::Denied,
            ),
            (
                || CredentialsError::provider_error("503"),
                StoreErrorKind::Unavailable,
            ),
            (
                || CredentialsError::provider_timed_out(Duration::ZERO),
                StoreErrorKind::Unavailable,
            ),
        ];
        for (fails, kind) in cases {
            let config = Config::from(&shared)
                .to_builder()
                .credentials_provider(Fails(fails))
                .build();
            let error = store(config).reach().await.expect_err("no credentials");
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains("credentials"), "{error}");
        }
    }

    /// Without an endpoint of one's own the SDK may ask the machine for its region; it used to panic, having no
    /// connection.
    #[tokio::test]
    async fn settings_for_aws_itself_can_be_made() {
        let options = S3Options {
            endpoint: None,
            region: Some("eu-central-1".to_owned()),
            ..options("")
        };
        let shared = sdk_config(&options, bundled_roots()).await;
        assert_eq!(shared.region().map(AsRef::as_ref), Some("eu-central-1"));
    }

    /// The SDK panics over certificates that it cannot read.
    #[tokio::test]
    async fn the_certificates_built_in_are_usable() {
        let shared = sdk_config(&options("https://127.0.0.1:9"), bundled_roots()).await;
        let error = store(Config::from(&shared))
            .reach()
            .await
            .expect_err("nobody listens");
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    }

    #[test]
    fn each_status_has_its_kind_unless_a_code_says_more() {
        for (status, code, kind) in [
            (400, Some("ExpiredToken"), StoreErrorKind::Denied),
            (403, None, StoreErrorKind::Denied),
            (404, Some("NoSuchBucket"), StoreErrorKind::NoSuchStore),
            (404, None, StoreErrorKind::NotFound),
            (409, None, StoreErrorKind::Conflict),
            (412, None, StoreErrorKind::ConditionFailed),
            (416, None, StoreErrorKind::BadSize),
            (429, None, StoreErrorKind::Throttled),
            (503, None, StoreErrorKind::Throttled),
            (504, None, StoreErrorKind::Unavailable),
            (418, None, StoreErrorKind::Other),
        ] {
            assert_eq!(kind_of(status, code), kind, "{status} {code:?}");
        }
    }

    #[test]
    fn the_checksum_is_the_one_that_s3_computes() {
        // The check value of CRC-64/NVME, 0xAE8B14860A799888.
        assert_eq!(crc64_nvme(b"123456789"), "rosUhgp5mIg=");
    }
}
