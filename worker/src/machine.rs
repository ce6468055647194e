//! What the machine says of itself before the job starts: settings that its tags give, whether its group wants it to work yet,
//! and for people what it is.
//!
//! Only what was asked for by a setting can keep the job from starting: without the store that a tag was to name, a job that
//! has snapshots would begin anew. Everything else is best effort; a baseline that cannot be found out is none, and that is told.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use reprieve_core::cpu::Fleet;
use reprieve_core::instances;
use reprieve_core::worker::{Machine, Purchase};
use reprieve_hooks::autoscaling::{AutoScaling, Kinds};
use reprieve_hooks::ec2::{Ec2, TAG_JOB, TAG_QUEUE, TAG_STORE};
use reprieve_hooks::ec2_metadata::{self, TargetState};
use reprieve_hooks::http::BadEndpoint;
use reprieve_hooks::presence::Fault;
use reprieve_hooks::{azure, ecs, gcp};
use tokio::time::{sleep, timeout};

use crate::aws;
use crate::cures;
use crate::failure::{ExitCode, Failure};
use crate::queue;
use crate::settings::{CpuBaseline, DefaultsFromTags, InstanceTags, OnWarmPool, Settings};
use crate::sources::{azure_options, ec2_options, gcp_options};

/// The tags that settings come from.
const TAGS: [(&str, &str); 3] = [("store", TAG_STORE), ("job", TAG_JOB), ("queue", TAG_QUEUE)];

/// How long a machine that may be in a warm pool may take to say so, before the job starts.
const STATE_LIMIT: Duration = Duration::from_secs(2);

/// How long it may take to find out what the machines of a group have, before the job starts.
const FLEET_LIMIT: Duration = Duration::from_secs(15);

/// How long the machine may take to say what it is; nothing waits for it.
const INTRODUCTION_LIMIT: Duration = Duration::from_secs(30);

/// Adds what the machine's tags say to settings that want it.
///
/// # Errors
/// When they cannot be read, or are not what their settings can be.
pub async fn complete(settings: Settings) -> Result<Settings, Failure> {
    if settings.defaults_from_tags == DefaultsFromTags::Off || settings.unsaid.is_empty() {
        return Ok(settings);
    }
    let read = timeout(settings.boot_timeout, tags(&settings)).await;
    let found =
        read.unwrap_or_else(|_| Err(format!("no answer within {:?}", settings.boot_timeout)));
    let found = found.map_err(|reason| {
        let what = "the tags of this machine cannot be read, and settings are to come from them";
        Failure::new(ExitCode::FailedBeforeReady, what)
            .detail(reason)
            .remedy(
                "let the instance have its tags in its metadata (--instance-metadata-tags enabled) or its role \
                 ec2:DescribeTags; or give --store, --job and --queue, or set --defaults-from-tags off",
            )
    })?;
    for (name, tag) in TAGS {
        if let Some(value) = found.get(name).filter(|_| settings.unsaid.contains(&name)) {
            tracing::info!(tag, value, "a tag of this machine is taken as a setting");
        }
    }
    Ok(settings.with_tags(&found)?)
}

/// By the names of the settings.
async fn tags(settings: &Settings) -> Result<BTreeMap<&'static str, String>, String> {
    let ours = |all: &BTreeMap<String, String>| {
        let found = TAGS.into_iter();
        found
            .filter_map(|(name, tag)| Some((name, all.get(tag)?.clone())))
            .collect::<BTreeMap<_, _>>()
    };
    let unanswered = match ec2_options(settings) {
        Ok(Some(options)) => match ec2_metadata::instance(&options).await {
            // Without any tag of ours it may have been started without tags in its metadata.
            Ok(instance) if !ours(&instance.tags).is_empty() => return Ok(ours(&instance.tags)),
            Ok(_) => None,
            Err(fault) => Some(fault.reason),
        },
        Ok(None) => Some("the metadata service is switched off".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    let described = async {
        let instance = queue::instance(settings).await;
        let instance = instance.ok_or("which machine this is is not known")?;
        let ec2 = ec2().await.ok_or("no region is set")?;
        ec2.tags(&instance).await.map_err(|error| error.to_string())
    };
    let described = described.await;
    described.map(|all| ours(&all)).map_err(|reason| {
        let unanswered =
            unanswered.unwrap_or_else(|| "there are no tags in the metadata".to_owned());
        format!("{unanswered}; {reason}")
    })
}

/// EC2 of this region.
pub(crate) async fn ec2() -> Option<Ec2> {
    let endpoint = ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    Ec2::new(&aws::shared(None).await, aws::connector(), endpoint)
}

/// Waits while this machine is only being prepared. One that does not say so at once is not.
pub(crate) async fn wait_for_service(settings: &Settings) {
    if settings.on_warm_pool == OnWarmPool::Start || !may_be(Cloud::Ec2, settings) {
        return;
    }
    let Ok(Some(options)) = ec2_options(settings) else {
        return;
    };
    let mut waits = false;
    loop {
        let asked = timeout(STATE_LIMIT, ec2_metadata::target_state(&options)).await;
        match asked {
            Ok(Ok(Some(TargetState::Warmed | TargetState::WarmedTerminated))) => {
                if !waits {
                    tracing::info!(
                        "this machine is being prepared in a warm pool; the job is started when it is to be in service"
                    );
                }
                waits = true;
            }
            // What was said before counts until something else is.
            Ok(Err(_)) | Err(_) if waits => {}
            _ => return,
        }
        sleep(settings.metadata_poll).await;
    }
}

/// Replaces a baseline that is to follow from the launch template by what follows from it.
pub async fn held_to_its_fleet(mut settings: Settings) -> Settings {
    if settings.cpu_baseline != CpuBaseline::LaunchTemplate {
        return settings;
    }
    let found = timeout(FLEET_LIMIT, fleet(&settings)).await;
    let found = found.unwrap_or_else(|_| Err(format!("no answer within {FLEET_LIMIT:?}")));
    settings.cpu_baseline = match found {
        Ok((types, fleet)) => {
            tracing::info!(
                baseline = fleet.level.as_str(),
                types = types.join(", "),
                "the CPU baseline is what all instance types of this machine's group have"
            );
            cures::tell_lacking(&fleet);
            CpuBaseline::Level(fleet.level)
        }
        Err(reason) => {
            tracing::warn!(
                reason,
                "no CPU baseline follows from the launch template; an app that is started from scratch is held to none"
            );
            CpuBaseline::Off
        }
    };
    settings
}

async fn fleet(settings: &Settings) -> Result<(Vec<String>, Fleet), String> {
    let instance = queue::instance(settings).await;
    let instance = instance.ok_or("which machine this is is not known")?;
    let scaling = AutoScaling::new(&aws::shared(None).await, Duration::ZERO);
    let types = match scaling.kinds(&instance).await? {
        Kinds::Types(types) => types,
        Kinds::Of(template) => {
            let ec2 = ec2().await.ok_or("no region is set")?;
            let found = ec2.template_type(&template).await;
            let found = found.map_err(|error| error.to_string())?;
            vec![found.ok_or("the launch template names no instance type")?]
        }
    };
    let fleet = instances::common(types.iter().map(String::as_str))?;
    Ok((types, fleet))
}

/// The clouds whose machines say what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    Ec2,
    Google,
    Azure,
}

/// Which cloud this machine may be of. Elsewhere nobody answers, and no job need wait to find that out.
fn may_be(cloud: Cloud, settings: &Settings) -> bool {
    let says = |path: &str, what: &str| {
        let text = std::fs::read_to_string(Path::new(path));
        text.is_ok_and(|text| text.to_ascii_lowercase().starts_with(what))
    };
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match cloud {
        Cloud::Ec2 => {
            settings.ec2_metadata_endpoint.is_some()
                || settings.instance_tags == InstanceTags::On
                || set("AWS_EC2_METADATA_SERVICE_ENDPOINT")
                || says("/sys/class/dmi/id/board_vendor", "amazon ec2")
                || says("/sys/hypervisor/uuid", "ec2")
        }
        Cloud::Google => {
            settings.gcp_metadata_endpoint.is_some()
                || set("GCE_METADATA_HOST")
                || says("/sys/class/dmi/id/product_name", "google compute engine")
        }
        Cloud::Azure => {
            settings.azure_metadata_endpoint.is_some()
                || says(
                    "/sys/class/dmi/id/chassis_asset_tag",
                    "7783-7084-3265-9085-8269-3286-77",
                )
        }
    }
}

/// What the machine said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduced {
    /// Its name in its cloud.
    pub(crate) instance: String,
    pub(crate) machine: Machine,
}

/// Asks what this machine, and what this task, is, and says so.
pub(crate) async fn introduce(settings: Settings) -> Option<Introduced> {
    let told = async {
        match ecs::task(|name| std::env::var(name).ok()).await {
            Ok(Some(task)) => tracing::info!(
                cluster = task.cluster,
                arn = task.arn,
                family = task.family,
                launch_type = task.launch_type,
                "this is a task of ECS"
            ),
            Ok(None) => {}
            Err(fault) => tracing::debug!(
                reason = fault.reason,
                "ECS does not tell which task this is"
            ),
        }
        for cloud in [Cloud::Ec2, Cloud::Google, Cloud::Azure] {
            if !may_be(cloud, &settings) {
                continue;
            }
            match ask(cloud, &settings).await {
                Ok(introduced) => return Some(introduced),
                Err(reason) => {
                    tracing::debug!(reason, "the cloud does not tell which machine this is");
                }
            }
        }
        None
    };
    let introduced = timeout(INTRODUCTION_LIMIT, told).await.ok().flatten()?;
    let Introduced { instance, machine } = &introduced;
    tracing::info!(
        cloud = machine.cloud,
        instance,
        r#type = machine.kind,
        zone = machine.zone,
        purchase = machine.purchase.map(Purchase::as_str),
        "this is a machine of a cloud"
    );
    Some(introduced)
}

async fn ask(cloud: Cloud, settings: &Settings) -> Result<Introduced, String> {
    let fault = |fault: Fault| fault.reason;
    let address = |error: BadEndpoint| error.to_string();
    let (cloud, instance, kind, zone, purchase) = match cloud {
        Cloud::Ec2 => {
            let asked = match ec2_options(settings).map_err(address)? {
                Some(options) => ec2_metadata::instance(&options).await.map_err(fault),
                None => Err("the metadata service is switched off".to_owned()),
            };
            match asked {
                Ok(found) => {
                    let zone = Some(found.zone);
                    ("ec2", found.id, found.kind, zone, found.purchase)
                }
                // Its role may ask EC2 itself.
                Err(_) if settings.instance_tags == InstanceTags::On => {
                    let instance = queue::instance(settings).await;
                    let instance = instance.ok_or("which machine this is is not known")?;
                    let ec2 = ec2().await.ok_or("no region is set")?;
                    let found = ec2.machine(&instance).await;
                    let found = found.map_err(|error| error.to_string())?;
                    let purchase = Some(found.purchase);
                    ("ec2", instance, found.instance_type, None, purchase)
                }
                Err(reason) => return Err(reason),
            }
        }
        Cloud::Google => {
            let options = gcp_options(settings).map_err(address)?;
            let found = gcp::instance(&options).await.map_err(fault)?;
            (
                "gcp",
                found.name,
                found.kind,
                Some(found.zone),
                found.purchase,
            )
        }
        Cloud::Azure => {
            let options = azure_options(settings).map_err(address)?;
            let found = azure::instance(&options).await.map_err(fault)?;
            let zone = Some(found.zone);
            ("azure", found.name, found.kind, zone, found.purchase)
        }
    };
    Ok(Introduced {
        instance,
        machine: Machine {
            cloud: cloud.to_owned(),
            kind: Some(kind),
            zone,
            purchase,
        },
    })
}
