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
    /// What a router is told arrives long after it was sent, and after what others have told it since.
    LateOrder,
    /// A process stands still for a while, and goes on with what it knew.
    Paused,
    /// After an append whose reply was lost, its process cannot reach the store for a while.
    DoubtLasts,
    /// Somebody has a word with a process that is in doubt, which may then die.
    Nervous,
    /// A router starts again with a clock that goes on a little behind the one before.
    RouterClock,
    /// The source answers with what it said about an earlier split.
    SourceStale,
    /// Somebody forces the baseline on a router, whatever is going on.
    Forced,
    /// Somebody gives a router another split by hand.
    Tampered,
    /// The way back reaches a router only when somebody is about to lead it on.
    Crossing,
}

impl Fault {
    pub(crate) const ALL: [Self; 33] = [
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
        Self::LateOrder,
        Self::Paused,
        Self::DoubtLasts,
        Self::Nervous,
        Self::RouterClock,
        Self::SourceStale,
        Self::Forced,
        Self::Tampered,
        Self::Crossing,
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
            Self::LateOrder | Self::SourceStale | Self::Crossing => 0.3,
            Self::Paused => 0.06,
            Self::DoubtLasts | Self::Nervous | Self::RouterClock => 0.7,
            Self::Forced | Self::Tampered => 0.02,
        }
    }
}

/// Kinds of trouble that come together, with how often at the most: most harm needs several at once, which chance alone
/// seldom brings.
const THEMES: [&[(Fault, f64)]; 6] = [
    // Two controllers act, one of them on what it knew; what they say arrives whenever it does.
    &[
        (Fault::SecondController, 0.25),
        (Fault::PartitionStore, 0.15),
        (Fault::Paused, 0.1),
        (Fault::LateOrder, 0.4),
        (Fault::PartitionRouter, 0.15),
        (Fault::RouterRestart, 0.08),
        (Fault::AppendInDoubt, 0.05),
        (Fault::Crash, 0.05),
    ],
    // Nobody knows what has been logged, and people and successors act nevertheless.
    &[
        (Fault::AppendInDoubt, 0.25),
        (Fault::DoubtLasts, 1.0),
        (Fault::Nervous, 1.0),
        (Fault::LostRequest, 0.06),
        (Fault::SecondController, 0.1),
        (Fault::RouterRestart, 0.05),
        (Fault::PartitionRouter, 0.08),
        (Fault::LateOrder, 0.1),
    ],
    // Successors in doubt: the log has moved on, and messages of those before are still on their way.
    &[
        (Fault::AppendInDoubt, 0.2),
        (Fault::DoubtLasts, 1.0),
        (Fault::Nervous, 1.0),
        (Fault::LateOrder, 0.5),
        (Fault::SecondController, 0.3),
        (Fault::StoreOutage, 0.08),
        (Fault::Delay, 0.3),
        (Fault::Crossing, 0.3),
    ],
    // Routers cannot be heard for long, or start again with another idea of time.
    &[
        (Fault::PartitionRouter, 0.25),
        (Fault::LateOrder, 0.4),
        (Fault::Duplicate, 0.3),
        (Fault::RouterRestart, 0.12),
        (Fault::RouterClock, 1.0),
        (Fault::RouterDrift, 0.6),
        (Fault::SecondController, 0.1),
        (Fault::Crash, 0.08),
    ],
    // What the source says is old, and the routers are not what they were.
    &[
        (Fault::SourceStale, 0.5),
        (Fault::SourceLate, 0.2),
        (Fault::SourceOutage, 0.04),
        (Fault::SourceReset, 0.03),
        (Fault::RouterRestart, 0.1),
        (Fault::PartitionRouter, 0.1),
        (Fault::Crash, 0.08),
    ],
    // People reach into the data plane.
    &[
        (Fault::Forced, 0.08),
        (Fault::Tampered, 0.08),
        (Fault::Duplicate, 0.3),
        (Fault::LateOrder, 0.2),
        (Fault::RouterRestart, 0.06),
        (Fault::PartitionRouter, 0.08),
        (Fault::Crash, 0.05),
    ],
];

/// How often each fault happens in one life.
#[derive(Debug, Clone)]
pub(crate) struct Weather([f64; Fault::ALL.len()]);

impl Weather {
    pub(crate) const CALM: Self = Self([0.0; Fault::ALL.len()]);

    /// One life in eight knows no faults, one in eight a single kind, one in four most kinds at random intensities; the others
    /// have a theme, with a little of everything else. `true`: there must be routers apart for it.
    pub(crate) fn draw(rng: &mut Rng) -> (Self, bool) {
        let mut weather = Self::CALM;
        let kind = rng.below(8);
        match kind {
            0 => {}
            1 => {
                let fault = rng.pick(&Fault::ALL);
                weather.0[fault.index()] = fault.highest();
            }
            2 | 3 => {
                let harsh = rng.pick(&[0.2, 0.5, 1.0]);
                for fault in Fault::ALL {
                    if rng.chance(0.6) {
                        let part = rng.between(1, 100) as f64 / 100.0;
                        weather.0[fault.index()] = fault.highest() * harsh * part;
                    }
                }
            }
            _ => {
                for fault in Fault::ALL {
                    if rng.chance(0.15) {
                        let part = rng.between(1, 50) as f64 / 100.0;
                        weather.0[fault.index()] = fault.highest() * part;
                    }
                }
                for (fault, highest) in rng.pick(&THEMES) {
                    if rng.chance(0.9) {
                        let part = rng.between(20, 100) as f64 / 100.0;
                        weather.0[fault.index()] = highest * part;
                    }
                }
            }
        }
        (weather, kind > 3)
    }

    pub(crate) fn of(&self, fault: Fault) -> f64 {
        self.0[fault.index()]
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.0.iter().all(|p| *p <= 0.0)
    }
}
