//! What a plan can and cannot catch in given traffic, how soon, at which price: tables here, a chart as an HTML page.

mod chart;

use chart::Curve;
use llm_rollout::forecast::{Fleet, Planner, requests_needed};
use llm_rollout::presets::{Reference, reference};
use llm_rollout::{Expected, MetricDef, Plan, Traffic};
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str = "\
What a rollout plan can and cannot catch.

Usage: plan [PLAN.toml] [--traffic TRAFFIC.toml] [--rps N] [--gpus N] [--carries N] [--replicas N] [--out FILE.html]

  PLAN.toml       the plan; without it, the reference schedule of 77 hours
  --traffic FILE  requests_per_second = 20.0, and for each metric
                  [metrics.faults] with rate = 0.01 (of the baseline) and effect = 1.5 (to be found)
  --rps N         requests of all users in a second (20)
  --gpus N        GPUs of one replica of the candidate (4: 70 billion parameters)
  --carries N     requests a second that one replica carries (3)
  --replicas N    replicas of the candidate that there are GPUs for (2)
  --out FILE      where the chart goes (plan.html)
";

struct Arguments {
    plan: Option<PathBuf>,
    traffic: Option<PathBuf>,
    rps: Option<f64>,
    fleet: Fleet,
    out: PathBuf,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments {
        plan: None,
        traffic: None,
        rps: None,
        fleet: Fleet {
            gpus: 4.0,
            requests_per_second: 3.0,
            replicas: 2,
            ..Fleet::default()
        },
        out: PathBuf::from("plan.html"),
    };
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| {
            let number = text
                .parse::<f64>()
                .ok()
                .filter(|x| *x > 0.0 && x.is_finite());
            number.ok_or(format!("{text:?} is not a number above 0"))
        };
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--traffic" => arguments.traffic = Some(value()?.into()),
            "--rps" => arguments.rps = Some(number(value()?)?),
            "--gpus" => arguments.fleet.gpus = number(value()?)?,
            "--carries" => arguments.fleet.requests_per_second = number(value()?)?,
            "--replicas" => {
                let text = value()?;
                let count = text
                    .parse()
                    .map_err(|_| format!("{text:?} is not a count"))?;
                arguments.fleet.replicas = count;
            }
            "--out" => arguments.out = value()?.into(),
            other if other.starts_with("--") => {
                return Err(format!("unknown argument {other:?}; see --help"));
            }
            _ => arguments.plan = Some(word.into()),
        }
    }
    Ok(Some(arguments))
}

/// Columns to the width of their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if i == 0 {
                write!(line, "{cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn hours(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    format!("{}:{:02} h", minutes / 60, minutes % 60)
}

fn percent(p: f64) -> String {
    format!("{:.1} %", 100.0 * p)
}

fn words(row: &[&str]) -> Vec<String> {
    row.iter().map(|s| (*s).to_owned()).collect()
}

/// Ratios from 1.05 to 10, evenly spread by their logarithm.
fn ratios(rate: f64) -> Vec<f64> {
    let most = (0.95 / rate).min(10.0);
    let step = (most / 1.05_f64).ln() / 23.0;
    (0..24)
        .map(|i| 1.05 * (step * f64::from(i)).exp())
        .collect()
}

/// Where a curve crosses a height, between its points.
fn crosses(points: &[(f64, f64)], height: f64) -> Option<f64> {
    if let Some((x, _)) = points.first().filter(|(_, y)| *y >= height) {
        return Some(*x);
    }
    points.windows(2).find_map(|pair| match *pair {
        [(x0, y0), (x1, y1)] if y0 < height && y1 >= height => {
            Some(x0 * (x1 / x0).powf((height - y0) / (y1 - y0)))
        }
        _ => None,
    })
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let plan = match &arguments.plan {
        Some(path) => Plan::from_toml(&read(path)?)?,
        None => reference(Reference::default())?,
    };
    let mut traffic: Traffic = match &arguments.traffic {
        Some(path) => toml::from_str(&read(path)?)?,
        None => Traffic::new(20.0),
    };
    if let Some(rps) = arguments.rps {
        traffic.requests_per_second = rps;
    }
    for gate in &plan.spec().gates {
        let known = traffic.metrics.entry(gate.metric.clone());
        known.or_insert(Expected::new(0.01, 1.5));
    }
    let planner = Planner::new(plan, traffic)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", stages(&planner)?)?;
    let (text, curves) = caught(&planner)?;
    write!(out, "{text}")?;
    write!(out, "{}", harm(&planner)?)?;
    write!(out, "{}", samples(&planner))?;
    write!(out, "{}", cost(&planner, &arguments.fleet))?;
    for note in planner.forecast(&[])?.notes {
        writeln!(out, "note: {note}")?;
    }
    std::fs::write(&arguments.out, chart::page(&curves))?;
    writeln!(out, "\nchart: {}", arguments.out.display())?;
    Ok(())
}

fn stages(planner: &Planner) -> Result<String, Box<dyn Error>> {
    let harmless = planner.forecast(&[])?;
    let mut rows = vec![words(&["stage", "share", "lasts", "requests", "undecided"])];
    for (i, stage) in harmless.stages.iter().enumerate() {
        rows.push(vec![
            i.to_string(),
            stage.share.to_string(),
            hours(stage.lasts),
            format!("{:.0}", stage.exposed),
            percent(stage.undecided),
        ]);
    }
    Ok(format!(
        "A harmless candidate at {} requests a second is promoted with {}, and sent back by chance with {} (alpha {}):\n{}",
        planner.traffic().requests_per_second,
        percent(harmless.passed),
        percent(harmless.detected),
        planner.plan().spec().alpha,
        table(&rows)
    ))
}

/// What each gate finds with 95 % probability by the end of each stage.
fn caught(planner: &Planner) -> Result<(String, Vec<Curve>), Box<dyn Error>> {
    let count = planner.plan().stages().len();
    let mut head = words(&["gate", "baseline", "tolerated"]);
    head.extend((0..count).map(|i| format!("stage {i}")));
    let (mut rows, mut curves) = (vec![head], Vec::new());
    for gate in &planner.plan().spec().gates {
        let Some(expected) = planner.traffic().metrics.get(&gate.metric).copied() else {
            continue;
        };
        let mirrored = planner.plan().spec().metrics.get(&gate.metric);
        if !gate.shares_budget() || mirrored.is_some_and(MetricDef::is_mirrored) {
            continue;
        }
        let mut by_stage = vec![Vec::new(); count];
        for ratio in ratios(expected.rate) {
            let found = planner.found_by(&gate.metric, ratio)?;
            for (points, p) in by_stage.iter_mut().zip(found) {
                points.push((ratio, p));
            }
        }
        let mut row = vec![
            gate.metric.clone(),
            percent(expected.rate),
            format!("{:.2} x", 1.0 + gate.margin),
        ];
        for points in &by_stage {
            let least = crosses(points, 0.95);
            row.push(least.map_or("-".to_owned(), |x| format!("{x:.2} x")));
        }
        rows.push(row);
        for (stage, points) in by_stage.into_iter().enumerate() {
            curves.push(Curve {
                gate: gate.metric.clone(),
                stage,
                points,
            });
        }
    }
    let text = format!(
        "\nThe least harm (as a ratio of rates) that is found with 95 % probability by the end of each stage; - is none up to 10 x:\n{}",
        table(&rows)
    );
    Ok((text, curves))
}

/// What the harm costs that must be found.
fn harm(planner: &Planner) -> Result<String, Box<dyn Error>> {
    let head = [
        "harm",
        "found",
        "half by",
        "95 % by",
        "exposed",
        "harmed",
        "found by stage",
    ];
    let mut rows = vec![words(&head)];
    for gate in &planner.plan().spec().gates {
        let Some(expected) = planner.traffic().metrics.get(&gate.metric).copied() else {
            continue;
        };
        let forecast = planner.forecast(&[(&gate.metric, expected.effect)])?;
        let by = forecast.stages.iter().map(|s| percent(s.detected));
        let time = |t: Option<Duration>| t.map_or("-".to_owned(), hours);
        rows.push(vec![
            format!("{} {} x", gate.metric, expected.effect),
            percent(forecast.detected),
            time(forecast.median_time),
            time(forecast.longest_time),
            format!("{:.0}", forecast.exposed),
            format!("{:.1}", forecast.harmed),
            by.collect::<Vec<_>>().join(", "),
        ]);
    }
    Ok(format!(
        "\nThe harm that must be found, one metric at a time (expected requests, until it goes back or is promoted):\n{}",
        table(&rows)
    ))
}

fn samples(planner: &Planner) -> String {
    let spec = planner.plan().spec();
    let ratios = [1.2, 1.5, 2.0, 3.0, 5.0];
    let mut head = words(&["baseline"]);
    head.extend(ratios.iter().map(|r| format!("{r} x")));
    let mut rows = vec![head];
    for rate in [0.001, 0.01, 0.05, 0.2] {
        let mut row = vec![percent(rate)];
        for ratio in ratios {
            let enough = ratio * rate < 1.0;
            let needed = enough.then(|| requests_needed(rate, ratio, 0.0, 0.05, spec.alpha, 0.95));
            row.push(
                needed
                    .flatten()
                    .map_or("-".to_owned(), |(n, mean)| format!("{n:.0} ({mean:.0})")),
            );
        }
        rows.push(row);
    }
    format!(
        "\nCandidate requests to find a harm with 95 % probability (and on average), at 5 % of the traffic with all of alpha {}:\n{}",
        spec.alpha,
        table(&rows)
    )
}

fn cost(planner: &Planner, fleet: &Fleet) -> String {
    let cost = planner.cost(fleet);
    let mut rows = vec![words(&[
        "stage",
        "replicas",
        "fits",
        "GPU-hours",
        "shadow tokens",
        "judge tokens",
    ])];
    for (i, stage) in cost.stages.iter().enumerate() {
        rows.push(vec![
            i.to_string(),
            format!("{:.0}", stage.replicas),
            if stage.fits { "yes" } else { "NO" }.to_owned(),
            format!("{:.0}", stage.gpu_hours),
            format!("{:.0}", stage.shadow_tokens),
            format!("{:.0}", stage.judge_tokens),
        ]);
    }
    let rps = planner.traffic().requests_per_second;
    format!(
        "\nOn {} replicas of {} GPUs that carry {} requests a second each, at most {} of the traffic; {:.0} GPU-hours, and {:.0} to keep the old version warm:\n{}",
        fleet.replicas,
        fleet.gpus,
        fleet.requests_per_second,
        fleet.largest_share(rps),
        cost.candidate_gpu_hours,
        cost.standby_gpu_hours,
        table(&rows)
    )
}

fn main() -> Result<(), Box<dyn Error>> {
    match parse(std::env::args().skip(1))? {
        Some(arguments) => run(&arguments),
        None => Ok(write!(std::io::stdout(), "{USAGE}")?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let of = |text: &str| parse(text.split_whitespace().map(str::to_owned));
        let arguments = of("a.toml --rps 5 --replicas 3").unwrap().unwrap();
        assert_eq!(arguments.plan, Some(PathBuf::from("a.toml")));
        assert!(arguments.rps == Some(5.0) && arguments.fleet.replicas == 3);
        assert!(of("--help").unwrap().is_none());
        assert!(of("--rps").is_err() && of("--rps -1").is_err() && of("--fast").is_err());
    }

    #[test]
    fn a_curve_is_crossed_between_its_points() {
        let points = [(1.0, 0.1), (2.0, 0.5), (4.0, 0.9)];
        assert!((crosses(&points, 0.7).unwrap() - 8f64.sqrt()).abs() < 1e-9);
        assert!(crosses(&points, 0.95).is_none());
        assert!((crosses(&points, 0.05).unwrap() - 1.0).abs() < 1e-9);
    }
}
