//! What this machine is to EC2, and what its owner sees of the job there: reads and writes the tags of one instance.
//!
//! Five small calls of EC2's query protocol, signed here: its SDK takes longer to build than all the rest together. All of
//! it is optional: without the rights, or while EC2 throttles, a job runs as well and only the console shows less.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_xml::decode::{Document, ScopedDecoder, try_data};
use reprieve_core::worker::Purchase;
use tokio::time::timeout;

use crate::autoscaling::Template;
use crate::http::escaped;

/// The version of the protocol; EC2 keeps old ones for good.
const VERSION: &str = "2016-11-15";

/// One call, credentials included.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// An instance has at most 50 tags of at most 384 characters.
const ANSWER_LIMIT: usize = 1 << 20;

/// What EC2 takes as a tag's value.
const VALUE_LIMIT: usize = 256;

/// Tags that settings may come from.
pub const TAG_JOB: &str = "reprieve:job";
pub const TAG_STORE: &str = "reprieve:store";
pub const TAG_QUEUE: &str = "reprieve:queue";
/// Tags that are written.
pub const TAG_STATE: &str = "reprieve:state";
pub const TAG_SNAPSHOT: &str = "reprieve:snapshot";

/// What EC2 knows of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub instance_type: String,
    pub purchase: Purchase,
}

/// Why a call did not do.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    #[error("no credentials were found")]
    NoCredentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{action}: the request could not be signed")]
    NotSigned {
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{action}: no answer")]
    NoAnswer {
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{action}: no answer within {CALL_LIMIT:?}")]
    Silent { action: &'static str },
    #[error("{action}: {status} {code}: {message}")]
    Refused {
        action: &'static str,
        status: u16,
        code: String,
        message: String,
    },
    #[error("{action}: the answer is not understood")]
    NotUnderstood {
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("there is no instance {0}")]
    NoSuchInstance(String),
}

impl Ec2Error {
    /// Whether it may do later; what is denied stays so.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::Silent { .. } | Self::NoCredentials(_) => true,
            Self::Refused { status, code, .. } => {
                *status >= 500 || matches!(code.as_str(), "RequestLimitExceeded" | "Throttling")
            }
            _ => false,
        }
    }
}

/// EC2 of one region.
#[derive(Clone, Debug)]
pub struct Ec2 {
    shared: SdkConfig,
    http: SharedHttpConnector,
    endpoint: String,
    region: String,
}

impl Ec2 {
    /// Credentials and region are the SDK's, the connection is given, as it has its own certificates and limits. None
    /// without a region.
    pub fn new(
        shared: &SdkConfig,
        http: SharedHttpConnector,
        endpoint: Option<String>,
    ) -> Option<Self> {
        let region = shared.region()?.to_string();
        let suffix = match region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        let endpoint = endpoint.unwrap_or_else(|| format!("https://ec2.{region}.{suffix}"));
        Some(Self {
            shared: shared.clone(),
            http,
            endpoint: format!("{}/", endpoint.trim_end_matches('/')),
            region,
        })
    }

    /// The tags of an instance.
    ///
    /// # Errors
    /// When EC2 refuses or does not answer.
    pub async fn tags(&self, instance: &str) -> Result<BTreeMap<String, String>, Ec2Error> {
        let action = "DescribeTags";
        let parameters = [
            ("Filter.1.Name".to_owned(), "resource-id".to_owned()),
            ("Filter.1.Value.1".to_owned(), instance.to_owned()),
        ];
        let answer = self.call(action, &parameters).await?;
        let mut tags = BTreeMap::new();
        each(action, &answer, &["tagSet", "item"], &mut |item| {
            let mut fields = fields(item)?;
            if let (Some(key), Some(value)) = (fields.remove("key"), fields.remove("value")) {
                tags.insert(key, value);
            }
            Ok(())
        })?;
        Ok(tags)
    }

    /// Sets tags of an instance; others stay as they are.
    ///
    /// # Errors
    /// When EC2 refuses or does not answer.
    pub async fn tag(&self, instance: &str, tags: &[(&str, String)]) -> Result<(), Ec2Error> {
        let mut parameters = vec![("ResourceId.1".to_owned(), instance.to_owned())];
        for (number, (key, value)) in (1..).zip(tags) {
            let value: String = value.chars().take(VALUE_LIMIT).collect();
            parameters.push((format!("Tag.{number}.Key"), (*key).to_owned()));
            parameters.push((format!("Tag.{number}.Value"), value));
        }
        self.call("CreateTags", &parameters).await.map(drop)
    }

    /// What kind of machine it is.
    ///
    /// # Errors
    /// When EC2 refuses, does not answer or does not know the instance.
    pub async fn machine(&self, instance: &str) -> Result<Machine, Ec2Error> {
        let action = "DescribeInstances";
        let parameters = [("InstanceId.1".to_owned(), instance.to_owned())];
        let answer = self.call(action, &parameters).await?;
        let mut machine = None;
        let path = ["reservationSet", "item", "instancesSet", "item"];
        each(action, &answer, &path, &mut |item| {
            let fields = fields(item)?;
            machine = Some(Machine {
                instance_type: fields.get("instanceType").cloned().unwrap_or_default(),
                purchase: match fields.get("instanceLifecycle").map(String::as_str) {
                    Some("spot") => Purchase::Spot,
                    Some("scheduled" | "capacity-block") => Purchase::Scheduled,
                    _ => Purchase::OnDemand,
                },
            });
            Ok(())
        })?;
        machine.ok_or_else(|| Ec2Error::NoSuchInstance(instance.to_owned()))
    }

    /// The instance type that a launch template says; none if it says none.
    ///
    /// # Errors
    /// When EC2 refuses, does not answer or does not know the template.
    pub async fn template_type(&self, template: &Template) -> Result<Option<String>, Ec2Error> {
        let action = "DescribeLaunchTemplateVersions";
        let version = template.version.as_deref().unwrap_or("$Default");
        let mut parameters = vec![("LaunchTemplateVersion.1".to_owned(), version.to_owned())];
        match (&template.id, &template.name) {
            (Some(id), _) => parameters.push(("LaunchTemplateId".to_owned(), id.clone())),
            (_, name) => {
                let name = name.clone().unwrap_or_default();
                parameters.push(("LaunchTemplateName".to_owned(), name));
            }
        }
        let answer = self.call(action, &parameters).await?;
        let mut found = None;
        let path = ["launchTemplateVersionSet", "item", "launchTemplateData"];
        each(action, &answer, &path, &mut |data| {
            found = fields(data)?.remove("instanceType");
            Ok(())
        })?;
        Ok(found)
    }

    async fn call(
        &self,
        action: &'static str,
        parameters: &[(String, String)],
    ) -> Result<String, Ec2Error> {
        timeout(CALL_LIMIT, self.attempt(action, parameters))
            .await
            .unwrap_or(Err(Ec2Error::Silent { action }))
    }

    async fn attempt(
        &self,
        action: &'static str,
        parameters: &[(String, String)],
    ) -> Result<String, Ec2Error> {
        let mut form = format!("Action={action}&Version={VERSION}");
        for (name, value) in parameters {
            form += &format!("&{}={}", escaped(name), escaped(value));
        }
        let request = self.signed(action, form).await?;
        let no_answer = |source| Ec2Error::NoAnswer { action, source };
        let answer = self.http.call(request).await;
        let answer = answer.map_err(|error| no_answer(error.into()))?;
        let status = answer.status().as_u16();
        let mut body = ByteStream::new(answer.into_body());
        let mut text = Vec::new();
        while let Some(piece) = body.next().await {
            text.extend_from_slice(&piece.map_err(|error| no_answer(error.into()))?);
            if text.len() > ANSWER_LIMIT {
                return Err(Ec2Error::NotUnderstood {
                    action,
                    source: format!("it has more than {ANSWER_LIMIT} bytes").into(),
                });
            }
        }
        let text = String::from_utf8(text).map_err(|error| Ec2Error::NotUnderstood {
            action,
            source: error.into(),
        })?;
        match status {
            200 => Ok(text),
            _ => Err(refusal(action, status, &text)),
        }
    }

    async fn signed(&self, action: &'static str, form: String) -> Result<HttpRequest, Ec2Error> {
        let provider = self
            .shared
            .credentials_provider()
            .ok_or_else(|| Ec2Error::NoCredentials("no provider is set".into()))?;
        let credentials = provider
            .provide_credentials()
            .await
            .map_err(|error| Ec2Error::NoCredentials(error.into()))?;
        let identity = credentials.into();
        self.sign(&identity, form)
            .map_err(|source| Ec2Error::NotSigned { action, source })
    }

    fn sign(
        &self,
        identity: &aws_smithy_runtime_api::client::identity::Identity,
        form: String,
    ) -> Result<HttpRequest, Box<dyn std::error::Error + Send + Sync>> {
        const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
        let parameters = v4::SigningParams::builder()
            .identity(identity)
            .region(&self.region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?
            .into();
        let headers = std::iter::once(("content-type", FORM));
        let body = SignableBody::Bytes(form.as_bytes());
        let signable = SignableRequest::new("POST", self.endpoint.as_str(), headers, body)?;
        let (instructions, _) = sign(signable, &parameters)?.into_parts();
        let mut request = hyper::Request::post(&self.endpoint)
            .header("content-type", FORM)
            .body(())?;
        instructions.apply_to_request_http1x(&mut request);
        Ok(HttpRequest::try_from(
            request.map(|()| SdkBody::from(form)),
        )?)
    }
}

fn refusal(action: &'static str, status: u16, text: &str) -> Ec2Error {
    let (mut code, mut message) = (String::new(), String::new());
    let read = each(action, text, &["Errors", "Error"], &mut |error| {
        let mut fields = fields(error)?;
        code = fields.remove("Code").unwrap_or_default();
        message = fields.remove("Message").unwrap_or_default();
        Ok(())
    });
    if read.is_err() || code.is_empty() {
        code = "without a code".to_owned();
    }
    message.retain(|c| !c.is_control());
    Ec2Error::Refused {
        action,
        status,
        code,
        message: message.chars().take(300).collect(),
    }
}

type Read<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Visit<'v> = dyn FnMut(&mut ScopedDecoder<'_, '_>) -> Read<()> + 'v;

/// Every element at this path below the root.
fn each(
    action: &'static str,
    text: &str,
    path: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), Ec2Error> {
    let understood = || -> Read<()> {
        let mut document = Document::try_from(text.as_bytes())?;
        let mut root = document.root_element()?;
        descend(&mut root, path, visit)
    };
    let mut understood = understood;
    understood().map_err(|source| Ec2Error::NotUnderstood { action, source })
}

fn descend(element: &mut ScopedDecoder<'_, '_>, path: &[&str], visit: &mut Visit<'_>) -> Read<()> {
    let Some((name, rest)) = path.split_first() else {
        return visit(element);
    };
    while let Some(mut child) = element.next_tag() {
        if child.start_el().matches(name) {
            descend(&mut child, rest, visit)?;
        }
    }
    Ok(())
}

/// The children of an element that hold text and nothing else.
fn fields(element: &mut ScopedDecoder<'_, '_>) -> Read<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    while let Some(mut child) = element.next_tag() {
        let name = child.start_el().local().to_owned();
        if let Ok(text) = try_data(&mut child) {
            fields.insert(name, text.into_owned());
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lookalike::{Answer, Server};

    async fn ec2(server: &Server) -> Ec2 {
        let http = aws_smithy_http_client::Connector::builder().build_http();
        let http = SharedHttpConnector::new(http);
        Ec2::new(&server.sdk_config().await, http, Some(server.url.clone()))
            .expect("it has a region")
    }

    #[tokio::test]
    async fn tags_are_read_from_among_others_and_unescaped() {
        let server = Server::start(|request| {
            assert!(request.contains("authorization: AWS4-HMAC-SHA256"), "{request}");
            assert!(request.contains("Action=DescribeTags"), "{request}");
            assert!(request.contains("Filter.1.Value.1=i-0abc"), "{request}");
            Answer::xml(
                200,
                "<DescribeTagsResponse><requestId>x</requestId><tagSet>\
                 <item><resourceId>i-0abc</resourceId><key>reprieve:job</key><value>a &amp; b</value></item>\
                 <item><key>Name</key><value/></item></tagSet></DescribeTagsResponse>",
            )
        })
        .await;
        let tags = ec2(&server)
            .await
            .tags("i-0abc")
            .await
            .expect("it is answered");
        let expected = [("Name", ""), (TAG_JOB, "a & b")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(tags, BTreeMap::from(expected));
    }

    #[tokio::test]
    async fn a_machine_is_spot_when_it_says_so() {
        let server = Server::start(|request| {
            let lifecycle = match request.contains("InstanceId.1=i-spot") {
                true => "<instanceLifecycle>spot</instanceLifecycle>",
                false => "",
            };
            Answer::xml(
                200,
                &format!(
                    "<DescribeInstancesResponse><reservationSet><item><instancesSet><item>\
                     <placement><availabilityZone>a</availabilityZone></placement>\
                     <instanceType>m7i.large</instanceType>{lifecycle}<tagSet><item><key>instanceType</key></item></tagSet>\
                     </item></instancesSet></item></reservationSet></DescribeInstancesResponse>"
                ),
            )
        })
        .await;
        let ec2 = ec2(&server).await;
        for (instance, purchase) in [("i-spot", Purchase::Spot), ("i-1", Purchase::OnDemand)] {
            let machine = ec2.machine(instance).await.expect("it is answered");
            assert_eq!(machine.purchase, purchase);
            assert_eq!(machine.instance_type, "m7i.large");
        }
    }

    #[tokio::test]
    async fn a_launch_template_says_its_type_or_none() {
        let server = Server::start(|request| {
            assert!(
                request.contains("Action=DescribeLaunchTemplateVersions"),
                "{request}"
            );
            let kind = match request.contains("LaunchTemplateId=lt-1&")
                || request.ends_with("LaunchTemplateId=lt-1")
            {
                true if request.contains("LaunchTemplateVersion.1=7") => {
                    "<instanceType>m6a.large</instanceType>"
                }
                _ => "",
            };
            Answer::xml(
                200,
                &format!(
                    "<DescribeLaunchTemplateVersionsResponse><launchTemplateVersionSet><item><versionNumber>7</versionNumber>\
                     <launchTemplateData><imageId>ami-1</imageId><tagSpecificationSet><item><instanceType>no</instanceType></item>\
                     </tagSpecificationSet>{kind}</launchTemplateData></item></launchTemplateVersionSet>\
                     </DescribeLaunchTemplateVersionsResponse>"
                ),
            )
        })
        .await;
        let ec2 = ec2(&server).await;
        let mut template = Template {
            id: Some("lt-1".into()),
            name: None,
            version: Some("7".into()),
        };
        let found = ec2.template_type(&template).await.expect("it is answered");
        assert_eq!(found.as_deref(), Some("m6a.large"));
        (template.id, template.name) = (None, Some("other".into()));
        let found = ec2.template_type(&template).await.expect("it is answered");
        assert_eq!(found, None);
    }

    #[tokio::test]
    async fn a_refusal_says_its_code_and_whether_it_may_pass() {
        let server = Server::start(|request| {
            let (status, code) = match request.contains("Action=CreateTags") {
                true => (503, "RequestLimitExceeded"),
                false => (403, "UnauthorizedOperation"),
            };
            Answer::xml(
                status,
                &format!(
                    "<Response><Errors><Error><Code>{code}</Code><Message>not\nnow</Message></Error></Errors></Response>"
                ),
            )
        })
        .await;
        let ec2 = ec2(&server).await;
        let error = ec2.tag("i-1", &[(TAG_STATE, "running".into())]).await;
        let error = error.expect_err("it throttles");
        assert_eq!(
            error.to_string(),
            "CreateTags: 503 RequestLimitExceeded: notnow"
        );
        assert!(error.may_pass());
        let error = ec2.tags("i-1").await.expect_err("it is denied");
        assert!(
            error.to_string().contains("UnauthorizedOperation"),
            "{error}"
        );
        assert!(!error.may_pass());
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_said_to_be_so() {
        let server = Server::start(|_| Answer::xml(200, "<DescribeTagsResponse><tagSet>")).await;
        let answer = ec2(&server).await.tags("i-1").await;
        // Cut off after the head: nothing in it, or not understood, but no panic.
        assert!(answer.is_err() || answer.is_ok_and(|tags| tags.is_empty()));
        let server = Server::start(|_| Answer::xml(200, "no XML")).await;
        let error = ec2(&server)
            .await
            .tags("i-1")
            .await
            .expect_err("it is no XML");
        assert!(matches!(error, Ec2Error::NotUnderstood { .. }), "{error}");
    }

    #[test]
    fn forms_are_escaped_as_they_are_signed() {
        assert_eq!(escaped("a b+c:é~"), "a%20b%2Bc%3A%C3%A9~");
    }
}
