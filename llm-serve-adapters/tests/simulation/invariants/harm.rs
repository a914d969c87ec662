//! Evidence of harm sends users back: the entry that holds it is the decision to go back, or says why that has to wait. A candidate that
//! answers nobody is gone back from without waiting.

use super::violated;
use crate::history::{History, Violation, Why};
use llm_rollout::Phase;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    for (at, step) in history.steps() {
        let Why::Look(look) = step.why else { continue };
        let back = matches!(step.after, Phase::RollingBack { .. });
        if look.failed && !back && !step.stranded {
            let text = format!("harm was found, and it is {}: {look:?}", step.after);
            return violated("harm", at, text);
        }
        if look.silent && !back {
            let text = format!("nobody was answered, and it is {}: {look:?}", step.after);
            return violated("harm", at, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{BACK, decided, history, step};
    use super::*;
    use crate::history::Looked;

    #[test]
    fn harm_that_changes_nothing_is_caught() {
        let soaking = Phase::Soaking { stage: 0 };
        let story = |after, failed, silent, stranded| {
            let mut step = step(3, soaking, after);
            step.stranded = stranded;
            step.why = Why::Look(Looked {
                epoch: 1,
                from: 1,
                to: 2,
                failed,
                silent,
                passed: false,
                n: 10,
                k: 9,
                samples: 10,
                needed: 0,
                confirmed: true,
            });
            history(vec![(1, decided(step))])
        };
        assert!(check(&story(BACK, true, true, false)).is_ok());
        assert!(check(&story(soaking, false, false, false)).is_ok());
        assert!(check(&story(soaking, true, false, true)).is_ok());
        assert!(check(&story(soaking, true, false, false)).is_err());
        assert!(check(&story(soaking, false, true, false)).is_err());
        assert!(check(&story(soaking, false, true, true)).is_err());
    }
}
