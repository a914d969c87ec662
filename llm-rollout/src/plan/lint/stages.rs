//! What each stage can see, and whether it can be passed.

use super::view::{MIXTURE, POWER, View, count, needed, part, percent, time, words};
use super::{Findings, Severity};
use crate::plan::PassSpec;
use crate::{Share, StageSpec};
use llm_gates::planner;
use llm_gates::{Action, Threshold};
use std::time::Duration;

pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    for (i, stage) in view.stages() {
        check_power(view, i, stage, findings);
        check_samples(view, i, stage, findings);
        check_clock(view, i, stage, findings);
        check_exposure(view, i, stage, findings);
    }
    if let PassSpec::NonInferior { margin, beta } = view.spec.pass {
        check_proof(view, margin, beta, findings);
    }
    check_jumps(view, findings);
}

/// Whether the stage has found what it guards against before more users are exposed.
fn check_power(view: &View<'_>, i: usize, stage: &StageSpec, findings: &mut Findings) {
    let gates = view.spec.gates.iter().filter(|g| {
        !g.dry_run
            && g.action != Action::Warn
            && view.waits_for(stage, &g.metric)
            && !view.is_blind(g)
    });
    let weakest = gates
        .filter_map(|g| Some((view.found_by(i, g), g, view.detection(stage, g)?)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((found, gate, detection)) = weakest.filter(|(found, ..)| *found < POWER) else {
        return;
    };
    let (Some(expected), Some(wanted)) = (view.expected(&gate.metric), needed(&detection)) else {
        return;
    };
    let n = view.samples(stage, &gate.metric, stage.dwell);
    findings.add(
        Severity::Warning,
        "stage-too-short",
        format!("stages[{i}].dwell"),
        format!(
            "when it ends, {:?} has found a candidate that is {:.2} times as bad in {} of the cases: {} samples in {}, where {} are needed for {}",
            gate.metric,
            expected.effect,
            percent(found),
            count(n),
            words(stage.dwell),
            count(wanted),
            percent(POWER)
        ),
        format!(
            "stay for {}, or serve more",
            time(wanted / view.per_second(stage, &gate.metric))
        ),
    );
}

fn check_samples(view: &View<'_>, i: usize, stage: &StageSpec, findings: &mut Findings) {
    if stage.min_samples == 0 {
        return;
    }
    let (wanted, path) = (stage.min_samples as f64, format!("stages[{i}].min_samples"));
    let gates = view.spec.gates.iter().filter(|g| !g.dry_run);
    let needed = || gates.clone().filter(|g| view.waits_for(stage, &g.metric));
    if stage.serve.0 == Share::ALL
        && let Some(gate) = needed().find(|g| view.compared(stage, &g.metric).is_none())
    {
        findings.add(
            Severity::Error,
            "samples-without-baseline",
            path,
            format!("samples of {:?} count beside a baseline only, and at 100 % there is none: the stage can never pass", gate.metric),
            "min_samples = 0 in this stage, or serve less",
        );
        return;
    }
    let slowest = needed()
        .map(|g| (view.per_second(stage, &g.metric), g))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((rate, gate)) = slowest.filter(|(rate, _)| *rate > 0.0) else {
        return;
    };
    let (takes, longest) = (wanted / rate, stage.longest());
    let (severity, problem) = if takes > longest.as_secs_f64() {
        (
            Severity::Error,
            format!(
                "{wanted} samples of {:?} take {}, and the stage ends undecided after {}",
                gate.metric,
                time(takes),
                words(longest)
            ),
        )
    } else if takes > 1.5 * stage.dwell.as_secs_f64() {
        (
            Severity::Warning,
            format!(
                "{wanted} samples of {:?} take {}, not the {} of the dwell",
                gate.metric,
                time(takes),
                words(stage.dwell)
            ),
        )
    } else {
        return;
    };
    findings.add(
        severity,
        "samples-unreachable",
        path,
        problem,
        format!(
            "ask for at most {}, stay longer, or serve more",
            count(0.9 * rate * stage.dwell.as_secs_f64())
        ),
    );
}

/// Dwell is the sum of judged windows, each as long as the time between two looks.
fn check_clock(view: &View<'_>, i: usize, stage: &StageSpec, findings: &mut Findings) {
    let (look, longest) = (view.spec.look_every, stage.longest());
    let looks = (stage.dwell.as_secs_f64() / look.as_secs_f64())
        .ceil()
        .max(1.0);
    let least = look.as_secs_f64() * looks;
    if least > longest.as_secs_f64() {
        findings.add(
            Severity::Error,
            "limit-too-tight",
            format!("stages[{i}].limit"),
            format!(
                "with a look each {} the dwell of {} is reached after {}, and the limit of {} comes first: the stage can never pass",
                words(look),
                words(stage.dwell),
                time(least),
                words(longest)
            ),
            "raise the limit to twice the dwell, or look more often",
        );
    } else if look > stage.dwell && stage.dwell > Duration::ZERO {
        findings.add(
            Severity::Warning,
            "look-longer-than-dwell",
            "look_every",
            format!(
                "a stage is left at a look: stages[{i}] lasts {}, not its dwell of {}",
                words(look),
                words(stage.dwell)
            ),
            format!(
                "look each {} or more often: it costs no error budget",
                time(stage.dwell.as_secs_f64() / 10.0)
            ),
        );
    }
    if stage.dwell.is_zero() && stage.serve.0 > Share::NONE && stage.serve.0 < Share::ALL {
        findings.add(
            Severity::Warning,
            "no-dwell",
            format!("stages[{i}].dwell"),
            "without a dwell the stage is left at its first look",
            "give it the time in which harm would show",
        );
    }
}

fn check_exposure(view: &View<'_>, i: usize, stage: &StageSpec, findings: &mut Findings) {
    let spec = view.spec;
    let fed = |metric: &str| spec.feeds(stage, metric);
    let served = stage.serve.0 > Share::NONE;
    let compares = |metric: &str| {
        spec.metrics
            .get(metric)
            .is_some_and(crate::MetricDef::is_mirrored)
    };
    if stage.mirror.0 > Share::NONE
        && !spec.gates.iter().any(|g| compares(&g.metric))
        && !spec.thresholds.iter().any(|t| compares(&t.metric))
    {
        findings.add(
            Severity::Warning,
            "mirror-unwatched",
            format!("stages[{i}].mirror"),
            "requests are mirrored and paid for, and no gate compares the answers",
            "add a metric { pair = \"comparator\" } with a gate, or leave the mirror out",
        );
    }
    if !served || spec.ungated {
        return;
    }
    let watches_alone = spec.hard_limits.iter().any(|l| fed(&l.metric))
        || spec.thresholds.iter().any(|t| {
            fed(&t.metric) && !t.dry_run && matches!(t.worse_than, Threshold::Absolute(_))
        });
    let watched = spec.gates.iter().any(|g| fed(&g.metric) && !g.dry_run)
        || spec.thresholds.iter().any(|t| fed(&t.metric) && !t.dry_run);
    if !watched && !watches_alone {
        findings.add(
            Severity::Error,
            "stage-unwatched",
            format!("stages[{i}].serve"),
            format!(
                "{} % of the users get the candidate, and no gate has anything to count here",
                stage.serve.0.percent()
            ),
            "add a gate on what is measured of answers to users, such as { fault = {} }",
        );
    } else if stage.serve.0 == Share::ALL && !watches_alone {
        findings.add(
            Severity::Note,
            "blind-at-full-share",
            format!("stages[{i}].serve"),
            "at 100 % there is no baseline to compare with: gates learn nothing here, only alarms, switches and people watch",
            "add a hard limit under [[hard_limits]], or an absolute threshold",
        );
    }
    let (serve, control) = (part(stage.serve.0), part(stage.control.0));
    if control > 0.0 && control < 0.5 * serve {
        findings.add(
            Severity::Warning,
            "control-too-small",
            format!("stages[{i}].control"),
            format!(
                "{} is compared with a control arm of {}: its noise, not the candidate's, decides how long detection takes",
                stage.serve.0, stage.control.0
            ),
            "give it the candidate's share",
        );
    }
}

/// Whether an equal candidate can show that it is not worse by the margin.
fn check_proof(view: &View<'_>, margin: f64, beta: f64, findings: &mut Findings) {
    for (i, stage) in view.stages() {
        let gates =
            view.spec.gates.iter().filter(|g| {
                !g.dry_run && g.action != Action::Warn && view.waits_for(stage, &g.metric)
            });
        for gate in gates {
            let (Some(expected), Some(share)) = (
                view.expected(&gate.metric),
                view.compared(stage, &gate.metric),
            ) else {
                continue;
            };
            let Ok(needed) = planner::no_harm_needed(expected.rate, margin, share, beta, MIXTURE)
            else {
                continue;
            };
            let needed = needed * view.traffic.design_effect;
            let earlier: f64 = view
                .stages()
                .take(i)
                .map(|(_, s)| view.samples(s, &gate.metric, s.dwell))
                .sum();
            let most = earlier + view.samples(stage, &gate.metric, stage.longest());
            if needed > most {
                findings.add(
                    Severity::Error,
                    "proof-unreachable",
                    format!("stages[{i}].limit"),
                    format!(
                        "to show that {:?} is not {} worse takes an equal candidate about {} samples, and there are {} when the stage ends undecided",
                        gate.metric,
                        percent(margin),
                        count(needed),
                        count(most)
                    ),
                    format!(
                        "let the stage last {}, ask for a larger margin, or pass = \"no_evidence_of_harm\"",
                        time((needed - earlier) / view.per_second(stage, &gate.metric))
                    ),
                );
                break;
            }
        }
    }
}

fn check_jumps(view: &View<'_>, findings: &mut Findings) {
    let serving: Vec<_> = view
        .stages()
        .filter(|(_, s)| s.serve.0 > Share::NONE)
        .collect();
    let Some((first, stage)) = serving.first().copied() else {
        return;
    };
    let experiment = stage.control.0 >= stage.serve.0;
    if part(stage.serve.0) > 0.25 && !experiment && !view.spec.ungated {
        let all = stage.serve.0 == Share::ALL;
        findings.add(
            if all { Severity::Note } else { Severity::Warning },
            "first-stage-large",
            format!("stages[{first}].serve"),
            format!("the first users to see the candidate are {} of all", stage.serve.0),
            "begin with 1 to 5 %: detection takes as many requests at any share, and more of them are harmed before anybody can react",
        );
    }
    for pair in serving.windows(2) {
        let [(_, before), (i, after)] = pair else {
            continue;
        };
        let times = part(after.serve.0) / part(before.serve.0);
        if times > 10.0 + 1e-9 {
            findings.add(
                Severity::Warning,
                "jump",
                format!("stages[{i}].serve"),
                format!("from {} to {} in one step: what breaks under load breaks for {times:.0} times as many", before.serve.0, after.serve.0),
                "a stage between, so that no step is more than tenfold",
            );
        }
    }
}
