use proptest::prelude::*;

use super::*;

fn proportion(k: u64, n: u64) -> Measurement {
    Measurement::of(Sample::Proportion { k, n })
}

fn verdict(gate: TableGate, measured: Measurement) -> Verdict {
    let name = gate.metric.clone();
    GateTable::new(vec![gate])
        .evaluate(&[(name, measured)].into())
        .verdict
}

#[test]
fn a_warning_blocks_nothing() {
    let slow = Measurement::against(
        Sample::Quantile {
            q: 0.99,
            value: 2.0,
            lower: 1.9,
            upper: 2.1,
            n: 1000,
        },
        Sample::Quantile {
            q: 0.99,
            value: 1.0,
            lower: 0.9,
            upper: 1.1,
            n: 1000,
        },
    );
    let mut measured: Measurements = [
        ("toxicity".to_owned(), proportion(1, 100)),
        (
            "win_rate".to_owned(),
            Measurement::of(Sample::Comparison {
                wins: 60,
                ties: 0,
                losses: 40,
            }),
        ),
        ("latency_p99".to_owned(), slow),
        ("adversarial".to_owned(), proportion(50, 50)),
    ]
    .into();
    let report = GateTable::reference().evaluate(&measured);
    assert_eq!(
        (report.verdict, report.action),
        (Verdict::Pass, Some(Action::Warn))
    );
    measured.insert("adversarial".to_owned(), proportion(49, 50));
    let report = GateTable::reference().evaluate(&measured);
    assert_eq!(
        (report.verdict, report.action),
        (Verdict::Fail, Some(Action::Block))
    );
    assert!(report.to_string().contains("[0.8950, 0.9965]"), "{report}");
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<TableReport>(&text).unwrap(), report);
    measured.remove("adversarial");
    assert_eq!(
        GateTable::reference().evaluate(&measured).verdict,
        Verdict::Inconclusive
    );
}

#[test]
fn nonsense_is_inconclusive() {
    let bad = [
        Sample::Proportion { k: 2, n: 1 },
        Sample::Proportion { k: 0, n: 0 },
        Sample::Mean {
            mean: f64::NAN,
            sd: 1.0,
            n: 3,
        },
        Sample::Mean {
            mean: 0.0,
            sd: -1.0,
            n: 3,
        },
        Sample::Quantile {
            q: 0.5,
            value: f64::NAN,
            lower: 0.0,
            upper: 1.0,
            n: 3,
        },
    ];
    for sample in bad {
        for threshold in [Threshold::Absolute(0.5), Threshold::BaselinePlus(0.5)] {
            let gate = TableGate::new("m", Bound::AtMost, threshold, Action::Block)
                .criterion(Criterion::Point { min_n: 0 });
            assert_eq!(
                verdict(gate.clone(), Measurement::of(sample)),
                Verdict::Inconclusive
            );
            assert_eq!(
                verdict(gate, Measurement::against(sample, sample)),
                Verdict::Inconclusive
            );
        }
    }
}

#[test]
fn reads_what_a_person_writes_and_refuses_what_it_does_not_know() {
    let text = r#"{"gates":[{"metric":"p99","must_be":"below","threshold":{"baseline_plus":0.2},"action":"warn"}]}"#;
    let table: GateTable = serde_json::from_str(text).unwrap();
    assert_eq!(
        table.gates[0].criterion,
        Criterion::NonInferior { margin: 0.1 }
    );
    table.validate().unwrap();
    assert!(serde_json::from_str::<GateTable>(&text.replace("must_be", "mustbe")).is_err());
    let twice = GateTable::new([table.gates.clone(), table.gates].concat());
    assert_eq!(
        twice.validate(),
        Err(BadGateTable::Duplicate {
            metric: "p99".to_owned()
        })
    );
}

proptest! {
    /// Non-inferiority with margin 0 is superiority, and a wider margin never says worse.
    #[test]
    fn margins_are_ordered(k in 0u64..200, more in 0u64..200, threshold in 0.05..0.95f64, margin in 0.0..1.0f64, upper: bool) {
        let must_be = if upper { Bound::Below } else { Bound::Above };
        let gate = TableGate::new("m", must_be, Threshold::Absolute(threshold), Action::Block);
        let say = |criterion| verdict(gate.clone().criterion(criterion), proportion(k, k + more + 1));
        let rank = |v| match v { Verdict::Pass => 0, Verdict::Inconclusive => 1, Verdict::Fail => 2 };
        prop_assert_eq!(say(Criterion::Superior), say(Criterion::NonInferior { margin: 0.0 }));
        let wider = say(Criterion::NonInferior { margin });
        prop_assert!(rank(wider) <= rank(say(Criterion::Superior)));
    }
}

#[test]
fn units_are_shown_and_checked() {
    let gate = |unit: &str| {
        TableGate::new("ttft", Bound::Below, Threshold::Absolute(2.0), Action::Warn).unit(unit)
    };
    let table = GateTable::new(vec![gate("s")]);
    assert_eq!(table.validate(), Ok(()));
    let text = serde_json::to_string(&table).unwrap();
    assert_eq!(serde_json::from_str::<GateTable>(&text).unwrap(), table);
    let report = table.evaluate(&Measurements::new());
    assert!(report.to_string().contains("ttft (s)"), "{report}");
    for unit in ["", "a\nb", &"x".repeat(33)] {
        let refused = GateTable::new(vec![gate(unit)]).validate();
        assert!(
            matches!(refused, Err(BadGateTable::Unit { .. })),
            "{unit:?}"
        );
    }
}
