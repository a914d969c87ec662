//! The log has no gap, only the newest fence writes to it, and it replays to what its controller knew.

use super::violated;
use crate::history::{History, Violation, What};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let (mut newest, mut next) = (0, 0);
    for event in &history.events {
        match event.what {
            What::Acquired { fence, .. } if fence <= newest => {
                return violated(
                    "log",
                    event.at,
                    format!("fence {fence} was given after {newest}"),
                );
            }
            What::Acquired { fence, .. } => newest = fence,
            What::Logged { fence, seq, .. } => {
                if seq != next {
                    return violated(
                        "log",
                        event.at,
                        format!("entry {seq} came where {next} was due"),
                    );
                }
                if fence != newest {
                    let text = format!(
                        "entry {seq} was written under fence {fence}, the newest is {newest}"
                    );
                    return violated("log", event.at, text);
                }
                next += 1;
            }
            _ => {}
        }
    }
    if history.replays {
        Ok(())
    } else {
        violated(
            "log",
            0,
            "the log does not replay to what its controller knew",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tale::history;
    use super::*;

    fn fence(fence: u64) -> What {
        What::Acquired { process: 1, fence }
    }

    fn entry(fence: u64, seq: u64) -> What {
        What::Logged {
            process: 1,
            fence,
            sent: 0,
            seq,
        }
    }

    #[test]
    fn gaps_old_fences_and_other_replays_are_caught() {
        let story = |events: Vec<What>| history(events.into_iter().map(|what| (1, what)).collect());
        assert!(check(&story(vec![fence(1), entry(1, 0), fence(2), entry(2, 1)])).is_ok());
        assert!(check(&story(vec![fence(1), entry(1, 1)])).is_err());
        assert!(check(&story(vec![fence(1), entry(1, 0), entry(1, 0)])).is_err());
        assert!(check(&story(vec![fence(1), fence(2), entry(1, 0)])).is_err());
        assert!(check(&story(vec![fence(2), fence(2)])).is_err());
        let other = History {
            replays: false,
            ..story(vec![fence(1)])
        };
        assert!(check(&other).is_err());
    }
}
