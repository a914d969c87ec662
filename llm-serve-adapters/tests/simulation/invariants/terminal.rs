//! Once nothing goes wrong any more, every rollout comes to its end within a bounded time.

use super::violated;
use crate::history::{History, Violation, What};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    match history
        .events
        .iter()
        .rev()
        .find(|e| matches!(e.what, What::Settled | What::Overdue))
    {
        Some(event) if event.what == What::Settled => Ok(()),
        Some(event) => violated("terminal", event.at, "a rollout is still not over"),
        None => violated("terminal", 0, "the life has no end"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tale::history;
    use super::*;

    #[test]
    fn a_life_must_settle() {
        assert!(check(&history(vec![(1, What::Calm), (9, What::Settled)])).is_ok());
        assert!(check(&history(vec![(1, What::Calm), (9, What::Overdue)])).is_err());
        assert!(check(&history(vec![(1, What::Calm)])).is_err());
    }
}
