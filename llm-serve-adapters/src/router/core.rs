//! The rules of a router, as plain data with time as an argument: nothing here waits, persists or reads a clock.

use super::decision::Decision;
use llm_rollout::{
    Direction, Epoch, Fence, Format, Order, Position, Raise, RolloutId, RouterClock, RouterState,
    Split, Timestamp,
};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};

/// Why a router did not do what it was told. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Somebody newer owns the endpoint.
    #[error("fence {found} is older than {newest}: somebody newer owns the endpoint")]
    Fenced {
        /// What came.
        found: Fence,
        /// The newest seen.
        newest: Fence,
    },
    /// Something newer has been carried out.
    #[error("order {}.{} is older than {}.{}, which has been carried out", .found.fence, .found.seq, .newest.fence, .newest.seq)]
    Older {
        /// What came.
        found: Position,
        /// The newest that was carried out.
        newest: Position,
    },
    /// The router has forgotten what it was told, and the split that it was given since is newer.
    #[error(
        "the split of epoch {found} is older than that of epoch {newest}, with which this router began"
    )]
    Outdated {
        /// What came.
        found: Epoch,
        /// What it began with.
        newest: Epoch,
    },
    /// It has been told to go back from this rollout.
    #[error("it has been told to go back from rollout {0}")]
    Marked(RolloutId),
    /// An operator has forced the baseline.
    #[error("{version} is pinned ({why}) until the rollout has ended")]
    Latched {
        /// The version that is pinned.
        version: VersionId,
        /// What the operator said.
        why: String,
    },
    /// The share has lapsed: only a newer epoch resumes it.
    #[error("the share of epoch {0} has lapsed: only a newer epoch resumes it")]
    Lapsed(Epoch),
    /// The order was meant for an earlier life of this router.
    #[error("meant for boot {found}, this is boot {own}: read it back and send again")]
    OtherBoot {
        /// What came.
        found: u64,
        /// This one.
        own: u64,
    },
    /// The lease had run out before the order arrived.
    #[error("arrived {} ms after its lease had run out: read the router back and send again", .0)]
    Late(u64),
    /// The order carries a clock reading that this router has not given yet.
    #[error("carries a clock reading {} ms ahead of this router's clock", .0)]
    FromTheFuture(u64),
    /// There is no leased share at this position.
    #[error("no leased share was set at {}.{}", .0.fence, .0.seq)]
    NothingToRenew(Position),
    /// The order contradicts itself.
    #[error("the order makes no sense: {0}")]
    Malformed(&'static str),
    /// The split is in a format that this program does not know: what is in force stays until its lease ends.
    #[error("the split has format {0}, which this program cannot read")]
    Format(Format),
}

/// Why a router's record cannot be read; nothing should be overwritten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnreadableRecord {
    /// It is damaged.
    #[error("it is damaged")]
    Damaged(#[from] serde_json::Error),
    /// It is of a newer program.
    #[error("it has format {0}, which this program cannot read")]
    Format(Format),
}

/// What an operator has pinned, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latch {
    pub(crate) version: VersionId,
    pub(crate) why: String,
}

/// What a router remembers over a restart. Unknown fields of a newer minor format are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: Format,
    pub(crate) fence: Fence,
    pub(crate) at: Position,
    pub(crate) direction: Direction,
    /// As ordered; a share in it is not served again after a restart.
    pub(crate) split: Split,
    #[serde(default)]
    pub(crate) mark: Option<RolloutId>,
    #[serde(default)]
    pub(crate) latch: Option<Latch>,
}

/// The rules of a router, without any runtime: feed it orders and times, read back what it serves.
///
/// 1. Orders are ordered by fence, then log position. An older one is refused; an equal one is acknowledged and changes nothing.
///    A router that has forgotten its position refuses what has an older epoch than the split that it began with.
/// 2. [`Direction::Back`] marks its rollout whatever its number, as long as that rollout has not been promoted or ended by
///    a newer order, or another one begun. From an older fence, or with an older number, it only lowers: the router's own baseline serves.
/// 3. A mark refuses `Forward` and `Promote` of its rollout, a latch those of every rollout; [`Direction::End`] at a newer
///    position releases both.
/// 4. A share ends at `order.clock.at + split.lease` on the router's own clock. What arrives later, carries another boot, or a
///    reading that the router has not given is refused. Lapsed, it refuses renewals, and a `Forward` whose epoch is not newer.
/// 5. A latch pins the baseline of the split in force. While a promotion is under way routers may thus pin different versions;
///    a rollout that sees a latch goes back, which is accepted under a latch, and all then serve the same old baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterCore {
    boot: u64,
    fence: Fence,
    at: Position,
    direction: Direction,
    split: Split,
    /// End of the share in force; none while there is no share, or it has lapsed.
    deadline: Option<Timestamp>,
    lapsed: bool,
    mark: Option<RolloutId>,
    latch: Option<Latch>,
}

impl RouterCore {
    /// A router that has never been told anything: serves the split's baseline. A share in it has lapsed.
    pub fn new(boot: u64, split: Split) -> Self {
        Self {
            boot,
            fence: Fence::default(),
            at: Position::default(),
            direction: if split.exposes() {
                Direction::Forward
            } else {
                Direction::End
            },
            lapsed: split.exposes(),
            split,
            deadline: None,
            mark: None,
            latch: None,
        }
    }

    pub(crate) fn restored(boot: u64, record: Record) -> Self {
        Self {
            boot,
            fence: record.fence,
            at: record.at,
            direction: record.direction,
            lapsed: record.split.exposes(),
            split: record.split,
            deadline: None,
            mark: record.mark,
            latch: record.latch,
        }
    }

    /// This router after a restart: what it persists is as it was, a share in it has lapsed, and the boot is another.
    #[must_use]
    pub fn restarted(&self, boot: u64) -> Self {
        Self::restored(boot, self.record())
    }

    /// What of it has to outlive the process before an order is acknowledged, as JSON.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.record())
    }

    /// The router that [`Self::to_json`] has written, after a restart: a share in it has lapsed. The boot differs for every start.
    ///
    /// # Errors
    /// It is damaged, or of a format that this program does not know.
    pub fn from_json(boot: u64, record: &[u8]) -> Result<Self, UnreadableRecord> {
        #[derive(Deserialize)]
        struct Head {
            format: Format,
        }
        let Head { format } = serde_json::from_slice(record)?;
        if !format.readable() {
            return Err(UnreadableRecord::Format(format));
        }
        Ok(Self::restored(boot, serde_json::from_slice(record)?))
    }

    pub(crate) fn record(&self) -> Record {
        Record {
            format: Format::CURRENT,
            fence: self.fence,
            at: self.at,
            direction: self.direction,
            split: self.split.clone(),
            mark: self.mark.clone(),
            latch: self.latch.clone(),
        }
    }

    /// Installs the fence: older ones are refused from then on.
    ///
    /// # Errors
    /// A newer one has been seen.
    pub fn observe(&mut self, fence: Fence, now: Timestamp) -> Result<(), Refused> {
        self.pass(now);
        self.check_fence(fence)?;
        self.fence = fence;
        Ok(())
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn set(&mut self, order: &Order, now: Timestamp) -> Result<(), Refused> {
        self.pass(now);
        let rollout = check_shape(order)?;
        if order.direction == Direction::Back {
            return self.back(order, rollout);
        }
        self.check_fence(order.at.fence)?;
        if order.at < self.at {
            return Err(Refused::Older {
                found: order.at,
                newest: self.at,
            });
        }
        if order.at == self.at {
            return Ok(());
        }
        if self.knows_better(order) {
            return Err(Refused::Outdated {
                found: order.split.epoch,
                newest: self.split.epoch,
            });
        }
        let deadline = match order.direction {
            Direction::Forward | Direction::Promote => self.check_raise(order, rollout, now)?,
            Direction::Back | Direction::End => None,
        };
        if order.direction == Direction::End {
            if self.mark.as_ref() == Some(rollout) {
                self.mark = None;
            }
            self.latch = None;
        }
        self.carry_out(order, deadline);
        Ok(())
    }

    /// Prolongs the lease of the share that was set at exactly this position.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn renew(
        &mut self,
        at: Position,
        clock: RouterClock,
        now: Timestamp,
    ) -> Result<(), Refused> {
        self.pass(now);
        self.check_fence(at.fence)?;
        if at < self.at {
            return Err(Refused::Older {
                found: at,
                newest: self.at,
            });
        }
        if self.lapsed {
            return Err(Refused::Lapsed(self.split.epoch));
        }
        let (true, Some(deadline), Some(lease)) = (at == self.at, self.deadline, self.split.lease)
        else {
            return Err(Refused::NothingToRenew(at));
        };
        self.check_clock(clock, now)?;
        let renewed = clock.at.after(lease);
        if now >= renewed {
            return Err(Refused::Late(late(now, renewed)));
        }
        self.deadline = Some(deadline.max(renewed));
        Ok(())
    }

    /// Pins the baseline of the split in force, until an end.
    pub fn force_baseline(&mut self, why: &str, now: Timestamp) {
        self.pass(now);
        if self.latch.is_none() {
            self.latch = Some(Latch {
                version: self.split.baseline.clone(),
                why: why.to_owned(),
            });
        }
        self.lower(self.split.epoch);
    }

    /// What it serves, as of now.
    pub fn state(&mut self, now: Timestamp) -> RouterState {
        self.pass(now);
        RouterState {
            fence: self.fence,
            at: self.at,
            split: self.split.clone(),
            lapsed: self.lapsed,
            mark: self.mark.clone(),
            latch: self.latch.as_ref().map(|latch| latch.version.clone()),
            clock: RouterClock {
                boot: self.boot,
                at: now,
            },
        }
    }

    /// Whether the candidate serves anything now.
    pub fn raised(&self, now: Timestamp) -> bool {
        self.deadline.is_some_and(|deadline| now < deadline)
    }

    pub(crate) fn split(&self) -> &Split {
        &self.split
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    pub(crate) fn lapsed(&self) -> bool {
        self.lapsed
    }

    pub(crate) fn latched(&self) -> bool {
        self.latch.is_some()
    }

    /// A share that has lapsed stays lapsed, whatever any clock says later.
    pub(crate) fn pass(&mut self, now: Timestamp) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.deadline = None;
            self.lapsed = true;
        }
    }

    fn check_fence(&self, fence: Fence) -> Result<(), Refused> {
        if fence < self.fence {
            return Err(Refused::Fenced {
                found: fence,
                newest: self.fence,
            });
        }
        Ok(())
    }

    fn check_clock(&self, clock: RouterClock, now: Timestamp) -> Result<(), Refused> {
        if clock.boot != self.boot {
            return Err(Refused::OtherBoot {
                found: clock.boot,
                own: self.boot,
            });
        }
        if clock.at > now {
            return Err(Refused::FromTheFuture(late(clock.at, now)));
        }
        Ok(())
    }

    /// Whether a share or a promotion may be carried out, and until when.
    fn check_raise(
        &self,
        order: &Order,
        rollout: &RolloutId,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Refused> {
        if let Some(latch) = &self.latch {
            return Err(Refused::Latched {
                version: latch.version.clone(),
                why: latch.why.clone(),
            });
        }
        if self.mark.as_ref() == Some(rollout) {
            return Err(Refused::Marked(rollout.clone()));
        }
        self.check_clock(order.clock, now)?;
        if order.direction == Direction::Forward
            && self.lapsed
            && order.split.epoch <= self.split.epoch
        {
            return Err(Refused::Lapsed(self.split.epoch));
        }
        let Some(lease) = order.split.lease.filter(|_| order.split.exposes()) else {
            return Ok(None);
        };
        let deadline = order.clock.at.after(lease);
        if now >= deadline {
            return Err(Refused::Late(late(now, deadline)));
        }
        Ok(Some(deadline))
    }

    fn back(&mut self, order: &Order, rollout: &RolloutId) -> Result<(), Refused> {
        let fenced = self.check_fence(order.at.fence);
        if fenced.is_ok() && order.at > self.at && !self.knows_better(order) {
            self.mark = Some(rollout.clone());
            self.carry_out(order, None);
            return Ok(());
        }
        // Late or unlogged: good enough to leave a candidate, not to undo what was decided since.
        let undecided = matches!(self.direction, Direction::Forward | Direction::Back);
        if undecided && self.split.rollout.as_ref() == Some(rollout) {
            self.mark = Some(rollout.clone());
            self.direction = Direction::Back;
            self.lower(self.split.epoch.max(order.split.epoch));
            return Ok(());
        }
        fenced?;
        Err(Refused::Older {
            found: order.at,
            newest: self.at,
        })
    }

    /// Whether nothing tells how old an order is but its epoch, and that is older than what the store said when this router
    /// began: it was sent before.
    fn knows_better(&self, order: &Order) -> bool {
        self.at == Position::default() && order.split.epoch < self.split.epoch
    }

    fn carry_out(&mut self, order: &Order, deadline: Option<Timestamp>) {
        self.fence = order.at.fence;
        self.at = order.at;
        self.direction = order.direction;
        self.split = order.split.clone();
        self.deadline = deadline;
        self.lapsed = false;
    }

    /// Everything to the baseline of the split in force.
    fn lower(&mut self, epoch: Epoch) {
        if self.split.exposes() {
            self.split = Split::steady(
                self.split.rollout.clone(),
                self.split.baseline.clone(),
                epoch,
            );
        }
        self.deadline = None;
        self.lapsed = false;
    }
}

fn late(now: Timestamp, due: Timestamp) -> u64 {
    now.as_millis().saturating_sub(due.as_millis())
}

/// What an order must look like, whoever sends it.
fn check_shape(order: &Order) -> Result<&RolloutId, Refused> {
    let split = &order.split;
    if !split.format.readable() {
        return Err(Refused::Format(split.format));
    }
    let Some(rollout) = &split.rollout else {
        return Err(Refused::Malformed("it belongs to no rollout"));
    };
    if split.exposes() {
        if order.direction != Direction::Forward {
            return Err(Refused::Malformed(
                "only Forward carries a share or a mirror",
            ));
        }
        if split.candidate.is_none() {
            return Err(Refused::Malformed(
                "a share or a mirror without a candidate",
            ));
        }
        if split.lease.is_none() {
            return Err(Refused::Malformed("a share or a mirror without a lease"));
        }
    }
    if split.epoch.get() > Decision::LAST_EPOCH {
        return Err(Refused::Malformed("an epoch that no rollout reaches"));
    }
    if split.ramp.len() > Split::LONGEST_RAMP || split.ahead.len() > Split::MOST_AHEAD {
        return Err(Refused::Malformed("a longer ramp than anybody needs"));
    }
    let too_much =
        |raise: &Raise| raise.share.basis_points() + raise.control.basis_points() > 10_000;
    if split.ramp.iter().any(too_much) {
        return Err(Refused::Malformed(
            "candidate and control arm together were more than everything",
        ));
    }
    if split.share.basis_points() + split.control.basis_points() > 10_000 {
        return Err(Refused::Malformed(
            "candidate and control arm together are more than everything",
        ));
    }
    Ok(rollout)
}
