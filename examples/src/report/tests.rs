use super::*;

fn entry(seconds: f64, phase: &str, text: &str) -> TimelineEntry {
    TimelineEntry {
        seconds,
        phase: phase.to_owned(),
        text: text.to_owned(),
    }
}

fn gate(gate: &str, result: GateResult, measured: &str, required: &str, note: &str) -> GateRow {
    GateRow {
        gate: gate.to_owned(),
        result,
        measured: measured.to_owned(),
        required: required.to_owned(),
        note: note.to_owned(),
    }
}

/// A made-up curve with some noise in it.
fn curve(from: f64, to: f64, f: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let mut rng = desk_model::SplitMix64::new(5);
    (0..100)
        .map(|i| from + f64::from(i))
        .filter(|t| *t <= to)
        .map(|t| (t, f(t) * (0.93 + 0.14 * rng.unit())))
        .collect()
}

fn sample() -> Report {
    let baseline = "desk/v1.0.0-3f1c09ab77de".to_owned();
    let difference = "model/weights/model.safetensors\n  - sha256 3f1c09ab77de  868 KiB, 26 tensors f16\n  + sha256 91be0c55d210  868 KiB, 26 tensors f16\nprompt, tokenizer, chat template, generation: the same\n";
    let promoted = RolloutReport {
        title: "A model that was trained longer".to_owned(),
        candidate: "desk/v1.1.0-91be0c55d210".to_owned(),
        baseline: baseline.clone(),
        outcome: Outcome::Promoted,
        seconds: 42.3,
        exposed: 1_034,
        harmed: 2,
        difference: difference.to_owned(),
        gates: vec![
            gate(
                "bits_per_byte",
                GateResult::Pass,
                "1.213",
                "\u{2264} 1.25 \u{00d7} baseline (1.304)",
                "",
            ),
            gate(
                "offline_format",
                GateResult::Pass,
                "100 / 100",
                "\u{2265} 95 %",
                "exact binomial, 95 %",
            ),
            gate(
                "bad_format",
                GateResult::Pass,
                "0.2 %",
                "\u{2264} 1.5 \u{00d7} baseline",
                "live",
            ),
        ],
        timeline: vec![
            entry(0.0, "planned", "submitted as desk-better"),
            entry(0.2, "pre-flight", "two gates pass"),
            entry(3.1, "warming", "loaded, two generations"),
            entry(3.6, "soaking in stage 0", "5 % confirmed by 1 router"),
            entry(18.0, "soaking in stage 1", "25 %"),
            entry(30.0, "soaking in stage 2", "50 %"),
            entry(40.5, "baking", "100 %"),
            entry(
                42.3,
                "promoted",
                "desk/v1.1.0-91be0c55d210 is in production",
            ),
        ],
        share: vec![
            (0.0, 0.0),
            (3.6, 5.0),
            (18.0, 25.0),
            (30.0, 50.0),
            (40.5, 100.0),
        ],
        evidence: vec![
            EvidenceLine {
                name: "bad_format".to_owned(),
                points: curve(4.0, 40.0, |t| -0.1 * (t - 4.0)),
            },
            EvidenceLine {
                name: "fault".to_owned(),
                points: curve(4.0, 40.0, |t| 0.4 * (t / 5.0).sin() - 0.01 * t),
            },
        ],
        bound: 4.6,
        latency: vec![
            LatencyLine {
                arm: "baseline, p50".to_owned(),
                points: curve(0.0, 40.0, |_| 9.3),
            },
            LatencyLine {
                arm: "candidate, p50".to_owned(),
                points: curve(4.0, 42.0, |_| 9.1),
            },
        ],
        ..RolloutReport::default()
    };
    let blocked = RolloutReport {
        title: "Weights quantised too far".to_owned(),
        candidate: "desk/v1.1.1-77aa01c3de90".to_owned(),
        baseline: "desk/v1.1.0-91be0c55d210".to_owned(),
        outcome: Outcome::Blocked,
        cause: "pre-deployment gates failed: bits_per_byte, offline_format".to_owned(),
        seconds: 3.2,
        difference: difference.to_owned(),
        gates: vec![
            gate(
                "bits_per_byte",
                GateResult::Fail,
                "3.871",
                "\u{2264} 1.25 \u{00d7} baseline (1.213)",
                "",
            ),
            gate(
                "offline_format",
                GateResult::Fail,
                "4 / 100",
                "\u{2265} 95 %",
                "exact binomial, 95 %",
            ),
            gate(
                "long_letters",
                GateResult::Inconclusive,
                "\u{2013}",
                "\u{2265} 90 %",
                "not measured",
            ),
        ],
        timeline: vec![
            entry(0.0, "planned", ""),
            entry(0.1, "pre-flight", ""),
            entry(3.2, "blocked", "no user saw it"),
        ],
        bound: 4.6,
        ..RolloutReport::default()
    };
    let back = RolloutReport {
        title: "A context that is too small for long letters".to_owned(),
        candidate: "desk/v1.2.0-c0ffee123456".to_owned(),
        baseline: "desk/v1.1.0-91be0c55d210".to_owned(),
        outcome: Outcome::RolledBack,
        cause: "evidence of harm in \"bad_format\": ln E = 5.21, bound 4.61".to_owned(),
        seconds: 14.9,
        exposed: 61,
        harmed: 19,
        difference: "config/generation.json\n  - \"context\": 320\n  + \"context\": 182\n"
            .to_owned(),
        gates: vec![
            gate(
                "offline_format",
                GateResult::Pass,
                "100 / 100",
                "\u{2265} 95 %",
                "short letters only",
            ),
            gate(
                "bad_format",
                GateResult::Fail,
                "31.1 %",
                "\u{2264} 1.5 \u{00d7} baseline",
                "live",
            ),
        ],
        timeline: vec![
            entry(0.0, "planned", ""),
            entry(2.2, "soaking in stage 0", "5 %"),
            entry(10.0, "soaking in stage 1", "25 %"),
            entry(
                14.1,
                "rolling back: redirecting",
                "evidence of harm in bad_format",
            ),
            entry(14.2, "rolling back: draining", "2 requests in flight"),
            entry(14.9, "rolled back", ""),
        ],
        share: vec![(0.0, 0.0), (2.2, 5.0), (10.0, 25.0), (14.1, 0.0)],
        evidence: vec![
            EvidenceLine {
                name: "bad_format".to_owned(),
                points: curve(3.0, 14.1, |t| (t - 3.0) * (t - 3.0) / 24.0),
            },
            EvidenceLine {
                name: "fault".to_owned(),
                points: curve(3.0, 14.1, |t| -0.03 * t),
            },
        ],
        bound: 4.6,
        latency: vec![
            LatencyLine {
                arm: "baseline, p50".to_owned(),
                points: curve(0.0, 14.0, |_| 9.3),
            },
            LatencyLine {
                arm: "candidate, p50".to_owned(),
                points: curve(3.0, 14.0, |_| 21.1),
            },
        ],
        incident: Some(vec![
            (
                "Detected".to_owned(),
                "14.1 s, ln E 5.21 against 4.61 in bad_format".to_owned(),
            ),
            (
                "Redirected".to_owned(),
                "0.02 s after that, confirmed by in-process".to_owned(),
            ),
            ("Drained".to_owned(), "0.7 s, 0 requests cut".to_owned()),
            ("Exposed".to_owned(), "61 requests".to_owned()),
        ]),
        ..RolloutReport::default()
    };
    Report {
        title: "Three rollouts of a small language model".to_owned(),
        subtitle: "One version in production, three candidates, real requests over HTTP: what happened to each, and to the people who were on it.".to_owned(),
        rollouts: vec![promoted, blocked, back],
    }
}

/// Every tag that is opened is closed, in order.
fn is_balanced(html: &str) -> bool {
    let mut open = vec!["html"];
    let body = html.split_once("</style>").map_or(html, |(_, body)| body);
    for piece in body.split('<').skip(1) {
        let Some((tag, _)) = piece.split_once('>') else {
            return false;
        };
        let name = tag.split_whitespace().next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            if name != "head" && open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') && name != "br" {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let page = html(&sample());
    // where to look at it, for whoever changes the design
    if let Some(path) = std::env::var_os("REPORT_SAMPLE") {
        std::fs::write(path, &page).unwrap();
    }
    assert!(is_balanced(&page));
    for foreign in ["http:", "https:", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for word in [
        "promoted",
        "blocked",
        "rolled back",
        "1\u{202f}034",
        "31.1\u{202f}%",
        "bound: roll back",
    ] {
        assert!(page.contains(word), "{word}");
    }
    assert_eq!(
        page.matches("<svg").count(),
        6,
        "none for the one that met no user"
    );
}

#[test]
fn whatever_the_texts_hold_the_page_stays_whole() {
    let nasty = || "</td><script>alert('x')</script>\"&amp;\u{0}".to_owned();
    let points = vec![(f64::NAN, 1.0), (1.0, 5.0)];
    let report = Report {
        title: nasty(),
        subtitle: nasty(),
        rollouts: vec![RolloutReport {
            title: nasty(),
            candidate: nasty(),
            baseline: nasty(),
            cause: nasty(),
            seconds: f64::NAN,
            difference: nasty(),
            gates: vec![gate(
                &nasty(),
                GateResult::Fail,
                &nasty(),
                &nasty(),
                &nasty(),
            )],
            timeline: vec![entry(f64::INFINITY, &nasty(), &nasty())],
            share: points.clone(),
            evidence: vec![EvidenceLine {
                name: nasty(),
                points: points.clone(),
            }],
            latency: vec![
                LatencyLine {
                    arm: nasty(),
                    points: points.clone(),
                },
                LatencyLine {
                    arm: nasty(),
                    points,
                },
            ],
            bound: f64::NAN,
            incident: Some(vec![(nasty(), nasty())]),
            ..RolloutReport::default()
        }],
    };
    let page = html(&report);
    assert!(is_balanced(&page));
    assert!(
        !page.contains("<script") && !page.contains("NaN") && !page.contains("inf"),
        "{page}"
    );
}

#[test]
fn an_empty_report_is_a_page() {
    assert!(is_balanced(&html(&Report::default())));
    let report = Report {
        rollouts: vec![RolloutReport::default()],
        ..Report::default()
    };
    assert!(html(&report).contains("No user met this candidate"));
}
