//! The controller of the model, rule by rule. It follows `src/controller.rs`, one atomic step at a time.

use crate::broken::{self, Broken};
use crate::kit::{Answer, Carry, EntryId, Happens, Kit, Question, lasts_until};
use crate::rules::Rule;
use crate::world::{Controller, Doubt, Next, Slot, Why, Work, World, bit};
use llm_rollout::Direction;

impl World {
    fn own(&self, c: u8) -> &Controller {
        &self.controllers[usize::from(c)]
    }

    fn own_mut(&mut self, c: u8) -> &mut Controller {
        &mut self.controllers[usize::from(c)]
    }

    /// Rule 1: the fence first, then the log.
    pub(crate) fn start(mut self, kit: &Kit, c: u8) -> Self {
        self.fence += 1;
        let log = if self.own(c).peeked {
            self.own(c).log
        } else {
            self.log
        };
        *self.own_mut(c) = Controller {
            alive: true,
            fence: self.fence,
            log,
            // Rule 2: it acts once it has read back every router.
            active: !kit.rules.hold(Rule::ReadsBackFirst),
            warned: self.told(),
            ..Controller::default()
        };
        self
    }

    /// Visits the routers: to read them back, to tell them what the log says, to renew.
    pub(crate) fn round(mut self, kit: &Kit, c: u8) -> Self {
        let retell = self
            .own(c)
            .doubt
            .filter(|d| d.back && kit.rules.hold(Rule::UnloggedBackHolds));
        // Rule 6: what was decided without the log is told again until the log can be read.
        let why = match retell {
            Some(Doubt { entry, .. }) => Why::Emergency {
                entry,
                operator: false,
            },
            None => Why::Plain,
        };
        self.own_mut(c).work = Work::Round {
            why,
            slots: [Slot::Observe; 2],
        };
        self
    }

    /// Rule 9: a verdict has come; the routers are read back after it.
    pub(crate) fn look(mut self, kit: &mut Kit, c: u8, why: Why) -> Self {
        if kit.rules.hold(Rule::ReadBackAfterVerdict) {
            self.own_mut(c).work = Work::Round {
                why,
                slots: [Slot::Observe; 2],
            };
            return self;
        }
        let slots = self.own(c).heard.map(Slot::Done);
        self.own_mut(c).work = Work::Round { why, slots };
        self.finish_round(kit, c)
    }

    /// A request reaches its router, and the answer the controller.
    pub(crate) fn deliver(self, kit: &mut Kit, c: u8, r: u8) -> Next {
        let Work::Round { why, slots } = self.own(c).work else {
            return Ok(self);
        };
        let slot = slots[usize::from(r)];
        let question = self.question(c, r);
        let (mut world, answer) = self.ask(kit, r, question)?;
        if answer == Answer::Fenced {
            // Rule 14: somebody newer owns the endpoint.
            return if kit.rules.hold(Rule::FencedStops) {
                *world.own_mut(c) = Controller::default();
                Ok(world)
            } else {
                world.own_mut(c).deposed = true;
                Ok(world.unanswered(kit, c, r))
            };
        }
        world.hears(kit, c, r);
        let seen = kit.core(world.routers[usize::from(r)].core).seen;
        let next = match (slot, answer) {
            (Slot::Observe, _) => world.visit(kit, c, r, why)?,
            (_, Answer::Done) => Slot::Done(seen),
            // Refused: going back has not been accepted; otherwise what it said before tells why.
            (Slot::Set { .. }, _) if matches!(why, Why::Emergency { .. }) => Slot::Done(0),
            (Slot::Set { seen, .. } | Slot::Renew { seen, .. }, _) => Slot::Done(seen),
            (done, _) => done,
        };
        Ok(world.set_slot(kit, c, r, next))
    }

    pub(crate) fn unanswered(self, kit: &mut Kit, c: u8, r: u8) -> Self {
        self.set_slot(kit, c, r, Slot::Done(0))
    }

    fn set_slot(mut self, kit: &mut Kit, c: u8, r: u8, slot: Slot) -> Self {
        if let Work::Round { slots, .. } = &mut self.own_mut(c).work {
            slots[usize::from(r)] = slot;
            if slots.iter().all(|s| matches!(s, Slot::Done(_))) {
                return self.finish_round(kit, c);
            }
        }
        self
    }

    /// For the properties: a reading counts if who hears it may prolong a share by it.
    fn hears(&mut self, kit: &Kit, c: u8, r: u8) {
        let own = *self.own(c);
        let log = kit.log(own.log);
        let back = matches!(
            own.work,
            Work::Round {
                why: Why::Emergency { .. },
                ..
            }
        ) || own.doubt.is_some_and(|d| d.back);
        let prolongs = !own.deposed && !back && log.exposed();
        let router = &mut self.routers[usize::from(r)];
        if own.fence >= router.reader {
            router.reader = own.fence;
            if prolongs {
                router.heard = router.heard.max(router.now + 1);
            }
        }
    }

    /// What a router is told after it was read back.
    fn visit(&mut self, kit: &mut Kit, c: u8, r: u8, why: Why) -> Result<Slot, Broken> {
        let own = *self.own(c);
        let router = self.routers[usize::from(r)];
        let state = kit.core(router.core);
        let done = Slot::Done(state.seen);
        if let Why::Emergency { entry, .. } = why {
            let order = kit.unlogged_order(entry, own.fence, router.boot, router.now);
            return Ok(Slot::Set {
                order,
                seen: state.seen,
            });
        }
        // Rule 12: with the router's own reading, as of this reply.
        let Some(id) = kit.order_of(own.log, own.fence, router.boot, router.now) else {
            return Ok(done);
        };
        let (at, direction) = (kit.log(own.log).routed, kit.order(id).direction);
        let at = (own.fence, at.map_or(0, |(seq, _)| seq));
        // Rules 2 and 3: nothing goes forward before activation, or in doubt.
        let forward = own.active && own.doubt.is_none() && kit.log(own.log).may_raise;
        if state.at < at && (forward || direction == Direction::Back) {
            broken::told(kit, self, &own, direction)?;
            return Ok(Slot::Set {
                order: id,
                seen: state.seen,
            });
        }
        // Rule 11: renewals. Rule 6: none for what is to be left.
        let left = own.doubt.is_some_and(|d| d.back) && kit.rules.hold(Rule::UnloggedBackHolds);
        if state.at == at && direction == Direction::Forward && !state.lapsed && !left {
            return Ok(Slot::Renew {
                order: id,
                seen: state.seen,
            });
        }
        // Rule 11, missing: it does not know that the router has lapsed.
        if state.at == at
            && direction == Direction::Forward
            && !kit.rules.hold(Rule::LapsedRefusesRenewal)
            && !left
        {
            return Ok(Slot::Renew {
                order: id,
                seen: state.seen,
            });
        }
        Ok(done)
    }

    fn finish_round(mut self, kit: &mut Kit, c: u8) -> Self {
        let Work::Round { why, slots } = self.own(c).work else {
            return self;
        };
        let seen = slots.map(|slot| if let Slot::Done(seen) = slot { seen } else { 0 });
        let fence = self.own(c).fence;
        self.own_mut(c).work = Work::Idle;
        if let Why::Emergency { entry, operator } = why {
            // Rule 14: an abort is acknowledged if all routers have accepted it.
            if operator && seen.iter().all(|s| *s != 0) {
                self.acknowledged |= bit(kit.log(self.own(c).log).number);
            }
            self.doubts(kit, c, entry, true);
            return self;
        }
        if !kit.rules.hold(Rule::ReadBackAfterVerdict) && !matches!(why, Why::Look { .. }) {
            self.own_mut(c).heard = seen;
        }
        // Rule 2: an unreachable router blocks activation.
        let all = seen.iter().all(|s| *s != 0);
        let any = seen.iter().any(|s| *s != 0) && !kit.rules.hold(Rule::UnreachableBlocks);
        self.own_mut(c).active |= all || any;
        // Rule 3: nothing is decided while an append is in doubt.
        if self.own(c).doubt.is_some() {
            return self;
        }
        match why {
            Why::Look { pass, epoch, clean } => {
                let decided = kit.decide(
                    self.own(c).log,
                    Happens::Judged {
                        pass,
                        epoch,
                        fence,
                        seen,
                    },
                );
                self.append_next(c, decided, clean);
            }
            _ => self = self.feed(kit, c, Happens::Found { fence, seen }),
        }
        self
    }

    fn append_next(&mut self, c: u8, entry: Option<EntryId>, clean: bool) {
        if let Some(entry) = entry {
            self.own_mut(c).work = Work::Append {
                entry,
                clean,
                operator: false,
            };
        }
    }

    /// Feeds what has happened to the machine.
    pub(crate) fn feed(mut self, kit: &mut Kit, c: u8, happens: Happens) -> Self {
        let own = *self.own(c);
        if let Some(entry) = kit.decide(own.log, happens) {
            // Rule 2: until every router has been read back, only what goes back may be decided.
            if own.active || !kit.entry(entry).stage {
                // Only a verdict lets a stage advance by itself.
                self.append_next(c, Some(entry), false);
            }
        }
        self
    }

    /// A person says something.
    pub(crate) fn command(mut self, kit: &mut Kit, c: u8, happens: Happens) -> Self {
        if let Some(entry) = kit.decide(self.own(c).log, happens) {
            if !kit.rules.hold(Rule::AckAfterAcceptance) && happens == Happens::Abort {
                self.acknowledged |= bit(kit.log(self.own(c).log).number);
            }
            self.own_mut(c).work = Work::Append {
                entry,
                clean: true,
                operator: happens == Happens::Abort,
            };
        }
        self
    }

    /// Logs what was decided, then folds it in.
    pub(crate) fn append(mut self, kit: &mut Kit, c: u8) -> Next {
        let Work::Append {
            entry,
            clean,
            operator,
        } = self.own(c).work
        else {
            return Ok(self);
        };
        if self.down {
            return Ok(self.not_logged(kit, c, entry, operator));
        }
        let newest = self.own(c).fence == self.fence;
        if kit.rules.hold(Rule::OnlyNewestAppends) {
            // Rule 1: only the newest fence appends. Rule 14: whoever learns that it is not stops.
            if !newest {
                if kit.rules.hold(Rule::FencedStops) {
                    *self.own_mut(c) = Controller::default();
                    return Ok(self);
                }
                self.own_mut(c).deposed = true;
                return Ok(self.not_logged(kit, c, entry, operator));
            }
            if kit.entry(entry).seq != kit.log(self.log).next {
                return Ok(self.not_logged(kit, c, entry, operator));
            }
        } else if !newest {
            // What the newer one has logged since is written over.
            self.log = self.own(c).log;
        } else if self.log != self.own(c).log {
            return Ok(self.not_logged(kit, c, entry, operator));
        }
        broken::logged(kit, &self, entry, clean)?;
        self.log = kit.fold(self.log, entry);
        let log = self.log;
        let own = self.own_mut(c);
        (own.log, own.work) = (log, Work::Idle);
        if operator {
            self.acknowledged |= bit(kit.log(log).number);
        }
        Ok(self)
    }

    pub(crate) fn append_lost(mut self, kit: &mut Kit, c: u8, landed: bool) -> Next {
        let Work::Append {
            entry,
            clean,
            operator,
        } = self.own(c).work
        else {
            return Ok(self);
        };
        let fits =
            self.own(c).fence == self.fence && kit.entry(entry).seq == kit.log(self.log).next;
        if landed && fits {
            broken::logged(kit, &self, entry, clean)?;
            self.log = kit.fold(self.log, entry);
        }
        Ok(self.not_logged(kit, c, entry, operator))
    }

    /// It is not in the log for certain.
    fn not_logged(mut self, kit: &mut Kit, c: u8, entry: EntryId, operator: bool) -> Self {
        let facts = kit.entry(entry);
        // Rule 3, missing: it acts on what it has decided.
        if !kit.rules.hold(Rule::LoggedFirst) && facts.seq == kit.log(self.own(c).log).next {
            let log = kit.fold(self.own(c).log, entry);
            let own = self.own_mut(c);
            (own.log, own.work) = (log, Work::Idle);
            return self;
        }
        // Rule 6: going back does not wait for the store, as long as nothing binding is logged or in doubt.
        let bound =
            self.own(c).doubt.is_some_and(|d| d.binding) || !kit.log(self.own(c).log).exposed();
        let free = !bound || !kit.rules.hold(Rule::BoundIsLoggedFirst);
        if facts.back && free {
            let why = Why::Emergency { entry, operator };
            self.own_mut(c).work = Work::Round {
                why,
                slots: [Slot::Observe; 2],
            };
            return self;
        }
        self.doubts(kit, c, entry, false);
        self
    }

    fn doubts(&mut self, kit: &Kit, c: u8, entry: EntryId, told: bool) {
        let own = self.own_mut(c);
        own.work = Work::Idle;
        // Rule 3, missing: what may be logged is taken for not logged.
        if !kit.rules.hold(Rule::DoubtStops) {
            return;
        }
        let before = own.doubt;
        own.doubt = Some(Doubt {
            binding: kit.entry(entry).binding || before.is_some_and(|d| d.binding),
            entry,
            back: told || before.is_some_and(|d| d.back),
        });
    }

    /// Rule 3: the log is read again, and what may be missing is decided again.
    pub(crate) fn read_again(mut self, kit: &mut Kit, c: u8) -> Self {
        let log = self.log;
        let own = self.own_mut(c);
        let before = own.log;
        own.log = log;
        let Some(doubt) = own.doubt.take() else {
            return self;
        };
        let again = kit.entry(doubt.entry);
        let fresh = again.happens.lasts() || again.back || !kit.rules.hold(Rule::FreshAfterDoubt);
        // An intent that is over meanwhile needs no answer.
        let over = matches!(again.happens, Happens::Done { .. }) && again.seq != kit.log(log).next;
        if before != log || !fresh || over || again.happens == Happens::Submit {
            return self;
        }
        let decided = kit.decide(log, again.happens);
        // It comes now, as far as what it rests on is concerned.
        let clean =
            matches!(again.happens, Happens::PromoteNow) || self.serves(kit, kit.log(log).epoch);
        self.append_next(c, decided, clean);
        self
    }

    /// Rule 10: the backend carries something out, at (fence, step); the answer is fed back.
    pub(crate) fn job(self, kit: &mut Kit, c: u8, j: u8, ok: bool) -> Next {
        let own = *self.own(c);
        let job = kit.log(own.log).jobs[usize::from(j)];
        let at = (own.fence, job.seq);
        let world = match job.what {
            Carry::Prepare if ok => self.prepare(kit, job.version, at)?,
            Carry::Retire => self.retire(kit, job.version, at)?,
            _ => self,
        };
        Ok(if job.early {
            world
        } else {
            world.feed(kit, c, Happens::Done { job: j, ok })
        })
    }
}

/// The tick from which on a share whose order carried what was heard is over; 0 if nothing was.
pub(crate) const fn over(heard: u8) -> u8 {
    if heard == 0 {
        0
    } else {
        lasts_until(heard - 1)
    }
}

/// What a router is asked that can only come from an order.
pub(crate) fn order_of(question: Question) -> Option<u16> {
    match question {
        Question::Set(order) | Question::Renew(order) => Some(order),
        _ => None,
    }
}
