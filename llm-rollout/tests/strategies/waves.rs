//! Waves: order, limits, failures, and what holds in every life.

use crate::life::version;
use llm_rollout::Phase as End;
use llm_rollout::presets::{self, Gates};
use llm_rollout::waves::{
    BadSchedule, Command, Effect, Input, Limit, Member, News, OnFailure, Phase, Progress, Rejected,
    Schedule, Spec, Step, Verb, Wave, Waves,
};
use llm_rollout::{Advance, Outcome, Timestamp};
use proptest::prelude::*;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn member(name: &str, traffic: f64) -> Member {
    Member {
        endpoint: name.parse().unwrap(),
        rollout: "chat-v2".parse().unwrap(),
        candidate: version(2),
        traffic,
        plan: presets::all_at_once(Gates::nothing(), HOUR, HOUR).unwrap(),
    }
}

/// Waves, their log, and a clock.
#[derive(Debug)]
struct Life {
    waves: Waves,
    log: Vec<Step>,
    now: Timestamp,
}

impl Life {
    fn new(spec: Spec) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let schedule = Schedule::try_from(spec).unwrap();
        Self {
            waves: Waves::new("chat-v2".parse().unwrap(), schedule, now),
            log: Vec::new(),
            now,
        }
    }

    fn begun(spec: Spec) -> Self {
        let mut life = Self::new(spec);
        life.give(Input::Start).unwrap();
        life
    }

    fn give(&mut self, input: Input) -> Result<bool, Rejected> {
        let Some(step) = self.waves.decide(self.waves.next(), self.now, input)? else {
            return Ok(false);
        };
        self.waves.apply(&step).unwrap();
        self.log.push(step);
        Ok(true)
    }

    fn tick_after(&mut self, time: Duration) -> bool {
        self.now = self.now.after(time);
        self.give(Input::Tick).unwrap()
    }

    fn say(&mut self, verb: Verb) -> Result<bool, Rejected> {
        self.give(Input::Operator(Command {
            verb,
            by: "ana".into(),
            why: "because".into(),
        }))
    }

    fn ended(&mut self, name: &str, phase: llm_rollout::Phase) -> bool {
        let news = News::Ended {
            phase,
            before: version(1),
            why: "why".into(),
        };
        self.hear(name, news)
    }

    fn hear(&mut self, name: &str, news: News) -> bool {
        let endpoint = name.parse().unwrap();
        self.give(Input::Member { endpoint, news }).unwrap()
    }

    fn promoted(&mut self, name: &str) {
        assert!(self.ended(name, llm_rollout::Phase::Promoted));
    }

    /// What a driver is asked to do for members.
    fn asked(&self) -> Vec<String> {
        let mut asked = Vec::new();
        for intent in self.waves.pending() {
            asked.push(match &intent.effect {
                Effect::Submit { endpoint, .. } => format!("submit {endpoint}"),
                Effect::Abort { endpoint, .. } => format!("abort {endpoint}"),
                Effect::Return {
                    endpoint, rollout, ..
                } => format!("{rollout} {endpoint}"),
                _ => continue,
            });
        }
        asked
    }

    /// What people have been told: what wakes them, or the rest.
    fn told(&self, page: bool) -> Vec<&str> {
        let intents = self.log.iter().flat_map(|s| &s.intents);
        let notices = intents.filter_map(|i| match &i.effect {
            Effect::Notify(notice) if notice.page == page => Some(notice.text.as_str()),
            _ => None,
        });
        notices.collect()
    }

    fn flying(state: &llm_rollout::waves::State) -> Vec<&str> {
        let flying = state
            .members
            .iter()
            .filter(|(_, p)| matches!(p, Progress::InFlight | Progress::Aborting));
        flying.map(|(e, _)| e.as_str()).collect()
    }
}

fn three() -> Spec {
    Spec::new(vec![
        Wave::of([member("eu", 1.0)]),
        Wave::of([member("us", 5.0), member("ap", 4.0)]),
    ])
}

#[test]
fn waves_go_in_order_one_member_at_a_time() {
    let mut life = Life::begun(three());
    for name in ["eu", "us", "ap"] {
        assert_eq!(life.asked(), [format!("submit {name}")]);
        assert!(!life.tick_after(HOUR), "nothing happens by itself");
        life.promoted(name);
    }
    assert_eq!(life.waves.phase(), Phase::Completed);
    assert!(
        !life.ended("ap", llm_rollout::Phase::Promoted),
        "heard before"
    );
    assert_eq!(life.say(Verb::Stop), Err(Rejected::Over(Phase::Completed)));
}

#[test]
fn a_member_that_is_refused_or_concluded_is_over() {
    let mut refused = Life::begun(three());
    let why = "busy".to_owned();
    assert!(refused.hear("eu", News::Refused { why: why.clone() }));
    let eu = |life: &Life| life.waves.state().members[&"eu".parse().unwrap()].clone();
    assert_eq!(eu(&refused), Progress::Failed { why });
    assert_eq!(refused.waves.phase(), Phase::Stopped);
    assert_eq!(refused.told(true), ["stopped: eu busy"]);
    assert_eq!(
        refused.told(false),
        ["stopped; nothing is in flight any more"]
    );

    let mut concluded = Life::begun(three());
    assert!(concluded.ended("eu", End::Concluded));
    assert_eq!(eu(&concluded), Progress::Concluded);
    assert_eq!(concluded.asked(), ["submit us"]);
}

#[test]
fn what_is_left_out_of_a_schedule_has_its_default() {
    let mut written = serde_json::to_value(three()).unwrap();
    written.as_object_mut().unwrap().remove("patience");
    let member = written.pointer_mut("/waves/1/members/0").unwrap();
    member.as_object_mut().unwrap().remove("traffic");
    let read: Spec = serde_json::from_value(written).unwrap();
    assert_eq!(read.patience, 7 * 24 * HOUR);
    assert!((read.waves[1].members[0].traffic - 1.0).abs() < f64::EPSILON);
}

#[test]
fn phases_have_words() {
    for (phase, words) in [
        (Phase::Planned, "planned"),
        (Phase::Waiting { wave: 1 }, "waiting for wave 1"),
        (Phase::Running { wave: 1 }, "in wave 1"),
        (Phase::Stopping, "stopping"),
        (Phase::RollingBack, "rolling back"),
        (Phase::Completed, "completed"),
        (Phase::Stopped, "stopped"),
        (Phase::RolledBack, "rolled back"),
    ] {
        assert_eq!(phase.to_string(), words);
    }
}

#[test]
fn members_go_side_by_side_as_far_as_the_limit_lets_them() {
    let all = ["a", "b", "c"].map(|name| member(name, 1.0));
    let flying = |limit| {
        let mut spec = Spec::new(vec![Wave::of(all.clone())]);
        spec.limit = limit;
        Life::begun(spec).asked().len()
    };
    assert_eq!(flying(Limit::default()), 3);
    let members = Some(2);
    assert_eq!(
        flying(Limit {
            members,
            traffic: None
        }),
        2
    );
    let traffic = Some(70.0);
    assert_eq!(
        flying(Limit {
            members: None,
            traffic
        }),
        2
    );
    let traffic = Some(100.0 / 3.0);
    assert_eq!(
        flying(Limit {
            members: None,
            traffic
        }),
        1
    );
}

#[test]
fn a_pause_and_an_approval_stand_between_waves() {
    let mut spec = three();
    spec.waves[1].pause = HOUR;
    spec.waves[1].advance = Advance::Manual;
    let mut life = Life::begun(spec);
    life.promoted("eu");
    assert_eq!(life.waves.next_wakeup(), Some(life.now.after(HOUR)));
    assert!(!life.tick_after(HOUR / 2));
    assert!(life.tick_after(HOUR / 2), "people are asked");
    assert!(!life.tick_after(HOUR), "once");
    assert_eq!(life.asked(), [""; 0]);
    life.say(Verb::Approve).unwrap();
    assert_eq!(life.asked(), ["submit us"]);
    assert_eq!(life.say(Verb::Approve), Err(Rejected::NothingToApprove));
}

#[test]
fn only_a_notice_that_waits_is_told_to_be_done() {
    let mut spec = three();
    spec.waves[0].advance = Advance::Manual;
    let mut life = Life::begun(spec);
    life.tick_after(HOUR);
    life.say(Verb::Approve).unwrap();
    let ids = |life: &Life, notices: bool| {
        let pending = life.waves.pending().iter();
        let of = pending.filter(|i| matches!(i.effect, Effect::Notify(_)) == notices);
        of.map(|i| i.id).collect::<Vec<_>>()
    };
    let (notices, others) = (ids(&life, true), ids(&life, false));
    assert!(!notices.is_empty() && !others.is_empty());
    let done = |life: &mut Life, intent| {
        let outcome = Outcome::Ok;
        life.give(Input::Done { intent, outcome })
    };
    for id in others {
        assert_eq!(done(&mut life, id), Err(Rejected::UnknownIntent(id)));
    }
    for id in notices {
        assert_eq!(done(&mut life, id), Ok(true));
        assert_eq!(done(&mut life, id), Err(Rejected::UnknownIntent(id)));
    }
    assert_eq!(ids(&life, true), []);
}

#[test]
fn nobody_waits_for_ever() {
    let mut spec = three();
    spec.waves[1].advance = Advance::Manual;
    let mut life = Life::begun(spec);
    life.promoted("eu");
    let due = life.waves.next_wakeup().unwrap();
    life.now = due;
    life.give(Input::Tick).unwrap();
    assert_eq!(life.waves.phase(), Phase::Stopped);
    assert_eq!(due.since(Timestamp::from_millis(1_000_000)), 7 * 24 * HOUR);
}

#[test]
fn a_hold_or_a_freeze_keeps_back_what_is_not_submitted() {
    let mut life = Life::begun(three());
    let name = "audit".to_owned();
    life.say(Verb::Hold { name: name.clone() }).unwrap();
    life.promoted("eu");
    assert_eq!(life.asked(), [""; 0]);
    let until = life.now.after(HOUR);
    life.give(Input::Frozen { until }).unwrap();
    life.say(Verb::Resume { name }).unwrap();
    assert_eq!(life.asked(), [""; 0], "it is frozen still");
    assert_eq!(life.waves.next_wakeup(), Some(until));
    life.tick_after(HOUR);
    assert_eq!(life.asked(), ["submit us"]);
    assert_eq!(life.waves.next_wakeup(), None);
}

#[test]
fn a_failed_member_does_what_the_schedule_says() {
    use llm_rollout::Phase::RolledBack;
    let failed = |on_failure| {
        let mut spec = three();
        spec.on_failure = on_failure;
        spec.limit = Limit::default();
        let mut life = Life::begun(spec);
        life.promoted("eu");
        assert_eq!(life.asked(), ["submit us", "submit ap"]);
        assert!(life.ended("us", RolledBack));
        life
    };
    let mut stop = failed(OnFailure::Stop);
    assert_eq!(
        (stop.waves.phase(), stop.asked()),
        (Phase::Stopping, vec!["submit ap".to_owned()])
    );
    stop.promoted("ap");
    assert_eq!(stop.waves.phase(), Phase::Stopped);

    let mut all = failed(OnFailure::RollBackAll);
    assert_eq!(all.asked(), ["submit ap", "chat-v2-return eu", "abort ap"]);
    assert!(all.ended("ap", RolledBack));
    assert!(all.hear("eu", News::Returned));
    assert_eq!(all.waves.phase(), Phase::RolledBack);

    let mut late = failed(OnFailure::RollBackAll);
    late.promoted("ap");
    assert_eq!(
        late.asked(),
        ["chat-v2-return eu", "chat-v2-return ap"],
        "promoted before the abort came"
    );
    assert!(late.hear("eu", News::Returned));
    assert!(late.hear("ap", News::NotReturned { why: "gone".into() }));
    assert_eq!(late.waves.phase(), Phase::RolledBack);
    let stuck = &late.waves.state().members[&"ap".parse().unwrap()];
    assert!(matches!(stuck, Progress::Stuck { .. }));

    let mut on = failed(OnFailure::Continue);
    on.promoted("ap");
    assert_eq!(on.waves.phase(), Phase::Completed);
    assert!(on.waves.state().cause.is_none());
}

#[test]
fn an_operator_can_take_everything_back() {
    let mut life = Life::begun(three());
    life.promoted("eu");
    life.say(Verb::Stop).unwrap();
    assert_eq!(life.asked(), ["submit us"]);
    life.say(Verb::RollBack).unwrap();
    assert_eq!(life.asked(), ["submit us", "chat-v2-return eu", "abort us"]);
    assert!(life.say(Verb::RollBack).is_err());
}

#[test]
fn a_schedule_that_makes_no_sense_is_refused() {
    let refused = |change: fn(&mut Spec)| {
        let mut spec = three();
        change(&mut spec);
        Schedule::try_from(spec).unwrap_err()
    };
    assert_eq!(refused(|s| s.waves.clear()), BadSchedule::NoWaves);
    assert_eq!(
        refused(|s| s.waves[1].members.clear()),
        BadSchedule::Empty(1)
    );
    assert_eq!(
        refused(|s| s.limit.members = Some(0)),
        BadSchedule::NoMembers
    );
    let twice = refused(|s| s.waves[1].members.push(member("eu", 1.0)));
    assert_eq!(twice, BadSchedule::Twice("eu".parse().unwrap()));
    let large = refused(|s| s.limit.traffic = Some(40.0));
    assert!(large.to_string().contains("us alone has 50.0 %"), "{large}");
    assert!(matches!(
        refused(|s| s.limit.traffic = Some(f64::NAN)),
        BadSchedule::TooLarge { .. }
    ));
    let nothing = refused(|s| s.waves[0].members[0].traffic = 0.0);
    assert!(matches!(nothing, BadSchedule::Traffic { .. }));
    let long = refused(|s| s.waves[0].members[0].rollout = "x".repeat(58).parse().unwrap());
    assert!(matches!(long, BadSchedule::LongId(_)));
    let text = toml::to_string(&Schedule::try_from(three()).unwrap()).unwrap();
    let read: Schedule = toml::from_str(&text).unwrap();
    assert_eq!(read, Schedule::try_from(three()).unwrap());
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let wave = (
        prop::collection::vec(0.5..5.0f64, 1..4),
        any::<bool>(),
        0u64..100,
    );
    let waves = prop::collection::vec(wave, 1..4);
    let limit = (prop::option::of(1usize..4), any::<bool>());
    (waves, limit, 0u8..3).prop_map(|(waves, (members, by_traffic), on_failure)| {
        let mut n = 0;
        let waves: Vec<_> = waves
            .into_iter()
            .map(|(traffic, manual, pause)| Wave {
                pause: Duration::from_secs(pause),
                advance: if manual {
                    Advance::Manual
                } else {
                    Advance::Auto
                },
                members: traffic
                    .into_iter()
                    .map(|t| {
                        n += 1;
                        member(&format!("m{n}"), t)
                    })
                    .collect(),
            })
            .collect();
        let parts = || waves.iter().flat_map(|w| &w.members).map(|m| m.traffic);
        let most = 100.0 * parts().fold(0.0, f64::max) / parts().sum::<f64>();
        let traffic = by_traffic.then_some(most + 5.0);
        Spec {
            limit: Limit { members, traffic },
            on_failure: [OnFailure::Stop, OnFailure::RollBackAll, OnFailure::Continue]
                [usize::from(on_failure)],
            patience: HOUR,
            waves,
        }
    })
}

/// Anything that can come, in any order, told by two numbers.
fn anything(life: &mut Life, what: u8, which: u8) {
    let members: Vec<_> = life
        .waves
        .schedule()
        .members()
        .map(|m| m.endpoint.to_string())
        .collect();
    let name = &members[usize::from(which) % members.len()];
    let input = match what {
        0 | 1 => Input::Start,
        2 => {
            life.tick_after(Duration::from_secs(60));
            return;
        }
        3 => {
            life.tick_after(HOUR);
            return;
        }
        4..=7 => {
            life.ended(name, End::Promoted);
            return;
        }
        8 => {
            life.ended(name, End::RolledBack);
            return;
        }
        9 => {
            life.ended(name, End::Blocked);
            return;
        }
        10 => {
            life.ended(name, End::Baking);
            return;
        }
        11 => {
            life.hear(name, News::Refused { why: "no".into() });
            return;
        }
        12 => {
            life.hear(name, News::Returned);
            return;
        }
        13 => {
            life.hear(name, News::NotReturned { why: "no".into() });
            return;
        }
        14 => return drop(life.say(Verb::Approve)),
        15 => return drop(life.say(Verb::Hold { name: "h".into() })),
        16 => return drop(life.say(Verb::Resume { name: "h".into() })),
        17 if which < 30 => return drop(life.say(Verb::Stop)),
        18 if which < 30 => return drop(life.say(Verb::RollBack)),
        19 => Input::Frozen {
            until: life.now.after(Duration::from_secs(which.into())),
        },
        20 => Input::Member {
            endpoint: "nobody".parse().unwrap(),
            news: News::Returned,
        },
        _ => {
            let Some(intent) = life
                .waves
                .pending()
                .get(usize::from(which) % 5)
                .map(|i| i.id)
            else {
                return;
            };
            let outcome = Outcome::Ok;
            Input::Done { intent, outcome }
        }
    };
    drop(life.give(input));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Never more in flight than the limit, nothing submitted after a stop, out of order or twice; the log replays; and once
    /// members answer and people approve, every wave ends.
    #[test]
    fn every_life_keeps_the_rules(spec in any_spec(), inputs in prop::collection::vec((0u8..24, any::<u8>()), 0..80)) {
        let mut life = Life::new(spec.clone());
        let mut replayed = life.waves.clone();
        for (what, which) in inputs {
            anything(&mut life, what, which);
        }
        // Faults stop: everybody answers, and time passes.
        drop(life.give(Input::Start));
        for _ in 0..200 {
            if life.waves.phase().is_end() {
                break;
            }
            drop(life.say(Verb::Resume { name: "h".into() }));
            drop(life.say(Verb::Approve));
            for intent in life.waves.pending().to_vec() {
                match &intent.effect {
                    Effect::Submit { endpoint, .. } => {
                        life.ended(endpoint.as_str(), llm_rollout::Phase::Promoted);
                    }
                    Effect::Return { endpoint, .. } => {
                        life.hear(endpoint.as_str(), News::Returned);
                    }
                    _ => {}
                }
            }
            if let Some(due) = life.waves.next_wakeup() {
                life.now = life.now.max(due);
            }
            life.give(Input::Tick).unwrap();
            // Nothing is due for ever.
            let again = life.give(Input::Tick).unwrap();
            prop_assert!(!again && life.waves.next_wakeup().is_none_or(|due| due > life.now), "{:?}", life.waves);
        }
        prop_assert!(life.waves.phase().is_end(), "it never ends: {:?}", life.waves.state());

        let all: f64 = spec.waves.iter().flat_map(|w| &w.members).map(|m| m.traffic).sum();
        let (mut stopped, mut submitted) = (false, Vec::new());
        for step in &life.log {
            let read: Step = serde_json::from_str(&serde_json::to_string(step).unwrap()).unwrap();
            prop_assert_eq!(&read, step);
            replayed.apply(&read).unwrap();
            let flying = Life::flying(&step.state);
            if let Some(most) = spec.limit.members {
                prop_assert!(flying.len() <= most);
            }
            if let Some(most) = spec.limit.traffic {
                let members = spec.waves.iter().flat_map(|w| &w.members);
                let part: f64 = members.filter(|m| flying.contains(&m.endpoint.as_str())).map(|m| m.traffic).sum();
                prop_assert!(100.0 * part / all <= most + 1e-6);
            }
            for intent in &step.intents {
                if let Effect::Submit { endpoint, .. } = &intent.effect {
                    prop_assert!(!stopped, "nothing is submitted after a stop");
                    prop_assert!(!submitted.contains(endpoint), "nothing is submitted twice");
                    let wave = spec.waves.iter().position(|w| w.members.iter().any(|m| m.endpoint == *endpoint)).unwrap();
                    let before = spec.waves[..wave].iter().flat_map(|w| &w.members);
                    for earlier in before {
                        let over = !step.state.members[&earlier.endpoint].is_in_flight();
                        prop_assert!(over && submitted.contains(&earlier.endpoint), "waves go in order");
                    }
                    submitted.push(endpoint.clone());
                }
            }
            stopped |= matches!(step.state.phase, Phase::Stopping | Phase::Stopped | Phase::RollingBack | Phase::RolledBack);
        }
        prop_assert_eq!(&replayed, &life.waves);
        let state = life.waves.state();
        prop_assert!(!state.members.values().any(Progress::is_in_flight), "an end leaves nothing behind");
        if life.waves.phase() == Phase::RolledBack {
            let left = |p: &Progress| matches!(p, Progress::Promoted { .. });
            prop_assert!(!state.members.values().any(left), "what was promoted is returned, or known to be stuck");
        }
        if life.waves.phase() == Phase::Completed {
            prop_assert_eq!(submitted.len(), state.members.len());
        }
    }
}
