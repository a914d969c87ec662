//! What a person writes: members, waves, the limit.

use crate::time::Words;
use crate::{Advance, EndpointId, Plan, RolloutId};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// One endpoint and what is rolled out on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Member {
    /// Where: each endpoint once.
    pub endpoint: EndpointId,
    /// Under which id; at most 57 characters, since a return appends to it.
    pub rollout: RolloutId,
    /// What.
    pub candidate: VersionId,
    /// Its traffic, in any unit that all members share (requests per second, say); above 0.
    #[serde(default = "one")]
    pub traffic: f64,
    /// How.
    pub plan: Plan,
}

const fn one() -> f64 {
    1.0
}

/// Members that are rolled out side by side, as far as the limit lets them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Wave {
    /// Time between the end of the wave before and this one.
    #[serde(default, with = "Words")]
    pub pause: Duration,
    /// Who lets it begin.
    #[serde(default)]
    pub advance: Advance,
    /// Its members, submitted in this order.
    pub members: Vec<Member>,
}

impl Wave {
    /// A wave that begins by itself, at once.
    pub fn of(members: impl IntoIterator<Item = Member>) -> Self {
        Self {
            pause: Duration::ZERO,
            advance: Advance::Auto,
            members: members.into_iter().collect(),
        }
    }
}

/// How much may be in flight: submitted, and not yet baked or rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Limit {
    /// Members at a time; not set: no limit. One rolls them out one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<usize>,
    /// Part of all members' traffic at a time, in per cent; not set: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<f64>,
}

/// What a member that is rolled back, blocked or refused does to the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "the machine must handle each")]
pub enum OnFailure {
    /// Nothing is submitted any more; what is in flight goes on, what was promoted stays.
    #[default]
    Stop,
    /// What is in flight is aborted, what was promoted is returned.
    RollBackAll,
    /// The others go on; people are told.
    Continue,
}

/// A schedule as written; [`Schedule`] is the checked form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Spec {
    /// How much may be in flight.
    #[serde(default)]
    pub limit: Limit,
    /// What a failed member does to the others.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How long a hold or a missing approval may last; then it stops.
    #[serde(default = "week", with = "Words")]
    pub patience: Duration,
    /// The waves, in order.
    pub waves: Vec<Wave>,
}

const fn week() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}

impl Spec {
    /// These waves, one member at a time, stopping at the first failure.
    pub const fn new(waves: Vec<Wave>) -> Self {
        Self {
            limit: Limit {
                members: Some(1),
                traffic: None,
            },
            on_failure: OnFailure::Stop,
            patience: week(),
            waves,
        }
    }
}

/// Why a schedule was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSchedule {
    /// Nothing to do.
    #[error("waves[{0}] has no members: leave it out")]
    Empty(usize),
    /// No waves.
    #[error("there are no waves: add [[waves]] with members")]
    NoWaves,
    /// An endpoint twice.
    #[error("endpoint {0} is in two places: each endpoint is rolled out once")]
    Twice(EndpointId),
    /// An id to which nothing can be appended.
    #[error(
        "rollout id {0} is too long: at most 57 characters, since a return appends \"-return\""
    )]
    LongId(RolloutId),
    /// Traffic that is none.
    #[error("the traffic of {endpoint} is {traffic}: it must be above 0 and finite")]
    Traffic {
        /// Whose.
        endpoint: EndpointId,
        /// What was given.
        traffic: f64,
    },
    /// A limit that lets nothing happen.
    #[error("limit.members is 0: nothing could ever be submitted")]
    NoMembers,
    /// A limit that one member alone exceeds.
    #[error(
        "{endpoint} alone has {part:.1} % of the traffic, limit.traffic is {limit} %: it could never be submitted"
    )]
    TooLarge {
        /// Whose.
        endpoint: EndpointId,
        /// Its part, in per cent.
        part: f64,
        /// The limit, in per cent.
        limit: f64,
    },
}

/// A schedule that makes sense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Spec", into = "Spec")]
pub struct Schedule(Spec);

/// What a return appends to the id of the rollout that it takes back.
const RETURN: &str = "-return";

/// Sums of parts are not exact.
const ROUNDING: f64 = 1e-9;

impl Schedule {
    /// As written.
    pub fn spec(&self) -> &Spec {
        &self.0
    }

    /// All members, in order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.0.waves.iter().flat_map(|w| &w.members)
    }

    /// The id of the rollout that returns a member.
    pub(super) fn return_id(rollout: &RolloutId) -> Option<RolloutId> {
        RolloutId::new(format!("{rollout}{RETURN}")).ok()
    }

    /// Whether one more member may be submitted beside those that are in flight.
    pub(super) fn has_room(&self, in_flight: &BTreeSet<&EndpointId>, next: &Member) -> bool {
        let limit = &self.0.limit;
        let few = limit.members.is_none_or(|most| in_flight.len() < most);
        let traffic = || {
            let all: f64 = self.members().map(|m| m.traffic).sum();
            let some = self.members().filter(|m| in_flight.contains(&m.endpoint));
            let flying: f64 = some.map(|m| m.traffic).sum();
            100.0 * (flying + next.traffic) / all
        };
        few && limit
            .traffic
            .is_none_or(|most| traffic() <= most + ROUNDING)
    }
}

impl TryFrom<Spec> for Schedule {
    type Error = BadSchedule;

    fn try_from(spec: Spec) -> Result<Self, BadSchedule> {
        if spec.waves.is_empty() {
            return Err(BadSchedule::NoWaves);
        }
        if let Some(empty) = spec.waves.iter().position(|w| w.members.is_empty()) {
            return Err(BadSchedule::Empty(empty));
        }
        if spec.limit.members == Some(0) {
            return Err(BadSchedule::NoMembers);
        }
        let schedule = Self(spec);
        let mut seen = BTreeSet::new();
        for member in schedule.members() {
            let endpoint = || member.endpoint.clone();
            if !seen.insert(&member.endpoint) {
                return Err(BadSchedule::Twice(endpoint()));
            }
            if Self::return_id(&member.rollout).is_none() {
                return Err(BadSchedule::LongId(member.rollout.clone()));
            }
            if !(member.traffic > 0.0 && member.traffic.is_finite()) {
                return Err(BadSchedule::Traffic {
                    endpoint: endpoint(),
                    traffic: member.traffic,
                });
            }
        }
        let all: f64 = schedule.members().map(|m| m.traffic).sum();
        for member in schedule.members() {
            let part = 100.0 * member.traffic / all;
            if let Some(limit) = schedule.0.limit.traffic
                && (part > limit + ROUNDING || limit.is_nan())
            {
                return Err(BadSchedule::TooLarge {
                    endpoint: member.endpoint.clone(),
                    part,
                    limit,
                });
            }
        }
        Ok(schedule)
    }
}

impl From<Schedule> for Spec {
    fn from(schedule: Schedule) -> Self {
        schedule.0
    }
}
