//! What all clients of AWS share: the connection with its certificates, region and credentials.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};

use crate::store::s3;

/// For a connection, with TLS.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Settings for whatever is not the store: the environment's, the profile's or the machine's. May ask the network for the
/// machine's region.
pub(crate) async fn shared(region: Option<String>) -> SdkConfig {
    s3::sdk_config_for(region, CONNECT_LIMIT).await
}

/// The SDK's client with our certificates.
pub(crate) fn http_client(trusted: TrustStore) -> SharedHttpClient {
    Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls(trusted))
        .build_https()
}

/// For requests that are signed by hand.
pub(crate) fn connector() -> SharedHttpConnector {
    connector_within(CONNECT_LIMIT)
}

/// The same with a limit of one's own for connecting.
pub(crate) fn connector_within(connect: Duration) -> SharedHttpConnector {
    connector_that_trusts(s3::trust_store(), connect)
}

/// The same with certificates of one's own.
pub(crate) fn connector_that_trusts(trusted: TrustStore, connect: Duration) -> SharedHttpConnector {
    let settings = HttpConnectorSettings::builder().connect_timeout(connect);
    SharedHttpConnector::new(
        Connector::builder()
            .connector_settings(settings.build())
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls(trusted))
            .build(),
    )
}

fn tls(trusted: TrustStore) -> TlsContext {
    let context = TlsContext::builder().with_trust_store(trusted).build();
    context.expect("a trust store is all it needs")
}
