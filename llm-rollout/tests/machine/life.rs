//! A rollout with one router that does what it is told.

use llm_gates::{Judgement, Verdict};
use llm_rollout::{
    Command, Direction, Effect, Epoch, Fence, Heartbeat, Input, Look, Observed, Outcome, Phase,
    Plan, Position, Rejected, Rollout, RolloutId, RouterClock, RouterId, RouterState, Seq, Split,
    Step, Timestamp, Verb,
};
use llm_version_core::VersionId;
use serde_json::json;
use std::time::Duration;

pub(crate) const FENCE: Fence = Fence::new(1);

pub(crate) fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

pub(crate) fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        bake = "1h"
        [metrics]
        faults = { fault = {} }
        slow = { first_token_over = "800ms" }
        [[gates]]
        metric = "faults"
        weight = 0.5
        [[gates]]
        metric = "slow"
        weight = 0.5
        action = "hold"
        [[stages]]
        serve = 5.0
        dwell = "1h"
        limit = "4h"
        [[stages]]
        serve = 50.0
        dwell = "1h"
        advance = "manual"
        [[stages]]
        serve = 100.0
        dwell = "1h"
        [lease]
        longest_lapse = "1h"
    "#,
    )
    .unwrap()
}

/// A rollout, its log, and one router that does what it is told.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) rollout: Rollout,
    pub(crate) log: Vec<Step>,
    pub(crate) now: Timestamp,
    pub(crate) seq: Seq,
    pub(crate) router: RouterState,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self::with(plan())
    }

    /// With another plan.
    pub(crate) fn with(plan: Plan) -> Self {
        let now = Timestamp::from_millis(1_000_000_000);
        let id = RolloutId::new("r1").unwrap();
        let rollout = Rollout::new(id, version(1), version(2), plan, 7, Epoch::new(3), now);
        let router = RouterState {
            fence: FENCE,
            at: Position::default(),
            split: Split::steady(None, version(1), Epoch::new(3)),
            lapsed: false,
            mark: None,
            latch: None,
            clock: RouterClock::default(),
        };
        Self {
            rollout,
            log: Vec::new(),
            now,
            seq: Seq::new(10),
            router,
        }
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// Decide, log, apply, and let the router obey.
    pub(crate) fn give(&mut self, input: Input) -> Result<bool, Rejected> {
        let Some(step) = self.rollout.decide(self.seq, self.now, input)? else {
            return Ok(false);
        };
        self.rollout.apply(&step).unwrap();
        self.log.push(step);
        self.seq = self.seq.next();
        if let Some(order) = self.rollout.order(FENCE, self.router.clock)
            && order.at > self.router.at
        {
            self.router = RouterState {
                at: order.at,
                split: order.split,
                lapsed: false,
                ..self.router.clone()
            };
            match order.direction {
                Direction::Back => self.router.mark = Some(self.rollout.id().clone()),
                Direction::End => (self.router.mark, self.router.latch) = (None, None),
                _ => {}
            }
        }
        Ok(true)
    }

    pub(crate) fn routers(&self) -> Observed {
        Observed::new([(RouterId::new("a").unwrap(), Some(self.router.clone()))])
    }

    pub(crate) fn found(&mut self) -> bool {
        let routers = self.routers();
        self.give(Input::Found {
            fence: FENCE,
            routers,
        })
        .unwrap()
    }

    /// Every pending intent but the split is carried out.
    pub(crate) fn serve(&mut self) {
        let intents = self.rollout.pending().to_vec();
        for intent in intents
            .iter()
            .filter(|i| !matches!(i.effect, Effect::Route { .. }))
        {
            self.give(Input::Done {
                intent: intent.id,
                outcome: Outcome::Ok,
            })
            .unwrap();
        }
    }

    pub(crate) fn look(&self, verdict: Verdict, hours: u64) -> Look {
        let to = self.now.as_millis();
        // As an old log would hold it: what the gates say is data to the machine.
        let judgement: Judgement = serde_json::from_value(json!({
            "verdict": verdict,
            "action": null,
            "epoch": self.rollout.state().split.epoch.get(),
            "from": to - hours * 3_600_000,
            "to": to,
            "samples": 1000,
            "log_evidence": if verdict == Verdict::Fail { 4.0 } else { -1.0 },
            "bound": 20f64.ln(),
            "paused": false,
            "gates": [gate("faults", verdict), gate("slow", Verdict::Pass)],
        }))
        .unwrap();
        let heartbeat = Some(Heartbeat {
            exposed: 42,
            waiting: Duration::ZERO,
        });
        Look {
            judgement,
            heartbeat,
            fence: FENCE,
            routers: self.routers(),
        }
    }

    pub(crate) fn judged(&mut self, verdict: Verdict) -> Result<bool, Rejected> {
        self.wait(Duration::from_secs(300));
        let look = self.look(verdict, 1);
        self.give(Input::Judged(Box::new(look)))
    }

    /// Soaks through every stage that is left, approving by hand.
    pub(crate) fn pass_all(&mut self) {
        while let Phase::Soaking { .. } | Phase::Held { .. } = self.rollout.phase() {
            if self.rollout.state().holds.contains_key("approval") {
                self.operator(Verb::Approve).unwrap();
            }
            self.judged(Verdict::Pass).unwrap();
            if let Phase::Shifting { .. } = self.rollout.phase() {
                self.found();
            }
        }
    }

    /// Promoted by every router, the old baseline still there.
    pub(crate) fn baking(plan: Plan) -> Self {
        let mut life = Self::soaking_with(plan);
        life.pass_all();
        assert_eq!(life.rollout.phase(), Phase::Promoting);
        life.found();
        assert_eq!(life.rollout.phase(), Phase::Baking);
        life
    }

    /// What the last step asks for.
    pub(crate) fn asked(&self, effect: &Effect) -> bool {
        self.rollout.pending().iter().any(|i| i.effect == *effect)
    }

    /// Whether people have been told this.
    pub(crate) fn told(&self, text: &str) -> bool {
        let told = |e: &Effect| matches!(e, Effect::Notify(n) if n.text == text);
        self.log
            .iter()
            .any(|s| s.intents.iter().any(|i| told(&i.effect)))
    }

    /// How many people-waking notices there have been.
    pub(crate) fn pages(&self) -> usize {
        let page = |e: &Effect| matches!(e, Effect::Notify(n) if n.page);
        let intents = self.log.iter().flat_map(|s| &s.intents);
        intents.filter(|i| page(&i.effect)).count()
    }

    pub(crate) fn operator(&mut self, verb: Verb) -> Result<bool, Rejected> {
        self.give(Input::Operator(Command {
            verb,
            by: "ana".into(),
            why: "because".into(),
        }))
    }

    /// Soaking in the first stage.
    pub(crate) fn soaking() -> Self {
        Self::soaking_with(plan())
    }

    pub(crate) fn soaking_with(plan: Plan) -> Self {
        let mut life = Self::with(plan);
        life.give(Input::Start).unwrap();
        life.serve();
        assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 0 });
        assert!(life.found());
        assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 0 });
        life
    }
}

pub(crate) fn gate(metric: &str, verdict: Verdict) -> serde_json::Value {
    json!({
        "metric": metric,
        "weight": 0.5,
        "log_e": if verdict == Verdict::Fail { 4.5 } else { -1.0 },
        "candidate": { "n": 1000, "k": 10 },
        "baseline": { "n": 9000, "k": 90 },
        "ratio": 1.0,
        "verdict": verdict,
    })
}
