//! Keeps objects in Google Cloud Storage or in Azure's blob storage.
//!
//! The two differ in what they call things ([`Dialect`]); one attempt per call, its limits and what errors mean are as with
//! S3. The library `object_store` finds the credentials, renews them and signs; requests are made here, since it knows no
//! listing by the beginning of a key, takes an answer's meaning from its status alone, and tries again by itself.
//!
//! "Not found" is only said when the store says that this key is missing, as [`super::s3`] does: a 404 that could also mean
//! a missing bucket is looked into.

mod azure;
mod google;
mod link;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_smithy_xml::decode::{Document, ScopedDecoder, try_data};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use object_store::client::{HttpRequest, HttpRequestBody};
use reprieve_hooks::http::escaped;

use self::azure::{Azure, AzureError};
use self::google::Google;
use self::link::{Answer, Link, LinkError};
use super::wire::{self, BODY_BROKEN, Call, Cause, Limits, Place};
use super::{Condition, Entry, Object, Store, StoreError, StoreErrorKind, Tag, check_key};

/// Of a page of a listing, and of what an error says of itself.
const TEXT_LIMIT: u64 = 16 << 20;

/// How to talk to Google's storage or to Azure's; the defaults are right with the machine's own rights.
#[derive(Clone, Debug, Default)]
pub struct CloudOptions {
    /// The URL of a store that is not Google's or Microsoft's own.
    pub endpoint: Option<String>,
    /// Azure's storage account; else as the environment says.
    pub account: Option<String>,
    pub variables: Variables,
    pub limits: Limits,
}

/// The environment in which credentials are looked for: the process's own, or, for tests, another.
#[derive(Clone, Default)]
pub struct Variables(Option<Vec<(String, String)>>);

impl Variables {
    /// These and no others. What the machine says is not among them.
    pub fn given(variables: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(Some(variables.iter().map(own).collect()))
    }

    fn all(&self) -> Vec<(String, String)> {
        self.0.clone().unwrap_or_else(|| {
            std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect()
        })
    }
}

impl fmt::Debug for Variables {
    /// Some hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "given",
            None => "the process's",
        })
    }
}

/// What one of the two calls things.
#[async_trait]
trait Dialect: fmt::Debug + Send + Sync {
    /// The address without a prefix.
    fn place(&self) -> String;

    /// The URL of an object.
    fn object(&self, key: &str) -> String;

    /// The URL of a page of a listing: of the first, behind a key, or of the `next`.
    fn listing(&self, prefix: &str, after: Option<&str>, most: usize, next: Option<&str>)
    -> String;

    /// Reads such a page.
    fn page(&self, xml: &str) -> Result<Page, String>;

    /// Adds what a put is to keep to.
    fn put(&self, headers: &mut HeaderMap, bytes: &Bytes, condition: &Condition);

    /// The tag in an answer about an object.
    fn tag(&self, headers: &HeaderMap) -> Option<Tag>;

    /// Signs; may ask for credentials.
    async fn authorize(&self, request: &mut HttpRequest) -> Result<(), object_store::Error>;

    /// What a code means, where it says more than the status.
    fn kind_of(&self, code: &str) -> Option<StoreErrorKind>;

    /// What somebody may lack who is denied this.
    fn right_to(&self, operation: &str) -> &'static str;

    /// How this worker can be given credentials.
    fn about_credentials(&self) -> &'static str;
}

/// One page of a listing.
#[derive(Default)]
struct Page {
    objects: Vec<Listed>,
    next: Option<String>,
}

struct Listed {
    key: String,
    size: u64,
    modified_ms: u64,
}

impl Listed {
    fn new(fields: &Fields, key: &str, size: &str, modified: SystemTime) -> Result<Self, String> {
        let size = text_of(fields, size)?.parse();
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            key: text_of(fields, key)?.to_owned(),
            size: size.map_err(|_| "a size that is no number".to_owned())?,
            modified_ms: u64::try_from(modified.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// A store in a bucket or container, or in the part of one below a prefix.
#[derive(Clone)]
pub struct CloudStore {
    dialect: Arc<dyn Dialect>,
    link: Link,
    place: Place,
    limits: Limits,
}

impl fmt::Debug for CloudStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloudStore({})", self.address())
    }
}

impl CloudStore {
    /// In Google's storage. Reads at most a file with credentials, and asks nobody.
    ///
    /// # Errors
    /// When the credentials that are named cannot be used.
    pub fn google(bucket: &str, prefix: &str, options: &CloudOptions) -> Result<Self, StoreError> {
        let link = Link::new(options.limits);
        let google = Google::new(bucket, options, &link);
        let google = google.map_err(|error| unusable(&format!("gs://{bucket}"), &error))?;
        Ok(Self::new(Arc::new(google), link, prefix, options.limits))
    }

    /// In Azure's storage, likewise.
    ///
    /// # Errors
    /// When no account is named, or the credentials that are named cannot be used.
    pub fn azure(
        container: &str,
        prefix: &str,
        options: &CloudOptions,
    ) -> Result<Self, StoreError> {
        let link = Link::new(options.limits);
        let azure = Azure::new(container, options, &link);
        let address = format!("az://{container}");
        let azure = azure.map_err(|error| match error {
            AzureError::NoAccount => {
                StoreError::new(StoreErrorKind::Other, "open", address, error.to_string())
            }
            AzureError::Credentials(error) => unusable(&address, &error),
        })?;
        Ok(Self::new(Arc::new(azure), link, prefix, options.limits))
    }

    fn new(dialect: Arc<dyn Dialect>, link: Link, prefix: &str, limits: Limits) -> Self {
        Self {
            place: Place::new(dialect.place(), prefix),
            dialect,
            link,
            limits,
        }
    }

    /// One request and the beginning of its answer, which is a good one.
    async fn send(
        &self,
        call: &Call,
        method: Method,
        url: &str,
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Result<Answer, Refusal> {
        let answer = self.ask(call, method, url, headers, bytes).await?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.refusal(call, answer).await),
        }
    }

    async fn ask(
        &self,
        call: &Call,
        method: Method,
        url: &str,
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Result<Answer, StoreError> {
        let odd = |error: &(dyn Error + 'static)| {
            let error_of_call = call.error(StoreErrorKind::Other, "the request could not be made");
            error_of_call.because(Cause::of(error))
        };
        let request = hyper::Request::builder().method(method).uri(url);
        let mut request = request
            .body(HttpRequestBody::from(bytes))
            .map_err(|error| odd(&error))?;
        *request.headers_mut() = headers;
        let authorized = self.dialect.authorize(&mut request).await;
        authorized.map_err(|error| self.without_credentials(call, &error))?;
        let sent = self.link.send(request).await;
        sent.map_err(|error| call.error(StoreErrorKind::Unavailable, error.to_string()))
    }

    /// Whoever hands them out may be back soon; what it refuses stays so.
    fn without_credentials(&self, call: &Call, error: &object_store::Error) -> StoreError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(told) = current.downcast_ref::<LinkError>() {
                let kind = match told {
                    LinkError::Refused { status, .. } if status.is_client_error() => {
                        StoreErrorKind::Denied
                    }
                    _ => StoreErrorKind::Unavailable,
                };
                let help = self.dialect.about_credentials();
                return call.error(
                    kind,
                    format!("credentials could not be fetched: {told}; {help}"),
                );
            }
            cause = current.source();
        }
        let denied = call.error(StoreErrorKind::Denied, "the credentials cannot be used");
        denied.because(Cause::of(error))
    }

    async fn refusal(&self, call: &Call, answer: Answer) -> Refusal {
        let status = answer.status;
        let named = answer.headers.get("x-ms-error-code");
        let named = named.and_then(|code| code.to_str().ok()).map(str::to_owned);
        // Without a body the status has to do.
        let body = wire::read(answer.body, 0, TEXT_LIMIT, self.limits.answer).await;
        let body = body.unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let code = named.or_else(|| element(&body, "Code"));
        let known = code.as_deref().and_then(|code| self.dialect.kind_of(code));
        let kind = known.unwrap_or_else(|| wire::kind_of_status(status.as_u16()));
        let mut message = status.as_u16().to_string();
        if let Some(code) = &code {
            message += &format!(" {}", printable(code));
        }
        if let Some(text) = element(&body, "Message") {
            // Azure has more lines, of numbers to quote to its support.
            message += &format!(": {}", printable(text.lines().next().unwrap_or_default()));
        }
        if kind == StoreErrorKind::Denied {
            message += &format!("; allow {}", self.dialect.right_to(call.operation));
        }
        let error = call.error(kind, message);
        match known {
            None if kind == StoreErrorKind::NotFound => Refusal::SomethingMissing(error),
            _ => Refusal::Clear(error),
        }
    }

    /// Settles a 404 that may be the key's or the bucket's, by asking for the bucket. Refused for want of rights, it at least
    /// exists; any other failure is the call's own.
    async fn settle(&self, refusal: Refusal) -> StoreError {
        let error = match refusal {
            Refusal::Clear(error) => return error,
            Refusal::SomethingMissing(error) => error,
        };
        match self.reach().await {
            Ok(()) => error,
            Err(reached) if reached.kind == StoreErrorKind::Denied => error,
            Err(reached) => StoreError {
                operation: error.operation,
                key: error.key,
                ..reached
            },
        }
    }

    async fn look(
        &self,
        call: &Call,
        method: Method,
        headers: HeaderMap,
    ) -> Result<Answer, StoreError> {
        let url = self.dialect.object(&call.full_key);
        match self.send(call, method, &url, headers, Bytes::new()).await {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.settle(refusal).await),
        }
    }

    async fn whole(&self, call: &Call, limit: u64) -> Result<Object, StoreError> {
        let answer = self.look(call, Method::GET, HeaderMap::new()).await?;
        let size = content_length(call, &answer)?;
        if size > limit {
            let message = format!("it has {size} bytes, more than the {limit} allowed");
            return Err(call.error(StoreErrorKind::BadSize, message));
        }
        let tag = self.tag(call, &answer)?;
        let bytes = call
            .read(answer.body, size, limit, self.limits.answer)
            .await?;
        if bytes.len() as u64 != size {
            return Err(call.error(StoreErrorKind::Unavailable, BODY_BROKEN));
        }
        Ok(Object { bytes, tag })
    }

    async fn part(&self, call: &Call, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let outside = || {
            let message = format!("{length} bytes from {offset} are not all inside it");
            call.error(StoreErrorKind::BadSize, message)
        };
        let end = offset.checked_add(length).ok_or_else(outside)?;
        if length == 0 {
            // HTTP has no empty range.
            let answer = self.look(call, Method::HEAD, HeaderMap::new()).await?;
            return match end <= content_length(call, &answer)? {
                true => Ok(Bytes::new()),
                false => Err(outside()),
            };
        }
        let mut headers = HeaderMap::new();
        let range = HeaderValue::from_str(&format!("bytes={offset}-{}", end - 1));
        headers.insert(RANGE, range.expect("numbers are plain text"));
        let answer = self.look(call, Method::GET, headers).await?;
        // A store that does not know ranges sends the whole object; one that ends earlier sends what there is.
        let expected = format!("bytes {offset}-{}/", end - 1);
        let said = answer.headers.get(CONTENT_RANGE);
        let said = said.and_then(|range| range.to_str().ok());
        if !said.is_some_and(|range| range.starts_with(&expected)) {
            return Err(outside());
        }
        let bytes = call
            .read(answer.body, length, length, self.limits.answer)
            .await?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(call.error(StoreErrorKind::Unavailable, BODY_BROKEN)),
        }
    }

    async fn upload(
        &self,
        call: &Call,
        bytes: Bytes,
        condition: &Condition,
    ) -> Result<Tag, StoreError> {
        let mut headers = HeaderMap::new();
        // Azure's signature is over it.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        self.dialect.put(&mut headers, &bytes, condition);
        let url = self.dialect.object(&call.full_key);
        match self.send(call, Method::PUT, &url, headers, bytes).await {
            Ok(answer) => self.tag(call, &answer),
            Err(refusal) => {
                let mut error = self.settle(refusal).await;
                if error.kind == StoreErrorKind::NotFound {
                    // A condition on nothing; without one a put has nothing to miss.
                    error.kind = match condition {
                        Condition::Matches(_) => StoreErrorKind::ConditionFailed,
                        Condition::Always | Condition::Absent => StoreErrorKind::Other,
                    };
                }
                Err(error)
            }
        }
    }

    async fn one_page(
        &self,
        call: &Call,
        after: Option<&str>,
        most: usize,
        next: Option<&str>,
    ) -> Result<Page, StoreError> {
        let after = after.map(|after| self.place.full(after));
        let url = self
            .dialect
            .listing(&call.full_key, after.as_deref(), most, next);
        let sent = self
            .send(call, Method::GET, &url, HeaderMap::new(), Bytes::new())
            .await;
        let answer = sent.map_err(Refusal::about_the_store)?;
        let text = call
            .read(answer.body, 0, TEXT_LIMIT, self.limits.answer)
            .await?;
        let page = self.dialect.page(&String::from_utf8_lossy(&text));
        page.map_err(|fault| {
            let message = format!("the listing is not understood: {fault}");
            call.error(StoreErrorKind::Other, message)
        })
    }

    async fn pages(
        &self,
        call: &Call,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut next: Option<String> = None;
        while entries.len() < limit {
            let most = usize::from(self.limits.page);
            // One more, since the key behind which it begins may be the first.
            let most = most.min(limit - entries.len() + usize::from(after.is_some()));
            let page = self.one_page(call, after, most, next.as_deref()).await?;
            for object in page.objects {
                let Some(key) = self.place.inside(&object.key) else {
                    let message = "the listing has an entry outside its prefix";
                    return Err(call.error(StoreErrorKind::Other, message));
                };
                // "Folders" that consoles make are no objects of ours.
                if after.is_none_or(|after| key > after) && check_key(key).is_ok() {
                    entries.push(Entry {
                        key: key.to_owned(),
                        size: object.size,
                        modified_ms: object.modified_ms,
                    });
                }
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        call.listed(entries, limit)
    }

    fn tag(&self, call: &Call, answer: &Answer) -> Result<Tag, StoreError> {
        self.dialect.tag(&answer.headers).ok_or_else(|| {
            let message = "the store gives no version, which conditional puts need";
            call.error(StoreErrorKind::Other, message)
        })
    }
}

fn content_length(call: &Call, answer: &Answer) -> Result<u64, StoreError> {
    let length = answer.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.ok_or_else(|| {
        let message = "the store does not say how large it is";
        call.error(StoreErrorKind::Other, message)
    })
}

#[async_trait]
impl Store for CloudStore {
    fn address(&self) -> String {
        self.place.address()
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Object, StoreError> {
        let call = self.place.call_on("get", key)?;
        call.within(self.limits.attempt, self.whole(&call, limit))
            .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let call = self.place.call_on("get_range", key)?;
        call.within(self.limits.attempt, self.part(&call, offset, length))
            .await
    }

    async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let call = self.place.call_on("size", key)?;
        call.within(self.limits.attempt, async {
            let answer = self.look(&call, Method::HEAD, HeaderMap::new()).await?;
            content_length(&call, &answer)
        })
        .await
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Tag, StoreError> {
        let call = self.place.call_on("put", key)?;
        call.within(self.limits.attempt, self.upload(&call, bytes, &condition))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let call = self.place.call_below(prefix)?;
        call.within(self.limits.attempt, self.pages(&call, after, limit))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let call = self.place.call_on("delete", key)?;
        call.within(self.limits.attempt, async {
            match self.look(&call, Method::DELETE, HeaderMap::new()).await {
                Err(error) if error.kind != StoreErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn reach(&self) -> Result<(), StoreError> {
        let call = self.place.call("reach", "");
        self.one_page(&call, None, 1, None).await.map(drop)
    }
}

/// A failed request, as far as its answer alone tells.
enum Refusal {
    Clear(StoreError),
    /// 404, and no more.
    SomethingMissing(StoreError),
}

impl Refusal {
    /// Where no key is in question, what is missing is the bucket.
    fn about_the_store(self) -> StoreError {
        match self {
            Self::Clear(error) => error,
            Self::SomethingMissing(mut error) => {
                error.kind = StoreErrorKind::NoSuchStore;
                error
            }
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Clear(error)
    }
}

/// Credentials that are named, but not to be had.
fn unusable(address: &str, error: &object_store::Error) -> StoreError {
    let message = "the credentials cannot be used";
    StoreError::new(StoreErrorKind::Denied, "open", address, message).because(Cause::of(error))
}

// ---- Texts

/// The texts inside an element and inside those below it, by name; its own under the empty one.
type Fields = HashMap<String, String>;

fn text_of<'f>(fields: &'f Fields, name: &str) -> Result<&'f str, String> {
    let text = fields.get(name).map(String::as_str);
    text.ok_or_else(|| format!("an entry has no {name}"))
}

/// Shows each entry of a listing, wherever it is below the root.
fn each_in(
    xml: &str,
    visit: &mut dyn FnMut(&str, &Fields) -> Result<(), String>,
) -> Result<(), String> {
    let read = || -> Result<(), Box<dyn Error>> {
        // Azure begins with a mark of its encoding.
        let mut document = Document::try_from(xml.trim_start_matches('\u{feff}').as_bytes())?;
        let mut root = document.root_element()?;
        descend(&mut root, 0, visit)
    };
    let mut read = read;
    read().map_err(|error| error.to_string())
}

/// Elements within elements that a listing is believed to have; real ones have four.
const DEEPEST: usize = 16;

fn descend(
    element: &mut ScopedDecoder<'_, '_>,
    depth: usize,
    visit: &mut dyn FnMut(&str, &Fields) -> Result<(), String>,
) -> Result<(), Box<dyn Error>> {
    bounded(depth)?;
    while let Some(mut inner) = element.next_tag() {
        let name = inner.start_el().local().to_owned();
        match name.as_str() {
            "Blobs" => descend(&mut inner, depth + 1, visit)?,
            "Contents" | "Blob" => {
                let mut fields = Fields::new();
                gather(&mut inner, depth + 1, &mut fields)?;
                visit(&name, &fields)?;
            }
            "NextMarker" | "NextContinuationToken" => {
                let text = try_data(&mut inner)?.into_owned();
                visit(&name, &Fields::from([(String::new(), text)]))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn bounded(depth: usize) -> Result<(), Box<dyn Error>> {
    match depth > DEEPEST {
        true => Err("elements lie too deep in one another".into()),
        false => Ok(()),
    }
}

fn gather(
    element: &mut ScopedDecoder<'_, '_>,
    depth: usize,
    fields: &mut Fields,
) -> Result<(), Box<dyn Error>> {
    bounded(depth)?;
    while let Some(mut inner) = element.next_tag() {
        match inner.start_el().local() {
            "Properties" => gather(&mut inner, depth + 1, fields)?,
            // Of no interest, and with elements of their own.
            "Owner" | "Metadata" | "Tags" | "OrMetadata" => {}
            name => {
                let name = name.to_owned();
                let text = try_data(&mut inner)?.into_owned();
                fields.insert(name, text);
            }
        }
    }
    Ok(())
}

/// Reads anything as a listing and as an error.
#[cfg(any(test, fuzzing))]
pub(crate) fn digest(xml: &str) {
    let seen = each_in(xml, &mut |_, fields| text_of(fields, "Name").map(drop));
    drop((seen, element(xml, "Code"), printable(xml)));
}

/// The text of the first such element of an error, which has no other elements in it.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}

/// Stores write what they like; a message is for one line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The same for a key, whose segments are those of the path.
fn escaped_path(key: &str) -> String {
    let segments: Vec<String> = key.split('/').map(escaped).collect();
    segments.join("/")
}
