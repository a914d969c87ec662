//! What every [`Evaluator`] must do.

use super::{Violation, ensure};
use crate::host::Evaluator;
use llm_gates::{Measurement, Measurements, Sample};
use llm_version_core::VersionId;
use std::fmt::Debug;
use std::time::Duration;

type Outcome = Result<(), Violation>;

/// What the suite needs to know of an evaluator. Its versions must be such that they can be evaluated now.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Subject<'a, N> {
    /// The evaluator.
    pub evaluator: &'a dyn Evaluator,
    /// A version that it can evaluate.
    pub version: &'a VersionId,
    /// Another one.
    pub other: &'a VersionId,
    /// A version that it cannot know.
    pub unknown: &'a VersionId,
    /// How much two measurements of the same may differ, by metric, in its unit; 0 where it is deterministic.
    pub noise: N,
    /// In which time every evaluation must be over.
    pub within: Duration,
}

/// Runs every check: four evaluations.
///
/// ```
/// # use llm_serve_adapters::{host::{self, Error, Evaluator}, testing};
/// # use llm_gates::{Measurement, Measurements, Sample};
/// # use llm_version_core::VersionId;
/// # use std::{collections::BTreeSet, time::Duration};
/// #[derive(Debug)]
/// struct Mine(Vec<VersionId>);
///
/// #[async_trait::async_trait]
/// impl Evaluator for Mine {
///     async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> host::Result<Measurements> {
///         for version in [candidate, baseline] {
///             self.0.iter().find(|known| *known == version).ok_or_else(|| Error::permanent(format!("{version} is not here")))?;
///         }
///         let passed = Sample::Proportion { k: 9, n: 10 };
///         Ok(Measurements::from([("passed".to_owned(), Measurement::against(passed, passed))]))
///     }
///
///     fn measures(&self) -> Option<BTreeSet<String>> {
///         Some(["passed".to_owned()].into())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), testing::Violation> {
/// # let [a, b, c] = ['a', 'b', 'c'].map(|digit| format!("chat/v1.0.0-{}", digit.to_string().repeat(64)).parse::<VersionId>().unwrap());
/// let evaluator = Mine(vec![a.clone(), b.clone()]);
/// testing::evaluator::suite(testing::evaluator::Subject {
///     evaluator: &evaluator, version: &a, other: &b, unknown: &c, noise: |_: &str| 0.0, within: Duration::from_secs(60),
/// }).await
/// # }
/// ```
///
/// # Errors
/// The first rule that the evaluator breaks.
pub async fn suite<N: Fn(&str) -> f64>(subject: Subject<'_, N>) -> Outcome {
    let Subject {
        evaluator,
        version,
        other,
        unknown,
        noise,
        within,
    } = subject;
    let same = evaluated(evaluator, version, version, within).await?;
    names(evaluator, &same)?;
    samples(&same)?;
    no_difference(&same, &noise)?;
    let first = evaluated(evaluator, version, other, within).await?;
    names(evaluator, &first)?;
    samples(&first)?;
    let second = evaluated(evaluator, version, other, within).await?;
    again(&first, &second, &noise)?;
    let made_up = bounded(evaluator, unknown, version, within).await?;
    ensure(
        "a version that cannot be evaluated is an error",
        made_up.is_err(),
        made_up,
    )
}

async fn bounded(
    evaluator: &dyn Evaluator,
    candidate: &VersionId,
    baseline: &VersionId,
    within: Duration,
) -> Result<crate::host::Result<Measurements>, Violation> {
    let over = tokio::time::timeout(within, evaluator.evaluate(candidate, baseline)).await;
    let rule = "an evaluation ends in time, whatever it waits for";
    over.or_else(|_| ensure(rule, false, within).map(|()| Ok(Measurements::new())))
}

async fn evaluated(
    evaluator: &dyn Evaluator,
    candidate: &VersionId,
    baseline: &VersionId,
    within: Duration,
) -> Result<Measurements, Violation> {
    let rule = "a version that can be evaluated is measured";
    match bounded(evaluator, candidate, baseline, within).await? {
        Ok(measured) => {
            ensure("something is measured", !measured.is_empty(), &measured)?;
            Ok(measured)
        }
        Err(e) => ensure(rule, false, e.to_string()).map(|()| Measurements::new()),
    }
}

/// What is measured is what was declared, if anything was.
///
/// # Errors
/// The rule that is broken.
pub fn names(evaluator: &dyn Evaluator, measured: &Measurements) -> Outcome {
    let Some(declared) = evaluator.measures() else {
        return Ok(());
    };
    let found: Vec<_> = measured.keys().collect();
    let rule = "what is measured was declared";
    ensure(rule, found.iter().all(|n| declared.contains(*n)), &found)?;
    let rule = "what was declared is measured";
    ensure(rule, declared.iter().all(|n| found.contains(&n)), &found)
}

/// Samples are of something, and do not contradict themselves.
///
/// # Errors
/// The rule that is broken.
pub fn samples(measured: &Measurements) -> Outcome {
    for (
        name,
        Measurement {
            candidate,
            baseline,
        },
    ) in measured
    {
        for sample in std::iter::once(candidate).chain(baseline) {
            let possible = match *sample {
                Sample::Proportion { k, n } => k <= n,
                Sample::Mean { mean, sd, .. } => mean.is_finite() && sd.is_finite() && sd >= 0.0,
                Sample::Quantile {
                    q,
                    value,
                    lower,
                    upper,
                    ..
                } => q > 0.0 && q < 1.0 && lower <= value && value <= upper,
                _ => true,
            };
            let rule = "a sample does not contradict itself";
            ensure(rule, possible, (name, sample))?;
        }
    }
    Ok(())
}

/// How far two samples of one metric are apart.
fn apart(a: &Sample, b: &Sample) -> f64 {
    match (a.n(), b.n()) {
        (0, 0) => 0.0,
        (0, _) | (_, 0) => f64::INFINITY,
        _ => (a.value() - b.value()).abs(),
    }
}

/// Against itself a version is neither better nor worse, beyond the noise that was declared.
///
/// # Errors
/// The rule that is broken.
pub fn no_difference(same: &Measurements, noise: &impl Fn(&str) -> f64) -> Outcome {
    let rule = "a version does not differ from itself beyond the declared noise";
    for (
        name,
        Measurement {
            candidate,
            baseline,
        },
    ) in same
    {
        let difference = match (candidate, baseline) {
            (Sample::Comparison { .. }, _) => apart(candidate, &Sample::Proportion { k: 1, n: 2 }),
            (candidate, Some(baseline)) => apart(candidate, baseline),
            (_, None) => 0.0,
        };
        ensure(rule, difference <= noise(name), (name, candidate, baseline))?;
    }
    Ok(())
}

/// The same evaluation says the same again, beyond the noise that was declared.
///
/// # Errors
/// The rule that is broken.
pub fn again(first: &Measurements, second: &Measurements, noise: &impl Fn(&str) -> f64) -> Outcome {
    let rule = "an evaluation measures the same metrics again";
    let names = |m: &Measurements| m.keys().cloned().collect::<Vec<_>>();
    ensure(rule, names(first) == names(second), names(second))?;
    let rule = "an evaluation says the same again, within the declared noise";
    for ((name, a), b) in first.iter().zip(second.values()) {
        let same = a.baseline.is_some() == b.baseline.is_some();
        let old = a.baseline.iter().zip(&b.baseline).map(|(a, b)| apart(a, b));
        let furthest = old.fold(apart(&a.candidate, &b.candidate), f64::max);
        ensure(rule, same && furthest <= noise(name), Differ(name, a, b))?;
    }
    Ok(())
}

#[derive(Debug)]
#[expect(dead_code, reason = "its debug output is all that is wanted")]
struct Differ<'a>(&'a str, &'a Measurement, &'a Measurement);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Error, Result};
    use async_trait::async_trait;
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// What is wrong with an evaluator.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Wrong {
        Nothing,
        Hangs,
        HangsOnUnknown,
        Fails,
        MeasuresNothing,
        Undeclared,
        Unmeasured,
        Impossible,
        NotANumber,
        PrefersCandidate,
        PrefersFirst,
        Drifts,
        KnowsAll,
    }

    #[derive(Debug)]
    struct Broken(Wrong, AtomicU64);

    fn version(digit: char) -> VersionId {
        let digest = digit.to_string().repeat(64);
        format!("chat/v1.0.0-{digest}").parse().unwrap()
    }

    #[async_trait]
    impl Evaluator for Broken {
        async fn evaluate(&self, candidate: &VersionId, _: &VersionId) -> Result<Measurements> {
            let time = self.1.fetch_add(1, Ordering::SeqCst);
            let unknown = *candidate == version('c');
            if self.0 == Wrong::Hangs || unknown && self.0 == Wrong::HangsOnUnknown {
                std::future::pending::<()>().await;
            }
            if unknown && self.0 != Wrong::KnowsAll || self.0 == Wrong::Fails {
                return Err(Error::permanent("not here"));
            }
            let drift = if self.0 == Wrong::Drifts { time } else { 0 };
            let better = u64::from(self.0 == Wrong::PrefersCandidate);
            let of = |k| Sample::Proportion { k, n: 10 };
            let mut measured = Measurements::from([
                (
                    "passed".to_owned(),
                    Measurement::against(of(5 + better), of(5)),
                ),
                (
                    "win_rate".to_owned(),
                    Measurement::of(Sample::Comparison {
                        wins: if self.0 == Wrong::PrefersFirst { 9 } else { 2 },
                        ties: 3,
                        losses: 2,
                    }),
                ),
                ("drift".to_owned(), Measurement::of(of(drift))),
            ]);
            let mean = if self.0 == Wrong::NotANumber {
                f64::NAN
            } else {
                1.0
            };
            let mean = Sample::Mean {
                mean,
                sd: 0.0,
                n: 2,
            };
            measured.insert("mean".to_owned(), Measurement::of(mean));
            match self.0 {
                Wrong::MeasuresNothing => measured.clear(),
                Wrong::Undeclared => {
                    measured.insert("more".to_owned(), Measurement::of(of(1)));
                }
                Wrong::Unmeasured => {
                    measured.remove("mean");
                }
                Wrong::Impossible => {
                    measured.insert("mean".to_owned(), Measurement::of(of(11)));
                }
                _ => {}
            }
            Ok(measured)
        }

        fn measures(&self) -> Option<BTreeSet<String>> {
            Some(
                ["passed", "win_rate", "drift", "mean"]
                    .map(str::to_owned)
                    .into(),
            )
        }
    }

    async fn verdict(wrong: Wrong, noise: f64) -> Option<&'static str> {
        let (evaluator, [a, b, c]) = (
            Broken(wrong, AtomicU64::new(0)),
            ['a', 'b', 'c'].map(version),
        );
        let subject = Subject {
            evaluator: &evaluator,
            version: &a,
            other: &b,
            unknown: &c,
            noise: |_: &str| noise,
            within: Duration::from_secs(5),
        };
        suite(subject).await.err().map(|v| v.rule())
    }

    #[tokio::test(start_paused = true)]
    async fn each_broken_evaluator_is_found() {
        let in_time = "an evaluation ends in time, whatever it waits for";
        let itself = "a version does not differ from itself beyond the declared noise";
        for (wrong, rule) in [
            (Wrong::Nothing, None),
            (Wrong::Hangs, Some(in_time)),
            (Wrong::HangsOnUnknown, Some(in_time)),
            (
                Wrong::Fails,
                Some("a version that can be evaluated is measured"),
            ),
            (Wrong::MeasuresNothing, Some("something is measured")),
            (Wrong::Undeclared, Some("what is measured was declared")),
            (Wrong::Unmeasured, Some("what was declared is measured")),
            (
                Wrong::Impossible,
                Some("a sample does not contradict itself"),
            ),
            (
                Wrong::NotANumber,
                Some("a sample does not contradict itself"),
            ),
            (Wrong::PrefersCandidate, Some(itself)),
            (Wrong::PrefersFirst, Some(itself)),
            (
                Wrong::Drifts,
                Some("an evaluation says the same again, within the declared noise"),
            ),
            (
                Wrong::KnowsAll,
                Some("a version that cannot be evaluated is an error"),
            ),
        ] {
            assert_eq!(verdict(wrong, 0.0).await, rule, "{wrong:?}");
        }
        assert_eq!(
            verdict(Wrong::Drifts, 0.1).await,
            None,
            "declared noise is no violation"
        );
    }

    #[test]
    fn a_metric_that_is_lost_is_found() {
        let one = Measurements::from([(
            "a".to_owned(),
            Measurement::of(Sample::Proportion { k: 1, n: 2 }),
        )]);
        let lost = again(&one, &Measurements::new(), &|_: &str| 1.0).unwrap_err();
        assert_eq!(lost.rule(), "an evaluation measures the same metrics again");
    }
}
