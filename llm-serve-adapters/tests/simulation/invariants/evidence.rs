//! A verdict counts for the split that it is about, and no request is evidence twice: the windows of an epoch do not overlap, evidence never shrinks within a rollout, and it never
//! holds more than what the candidate has really answered.

use super::violated;
use crate::history::{History, Looked, Number, Violation, Why};
use llm_rollout::Phase;
use std::collections::BTreeMap;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut last: BTreeMap<Number, Looked> = BTreeMap::new();
    for (at, step) in history.steps() {
        let Why::Look(look) = step.why else { continue };
        if look.epoch != step.epoch {
            let text = format!(
                "a verdict about epoch {} in epoch {}",
                look.epoch, step.epoch
            );
            return violated("evidence", at, text);
        }
        if let Some(before) = last.insert(step.rollout, look) {
            // Going back rests on what was known, should the look before have reached the log unnoticed.
            let back = matches!(step.after, Phase::RollingBack { .. });
            if look.epoch == before.epoch && look.from < before.to && !back {
                return violated(
                    "evidence",
                    at,
                    format!("windows overlap: {before:?}, {look:?}"),
                );
            }
            // A stage that no gate watches counts nothing.
            if look.n > 0 && look.n < before.n && !back {
                return violated(
                    "evidence",
                    at,
                    format!("evidence was lost: {before:?}, {look:?}"),
                );
            }
        }
        let of = history
            .truth
            .iter()
            .filter(|(_, version, ..)| *version == step.candidate);
        let (n, k) = of.fold((0, 0), |(n, k), counts| (n + counts.2, k + counts.3));
        if look.n > n || look.k > k {
            let text =
                format!("{look:?} counts more than the {n} requests and {k} faults there were");
            return violated("evidence", at, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, step};
    use super::*;

    fn look(from: u64, to: u64, n: u64) -> Looked {
        Looked {
            epoch: 1,
            from,
            to,
            failed: false,
            silent: false,
            passed: true,
            n,
            k: 0,
            samples: n,
            needed: 0,
            confirmed: true,
        }
    }

    fn story(looks: &[Looked]) -> History {
        let steps = looks.iter().map(|look| {
            let mut step = step(1, Phase::Soaking { stage: 0 }, Phase::Soaking { stage: 0 });
            step.why = Why::Look(*look);
            (1, decided(step))
        });
        let mut history = history(steps.collect());
        history.truth = vec![(1, 2, 20, 1), (1, 1, 500, 5)];
        history
    }

    #[test]
    fn double_counting_is_caught() {
        assert!(check(&story(&[look(10, 20, 5), look(20, 30, 20)])).is_ok());
        assert!(check(&story(&[look(10, 20, 5), look(19, 30, 20)])).is_err());
        assert!(check(&story(&[look(10, 20, 5), look(20, 30, 21)])).is_err());
        assert!(check(&story(&[look(10, 20, 5), look(20, 30, 4)])).is_err());
        let other = Looked {
            epoch: 2,
            ..look(10, 20, 5)
        };
        assert!(check(&story(&[other])).is_err());
    }
}
