//! What a check of another tool most likely counts, and the gates that watch the same.

use super::document::Node;
use super::{Carried, Notes};
use llm_gates::{LiveThreshold, Sustained, Threshold};
use llm_rollout::presets::Gates;
use llm_rollout::{MetricDef, Plan, PlanError};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a check lets pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A check as another tool states it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) what: MetricDef,
    /// The greatest share of bad requests that passes.
    pub(super) most: Option<f64>,
    /// How many failures it takes to go back.
    pub(super) failures: u32,
    /// Whether it is only watched.
    pub(super) dry_run: bool,
}

/// What the words of a name and a query are about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum About {
    /// Time from start to end, or to the first token; the quantile that is looked at.
    Time {
        first_token: bool,
        quantile: f64,
    },
    Good,
    Bad,
    Unknown,
}

fn about(name: &str, query: &str) -> About {
    let words = format!("{name} {query}").to_lowercase();
    let any = |needles: &[&str]| needles.iter().any(|n| words.contains(n));
    let first_token = any(&["first_token", "first-token", "ttft"]);
    if first_token
        || any(&[
            "duration",
            "latency",
            "response_time",
            "response-time",
            "quantile",
        ])
    {
        let quantile = if any(&["0.999", "p999"]) {
            0.999
        } else if any(&["0.95", "p95"]) {
            0.95
        } else if any(&["0.9,", "0.90", "p90"]) {
            0.9
        } else if any(&["0.5,", "0.50", "p50", "median"]) {
            0.5
        } else {
            0.99
        };
        About::Time {
            first_token,
            quantile,
        }
    } else if any(&["success", "availability", "non_5xx"]) {
        About::Good
    } else if any(&["error", "5xx", "5..", "fail", "fault"]) {
        About::Bad
    } else {
        About::Unknown
    }
}

/// A share, to six places; above 1, or where the words say so, it was written in per cent.
fn share(value: f64, words: &str) -> Option<f64> {
    let percent = value > 1.0 || words.contains("* 100") || words.contains("percent");
    let share = if percent { value / 100.0 } else { value };
    (0.0..=1.0).contains(&share).then(|| rounded(share))
}

fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}

/// A time; from 20 on, or where the words say so, it was written in milliseconds.
fn time(value: f64, words: &str) -> Option<Duration> {
    let milliseconds = value >= 20.0 || words.contains("_ms") || words.contains("milli");
    let seconds = if milliseconds { value / 1000.0 } else { value };
    let whole = Duration::try_from_secs_f64(seconds).ok()?.as_millis();
    let whole = u64::try_from(whole).ok()?;
    (1..=86_400_000)
        .contains(&whole)
        .then(|| Duration::from_millis(whole))
}

impl Check {
    /// Reads a check, and says what was guessed.
    pub(super) fn read(
        node: &Node<'_>,
        name: &str,
        query: &str,
        bound: Option<Bound>,
        notes: &mut Notes,
    ) -> Self {
        let (what, most, text) = match (about(name, query), bound) {
            (
                About::Time {
                    first_token,
                    quantile,
                },
                Some(Bound::AtMost(limit)),
            ) if time(limit, query).is_some() => {
                let limit = time(limit, query).unwrap_or_default();
                let (what, span) = if first_token {
                    (MetricDef::FirstTokenOver(limit), "to the first token")
                } else {
                    (MetricDef::DurationOver(limit), "from start to end")
                };
                let text = format!(
                    "counts requests that take longer than {} {span}; a p{} under it means that at most {} % of them do",
                    humantime::format_duration(limit),
                    percent(quantile),
                    percent(1.0 - quantile),
                );
                (what, Some(rounded(1.0 - quantile)), text)
            }
            (About::Good, Some(Bound::AtLeast(least))) if share(least, query).is_some() => {
                let most = rounded(1.0 - share(least, query).unwrap_or_default());
                (MetricDef::Fault {}, Some(most), faults(most))
            }
            (About::Bad, Some(Bound::AtMost(most))) if share(most, query).is_some() => {
                let most = share(most, query).unwrap_or_default();
                (MetricDef::Fault {}, Some(most), faults(most))
            }
            _ => {
                let text = format!(
                    "no query is run: raise the flag `{name}` on each request that fails this check, or take another metric"
                );
                (MetricDef::Flag(name.to_owned()), None, text)
            }
        };
        notes.differs(node, text);
        Self {
            name: name.to_owned(),
            what,
            most,
            failures: 1,
            dry_run: false,
        }
    }
}

/// All checks of a file, by name.
#[derive(Debug, Default)]
pub(super) struct Checks(BTreeMap<String, Check>);

impl Checks {
    pub(super) fn add(&mut self, check: Check) {
        self.0.insert(check.name.clone(), check);
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Check> {
        self.0.get_mut(name)
    }

    /// The plan that a preset makes of gates on these metrics: each compared with the baseline at the same time, under one error
    /// budget in equal parts, and its own threshold beside that.
    pub(super) fn plan<E: From<PlanError>>(
        self,
        notes: &mut Notes,
        preset: impl FnOnce(Gates) -> Result<Plan, E>,
    ) -> Result<Plan, E> {
        let live = self.0.values().filter(|c| !c.dry_run).count();
        if live == 0 {
            notes.add("", Carried::Differently, "no gate watches the candidate, only alarms, dead-man's switches and people, and the plan says so: add `metrics` and `gates`, and remove `ungated`");
        } else {
            notes.add("", Carried::Differently, "every gate also compares with the baseline at the same time, in every stage, under one probability of a false rollback (`alpha`) that holds however often it is looked at; the thresholds of the file stand beside that, and chance alone breaks them now and then: drop them once the gates are trusted");
        }
        let mut gates = Gates::nothing();
        for check in self.0.values() {
            let margin = if check.what == (MetricDef::Fault {}) {
                0.0
            } else {
                0.2
            };
            let weight = 1.0 / live.max(1) as f64;
            gates = gates.gate(&check.name, check.what.clone(), weight, margin);
            if let Some(gate) = gates.gates.last_mut() {
                gate.dry_run = check.dry_run;
            }
        }
        let mut spec = preset(gates)?.spec().clone();
        for check in self.0.values() {
            if let Some(most) = check.most {
                spec.thresholds.push(LiveThreshold {
                    sustained: Sustained::Total(check.failures.max(1)),
                    dry_run: check.dry_run,
                    ..LiveThreshold::new(&check.name, Threshold::Absolute(most))
                });
            }
        }
        spec.ungated = spec.gates.is_empty();
        Ok(Plan::try_from(spec)?)
    }
}

/// In per cent, to four places.
fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}

fn faults(most: f64) -> String {
    format!(
        "counts requests that fail by the version's fault, measured where they are served; at most {} % of them may",
        percent(most)
    )
}

/// The one comparison of a result with a number in a condition such as `len(result) == 0 || result[0] >= 0.95`; none if there
/// are several, or none. A condition of failure is turned round.
pub(super) fn bound(condition: &str, success: bool) -> Option<Bound> {
    let mut found = None;
    for part in condition.split("||").flat_map(|p| p.split("&&")) {
        let Some((left, right)) = part.split_once(['<', '>']) else {
            continue;
        };
        let right = right.trim_start_matches('=').trim().trim_end_matches(')');
        if !left.contains("result") || left.contains("len(") {
            continue;
        }
        let number = right.parse::<f64>().ok().filter(|n| n.is_finite())?;
        let most = part.contains('<') == success;
        let bound = if most {
            Bound::AtMost(number)
        } else {
            Bound::AtLeast(number)
        };
        if found.replace(bound).is_some() {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Bound, bound};

    #[test]
    fn conditions_are_read() {
        let at_least = Some(Bound::AtLeast(0.95));
        assert_eq!(bound("result[0] >= 0.95", true), at_least);
        assert_eq!(
            bound("len(result) == 0 || result[0] >= 0.95", true),
            at_least
        );
        assert_eq!(
            bound("isNaN(result[0]) || asFloat(result[0]) > 0.95", true),
            at_least
        );
        assert_eq!(bound("default(result, 0) < 0.95", false), at_least);
        assert_eq!(bound("result <= 500", true), Some(Bound::AtMost(500.0)));
        assert_eq!(bound("result[0] > 0.05", false), Some(Bound::AtMost(0.05)));
        assert_eq!(bound("result[0] > 1 && result[0] < 2", true), None);
        assert_eq!(bound("result.ok == true", true), None);
        assert_eq!(bound("result < NaN", true), None);
    }
}
