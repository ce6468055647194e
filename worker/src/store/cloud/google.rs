//! What Google Cloud Storage speaks: its XML interface, whose conditions are on the generation of an object.

use std::sync::Arc;

use async_trait::async_trait;
use aws_smithy_types::base64;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use object_store::RetryConfig;
use object_store::client::HttpRequest;
use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};

use super::link::Link;
use reprieve_hooks::http::escaped;

use super::{CloudOptions, Dialect, Listed, Page, escaped_path, text_of};
use crate::store::{Condition, StoreErrorKind, Tag};

const PUBLIC: &str = "https://storage.googleapis.com";

const GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");
const IF_GENERATION: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
const HASH: HeaderName = HeaderName::from_static("x-goog-hash");

/// No object has it: generations are times in microseconds.
const NO_GENERATION: i64 = i64::MAX;

#[derive(Debug)]
pub(super) struct Google {
    bucket: String,
    base: String,
    credentials: GcpCredentialProvider,
}

impl Google {
    /// With the usual credentials: a file that the environment or `gcloud` names, or the machine's.
    pub(super) fn new(
        bucket: &str,
        options: &CloudOptions,
        link: &Link,
    ) -> Result<Self, object_store::Error> {
        let mut builder = GoogleCloudStorageBuilder::new();
        for (name, value) in options.variables.all() {
            if let (true, Ok(key)) = (
                name.starts_with("GOOGLE_"),
                name.to_ascii_lowercase().parse(),
            ) {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_retry(no_retries())
            .with_http_connector(link.clone())
            .build()?;
        let base = options
            .endpoint
            .as_deref()
            .unwrap_or(PUBLIC)
            .trim_end_matches('/');
        Ok(Self {
            bucket: bucket.to_owned(),
            base: base.to_owned(),
            credentials: Arc::clone(store.credentials()),
        })
    }
}

pub(super) fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

#[async_trait]
impl Dialect for Google {
    fn place(&self) -> String {
        format!("gs://{}", self.bucket)
    }

    fn object(&self, key: &str) -> String {
        format!("{}/{}/{}", self.base, self.bucket, escaped_path(key))
    }

    fn listing(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
        next: Option<&str>,
    ) -> String {
        let mut url = format!(
            "{}/{}?list-type=2&max-keys={most}&prefix={}",
            self.base,
            self.bucket,
            escaped(prefix)
        );
        if let Some(next) = next {
            url += &format!("&continuation-token={}", escaped(next));
        } else if let Some(after) = after {
            url += &format!("&start-after={}", escaped(after));
        }
        url
    }

    fn page(&self, xml: &str) -> Result<Page, String> {
        let mut page = Page::default();
        super::each_in(xml, &mut |element, fields| match element {
            "Contents" => {
                let time = text_of(fields, "LastModified")?;
                let time = humantime::parse_rfc3339(time).map_err(|error| error.to_string())?;
                page.objects.push(Listed::new(fields, "Key", "Size", time)?);
                Ok(())
            }
            "NextContinuationToken" => {
                page.next = Some(text_of(fields, "")?.to_owned());
                Ok(())
            }
            _ => Ok(()),
        })?;
        Ok(page)
    }

    fn put(&self, headers: &mut HeaderMap, bytes: &Bytes, condition: &Condition) {
        let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        let checksum = u32::try_from(checksum).expect("it has 32 bits");
        let checksum = format!("crc32c={}", base64::encode(checksum.to_be_bytes()));
        let checksum = HeaderValue::from_str(&checksum).expect("base64 is plain text");
        headers.insert(HASH, checksum);
        let generation = match condition {
            Condition::Always => return,
            Condition::Absent => 0,
            // What is no generation, or stands for none, is nobody's.
            Condition::Matches(tag) => match tag.0.parse() {
                Ok(generation) if generation > 0 => generation,
                _ => NO_GENERATION,
            },
        };
        headers.insert(IF_GENERATION, HeaderValue::from(generation));
    }

    fn tag(&self, headers: &HeaderMap) -> Option<Tag> {
        let generation = headers.get(GENERATION)?.to_str().ok()?;
        Some(Tag(generation.to_owned()))
    }

    async fn authorize(&self, request: &mut HttpRequest) -> Result<(), object_store::Error> {
        let credential = self.credentials.get_credential().await?;
        if credential.bearer.is_empty() {
            return Ok(());
        }
        let bearer = HeaderValue::from_str(&format!("Bearer {}", credential.bearer));
        let mut bearer = bearer.map_err(|error| object_store::Error::Generic {
            store: "GCS",
            source: error.into(),
        })?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        Ok(())
    }

    fn kind_of(&self, code: &str) -> Option<StoreErrorKind> {
        Some(match code {
            "NoSuchKey" => StoreErrorKind::NotFound,
            "NoSuchBucket" => StoreErrorKind::NoSuchStore,
            "SlowDown" => StoreErrorKind::Throttled,
            // Damaged on the way.
            "BadDigest" | "InvalidDigest" | "IncompleteBody" => StoreErrorKind::Unavailable,
            _ => return None,
        })
    }

    fn right_to(&self, operation: &str) -> &'static str {
        match operation {
            "put" => "storage.objects.create and, to replace, storage.objects.delete",
            "delete" => "storage.objects.delete",
            "list" | "reach" => "storage.objects.list",
            _ => "storage.objects.get and storage.objects.list",
        }
    }

    fn about_credentials(&self) -> &'static str {
        "give this machine a service account, or set GOOGLE_APPLICATION_CREDENTIALS"
    }
}
