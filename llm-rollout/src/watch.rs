//! The watch over a promoted version: which probes are due, and when their failures are an alarm.

use crate::plan::WatchSpec;
use crate::{Response, Timestamp};
use std::collections::{BTreeMap, VecDeque};

/// Keeps to a plan's `[[watch]]`. Pure: time and answers are arguments.
///
/// ```
/// use llm_rollout::plan::WatchSpec;
/// use llm_rollout::{Probed, Response, Timestamp, Watch};
/// use std::time::Duration;
///
/// let spec = WatchSpec { fails: 2, of: 3, ..WatchSpec::new("canonical", Duration::from_secs(60), Response::Rollback) };
/// let mut watch = Watch::new(vec![spec], Timestamp::default());
/// let at = |minute: u64| Timestamp::from_millis(minute * 60_000);
/// let failed = || Probed::Failed("3 of 40 answers are wrong".to_owned());
///
/// assert_eq!(watch.due(at(1)).collect::<Vec<_>>(), ["canonical"]);
/// assert!(watch.answered("canonical", failed(), at(1)).is_none());
/// assert!(watch.answered("canonical", Probed::Passed, at(2)).is_none());
/// let alarm = watch.answered("canonical", failed(), at(3)).expect("two of the last three have failed");
/// assert_eq!(alarm.response, Response::Rollback);
/// assert!(watch.answered("canonical", failed(), at(4)).is_none(), "one alarm for one trouble");
/// ```
#[derive(Debug, Clone)]
pub struct Watch {
    probes: BTreeMap<String, Probe>,
}

#[derive(Debug, Clone)]
struct Probe {
    spec: WatchSpec,
    due: Timestamp,
    running: bool,
    /// Newest last: whether each failed.
    last: VecDeque<bool>,
    alarmed: bool,
    /// Answers in a row that were none.
    unanswered: u32,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is nothing else to find")]
pub enum Probed {
    /// The version does what it should.
    Passed,
    /// It does not; how, in one line.
    Failed(String),
    /// The probe could not tell, and why: neither good nor bad.
    Unanswered(String),
}

/// What the watch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct WatchAlarm {
    /// The probe.
    pub probe: String,
    /// What is to be done.
    pub response: Response,
    /// In one line.
    pub detail: String,
}

/// Answers in a row that are none before people are told that nobody watches.
const BLIND: u32 = 5;

impl Watch {
    /// Begins now: each probe is due after its first interval.
    pub fn new(specs: impl IntoIterator<Item = WatchSpec>, now: Timestamp) -> Self {
        let probe = |spec: WatchSpec| {
            let probe = Probe {
                due: now.after(spec.every),
                spec,
                running: false,
                last: VecDeque::new(),
                alarmed: false,
                unanswered: 0,
            };
            (probe.spec.probe.clone(), probe)
        };
        Self {
            probes: specs.into_iter().map(probe).collect(),
        }
    }

    /// The probes that are due and do not run.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        self.probes
            .iter()
            .filter(move |(_, p)| !p.running && now >= p.due)
            .map(|(name, _)| name.as_str())
    }

    /// When the next one is due; none while all of them run.
    pub fn next_due(&self) -> Option<Timestamp> {
        let waiting = self.probes.values().filter(|p| !p.running);
        waiting.map(|p| p.due).min()
    }

    /// A probe has been begun.
    pub fn begun(&mut self, probe: &str) {
        if let Some(probe) = self.probes.get_mut(probe) {
            probe.running = true;
        }
    }

    /// A probe has answered: an alarm, if its failures have just become too many. One that goes on failing is silent until it
    /// has passed as often as it is remembered; five answers in a row that are none page.
    pub fn answered(&mut self, probe: &str, answer: Probed, now: Timestamp) -> Option<WatchAlarm> {
        let probe = self.probes.get_mut(probe)?;
        probe.running = false;
        probe.due = now.after(probe.spec.every);
        let alarm = |response, detail| WatchAlarm {
            probe: probe.spec.probe.clone(),
            response,
            detail,
        };
        let detail = match answer {
            Probed::Unanswered(why) => {
                probe.unanswered = probe.unanswered.saturating_add(1);
                return (probe.unanswered == BLIND)
                    .then(|| alarm(Response::Page, format!("nobody watches: {why}")));
            }
            Probed::Passed => None,
            Probed::Failed(detail) => Some(detail),
        };
        probe.unanswered = 0;
        probe.last.push_back(detail.is_some());
        while probe.last.len() > probe.spec.of as usize {
            probe.last.pop_front();
        }
        let failures = probe.last.iter().filter(|failed| **failed).count();
        if failures == 0 {
            probe.alarmed = false;
        }
        let detail = detail.filter(|_| failures >= probe.spec.fails as usize && !probe.alarmed)?;
        let response = probe.spec.action;
        let alarm = alarm(response, detail);
        probe.alarmed = true;
        Some(alarm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MINUTE: Duration = Duration::from_secs(60);

    fn watch(fails: u32, of: u32) -> Watch {
        let spec = WatchSpec {
            fails,
            of,
            ..WatchSpec::new("p", MINUTE, Response::Hold)
        };
        Watch::new([spec], Timestamp::default())
    }

    fn answers(watch: &mut Watch, text: &str) -> usize {
        let answer = |c| match c {
            'x' => Probed::Failed("x".into()),
            '.' => Probed::Passed,
            _ => Probed::Unanswered("down".into()),
        };
        let alarms = text.chars().map(answer);
        let now = Timestamp::default();
        alarms.filter_map(|a| watch.answered("p", a, now)).count()
    }

    #[test]
    fn m_of_the_last_n_make_one_alarm_for_one_trouble() {
        assert_eq!(answers(&mut watch(1, 1), "..x.x"), 2);
        assert_eq!(answers(&mut watch(2, 3), "x..x..x.."), 0);
        assert_eq!(answers(&mut watch(2, 3), "x.x"), 1);
        assert_eq!(answers(&mut watch(3, 3), "xx.xxx"), 1);
        assert_eq!(answers(&mut watch(2, 3), "xxxxxxxx"), 1, "it goes on");
        assert_eq!(answers(&mut watch(2, 3), "xxx...xx"), 2, "it is back");
    }

    #[test]
    fn what_cannot_tell_is_neither_good_nor_bad_and_pages_once() {
        let mut blind = watch(1, 1);
        assert_eq!(answers(&mut blind, "????"), 0);
        let now = Timestamp::default();
        let alarm = blind
            .answered("p", Probed::Unanswered("down".into()), now)
            .unwrap();
        assert_eq!(alarm.response, Response::Page);
        assert_eq!(answers(&mut blind, "????????"), 0);
        assert_eq!(
            answers(&mut watch(2, 2), "x?x"),
            1,
            "the last answers count"
        );
    }

    #[test]
    fn a_probe_is_due_after_its_interval_and_not_while_it_runs() {
        let mut watch = watch(1, 1);
        let at = Timestamp::default().after(MINUTE);
        assert_eq!(watch.due(Timestamp::default()).count(), 0);
        assert_eq!((watch.due(at).count(), watch.next_due()), (1, Some(at)));
        watch.begun("p");
        assert_eq!(
            (watch.due(at.after(MINUTE)).count(), watch.next_due()),
            (0, None)
        );
        watch.answered("p", Probed::Passed, at);
        assert_eq!(watch.next_due(), Some(at.after(MINUTE)));
        assert!(watch.answered("nobody", Probed::Passed, at).is_none());
    }
}
