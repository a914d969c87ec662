//! Small plans of every kind.

use llm_rollout::Plan;
use std::sync::LazyLock;

const COMMON: &str = r#"
alpha = 0.05
look_every = "2s"
bake = "4s"
finish = "FINISH"
[metrics]
faults = { fault = {} }
[[gates]]
metric = "faults"
weight = 1.0
[triggers]
candidate_silent = "6s"
no_verdict = "20s"
[recovery]
drain = "1s"
warm = "10s"
standby = "STANDBY"
[lease]
ttl = "12s"
renew_every = "3s"
grace = "10s"
lapses = 4
longest_lapse = "60s"
[outcomes]
warm = "30s"
shift = "20s"
held = "25s"
"#;

const PRE_FLIGHT: &str = r#"
[pre_flight]
deadline = "20s"
[[pre_flight.gates.gates]]
metric = "toxicity"
must_be = "at_most"
threshold = { absolute = 0.05 }
criterion = { point = { min_n = 100 } }
action = "block"
"#;

const STAGE: &str = r#"
[[stages]]
serve = SHARE
dwell = "4s"
limit = "40s"
min_samples = 30
"#;

/// Milliseconds: the lease of every plan.
pub(crate) const LEASE: u64 = 12_000;
/// True milliseconds after which a rollout is over in which nothing goes wrong any more.
pub(crate) const LONGEST: u64 = 400_000;

/// Which plans have gates before any exposure.
pub(crate) const WITH_PRE_FLIGHT: [usize; 2] = [2, 4];

pub(crate) static PLANS: LazyLock<Vec<Plan>> = LazyLock::new(|| {
    let stage = |share: &str| STAGE.replace("SHARE", share);
    let common = |standby: &str| {
        COMMON
            .replace("STANDBY", standby)
            .replace("FINISH", "promote")
    };
    let everything = "[[stages]]\nserve = 100.0\ndwell = \"2s\"\nneeds = []\n";
    let preview = "[[stages]]\ndwell = \"2s\"\n";
    [
        // A canary.
        common("warm") + &stage("20.0") + &stage("60.0"),
        // Everything at once in the end, the baseline scaled down while the candidate has all.
        common("cold") + &stage("50.0") + everything,
        // Blue and green, with a preview.
        common("warm") + PRE_FLIGHT + preview + &stage("50.0") + everything,
        // By hand.
        common("warm") + &stage("20.0") + &stage("40.0") + "advance = \"manual\"\ncontrol = 40.0\n",
        // Three steps.
        common("cold") + PRE_FLIGHT + &stage("10.0") + &stage("30.0") + &stage("80.0"),
        // An experiment.
        common("warm").replace("\"promote\"", "\"return\"") + &stage("50.0"),
    ]
    .iter()
    .map(|text| Plan::from_toml(text).unwrap())
    .collect()
});
