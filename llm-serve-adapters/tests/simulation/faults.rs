//! What may go wrong, and how often in one life.

use crate::rng::Rng;

/// A kind of fault. The campaign asserts that each of them has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A process dies before or after any of its calls has taken effect.
    Crash,
    /// A message arrives again, later.
    Duplicate,
    /// A message arrives late, and so after others that were sent later.
    Delay,
    LostRequest,
    LostReply,
    /// One process cannot reach one router for a while.
    PartitionRouter,
    /// One process cannot reach the store for a while.
    PartitionStore,
    /// The store cannot be reached by anybody for a while.
    StoreOutage,
    /// An append is stored, and its reply lost or late.
    AppendInDoubt,
    /// A read of the log misses its newest entries.
    StaleRead,
    /// A process' clock jumps forward while it runs.
    ClockForward,
    /// A process starts with a clock behind that of the one before.
    ClockBackward,
    /// A router's clock runs fast or slow.
    RouterDrift,
    /// A second controller takes the endpoint from a living one.
    SecondController,
    RouterRestart,
    /// A router's record could not be saved, or was and nobody knows.
    RouterSave,
    SourceOutage,
    /// The source has lost its counts.
    SourceReset,
    /// The source tells what was some seconds ago.
    SourceLate,
    BackendSlow,
    BackendFails,
    EvaluatorFails,
    NotifierFails,
    /// The engines say for a while that the baseline cannot serve.
    BaselineDown,
}

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::Crash,
        Self::Duplicate,
        Self::Delay,
        Self::LostRequest,
        Self::LostReply,
        Self::PartitionRouter,
        Self::PartitionStore,
        Self::StoreOutage,
        Self::AppendInDoubt,
        Self::StaleRead,
        Self::ClockForward,
        Self::ClockBackward,
        Self::RouterDrift,
        Self::SecondController,
        Self::RouterRestart,
        Self::RouterSave,
        Self::SourceOutage,
        Self::SourceReset,
        Self::SourceLate,
        Self::BackendSlow,
        Self::BackendFails,
        Self::EvaluatorFails,
        Self::NotifierFails,
        Self::BaselineDown,
    ];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// How often at the most: per message, per call or per second, whichever it is about.
    const fn highest(self) -> f64 {
        match self {
            Self::Crash => 0.15,
            Self::Duplicate | Self::Delay => 0.3,
            Self::LostRequest | Self::LostReply | Self::AppendInDoubt => 0.08,
            Self::PartitionRouter | Self::PartitionStore => 0.06,
            Self::StoreOutage | Self::RouterRestart | Self::SecondController => 0.05,
            Self::StaleRead => 0.3,
            Self::ClockForward | Self::BaselineDown => 0.03,
            Self::ClockBackward | Self::RouterDrift => 0.6,
            Self::RouterSave => 0.1,
            Self::SourceOutage => 0.04,
            Self::SourceReset => 0.03,
            Self::SourceLate => 0.2,
            Self::BackendSlow | Self::BackendFails | Self::EvaluatorFails => 0.4,
            Self::NotifierFails => 0.6,
        }
    }
}

/// How often each fault happens in one life.
#[derive(Debug, Clone)]
pub(crate) struct Weather([f64; Fault::ALL.len()]);

impl Weather {
    pub(crate) const CALM: Self = Self([0.0; Fault::ALL.len()]);

    /// One life in six knows no faults, one in six a single kind, the others most kinds at random intensities.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut weather = Self::CALM;
        match rng.below(6) {
            0 => {}
            1 => {
                let fault = rng.pick(&Fault::ALL);
                weather.0[fault.index()] = fault.highest();
            }
            _ => {
                let harsh = rng.pick(&[0.2, 0.5, 1.0]);
                for fault in Fault::ALL {
                    if rng.chance(0.6) {
                        let part = rng.between(1, 100) as f64 / 100.0;
                        weather.0[fault.index()] = fault.highest() * harsh * part;
                    }
                }
            }
        }
        weather
    }

    pub(crate) fn of(&self, fault: Fault) -> f64 {
        self.0[fault.index()]
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.0.iter().all(|p| *p <= 0.0)
    }
}
