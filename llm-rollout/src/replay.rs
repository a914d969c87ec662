//! What another plan would have decided on what happened: the recorded inputs of a rollout, decided upon again.
//!
//! Evidence is judged anew: between two looks, the counts of each gate in the log differ by exactly what the window between them
//! held, so the gates of the new plan see the windows that the old ones saw. What the log does not hold cannot be judged, and is
//! said ([`Redecided::unjudged`]). Beyond a point where the new plan would have given the candidate another share, what happened
//! is not what would have happened, which is said too ([`Redecided::parted`]).

use crate::{
    Cause, Effect, Input, Intent, IntentId, Look, Observed, Outcome, Phase, Plan, Position,
    Rollout, Seq, Share, Step, Timestamp,
};
use llm_gates::{Counts, Evidence, GateTable, Increment, Judgement, Window};
use llm_version_core::VersionId;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// How a rollout went, in short.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Fate {
    /// Where it is at the end of the log.
    pub phase: Phase,
    /// When it was decided to go back, or that nobody is to be exposed, and why.
    pub back: Option<(Timestamp, Cause)>,
    /// Requests that the candidate had been given when that was decided, or by the end; as last heard.
    pub exposed: u64,
    /// The largest share that it was given until then.
    pub largest_share: Share,
}

/// What another plan would have decided.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Redecided {
    /// What happened.
    pub then: Fate,
    /// What would have happened.
    pub now: Fate,
    /// When the new plan would first have given the candidate another share than it had, and both (the one it had first). What
    /// happened after that tells only as much as another exposure can.
    pub parted: Option<(Timestamp, Share, Share)>,
    /// What could not be judged again, and why; each once.
    pub unjudged: BTreeSet<String>,
    /// The decisions of the new plan.
    pub steps: Vec<Step>,
}

impl Redecided {
    /// By how much sooner the new plan goes back than the old one did: none where one of them does not, or not sooner.
    pub fn sooner(&self) -> Option<std::time::Duration> {
        match (&self.now.back, &self.then.back) {
            (Some((now, _)), Some((then, _))) if now < then => Some(then.since(*now)),
            _ => None,
        }
    }
}

/// Decides upon the recorded inputs again, with another plan: from the rollout as submitted and its steps, in order.
///
/// Routers are taken to confirm at once, and backends to do what they are asked, unless the log says otherwise.
pub fn redecide(submitted: &Rollout, steps: &[Step], plan: &Plan) -> Redecided {
    let mut run = Run::new(submitted, plan);
    let mut then = Fate::new(submitted);
    let mut recorded = submitted.clone();
    let mut parted = None;
    for step in steps {
        // Read as the old rollout stood when it came.
        let before = recorded.clone();
        // A log that is out of order has been refused where it was read.
        let _ = recorded.apply(step);
        then.follow(step);
        run.until(step.at);
        run.take(&before, step);
        let (had, has) = (step.state.split.share, run.rollout.state().split.share);
        if had != has && parted.is_none() && run.is_going() && recorded_is_going(step) {
            parted = Some((step.at, had, has));
        }
    }
    then.phase = recorded.phase();
    run.now.phase = run.rollout.phase();
    Redecided {
        then,
        now: run.now,
        parted,
        unjudged: run.unjudged,
        steps: run.steps,
    }
}

fn recorded_is_going(step: &Step) -> bool {
    matches!(step.state.phase, Phase::Soaking { .. } | Phase::Held { .. })
}

impl Fate {
    fn new(rollout: &Rollout) -> Self {
        Self {
            phase: rollout.phase(),
            back: None,
            exposed: 0,
            largest_share: Share::NONE,
        }
    }

    fn follow(&mut self, step: &Step) {
        if self.back.is_some() {
            return;
        }
        self.exposed = self.exposed.max(step.state.exposed);
        self.largest_share = self.largest_share.max(step.state.split.share);
        if let Some(cause) = &step.state.cause {
            self.back = Some((step.at, cause.clone()));
        }
    }
}

/// Answers and deadlines that may follow one moment: more would be a loop.
const MOST: usize = 1_000;

/// The rollout under the new plan.
struct Run<'a> {
    rollout: Rollout,
    plan: &'a Plan,
    evidence: Evidence,
    /// Counts of each gate at the last look.
    counted: BTreeMap<String, (Counts, Counts)>,
    seq: Seq,
    now: Fate,
    unjudged: BTreeSet<String>,
    steps: Vec<Step>,
}

impl<'a> Run<'a> {
    fn new(submitted: &Rollout, plan: &'a Plan) -> Self {
        let state = submitted.state();
        let rollout = Rollout::new(
            submitted.id().clone(),
            submitted.baseline().clone(),
            submitted.candidate().clone(),
            plan.clone(),
            submitted.salt(),
            state.split.epoch,
            state.since,
        );
        Self {
            now: Fate::new(&rollout),
            rollout,
            plan,
            evidence: Evidence::new(),
            counted: BTreeMap::new(),
            seq: Seq::new(0),
            unjudged: BTreeSet::new(),
            steps: Vec::new(),
        }
    }

    fn is_going(&self) -> bool {
        self.now.back.is_none()
    }

    fn give(&mut self, at: Timestamp, input: Input) -> bool {
        let what = crate::incident::said(&input);
        match self.rollout.decide(self.seq, at, input) {
            Ok(Some(step)) => {
                self.seq = self.seq.next();
                // It was decided for exactly this place.
                let applied = self.rollout.apply(&step).is_ok();
                self.now.follow(&step);
                self.steps.push(step);
                applied
            }
            Ok(None) => false,
            Err(refused) => {
                if self.is_going() {
                    self.unjudged
                        .insert(format!("{what}: not taken, because {refused}"));
                }
                false
            }
        }
    }

    /// Deadlines until this moment.
    fn until(&mut self, at: Timestamp) {
        for _ in 0..MOST {
            let Some(due) = self.rollout.next_wakeup().filter(|due| *due < at) else {
                return;
            };
            let due = self.rollout.last().map_or(due, |(_, last)| due.max(last));
            let acted = self.give(due, Input::Tick);
            self.settle(due);
            if !acted {
                return;
            }
        }
    }

    /// Routers confirm and backends answer, where the new rollout waits for them.
    fn settle(&mut self, at: Timestamp) {
        for _ in 0..MOST {
            let candidate = self.rollout.candidate();
            let mut pending = self.rollout.pending().iter();
            let open = pending.find_map(|intent| answerable(intent, candidate));
            let acted = match open {
                Some(input) => self.give(at, input),
                // Which says something only to who waits for it.
                None => self.confirm(at),
            };
            if !acted {
                return;
            }
        }
    }

    /// The routers as they stand to the new rollout: as told, behind what they were told, or ahead of it.
    fn routers(&self, like: &Observed, of: &Rollout) -> Option<Observed> {
        let (seq, _) = self.rollout.state().routed?;
        let (was, _) = of.state().routed?;
        let state = self.rollout.state();
        let routers = like.iter().map(|(id, router)| {
            let router = router.map(|router| {
                let mut now = router.clone();
                let fence = router.fence;
                now.at = match router.at.seq.cmp(&was) {
                    Ordering::Less => Position::default(),
                    Ordering::Equal => Position { fence, seq },
                    Ordering::Greater => Position {
                        fence,
                        seq: Seq::new(u64::MAX),
                    },
                };
                if router.split == of.state().split {
                    now.split = state.split.clone();
                }
                now
            });
            (id.clone(), router)
        });
        Some(Observed::new(routers))
    }

    fn confirm(&mut self, at: Timestamp) -> bool {
        let Some((seq, _)) = self.rollout.state().routed else {
            return false;
        };
        let fence = crate::Fence::new(1);
        let router = crate::RouterState {
            fence,
            at: Position { fence, seq },
            split: self.rollout.state().split.clone(),
            lapsed: false,
            mark: None,
            latch: None,
            clock: crate::RouterClock::default(),
        };
        let Ok(id) = crate::RouterId::new("all") else {
            return false;
        };
        let routers = Observed::new([(id, Some(router))]);
        self.give(at, Input::Found { fence, routers })
    }

    /// One recorded input, as it would have come to the new rollout.
    fn take(&mut self, recorded: &Rollout, step: &Step) {
        let at = step.at;
        match &step.input {
            Input::Judged(look) => self.look(recorded, at, look),
            Input::Found { fence, routers } => {
                // What only confirms has been taken to come at once, and changes nothing now. What routers say of a rollout
                // that goes back is its own doing.
                if recorded.state().cause.is_none()
                    && let Some(routers) = self.routers(routers, recorded)
                {
                    let fence = *fence;
                    self.give(at, Input::Found { fence, routers });
                }
            }
            Input::Done { intent, outcome } => {
                let mut pending = recorded.pending().iter();
                let asked = pending.find(|i| i.id == *intent);
                if let Some(intent) = asked.and_then(|intent| self.same(intent)) {
                    let outcome = outcome.clone();
                    self.give(at, Input::Done { intent, outcome });
                }
            }
            Input::PreFlight(report) => {
                let table = |plan: &Plan| plan.spec().pre_flight.as_ref().map(|p| p.gates.clone());
                if table(self.plan) != table(recorded.plan()) {
                    self.unjudged.insert(
                        "the gates before deployment: the log holds what the old table said, not what was measured"
                            .to_owned(),
                    );
                }
                if self.rollout.phase() == Phase::PreFlight {
                    self.give(at, Input::PreFlight(report.clone()));
                }
            }
            other => {
                self.give(at, other.clone());
                if *other == Input::Start && recorded.plan().spec().pre_flight.is_none() {
                    self.pass_unmeasured(at);
                }
            }
        }
        self.settle(at);
    }

    /// The new plan has gates before deployment and the old one had none: nothing was measured.
    fn pass_unmeasured(&mut self, at: Timestamp) {
        if self.rollout.phase() == Phase::PreFlight {
            self.unjudged.insert(
                "the gates before deployment: nothing was measured; taken to have passed"
                    .to_owned(),
            );
            let report = GateTable::new(Vec::new()).evaluate(&BTreeMap::new());
            self.give(at, Input::PreFlight(report));
        }
    }

    /// The intent of the new rollout that asks for the same.
    fn same(&self, old: &Intent) -> Option<IntentId> {
        let same = |new: &Effect| match (new, &old.effect) {
            (Effect::Evaluate(a), Effect::Evaluate(b))
            | (Effect::Prepare(a), Effect::Prepare(b)) => a == b,
            _ => false,
        };
        let mut pending = self.rollout.pending().iter();
        pending.find(|i| same(&i.effect)).map(|i| i.id)
    }

    fn look(&mut self, recorded: &Rollout, at: Timestamp, look: &Look) {
        let windows = self.windows(recorded, &look.judgement);
        let Some(stage) = self.rollout.phase().stage() else {
            return;
        };
        let Some(routers) = self.routers(&look.routers, recorded) else {
            return;
        };
        // An older epoch than the one in force was refused then, and would be now.
        if look.judgement.epoch != recorded.state().split.epoch.get() {
            return;
        }
        let epoch = self.rollout.state().split.epoch.get();
        let (from, to) = (look.judgement.from, look.judgement.to);
        let mut gates = self.plan.gate_plan(stage);
        if let Some(gates) = &mut gates {
            // A gate that cannot be judged stands in nobody's way.
            gates.gates.retain(|g| windows.contains_key(&g.metric));
            gates.thresholds.retain(|t| windows.contains_key(&t.metric));
            gates
                .hard_limits
                .retain(|l| windows.contains_key(&l.metric));
        }
        let judgement = match gates.filter(|plan| plan.validate().is_ok()) {
            None => Judgement::ungated(epoch, from, to),
            Some(gates) => {
                let window = Window {
                    epoch,
                    from,
                    to,
                    metrics: windows,
                };
                match self.evidence.observe(&gates, &window) {
                    Ok(judgement) => judgement,
                    Err(bad) => {
                        self.unjudged.insert(format!("a window: {bad}"));
                        return;
                    }
                }
            }
        };
        let look = Look {
            judgement,
            heartbeat: look.heartbeat,
            fence: look.fence,
            routers,
        };
        self.give(at, Input::Judged(Box::new(look)));
    }

    /// What each metric gained since the last look, by the counts of the recorded gates.
    fn windows(
        &mut self,
        recorded: &Rollout,
        judgement: &Judgement,
    ) -> BTreeMap<String, Increment> {
        let mut metrics = BTreeMap::new();
        let (old, new) = (recorded.plan().spec(), self.plan.spec());
        let judged: BTreeMap<_, _> = judgement.gates.iter().map(|g| (&g.metric, g)).collect();
        let gates = new.gates.iter().map(|g| &g.metric);
        let thresholds = new.thresholds.iter().map(|t| &t.metric);
        let limits = new.hard_limits.iter().map(|l| &l.metric);
        let watched: BTreeSet<_> = gates.chain(thresholds).chain(limits).collect();
        for name in watched {
            let mut unjudged = |why: &str| {
                self.unjudged.insert(format!("the gate on {name:?}: {why}"));
            };
            if new.metrics.get(name) != old.metrics.get(name) {
                unjudged("the metric was not measured so");
                continue;
            }
            if new
                .metrics
                .get(name)
                .is_some_and(crate::MetricDef::is_mirrored)
            {
                unjudged("the log holds wins and losses, and not the ties");
                continue;
            }
            let Some(seen) = judged.get(name) else {
                if old.gates.iter().all(|g| g.metric != *name) {
                    unjudged("no gate has counted the metric");
                }
                continue;
            };
            let (candidate, baseline) = (seen.candidate, seen.baseline);
            let (c, b) = self
                .counted
                .insert(name.clone(), (candidate, baseline))
                .unwrap_or_default();
            let gained = |now: Counts, then: Counts| Counts {
                n: now.n.saturating_sub(then.n),
                k: now.k.saturating_sub(then.k),
            };
            metrics.insert(
                name.clone(),
                Increment::Binary {
                    candidate: gained(candidate, c),
                    baseline: gained(baseline, b),
                },
            );
        }
        metrics
    }
}

/// What a backend or a messenger is taken to say at once. How long the candidate took to load and to be evaluated is in the log,
/// and splits are answered by reading them back.
fn answerable(intent: &Intent, candidate: &VersionId) -> Option<Input> {
    match &intent.effect {
        Effect::Evaluate(_) | Effect::Route { .. } => None,
        Effect::Prepare(version) if version == candidate => None,
        _ => Some(Input::Done {
            intent: intent.id,
            outcome: Outcome::Ok,
        }),
    }
}
