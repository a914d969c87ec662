//! The deployment configuration of Amazon `SageMaker`: an `UpdateEndpoint` request, the `DeploymentConfig` in it, an endpoint in a
//! `CloudFormation` template, or a shadow test (`CreateInferenceExperiment`).

use super::document::{Document, Node, kinds};
use super::{ImportError, Imported, Notes};
use llm_rollout::presets::Gates;
use llm_rollout::presets::sagemaker::{Deployment, Shift, shadow};
use std::time::Duration;

const WANTED: &str = "a `DeploymentConfig`, an `UpdateEndpoint` request, a CloudFormation endpoint or a shadow `InferenceExperiment`";

/// The plan of a deployment configuration or of a shadow test.
///
/// The alarms become triggers that roll back: feed them with [`crate::Endpoint::alarm`]. They are all that watches, as there, so the
/// plan is `ungated` until gates are added.
///
/// # Errors
/// It cannot be read, is no such configuration, or is outside the platform's own limits.
pub fn sagemaker(text: &str) -> Result<Imported, ImportError> {
    let documents = Document::all(text)?;
    for document in &documents {
        let root = document.root();
        let mut notes = Notes::default();
        let plan = if let Some(config) = configuration(&root) {
            deployment(&config, &mut notes)?.plan(Gates::nothing())?
        } else if let Some(mode) = root.get("ShadowModeConfig") {
            shadow_test(&root, &mode, &mut notes)?
        } else {
            continue;
        };
        root.pass(&[
            "AWSTemplateFormatVersion",
            "Description",
            "EndpointName",
            "Name",
            "RoleArn",
            "Type",
        ]);
        notes.unread(&root);
        return Ok(Imported {
            plan,
            notes: notes.0,
        });
    }
    Err(ImportError::Nothing {
        wanted: WANTED,
        found: kinds(&documents),
    })
}

/// The configuration, wherever it is written.
fn configuration<'a>(root: &Node<'a>) -> Option<Node<'a>> {
    if let Some(config) = root.get("DeploymentConfig") {
        return Some(config);
    }
    if root.get("BlueGreenUpdatePolicy").is_some() || root.get("RollingUpdatePolicy").is_some() {
        return Some(root.clone());
    }
    let resources = root.get("Resources")?;
    resources.fields().into_iter().find_map(|resource| {
        let config = resource.get("Properties")?.get("DeploymentConfig")?;
        resource.pass(&["Type"]);
        Some(config)
    })
}

fn deployment(config: &Node<'_>, notes: &mut Notes) -> Result<Deployment, ImportError> {
    let mut deployment = if let Some(policy) = config.get("BlueGreenUpdatePolicy") {
        blue_green(&policy, notes)?
    } else if let Some(policy) = config.get("RollingUpdatePolicy") {
        rolling(&policy, notes)?
    } else {
        return Err(ImportError::Missing {
            place: format!("{}.BlueGreenUpdatePolicy", config.place()),
        });
    };
    if let Some(auto) = config.get("AutoRollbackConfiguration") {
        for alarm in auto.list("Alarms")? {
            let name = alarm.need("AlarmName")?;
            deployment.alarms.push(name.text()?.to_owned());
        }
    }
    if deployment.alarms.is_empty() {
        notes.add(
            config.place(),
            super::Carried::Differently,
            "no alarm and no gate sends the candidate back, only dead-man's switches and people, and the plan says so: add `metrics` and `gates`, and remove `ungated`",
        );
    } else {
        notes.add(
            config.place(),
            super::Carried::Differently,
            format!(
                "{} alarms go back from the first share to the end of baking; call the rollout's alarm with each name, and add `metrics` and `gates`, which need no threshold",
                deployment.alarms.len()
            ),
        );
    }
    Ok(deployment)
}

fn blue_green(policy: &Node<'_>, notes: &mut Notes) -> Result<Deployment, ImportError> {
    let routing = policy.need("TrafficRoutingConfiguration")?;
    let kind = routing.need("Type")?;
    let shift = match kind.text()? {
        "ALL_AT_ONCE" => Shift::AllAtOnce,
        "CANARY" => Shift::Canary(size(&routing.need("CanarySize")?, notes)?),
        "LINEAR" => Shift::Linear(size(&routing.need("LinearStepSize")?, notes)?),
        _ => return Err(kind.wrong("ALL_AT_ONCE, CANARY or LINEAR")),
    };
    let mut deployment = Deployment::new(shift);
    if let Some(wait) = routing.get("WaitIntervalInSeconds") {
        deployment.wait = wait.seconds()?;
    }
    if let Some(wait) = policy.get("TerminationWaitInSeconds") {
        deployment.termination_wait = wait.seconds()?;
    }
    if let Some(limit) = policy.get("MaximumExecutionTimeoutInSeconds") {
        deployment.max_execution = limit.seconds()?;
        notes.differs(
            &limit,
            "bounds each stage, not their sum; a stage that reaches it goes back",
        );
    }
    Ok(deployment)
}

fn rolling(policy: &Node<'_>, notes: &mut Notes) -> Result<Deployment, ImportError> {
    let batch = policy.need("MaximumBatchSize")?;
    let mut deployment = Deployment::new(Shift::Rolling(size(&batch, notes)?));
    notes.differs(
        &batch,
        "batches of instances become shares of traffic: the fleet itself is the backend's business",
    );
    deployment.wait = policy.need("WaitIntervalInSeconds")?.seconds()?;
    if let Some(limit) = policy.get("MaximumExecutionTimeoutInSeconds") {
        deployment.max_execution = limit.seconds()?;
        notes.differs(
            &limit,
            "bounds each stage, not their sum; a stage that reaches it goes back",
        );
    }
    if let Some(back) = policy.get("RollbackMaximumBatchSize") {
        notes.left(&back, "going back is one split, for everybody at once");
    }
    Ok(deployment)
}

/// A size in per cent. Instances are none: how many there are is not in the file.
fn size(size: &Node<'_>, notes: &mut Notes) -> Result<f64, ImportError> {
    let kind = size.need("Type")?;
    let value = size.need("Value")?;
    match kind.text()? {
        "CAPACITY_PERCENT" => value.number(),
        "INSTANCE_COUNT" => {
            notes.differs(
                size,
                "a number of instances is no share of traffic: taken as 10 %, write the share that you mean",
            );
            value.seen();
            Ok(10.0)
        }
        _ => Err(kind.wrong("CAPACITY_PERCENT or INSTANCE_COUNT")),
    }
}

fn shadow_test(
    root: &Node<'_>,
    mode: &Node<'_>,
    notes: &mut Notes,
) -> Result<llm_rollout::Plan, ImportError> {
    let mut names = Vec::new();
    let mut sampling = 0.0;
    for variant in mode.list("ShadowModelVariants")? {
        names.push(variant.need("ShadowModelVariantName")?.text()?);
        sampling = variant.need("SamplingPercentage")?.number()?;
    }
    mode.pass(&["SourceModelVariantName"]);
    let duration = match root.get("Schedule") {
        Some(schedule) => scheduled(&schedule, notes)?,
        None => Duration::from_secs(7 * 24 * 3600),
    };
    notes.differs(
        mode,
        "mirrored answers are compared by nobody there: add a metric `{ pair = \"…\" }` and a gate to compare them in pairs",
    );
    Ok(shadow(Gates::nothing(), &names, sampling, duration)?)
}

fn scheduled(schedule: &Node<'_>, notes: &mut Notes) -> Result<Duration, ImportError> {
    let (from, to) = (schedule.need("StartTime")?, schedule.need("EndTime")?);
    let (begin, end) = (from.instant()?, to.instant()?);
    notes.differs(
        schedule,
        "the duration is kept; when it begins is when the rollout is submitted",
    );
    end.duration_since(begin)
        .map_err(|_| to.wrong("later than StartTime"))
}
