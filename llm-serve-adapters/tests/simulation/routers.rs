//! Routers apart from the controller's process: the real one, reached over the network, that may restart.

use crate::faults::Fault;
use crate::history::{Asked, Seen, Sent, What};
use crate::store::{Memory, Record};
use crate::world::{Crooked, Link, Process, Shared, World, number_of, number_of_rollout, version};
use async_trait::async_trait;
use futures_util::FutureExt;
use llm_rollout::{
    Direction, EndpointId, Epoch, Fence, Order, Position, RouterClock, RouterId, RouterState,
    Share, Split,
};
use llm_serve_adapters::host::{
    Clock, Error, Result, RouterCapabilities, StateStore, Support, TrafficRouter,
};
use llm_serve_adapters::router::InProcessRouter;
use llm_serve_adapters::store::MemoryStore;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A gateway of its own.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) index: usize,
    id: RouterId,
    record: Arc<Record>,
    /// If it remembers nothing: the store, which it asks when it starts.
    store: Option<MemoryStore>,
    running: Mutex<Option<Running>>,
    /// The clock of each of its lives.
    clocks: Mutex<BTreeMap<u64, Arc<Crooked>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) router: Arc<InProcessRouter>,
}

#[derive(Debug, Clone)]
enum Ask {
    Observe(Fence),
    Set(Box<Order>),
    Renew(Position, RouterClock),
}

impl Gateway {
    pub(crate) fn new(index: usize, store: Option<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            index,
            id: RouterId::new(format!("gateway-{index}")).unwrap(),
            record: Arc::new(Record::default()),
            store,
            running: Mutex::new(None),
            clocks: Mutex::default(),
        })
    }

    pub(crate) fn running(&self) -> Option<Running> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn clocks(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Crooked>>> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stop(&self, world: &World) {
        world.record(What::Stopped { router: self.index });
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts it, with a clock that has begun anew.
    pub(crate) fn start(&self, world: &Arc<World>, drift: u64) {
        let rate = if world.strikes(Fault::RouterDrift) {
            1_000 + world.between(0, 2 * drift) - drift
        } else {
            1_000
        };
        let before = self.clocks().last_key_value().map(|(_, c)| Arc::clone(c));
        let ahead = match before {
            Some(before) if world.strikes(Fault::RouterClock) => {
                let shown = before.now().as_millis();
                shown.saturating_sub(world.between(0, 15_000) + world.now() * rate / 1_000)
            }
            _ => world.between(0, 1_000_000),
        };
        let clock = Arc::new(Crooked::new(world, ahead, rate));
        let boot = world.number();
        self.clocks().insert(boot, Arc::clone(&clock));
        let memory = Memory {
            world: Arc::clone(world),
            record: Arc::clone(&self.record),
            process: None,
        };
        let mut first = Split::steady(None, version(1), Epoch::default());
        if let Some(store) = &self.store {
            let endpoint = EndpointId::new("chat").unwrap();
            let recorded = store.split(&endpoint).now_or_never().unwrap();
            first = recorded.unwrap().unwrap_or(first);
        }
        let mut builder = InProcessRouter::builder(self.id.clone(), first);
        if self.store.is_none() {
            builder = builder.memory(Arc::new(memory));
        }
        let opened = builder
            .clock(Arc::new(Shared(Arc::clone(&clock))))
            .boot(boot)
            .open();
        // What cannot save its first record does not serve; somebody starts it again.
        let Ok(router) = opened else { return };
        let router = Arc::new(router);
        let seen = seen(&router.state());
        world.record(What::Booted {
            router: self.index,
            seen,
        });
        world.tell(|| format!("router {} starts: {seen:?}", self.index));
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { router });
    }

    /// The true time at which the clock of that life showed this.
    fn when(&self, reading: RouterClock) -> u64 {
        let clocks = self.clocks();
        clocks.get(&reading.boot).map_or(0, |c| c.when(reading.at))
    }

    /// Somebody gives all of its users to the candidate, by hand.
    pub(crate) fn tamper(&self, world: &World) {
        let Some(Running { router }) = self.running() else {
            return;
        };
        let state = router.state();
        if state.lapsed || !state.split.exposes() {
            return;
        }
        let mut split = state.split;
        split.share = Share::ALL;
        split.control = Share::new(0).unwrap();
        split.ramp.clear();
        let order = Order {
            at: Position {
                seq: state.at.seq.next(),
                ..state.at
            },
            direction: Direction::Forward,
            split,
            clock: state.clock,
        };
        let told = router.set(&order).now_or_never().unwrap();
        world.tell(|| format!("somebody changes router {}: {told:?}", self.index));
        let (router, seen) = (self.index, seen(&router.state()));
        world.record(match told {
            Ok(_) => What::Tampered { router, seen },
            Err(_) => What::Saw { router, seen },
        });
    }

    fn handle(&self, world: &World, sent: u64, ask: &Ask) -> Result<RouterState> {
        let Some(Running { router }) = self.running() else {
            return Err(Error::transient("the router is down"));
        };
        let (asked, at, rollout, reading) = match ask {
            Ask::Observe(fence) => {
                let at = Position {
                    fence: *fence,
                    ..Position::default()
                };
                (Asked::Observe, at, 0, None)
            }
            Ask::Set(order) => {
                let rollout = order.split.rollout.as_ref().map_or(0, number_of_rollout);
                (
                    Asked::Set(order.direction),
                    order.at,
                    rollout,
                    Some(order.clock),
                )
            }
            Ask::Renew(at, clock) => (Asked::Renew, *at, 0, Some(*clock)),
        };
        // It never makes anybody wait.
        let answer = match ask {
            Ask::Observe(fence) => router.observe(*fence).now_or_never().unwrap(),
            Ask::Set(order) => router.set(order).now_or_never().unwrap(),
            Ask::Renew(at, clock) => router.renew(*at, *clock).now_or_never().unwrap(),
        };
        // What was answered with an error may be in force all the same.
        let seen = seen(&router.state());
        let accepted = answer.is_ok();
        if accepted {
            world.record(What::Told {
                router: self.index,
                asked,
                fence: at.fence.get(),
                seq: at.seq.get(),
                rollout,
                reading: reading.map_or(0, |r| self.when(r)),
                sent,
                seen,
            });
        } else {
            world.record(What::Saw {
                router: self.index,
                seen,
            });
        }
        world.tell(|| {
            let result = match &answer {
                Ok(_) => String::new(),
                Err(error) => format!(": {error}"),
            };
            format!(
                "router {} {asked:?} {}.{}{result} -> {seen:?}",
                self.index, at.fence, at.seq
            )
        });
        answer
    }
}

pub(crate) fn seen(state: &RouterState) -> Seen {
    let split = &state.split;
    Seen {
        fence: state.fence.get(),
        order: (state.at.fence.get(), state.at.seq.get()),
        rollout: split.rollout.as_ref().map_or(0, number_of_rollout),
        baseline: number_of(&split.baseline),
        candidate: split.candidate.as_ref().map_or(0, number_of),
        share: split.share.basis_points(),
        epoch: split.epoch.get(),
        lapsed: state.lapsed,
        mark: state.mark.as_ref().map_or(0, number_of_rollout),
        latch: state.latch.as_ref().map_or(0, number_of),
    }
}

/// What a process holds of a gateway.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) gateway: Arc<Gateway>,
}

impl Remote {
    async fn ask(&self, ask: Ask, order: Option<Sent>) -> Result<RouterState> {
        let gateway = Arc::clone(&self.gateway);
        let observes = matches!(ask, Ask::Observe(_));
        let sent = self.world.now();
        let link = Link::Router(self.process.slot, gateway.index);
        let answer = self
            .world
            .call(&self.process, link, order, move |world| {
                gateway.handle(world, sent, &ask)
            })
            .await;
        if observes && let Ok(state) = &answer {
            self.world.record(What::Heard {
                process: self.process.number,
                router: self.gateway.index,
                seen: seen(state),
            });
        }
        answer
    }
}

#[async_trait]
impl TrafficRouter for Remote {
    fn id(&self) -> &RouterId {
        &self.gateway.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Native,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        let sent = Sent {
            router: self.gateway.index,
            asked: Asked::Observe,
            fence: fence.get(),
            seq: 0,
            rollout: 0,
        };
        self.ask(Ask::Observe(fence), Some(sent)).await
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        let sent = Sent {
            router: self.gateway.index,
            asked: Asked::Set(order.direction),
            fence: order.at.fence.get(),
            seq: order.at.seq.get(),
            rollout: order.split.rollout.as_ref().map_or(0, number_of_rollout),
        };
        self.ask(Ask::Set(Box::new(order.clone())), Some(sent))
            .await
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        let sent = Sent {
            router: self.gateway.index,
            asked: Asked::Renew,
            fence: at.fence.get(),
            seq: at.seq.get(),
            rollout: 0,
        };
        self.ask(Ask::Renew(at, clock), Some(sent)).await
    }
}
