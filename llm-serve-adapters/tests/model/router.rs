//! The real router, and what it would be with one of its rules missing: put together from the same code.

use crate::rules::{Rule, Rules};
use llm_rollout::{
    Direction, Epoch, Fence, Order, Position, RouterClock, RouterState, Split, Timestamp,
};
use llm_serve_adapters::router::{Refused, RouterCore};
use std::time::Duration;

/// A lease lasts this many ticks of a router's clock.
pub(crate) const LEASE: u8 = 2;
/// One tick.
const TICK: Duration = Duration::from_millis(15);
/// A lease.
pub(crate) const TTL: Duration = Duration::from_millis(30);

/// The reading of a router's clock after so many ticks of this boot.
pub(crate) fn reading(ticks: u8) -> Timestamp {
    Timestamp::default().after(TICK * u32::from(ticks))
}

/// How many ticks that is.
pub(crate) fn ticks(reading: Timestamp) -> u8 {
    u8::try_from(reading.as_millis() / 15).expect("the model is small")
}

/// A router that serves the same share, by an order with another reading.
pub(crate) fn serving(core: &mut RouterCore, boot: u64, now: u8, begun: u8) -> Option<RouterCore> {
    let state = core.state(reading(now));
    let order = Order {
        at: state.at,
        direction: Direction::Forward,
        split: state.split.clone(),
        clock: RouterClock {
            boot,
            at: reading(begun),
        },
    };
    let mut fresh = RouterCore::new(
        boot,
        Split::steady(None, state.split.baseline, Epoch::default()),
    );
    fresh.set(&order, reading(begun)).ok()?;
    fresh.observe(state.fence, reading(begun)).ok()?;
    Some(fresh)
}

/// What a router is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ask<'a> {
    Observe(Fence),
    Set(&'a OrderKey),
    Renew(&'a OrderKey),
    Force,
    Restart(u64),
    Nothing,
}

/// An order, as a key of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderKey(pub(crate) Order);

impl std::hash::Hash for OrderKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.at, self.0.clock.boot, self.0.clock.at).hash(state);
    }
}

/// Asks the router at this tick of its clock.
pub(crate) fn ask(
    rules: Rules,
    core: &mut RouterCore,
    boot: u64,
    ticks: u8,
    ask: Ask<'_>,
) -> Result<(), Refused> {
    let ticks = if rules.hold(Rule::Lapses) { ticks } else { 0 };
    let now = reading(ticks);
    let state = core.state(now);
    let own = RouterClock { boot, at: now };
    match ask {
        Ask::Nothing => Ok(()),
        Ask::Observe(fence) if rules.hold(Rule::InstallsFence) => core.observe(fence, now),
        Ask::Observe(_) => Ok(()),
        Ask::Force => {
            core.force_baseline("forced", now);
            Ok(())
        }
        Ask::Restart(boot) => {
            *core = if !rules.hold(Rule::Persists) {
                // Everything but the baseline is gone.
                RouterCore::new(
                    boot,
                    Split::steady(None, state.split.baseline, Epoch::default()),
                )
            } else if !rules.hold(Rule::LatchDurable) && state.latch.is_some() {
                rebuilt(&state, boot, state.mark.is_some(), false).restarted(boot)
            } else {
                core.restarted(boot)
            };
            Ok(())
        }
        Ask::Set(OrderKey(order)) => {
            let order = &clocked(rules, order, own);
            let raises = matches!(order.direction, Direction::Forward | Direction::Promote);
            let marked = state.mark == order.split.rollout;
            let latched = state.latch.is_some();
            let carries_out = |core: &mut RouterCore| carry_out(core, &state, order, boot, now);
            if latched && !raises && !rules.hold(Rule::LatchAcceptsBack) {
                return Err(Refused::Malformed("latched"));
            }
            let older = order.at.fence >= state.fence && order.at < state.at;
            if older && raises && !marked && !latched && !rules.hold(Rule::RefusesOlder) {
                return carries_out(core);
            }
            let gone = order.at == state.at && !core.raised(now);
            if gone && raises && !marked && !latched && !rules.hold(Rule::EqualRaisesNothing) {
                return carries_out(core);
            }
            let newer = order.at.fence >= state.fence && order.at > state.at;
            if newer && raises && marked && !latched && !rules.hold(Rule::MarkRefuses) {
                return carries_out(core);
            }
            if newer && raises && latched && !marked && !rules.hold(Rule::LatchRefuses) {
                return carries_out(core);
            }
            core.set(order, now)?;
            if order.direction == Direction::Back && !rules.hold(Rule::SetsMark) {
                let state = core.state(now);
                *core = rebuilt(&state, boot, false, state.latch.is_some());
            }
            Ok(())
        }
        Ask::Renew(OrderKey(order)) => {
            let order = &clocked(rules, order, own);
            if state.lapsed && order.at == state.at && !rules.hold(Rule::LapsedRefusesRenewal) {
                return carry_out(core, &state, order, boot, now);
            }
            core.renew(order.at, order.clock, now)
        }
    }
}

fn clocked(rules: Rules, order: &Order, own: RouterClock) -> Order {
    let mut order = order.clone();
    if !rules.hold(Rule::OwnReading) {
        order.clock.at = own.at;
    }
    if !rules.hold(Rule::OwnBoot) {
        order.clock.boot = own.boot;
    }
    if !rules.hold(Rule::Lapses) {
        order.clock.at = own.at;
    }
    order
}

/// A router that carries the order out whatever it has been told before.
fn carry_out(
    core: &mut RouterCore,
    state: &RouterState,
    order: &Order,
    boot: u64,
    now: Timestamp,
) -> Result<(), Refused> {
    let mut fresh = RouterCore::new(
        boot,
        Split::steady(None, state.split.baseline.clone(), Epoch::default()),
    );
    fresh.set(order, now)?;
    fresh.observe(state.fence.max(order.at.fence), now)?;
    *core = fresh;
    Ok(())
}

/// A router in this state that serves nothing of a candidate, with or without its mark and latch.
fn rebuilt(state: &RouterState, boot: u64, mark: bool, latch: bool) -> RouterCore {
    let split = &state.split;
    let mut core = RouterCore::new(
        boot,
        Split::steady(None, split.baseline.clone(), Epoch::default()),
    );
    let rollout = split.rollout.clone();
    if rollout.is_some() && state.at > Position::default() {
        let order = Order {
            at: state.at,
            direction: if mark {
                Direction::Back
            } else {
                Direction::End
            },
            split: Split::steady(rollout, split.baseline.clone(), split.epoch),
            clock: state.clock,
        };
        drop(core.set(&order, state.clock.at));
    }
    if latch {
        core.force_baseline("forced", state.clock.at);
    }
    drop(core.observe(state.fence, state.clock.at));
    core
}
