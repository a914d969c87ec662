//! A `Rollout` of Argo Rollouts with its `AnalysisTemplate`s.

use super::document::{Document, Node, kinds};
use super::metric::{Check, Checks, bound};
use super::{ImportError, Imported, Notes};
use llm_rollout::plan::Standby;
use llm_rollout::presets::Gates;
use llm_rollout::presets::argo::{Analysis, BlueGreen, Canary, Promotion, Step};
use llm_rollout::{Plan, PlanError, PlanSpec};
use std::collections::BTreeMap;
use std::time::Duration;

/// The plan of a `Rollout`, whose templates are in the same text.
///
/// # Errors
/// It cannot be read, holds no `Rollout`, names a template that is not there, or makes no plan.
pub fn argo(text: &str) -> Result<Imported, ImportError> {
    let documents = Document::all(text)?;
    let Some(rollout) = documents.iter().find(|d| d.kind() == "Rollout") else {
        return Err(ImportError::Nothing {
            wanted: "a `Rollout`",
            found: kinds(&documents),
        });
    };
    let mut import = Import {
        templates: templates(&documents)?,
        checks: Checks::default(),
        notes: Notes::default(),
    };
    let root = rollout.root();
    root.pass(&["apiVersion", "kind", "metadata", "status"]);
    let spec = root.need("spec")?;
    spec.pass(&[
        "replicas",
        "selector",
        "template",
        "workloadRef",
        "minReadySeconds",
        "revisionHistoryLimit",
    ]);
    let strategy = spec.need("strategy")?;
    let progress = match spec.get("progressDeadlineSeconds") {
        Some(node) => node.seconds()?,
        None => Duration::from_secs(600),
    };
    let mut plan = if let Some(canary) = strategy.get("canary") {
        import.canary(&canary, progress)?
    } else if let Some(switch) = strategy.get("blueGreen") {
        import.blue_green(&switch)?
    } else {
        return Err(ImportError::Missing {
            place: "spec.strategy.canary".to_owned(),
        });
    };
    let notes = &mut import.notes;
    notes.left_if(
        &spec,
        "progressDeadlineAbort",
        "a share that routers do not confirm in time always goes back",
    );
    notes.left_if(
        &spec,
        "rollbackWindow",
        "set on the endpoint: how many versions back may be returned to without gates",
    );
    notes.left_if(
        &spec,
        "paused",
        "hold the rollout by name once it is submitted",
    );
    if let Some(dynamic) = strategy
        .get("canary")
        .and_then(|c| c.get("dynamicStableScale"))
        && dynamic.flag()?
    {
        plan.recovery.standby = Standby::Cold;
        notes.differs(
            &dynamic,
            "the baseline is scaled down only while the candidate serves everybody; going back loads it first",
        );
    }
    notes.unread(&root);
    for template in import.templates.values() {
        import.notes.unread(template);
    }
    Ok(Imported {
        plan: Plan::try_from(plan)?,
        notes: import.notes.0,
    })
}

fn templates(documents: &[Document]) -> Result<BTreeMap<String, Node<'_>>, ImportError> {
    let mut found = BTreeMap::new();
    for document in documents {
        if !matches!(
            document.kind(),
            "AnalysisTemplate" | "ClusterAnalysisTemplate"
        ) {
            continue;
        }
        let name = document.name()?;
        let root = document.named(name);
        root.pass(&["apiVersion", "kind", "metadata"]);
        found.insert(name.to_owned(), root);
    }
    Ok(found)
}

struct Import<'a> {
    templates: BTreeMap<String, Node<'a>>,
    /// The checks of all templates in use, by metric.
    checks: Checks,
    notes: Notes,
}

/// How long the two versions stay up: after going back, after promotion.
fn delays(node: &Node<'_>, notes: &mut Notes) -> Result<(Duration, Duration), ImportError> {
    let usual = Duration::from_secs(30);
    let abort = match node.get("abortScaleDownDelaySeconds") {
        Some(node) => {
            let delay = node.seconds()?;
            if delay.is_zero() {
                notes.differs(
                    &node,
                    "0 keeps the candidate up there; here it is always retired once it has drained",
                );
                usual
            } else {
                delay
            }
        }
        None => usual,
    };
    let keep = node.get("scaleDownDelaySeconds").map(|n| n.seconds());
    Ok((abort, keep.transpose()?.unwrap_or(usual)))
}

impl Import<'_> {
    fn canary(
        &mut self,
        canary: &Node<'_>,
        progress_deadline: Duration,
    ) -> Result<PlanSpec, ImportError> {
        canary.pass(&["canaryService", "stableService", "pingPong"]);
        for (key, text) in [
            (
                "trafficRouting",
                "which router splits the traffic is the endpoint's business, not the plan's",
            ),
            (
                "maxSurge",
                "how many replicas run is the backend's business",
            ),
            (
                "maxUnavailable",
                "how many replicas run is the backend's business",
            ),
            (
                "minPodsPerReplicaSet",
                "how many replicas run is the backend's business",
            ),
            (
                "antiAffinity",
                "where replicas run is the backend's business",
            ),
            (
                "canaryMetadata",
                "labels of pods are the backend's business",
            ),
            (
                "stableMetadata",
                "labels of pods are the backend's business",
            ),
        ] {
            self.notes.left_if(canary, key, text);
        }
        let mut steps = Vec::new();
        for step in canary.list("steps")? {
            if let Some(weight) = step.get("setWeight") {
                steps.push(Step::SetWeight(weight.number()?));
            } else if let Some(pause) = step.get("pause") {
                pause.seen();
                let time = pause.get("duration").map(|d| d.duration()).transpose()?;
                steps.push(Step::Pause(time));
            } else if let Some(analysis) = step.get("analysis") {
                let mut run = self.analysis(&analysis)?;
                if run.takes.is_zero() {
                    run.takes = Duration::from_secs(300);
                    self.notes.differs(&analysis, "it ends with one measurement, or never; here evidence needs requests: the stage lasts 5 minutes, and longer while samples are missing");
                }
                steps.push(Step::Analysis(run));
            } else if step.get("setMirrorRoute").is_some() {
                self.notes.left(
                    &step,
                    "write `mirror` into a stage, and compare the pairs with a gate",
                );
            } else if step.get("setHeaderRoute").is_some() {
                self.notes.left(&step, "requests that name a version are served it by a policy of the endpoint; they are no evidence");
            } else if step.get("experiment").is_some() {
                self.notes.left(
                    &step,
                    "write `control` into a stage: a slice of the baseline of the candidate's size",
                );
            } else {
                self.notes
                    .left(&step, "this step has no counterpart in a plan");
            }
        }
        if let Some(analysis) = canary.get("analysis") {
            analysis.pass(&["startingStep"]);
            self.analysis(&analysis)?;
            self.notes.differs(
                &analysis,
                "gates watch from the first share on, not from a step on",
            );
        }
        let mut preset = Canary::new(steps);
        preset.progress_deadline = progress_deadline;
        let (abort, keep) = delays(canary, &mut self.notes)?;
        preset.abort_scale_down_delay = abort;
        preset.scale_down_delay = keep;
        Ok(self.finish(|gates| preset.plan(gates))?)
    }

    fn blue_green(&mut self, switch: &Node<'_>) -> Result<PlanSpec, ImportError> {
        switch.pass(&["activeService", "previewService"]);
        for (key, text) in [
            (
                "previewReplicaCount",
                "how many replicas run is the backend's business",
            ),
            (
                "antiAffinity",
                "where replicas run is the backend's business",
            ),
            (
                "activeMetadata",
                "labels of pods are the backend's business",
            ),
            (
                "previewMetadata",
                "labels of pods are the backend's business",
            ),
            (
                "scaleDownDelayRevisionLimit",
                "how many old versions stay warm is the backend's business",
            ),
            (
                "prePromotionAnalysis",
                "nobody is on the preview, so no metric of users can be measured there: evaluate it before deployment (`pre_flight`), or mirror requests and compare pairs",
            ),
        ] {
            self.notes.left_if(switch, key, text);
        }
        let automatic = match switch.get("autoPromotionEnabled") {
            Some(node) => node.flag()?,
            None => true,
        };
        let wait = switch
            .get("autoPromotionSeconds")
            .map(|n| n.seconds())
            .transpose()?;
        let after = switch
            .get("postPromotionAnalysis")
            .map(|node| self.analysis(&node))
            .transpose()?;
        let (abort, keep) = delays(switch, &mut self.notes)?;
        let preset = BlueGreen {
            promotion: match (automatic, wait) {
                (_, Some(wait)) => Promotion::After(wait),
                (true, None) => Promotion::After(Duration::ZERO),
                (false, None) => Promotion::Manual,
            },
            after,
            abort_scale_down_delay: abort,
            scale_down_delay: keep,
            ..BlueGreen::default()
        };
        Ok(self.finish(|gates| preset.plan(gates))?)
    }

    fn finish(
        &mut self,
        preset: impl FnOnce(Gates) -> Result<Plan, PlanError>,
    ) -> Result<PlanSpec, PlanError> {
        let plan = std::mem::take(&mut self.checks).plan(&mut self.notes, preset)?;
        Ok(plan.spec().clone())
    }

    /// The metrics of an analysis, and how long it takes.
    fn analysis(&mut self, analysis: &Node<'_>) -> Result<Analysis, ImportError> {
        analysis.pass(&["args", "analysisRunMetadata", "measurementRetention"]);
        let dry: Vec<_> = analysis
            .list("dryRun")?
            .iter()
            .filter_map(|d| d.get("metricName"))
            .map(|name| name.text())
            .collect::<Result<_, _>>()?;
        let (mut metrics, mut takes) = (Vec::new(), Duration::ZERO);
        for reference in analysis.list("templates")? {
            reference.pass(&["clusterScope"]);
            let name = reference.need("templateName")?;
            let template = self.templates.get(name.text()?).cloned();
            let Some(template) = template else {
                return Err(ImportError::Dangling {
                    place: name.place().to_owned(),
                    what: "AnalysisTemplate",
                    name: name.text()?.to_owned(),
                });
            };
            let spec = template.need("spec")?;
            spec.pass(&["args"]);
            let rehearsed: Vec<_> = spec
                .list("dryRun")?
                .iter()
                .filter_map(|d| d.get("metricName"))
                .map(|name| name.text())
                .collect::<Result<_, _>>()?;
            for metric in spec.list("metrics")? {
                let (name, time) = self.metric(&metric)?;
                takes = takes.max(time);
                if let Some(check) = self.checks.get_mut(&name) {
                    check.dry_run |= dry
                        .iter()
                        .chain(&rehearsed)
                        .any(|d| *d == name || *d == ".*");
                    if !check.dry_run {
                        metrics.push(name);
                    }
                }
            }
        }
        Ok(Analysis { metrics, takes })
    }

    fn metric(&mut self, metric: &Node<'_>) -> Result<(String, Duration), ImportError> {
        let name = metric.need("name")?.text()?.to_owned();
        let interval = metric.get("interval").map(|n| n.duration()).transpose()?;
        let count = metric.get("count").map(|n| n.count()).transpose()?;
        let delay = metric
            .get("initialDelay")
            .map(|n| n.duration())
            .transpose()?;
        let measurements = count.unwrap_or(1).clamp(1, 1_000_000);
        let takes = interval
            .unwrap_or_default()
            .saturating_mul(measurements - 1)
            .saturating_add(delay.unwrap_or_default());
        if self.checks.get_mut(&name).is_some() {
            metric.seen();
            return Ok((name, takes));
        }
        let provider = metric.get("provider");
        let query = provider
            .as_ref()
            .map(|p| {
                p.seen();
                p.search("query").unwrap_or_default()
            })
            .unwrap_or_default();
        let success = metric.get("successCondition");
        let failure = metric.get("failureCondition");
        let bound = match (&success, &failure) {
            (Some(success), _) => bound(success.text()?, true),
            (None, Some(failure)) => bound(failure.text()?, false),
            (None, None) => None,
        };
        if let (Some(_), Some(failure)) = (&success, &failure) {
            self.notes.left(failure, "between success and failure there is no third answer here: the success condition alone was read");
        }
        let mut check = Check::read(metric, &name, &query, bound, &mut self.notes);
        if let Some(limit) = metric.get("failureLimit") {
            match limit.number()? {
                off if off < 0.0 => check.most = None,
                _ => check.failures = limit.count()?.saturating_add(1),
            }
        }
        for (key, text) in [
            (
                "inconclusiveLimit",
                "an inconclusive look extends the stage to its limit; then `outcomes.undecided`",
            ),
            (
                "consecutiveErrorLimit",
                "a source that fails is neither good nor bad data; after `triggers.no_verdict` the plan's `outcomes.no_verdict` follows",
            ),
            (
                "consecutiveSuccessLimit",
                "a stage advances when its gates pass",
            ),
        ] {
            self.notes.left_if(metric, key, text);
        }
        self.checks.add(check);
        Ok((name, takes))
    }
}
