//! Every state that can be reached, in breadth, so that the first trace found is a shortest one.
//!
//! A state is remembered by 64 bits of hash: among ten million states two share one with a probability of 3 in a million.

use crate::broken::Broken;
use crate::kit::{Carry, Kit};
use crate::rules::Rules;
use crate::world::{Action, Limits, Slot, Why, Work, World};
use llm_rollout::Phase;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What an exploration has found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    /// Whether it has seen every state within the limits.
    pub(crate) exhausted: bool,
    /// States from which it was shown that it ends once faults stop.
    pub(crate) continued: usize,
    pub(crate) sights: BTreeSet<&'static str>,
    pub(crate) broken: Option<(Broken, Vec<String>)>,
    tables: (usize, usize, usize),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (logs, routers, orders) = self.tables;
        write!(
            f,
            "{} states to depth {}{}, {} continued without faults; {logs} logs, {routers} routers, {orders} orders",
            self.states,
            self.depth,
            if self.exhausted { ", exhausted" } else { "" },
            self.continued,
        )?;
        if let Some((broken, trace)) = &self.broken {
            write!(f, "\n{broken}, after {} steps:", trace.len())?;
            for (i, line) in trace.iter().enumerate() {
                write!(f, "\n{:4}. {line}", i + 1)?;
            }
        }
        Ok(())
    }
}

/// The hash of a state: its numbers as bytes, by XXH3.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0)
    }
}

/// For keys that are hashes.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default)]
struct Visited {
    hashes: HashSet<u64, BuildHasherDefault<AsIs>>,
    bytes: Bytes,
}

impl Visited {
    fn hash(&mut self, world: &World) -> u64 {
        self.bytes.0.clear();
        world.hash(&mut self.bytes);
        self.bytes.finish()
    }
}

/// Explores all states within the limits, at most so many; from one in `every` it is shown that it ends without faults.
pub(crate) fn explore(
    rules: Rules,
    watch: Option<Broken>,
    limits: &Limits,
    most: usize,
    every: u64,
) -> Found {
    let mut kit = Kit::new(limits.stages, rules, watch);
    kit.forgetful = limits.forgetful;
    let first = World::first(&mut kit).canonical().0;
    let mut visited = Visited::default();
    let mut parents: Vec<(u32, Action)> = vec![(0, Action::Up)];
    let mut queue = VecDeque::from([(first, 0_u32, 0_u16)]);
    let hash = visited.hash(&first);
    visited.hashes.insert(hash);
    let mut found = Found {
        states: 1,
        depth: 0,
        exhausted: false,
        continued: 0,
        sights: BTreeSet::new(),
        broken: None,
        tables: (0, 0, 0),
    };
    let mut actions = Vec::new();
    'all: while let Some((world, number, depth)) = queue.pop_front() {
        found.depth = found.depth.max(depth.into());
        world.actions(&kit, limits, &mut actions);
        for action in actions.iter().copied() {
            let next = match world.after(&mut kit, action) {
                Ok(next) => next.canonical().0,
                Err(broken) => {
                    let mut path = path(&parents, number);
                    path.push(action);
                    found.broken = Some((broken, story(rules, watch, limits, &path)));
                    break 'all;
                }
            };
            let hash = visited.hash(&next);
            if !visited.hashes.insert(hash) {
                continue;
            }
            sights(&kit, &next, &mut found.sights);
            let own = u32::try_from(parents.len()).expect("fewer states than that");
            parents.push((number, action));
            if hash.is_multiple_of(every) && watch.is_none_or(|only| only == Broken::Stuck) {
                found.continued += 1;
                if let Err((broken, rest)) = calm(&mut kit, next) {
                    let mut path = path(&parents, own);
                    path.extend(rest);
                    found.broken = Some((broken, story(rules, watch, limits, &path)));
                    break 'all;
                }
            }
            queue.push_back((next, own, depth + 1));
        }
        if parents.len() >= most {
            break;
        }
    }
    found.states = parents.len();
    found.exhausted = queue.is_empty() && found.broken.is_none();
    found.tables = kit.sizes();
    found
}

fn path(parents: &[(u32, Action)], mut number: u32) -> Vec<Action> {
    let mut path = Vec::new();
    while number != 0 {
        let (parent, action) = parents[number as usize];
        path.push(action);
        number = parent;
    }
    path.reverse();
    path
}

/// Among how many of a few.
fn few(n: usize) -> u8 {
    u8::try_from(n).expect("there are few")
}

/// Without faults, and with everybody doing what is due: it ends. Otherwise what was tried.
fn calm(kit: &mut Kit, mut world: World) -> Result<(), (Broken, Vec<Action>)> {
    let mut path = Vec::new();
    let mut turn = 0_u8;
    let mut log = world.log;
    let mut waited = 0_u32;
    for _ in 0..MOST_CALM {
        let facts = kit.log(world.log);
        if facts.settled && facts.number > 0 {
            return Ok(());
        }
        waited = if world.log == log { waited + 1 } else { 0 };
        log = world.log;
        let action = calm_action(kit, &world, &mut turn, &mut waited);
        path.push(action);
        world = match world.after(kit, action) {
            Ok(world) => world.canonical().0,
            Err(broken) => return Err((broken, path)),
        };
    }
    Err((Broken::Stuck, path))
}

const MOST_CALM: usize = 600;
/// Steps without news after which a deadline is found passed, or clocks have moved on.
const PATIENCE: u32 = 40;

fn calm_action(kit: &Kit, world: &World, turn: &mut u8, waited: &mut u32) -> Action {
    if world.down {
        return Action::Up;
    }
    if let Some(i) = world.late.iter().position(Option::is_some) {
        return Action::Arrive(few(i));
    }
    let newest = world
        .controllers
        .iter()
        .any(|c| c.alive && c.fence == world.fence);
    if !newest && let Some(c) = world.controllers.iter().position(|c| !c.alive) {
        let peeks = !kit.rules.hold(crate::rules::Rule::AcquiresBeforeReading)
            && !world.controllers[c].peeked;
        return if peeks {
            Action::Peek(few(c))
        } else {
            Action::Start(few(c))
        };
    }
    // Whoever has been overtaken comes first, and learns that it has.
    let c = (0..2_u8)
        .filter(|c| world.controllers[usize::from(*c)].alive)
        .min_by_key(|c| {
            (
                world.controllers[usize::from(*c)].fence == world.fence && *turn % 4 != 3,
                *c,
            )
        })
        .unwrap_or(0);
    let own = &world.controllers[usize::from(c)];
    let log = kit.log(own.log);
    match own.work {
        Work::Round { slots, .. } => {
            let r = slots
                .iter()
                .position(|s| !matches!(s, Slot::Done(_)))
                .unwrap_or(0);
            return Action::Deliver(c, few(r));
        }
        Work::Append { .. } => return Action::Append(c),
        Work::Idle => {}
    }
    *turn = turn.wrapping_add(1);
    if *waited > PATIENCE {
        *waited = 0;
        let slow = matches!(
            log.phase,
            Phase::Shifting { .. } | Phase::Promoting | Phase::Warming
        );
        if slow && own.active && own.doubt.is_none() {
            return Action::Deadline(c);
        }
        return Action::Tick(*turn / 4 % 2);
    }
    if own.doubt.is_some() {
        return Action::ReadAgain(c);
    }
    if !own.active || log.awaits_routers() || turn.is_multiple_of(2) {
        return Action::Round(c);
    }
    if let Some(j) = log.jobs.iter().position(|j| !j.early) {
        return Action::Job(c, few(j));
    }
    match log.phase {
        Phase::Planned => Action::Begin(c),
        Phase::Soaking { .. } => Action::Verdict(c, true),
        Phase::Baking => Action::Deadline(c),
        _ => Action::Round(c),
    }
}

/// What has been seen: the ends, and what only happens when something goes wrong.
fn sights(kit: &Kit, world: &World, out: &mut BTreeSet<&'static str>) {
    let log = kit.log(world.log);
    let mut see = |what, seen: bool| {
        if seen {
            out.insert(what);
        }
    };
    see("promoted", log.phase == Phase::Promoted);
    see("rolled back", log.phase == Phase::RolledBack);
    see("blocked", log.phase == Phase::Blocked && log.number > 0);
    see("baking", log.phase == Phase::Baking);
    see("settled", log.settled);
    see("second rollout", log.number == 2);
    see("second stage", log.phase.stage() == Some(1));
    see("lapse survived", log.lapses > 0 && log.exposed());
    see("abort acknowledged", world.acknowledged != 0);
    see(
        "backend retired",
        world.backend.loaded.contains(&false) && log.phase.is_end() && log.settled,
    );
    for c in world.controllers.iter().filter(|c| c.alive) {
        see("doubt", c.doubt.is_some());
        see("binding doubt", c.doubt.is_some_and(|d| d.binding));
        see("fenced out", c.fence < world.fence);
        see(
            "behind the log",
            c.log != world.log && c.fence == world.fence,
        );
        see(
            "gone back without the log",
            matches!(
                c.work,
                Work::Round {
                    why: Why::Emergency { .. },
                    ..
                }
            ),
        );
    }
    for r in &world.routers {
        let core = kit.core(r.core);
        see("mark", core.mark != 0);
        see("latch", core.latch);
        see("lapsed", core.lapsed && r.boot == 1);
        see("restarted", core.lapsed && r.boot > 1);
        see("router ahead of the log", core.at.1 >= log.next);
        see("fence installed", core.fence > 1);
    }
    see("late request", world.late.iter().any(Option::is_some));
    see("store down", world.down);
}

/// The trace in words, with routers and controllers keeping their names.
fn story(rules: Rules, watch: Option<Broken>, limits: &Limits, path: &[Action]) -> Vec<String> {
    let mut kit = Kit::new(limits.stages, rules, watch);
    kit.forgetful = limits.forgetful;
    let (mut world, mut routers, mut controllers) = World::first(&mut kit).canonical();
    let mut story = Vec::new();
    // A path is followed in canonical states, and a calm end as it came.
    for action in path {
        let name = |swapped: bool, n: u8, names: [&str; 2]| {
            names[usize::from(n ^ u8::from(swapped))].to_owned()
        };
        let c = |n: u8| {
            let fence = world.controllers[usize::from(n)].fence;
            let name = name(controllers, n, ["A", "B"]);
            if fence > 0 {
                format!("controller {name} (fence {fence})")
            } else {
                format!("controller {name}")
            }
        };
        let r = |n: u8| format!("router {}", name(routers, n, ["a", "b"]));
        let what = |n: u8, m: u8| match world.controllers[usize::from(n)].work {
            Work::Round { slots, .. } => match slots[usize::from(m)] {
                Slot::Observe => "read-back".to_owned(),
                Slot::Set { order, .. } => format!(
                    "{:?} {}",
                    kit.order(order).direction,
                    kit.order(order).at.seq
                ),
                Slot::Renew { .. } => "renewal".to_owned(),
                Slot::Done(_) => "answer".to_owned(),
            },
            _ => "request".to_owned(),
        };
        let line = match *action {
            Action::Start(n) => format!("{} acquires and replays", c(n)),
            Action::Peek(n) => format!("{} replays", c(n)),
            Action::Crash(n) => format!("{} dies", c(n)),
            Action::Round(n) => format!("{} visits the routers", c(n)),
            Action::Verdict(n, pass) => format!(
                "{} gets a verdict: {}",
                c(n),
                if pass { "pass" } else { "fail" }
            ),
            Action::OldVerdict(n) => {
                format!("{} gets a verdict about the split before: pass", c(n))
            }
            Action::EarlyVerdict(n) => format!(
                "{} gets a verdict about the time before the split was confirmed: pass",
                c(n)
            ),
            Action::Deliver(n, m) => format!(
                "{} of {} reaches {} and is answered",
                what(n, m),
                c(n),
                r(m)
            ),
            Action::Lose(n, m) => format!("{} of {} to {} is lost", what(n, m), c(n), r(m)),
            Action::LoseAnswer(n, m) => format!(
                "{} of {} reaches {}; the answer is lost",
                what(n, m),
                c(n),
                r(m)
            ),
            Action::Delay(n, m) => format!("{} of {} to {} is delayed", what(n, m), c(n), r(m)),
            Action::Duplicate(n, m) => {
                format!("{} of {} to {} is duplicated", what(n, m), c(n), r(m))
            }
            Action::Append(n) => format!("{} appends", c(n)),
            Action::AppendLost(n, true) => {
                format!("the append of {} takes effect; the answer is lost", c(n))
            }
            Action::AppendLost(n, false) => format!("the append of {} is lost", c(n)),
            Action::ReadAgain(n) => format!("{} reads the log again", c(n)),
            Action::Job(n, j) | Action::JobTwice(n, j) | Action::JobFails(n, j) => {
                let job = kit.log(world.controllers[usize::from(n)].log).jobs[usize::from(j)];
                let how = match action {
                    Action::JobTwice(..) => " (and will do so once more)",
                    Action::JobFails(..) => ", which fails",
                    _ => "",
                };
                match job.what {
                    Carry::Prepare => format!("{} has v{} loaded{how}", c(n), job.version),
                    Carry::Retire => format!("{} has v{} retired{how}", c(n), job.version),
                    Carry::Nothing => format!("{} waits for what drains", c(n)),
                }
            }
            Action::Deadline(n) => format!("{} finds that it has lasted long enough", c(n)),
            Action::Submit(n) => format!("{} is given another rollout", c(n)),
            Action::Begin(n) => format!("{} begins the rollout", c(n)),
            Action::Abort(n) => format!("somebody aborts at {}", c(n)),
            Action::PromoteNow(n) => format!("somebody promotes at {}", c(n)),
            Action::Force(m) => format!("somebody forces the baseline on {}", r(m)),
            Action::Restart(m) => format!("{} starts again", r(m)),
            Action::Tick(m) => format!("half a lease passes on {}", r(m)),
            Action::Arrive(i) => match world.late[usize::from(i)] {
                Some(crate::world::Late::Order {
                    router,
                    order,
                    renew,
                }) => {
                    let what = if renew {
                        "renewal".to_owned()
                    } else {
                        format!("{:?}", kit.order(order).direction)
                    };
                    format!(
                        "a late {what} {} reaches {}",
                        kit.order(order).at.seq,
                        r(router)
                    )
                }
                _ => "a late retirement reaches the backend".to_owned(),
            },
            Action::Down => "the store goes away".to_owned(),
            Action::Up => "the store is back".to_owned(),
        };
        let before = world.log;
        let Ok(next) = world.after(&mut kit, *action) else {
            story.push(line);
            break;
        };
        let (next, swapped, turned) = next.canonical();
        (world, routers, controllers) = (next, routers ^ swapped, controllers ^ turned);
        let log = kit.log(world.log);
        let line = if world.log == before {
            line
        } else {
            format!("{line} => {}: {}", log.next - 1, log.phase)
        };
        story.push(line);
    }
    story
}
