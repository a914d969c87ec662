//! What takes time, beside the controller: evaluating, loading, draining, retiring, notifying.

use super::Parts;
use crate::host::{Error, ErrorKind, Incidents, Letter};
use crate::journal;
use llm_gates::{GateTable, TableReport};
use llm_rollout::{
    Effect, Input, Intent, IntentId, Outcome, Position, Rollout, RolloutId, Timestamp,
};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

/// What a job ended in.
#[derive(Debug)]
enum Answer {
    Report(Box<TableReport>),
    Outcome(Outcome),
    Again(String),
}

/// An intent that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) intent: IntentId,
    pub(super) input: Input,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
struct Try {
    running: bool,
    failures: u32,
    not_before: Timestamp,
}

/// The jobs of an endpoint: at most one per intent at a time.
#[derive(Debug)]
pub(super) struct Jobs {
    parts: Parts,
    set: JoinSet<(IntentId, Answer)>,
    tries: BTreeMap<IntentId, Try>,
    ended: Vec<(IntentId, Answer)>,
}

/// First pause after a failure; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After so many failures a notice or a retirement is recorded as failed. Evaluating and loading end with the plan's deadline.
const TRIES: u32 = 20;
/// How often a drain asks what is still running.
const DRAIN_POLL: Duration = Duration::from_millis(100);

impl Jobs {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            set: JoinSet::new(),
            tries: BTreeMap::new(),
            ended: Vec::new(),
        }
    }

    /// Waits until a job has ended; for ever if none runs.
    pub(super) async fn finished(&mut self) {
        match self.set.join_next().await {
            Some(Ok(ended)) => self.ended.push(ended),
            // A job that panicked counts as not run: its intent is still pending and is begun again.
            Some(Err(_)) => self.tries.clear(),
            None => std::future::pending().await,
        }
    }

    /// The next intent that is over. A failure that may pass is kept for another try.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<Finished> {
        while let Some(ended) = self.set.try_join_next() {
            match ended {
                Ok(ended) => self.ended.push(ended),
                Err(_) => self.tries.clear(),
            }
        }
        while let Some((intent, answer)) = self.ended.pop() {
            let outcome = match answer {
                Answer::Report(report) => {
                    self.tries.remove(&intent);
                    return Some(Finished {
                        intent,
                        input: Input::PreFlight(*report),
                        outcome: Outcome::Ok,
                    });
                }
                Answer::Outcome(outcome) => outcome,
                Answer::Again(reason) => {
                    let Some(tried) = self.tries.get_mut(&intent) else {
                        continue;
                    };
                    tried.running = false;
                    tried.failures += 1;
                    tried.not_before = now.after(
                        FIRST_PAUSE
                            .saturating_mul(1 << tried.failures.min(6))
                            .min(LONGEST_PAUSE),
                    );
                    if tried.failures < TRIES {
                        continue;
                    }
                    Outcome::Failed { reason }
                }
            };
            self.tries.remove(&intent);
            return Some(Finished {
                intent,
                input: Input::Done {
                    intent,
                    outcome: outcome.clone(),
                },
                outcome,
            });
        }
        None
    }

    /// When the next failed job is due again.
    pub(super) fn next_try(&self) -> Option<Timestamp> {
        self.tries
            .values()
            .filter(|t| !t.running)
            .map(|t| t.not_before)
            .min()
    }

    /// Begins an intent unless it is running or waits for another try.
    pub(super) fn begin(
        &mut self,
        now: Timestamp,
        intent: &Intent,
        at: Position,
        rollout: Option<&Rollout>,
    ) {
        let id = intent.id;
        let tried = self.tries.entry(id).or_insert(Try {
            running: false,
            failures: 0,
            not_before: now,
        });
        if tried.running || now < tried.not_before {
            return;
        }
        tried.running = true;
        let parts = self.parts.clone();
        let effect = intent.effect.clone();
        let evaluation = rollout.and_then(Evaluation::of);
        self.set
            .spawn(async move { (id, run(&parts, id, effect, at, evaluation).await) });
    }
}

/// What an evaluation needs to know of its rollout.
struct Evaluation {
    table: GateTable,
    candidate: VersionId,
    baseline: VersionId,
}

impl Evaluation {
    fn of(rollout: &Rollout) -> Option<Self> {
        let table = rollout.plan().spec().pre_flight.as_ref()?.gates.clone();
        Some(Self {
            table,
            candidate: rollout.candidate().clone(),
            baseline: rollout.baseline().clone(),
        })
    }
}

async fn run(
    parts: &Parts,
    id: IntentId,
    effect: Effect,
    at: Position,
    evaluation: Option<Evaluation>,
) -> Answer {
    let result = match effect {
        Effect::Evaluate(_) => return evaluate(parts, evaluation).await,
        Effect::Prepare(version) => match &parts.backend {
            Some(backend) => backend.prepare(&version, at).await,
            None => Ok(()),
        },
        Effect::Drain { version, deadline } => return drain(parts, &version, deadline).await,
        Effect::Standby(version) => match &parts.backend {
            Some(backend) => backend.standby(&version, at).await,
            None => Ok(()),
        },
        Effect::Retire(version) => match &parts.backend {
            Some(backend) => backend.retire(&version, at).await,
            None => Ok(()),
        },
        Effect::Notify(notice) => {
            let letter = Letter {
                endpoint: &parts.endpoint,
                id,
                notice: &notice,
            };
            let mut result = Ok(());
            for notifier in &parts.notifiers {
                result = result.and(notifier.notify(&letter).await);
            }
            result
        }
        Effect::Record(id) => match &parts.incidents {
            Some(incidents) => record(parts, &**incidents, &id).await,
            None => Ok(()),
        },
        // The routers are the controller's own; what a newer program may ask for is not known here.
        _ => Ok(()),
    };
    answer(result)
}

async fn record(parts: &Parts, incidents: &dyn Incidents, id: &RolloutId) -> Result<(), Error> {
    let found = journal::incident(&*parts.store, &parts.endpoint, id).await?;
    match found {
        Some(incident) => incidents.keep(&parts.endpoint, &incident).await,
        None => Ok(()),
    }
}

fn answer(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Answer::Outcome(Outcome::Ok),
        Err(error) if error.kind() == ErrorKind::Transient => Answer::Again(error.to_string()),
        Err(error) => Answer::Outcome(Outcome::Failed {
            reason: error.to_string(),
        }),
    }
}

async fn evaluate(parts: &Parts, evaluation: Option<Evaluation>) -> Answer {
    let (
        Some(evaluator),
        Some(Evaluation {
            table,
            candidate,
            baseline,
        }),
    ) = (&parts.evaluator, evaluation)
    else {
        let reason =
            "the plan has pre-deployment gates and the endpoint has no evaluator".to_owned();
        return Answer::Outcome(Outcome::Failed { reason });
    };
    match evaluator.evaluate(&candidate, &baseline).await {
        Ok(measured) => Answer::Report(Box::new(table.evaluate(&measured))),
        Err(error) if error.kind() == ErrorKind::Transient => Answer::Again(error.to_string()),
        Err(error) => Answer::Outcome(Outcome::Failed {
            reason: error.to_string(),
        }),
    }
}

/// Waits until nothing runs on the version, at most until the deadline; what still runs then is cut off by retiring it.
async fn drain(parts: &Parts, version: &VersionId, deadline: Duration) -> Answer {
    let end = parts.clock.now().after(deadline);
    loop {
        let own = parts.recorder.in_flight(version);
        let running = match &parts.backend {
            Some(backend) => backend
                .in_flight(version)
                .await
                .map(|n| n.map(|n| n.max(own))),
            None => Ok(Some(own)),
        };
        if let Ok(Some(0)) = running {
            return Answer::Outcome(Outcome::Ok);
        }
        if parts.clock.now() >= end {
            let reason = match running {
                Ok(Some(n)) => {
                    format!("{n} requests were still running at the drain deadline and are cut off")
                }
                Ok(None) => {
                    "the backend cannot tell what is running; the drain deadline has passed"
                        .to_owned()
                }
                Err(error) => format!(
                    "the backend did not say what is running by the drain deadline: {error}"
                ),
            };
            return Answer::Outcome(Outcome::Failed { reason });
        }
        parts.clock.sleep(DRAIN_POLL).await;
    }
}
