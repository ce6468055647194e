//! What Azure's blob storage speaks: block blobs, whose conditions are on their ETag.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_smithy_types::date_time::{DateTime, Format};
use bytes::Bytes;
use hyper::header::{ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use object_store::azure::{AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder};
use object_store::client::{CredentialProvider, HttpRequest};

use super::google::no_retries;
use super::link::Link;
use reprieve_hooks::http::escaped;

use super::{CloudOptions, Dialect, Listed, Page, escaped_path, text_of};
use crate::store::{Condition, StoreErrorKind, Tag};

const BLOB_TYPE: HeaderName = HeaderName::from_static("x-ms-blob-type");

/// What a variable of the environment says.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

#[derive(Debug)]
pub(super) struct Azure {
    container: String,
    account: String,
    base: String,
    credentials: Arc<dyn CredentialProvider<Credential = AzureCredential>>,
}

/// Where the blobs are, and with whose rights, as far as the environment says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    name: Option<String>,
    key: Option<String>,
    signature: Option<String>,
    endpoint: Option<String>,
}

impl Account {
    /// What Azure's own tools read. What has a variable of its own counts for more than the connection string.
    fn from_environment(lookup: Lookup<'_>) -> Self {
        let first = |names: &[&str]| {
            let mut found = names.iter().filter_map(|name| lookup(name));
            found.find(|value| !value.is_empty())
        };
        let connection = first(&["AZURE_STORAGE_CONNECTION_STRING"]).unwrap_or_default();
        let said = Self::from_connection(&connection);
        Self {
            name: first(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]).or(said.name),
            key: first(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"]).or(said.key),
            signature: first(&["AZURE_STORAGE_SAS_TOKEN"]).or(said.signature),
            endpoint: first(&["AZURE_STORAGE_ENDPOINT"]).or(said.endpoint),
        }
    }

    fn from_connection(text: &str) -> Self {
        let value = |wanted: &str| {
            let mut parts = text.split(';').filter_map(|part| part.split_once('='));
            let (_, value) = parts.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))?;
            Some(value.to_owned())
        };
        let name = value("AccountName");
        let endpoint = value("BlobEndpoint").or_else(|| {
            let suffix = value("EndpointSuffix")?;
            Some(format!("https://{}.blob.{suffix}", name.as_ref()?))
        });
        Self {
            name,
            key: value("AccountKey"),
            signature: value("SharedAccessSignature"),
            endpoint,
        }
    }
}

/// Why Azure cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum AzureError {
    #[error("no storage account is named; set --azure-account or AZURE_STORAGE_ACCOUNT")]
    NoAccount,
    #[error(transparent)]
    Credentials(#[from] object_store::Error),
}

impl Azure {
    /// With the usual credentials: those in the environment, a workload's or the machine's identity.
    pub(super) fn new(
        container: &str,
        options: &CloudOptions,
        link: &Link,
    ) -> Result<Self, AzureError> {
        let variables = options.variables.all();
        let said = Account::from_environment(&|wanted| {
            let found = variables.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        });
        let name = options.account.clone().or(said.name);
        let name = name.ok_or(AzureError::NoAccount)?;
        let base = options.endpoint.clone().or(said.endpoint);
        let base = base.unwrap_or_else(|| format!("https://{name}.blob.core.windows.net"));
        let mut builder = MicrosoftAzureBuilder::new();
        for (name, value) in variables {
            match name.to_ascii_lowercase().parse() {
                Ok(key) if name.starts_with("AZURE_") => builder = builder.with_config(key, value),
                // The machine's identity, where it is not asked for at the usual address.
                _ if name == "IDENTITY_ENDPOINT" => builder = builder.with_msi_endpoint(value),
                _ => {}
            }
        }
        builder = builder
            .with_account(&name)
            .with_container_name(container)
            .with_endpoint(base.clone())
            .with_use_emulator(false)
            .with_retry(no_retries())
            .with_http_connector(link.clone());
        if let Some(key) = said.key {
            builder = builder.with_access_key(key);
        }
        if let Some(signature) = said.signature {
            builder = builder.with_config(object_store::azure::AzureConfigKey::SasKey, signature);
        }
        Ok(Self {
            container: container.to_owned(),
            account: name,
            base: base.trim_end_matches('/').to_owned(),
            credentials: Arc::clone(builder.build()?.credentials()),
        })
    }
}

#[async_trait]
impl Dialect for Azure {
    fn place(&self) -> String {
        format!("az://{}", self.container)
    }

    fn object(&self, key: &str) -> String {
        format!("{}/{}/{}", self.base, self.container, escaped_path(key))
    }

    fn listing(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
        next: Option<&str>,
    ) -> String {
        let mut url = format!(
            "{}/{}?restype=container&comp=list&maxresults={most}",
            self.base, self.container,
        );
        if !prefix.is_empty() {
            url += &format!("&prefix={}", escaped(prefix));
        }
        if let Some(next) = next {
            url += &format!("&marker={}", escaped(next));
        } else if let Some(after) = after {
            // With the key itself, and not known to each server; whoever asked looks at the keys.
            url += &format!("&startFrom={}", escaped(after));
        }
        url
    }

    fn page(&self, xml: &str) -> Result<Page, String> {
        let mut page = Page::default();
        super::each_in(xml, &mut |element, fields| match element {
            "Blob" => {
                // With folders of their own, which are no objects.
                if fields
                    .get("ResourceType")
                    .is_some_and(|kind| kind == "directory")
                {
                    return Ok(());
                }
                let time = text_of(fields, "Last-Modified")?;
                let time = DateTime::from_str(time, Format::HttpDate);
                let time = time.map_err(|error| error.to_string())?;
                let time = SystemTime::try_from(time).map_err(|error| error.to_string())?;
                let listed = Listed::new(fields, "Name", "Content-Length", time)?;
                page.objects.push(listed);
                Ok(())
            }
            "NextMarker" => {
                page.next = Some(text_of(fields, "")?.to_owned()).filter(|next| !next.is_empty());
                Ok(())
            }
            _ => Ok(()),
        })?;
        Ok(page)
    }

    fn put(&self, headers: &mut HeaderMap, _: &Bytes, condition: &Condition) {
        headers.insert(BLOB_TYPE, HeaderValue::from_static("BlockBlob"));
        match condition {
            Condition::Always => {}
            Condition::Absent => {
                headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
            Condition::Matches(tag) => {
                // What cannot be sent is no tag of a store, and fits nothing.
                let tag = HeaderValue::from_str(&tag.0);
                headers.insert(
                    IF_MATCH,
                    tag.unwrap_or(HeaderValue::from_static("\"none\"")),
                );
            }
        }
    }

    fn tag(&self, headers: &HeaderMap) -> Option<Tag> {
        Some(Tag(headers.get(ETAG)?.to_str().ok()?.to_owned()))
    }

    async fn authorize(&self, request: &mut HttpRequest) -> Result<(), object_store::Error> {
        let credential = self.credentials.get_credential().await?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(request)
    }

    fn kind_of(&self, code: &str) -> Option<StoreErrorKind> {
        Some(match code {
            "BlobNotFound" => StoreErrorKind::NotFound,
            "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled" => {
                StoreErrorKind::NoSuchStore
            }
            // How it says that there is one already: 409.
            "BlobAlreadyExists" | "UnauthorizedBlobOverwrite" | "ConditionNotMet" => {
                StoreErrorKind::ConditionFailed
            }
            // 412 as well, but nothing that another tag would change.
            "LeaseIdMissing" | "BlobImmutableDueToPolicy" | "BlobArchived" => StoreErrorKind::Other,
            "AuthenticationFailed"
            | "AuthorizationFailure"
            | "AuthorizationPermissionMismatch"
            | "InsufficientAccountPermissions"
            | "InvalidAuthenticationInfo"
            | "AccountIsDisabled" => StoreErrorKind::Denied,
            "ServerBusy" => StoreErrorKind::Throttled,
            "InternalError" | "OperationTimedOut" | "Md5Mismatch" => StoreErrorKind::Unavailable,
            "InvalidRange" | "RequestBodyTooLarge" => StoreErrorKind::BadSize,
            _ => return None,
        })
    }

    fn right_to(&self, _: &str) -> &'static str {
        "reading, writing, listing and deleting blobs (the role Storage Blob Data Contributor)"
    }

    fn about_credentials(&self) -> &'static str {
        "give this machine a managed identity, or set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, a SAS token or \
         AZURE_STORAGE_CONNECTION_STRING"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_count_for_more_than_the_connection_string() {
        let connection = "DefaultEndpointsProtocol=https;AccountName=one;AccountKey=a2V5==;EndpointSuffix=example.net";
        let variables = [
            ("AZURE_STORAGE_CONNECTION_STRING", connection),
            ("AZURE_STORAGE_KEY", "other"),
            ("AZURE_STORAGE_SAS_TOKEN", ""),
        ];
        let lookup = |wanted: &str| {
            let found = variables.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        };
        let expected = Account {
            name: Some("one".into()),
            key: Some("other".into()),
            signature: None,
            endpoint: Some("https://one.blob.example.net".into()),
        };
        assert_eq!(Account::from_environment(&lookup), expected);
        let said = Account::from_connection(connection);
        assert_eq!(said.key.as_deref(), Some("a2V5=="));
        assert_eq!(Account::from_environment(&|_| None), Account::default());
    }
}
