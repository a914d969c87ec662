//! Cumulative counts over time: what lies between two readings, with resets, and what must be remembered between them.

use super::measure::{Measures, Readings, Wanted};
use crate::host::{Cursor, Error, Query, Reading, Result};
use llm_gates::{Increment, Window};
use llm_rollout::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The most series that are followed; a histogram is one.
const MOST: usize = 2_000;
/// Above this a float cannot count.
const COUNTABLE: f64 = 9_007_199_254_740_992.0;

/// Cumulative counts at one moment: all, and those up to some bounds, which rise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Milliseconds since the Unix epoch.
    pub(super) at: u64,
    pub(super) total: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) below: Vec<(f64, u64)>,
}

/// What was counted in between.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Gain {
    pub(super) total: u64,
    pub(super) below: Vec<(f64, u64)>,
}

/// Whose requests a series counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    Candidate,
    Baseline,
}

/// A series, or a histogram: its samples in order of time, and the process that they come from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) arm: Arm,
    pub(super) target: String,
    pub(super) samples: Vec<Sample>,
}

/// What one selector found, each under a name that stays the same.
pub(super) type Groups = BTreeMap<String, Group>;

/// A count as Prometheus writes it.
pub(super) fn count(series: &str, value: f64) -> Result<u64> {
    if !value.is_finite() {
        return Err(Error::transient(format!(
            "{series} is {value}: a source that has no number has no answer"
        )));
    }
    if !(0.0..=COUNTABLE).contains(&value) || value.fract() != 0.0 {
        return Err(Error::permanent(format!(
            "{series} is {value}, which counts nothing: give a counter of requests"
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole and in range"
    )]
    Ok(value as u64)
}

/// The cumulative count at a bound: bounds that are not there hold nothing of their own.
fn at(below: &[(f64, u64)], bound: f64) -> u64 {
    let up_to = below.partition_point(|(other, _)| *other <= bound);
    up_to
        .checked_sub(1)
        .and_then(|last| below.get(last))
        .map_or(0, |(_, count)| *count)
}

impl Gain {
    /// What lies above the last bound.
    pub(super) fn beyond(&self) -> u64 {
        let last = self.below.last().map_or(0, |(_, count)| *count);
        self.total.saturating_sub(last)
    }

    fn add(&mut self, other: &Self) {
        let bounds = self
            .below
            .iter()
            .chain(&other.below)
            .map(|(bound, _)| *bound);
        let mut bounds: Vec<_> = bounds.collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let sum = |bound| at(&self.below, bound).saturating_add(at(&other.below, bound));
        self.below = bounds.into_iter().map(|b| (b, sum(b))).collect();
        self.total = self.total.saturating_add(other.total);
    }
}

impl Sample {
    fn since_zero(&self) -> Gain {
        Gain {
            total: self.total,
            below: self.below.clone(),
        }
    }

    /// What came after an older sample. If anything has fallen, the process began anew in between, at zero.
    fn since(&self, older: &Self) -> Gain {
        let total = self.total.checked_sub(older.total);
        let below = self.below.iter().map(|(bound, count)| {
            let gained = count.checked_sub(at(&older.below, *bound))?;
            Some((*bound, gained))
        });
        match (total, below.collect()) {
            (Some(total), Some(below)) => Gain { total, below },
            _ => self.since_zero(),
        }
    }
}

/// Where a source stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stand {
    pub(super) epoch: u64,
    pub(super) at: Timestamp,
    /// The newest sample of each series ever seen: one that comes back goes on from there.
    seen: BTreeMap<String, BTreeMap<String, Last>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Last {
    target: String,
    sample: Sample,
}

impl Stand {
    pub(super) fn new(query: &Query<'_>, at: Timestamp) -> Self {
        Self {
            epoch: query.epoch.get(),
            at,
            seen: BTreeMap::new(),
        }
    }

    /// The stand that a cursor holds, if it is one of this epoch and lies before now.
    pub(super) fn read(query: &Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Self> {
        let stand: Self = serde_json::from_str(cursor.as_str()).map_err(|e| {
            Error::permanent("the cursor is not one of this source's: open anew").because(e)
        })?;
        if stand.epoch != query.epoch.get() {
            return Err(Error::permanent(format!(
                "the cursor is of epoch {}, not {}: open anew",
                stand.epoch, query.epoch
            )));
        }
        if now <= stand.at {
            return Err(Error::transient(
                "no time has passed since the cursor: read again later",
            ));
        }
        Ok(stand)
    }

    pub(super) fn cursor(&self) -> Result<Cursor> {
        serde_json::to_string(self)
            .map(Cursor::new)
            .map_err(|e| Error::permanent("a cursor cannot be written").because(e))
    }

    /// Takes note of what was read, and says what each arm gained in each series.
    pub(super) fn advance(&mut self, readings: &Readings, now: Timestamp) -> Result<Gains> {
        let mut known: BTreeMap<String, u64> = BTreeMap::new();
        let mut meet = |target: &str, at: u64| {
            let first = known.entry(target.to_owned()).or_insert(at);
            *first = at.min(*first);
        };
        for last in self.seen.values().flat_map(BTreeMap::values) {
            meet(&last.target, 0);
        }
        for group in readings.values().flat_map(BTreeMap::values) {
            for sample in &group.samples {
                meet(&group.target, sample.at);
            }
        }
        let mut gains = Gains::default();
        for (series, groups) in readings {
            let seen = self.seen.entry(series.clone()).or_default();
            for (name, group) in groups {
                let mut last = seen.remove(name).map(|last| last.sample);
                let mut gain = Gain::default();
                for sample in &group.samples {
                    let began = known.get(&group.target).copied().unwrap_or(sample.at);
                    match &last {
                        Some(last) if sample.at <= last.at => continue,
                        Some(last) => gain.add(&sample.since(last)),
                        // It was there when the window opened, or its process has been met only now: it is counted from here.
                        None if sample.at <= self.at.as_millis() || began >= sample.at => {}
                        // Its process has been seen before without it: it began at zero.
                        None => gain.add(&sample.since_zero()),
                    }
                    last = Some(sample.clone());
                }
                if let Some(sample) = last {
                    let (arm, newest) = gains.of(series, group.arm);
                    arm.add(&gain);
                    *newest = sample.at.max(*newest);
                    let target = group.target.clone();
                    seen.insert(name.clone(), Last { target, sample });
                }
            }
        }
        let followed: usize = self.seen.values().map(BTreeMap::len).sum();
        if followed > MOST {
            return Err(Error::permanent(format!(
                "{followed} series are more than the {MOST} that are followed: name fewer, or aggregate them by recording rules"
            )));
        }
        self.at = now;
        Ok(gains)
    }
}

/// What each arm gained in each series, and when it was last seen there.
#[derive(Debug, Default)]
pub(super) struct Gains(BTreeMap<String, [(Gain, u64); 2]>);

impl Gains {
    fn of(&mut self, series: &str, arm: Arm) -> &mut (Gain, u64) {
        let [candidate, baseline] = self.0.entry(series.to_owned()).or_default();
        match arm {
            Arm::Candidate => candidate,
            Arm::Baseline => baseline,
        }
    }

    pub(super) fn gain(&self, series: &str, arm: Arm) -> Gain {
        self.last(series, arm)
            .map_or_else(Gain::default, |(gain, _)| gain.clone())
    }

    fn last(&self, series: &str, arm: Arm) -> Option<&(Gain, u64)> {
        let [candidate, baseline] = self.0.get(series)?;
        match arm {
            Arm::Candidate => Some(candidate),
            Arm::Baseline => Some(baseline),
        }
    }

    /// Whether an arm has been seen lately.
    pub(super) fn fresh(
        &self,
        wanted: &Wanted,
        arm: Arm,
        now: Timestamp,
        limit: Duration,
    ) -> Result<()> {
        let series = wanted.key();
        let newest = self.last(&series, arm).map_or(0, |(_, newest)| *newest);
        let age = Duration::from_millis(now.as_millis().saturating_sub(newest));
        if newest == 0 {
            return Err(Error::transient(format!(
                "{series} has nothing of the {arm:?} yet: check its name and labels, and that its process is scraped"
            )));
        }
        if age > limit {
            return Err(Error::transient(format!(
                "{series} of the {arm:?} was last seen {age:?} ago, more than {limit:?}: check that its process is scraped"
            )));
        }
        Ok(())
    }
}

/// The samples up to a moment.
pub(super) fn until(readings: &Readings, at: u64) -> Readings {
    let mut readings = readings.clone();
    for group in readings.values_mut().flat_map(BTreeMap::values_mut) {
        group.samples.retain(|sample| sample.at <= at);
    }
    readings
}

/// The windows of all metrics, from what both arms gained.
pub(super) fn reading(
    query: &Query<'_>,
    measures: &Measures,
    gains: &Gains,
    from: Timestamp,
    stand: &Stand,
) -> Result<Reading> {
    let mut metrics = BTreeMap::new();
    for (name, def) in query.metrics {
        let measure = measures.of(name, def)?;
        let count = |arm| measure.counts(name, def, &|wanted| gains.gain(&wanted.key(), arm));
        let increment = Increment::Binary {
            candidate: count(Arm::Candidate)?,
            baseline: count(Arm::Baseline)?,
        };
        metrics.insert(name.clone(), increment);
    }
    Ok(Reading {
        window: Window {
            epoch: query.epoch.get(),
            from: from.as_millis(),
            to: stand.at.as_millis(),
            metrics,
        },
        cursor: stand.cursor()?,
        heartbeat: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(at: u64, total: u64, below: &[(f64, u64)]) -> Sample {
        Sample {
            at,
            total,
            below: below.to_vec(),
        }
    }

    fn stand(at: u64) -> Stand {
        Stand {
            epoch: 1,
            at: Timestamp::from_millis(at),
            seen: BTreeMap::new(),
        }
    }

    fn readings(series: &[(&str, &str, Vec<Sample>)]) -> Readings {
        let groups = series.iter().map(|(name, target, samples)| {
            let group = Group {
                arm: Arm::Candidate,
                target: (*target).to_owned(),
                samples: samples.clone(),
            };
            ((*name).to_owned(), group)
        });
        BTreeMap::from([("s".to_owned(), groups.collect())])
    }

    fn total(stand: &mut Stand, now: u64, series: &[(&str, &str, Vec<Sample>)]) -> u64 {
        let gains = stand
            .advance(&readings(series), Timestamp::from_millis(now))
            .unwrap();
        gains.gain("s", Arm::Candidate).total
    }

    #[test]
    fn a_series_that_begins_counts_from_zero_only_if_its_process_was_watched() {
        let mut stand = stand(0);
        // Met only now: what it counted before is not ours.
        assert_eq!(
            total(&mut stand, 10, &[("a", "one", vec![sample(5, 100, &[])])]),
            0
        );
        // The same process has a new series: it began at zero, however late.
        assert_eq!(
            total(
                &mut stand,
                20,
                &[
                    ("a", "one", vec![sample(15, 107, &[])]),
                    ("b", "one", vec![sample(15, 3, &[])])
                ]
            ),
            10
        );
        // A process that is met in this window: only what comes after its first sample.
        let late = vec![
            ("c", "two", vec![sample(22, 50, &[]), sample(25, 52, &[])]),
            ("d", "two", vec![sample(25, 4, &[])]),
        ];
        assert_eq!(total(&mut stand, 30, &late), 2 + 4);
    }

    #[test]
    fn what_vanishes_and_comes_back_goes_on() {
        let mut stand = stand(0);
        total(&mut stand, 10, &[("a", "one", vec![sample(5, 100, &[])])]);
        assert_eq!(total(&mut stand, 20, &[]), 0);
        assert_eq!(
            total(&mut stand, 30, &[("a", "one", vec![sample(25, 130, &[])])]),
            30
        );
        assert_eq!(
            total(&mut stand, 40, &[("a", "one", vec![sample(35, 7, &[])])]),
            7,
            "a reset"
        );
    }

    #[test]
    fn histograms_reset_as_one() {
        let before = sample(1, 100, &[(0.1, 2), (0.5, 90)]);
        let after = sample(2, 20, &[(0.1, 5), (0.5, 19)]);
        assert_eq!(after.since(&before), after.since_zero());
        let later = sample(3, 120, &[(0.1, 12), (0.5, 100)]);
        assert_eq!(
            later.since(&before),
            Gain {
                total: 20,
                below: vec![(0.1, 10), (0.5, 10)]
            }
        );
        // A coarser resolution keeps every second bound, and nothing is lost.
        let fine = sample(1, 10, &[(1.0, 1), (2.0, 4), (4.0, 9)]);
        let coarse = sample(2, 12, &[(2.0, 5), (8.0, 12)]);
        assert_eq!(
            coarse.since(&fine),
            Gain {
                total: 2,
                below: vec![(2.0, 1), (8.0, 3)]
            }
        );
    }

    #[test]
    fn what_counts_nothing_is_refused() {
        use crate::host::ErrorKind;
        for (value, kind) in [
            (f64::NAN, ErrorKind::Transient),
            (f64::INFINITY, ErrorKind::Transient),
            (-1.0, ErrorKind::Permanent),
            (0.5, ErrorKind::Permanent),
            (1e17, ErrorKind::Permanent),
        ] {
            assert_eq!(count("x", value).unwrap_err().kind(), kind, "{value}");
        }
        assert_eq!(count("x", 12.0).unwrap(), 12);
    }

    proptest! {
        /// However the same samples are cut into windows, the same requests are counted, resets included.
        #[test]
        fn windows_add_up(steps in prop::collection::vec((0u64..50, prop::bool::weighted(0.2)), 1..40), cuts in prop::collection::vec(prop::bool::ANY, 40)) {
            let mut samples = vec![sample(1, 10, &[])];
            let (mut value, mut truth) = (10u64, 0u64);
            for (i, (gain, reset)) in steps.iter().enumerate() {
                // After a reset it is below what it was, so that it shows.
                let gained = if *reset { (*gain).min(value.saturating_sub(1)) } else { *gain };
                let shows = *reset && value > 0;
                value = if shows { gained } else { value + gain };
                truth += if shows { gained } else { *gain };
                samples.push(sample(i as u64 + 2, value, &[]));
            }
            let mut stand = stand(1);
            total(&mut stand, 1, &[("a", "one", samples[..1].to_vec())]);
            let (mut counted, mut from) = (0, 0);
            for end in 1..samples.len() {
                if cuts[end % cuts.len()] || end + 1 == samples.len() {
                    counted += total(&mut stand, end as u64 + 1, &[("a", "one", samples[from..=end].to_vec())]);
                    from = end;
                }
            }
            prop_assert_eq!(counted, truth);
        }
    }
}
