use super::*;
use crate::host::{Result as HostResult, SliceCounts};
use crate::joined::Joined;
use crate::recorder::{Labels, OutcomeClass, Recorder};
use crate::router::tests::version;
use llm_gates::Window;
use llm_rollout::Heartbeat;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// How a source is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    CountsTwice,
    LosesSome,
    CountsWhatWasBefore,
    UsesCursorsUp,
    TakesAnyCursor,
    TakesCursorsOfOtherEpochs,
    CountsAllEpochs,
    MakesUpZeroes,
    SaysPermanent,
    Hangs,
    EmptyForUnknown,
    ForgetsItsLife,
    NoLength,
    Gaps,
    WrongEpoch,
    LateTwice,
    HistoryCannotBe,
}

/// Candidate and baseline, by epoch.
type Counted = BTreeMap<u64, Gain>;

#[derive(Debug, Clone, Default)]
struct Tally {
    counted: Counted,
    /// What was read last: for faults that are not in the cursor alone.
    read: Gain,
    trouble: Option<Trouble>,
    life: u64,
    exposed: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stand {
    life: u64,
    epoch: u64,
    at: u64,
    counts: Gain,
}

/// A source as simple as can be, with one fault.
#[derive(Debug)]
struct Simple {
    fault: Fault,
    tally: Arc<Mutex<Tally>>,
}

impl Simple {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self, epoch: Epoch) -> Gain {
        let tally = self.tally();
        if self.fault == Fault::CountsAllEpochs {
            let mut sum = Gain::default();
            tally.counted.values().for_each(|gain| add(&mut sum, *gain));
            return sum;
        }
        let of = tally.counted.get(&epoch.get());
        of.copied().unwrap_or_default()
    }

    async fn up(&self) -> HostResult<()> {
        let trouble = self.tally().trouble;
        match (trouble, self.fault) {
            (None, _) | (_, Fault::MakesUpZeroes) => Ok(()),
            (Some(_), Fault::Hangs) => std::future::pending().await,
            (Some(_), Fault::SaysPermanent) => Err(Error::permanent("trouble")),
            (Some(_), _) => Err(Error::transient("trouble")),
        }
    }

    fn known(&self, query: &Query<'_>) -> HostResult<()> {
        let strange = query.metrics.values().any(|d| *d != MetricDef::Fault {});
        if strange && self.fault != Fault::EmptyForUnknown {
            return Err(Error::permanent("unknown metric"));
        }
        Ok(())
    }

    fn cursor(&self, epoch: Epoch, at: Timestamp, counts: Gain) -> Cursor {
        let stand = Stand {
            life: self.tally().life,
            epoch: epoch.get(),
            at: at.as_millis(),
            counts,
        };
        Cursor::new(serde_json::to_string(&stand).unwrap())
    }
}

#[async_trait]
impl MetricSource for Simple {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> HostResult<Cursor> {
        self.known(&query)?;
        self.up().await?;
        let counts = match self.fault {
            Fault::CountsWhatWasBefore => Gain::default(),
            _ => self.counted(query.epoch),
        };
        self.tally().read = counts;
        Ok(self.cursor(query.epoch, now, counts))
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> HostResult<Reading> {
        let fault = self.fault;
        self.known(&query)?;
        self.up().await?;
        let life = self.tally().life;
        let counted = self.counted(query.epoch);
        let stand = match serde_json::from_str::<Stand>(cursor.as_str()) {
            Ok(stand) => stand,
            Err(_) if fault == Fault::TakesAnyCursor => Stand {
                life,
                epoch: query.epoch.get(),
                at: now.as_millis() - 1,
                counts: counted,
            },
            Err(_) => return Err(Error::permanent("not my cursor")),
        };
        if stand.epoch != query.epoch.get() && fault != Fault::TakesCursorsOfOtherEpochs {
            return Err(Error::permanent("another epoch"));
        }
        if stand.life != life && fault != Fault::ForgetsItsLife {
            return Err(Error::permanent("an earlier life"));
        }
        if stand.at >= now.as_millis() && fault != Fault::NoLength {
            return Err(Error::transient("no time"));
        }
        let from = match fault {
            Fault::UsesCursorsUp => self.tally().read,
            // What fell began anew: right for counters, wrong for what was never saved.
            _ => stand.counts,
        };
        let minus = |now: Counts, then: Counts| {
            Counts::new(now.n.saturating_sub(then.n), now.k.saturating_sub(then.k))
        };
        let mut gain = [minus(counted[0], from[0]), minus(counted[1], from[1])];
        match fault {
            Fault::CountsTwice => gain[0].n *= 2,
            Fault::LosesSome => gain[1].n = gain[1].n.saturating_sub(u64::from(gain[1].n > 30)),
            _ => {}
        }
        if self.tally().trouble.is_some() {
            gain = Gain::default();
        }
        self.tally().read = counted;
        let counts = match fault {
            Fault::LateTwice if gain[0].n > 4 => stand.counts,
            _ => counted,
        };
        let at = match fault {
            Fault::Gaps => Timestamp::from_millis(now.as_millis() + 1),
            _ => now,
        };
        let [candidate, baseline] = gain;
        let increment = Increment::Binary {
            candidate,
            baseline,
        };
        let epoch = query.epoch.get() + u64::from(fault == Fault::WrongEpoch);
        let exposed = self.tally().exposed;
        Ok(Reading {
            window: Window {
                epoch,
                from: stand.at,
                to: now.as_millis(),
                metrics: query
                    .metrics
                    .keys()
                    .map(|m| (m.clone(), increment.clone()))
                    .collect(),
            },
            cursor: self.cursor(query.epoch, at, counts),
            heartbeat: Some(Heartbeat {
                exposed,
                ..Heartbeat::default()
            }),
        })
    }

    async fn slices(&self, _query: Query<'_>) -> HostResult<Vec<SliceCounts>> {
        Ok(Vec::new())
    }

    async fn history(&self, query: Query<'_>, _now: Timestamp) -> HostResult<Vec<Past>> {
        let counts = match self.fault {
            Fault::HistoryCannotBe => Counts { n: 1, k: 2 },
            _ => Counts { n: 2, k: 1 },
        };
        let past = |metric: &String| Past {
            metric: metric.clone(),
            blocks: vec![[counts; 2]],
        };
        Ok(query.metrics.keys().map(past).collect())
    }
}

struct Host {
    fault: Fault,
    tally: Arc<Mutex<Tally>>,
    ms: u64,
}

fn faults() -> BTreeMap<String, MetricDef> {
    BTreeMap::from([("faults".to_owned(), MetricDef::Fault {})])
}

#[async_trait(?Send)]
impl Traffic for Host {
    fn source(&self) -> Arc<dyn MetricSource> {
        Arc::new(Simple {
            fault: self.fault,
            tally: Arc::clone(&self.tally),
        })
    }

    fn metrics(&self) -> BTreeMap<String, MetricDef> {
        faults()
    }

    fn versions(&self) -> [VersionId; 2] {
        [version(2), version(1)]
    }

    fn now(&mut self) -> Timestamp {
        self.ms += 10;
        Timestamp::from_millis(self.ms)
    }

    async fn serve(&mut self, epoch: Epoch, arm: Arm, served: Counts) {
        let mut tally = self.tally.lock().unwrap();
        let gain = match arm {
            Arm::Candidate => [served, Counts::default()],
            Arm::Baseline => [Counts::default(), served],
        };
        add(tally.counted.entry(epoch.get()).or_default(), gain);
        tally.exposed += gain[0].n;
    }

    async fn strike(&mut self, trouble: Trouble) -> bool {
        self.tally.lock().unwrap().trouble = Some(trouble);
        true
    }

    async fn mend(&mut self) {
        self.tally.lock().unwrap().trouble = None;
    }

    async fn restart(&mut self) -> bool {
        let mut tally = self.tally.lock().unwrap();
        let life = tally.life + 1;
        *tally = Tally {
            life,
            ..Tally::default()
        };
        true
    }
}

async fn judge(fault: Fault) -> Outcome {
    let mut host = Host {
        fault,
        tally: Arc::default(),
        ms: 1_000,
    };
    suite(&mut host).await
}

#[tokio::test(start_paused = true)]
async fn a_source_that_keeps_the_rules_passes() {
    judge(Fault::None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_broken_source_is_caught_by_its_rule() {
    for (fault, rule) in [
        (Fault::CountsTwice, "exactly what was served"),
        (Fault::LosesSome, "exactly what was served"),
        (Fault::CountsWhatWasBefore, "nothing from before the cursor"),
        (Fault::UsesCursorsUp, "the same cursor gives the same again"),
        (Fault::TakesAnyCursor, "not the source's own"),
        (
            Fault::TakesCursorsOfOtherEpochs,
            "a cursor of another epoch",
        ),
        (
            Fault::CountsAllEpochs,
            "requests of another epoch do not count",
        ),
        (Fault::MakesUpZeroes, "cannot be reached has no window"),
        (Fault::SaysPermanent, "cannot be reached has no window"),
        (Fault::Hangs, "every call ends by itself"),
        (Fault::EmptyForUnknown, "an error, not an empty window"),
        (Fault::ForgetsItsLife, "a cursor of an earlier life"),
        (Fault::NoLength, "without time there is no window"),
        (Fault::Gaps, "follow one another without a gap"),
        (Fault::WrongEpoch, "of the epoch that was asked for"),
        (Fault::LateTwice, "exactly what was served"),
        (Fault::HistoryCannotBe, "of the past can be"),
    ] {
        let violation = judge(fault).await.unwrap_err();
        assert!(violation.rule().contains(rule), "{fault:?}: {violation}");
    }
}

/// A recorder behind a gateway, alone or joined with labels.
struct Recorded {
    recorder: Arc<Recorder>,
    labels: Option<Arc<Labels>>,
    joined: Option<Arc<dyn MetricSource>>,
    ms: u64,
    served: u64,
}

impl Recorded {
    fn new(labelled: bool) -> Self {
        let mut host = Self {
            recorder: Arc::new(Recorder::new(["bad"]).unwrap()),
            labels: None,
            joined: None,
            ms: 1_000_000,
            served: 0,
        };
        if labelled {
            let labels = Arc::new(Labels::new(["thumb"], 10_000, Duration::from_secs(1)));
            let source = Arc::clone(&host.recorder) as Arc<dyn MetricSource>;
            host.joined = Some(Joined::of(
                source,
                BTreeMap::new(),
                Some(Arc::clone(&labels)),
            ));
            host.labels = Some(labels);
        }
        host
    }
}

#[async_trait(?Send)]
impl Traffic for Recorded {
    fn source(&self) -> Arc<dyn MetricSource> {
        let alone = || Arc::clone(&self.recorder) as Arc<dyn MetricSource>;
        self.joined.clone().unwrap_or_else(alone)
    }

    fn metrics(&self) -> BTreeMap<String, MetricDef> {
        let mut metrics = faults();
        metrics.insert("flagged".to_owned(), MetricDef::Flag("bad".to_owned()));
        let limit = Duration::from_millis(500);
        metrics.insert("slow".to_owned(), MetricDef::DurationOver(limit));
        if self.labels.is_some() {
            let silent = MetricDef::Unlabelled("thumb".to_owned());
            metrics.insert("silent".to_owned(), silent);
        }
        metrics
    }

    fn versions(&self) -> [VersionId; 2] {
        [version(12), version(11)]
    }

    fn now(&mut self) -> Timestamp {
        // Whatever was labelled is mature by then.
        self.ms += 2_000;
        Timestamp::from_millis(self.ms)
    }

    async fn serve(&mut self, epoch: Epoch, arm: Arm, served: Counts) {
        let [candidate, baseline] = self.versions();
        let version = match arm {
            Arm::Candidate => candidate,
            Arm::Baseline => baseline,
        };
        for i in 0..served.n {
            let bad = i < served.k;
            let now = Timestamp::from_millis(self.ms + 1);
            let decision = assigned(&version, arm, epoch);
            let mut ticket = self.recorder.begin(decision, now);
            let (class, took) = if bad {
                ticket.flag("bad");
                (OutcomeClass::Timeout, Duration::from_secs(1))
            } else {
                (OutcomeClass::Ok, Duration::from_millis(80))
            };
            ticket.finish(class, now.after(took));
            if let Some(labels) = &self.labels {
                self.served += 1;
                let id = self.served.to_le_bytes();
                labels.remember(&id, decision, now);
                if !bad {
                    labels.label(&id, "thumb", 1.0, now).unwrap();
                }
            }
        }
    }

    async fn strike(&mut self, _: Trouble) -> bool {
        // It counts in the process that asks: there is nothing in between that could break.
        false
    }

    async fn mend(&mut self) {}

    async fn restart(&mut self) -> bool {
        let ms = self.ms;
        *self = Self {
            ms,
            ..Self::new(self.labels.is_some())
        };
        true
    }
}

#[tokio::test]
async fn the_recorder_keeps_the_rules() {
    suite(&mut Recorded::new(false)).await.unwrap();
}

#[tokio::test]
async fn joined_sources_keep_the_rules() {
    suite(&mut Recorded::new(true)).await.unwrap();
}
