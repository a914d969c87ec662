//! Thresholds, hard limits, warnings and dry runs: what they do to a rollout, from real evidence.

use crate::life::Life;
use llm_gates::{Counts, Evidence, Increment, Verdict, Window};
use llm_rollout::{Cause, Effect, Input, Phase, Plan, Verb};

const TEXT: &str = r#"
    alpha = 0.05
    bake = "1h"
    [metrics]
    faults = { fault = {} }
    slow = { first_token_over = "800ms" }
    [[gates]]
    metric = "faults"
    weight = 1.0
    [[stages]]
    serve = 5.0
    dwell = "1m"
    [[stages]]
    serve = 100.0
    dwell = "1m"
"#;

struct Watched {
    life: Life,
    evidence: Evidence,
    at: u64,
}

impl Watched {
    /// A rollout in its first stage, with more in its plan.
    fn by(more: &str) -> Self {
        let plan = Plan::from_toml(&format!("{TEXT}{more}")).unwrap();
        Self {
            life: Life::soaking_with(plan),
            evidence: Evidence::new(),
            at: 0,
        }
    }

    /// A minute in which the candidate answered so many requests, so many of them with faults and so many slowly; the baseline 1,000, with 10 and 50.
    fn minute(&mut self, n: u64, faults: u64, slow: u64) {
        let rollout = &self.life.rollout;
        let plan = rollout.plan().gate_plan(rollout.phase().stage().unwrap());
        let counts = |k, others| Increment::Binary {
            candidate: Counts::new(n, k),
            baseline: Counts::new(1_000, others),
        };
        let window = Window {
            epoch: rollout.state().split.epoch.get(),
            from: self.at * 60_000,
            to: (self.at + 1) * 60_000,
            metrics: [
                ("faults".to_owned(), counts(faults, 10)),
                ("slow".to_owned(), counts(slow, 50)),
            ]
            .into(),
        };
        self.at += 1;
        let mut look = self.life.look(Verdict::Pass, 1);
        look.judgement = self.evidence.observe(&plan.unwrap(), &window).unwrap();
        self.life.give(Input::Judged(Box::new(look))).unwrap();
    }

    fn phase(&self) -> Phase {
        self.life.rollout.phase()
    }

    fn cause(&self) -> String {
        let cause = self.life.rollout.state().cause.as_ref();
        cause.map(Cause::to_string).unwrap_or_default()
    }

    /// What people were told: (whether they were woken, what).
    fn told(&self) -> Vec<(bool, String)> {
        let intents = self.life.log.iter().flat_map(|step| &step.intents);
        let notices = intents.filter_map(|i| match &i.effect {
            Effect::Notify(notice) => Some((notice.page, notice.text.clone())),
            _ => None,
        });
        notices.collect()
    }
}

#[test]
fn a_hard_limit_goes_back_before_statistics_could() {
    let limit = "[[hard_limits]]\nmetric = \"slow\"\nmin_samples = 10\n";
    let mut watched = Watched::by(limit);
    let name = "demo".to_owned();
    watched.life.operator(Verb::Hold { name }).unwrap();
    watched.minute(9, 0, 9);
    assert_eq!(watched.phase(), Phase::Held { stage: 0 }, "too few to say");
    watched.minute(1, 0, 0);
    assert_eq!(
        watched.cause(),
        "hard limit on \"slow\": 9 of 10 requests were bad"
    );
    assert!(matches!(watched.phase(), Phase::RollingBack { .. }));
}

#[test]
fn sustained_breaches_go_back_and_single_ones_only_keep_the_stage() {
    let mut watched = Watched::by(
        "[[thresholds]]\nmetric = \"slow\"\nworse_than = { baseline_plus = 0.5 }\nmin_samples = 50\nsustained = { consecutive = 2 }\n",
    );
    watched.minute(100, 1, 9);
    assert_eq!(
        watched.phase(),
        Phase::Soaking { stage: 0 },
        "ripe, and not left in the middle of a breach"
    );
    watched.minute(10, 0, 9);
    watched.minute(100, 1, 9);
    assert_eq!(
        watched.cause(),
        "threshold \"slow\": \"slow\" was 0.0900, beyond 0.0750, in 2 windows"
    );
    let mut watched = Watched::by(
        "[[thresholds]]\nmetric = \"slow\"\nworse_than = { baseline_plus = 0.5 }\nmin_samples = 50\n",
    );
    watched.minute(100, 1, 9);
    watched.minute(100, 1, 5);
    assert_eq!(watched.phase(), Phase::Shifting { stage: 1 });
    watched.life.found();
    watched.minute(2_000, 20, 100);
    assert_eq!(
        watched.phase(),
        Phase::Promoting,
        "a relative threshold does not wait for a baseline that is not there"
    );
}

#[test]
fn a_threshold_that_holds_is_cleared_by_a_person() {
    let mut watched = Watched::by(
        "[[thresholds]]\nname = \"slo\"\nmetric = \"slow\"\nworse_than = { absolute = 0.07 }\nmin_samples = 50\nsustained = { total = 1 }\naction = \"hold\"\n",
    );
    watched.minute(100, 1, 9);
    assert_eq!(watched.phase(), Phase::Held { stage: 0 });
    watched.minute(100, 1, 9);
    let held = "held: \"slow\" is 0.0900, beyond the threshold of 0.0700";
    assert_eq!(watched.told(), [(true, held.to_owned())], "told once");
    let name = "threshold-slo".to_owned();
    watched.life.operator(Verb::Resume { name }).unwrap();
    watched.minute(100, 1, 5);
    assert_eq!(watched.phase(), Phase::Shifting { stage: 1 });
}

#[test]
fn warnings_and_dry_runs_tell_people_once_and_do_nothing_else() {
    let mut watched = Watched::by(
        "[[thresholds]]\nmetric = \"slow\"\nworse_than = { absolute = 0.07 }\nmin_samples = 50\nsustained = { total = 1 }\naction = \"warn\"\n\
         [[thresholds]]\nname = \"strict\"\nmetric = \"slow\"\nworse_than = { absolute = 0.06 }\nmin_samples = 50\nsustained = { total = 1 }\ndry_run = true\n\
         [[thresholds]]\nname = \"held\"\nmetric = \"slow\"\nworse_than = { absolute = 0.05 }\nmin_samples = 50\nsustained = { total = 1 }\naction = \"hold\"\ndry_run = true\n\
         [[gates]]\nmetric = \"slow\"\nweight = 1.0\ndry_run = true\n",
    );
    watched.minute(1_000, 10, 400);
    assert_eq!(watched.phase(), Phase::Shifting { stage: 1 });
    watched.life.found();
    watched.minute(1_000, 10, 400);
    let told = watched.told();
    let wake = told.iter().filter(|(page, _)| *page).count();
    assert_eq!((told.len(), wake), (4, 0), "{told:?}");
    for text in [
        "dry run: would rollback: evidence of harm in \"slow\"",
        "warning: \"slow\" is 0.4000, beyond the threshold of 0.0700",
        "dry run: would rollback: \"slow\" is 0.4000, beyond the threshold of 0.0600",
        "dry run: would hold: \"slow\" is 0.4000, beyond the threshold of 0.0500",
    ] {
        assert!(told.iter().any(|(_, t)| t == text), "{text} in {told:?}");
    }
}

#[test]
fn harm_that_waits_for_the_baseline_is_told_once_and_is_no_warning() {
    let mut watched = Watched::by("");
    let baseline = false;
    watched.life.give(Input::Health { baseline }).unwrap();
    for _ in 0..3 {
        watched.minute(1_000, 400, 50);
    }
    assert_eq!(watched.phase(), Phase::Held { stage: 0 });
    assert!(watched.life.rollout.state().stranded.is_some());
    let told = watched.told();
    assert_eq!(told.len(), 2, "the baseline, and harm: {told:?}");
    assert!(told.iter().all(|(wakes, _)| *wakes), "{told:?}");
}

#[test]
fn the_threshold_that_rolls_back_is_the_cause_and_none_that_warns() {
    let threshold = |name: &str, limit: f64, what: &str| {
        format!(
            "[[thresholds]]\nname = \"{name}\"\nmetric = \"slow\"\nworse_than = {{ absolute = {limit} }}\nmin_samples = 50\nsustained = {{ total = 1 }}\n{what}\n"
        )
    };
    let mut watched = Watched::by(
        &[
            threshold("goal", 0.06, "action = \"warn\""),
            threshold("new", 0.07, "dry_run = true"),
            threshold("kept", 0.5, ""),
            threshold("slo", 0.08, ""),
        ]
        .concat(),
    );
    watched.minute(100, 1, 9);
    assert!(
        watched.cause().starts_with("threshold \"slo\": "),
        "{}",
        watched.cause()
    );
}

#[test]
fn an_alarm_may_warn_and_wake_nobody() {
    let mut watched = Watched::by("[triggers.alarms]\nquota = \"warn\"\n");
    let alarm = llm_rollout::Alarm {
        name: "quota".to_owned(),
        detail: "80 %".to_owned(),
    };
    watched.life.give(Input::Alarm(alarm)).unwrap();
    let text = "alarm \"quota\": 80 %".to_owned();
    assert_eq!(watched.told(), [(false, text)]);
    assert_eq!(watched.phase(), Phase::Soaking { stage: 0 });
}

#[test]
fn logs_of_before_still_load() {
    let step = serde_json::to_value(Watched::by("").life.log.last().unwrap()).unwrap();
    assert!(step["state"].get("warned").is_none(), "nothing new in it");
    let plan = Plan::from_toml(TEXT).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    for new in ["thresholds", "hard_limits", "cold_start", "dry_run"] {
        assert!(!text.contains(new), "{new} in {text}");
    }
    assert_eq!(Plan::from_json(&text).unwrap(), plan);
}
