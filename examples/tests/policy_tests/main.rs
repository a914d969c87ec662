//! A rollout policy, tested like any code: what the plan beside this file does to candidates that one makes up, in virtual time.
//!
//! Copy it into a host's own tests, with `llm-rollout = { features = ["policy-tests"] }` among the dev-dependencies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use llm_rollout::policy::{Noise, Rate, Ratio, Scale, Scenario};
use llm_rollout::{Cause, Plan};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn plan() -> Plan {
    Plan::from_toml(include_str!("canary.toml")).unwrap()
}

/// 20 requests a second, twice as many in the afternoon as at night; each hundredth fails, is late, or is refused.
fn traffic() -> Scenario {
    Scenario::new(plan())
        .requests_per_second(20.0)
        .day_and_night(0.33)
        .begins_at(9.0)
}

#[test]
fn a_slower_model_is_caught_at_five_percent() {
    let lives = traffic().effect("ttft", Scale(1.3)).lives(300);
    assert!(
        lives.detected_in(0) >= 0.99 && lives.exposed_requests().p95() < 2_000,
        "{lives}"
    );
}

#[test]
fn a_good_model_is_promoted() {
    let lives = traffic().lives(40);
    // The plan promises at most 5 % false alarms; with 95 % confidence these lives do not contradict it.
    assert!(
        lives.rolled_back().interval(0.9).0 <= 0.05 && lives.unfinished() == 0.0,
        "{lives}"
    );
}

#[test]
fn an_outage_of_the_candidate_harms_few() {
    let broken = traffic()
        .effect("faults", Rate(1.0).after(3 * HOUR))
        .lives(50);
    assert!(
        broken.rolled_back() == 1.0 && broken.harmed_requests().max() < 1_500,
        "{broken}"
    );
    let hung = traffic().candidate_silent(90 * MINUTE).lives(50);
    let silent = hung.share(|life| matches!(life.cause, Some(Cause::Silent { .. })));
    assert!(
        silent >= 0.9 && hung.harmed_requests().max() < 250,
        "{hung}"
    );
}

#[test]
fn what_breaks_only_under_load_is_caught_under_load() {
    let lives = traffic()
        .effect("ttft", Scale(1.4).from_share(25.0))
        .lives(50);
    assert!(
        lives.detected_in(1) >= 0.9 && lives.in_stage(0).1.max() == 0,
        "{lives}"
    );
}

#[test]
fn a_flaky_monitoring_system_costs_no_rollout() {
    let lives = traffic()
        .source_outage(HOUR, 10 * MINUTE)
        .router_restart(3 * HOUR)
        .lives(30);
    let lost =
        lives.share(|life| matches!(life.cause, Some(Cause::NoVerdict | Cause::Lapsed { .. })));
    assert!(lost == 0.0 && lives.promoted() >= 0.8, "{lives}");
}

#[test]
fn labels_that_come_late_cost_time_and_nothing_else() {
    let labelled = traffic()
        .delayed_labels("refusals", HOUR)
        .missing_labels("refusals", 0.5);
    let lives = labelled.effect("refusals", Ratio(3.0)).lives(100);
    assert!(lives.rolled_back_by("refusals") >= 0.95, "{lives}");
    // Two hours at 5 % and a bit: it is gone before it gets far at 25 %.
    assert!(lives.time_to_decision().p95() < 4 * HOUR, "{lives}");
}

#[test]
fn replicas_that_differ_are_a_reason_to_keep_history() {
    // A plan that nobody should run on noisy replicas without history: the test shows it, so that nobody does.
    let lives = traffic().noise(Noise::new(0.5).correlation(0.8)).lives(30);
    assert!(lives.rolled_back() > 0.3, "{lives}");
}
