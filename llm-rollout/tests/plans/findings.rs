//! Where findings begin and end: a change of a good plan, and what is said of it.

use super::lint;
use llm_rollout::Plan;
use llm_rollout::plan::lint::Finding;

const HEAD: &str = "alpha = 0.05\nbake = \"24h\"\n";
const REST: &str = r#"
[metrics]
faults = { fault = {} }
slow = { first_token_over = "800ms" }
[[gates]]
metric = "faults"
weight = 1.0
[[stages]]
serve = 5.0
dwell = "4h"
min_samples = 500
[[stages]]
serve = 50.0
dwell = "4h"
min_samples = 500
"#;
const SLOW: &str =
    "[[thresholds]]\nmetric = \"slow\"\nworse_than = { absolute = 0.5 }\nmin_samples = 50\n";
const LIMIT: &str = "[[hard_limits]]\nmetric = \"slow\"\nmin_samples = 20\n";

fn found(head: &str, rest: &str) -> Vec<Finding> {
    traffic("history = \"3d\"", head, rest)
}

fn traffic(said: &str, head: &str, rest: &str) -> Vec<Finding> {
    let text = format!(
        "#: requests_per_second = 20.0\n#: {said}\n#: metrics.faults = {{ rate = 0.01, effect = 2.0 }}\n{HEAD}{head}{rest}"
    );
    let plan = Plan::from_toml(&text).unwrap();
    lint(&plan, &text)
}

fn about<'a>(code: &str, findings: &'a [Finding]) -> Option<&'a Finding> {
    findings.iter().find(|f| f.code == code)
}

#[test]
fn any_watch_that_rolls_back_is_a_way_back() {
    let holds = REST.replace("weight = 1.0", "weight = 1.0\naction = \"hold\"");
    let dry = REST.replace("weight = 1.0", "weight = 1.0\ndry_run = true");
    for (back, head, more) in [
        (true, "", SLOW.to_owned()),
        (false, "", format!("{SLOW}action = \"hold\"\n")),
        (false, "", format!("{SLOW}dry_run = true\n")),
        (true, "", LIMIT.to_owned()),
        (
            true,
            "triggers.other_alarms = \"rollback\"\n",
            String::new(),
        ),
        (false, "triggers.other_alarms = \"hold\"\n", String::new()),
        (
            true,
            "triggers.alarms = { gpu = \"rollback\" }\n",
            String::new(),
        ),
        (
            false,
            "triggers.alarms = { gpu = \"hold\" }\n",
            String::new(),
        ),
        (true, "", probe("rollback")),
        (false, "", probe("page")),
    ] {
        for rest in [&holds, &dry] {
            let findings = found(head, &format!("{rest}{more}"));
            let none = about("no-way-back", &findings);
            assert_eq!(none.is_none(), back, "{head}{more}{none:?}");
        }
    }
}

fn probe(action: &str) -> String {
    format!("[[watch]]\nprobe = \"canonical\"\nevery = \"1h\"\naction = \"{action}\"\n")
}

#[test]
fn a_metric_is_watched_by_a_gate_a_threshold_or_a_hard_limit() {
    for (watched, more) in [(false, ""), (true, SLOW), (true, LIMIT)] {
        let findings = found("", &format!("{REST}{more}"));
        let unwatched = about("metric-unwatched", &findings);
        assert_eq!(unwatched.is_none(), watched, "{more}");
    }
}

#[test]
fn the_last_stage_is_watched_by_what_needs_no_baseline() {
    let full = format!("{REST}[[stages]]\nserve = 100.0\ndwell = \"1h\"\n");
    let relative = SLOW.replace("absolute", "baseline_plus");
    for (blind, more) in [
        (true, String::new()),
        (true, relative),
        (true, format!("{SLOW}dry_run = true\n")),
        (false, SLOW.to_owned()),
        (false, LIMIT.to_owned()),
    ] {
        let findings = found("", &format!("{full}{more}"));
        let said = about("blind-at-full-share", &findings);
        assert_eq!(said.is_some(), blind, "{more}");
        assert!(about("stage-unwatched", &findings).is_none(), "{more}");
    }
    // What runs dry watches nobody.
    let dry = full.replace("weight = 1.0", "weight = 1.0\ndry_run = true");
    for (watched, more) in [
        (false, String::new()),
        (false, format!("{SLOW}dry_run = true\n")),
        (true, SLOW.to_owned()),
    ] {
        let findings = found("", &format!("{dry}{more}"));
        let said = about("stage-unwatched", &findings);
        assert_eq!(said.is_none(), watched, "{more}");
    }
}

#[test]
fn samples_may_take_half_as_long_again_as_the_dwell() {
    // One in a second, for four hours.
    for (samples, said) in [
        (14_000, ""),
        (18_000, ""),
        (25_000, "warning"),
        (30_000, "error"),
    ] {
        let rest = REST.replacen("= 500", &format!("= {samples}\nlimit = \"8h\""), 1);
        let findings = found("", &rest);
        let severity = about("samples-unreachable", &findings).map(|f| f.severity.to_string());
        assert_eq!(severity.unwrap_or_default(), said, "{samples}");
    }
}

#[test]
fn proof_takes_more_where_users_resemble_themselves() {
    let head = "pass = { non_inferior = { margin = 1.5, beta = 0.05 } }\n";
    let proof = |effect: &str, rest: &str| {
        let said = format!("design_effect = {effect}");
        let findings = traffic(&said, head, rest);
        about("proof-unreachable", &findings).is_some()
    };
    assert!(!proof("1.0", REST));
    assert!(proof("1000.0", REST));
    for nobody_waits in ["dry_run = true", "action = \"warn\""] {
        let rest = REST.replace("weight = 1.0", &format!("weight = 1.0\n{nobody_waits}"));
        assert!(!proof("1000.0", &rest), "{nobody_waits}");
    }
    let rest = REST.replace("min_samples = 500", "needs = []");
    assert!(!proof("1000.0", &rest), "no stage needs it");
}

#[test]
fn a_lease_is_shorter_than_stages_and_than_ten_minutes() {
    let short = REST.replacen("\"4h\"", "\"5m\"", 1);
    for (ttl, rest, said) in [
        ("9m", REST, ""),
        ("15m", REST, "a share outlives its controller by 15m"),
        ("4m", &short, ""),
        (
            "6m",
            &short,
            "a share outlives its controller by 6m, longer than a whole stage (5m)",
        ),
    ] {
        let findings = found(&format!("lease.ttl = \"{ttl}\"\n"), rest);
        let problem = about("lease-long", &findings).map(|f| f.problem.as_str());
        assert_eq!(problem.unwrap_or_default(), said, "{ttl}");
    }
}

#[test]
fn a_stage_may_end_at_the_very_look_that_passes_it() {
    let tight = REST.replacen("\"4h\"", "\"4h\"\nlimit = \"4h\"", 1);
    for (look, hasty) in [("2h", false), ("3h", true), ("4h", false), ("5h", true)] {
        let findings = found(&format!("look_every = \"{look}\"\n"), &tight);
        let said = about("limit-too-tight", &findings);
        assert_eq!(said.is_some(), hasty, "{look}");
        let said = about("look-longer-than-dwell", &findings);
        assert!(look == "5h" || said.is_none(), "{look}: {said:?}");
    }
    let findings = found("look_every = \"5h\"\n", REST);
    assert!(about("look-longer-than-dwell", &findings).is_some());
}

#[test]
fn a_stage_that_serves_nobody_may_be_as_short_as_it_likes() {
    for dwell in ["0s", "30s"] {
        let rest = format!("{REST}\n").replacen(
            "[[stages]]",
            &format!("[[stages]]\nserve = 0.0\ndwell = \"{dwell}\"\n[[stages]]"),
            1,
        );
        let findings = found("lease.ttl = \"9m\"\n", &rest);
        assert!(about("no-dwell", &findings).is_none(), "{dwell}");
        assert!(about("lease-long", &findings).is_none(), "{dwell}");
    }
}

#[test]
fn a_finding_says_where_it_is_and_can_be_printed_without_the_text() {
    let (said, rest) = ("#: requests_per_second = 1.0\n", REST.trim_start());
    let text = format!("{HEAD}lease.ttl = \"6h\"\n{rest}");
    let findings = lint(&Plan::from_toml(&text).unwrap(), said);
    let long = about("lease-long", &findings).unwrap();
    assert_eq!(long.position(&text), Some((3, 13)));
    let printed = long.to_string();
    assert!(printed.starts_with("warning[lease-long]: lease.ttl: a share outlives"));
    assert!(printed.contains("help: 60s"), "{printed}");
}

#[test]
fn people_get_time_to_approve() {
    let manual = REST.replacen("\"4h\"", "\"4h\"\nadvance = \"manual\"", 1);
    for (held, said) in [("30s", "error"), ("10m", "warning"), ("60m", "")] {
        let findings = found(&format!("outcomes.held = \"{held}\"\n"), &manual);
        let severity = about("approval-too-hasty", &findings).map(|f| f.severity.to_string());
        assert_eq!(severity.unwrap_or_default(), said, "{held}");
    }
}

#[test]
fn a_hard_limit_is_tried_once_a_block() {
    // Half of 20 where a fifth is usual: in 0.26 % of the blocks, and 36 come in four hours.
    let limit = "[[hard_limits]]\nmetric = \"faults\"\nmin_samples = 20\nshare = 0.5\n";
    let rest = REST.replace(
        "[[stages]]\nserve = 50.0\ndwell = \"4h\"\nmin_samples = 500\n",
        "",
    );
    let text = format!("{HEAD}{rest}{limit}");
    let said = "#: requests_per_second = 1.0\n#: metrics.faults = { rate = 0.2, effect = 2.0 }\n";
    let findings = lint(&Plan::from_toml(&text).unwrap(), said);
    let problem = &about("hard-limit-by-chance", &findings).unwrap().problem;
    assert!(problem.contains("by chance in 8.9 % of all"), "{problem}");
}

#[test]
fn short_histories_and_pauses_near_the_end_are_told() {
    let findings = traffic("history = \"5h\"", "", REST);
    let problem = &about("cold-start", &findings).unwrap().problem;
    assert!(problem.starts_with("with 5 h of"), "{problem}");
    for (pause, said) in [
        ("0.06", "the ramp freezes at nearly the evidence (16.7)"),
        ("0.25", ""),
        (
            "0.6",
            "up to 60 % of all harmless candidates would be frozen",
        ),
    ] {
        let findings = found(&format!("pause_alpha = {pause}\n"), REST);
        let problem = about("pause-pointless", &findings).map_or("", |f| &f.problem);
        assert!(
            problem.starts_with(said) && problem.is_empty() == said.is_empty(),
            "{problem}"
        );
    }
}

#[test]
fn a_stage_is_too_short_for_what_it_waits_for_alone() {
    let short = REST.replace("\"4h\"", "\"5m\"");
    let with = |more: &str| short.replace("weight = 1.0", &format!("weight = 1.0\n{more}"));
    for (said, rest) in [
        (true, short.clone()),
        (true, with("action = \"hold\"")),
        (false, with("action = \"warn\"")),
        (false, with("dry_run = true")),
        (false, short.replace("min_samples = 500", "needs = []")),
    ] {
        let findings = found("", &rest);
        let short = about("stage-too-short", &findings);
        assert_eq!(short.is_some(), said, "{rest}{short:?}");
    }
}

#[test]
fn chance_matters_to_a_threshold_that_rolls_back() {
    // Usual is one in a hundred.
    let tight = "[[thresholds]]\nmetric = \"faults\"\nworse_than = { absolute = 0.011 }\nmin_samples = 50\n";
    for (said, more) in [
        (true, ""),
        (false, "action = \"hold\"\n"),
        (false, "dry_run = true\n"),
    ] {
        let findings = found("", &format!("{REST}{tight}{more}"));
        let chance = about("threshold-by-chance", &findings);
        assert_eq!(chance.is_some(), said, "{more}{chance:?}");
    }
}
