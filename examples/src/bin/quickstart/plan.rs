//! The plan of the story's rollouts: data that a team would keep beside its code, with times scaled to a demonstration.

use llm_rollout::{Plan, PlanError};
use std::time::Duration;

/// The plan. `slow` is what counts as a slow reply on this machine, `seconds` how long the live part may take.
pub(crate) fn plan(seconds: u32, slow: Duration) -> Result<Plan, PlanError> {
    let dwell = u64::from(seconds) * 1000 / 9;
    let text = PLAN
        .replace("{dwell}", &format!("{dwell}ms"))
        .replace("{limit}", &format!("{}ms", (dwell * 8).max(30_000)))
        .replace("{bake}", &format!("{}ms", dwell / 2))
        .replace("{look}", &format!("{}ms", (dwell / 16).clamp(100, 2_000)))
        .replace("{slow}", &format!("{}ms", slow.as_millis()));
    Plan::from_toml(&text)
}

const PLAN: &str = r#"
# The probability that a harmless candidate is rolled back: over all gates, all stages, all looks.
alpha = 0.05
# Evidence at this level freezes the ramp; more evidence decides.
pause_alpha = 0.2
look_every = "{look}"
bake = "{bake}"

# What is counted, per request.
[metrics]
faults = { fault = {} }
bad_format = { flag = "bad_format" }
slow = { duration_over = "{slow}" }

# What must not happen on live traffic. The weights share one alpha.
[[gates]]
metric = "faults"
weight = 0.3
[[gates]]
metric = "bad_format"
weight = 0.5
margin = 0.1
[[gates]]
metric = "slow"
weight = 0.2
margin = 0.5

# What must hold before any user sees the candidate.
[pre_flight]
deadline = "2m"
[[pre_flight.gates.gates]]
metric = "well_formed"
must_be = "at_least"
threshold = { absolute = 0.95 }
criterion = { point = { min_n = 60 } }
action = "block"
[[pre_flight.gates.gates]]
metric = "win_rate"
must_be = "at_least"
threshold = { absolute = 0.5 }
criterion = { non_inferior = { margin = 0.3 } }
action = "block"
[[pre_flight.gates.gates]]
metric = "bits_per_byte"
must_be = "at_most"
threshold = { baseline_plus = 0.05 }
criterion = { point = { min_n = 30 } }
action = "block"
[[pre_flight.gates.gates]]
metric = "seconds_per_reply"
must_be = "at_most"
threshold = { baseline_plus = 0.2 }
criterion = { point = { min_n = 60 } }
action = "warn"

[[stages]]
serve = 10.0
dwell = "{dwell}"
limit = "{limit}"
min_samples = 12
[[stages]]
serve = 25.0
dwell = "{dwell}"
limit = "{limit}"
min_samples = 25
[[stages]]
serve = 50.0
dwell = "{dwell}"
limit = "{limit}"
min_samples = 40
[[stages]]
serve = 100.0
dwell = "{dwell}"
limit = "{limit}"

[recovery]
drain = "10s"

[triggers]
candidate_silent = "20s"
no_verdict = "60s"

# The dead-man's switch; a demonstration that is killed may rest for days.
[lease]
ttl = "8s"
renew_every = "2s"
lapses = 50
longest_lapse = "365d"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_plan_at_any_scale() {
        for seconds in [10, 75, 3600] {
            let plan = plan(seconds, Duration::from_millis(120)).unwrap();
            assert_eq!(plan.stages().len(), 4);
        }
    }
}
