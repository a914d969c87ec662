//! The forecast agrees with simulation, on plans that nobody has chosen.
//!
//! For each seeded random plan: traffic, stages, gates, budgets, rates and a harm are drawn, the planner forecasts, and the policy test kit
//! lives through it. Probabilities (in all and by stage) may differ by 0.1, and expected requests exposed and harmed by 10 %, each beyond three standard
//! errors of the simulation, which are at most 0.05 and a few per cent. Expectations below 20 exposed or 2 harmed requests are left out.

#![expect(clippy::print_stdout, reason = "the deviations are worth reading")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use llm_gates::{Action, LiveGate};
use llm_rollout::forecast::{Forecast, Planner};
use llm_rollout::policy::{Lives, Ratio, Scenario};
use llm_rollout::presets::{self, Gates, Pace};
use llm_rollout::{Expected, MetricDef, Plan, Traffic};
use std::time::Duration;

/// `SplitMix64`.
struct Seeded(u64);

impl Seeded {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let at = (self.unit() * choices.len() as f64).floor();
        let nth = choices.iter().enumerate().find(|(i, _)| *i as f64 >= at);
        *nth.unwrap().1
    }
}

struct Case {
    plan: Plan,
    traffic: Traffic,
    harm: Vec<(String, f64)>,
}

fn random(seed: u64) -> Case {
    let mut seeded = Seeded(seed.wrapping_mul(0xd134_2543_de82_ef95));
    let rps = 10f64.powf(seeded.between(0.5, 2.0));
    let mut traffic = Traffic::new(rps);
    let mut gates = Gates::nothing();
    gates.alpha = seeded.one_of(&[0.01, 0.05, 0.1]);
    let count = seeded.one_of(&[1, 2, 3]);
    let mut harm = Vec::new();
    for i in 0..count {
        let name = format!("metric_{i}");
        let margin = seeded.one_of(&[0.0, 0.0, 0.1, 0.2]);
        let rate = 10f64.powf(seeded.between(-2.7, -0.8));
        let known = seeded.one_of(&[1.0, 1.0, 0.3]);
        traffic = traffic.metric(&name, Expected::new(rate, 2.0).sampled(known));
        gates
            .metrics
            .insert(name.clone(), MetricDef::Flag(name.clone()));
        let weight = 1.0 / f64::from(count);
        gates
            .gates
            .push(LiveGate::new(&name, weight, margin, Action::Rollback));
        // The first gate always sees something, the others now and then.
        if i == 0 || seeded.unit() < 0.3 {
            let most = (0.9 / rate).min(5.0);
            harm.push((name, seeded.between(0.0, most.ln()).exp()));
        }
    }
    let shares = [1.0, 2.0, 5.0, 10.0, 20.0, 25.0, 40.0, 50.0];
    let mut chosen: Vec<f64> = (0..seeded.one_of(&[1, 2, 3]))
        .map(|_| seeded.one_of(&shares))
        .collect();
    chosen.sort_by(f64::total_cmp);
    chosen.dedup();
    let shares = presets::shares(chosen).unwrap();
    let plan = presets::canary(gates, shares, Pace::new(Duration::from_secs(3600), 0)).unwrap();
    let mut spec = plan.spec().clone();
    spec.look_every = Duration::from_secs(seeded.one_of(&[30, 60, 60, 300]));
    for stage in &mut spec.stages {
        stage.dwell = Duration::from_secs(60 * seeded.one_of(&[30, 60, 120, 240]));
        stage.min_samples = seeded.one_of(&[0, 100, 1_000]);
    }
    Case {
        plan: spec.try_into().unwrap(),
        traffic,
        harm,
    }
}

fn both(case: &Case, lives: usize) -> (Forecast, Lives) {
    let planner = Planner::new(case.plan.clone(), case.traffic.clone()).unwrap();
    let harm: Vec<_> = case.harm.iter().map(|(m, r)| (m.as_str(), *r)).collect();
    let mut scenario = Scenario::new(case.plan.clone()).traffic(case.traffic.clone());
    for (metric, ratio) in &case.harm {
        scenario = scenario.effect(metric, Ratio(*ratio));
    }
    (planner.forecast(&harm).unwrap(), scenario.lives(lives))
}

/// How far apart both are, of 1 where it is just allowed.
fn apart(forecast: &Forecast, lives: &Lives) -> Vec<(String, f64, f64, f64)> {
    let n = lives.rolled_back().n as f64;
    let mut found = Vec::new();
    let mut probability = |what: String, expected: f64, simulated: f64| {
        let error = (simulated * (1.0 - simulated) / n).sqrt() + 0.5 / n;
        let off = ((expected - simulated).abs() - 3.0 * error).max(0.0) / 0.1;
        found.push((what, expected, simulated, off));
    };
    probability(
        "detected".into(),
        forecast.detected,
        lives.detected().value(),
    );
    probability("passed".into(), forecast.passed, lives.promoted().value());
    for (i, stage) in forecast.stages.iter().enumerate() {
        probability(
            format!("detected in {i}"),
            stage.detected,
            lives.detected_in(i).value(),
        );
    }
    let mut requests =
        |what: String, expected: f64, sample: llm_rollout::policy::Sample<u64>, least: f64| {
            let (mean, error) = (sample.mean(), sample.standard_error());
            if mean >= least || expected >= least {
                let off = ((expected - mean).abs() - 3.0 * error).max(0.0) / (0.1 * mean);
                found.push((what, expected, mean, off));
            }
        };
    requests(
        "exposed".into(),
        forecast.exposed,
        lives.exposed_requests(),
        20.0,
    );
    requests(
        "harmed".into(),
        forecast.harmed,
        lives.harmed_requests(),
        2.0,
    );
    found
}

fn agree(seeds: std::ops::Range<u64>, lives: usize) {
    let (mut bad, mut worst) = (Vec::new(), (0.0, 0.0, 0.0_f64));
    for seed in seeds.clone() {
        let case = random(seed);
        let (forecast, lives) = both(&case, lives);
        for (what, expected, simulated, off) in apart(&forecast, &lives) {
            let plain = (expected - simulated).abs();
            match what.as_str() {
                "exposed" => worst.0 = f64::max(worst.0, plain / simulated),
                "harmed" => worst.1 = f64::max(worst.1, plain / simulated),
                _ => worst.2 = worst.2.max(plain),
            }
            if off > 1.0 {
                let harm = &case.harm;
                bad.push(format!("plan {seed} ({harm:?}): {what}: forecast {expected:.4}, simulated {simulated:.4}"));
            }
        }
    }
    println!(
        "{} plans of {lives} lives each: apart by at most {:.1} % exposed, {:.1} % harmed, {:.3} in a probability, chance included",
        seeds.end - seeds.start,
        100.0 * worst.0,
        100.0 * worst.1,
        worst.2
    );
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn the_forecast_agrees_with_simulation_on_some_plans() {
    agree(0..8, 150);
}

/// `.ci/steps/agreement`.
#[test]
#[ignore = "60 plans of 1,000 lives, a minute in release: .ci/steps/agreement"]
fn the_forecast_agrees_with_simulation_on_sixty_plans() {
    agree(100..160, 1_000);
}
