//! The log, told as stories: one per rollout, with everything that the report shows.

use llm_gates::TableReport;
use llm_rollout::{Cause, Input, Phase, Recovery, RolloutId, Seq, Step, Timestamp};
use llm_serve_adapters::Endpoint;
use llm_serve_adapters::journal::Event;
use llm_version_core::VersionId;
use std::error::Error;
use std::time::Duration;

/// What the log says of one rollout.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    pub(crate) id: RolloutId,
    pub(crate) baseline: VersionId,
    pub(crate) candidate: VersionId,
    pub(crate) begun: Timestamp,
    pub(crate) ended: Timestamp,
    pub(crate) phase: Phase,
    pub(crate) cause: Option<Cause>,
    /// Each change of phase.
    pub(crate) timeline: Vec<(Timestamp, Phase)>,
    /// Seconds since the beginning, per cent.
    pub(crate) share: Vec<(f64, f64)>,
    /// Seconds since the beginning, ln E of all gates together.
    pub(crate) evidence: Vec<(f64, f64)>,
    pub(crate) by_gate: Vec<(String, Vec<(f64, f64)>)>,
    pub(crate) bound: f64,
    pub(crate) gates: Option<TableReport>,
    pub(crate) looks: usize,
}

/// Every rollout in the endpoint's log, in order.
pub(crate) async fn read(endpoint: &Endpoint) -> Result<Vec<Story>, Box<dyn Error>> {
    let mut stories = Vec::new();
    let mut from = Seq::default();
    loop {
        let page = endpoint.log(from).await?;
        let Some((last, _)) = page.last() else {
            return Ok(stories);
        };
        from = last.next();
        for (_, entry) in page {
            match entry.event {
                Event::Submitted { rollout, .. } => stories.push(Story {
                    id: rollout.id().clone(),
                    baseline: rollout.baseline().clone(),
                    candidate: rollout.candidate().clone(),
                    begun: rollout.state().since,
                    ended: rollout.state().since,
                    phase: rollout.phase(),
                    cause: None,
                    timeline: Vec::new(),
                    share: vec![(0.0, 0.0)],
                    evidence: Vec::new(),
                    by_gate: Vec::new(),
                    bound: (1.0 / rollout.plan().spec().alpha).ln(),
                    gates: None,
                    looks: 0,
                }),
                Event::Stepped { step, .. } => {
                    if let Some(story) = stories.last_mut() {
                        story.add(&step);
                    }
                }
                _ => {}
            }
        }
    }
}

impl Story {
    fn add(&mut self, step: &Step) {
        let at = step.at.since(self.begun).as_secs_f64();
        if self.phase != step.state.phase {
            self.phase = step.state.phase;
            self.timeline.push((step.at, step.state.phase));
            if !step.state.phase.is_end() || self.ended < step.at {
                self.ended = step.at;
            }
        }
        self.cause.clone_from(&step.state.cause);
        let promoted =
            step.state.split.candidate.is_none() && step.state.split.baseline == self.candidate;
        let percent = if promoted {
            100.0
        } else {
            step.state.split.share.percent()
        };
        if self
            .share
            .last()
            .is_none_or(|(_, last)| (last - percent).abs() > 1e-9)
        {
            self.share.push((at, percent));
        }
        match &step.input {
            Input::PreFlight(report) => self.gates = Some(report.clone()),
            Input::Judged(look) => {
                self.looks += 1;
                self.evidence.push((at, look.judgement.log_evidence));
                for gate in &look.judgement.gates {
                    match self
                        .by_gate
                        .iter_mut()
                        .find(|(name, _)| *name == gate.metric)
                    {
                        Some((_, points)) => points.push((at, gate.log_e)),
                        None => self
                            .by_gate
                            .push((gate.metric.clone(), vec![(at, gate.log_e)])),
                    }
                }
            }
            _ => {}
        }
    }

    pub(crate) fn duration(&self) -> Duration {
        self.ended.since(self.begun)
    }

    /// When it entered a phase, since the beginning.
    fn reached(&self, phase: Phase) -> Option<Duration> {
        self.timeline
            .iter()
            .find(|(_, p)| *p == phase)
            .map(|(at, _)| at.since(self.begun))
    }

    /// The record of going back: what was seen, what was done, how long each part took.
    pub(crate) fn incident(&self) -> Option<Vec<(String, String)>> {
        let redirecting = self.reached(Phase::RollingBack {
            part: Recovery::Redirecting,
        })?;
        let since = |part| {
            self.reached(part).map_or_else(
                || "not reached".to_owned(),
                |at| {
                    format!(
                        "{:.2} s after detection",
                        at.saturating_sub(redirecting).as_secs_f64()
                    )
                },
            )
        };
        let largest = self
            .share
            .iter()
            .map(|(_, percent)| *percent)
            .fold(0.0, f64::max);
        let rows = [
            (
                "cause",
                self.cause
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
            ("candidate", self.candidate.reference().to_string()),
            ("served instead", self.baseline.reference().to_string()),
            (
                "detected",
                format!(
                    "{:.1} s after submission, at look {}",
                    redirecting.as_secs_f64(),
                    self.looks
                ),
            ),
            ("largest share", format!("{largest} %")),
            (
                "all routers on the baseline",
                since(Phase::RollingBack {
                    part: Recovery::Draining,
                }),
            ),
            (
                "candidate drained",
                since(Phase::RollingBack {
                    part: Recovery::Retiring,
                }),
            ),
            ("candidate retired", since(Phase::RolledBack)),
        ];
        Some(rows.map(|(what, value)| (what.to_owned(), value)).to_vec())
    }
}
