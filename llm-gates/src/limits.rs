//! The decision function of the field: R(m) = 1 iff any m_i > max_i or m_i < min_i.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Verdict;

/// The range a metric must stay in. Both ends belong to the range; a missing end is open.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Name of the metric.
    pub metric: String,
    /// Least allowed value, in the metric's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Greatest allowed value, in the metric's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl Limit {
    /// A limit from above.
    pub fn at_most(metric: impl Into<String>, max: f64) -> Self {
        Self {
            metric: metric.into(),
            min: None,
            max: Some(max),
        }
    }

    /// A limit from below.
    pub fn at_least(metric: impl Into<String>, min: f64) -> Self {
        Self {
            metric: metric.into(),
            min: Some(min),
            max: None,
        }
    }
}

/// A limit that was not kept, or could not be looked at.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    /// The metric is greater than its maximum.
    Above {
        /// Name of the metric.
        metric: String,
        /// What was measured.
        value: f64,
        /// The greatest allowed value.
        max: f64,
    },
    /// The metric is less than its minimum.
    Below {
        /// Name of the metric.
        metric: String,
        /// What was measured.
        value: f64,
        /// The least allowed value.
        min: f64,
    },
    /// The metric was not measured, is not a number, or its limit is not a number: nothing can be said.
    Unknown {
        /// Name of the metric.
        metric: String,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above { metric, value, max } => {
                write!(f, "{metric} is {value}, above its maximum {max}")
            }
            Self::Below { metric, value, min } => {
                write!(f, "{metric} is {value}, below its minimum {min}")
            }
            Self::Unknown { metric } => write!(
                f,
                "{metric} has no value that can be compared with its limit"
            ),
        }
    }
}

/// The outcome of [`decide`].
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// `Fail` iff a limit is breached; else `Inconclusive` if a metric is unknown; else `Pass`.
    pub verdict: Verdict,
    /// Every limit that is not known to be kept, in the order of the limits.
    pub breaches: Vec<Breach>,
}

/// R(m) of the field, with R of a missing or NaN metric `Inconclusive` unless another limit is breached.
///
/// A point comparison: it says nothing of noise. For decisions about users see [`crate::GatePlan`].
///
/// ```
/// use llm_gates::{decide, Limit, Verdict};
/// let limits = [Limit::at_most("error_rate", 0.01), Limit::at_least("win_rate", 0.5)];
/// let measured = [("error_rate".to_owned(), 0.02), ("win_rate".to_owned(), 0.6)].into();
/// assert_eq!(decide(&limits, &measured).verdict, Verdict::Fail);
/// assert_eq!(decide(&limits, &[("win_rate".to_owned(), 0.6)].into()).verdict, Verdict::Inconclusive);
/// ```
pub fn decide(limits: &[Limit], measured: &BTreeMap<String, f64>) -> Decision {
    let mut breaches = Vec::new();
    let mut fails = false;
    for limit in limits {
        let unknown = || Breach::Unknown {
            metric: limit.metric.clone(),
        };
        let Some(&value) = measured.get(&limit.metric) else {
            breaches.push(unknown());
            continue;
        };
        if let Some(max) = limit.max
            && value > max
        {
            fails = true;
            breaches.push(Breach::Above {
                metric: limit.metric.clone(),
                value,
                max,
            });
        } else if let Some(min) = limit.min
            && value < min
        {
            fails = true;
            breaches.push(Breach::Below {
                metric: limit.metric.clone(),
                value,
                min,
            });
        } else if !(value <= limit.max.unwrap_or(f64::INFINITY)
            && value >= limit.min.unwrap_or(f64::NEG_INFINITY))
        {
            breaches.push(unknown());
        }
    }
    let verdict = if fails {
        Verdict::Fail
    } else if breaches.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Inconclusive
    };
    Decision { verdict, breaches }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_literal_function_on_numbers(
            rows in prop::collection::vec((-5.0..5.0f64, prop::option::of(-5.0..5.0f64), prop::option::of(-5.0..5.0f64)), 0..8)
        ) {
            let name = |i: usize| format!("m{i}");
            let limits: Vec<_> = rows.iter().enumerate().map(|(i, r)| Limit { metric: name(i), min: r.1, max: r.2 }).collect();
            let measured = rows.iter().enumerate().map(|(i, r)| (name(i), r.0)).collect();
            let fails = rows.iter().any(|&(x, min, max)| max.is_some_and(|m| x > m) || min.is_some_and(|m| x < m));
            let decision = decide(&limits, &measured);
            prop_assert_eq!(decision.verdict == Verdict::Fail, fails);
            prop_assert_ne!(decision.verdict, Verdict::Inconclusive);
        }

        #[test]
        fn what_is_not_a_number_never_passes(
            value in prop::sample::select(vec![None, Some(f64::NAN)]),
            min in prop::option::of(-5.0..5.0f64), max in prop::option::of(-5.0..5.0f64), other in -1.0..1.0f64,
        ) {
            let limits = [Limit { metric: "a".into(), min, max }, Limit::at_most("b", 0.0)];
            let mut measured = BTreeMap::from([("b".to_owned(), other)]);
            measured.extend(value.map(|v| ("a".to_owned(), v)));
            let expected = if other > 0.0 { Verdict::Fail } else { Verdict::Inconclusive };
            prop_assert_eq!(decide(&limits, &measured).verdict, expected);
        }
    }

    #[test]
    fn a_limit_that_is_not_a_number_passes_nothing() {
        let measured = BTreeMap::from([("a".to_owned(), 0.0)]);
        assert_eq!(
            decide(&[Limit::at_most("a", f64::NAN)], &measured).verdict,
            Verdict::Inconclusive
        );
    }
}
