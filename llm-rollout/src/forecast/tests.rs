//! What a forecast says of itself; that it agrees with simulation is shown by `tests/agreement.rs`.

use super::{BadForecast, Caps, Demand, Fleet, Planner, design, requests_needed};
use crate::presets::{self, Gates, Pace};
use crate::{Expected, MetricDef, Plan, Share, Traffic};
use proptest::prelude::*;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn traffic() -> Traffic {
    Traffic::new(20.0)
        .metric("faults", Expected::new(0.01, 2.0))
        .metric("slow", Expected::new(0.01, 1.5))
}

fn canary(hours: u32) -> Plan {
    let shares = presets::shares([1.0, 5.0, 25.0]).unwrap();
    let gates = Gates::usual(Duration::from_millis(800));
    presets::canary(gates, shares, Pace::new(hours * HOUR, 100)).unwrap()
}

fn planner() -> Planner {
    Planner::new(canary(2), traffic()).unwrap()
}

#[test]
fn everything_adds_up() {
    for harm in [
        &[][..],
        &[("faults", 2.0)],
        &[("faults", 1.3), ("slow", 4.0)],
    ] {
        let forecast = planner().forecast(harm).unwrap();
        assert!((forecast.detected + forecast.undecided + forecast.passed - 1.0).abs() < 1e-6);
        let mut reached = 1.0;
        for stage in &forecast.stages {
            assert!((stage.reached - reached).abs() < 1e-6);
            reached -= stage.detected + stage.undecided;
        }
        let exposed: f64 = forecast.stages.iter().map(|s| s.exposed).sum();
        assert!((exposed - forecast.exposed).abs() < 1e-6);
        let per_request: f64 = harm.iter().map(|(_, ratio)| 0.01 * (ratio - 1.0)).sum();
        assert!((forecast.harmed - per_request * exposed).abs() < 1e-6 * exposed);
        assert!(forecast.notes.is_empty(), "{:?}", forecast.notes);
    }
    let harmless = planner().forecast(&[]).unwrap();
    assert!(harmless.detected < 0.05);
    let worse = planner().forecast(&[("faults", 3.0)]).unwrap();
    assert!(worse.detected > 0.999 && worse.median_time < worse.longest_time);
}

#[test]
fn a_stage_without_samples_ends_undecided() {
    let shares = presets::shares([1.0]).unwrap();
    let gates = Gates::usual(Duration::from_millis(800));
    let plan = presets::canary(gates, shares, Pace::new(HOUR, 1_000_000)).unwrap();
    let forecast = Planner::new(plan, traffic())
        .unwrap()
        .forecast(&[])
        .unwrap();
    assert!(forecast.undecided > 0.95 && forecast.passed.abs() < 1e-12);
    // The limit is four times the dwell.
    assert!(forecast.stages[0].lasts > 3 * HOUR && forecast.stages[0].lasts <= 4 * HOUR);
}

#[test]
fn what_is_found_at_least_is_found() {
    let planner = planner();
    let first = planner.least_found("faults", 0, 0.9).unwrap();
    let all = planner.least_found("faults", 2, 0.9).unwrap();
    assert!(first > all && all > 1.0, "{first} {all}");
    let forecast = planner.forecast(&[("faults", all)]).unwrap();
    assert!(
        (0.9..0.93).contains(&forecast.detected),
        "{}",
        forecast.detected
    );
    assert!(planner.least_found("faults", 0, 0.999_999_9).is_none() || first > 1.0);
}

#[test]
fn latencies_and_rates_are_two_ways_to_say_it() {
    let planner = planner();
    let ratio = planner.as_ratio("slow", 1.3, 0.6).unwrap();
    // Of a log-normal distribution with deviation 0.6, 2.94 % exceed the old 99th percentile when it is 30 % slower.
    assert!((ratio - 2.94).abs() < 0.03, "{ratio}");
    assert!((planner.as_scale("slow", ratio, 0.6).unwrap() - 1.3).abs() < 1e-9);
}

#[test]
fn a_designed_plan_finds_what_it_must() {
    let shares = presets::shares([1.0, 5.0, 25.0, 100.0]).unwrap();
    let gates = Gates::usual(Duration::from_millis(800));
    let demand = Demand {
        power: 0.9,
        longest: 24 * HOUR,
        fleet: None,
    };
    let plan = design(gates.clone(), shares.clone(), &traffic(), demand).unwrap();
    let dwells: Vec<_> = plan.stages().iter().map(|s| s.dwell).collect();
    assert!(dwells[0] > dwells[1] && dwells[1] > dwells[2], "{dwells:?}");
    assert_eq!(dwells[3], 24 * HOUR);
    // By itself: what the stages before have gathered comes on top.
    let planner = Planner::new(plan, traffic()).unwrap();
    for (metric, effect) in [("faults", 2.0), ("slow", 1.5)] {
        let forecast = planner.forecast(&[(metric, effect)]).unwrap();
        assert!(forecast.detected > 0.9, "{metric}: {}", forecast.detected);
    }
    let fleet = Fleet {
        requests_per_second: 3.0,
        ..Fleet::default()
    };
    let narrow = Demand {
        fleet: Some(fleet),
        ..demand
    };
    let plan = design(gates.clone(), shares.clone(), &traffic(), narrow).unwrap();
    assert_eq!(
        plan.stages().len(),
        2,
        "25 % of 20 a second are more than 3"
    );
    let tiny = Demand {
        fleet: Some(Fleet {
            requests_per_second: 0.1,
            ..fleet
        }),
        ..demand
    };
    assert!(design(gates, shares, &traffic(), tiny).is_err());
}

#[test]
fn costs_are_counted_and_capped() {
    let gates = Gates::nothing()
        .gate("faults", MetricDef::Fault {}, 0.6, 0.0)
        .gate("answers", MetricDef::Pair("judge".to_owned()), 0.4, 0.05);
    let ten = presets::shares([10.0]).unwrap()[0];
    let shares = presets::shares([20.0]).unwrap();
    let first = (ten, Pace::new(10 * HOUR, 0));
    let plan = presets::shadow_then_canary(gates, first, shares, Pace::new(5 * HOUR, 0)).unwrap();
    let planner = Planner::new(plan, traffic()).unwrap();
    let fleet = Fleet {
        gpus: 4.0,
        requests_per_second: 3.0,
        replicas: 1,
        ..Fleet::default()
    };
    let cost = planner.cost(&fleet);
    // 10 % of 20 a second are 2, 20 % are 4, which is more than one replica carries.
    assert!(cost.stages[0].fits && !cost.stages[1].fits);
    assert!((cost.candidate_gpu_hours - (4.0 * 10.0 + 8.0 * 5.0)).abs() < 1e-9);
    // Seven replicas of the old version for a day of baking.
    assert!((cost.standby_gpu_hours - 7.0 * 4.0 * 24.0).abs() < 1e-9);
    let pairs = 2.0 * 36_000.0;
    assert!((cost.shadow_tokens - pairs * 1_000.0).abs() < 1.0);
    assert!((cost.judge_tokens - pairs * 1_500.0).abs() < 1.0);
    let capped = planner.cost(&Fleet {
        caps: Caps {
            judge_tokens: pairs * 750.0,
            ..Caps::default()
        },
        ..fleet
    });
    assert_eq!(capped.stages[0].capped_after, Some(5 * HOUR));
    assert!((capped.judge_tokens - pairs * 750.0).abs() < 1.0);
    assert_eq!(
        fleet.largest_share(20.0),
        Share::from_percent(15.0).unwrap()
    );
    assert_eq!(
        Fleet { peak: 2.0, ..fleet }
            .largest_share(20.0)
            .percent()
            .to_bits(),
        7.5f64.to_bits()
    );
    assert!(
        !planner.forecast(&[]).unwrap().notes.is_empty(),
        "pairs are not forecast"
    );
}

#[test]
fn what_cannot_be_planned_is_named() {
    let unknown = planner().forecast(&[("fautls", 2.0)]).unwrap_err();
    assert!(matches!(&unknown, BadForecast::Metric { known, .. } if known.contains("faults")));
    for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(planner().forecast(&[("faults", ratio)]).is_err());
    }
    assert!(Planner::new(canary(1), Traffic::new(-1.0)).is_err());
    assert!(planner().as_scale("slow", 101.0, 0.6).is_err());
    assert!(requests_needed(0.01, 1.0, 0.0, 0.05, 0.05, 0.9).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// It ends with sane numbers, however long the plan and however dense the looks.
    #[test]
    fn any_plan_is_forecast_in_bounded_time(rps in 0.01..10_000.0f64, hours in 1u32..2_000, look in 10u64..1_000_000, samples in 0u64..10_000_000, ratio in 0.1..99.0f64) {
        let mut spec = canary(1).spec().clone();
        spec.look_every = Duration::from_millis(look);
        for stage in &mut spec.stages {
            stage.dwell = hours * HOUR;
            stage.min_samples = samples;
        }
        let traffic = Traffic { requests_per_second: rps, ..traffic() };
        let forecast = Planner::new(spec.try_into().unwrap(), traffic).unwrap().forecast(&[("faults", ratio)]).unwrap();
        for p in [forecast.detected, forecast.undecided, forecast.passed] {
            prop_assert!((-1e-6..=1.0 + 1e-6).contains(&p));
        }
        prop_assert!(forecast.exposed.is_finite() && forecast.exposed >= 0.0);
    }
}
