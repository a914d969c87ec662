//! An endpoint with one router that obeys, in virtual time: several rollouts one after the other.

use llm_gates::{Judgement, Verdict};
use llm_rollout::{
    Cause, Command, Direction, Effect, Epoch, Fence, Input, Look, Observed, Outcome, Phase, Plan,
    Position, Rejected, Rollout, RolloutId, RouterClock, RouterId, RouterState, Seq, Split,
    Timestamp, Verb,
};
use llm_version_core::VersionId;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const FENCE: Fence = Fence::new(1);

pub(crate) use crate::life::version;

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) now: Timestamp,
    seq: Seq,
    rollouts: u32,
    pub(crate) rollout: Option<Rollout>,
    pub(crate) router: RouterState,
    /// Versions that are loaded.
    pub(crate) loaded: BTreeSet<VersionId>,
    /// Stages with something to analyse that have begun, over all rollouts.
    pub(crate) analyses: usize,
    window: Timestamp,
    /// Whether the router takes a promotion only when it is told to.
    pub(crate) slow_promotion: bool,
    /// What the analyses of the stage say.
    pub(crate) says: Verdict,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            now: Timestamp::from_millis(1_000_000_000),
            seq: Seq::new(0),
            rollouts: 0,
            rollout: None,
            router: RouterState {
                fence: FENCE,
                at: Position::default(),
                split: Split::steady(None, version(1), Epoch::new(1)),
                lapsed: false,
                mark: None,
                latch: None,
                clock: RouterClock::default(),
            },
            loaded: [version(1)].into(),
            analyses: 0,
            window: Timestamp::default(),
            slow_promotion: false,
            says: Verdict::Pass,
        }
    }

    pub(crate) fn phase(&self) -> Option<Phase> {
        self.rollout.as_ref().map(Rollout::phase)
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.rollout.as_ref().unwrap().plan()
    }

    /// The version that answers most requests.
    pub(crate) fn active(&self) -> VersionId {
        let split = &self.router.split;
        match &split.candidate {
            Some(candidate) if split.share.basis_points() > 5_000 => candidate.clone(),
            _ => split.baseline.clone(),
        }
    }

    pub(crate) fn weight(&self) -> f64 {
        self.router.split.share.percent()
    }

    /// A new rollout, begun, and nothing answered yet.
    pub(crate) fn submit(&mut self, candidate: VersionId, plan: Plan) {
        self.rollouts += 1;
        let id = RolloutId::new(format!("r{}", self.rollouts)).unwrap();
        let epoch = self.router.split.epoch.next();
        let baseline = self.router.split.baseline.clone();
        self.router.mark = None;
        self.rollout = Some(Rollout::new(
            id, baseline, candidate, plan, 7, epoch, self.now,
        ));
        self.give(Input::Start).unwrap();
    }

    pub(crate) fn give(&mut self, input: Input) -> Result<bool, Rejected> {
        let rollout = self.rollout.as_mut().unwrap();
        let before = rollout.phase();
        let Some(step) = rollout.decide(self.seq, self.now, input)? else {
            return Ok(false);
        };
        rollout.apply(&step).unwrap();
        self.seq = self.seq.next();
        if let (Phase::Soaking { stage }, true) = (rollout.phase(), rollout.phase() != before)
            && !matches!(before, Phase::Held { .. })
        {
            self.window = self.now;
            let needs = &rollout.plan().stages()[stage].needs;
            self.analyses += usize::from(needs.as_ref().is_some_and(|n| !n.is_empty()));
        }
        let promotes = rollout.phase() == Phase::Promoting;
        if !(promotes && self.slow_promotion) {
            self.obey();
        }
        Ok(true)
    }

    /// The router does what it is told.
    pub(crate) fn obey(&mut self) {
        let rollout = self.rollout.as_ref().unwrap();
        if let Some(order) = rollout.order(FENCE, self.router.clock)
            && order.at > self.router.at
        {
            self.router.at = order.at;
            self.router.split = order.split;
            match order.direction {
                Direction::Back => self.router.mark = Some(rollout.id().clone()),
                Direction::End => self.router.mark = None,
                _ => {}
            }
        }
    }

    fn routers(&self) -> Observed {
        Observed::new([(RouterId::new("a").unwrap(), Some(self.router.clone()))])
    }

    pub(crate) fn found(&mut self) -> bool {
        let routers = self.routers();
        let fence = FENCE;
        self.give(Input::Found { fence, routers }).unwrap()
    }

    /// The backend does everything that is pending.
    pub(crate) fn serve(&mut self) -> bool {
        let pending = self.rollout.as_ref().unwrap().pending().to_vec();
        let mut did = false;
        for intent in pending {
            match &intent.effect {
                Effect::Route { .. } => continue,
                Effect::Prepare(version) => drop(self.loaded.insert(version.clone())),
                Effect::Retire(version) | Effect::Standby(version) => {
                    self.loaded.remove(version);
                }
                _ => {}
            }
            let outcome = Outcome::Ok;
            let intent = intent.id;
            did |= self.give(Input::Done { intent, outcome }).unwrap();
        }
        did
    }

    /// Everything that needs no time happens.
    pub(crate) fn settle(&mut self) {
        for _ in 0..50 {
            if !(self.serve() | self.found()) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// The stage's analyses say this about the time since the last look.
    pub(crate) fn look(&mut self, verdict: Verdict) {
        let Some(Phase::Soaking { stage } | Phase::Held { stage }) = self.phase() else {
            return;
        };
        let rollout = self.rollout.as_ref().unwrap();
        let needs = rollout.plan().stages()[stage].needs.as_deref();
        let gates = rollout.plan().gate_plan(stage).map(|p| p.gates);
        let gates: Vec<_> = gates
            .iter()
            .flatten()
            .map(|g| {
                let asked = needs.is_none_or(|n| n.contains(&g.metric));
                crate::life::gate(&g.metric, if asked { verdict } else { Verdict::Pass })
            })
            .collect();
        let judgement: Judgement = serde_json::from_value(json!({
            "verdict": if gates.is_empty() { Verdict::Pass } else { verdict },
            "action": null,
            "epoch": rollout.state().split.epoch.get(),
            "from": self.window.as_millis(),
            "to": self.now.as_millis(),
            "samples": 1000,
            "log_evidence": -1.0,
            "bound": 3.0,
            "paused": false,
            "gates": gates,
        }))
        .unwrap();
        self.window = self.now;
        let look = Look {
            judgement,
            heartbeat: None,
            fence: FENCE,
            routers: self.routers(),
        };
        self.give(Input::Judged(Box::new(look))).unwrap();
    }

    /// Time passes, in looks of a second.
    pub(crate) fn advance(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            self.look(self.says);
            self.give(Input::Tick).unwrap();
            self.settle();
        }
    }

    pub(crate) fn operator(&mut self, verb: Verb) -> Result<bool, Rejected> {
        self.give(Input::Operator(Command {
            verb,
            by: "ana".into(),
            why: "because".into(),
        }))
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        self.rollout.as_ref().and_then(|r| r.state().cause.clone())
    }
}
