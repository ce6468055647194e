//! From settings to a store that answers, or to what a person can do about one that does not.

use std::sync::Arc;

use aws_config::retry::RetryConfig;
use tokio::time::Instant;

use crate::aws;
use crate::failure::{ExitCode, Failure};
use crate::keys::{Keyring, Source, Unsealed};
use crate::settings::{
    self, KeySettings, OnUnsealed, PathStyle, S3Encryption, S3RequestPayer, S3StorageClass,
    StoreSettings,
};
use crate::store::{
    self, Addressing, CloudOptions, Encryption, Options, S3Objects, S3Options, Store, StoreAddress,
    StoreError, StoreErrorKind,
};

/// Opens the store and makes sure that it is there.
pub(crate) async fn open(settings: &StoreSettings) -> Result<Arc<dyn Store>, Failure> {
    let address = settings.address.as_str();
    let parsed = StoreAddress::parse(address).map_err(|error| {
        Failure::new(
            ExitCode::SettingsInvalid,
            format!("the store address {address} cannot be used"),
        )
        .caused_by(error)
    })?;
    let s3 = S3Options {
        endpoint: settings.s3_endpoint.as_ref().map(ToString::to_string),
        region: settings.s3_region.clone(),
        addressing: match settings.s3_path_style {
            PathStyle::Auto => Addressing::Automatic,
            PathStyle::On => Addressing::Path,
            PathStyle::Off => Addressing::VirtualHost,
        },
        objects: objects(&settings.s3_objects),
        ..S3Options::default()
    };
    let options = Options {
        s3,
        google: CloudOptions {
            endpoint: settings.gs_endpoint.as_ref().map(ToString::to_string),
            ..CloudOptions::default()
        },
        azure: CloudOptions {
            endpoint: settings.azure_endpoint.as_ref().map(ToString::to_string),
            account: settings.azure_account.clone(),
            ..CloudOptions::default()
        },
    };
    let deadline = Instant::now() + settings.timeout;
    let store = store::open(&parsed, &options)
        .await
        .map_err(|error| unreachable_store(address, error))?;
    #[cfg(debug_assertions)]
    let store = store::doomed::doomed(store);
    store::retry::retry(deadline, "reach", || store.reach())
        .await
        .map_err(|error| unreachable_store(address, error))?;
    Ok(store)
}

fn objects(settings: &settings::S3Objects) -> S3Objects {
    let kms = |twice| Encryption::Kms {
        key: settings.key.clone(),
        twice,
    };
    S3Objects {
        encryption: match settings.encryption {
            S3Encryption::Bucket => Encryption::Bucket,
            S3Encryption::Aes256 => Encryption::Aes256,
            S3Encryption::Kms => kms(false),
            S3Encryption::KmsTwice => kms(true),
        },
        storage_class: match settings.storage_class {
            S3StorageClass::Bucket => None,
            S3StorageClass::Standard => Some("STANDARD"),
            S3StorageClass::StandardIa => Some("STANDARD_IA"),
            S3StorageClass::OnezoneIa => Some("ONEZONE_IA"),
            S3StorageClass::IntelligentTiering => Some("INTELLIGENT_TIERING"),
            S3StorageClass::GlacierInstantRetrieval => Some("GLACIER_IR"),
        },
        requester_pays: settings.request_payer == S3RequestPayer::Requester,
    }
}

/// Reads the keys that are set.
pub(crate) async fn keys(
    settings: &KeySettings,
    store: &StoreSettings,
) -> Result<Arc<Keyring>, Failure> {
    let has_kms = settings
        .sources
        .iter()
        .any(|source| matches!(source, Source::Kms(_)));
    let kms = match has_kms {
        true => {
            let shared = aws::shared(store.s3_region.clone()).await.into_builder();
            // There is no other place that tries again.
            let config = shared.retry_config(RetryConfig::standard()).build();
            Some(aws_sdk_kms::Client::new(&config))
        }
        false => None,
    };
    let unsealed = match settings.on_unsealed {
        OnUnsealed::Refuse => Unsealed::Refuse,
        OnUnsealed::Accept => Unsealed::Accept,
    };
    let read = Keyring::read(&settings.sources, unsealed, kms);
    read.map(Arc::new).map_err(|(source, error)| {
        Failure::new(
            ExitCode::SettingsInvalid,
            format!("{source} cannot be used"),
        )
        .caused_by(error)
        .remedy(
            "give 32 bytes as they are, in hexadecimal or in base64, or a passphrase in one line; \
             `openssl rand -hex 32` makes a good key",
        )
    })
}

/// What a person reads when the keys do not open what is there.
pub(crate) fn refused_keys(
    job: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Failure {
    Failure::new(
        ExitCode::KeyRefused,
        format!("the keys that are set do not fit job {job}"),
    )
    .caused_by(error)
    .remedy(
        "nothing was started, changed or lost; give the key that the job was stored with (--key-file, REPRIEVE_KEY or \
         --kms-key; an older one with --old-key-file or --old-kms-key). Only if the job was stored without a key and is to \
         have one from now on: --on-unsealed accept, once. What nobody of yours wrote is not to be accepted at all",
    )
}

/// What a person reads when a store does not do as asked.
pub(crate) fn unreachable_store(address: &str, error: StoreError) -> Failure {
    let remedy = match error.kind {
        StoreErrorKind::NoSuchStore => {
            "create the bucket or container, or mount the directory into the container; a missing one is never taken for an empty one"
        }
        StoreErrorKind::Denied => {
            "give this worker credentials that may list, read, write and delete there (in S3 s3:ListBucket, s3:GetObject, \
             s3:PutObject, s3:DeleteObject), or the right to the directory"
        }
        _ => "check the address, the network and the service; then start again",
    };
    Failure::new(
        ExitCode::StoreUnreachable,
        format!("the store {address} cannot be used"),
    )
    .caused_by(error)
    .remedy(remedy)
}
