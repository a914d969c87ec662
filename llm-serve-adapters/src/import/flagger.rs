//! A `Canary` of Flagger with its `MetricTemplate`s.

use super::document::{Document, Node, kinds};
use super::metric::{Bound, Check, Checks};
use super::{ImportError, Imported, Notes};
use llm_rollout::plan::Exposure;
use llm_rollout::presets::flagger::{Canary, Weights};
use llm_rollout::presets::{Gates, all_at_once};
use llm_rollout::{Plan, Share, StageSpec};
use std::collections::BTreeMap;
use std::time::Duration;

/// The plan of a `Canary`, whose templates are in the same text.
///
/// # Errors
/// It cannot be read, holds no `Canary`, names a template that is not there, or makes no plan.
pub fn flagger(text: &str) -> Result<Imported, ImportError> {
    let documents = Document::all(text)?;
    let Some(canary) = documents.iter().find(|d| d.kind() == "Canary") else {
        return Err(ImportError::Nothing {
            wanted: "a `Canary`",
            found: kinds(&documents),
        });
    };
    let templates = templates(&documents)?;
    let mut notes = Notes::default();
    let root = canary.root();
    root.pass(&["apiVersion", "kind", "metadata", "status"]);
    let spec = root.need("spec")?;
    for (key, text) in [
        (
            "service",
            "how requests reach the versions is the endpoint's business, not the plan's",
        ),
        (
            "ingressRef",
            "how requests reach the versions is the endpoint's business, not the plan's",
        ),
        (
            "routeRef",
            "how requests reach the versions is the endpoint's business, not the plan's",
        ),
        (
            "autoscalerRef",
            "how many replicas run is the backend's business",
        ),
        ("metricsServer", "set on the metric source"),
        (
            "revertOnDeletion",
            "a rollout that is aborted always leaves the baseline in place",
        ),
        ("suspend", "hold the rollout by name once it is submitted"),
    ] {
        notes.left_if(&spec, key, text);
    }
    spec.pass(&["targetRef", "provider"]);
    let skipped = spec.get("skipAnalysis").map(|n| (n.flag(), n));
    let plan = if let Some((skip, node)) = skipped
        && skip?
    {
        spec.pass(&["analysis"]);
        notes.differs(
            &node,
            "everybody at once, with nothing but alarms, dead-man's switches and people to send it back",
        );
        all_at_once(Gates::nothing(), Duration::ZERO, Duration::from_secs(3600))?
    } else {
        analysed(&spec, &templates, &mut notes)?
    };
    let plan = match spec.get("progressDeadlineSeconds") {
        Some(deadline) => {
            let mut written = plan.spec().clone();
            written.outcomes.warm = deadline.seconds()?;
            Plan::try_from(written)?
        }
        None => plan,
    };
    notes.unread(&root);
    for template in templates.values() {
        notes.unread(template);
    }
    Ok(Imported {
        plan,
        notes: notes.0,
    })
}

fn templates(documents: &[Document]) -> Result<BTreeMap<String, Node<'_>>, ImportError> {
    let mut found = BTreeMap::new();
    for document in documents.iter().filter(|d| d.kind() == "MetricTemplate") {
        let name = document.name()?;
        let root = document.named(name);
        root.pass(&["apiVersion", "kind", "metadata"]);
        found.insert(name.to_owned(), root);
    }
    Ok(found)
}

fn analysed(
    spec: &Node<'_>,
    templates: &BTreeMap<String, Node<'_>>,
    notes: &mut Notes,
) -> Result<Plan, ImportError> {
    let analysis = spec.need("analysis")?;
    let interval = analysis.need("interval")?.duration()?;
    let threshold = match analysis.get("threshold") {
        Some(node) => node.count()?.max(1),
        None => 1,
    };
    let weights = weights(&analysis, notes)?;
    let mut checks = Checks::default();
    for metric in analysis.list("metrics")? {
        let mut check = check(&metric, templates, notes)?;
        check.failures = threshold;
        checks.add(check);
    }
    let confirm_promotion = webhooks(&analysis, notes)?;
    for (key, text) in [
        (
            "match",
            "put the requests that match on an endpoint of their own, or pin them by a policy: pinned requests are no evidence",
        ),
        ("sessionAffinity", "assignment is sticky by key always"),
        ("alerts", "register a notifier with the endpoint"),
        (
            "stepWeightPromotion",
            "promotion moves no traffic twice: the candidate itself becomes the baseline",
        ),
        (
            "primaryReadyThreshold",
            "a version is ready once it has answered real generations",
        ),
        (
            "canaryReadyThreshold",
            "a version is ready once it has answered real generations",
        ),
    ] {
        notes.left_if(&analysis, key, text);
    }
    let preset = Canary {
        interval,
        weights,
        threshold,
        confirm_promotion,
    };
    let plan = checks.plan(notes, |gates| preset.plan(gates))?;
    mirrored(&analysis, plan, interval, notes)
}

fn weights(analysis: &Node<'_>, notes: &mut Notes) -> Result<Weights, ImportError> {
    if let Some(node) = analysis.get("iterations") {
        return Ok(Weights::Iterations(node.count()?));
    }
    if analysis.get("stepWeights").is_some() {
        analysis.pass(&["maxWeight", "stepWeight"]);
        let weights: Result<_, _> = analysis
            .list("stepWeights")?
            .iter()
            .map(Node::number)
            .collect();
        return Ok(Weights::List(weights?));
    }
    let step = analysis.need("stepWeight")?.number()?;
    let most = analysis.get("maxWeight");
    let max_weight = match &most {
        Some(node) => node.number()?,
        None => 100.0,
    };
    if let Some(node) = most
        && (max_weight / step).fract() != 0.0
    {
        notes.differs(
            &node,
            "the last step ends at this weight, there it goes past it",
        );
    }
    Ok(Weights::Step {
        step_weight: step,
        max_weight,
    })
}

fn check(
    metric: &Node<'_>,
    templates: &BTreeMap<String, Node<'_>>,
    notes: &mut Notes,
) -> Result<Check, ImportError> {
    let name = metric.need("name")?.text()?;
    metric.pass(&["interval", "templateVariables"]);
    let mut query = metric
        .get("query")
        .map(|q| q.text())
        .transpose()?
        .unwrap_or_default()
        .to_owned();
    if let Some(reference) = metric.get("templateRef") {
        reference.seen();
        let wanted = reference.need("name")?.text()?;
        let Some(template) = templates.get(wanted) else {
            return Err(ImportError::Dangling {
                place: reference.place().to_owned(),
                what: "MetricTemplate",
                name: wanted.to_owned(),
            });
        };
        let spec = template.need("spec")?;
        spec.seen();
        query = spec.search("query").unwrap_or_default();
    }
    let range = metric.get("thresholdRange");
    let least = range
        .as_ref()
        .and_then(|r| r.get("min"))
        .map(|n| n.number());
    let most = range
        .as_ref()
        .and_then(|r| r.get("max"))
        .map(|n| n.number());
    let bound = match (
        least.transpose()?,
        most.transpose()?,
        metric.get("threshold"),
    ) {
        (Some(least), None, _) => Some(Bound::AtLeast(least)),
        (None, Some(most), _) => Some(Bound::AtMost(most)),
        (Some(_), Some(_), _) | (None, None, None) => None,
        (None, None, Some(old)) if name == "request-success-rate" => {
            Some(Bound::AtLeast(old.number()?))
        }
        (None, None, Some(old)) => Some(Bound::AtMost(old.number()?)),
    };
    Ok(Check::read(metric, name, &query, bound, notes))
}

/// Whether a person lets it be promoted; the other hooks are told.
fn webhooks(analysis: &Node<'_>, notes: &mut Notes) -> Result<bool, ImportError> {
    let mut confirm = false;
    for hook in analysis.list("webhooks")? {
        let kind = match hook.get("type") {
            Some(node) => node.text()?,
            None => "rollout",
        };
        hook.seen();
        let text = match kind {
            "confirm-promotion" => {
                confirm = true;
                notes.differs(
                    &hook,
                    "a person approves the last stage, or a program that calls `approve`",
                );
                continue;
            }
            "confirm-rollout" => "submit the rollout when it may begin, or hold it by name",
            "confirm-traffic-increase" => {
                "hold the rollout by name, or write `advance = \"manual\"` into a stage"
            }
            "pre-rollout" => "evaluate before deployment: write the gates into `pre_flight`",
            "rollback" => "raise an alarm with the rollout: what it does is written in `triggers`",
            "post-rollout" | "event" => "register a notifier with the endpoint",
            _ => "load tests are no requests of users, so they are no evidence here",
        };
        notes.left(&hook, text);
    }
    Ok(confirm)
}

/// With a stage that mirrors before the first share.
fn mirrored(
    analysis: &Node<'_>,
    plan: Plan,
    interval: Duration,
    notes: &mut Notes,
) -> Result<Plan, ImportError> {
    let Some(mirror) = analysis.get("mirror") else {
        return Ok(plan);
    };
    if !mirror.flag()? {
        analysis.pass(&["mirrorWeight"]);
        return Ok(plan);
    }
    let percent = match analysis.get("mirrorWeight") {
        Some(node) => node.number()?,
        None => 100.0,
    };
    let share = Share::from_percent(percent)
        .map_err(|_| mirror.wrong("with a mirrorWeight from 0 to 100"))?;
    let mut spec = plan.spec().clone();
    if let Some(first) = spec.stages.first().cloned() {
        let stage = StageSpec {
            serve: Exposure(Share::NONE),
            mirror: Exposure(share),
            dwell: interval,
            needs: Some(Vec::new()),
            advance: llm_rollout::Advance::Auto,
            ..first
        };
        spec.stages.insert(0, stage);
    }
    notes.differs(&mirror, "requests are mirrored for one interval before the first share; answers count only where a gate compares pairs");
    Ok(spec.try_into()?)
}
