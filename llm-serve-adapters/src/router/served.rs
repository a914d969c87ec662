//! What is served by components that know nothing of a router's rules, beside what these rules say.

use super::core::RouterCore;
use llm_rollout::{RouterState, Share, Timestamp};
use llm_version_core::VersionId;

/// What a component says that it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) baseline: VersionId,
    /// Who gets the share and the mirror, while there is any.
    pub(super) candidate: Option<VersionId>,
    pub(super) share: Share,
    pub(super) mirror: Share,
}

impl Served {
    /// As weights say it, without a mirror: the baseline as told, if it serves at all, the heaviest version otherwise; the candidate is the
    /// heaviest of the others. None if nobody is served.
    #[cfg(any(feature = "envoy", feature = "kubernetes"))]
    pub(super) fn by_weight(
        weights: Vec<(&VersionId, u64)>,
        told: &llm_rollout::Split,
    ) -> Option<Self> {
        let mut weights: Vec<_> = weights
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .collect();
        let total = weights
            .iter()
            .fold(0_u64, |sum, (_, weight)| sum.saturating_add(*weight));
        let of_baseline = weights
            .iter()
            .position(|(version, _)| **version == told.baseline);
        let most = (0..weights.len()).max_by_key(|&i| weights[i].1);
        let baseline = of_baseline.or(most)?;
        // A candidate that gets everything leaves no weight to the baseline.
        let as_told = told.candidate.as_ref().is_some_and(|candidate| {
            of_baseline.is_none() && weights.iter().all(|(version, _)| *version == candidate)
        });
        let (baseline, of_baseline) = if as_told && told.share != Share::NONE {
            (&told.baseline, 0)
        } else {
            weights.swap_remove(baseline)
        };
        let others = weights.iter().max_by_key(|(_, weight)| *weight);
        let points = u128::from(total - of_baseline) * 10_000 / u128::from(total);
        // As much as there is, should it be little.
        let points = points.max(u128::from(total > of_baseline));
        let share = u16::try_from(points)
            .ok()
            .and_then(|points| Share::new(points).ok());
        Some(Self {
            baseline: baseline.clone(),
            candidate: others.map(|(version, _)| (*version).clone()),
            share: share.unwrap_or(Share::ALL),
            mirror: Share::NONE,
        })
    }

    pub(super) fn exposes(&self) -> bool {
        self.share != Share::NONE || self.mirror != Share::NONE
    }
}

/// When the candidate's share ends, while it serves anything.
pub(super) fn due(core: &RouterCore, now: Timestamp) -> Option<Timestamp> {
    let serves = core.raised(now) && !core.lapsed() && !core.latched() && core.split().exposes();
    core.deadline().filter(|_| serves)
}

/// What the core says, corrected by what is served.
pub(super) fn told(core: &mut RouterCore, served: Served, now: Timestamp) -> RouterState {
    let mut state = core.state(now);
    // A lapsed share is told as it was ordered; whatever is served beyond that is somebody else's.
    if served.exposes() || !state.lapsed {
        (state.split.share, state.split.mirror) = (served.share, served.mirror);
    }
    if served.exposes() {
        state.split.candidate = served.candidate;
    }
    state.split.baseline = served.baseline;
    state
}
