//! The kit does what it says. Proportions are asserted with room for chance: with right code each of these assertions fails for
//! fewer than one seed in 1,000, and the seeds are fixed.

use super::{Noise, Rate, Ratio, Scale, Scenario};
use crate::plan::Undecided;
use crate::presets::{self, Gates, Pace};
use crate::{Cause, Expected, Finish, MetricDef, Phase, Plan, Traffic};
use llm_gates::{Direction, Measurement, Measurements};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        [metrics]
        ttft = { first_token_over = "800ms" }
        [[gates]]
        metric = "ttft"
        weight = 1.0
        [[stages]]
        serve = 5.0
        dwell = "4h"
        min_samples = 1000
        "#,
    )
    .unwrap()
}

fn two_stages() -> Plan {
    let shares = presets::shares([5.0, 25.0]).unwrap();
    presets::canary(Gates::usual(8 * MINUTE), shares, Pace::new(2 * HOUR, 500)).unwrap()
}

#[test]
fn a_slower_model_is_caught_at_five_percent() {
    let lives = Scenario::new(plan())
        .requests_per_second(20.0)
        .effect("ttft", Scale(1.3))
        .lives(1_000);
    assert!(
        lives.rolled_back() >= 0.99 && lives.exposed_requests().p95() < 2_000,
        "{lives}"
    );
    assert!(lives.rolled_back().surely_at_least(0.98), "{lives}");
    assert_eq!(lives.rolled_back_by("ttft"), lives.rolled_back());
    // Of those that came, about 3 % were late instead of 1 %.
    let harm = lives.harmed_requests().mean() / lives.exposed_requests().mean();
    assert!((harm - 0.0195).abs() < 0.003, "{harm}");
}

#[test]
fn a_harmless_candidate_is_promoted() {
    let lives = Scenario::new(plan())
        .day_and_night(0.8)
        .drift(0.5)
        .lives(400);
    assert!(lives.rolled_back().interval(0.998).0 <= 0.05, "{lives}");
    assert_eq!(lives.promoted().k + lives.rolled_back().k, 400);
    let exposed = lives.exposed_requests();
    assert_eq!(exposed.len(), 400);
    assert_eq!(lives.harmed_requests().max(), 0);
    // 4 hours of 20 a second at 5 %, from midnight on: the integral of 1 + 0.8 cos(2 pi (t - 14 h) / 24 h).
    let whole = 14_400.0 * 0.23606;
    assert!(
        (exposed.median() as f64 / whole - 1.0).abs() < 0.02,
        "{exposed}"
    );
}

#[test]
fn the_same_seed_gives_the_same_lives_on_any_number_of_threads() {
    let scenario = Scenario::new(two_stages())
        .effect("faults", Ratio(1.5))
        .noise(Noise::new(0.2).correlation(0.8))
        .delayed_labels("slow", 10 * MINUTE);
    let of = |threads, seed| {
        let lives = scenario.clone().threads(threads).seed(seed).lives(23);
        lives.iter().cloned().collect::<Vec<_>>()
    };
    let one = of(1, 7);
    assert_eq!(one, of(2, 7));
    assert_eq!(one, of(5, 7));
    assert_ne!(one, of(1, 8));
    for life in &one {
        let story = scenario.clone().seed(7).story(life.index).unwrap();
        assert_eq!(story.life, *life);
        let sum = |f: fn(&(u64, u64)) -> u64| life.stages.iter().map(f).sum::<u64>();
        assert_eq!((sum(|s| s.0), sum(|s| s.1)), (life.exposed, life.harmed));
    }
}

#[test]
fn harm_that_begins_late_or_at_a_share_is_found_then() {
    let late = Scenario::new(plan())
        .effect("ttft", Ratio(5.0).after(2 * HOUR))
        .lives(60);
    let decided = late.time_to_decision();
    assert!(late.rolled_back() >= 0.9, "{late}");
    assert!(
        decided.quantile(0.1) > 2 * HOUR && decided.median() < 3 * HOUR,
        "{late}"
    );
    let large = Scenario::new(two_stages())
        .effect("faults", Ratio(4.0).from_share(25.0))
        .lives(60);
    assert!(large.detected_in(1) >= 0.9, "{large}");
    assert!(large.in_stage(0).1.max() == 0 && large.in_stage(1).1.median() > 0);
}

#[test]
fn a_silent_candidate_is_noticed_by_the_dead_mans_switch() {
    let lives = Scenario::new(plan()).candidate_silent(HOUR).lives(20);
    let silent = lives.share(|life| matches!(life.cause, Some(Cause::Silent { .. })));
    // A harmless candidate may have been sent back before.
    assert!(silent >= 0.8, "{lives}");
    let quickly = |life: &super::Life| life.decided < Some(HOUR + 3 * MINUTE);
    assert!(lives.share(quickly) == 1.0, "{lives}");
    assert!(lives.harmed_requests().max() < 250, "{lives}");
}

#[test]
fn outages_hold_and_then_do_what_the_plan_says() {
    let short = Scenario::new(plan())
        .source_outage(HOUR, 5 * MINUTE)
        .lives(20);
    assert!(short.promoted() >= 0.8, "{short}");
    let long = Scenario::new(plan())
        .source_outage(HOUR, 30 * MINUTE)
        .lives(20);
    let unheard = long.share(|life| life.cause == Some(Cause::NoVerdict));
    assert!(unheard >= 0.8, "{long}");
    let mut spec = plan().spec().clone();
    spec.outcomes.no_verdict = Undecided::Hold;
    let held = Scenario::new(spec.try_into().unwrap())
        .source_outage(HOUR, 30 * MINUTE)
        .abort_if_held(Some(HOUR))
        .lives(20);
    let aborted = held.share(|life| matches!(life.cause, Some(Cause::Operator { .. })));
    assert!(aborted >= 0.8 && held.held() >= 0.8, "{held}");
}

#[test]
fn crashes_and_restarts_lapse_and_resume() {
    let exposed = |scenario: &Scenario| scenario.lives(12).exposed_requests().median();
    let whole = exposed(&Scenario::new(plan()));
    let brief = Scenario::new(plan()).controller_crash(HOUR, 30 * Duration::from_secs(1));
    assert!(exposed(&brief).abs_diff(whole) < 400);
    let resumed = Scenario::new(plan())
        .controller_crash(HOUR, 20 * MINUTE)
        .router_restart(2 * HOUR);
    let lives = resumed.lives(12);
    assert!(lives.promoted() >= 0.75, "{lives}");
    let often = resumed.router_restart(3 * HOUR).lives(12);
    let lapsed = often.share(|life| life.cause == Some(Cause::Lapsed { times: 3 }));
    assert!(lapsed >= 0.75, "{often}");
}

#[test]
fn labels_that_are_missing_or_late_delay_detection() {
    let requests = |scenario: Scenario| {
        let lives = scenario.effect("ttft", Ratio(3.0)).lives(100);
        assert!(lives.rolled_back() >= 0.95, "{lives}");
        lives.exposed_requests().median() as f64
    };
    let all = requests(Scenario::new(plan()));
    let half = requests(Scenario::new(plan()).missing_labels("ttft", 0.5));
    assert!((1.6..2.6).contains(&(half / all)), "{half} after {all}");
    let sampled = Traffic::new(20.0).metric("ttft", Expected::new(0.01, 2.0).sampled(0.5));
    let half = requests(Scenario::new(plan()).traffic(sampled));
    assert!((1.6..2.6).contains(&(half / all)), "{half} after {all}");
    // One request a second is exposed: half an hour are 1,800 more.
    let late = requests(Scenario::new(plan()).delayed_labels("ttft", 30 * MINUTE));
    assert!((late - all - 1_800.0).abs() < 250.0, "{late} after {all}");
}

#[test]
fn noise_needs_history() {
    let gates = || Gates::nothing().gate("faults", MetricDef::Fault {}, 1.0, 0.0);
    let shares = presets::shares([10.0]).unwrap();
    let plan = presets::canary(gates(), shares, Pace::new(6 * HOUR, 500)).unwrap();
    let noisy = Scenario::new(plan)
        .rate("faults", 0.05)
        .noise(Noise::new(0.5).correlation(0.8));
    let cold = noisy.lives(30);
    let mut traffic = Traffic::new(20.0).history(24 * HOUR);
    traffic = traffic.metric("faults", Expected::new(0.05, 2.0));
    let learnt = noisy.traffic(traffic).lives(30);
    assert!(cold.rolled_back() > 0.3, "{cold}");
    assert!(learnt.rolled_back() < 0.2, "{learnt}");
}

#[test]
fn pairs_and_metrics_of_which_more_is_better() {
    let gates = Gates::nothing().gate("answers", MetricDef::Pair("judge".to_owned()), 1.0, 0.05);
    let share = presets::shares([10.0]).unwrap()[0];
    let plan = presets::shadow(gates, share, Pace::new(2 * HOUR, 1_000)).unwrap();
    assert_eq!(plan.spec().finish, Finish::Return);
    let equal = Scenario::new(plan.clone()).lives(40);
    assert!(
        equal.share(|life| life.end == Phase::Concluded) >= 0.85,
        "{equal}"
    );
    assert_eq!(equal.exposed_requests().max(), 0, "nobody is served");
    let worse = Scenario::new(plan).effect("answers", Ratio(1.3)).lives(40);
    assert!(worse.detected() >= 0.95, "{worse}");

    let mut spec = two_stages().spec().clone();
    for gate in &mut spec.gates {
        gate.direction = Direction::GreaterIsBetter;
    }
    let plan = Plan::try_from(spec).unwrap();
    let fewer = Scenario::new(plan).effect("faults", Ratio(3.0)).lives(20);
    assert!(fewer.rolled_back_by("faults") >= 0.95, "{fewer}");
}

#[test]
fn people_approve_or_do_not() {
    let mut spec = two_stages().spec().clone();
    spec.stages[0].advance = crate::Advance::Manual;
    let plan = Plan::try_from(spec).unwrap();
    let soon = Scenario::new(plan.clone()).approval(Some(HOUR)).lives(10);
    assert!(
        soon.promoted() >= 0.6 && soon.held().k >= soon.promoted().k,
        "{soon}"
    );
    let never = Scenario::new(plan)
        .approval(None)
        .horizon(24 * HOUR)
        .lives(10);
    assert!(
        never.unfinished() >= 0.6 && never.promoted() == 0.0,
        "{never}"
    );
}

#[test]
fn a_bad_candidate_is_blocked_before_anybody_sees_it() {
    let plan = presets::reference(presets::Reference::default()).unwrap();
    let toxic = Measurement::of(llm_gates::Counts::new(1_000, 900).into());
    let measured = Measurements::from([("toxicity".to_owned(), toxic)]);
    let lives = Scenario::new(plan).pre_flight(measured).lives(3);
    assert!(
        lives.blocked() == 1.0 && lives.exposed_requests().max() == 0,
        "{lives}"
    );
}

#[test]
fn what_cannot_be_simulated_is_named() {
    let refused = |scenario: Scenario| scenario.try_lives(1).unwrap_err().to_string();
    let base = || Scenario::new(plan());
    let unknown = refused(base().effect("tfft", Scale(2.0)));
    assert!(
        unknown.contains("tfft") && unknown.contains("ttft"),
        "{unknown}"
    );
    for (scenario, part) in [
        (base().effect("ttft", Scale(-1.0)), "effect"),
        (base().effect("ttft", Rate(1.5)), "rate"),
        (base().effect("ttft", Scale(2.0).from_share(0.001)), "share"),
        (base().requests_per_second(f64::NAN), "requests_per_second"),
        (base().rate("ttft", 0.0), "rate"),
        (base().day_and_night(2.0), "day"),
        (
            base().noise(Noise::new(0.5).correlation(1.0)),
            "correlation",
        ),
        (base().missing_labels("ttft", 1.2), "missing"),
        (base().begins_at(25.0), "hour"),
        (base().latency_spread(0.0), "spread"),
    ] {
        let message = refused(scenario);
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(base().lives(0).rolled_back().value().to_bits(), 0);
}

#[test]
fn proportions_and_samples_are_what_they_say() {
    // Wilson's interval of 8 of 10, as tabulated: 0.4902 to 0.9433.
    let p = super::Proportion { k: 8, n: 10 };
    let (low, high) = p.interval(0.95);
    assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4);
    assert!(p >= 0.8 && p == 0.8 && !p.surely_at_least(0.6) && p.surely_at_most(0.95));
    let lives = Scenario::new(plan()).effect("ttft", Ratio(3.0)).lives(100);
    let exposed = lives.exposed_requests();
    let mut all: Vec<u64> = lives.iter().map(|life| life.exposed).collect();
    all.sort_unstable();
    assert_eq!(
        (exposed.p95(), exposed.median(), exposed.max()),
        (all[94], all[49], all[99])
    );
    assert_eq!(
        (exposed.quantile(0.0), exposed.quantile(1.0)),
        (all[0], all[99])
    );
}

#[test]
fn a_failing_assertion_tells_what_happened() {
    let lives = Scenario::new(plan())
        .seed(42)
        .effect("ttft", Ratio(3.0))
        .lives(50);
    let text = lives.to_string();
    for part in [
        "50 lives of seed 42",
        "rolled back: ",
        "because of \"ttft\" in stage 0",
        "of seed 42: rolled back",
        "soaking in stage 0",
        "because: evidence of harm",
        "ln E = ",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let worst = lives.worst().unwrap();
    assert_eq!(worst.harmed, lives.harmed_requests().max());
}
