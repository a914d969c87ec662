//! What became of all lives: proportions and distributions with their uncertainty, and the worst life as a story.

use super::Scenario;
use crate::incident::{Incident, Moment};
use crate::{Cause, Phase};
use llm_gates::special::normal;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What became of one candidate.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Life {
    /// Which: [`Scenario::story`] tells it again.
    pub index: u64,
    /// How it ended; another phase where the horizon broke it off.
    pub end: Phase,
    /// Why it was not promoted.
    pub cause: Option<Cause>,
    /// The last stage that it was in, from 0.
    pub stage: usize,
    /// When it was decided to go back, or to promote: since the rollout began.
    pub decided: Option<Duration>,
    /// Requests that the candidate answered (or should have) until the routers took it out, or promoted it.
    pub exposed: u64,
    /// Events that would not have happened on the baseline, over all gated metrics; of a silent candidate, every request.
    pub harmed: u64,
    /// Both by stage.
    pub stages: Vec<(u64, u64)>,
    /// How often it was held.
    pub holds: u32,
    /// Why the gates could not judge a window, the first time: the plan asks for what they cannot do.
    pub refused: Option<String>,
}

/// What became of all candidates of a scenario.
#[derive(Debug, Clone)]
pub struct Lives {
    scenario: Scenario,
    lives: Vec<Life>,
}

/// How many of how many; compares with a number as their quotient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proportion {
    /// How many.
    pub k: u64,
    /// Of how many.
    pub n: u64,
}

impl Proportion {
    /// Their quotient; 0 of nothing is 0.
    pub fn value(self) -> f64 {
        if self.n == 0 {
            0.0
        } else {
            self.k as f64 / self.n as f64
        }
    }

    /// Wilson's interval (1927) of this two-sided confidence, such as 0.95; 0 to 1 where nothing is known, or the confidence is none.
    pub fn interval(self, confidence: f64) -> (f64, f64) {
        if self.n == 0 || !(confidence > 0.0 && confidence < 1.0) {
            return (0.0, 1.0);
        }
        let z = normal::upper_quantile(0.5 * (1.0 - confidence));
        let (n, p) = (self.n as f64, self.value());
        let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
        ((middle - half).max(0.0), (middle + half).min(1.0))
    }

    /// Whether it is at least this with 95 % confidence, not only by luck of the seeds.
    pub fn surely_at_least(self, value: f64) -> bool {
        self.interval(0.9).0 >= value
    }

    /// Whether it is at most this with 95 % confidence, not only by luck of the seeds.
    pub fn surely_at_most(self, value: f64) -> bool {
        self.interval(0.9).1 <= value
    }
}

impl PartialEq<f64> for Proportion {
    fn eq(&self, other: &f64) -> bool {
        self.value().partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl PartialOrd<f64> for Proportion {
    fn partial_cmp(&self, other: &f64) -> Option<Ordering> {
        self.value().partial_cmp(other)
    }
}

impl fmt::Display for Proportion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval(0.95);
        let percent = |x: f64| 100.0 * x;
        write!(
            f,
            "{:.1} % ({} of {}; 95 % interval {:.1} to {:.1} %)",
            percent(self.value()),
            self.k,
            self.n,
            percent(low),
            percent(high)
        )
    }
}

/// A number of each life, in order of size.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<T>(Vec<T>);

impl<T: Ord + Copy + Default> Sample<T> {
    fn new(values: impl Iterator<Item = T>) -> Self {
        let mut values: Vec<T> = values.collect();
        values.sort_unstable();
        Self(values)
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The least value that at least this part of the lives does not exceed; zero where there are none.
    pub fn quantile(&self, part: f64) -> T {
        let rank = (part.clamp(0.0, 1.0) * self.0.len() as f64).ceil().max(1.0) - 1.0;
        let (mut low, mut high) = (0, self.0.len());
        // The rank as an index, without a cast.
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            if middle as f64 <= rank {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.0.get(low).copied().unwrap_or_default()
    }

    /// Half of the lives have no more.
    pub fn median(&self) -> T {
        self.quantile(0.5)
    }

    /// 19 of 20 lives have no more.
    pub fn p95(&self) -> T {
        self.quantile(0.95)
    }

    /// 99 of 100 lives have no more.
    pub fn p99(&self) -> T {
        self.quantile(0.99)
    }

    /// The greatest.
    pub fn max(&self) -> T {
        self.0.last().copied().unwrap_or_default()
    }
}

impl Sample<u64> {
    /// The average.
    pub fn mean(&self) -> f64 {
        self.0.iter().map(|x| *x as f64).sum::<f64>() / (self.0.len().max(1)) as f64
    }

    /// Standard error of the average.
    pub fn standard_error(&self) -> f64 {
        let (n, mean) = (self.0.len() as f64, self.mean());
        let square: f64 = self.0.iter().map(|x| (*x as f64 - mean).powi(2)).sum();
        (square / (n - 1.0).max(1.0) / n.max(1.0)).sqrt()
    }
}

impl fmt::Display for Sample<u64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mean {:.1}, median {}, 95 % at most {}, most {}",
            self.mean(),
            self.median(),
            self.p95(),
            self.max()
        )
    }
}

impl Lives {
    pub(super) const fn new(scenario: Scenario, lives: Vec<Life>) -> Self {
        Self { scenario, lives }
    }

    /// Each life.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Life> {
        self.lives.iter()
    }

    /// How many of the lives are so.
    pub fn share(&self, is: impl Fn(&Life) -> bool) -> Proportion {
        let k = self.lives.iter().filter(|life| is(life)).count();
        Proportion {
            k: k as u64,
            n: self.lives.len() as u64,
        }
    }

    /// How many went back after they had been exposed.
    pub fn rolled_back(&self) -> Proportion {
        self.share(|life| life.end == Phase::RolledBack)
    }

    /// How many were sent back by a gate, a threshold or a hard limit on this metric.
    pub fn rolled_back_by(&self, metric: &str) -> Proportion {
        self.share(|life| life.end == Phase::RolledBack && life.metric() == Some(metric))
    }

    /// How many were sent back by a gate, a threshold or a hard limit.
    pub fn detected(&self) -> Proportion {
        self.share(|life| life.metric().is_some())
    }

    /// The same in this stage, from 0.
    pub fn detected_in(&self, stage: usize) -> Proportion {
        self.share(|life| life.metric().is_some() && life.stage == stage)
    }

    /// How many were promoted.
    pub fn promoted(&self) -> Proportion {
        self.share(|life| life.end == Phase::Promoted)
    }

    /// How many were never exposed.
    pub fn blocked(&self) -> Proportion {
        self.share(|life| life.end == Phase::Blocked)
    }

    /// How many were held at least once.
    pub fn held(&self) -> Proportion {
        self.share(|life| life.holds > 0)
    }

    /// How many had not ended at the horizon.
    pub fn unfinished(&self) -> Proportion {
        self.share(|life| !life.end.is_end())
    }

    /// Requests that the candidate answered.
    pub fn exposed_requests(&self) -> Sample<u64> {
        Sample::new(self.lives.iter().map(|life| life.exposed))
    }

    /// Events that would not have happened on the baseline.
    pub fn harmed_requests(&self) -> Sample<u64> {
        Sample::new(self.lives.iter().map(|life| life.harmed))
    }

    /// The same of one stage, from 0: exposed and harmed.
    pub fn in_stage(&self, stage: usize) -> (Sample<u64>, Sample<u64>) {
        let of = |life: &Life| life.stages.get(stage).copied().unwrap_or_default();
        let lives = || self.lives.iter().map(of);
        (
            Sample::new(lives().map(|(exposed, _)| exposed)),
            Sample::new(lives().map(|(_, harmed)| harmed)),
        )
    }

    /// When it was decided to go back, or to promote, of the lives in which it was.
    pub fn time_to_decision(&self) -> Sample<Duration> {
        Sample::new(self.lives.iter().filter_map(|life| life.decided))
    }

    /// The life with the most harm, or, where no candidate did any, the most exposure among those that were not promoted (or of all).
    pub fn worst(&self) -> Option<&Life> {
        let bad = |life: &&Life| (life.harmed, life.end != Phase::Promoted, life.exposed);
        // The first of equals.
        self.lives.iter().rev().max_by_key(bad)
    }

    /// A life as a story.
    pub fn story(&self, life: &Life) -> Option<Story> {
        self.scenario.story(life.index).ok()
    }
}

impl fmt::Display for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} lives of seed {}:",
            self.lives.len(),
            self.scenario.seed
        )?;
        for (name, share) in [
            ("rolled back", self.rolled_back()),
            ("promoted", self.promoted()),
            ("blocked", self.blocked()),
            ("held at least once", self.held()),
            ("not ended", self.unfinished()),
        ] {
            if share.k > 0 || name == "rolled back" {
                writeln!(f, "  {name}: {share}")?;
            }
        }
        let mut causes = BTreeMap::<String, u64>::new();
        for life in &self.lives {
            let stage = life.stage;
            let cause = match (&life.cause, life.metric()) {
                (_, Some(metric)) => format!("{metric:?} in stage {stage}"),
                (Some(Cause::Silent { .. }), _) => format!("silence in stage {stage}"),
                (Some(cause), _) => format!("stage {stage}: {cause}"),
                (None, _) => continue,
            };
            *causes.entry(cause).or_default() += 1;
        }
        let mut causes: Vec<_> = causes.into_iter().collect();
        causes.sort_by_key(|(_, k)| std::cmp::Reverse(*k));
        for (cause, k) in causes.iter().take(8) {
            writeln!(f, "  because of {cause}: {k}")?;
        }
        writeln!(f, "  requests exposed: {}", self.exposed_requests())?;
        writeln!(f, "  requests harmed: {}", self.harmed_requests())?;
        if let Some(refused) = self.lives.iter().find_map(|life| life.refused.as_ref()) {
            writeln!(f, "  the gates could not judge: {refused}")?;
        }
        if let Some(story) = self.worst().and_then(|life| self.story(life)) {
            write!(f, "The worst of them:\n{story}")?;
        }
        Ok(())
    }
}

/// One life, step by step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Story {
    /// The seed of the scenario.
    pub seed: u64,
    /// What became of it.
    pub life: Life,
    /// What happened, for people and programs.
    pub incident: Option<Incident>,
}

impl Story {
    pub(super) const fn new(seed: u64, life: Life, incident: Option<Incident>) -> Self {
        Self {
            seed,
            life,
            incident,
        }
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (life, seed) = (&self.life, self.seed);
        writeln!(
            f,
            "life {} of seed {seed}: {}, {} requests exposed, {} harmed",
            life.index, life.end, life.exposed, life.harmed
        )?;
        let Some(incident) = &self.incident else {
            return Ok(());
        };
        for Moment {
            at,
            what,
            to,
            share,
            ..
        } in &incident.timeline
        {
            let minutes = at.since(incident.submitted).as_secs() / 60;
            write!(f, "  {:>3}:{:02}  {what}", minutes / 60, minutes % 60)?;
            if let Some(to) = to {
                write!(f, " -> {to}")?;
            }
            if let Some(share) = share {
                write!(f, ", candidate {share}")?;
            }
            writeln!(f)?;
        }
        if let Some(cause) = &life.cause {
            writeln!(f, "  because: {cause}")?;
        }
        if let Some(evidence) = &incident.evidence {
            for gate in &evidence.gates {
                let (c, b) = (gate.candidate, gate.baseline);
                writeln!(
                    f,
                    "  {}: candidate {} of {}, baseline {} of {}, ln E = {:.2}",
                    gate.metric, c.k, c.n, b.k, b.n, gate.log_e
                )?;
            }
        }
        Ok(())
    }
}
