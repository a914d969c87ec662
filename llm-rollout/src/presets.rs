//! Plans for the usual strategies.
//!
//! Every strategy is a list of exposures for the one machine, so a preset is a function that writes the plan down: print it with
//! `toml::to_string`, review it, and change what does not fit. What is measured ([`Gates`]) is the same for all of them.
//!
//! ```
//! use llm_rollout::presets::{self, Pace, Gates};
//! use std::time::Duration;
//!
//! let gates = || Gates::usual(Duration::from_millis(800));
//! let hour = Duration::from_secs(3600);
//! let canary = presets::canary(gates(), presets::shares([1.0, 5.0, 25.0, 50.0])?, Pace::new(hour, 500))?;
//! assert_eq!(canary.stages().len(), 4);
//! let switch = presets::blue_green(gates(), presets::BlueGreen::default())?;
//! assert_eq!(switch.stages().len(), 2);
//! # Ok::<(), llm_rollout::PlanError>(())
//! ```

pub mod argo;
pub mod flagger;
pub mod sagemaker;

use crate::plan::{
    Exposure, Lease, Outcomes, PassSpec, PreFlightSpec, RecoverySpec, Triggers, Undecided,
};
use crate::{Advance, Finish, MetricDef, Plan, PlanError, PlanSpec, Share, StageSpec};
use llm_gates::planner::Detection;
use llm_gates::{Action, ColdStart, GateTable, LiveGate};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is measured, and what it must not show: the part of a plan that no strategy changes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gates {
    /// The probability that a harmless candidate is rolled back by statistics, over the whole rollout; in (0, 1).
    pub alpha: f64,
    /// What is measured, by name.
    pub metrics: BTreeMap<String, MetricDef>,
    /// What the metrics must not show.
    pub gates: Vec<LiveGate>,
    /// What must hold before any user sees the candidate.
    pub pre_flight: Option<PreFlightSpec>,
    /// What goes back by itself, besides gates.
    pub triggers: Triggers,
}

impl Gates {
    /// Nothing is measured: alarms, dead-man's switches and people alone send the candidate back.
    pub fn nothing() -> Self {
        Self {
            alpha: 0.05,
            metrics: BTreeMap::new(),
            gates: Vec::new(),
            pre_flight: None,
            triggers: Triggers::default(),
        }
    }

    /// Faults (60 % of the budget) and first tokens later than this (40 %, up to a fifth more is tolerated).
    pub fn usual(slow: Duration) -> Self {
        Self::nothing()
            .gate("faults", MetricDef::Fault {}, 0.6, 0.0)
            .gate("slow", MetricDef::FirstTokenOver(slow), 0.4, 0.2)
    }

    /// With a metric whose harm rolls back: its share of the budget, and the relative harm that is tolerated.
    #[must_use]
    pub fn gate(mut self, name: &str, what: MetricDef, weight: f64, margin: f64) -> Self {
        self.metrics.insert(name.to_owned(), what);
        self.gates
            .push(LiveGate::new(name, weight, margin, Action::Rollback));
        self
    }

    /// With these gates before deployment; their evaluation may take an hour.
    #[must_use]
    pub fn pre_flight(mut self, gates: GateTable) -> Self {
        let deadline = Duration::from_secs(3600);
        self.pre_flight = Some(PreFlightSpec { gates, deadline });
        self
    }

    fn plan(self, stages: Vec<StageSpec>, finish: Finish, bake: Duration) -> PlanSpec {
        PlanSpec {
            alpha: self.alpha,
            pause_alpha: None,
            look_every: look_every(&stages),
            metrics: self.metrics,
            ungated: self.gates.is_empty(),
            gates: self.gates,
            thresholds: Vec::new(),
            hard_limits: Vec::new(),
            cold_start: ColdStart::Quick,
            pass: PassSpec::default(),
            pre_flight: self.pre_flight,
            stages,
            finish,
            bake,
            watch: Vec::new(),
            triggers: self.triggers,
            recovery: RecoverySpec::default(),
            lease: Lease::default(),
            outcomes: Outcomes::default(),
        }
    }
}

/// How long a stage lasts at least, and how many candidate samples of every gated metric it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a pair")]
pub struct Pace {
    /// Time at the share, confirmed and leased.
    pub dwell: Duration,
    /// Candidate samples; none are asked for at 100 %, where there is no baseline beside the candidate.
    pub min_samples: u64,
}

impl Pace {
    /// Both.
    pub const fn new(dwell: Duration, min_samples: u64) -> Self {
        Self { dwell, min_samples }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A tenth of the shortest dwell, from a second to a minute: a stage is left at a look, so a long time between two would stretch a
/// short one. A hundredth where answers are compared: scores bet once a look, and a few looks could never send anything back. Looking
/// more often costs no error budget.
fn look_every(stages: &[StageSpec]) -> Duration {
    let shortest = stages.iter().map(|s| s.dwell).min().unwrap_or_default();
    let mirrored = stages.iter().any(|s| s.mirror.0 > Share::NONE);
    let part = if mirrored { 100 } else { 10 };
    (shortest / part).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

fn stage(serve: Share, dwell: Duration) -> StageSpec {
    StageSpec {
        serve: Exposure(serve),
        mirror: Exposure::default(),
        control: Exposure::default(),
        dwell,
        limit: None,
        min_samples: 0,
        needs: None,
        advance: Advance::Auto,
    }
}

fn paced(serve: Share, pace: Pace) -> StageSpec {
    let min_samples = if serve == Share::ALL {
        0
    } else {
        pace.min_samples
    };
    StageSpec {
        min_samples,
        ..stage(serve, pace.dwell)
    }
}

fn share(path: &str, percent: f64) -> Result<Share, PlanError> {
    Share::from_percent(percent).map_err(|e| PlanError::new(path, e.to_string()))
}

/// Shares from per cent.
///
/// # Errors
/// One is outside 0 to 100, or finer than 0.01.
pub fn shares(percent: impl IntoIterator<Item = f64>) -> Result<Vec<Share>, PlanError> {
    let mut list = Vec::new();
    for (i, percent) in percent.into_iter().enumerate() {
        list.push(share(&format!("shares[{i}]"), percent)?);
    }
    Ok(list)
}

/// Shares in equal steps up to the last, in per cent: steps of 20 up to 50 are 20, 40, 50.
///
/// # Errors
/// The step is 0, or one of both is no share.
pub fn linear(step: f64, last: f64) -> Result<Vec<Share>, PlanError> {
    let (step, last) = (share("step", step)?, share("last", last)?);
    if step == Share::NONE {
        return Err(PlanError::new("step", "must be above 0"));
    }
    let mut list = Vec::new();
    let mut next = step;
    while next < last {
        list.push(next);
        let points = next.basis_points().saturating_add(step.basis_points());
        next = Share::new(points).unwrap_or(last);
    }
    list.push(last);
    Ok(list)
}

/// Shares that grow by a factor up to the last, in per cent: from 1 by 3 up to 50 are 1, 3, 9, 27, 50.
///
/// # Errors
/// The first is 0, the factor is not finite and at least 1.1, or the first or last is no share.
pub fn exponential(first: f64, factor: f64, last: f64) -> Result<Vec<Share>, PlanError> {
    let (first, last) = (share("first", first)?, share("last", last)?);
    if first == Share::NONE {
        return Err(PlanError::new("first", "must be above 0"));
    }
    if !(factor >= 1.1 && factor.is_finite()) {
        return Err(PlanError::new(
            "factor",
            format!("{factor} must be 1.1 or more, such as 2"),
        ));
    }
    let mut list = Vec::new();
    let (mut percent, mut next) = (first.percent(), first);
    while next < last {
        list.push(next);
        percent *= factor;
        // To whole basis points, so that every share can be served.
        next = Share::from_percent((percent * 100.0).round() / 100.0).unwrap_or(last);
    }
    list.dedup();
    list.push(last);
    Ok(list)
}

/// A canary: these shares in order, each for the same time, then promotion and a day of baking.
///
/// # Errors
/// The shares shrink, or the gates make no sense.
pub fn canary(
    gates: Gates,
    shares: impl IntoIterator<Item = Share>,
    pace: Pace,
) -> Result<Plan, PlanError> {
    let stages = shares.into_iter().map(|s| paced(s, pace)).collect();
    gates.plan(stages, Finish::Promote, 24 * HOUR).try_into()
}

/// What a planned canary must be able to see.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Traffic {
    /// Requests of the endpoint per second.
    pub requests_per_second: f64,
    /// The baseline's rate of what the heaviest gate counts, in (0, 1).
    pub rate: f64,
    /// The ratio that must be found: 1.5 is half as much again; above 1.
    pub harm: f64,
    /// With this probability, in (0, 1).
    pub power: f64,
    /// No stage lasts longer than this, whatever it can then see.
    pub longest: Duration,
}

impl Traffic {
    /// How long a stage of this share lasts until it has found the harm by itself.
    fn pace(&self, share: Share, alpha: f64) -> Result<Pace, PlanError> {
        let wrong = |e: llm_gates::fixed::BadSample| PlanError::new("traffic", e.to_string());
        if !(self.requests_per_second > 0.0 && self.requests_per_second.is_finite()) {
            return Err(PlanError::new(
                "traffic.requests_per_second",
                "must be above 0",
            ));
        }
        if !(self.power > 0.0 && self.power < 1.0) {
            return Err(PlanError::new(
                "traffic.power",
                "must lie between 0 and 1, such as 0.9",
            ));
        }
        let part = share.percent() / 100.0;
        let rate = self.requests_per_second * part;
        let most = rate * self.longest.as_secs_f64();
        if share == Share::NONE || share == Share::ALL {
            return Ok(Pace::new(self.longest, 0));
        }
        let detection = Detection::new(self.rate, self.harm, part, alpha, 1.5).map_err(wrong)?;
        // The least number of requests with that power, by halving what lies between none and the most.
        let (mut low, mut high) = (0.0, most);
        for _ in 0..64 {
            let middle = 0.5 * (low + high);
            if detection.probability_by(middle) >= self.power {
                high = middle;
            } else {
                low = middle;
            }
        }
        let seconds = (high / rate)
            .min(self.longest.as_secs_f64())
            .max(60.0)
            .ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and casts saturate"
        )]
        Ok(Pace::new(
            Duration::from_secs(seconds as u64),
            high.floor() as u64,
        ))
    }
}

/// A canary whose stages last as long as each needs to find the harm by itself; a stage that would need longer than the
/// longest does not find it.
///
/// # Errors
/// There is no gate, the traffic makes no test, or as [`canary`].
pub fn canary_planned(
    gates: Gates,
    shares: impl IntoIterator<Item = Share>,
    traffic: &Traffic,
) -> Result<Plan, PlanError> {
    let weight = gates.gates.iter().map(|g| g.weight).fold(0.0, f64::max);
    if weight <= 0.0 {
        return Err(PlanError::new(
            "gates",
            "a planned canary needs a gate: what is it to find?",
        ));
    }
    let alpha = gates.alpha * weight;
    let stages = shares
        .into_iter()
        .map(|s| Ok(paced(s, traffic.pace(s, alpha)?)))
        .collect::<Result<_, PlanError>>()?;
    gates.plan(stages, Finish::Promote, 24 * HOUR).try_into()
}

/// How a blue-green switch is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct BlueGreen {
    /// How long the candidate runs without users at least, for probes and people to look at it.
    pub verify: Duration,
    /// Whether a person lets it switch, or time alone.
    pub approve: Advance,
    /// Time at 100 % before promotion, with the old version a split away.
    pub soak: Duration,
    /// Time after promotion for which the old version stays loaded; then it is retired.
    pub keep_warm: Duration,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self {
            verify: Duration::from_secs(600),
            approve: Advance::Manual,
            soak: HOUR,
            keep_warm: 24 * HOUR,
        }
    }
}

/// Blue-green: warmed up, verified in a preview that no user sees, switched at once under a lease (so that going back is one
/// split), promoted, the old version kept warm, then retired.
///
/// While the candidate serves everybody there is no baseline beside it: alarms, probes and dead-man's switches watch then.
///
/// # Errors
/// The gates make no sense.
pub fn blue_green(gates: Gates, how: BlueGreen) -> Result<Plan, PlanError> {
    let preview = StageSpec {
        advance: how.approve,
        ..stage(Share::NONE, how.verify)
    };
    let stages = vec![preview, stage(Share::ALL, how.soak)];
    gates
        .plan(stages, Finish::Promote, how.keep_warm)
        .try_into()
}

fn mirrored(gates: &Gates, mirror: Share, pace: Pace) -> Result<StageSpec, PlanError> {
    let compared = |g: &LiveGate| {
        gates
            .metrics
            .get(&g.metric)
            .is_some_and(MetricDef::is_mirrored)
    };
    if !gates.gates.iter().any(compared) {
        return Err(PlanError::new(
            "gates",
            "nothing compares the mirrored answers: add a gate on a metric { pair = \"comparator\" }",
        ));
    }
    Ok(StageSpec {
        mirror: Exposure(mirror),
        ..paced(Share::NONE, pace)
    })
}

/// Shadow: a share of the requests is mirrored, answers are compared in pairs, nobody is served; then the candidate is taken
/// out again, whatever it has shown.
///
/// # Errors
/// No gate compares pairs, or the gates make no sense.
pub fn shadow(gates: Gates, mirror: Share, pace: Pace) -> Result<Plan, PlanError> {
    let stages = vec![mirrored(&gates, mirror, pace)?];
    gates
        .plan(stages, Finish::Return, Duration::ZERO)
        .try_into()
}

/// A shadow first, then a canary of the same candidate.
///
/// # Errors
/// As [`shadow`] and [`canary`].
pub fn shadow_then_canary(
    gates: Gates,
    (mirror, first): (Share, Pace),
    shares: impl IntoIterator<Item = Share>,
    pace: Pace,
) -> Result<Plan, PlanError> {
    let mut stages = vec![mirrored(&gates, mirror, first)?];
    stages.extend(shares.into_iter().map(|s| paced(s, pace)));
    gates.plan(stages, Finish::Promote, 24 * HOUR).try_into()
}

/// An A/B test: the candidate and a control arm of the same size (at most 50 %) for a fixed time. What follows is a person's choice
/// ([`crate::Verb::Approve`]) where the test is to end in promotion.
///
/// # Errors
/// The share is above 50 %, or the gates make no sense.
pub fn a_b(gates: Gates, share: Share, pace: Pace, finish: Finish) -> Result<Plan, PlanError> {
    let advance = match finish {
        Finish::Promote => Advance::Manual,
        Finish::Return => Advance::Auto,
    };
    let stages = vec![StageSpec {
        control: Exposure(share),
        advance,
        ..paced(share, pace)
    }];
    gates.plan(stages, finish, 24 * HOUR).try_into()
}

/// Everybody at once under a lease, then baking with the old version warm.
///
/// # Errors
/// The gates make no sense.
pub fn all_at_once(gates: Gates, soak: Duration, bake: Duration) -> Result<Plan, PlanError> {
    let stages = vec![stage(Share::ALL, soak)];
    gates.plan(stages, Finish::Promote, bake).try_into()
}

/// A return to a version that has been in production before, inside the rollback window: no gates, no dwell, and the version
/// that is left stays warm for this long.
///
/// # Errors
/// None are known: the plan is checked like any other.
pub fn instant(bake: Duration) -> Result<Plan, PlanError> {
    all_at_once(Gates::nothing(), Duration::ZERO, bake)
}

/// What the reference schedule measures.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Reference {
    /// The threshold of the 99th percentile: how many requests take longer is compared between the arms.
    pub slow: Duration,
    /// The host's flag on an answer of low quality.
    pub quality: String,
    /// The host's flag on a safety incident.
    pub safety: String,
    /// The host's flag on a dissatisfied user.
    pub dissatisfied: String,
    /// Candidate samples of each gated metric that a stage needs.
    pub min_samples: u64,
    /// Time after promotion for which the old version stays loaded.
    pub bake: Duration,
}

impl Default for Reference {
    fn default() -> Self {
        Self {
            slow: Duration::from_secs(10),
            quality: "low_quality".to_owned(),
            safety: "safety_incident".to_owned(),
            dissatisfied: "thumbs_down".to_owned(),
            min_samples: 1_000,
            bake: 24 * HOUR,
        }
    }
}

/// The reference schedule of 77 hours: all gates before deployment; 1 % for an hour until latency has passed, 5 % for 4 hours
/// (quality), 25 % for 24 hours (safety), 50 % for 48 hours (satisfaction); then everybody, and baking. Every gate sends harm
/// back in every stage; undecided stages hold and page.
///
/// # Errors
/// The metrics make no sense.
pub fn reference(what: Reference) -> Result<Plan, PlanError> {
    let gates = Gates::nothing()
        .gate("faults", MetricDef::Fault {}, 0.2, 0.0)
        .gate("latency", MetricDef::DurationOver(what.slow), 0.2, 0.2)
        .gate("quality", MetricDef::Flag(what.quality), 0.2, 0.1)
        .gate("safety", MetricDef::Flag(what.safety), 0.2, 0.0)
        .gate("satisfaction", MetricDef::Flag(what.dissatisfied), 0.2, 0.1)
        .pre_flight(GateTable::reference());
    let table = [
        (1.0, 1, "latency"),
        (5.0, 4, "quality"),
        (25.0, 24, "safety"),
        (50.0, 48, "satisfaction"),
    ];
    let mut stages = Vec::with_capacity(table.len());
    for (percent, hours, gate) in table {
        stages.push(StageSpec {
            needs: Some(vec![gate.to_owned()]),
            ..paced(
                share("serve", percent)?,
                Pace::new(hours * HOUR, what.min_samples),
            )
        });
    }
    let mut spec = gates.plan(stages, Finish::Promote, what.bake);
    spec.outcomes.undecided = Undecided::Hold;
    spec.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs() -> Gates {
        Gates::usual(Duration::from_millis(800))
            .gate_less(0.4)
            .gate("answers", MetricDef::Pair("judge".to_owned()), 0.4, 0.05)
    }

    impl Gates {
        /// Leaves room in the budget.
        fn gate_less(mut self, part: f64) -> Self {
            for gate in &mut self.gates {
                gate.weight *= 1.0 - part;
            }
            self
        }
    }

    fn all() -> Vec<(&'static str, Plan)> {
        let pace = Pace::new(HOUR, 500);
        let usual = || Gates::usual(Duration::from_millis(800));
        let traffic = Traffic {
            requests_per_second: 20.0,
            rate: 0.01,
            harm: 2.0,
            power: 0.9,
            longest: 24 * HOUR,
        };
        let ten = share("", 10.0).unwrap();
        vec![
            (
                "canary",
                canary(usual(), shares([1.0, 5.0]).unwrap(), pace).unwrap(),
            ),
            (
                "linear",
                canary(usual(), linear(20.0, 100.0).unwrap(), pace).unwrap(),
            ),
            (
                "exponential",
                canary(usual(), exponential(1.0, 2.0, 100.0).unwrap(), pace).unwrap(),
            ),
            (
                "planned",
                canary_planned(usual(), shares([1.0, 10.0, 50.0, 100.0]).unwrap(), &traffic)
                    .unwrap(),
            ),
            (
                "blue-green",
                blue_green(usual(), BlueGreen::default()).unwrap(),
            ),
            ("shadow", shadow(pairs(), ten, pace).unwrap()),
            (
                "shadow then canary",
                shadow_then_canary(pairs(), (ten, pace), shares([5.0, 50.0]).unwrap(), pace)
                    .unwrap(),
            ),
            ("a/b", a_b(usual(), ten, pace, Finish::Return).unwrap()),
            (
                "all at once",
                all_at_once(usual(), HOUR, 24 * HOUR).unwrap(),
            ),
            ("instant", instant(HOUR).unwrap()),
            ("reference", reference(Reference::default()).unwrap()),
        ]
    }

    #[test]
    fn every_preset_is_a_plan_that_a_person_can_keep_as_toml() {
        for (name, plan) in all() {
            let text = toml::to_string(&plan).unwrap();
            assert_eq!(Plan::from_toml(&text).unwrap(), plan, "{name}: {text}");
            for stage in 0..plan.stages().len() {
                if let Some(gates) = plan.gate_plan(stage) {
                    gates.validate().unwrap();
                }
            }
        }
    }

    #[test]
    fn no_stage_is_stretched_by_the_time_between_two_looks() {
        for (name, plan) in all() {
            for stage in plan.stages() {
                let tenth = (stage.dwell / 10).max(Duration::from_secs(1));
                assert!(plan.spec().look_every <= tenth, "{name}");
            }
        }
        let second = Duration::from_secs(1);
        assert_eq!(instant(HOUR).unwrap().spec().look_every, second);
    }

    #[test]
    fn the_reference_schedule_takes_77_hours() {
        let plan = reference(Reference::default()).unwrap();
        let rows: Vec<_> = plan
            .stages()
            .iter()
            .map(|s| {
                (
                    s.serve.0.percent(),
                    s.dwell.as_secs() / 3600,
                    s.needs.clone().unwrap().join(" "),
                )
            })
            .collect();
        let expected = [
            (1.0, 1, "latency"),
            (5.0, 4, "quality"),
            (25.0, 24, "safety"),
            (50.0, 48, "satisfaction"),
        ]
        .map(|(share, hours, gate)| (share, hours, gate.to_owned()));
        assert_eq!(rows, expected);
        assert_eq!(
            plan.stages().iter().map(|s| s.dwell).sum::<Duration>(),
            77 * HOUR
        );
        let table = plan.spec().pre_flight.as_ref().unwrap();
        assert_eq!(table.gates, GateTable::reference());
        let watched = plan.gate_plan(0).unwrap();
        assert_eq!(
            watched.gates.len(),
            5,
            "every gate sends harm back in every stage"
        );
    }

    #[test]
    fn a_planned_stage_is_as_long_as_it_needs_to_be() {
        let traffic = Traffic {
            requests_per_second: 20.0,
            rate: 0.01,
            harm: 2.0,
            power: 0.9,
            longest: 48 * HOUR,
        };
        let gates = Gates::usual(Duration::from_millis(800));
        let alpha = gates.alpha * 0.6;
        let plan = canary_planned(gates, shares([1.0, 5.0, 50.0]).unwrap(), &traffic).unwrap();
        for stage in plan.stages() {
            let part = stage.serve.0.percent() / 100.0;
            let detection = Detection::new(0.01, 2.0, part, alpha, 1.5).unwrap();
            let n = |d: Duration| d.as_secs_f64() * 20.0 * part;
            assert!(detection.probability_by(n(stage.dwell)) >= 0.9);
            let shorter = stage.dwell.mul_f64(0.9);
            assert!(detection.probability_by(n(shorter)) < 0.9);
        }
        let dwell: Vec<_> = plan.stages().iter().map(|s| s.dwell).collect();
        assert!(
            dwell.is_sorted_by(|a, b| a > b),
            "more traffic, less time: {dwell:?}"
        );
    }

    #[test]
    fn ramps_are_as_their_examples_say() {
        let percent = |list: Result<Vec<Share>, PlanError>| -> Vec<f64> {
            list.unwrap().iter().map(|s| s.percent()).collect()
        };
        assert_eq!(percent(linear(20.0, 50.0)), [20.0, 40.0, 50.0]);
        assert_eq!(percent(linear(25.0, 50.0)), [25.0, 50.0]);
        let by_three = percent(exponential(1.0, 3.0, 50.0));
        assert_eq!(by_three, [1.0, 3.0, 9.0, 27.0, 50.0]);
        assert_eq!(percent(exponential(25.0, 2.0, 100.0)), [25.0, 50.0, 100.0]);
        let rounded = percent(exponential(0.01, 1.3, 0.03));
        assert_eq!(rounded, [0.01, 0.02, 0.03], "each once");
    }

    #[test]
    fn stages_are_what_their_strategy_says() {
        let pace = Pace::new(HOUR, 500);
        let usual = || Gates::usual(HOUR);
        let two = canary(usual(), shares([10.0, 100.0]).unwrap(), pace).unwrap();
        let samples: Vec<_> = two.stages().iter().map(|s| s.min_samples).collect();
        assert_eq!(samples, [500, 0], "no baseline is left beside 100 %");

        let switch = blue_green(usual(), BlueGreen::default()).unwrap();
        let advance: Vec<_> = switch.stages().iter().map(|s| s.advance).collect();
        assert_eq!(advance, [Advance::Manual, Advance::Auto]);

        let ten = share("", 10.0).unwrap();
        let shadow = shadow(pairs(), ten, pace).unwrap();
        let stage = &shadow.stages()[0];
        assert_eq!((stage.serve.0, stage.mirror.0), (Share::NONE, ten));
    }

    #[test]
    fn a_planned_stage_that_cannot_find_the_harm_lasts_as_long_as_it_may() {
        type Change = fn(&mut Traffic);
        let traffic = Traffic {
            requests_per_second: 0.1,
            rate: 0.01,
            harm: 1.1,
            power: 0.9,
            longest: HOUR,
        };
        let plan = canary_planned(Gates::usual(HOUR), [share("", 1.0).unwrap()], &traffic);
        let plan = plan.unwrap();
        let stage = &plan.stages()[0];
        assert_eq!((stage.dwell, stage.min_samples), (HOUR, 3));

        let refused: [(Change, &str); 5] = [
            (|t| t.requests_per_second = 0.0, "requests_per_second"),
            (
                |t| t.requests_per_second = f64::INFINITY,
                "requests_per_second",
            ),
            (|t| t.power = 0.0, "power"),
            (|t| t.power = 1.0, "power"),
            (|t| t.power = f64::NAN, "power"),
        ];
        for (change, name) in refused {
            let mut traffic = traffic;
            change(&mut traffic);
            let plan = canary_planned(Gates::usual(HOUR), [Share::ALL], &traffic);
            let message = plan.unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        let pace = Pace::new(HOUR, 0);
        let refused = |plan: Result<Plan, PlanError>, part: &str| {
            let message = plan.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        assert!(linear(0.0, 50.0).unwrap_err().to_string().contains("step"));
        assert!(exponential(1.0, 1.0, 50.0).is_err());
        assert!(exponential(0.0, 2.0, 50.0).is_err());
        assert!(
            shares([5.0, 101.0])
                .unwrap_err()
                .to_string()
                .contains("shares[1]")
        );
        let usual = || Gates::usual(HOUR);
        refused(
            canary(usual(), shares([5.0, 1.0]).unwrap(), pace),
            "shrinks",
        );
        refused(shadow(usual(), Share::ALL, pace), "pair");
        refused(
            a_b(usual(), share("", 60.0).unwrap(), pace, Finish::Return),
            "control",
        );
        let nobody = Traffic {
            requests_per_second: 0.0,
            rate: 0.01,
            harm: 2.0,
            power: 0.9,
            longest: HOUR,
        };
        refused(
            canary_planned(usual(), [Share::ALL], &nobody),
            "requests_per_second",
        );
        refused(
            canary_planned(Gates::nothing(), [Share::ALL], &nobody),
            "gate",
        );
    }

    proptest! {
        #[test]
        fn shares_rise_to_the_last(step in 1u16..=10_000, last in 1u16..=10_000, factor in 1.1..10.0f64) {
            let (step, last) = (Share::new(step).unwrap(), Share::new(last).unwrap());
            for list in [linear(step.percent(), last.percent()).unwrap(), exponential(step.percent(), factor, last.percent()).unwrap()] {
                prop_assert!(list.is_sorted_by(|a, b| a < b));
                prop_assert_eq!(*list.last().unwrap(), last);
            }
        }
    }
}
