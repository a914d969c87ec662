//! Draws the plots of the guide, each to standard output:
//!
//! ```text
//! for p in evidence peeking detection noise; do
//!   cargo run -p llm-gates --example plots -- $p > llm-gates/docs/$p.svg
//! done
//! ```
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a program with an argument, whose plot goes to standard output"
)]

use std::error::Error;
use std::fmt::Write as _;

use llm_gates::anytime::{AutoRatio, EProcess, History};
use llm_gates::fixed::{Side, two_proportions};
use llm_gates::planner::Detection;
use llm_gates::special::normal;
use llm_gates::{Counts, Grid, RateRatio};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const RIGHT: f64 = 24.0;
const GREEN: &str = "#2a7";
const ORANGE: &str = "#e80";
const RED: &str = "#c22";

/// Axes and what is drawn on them.
struct Chart {
    x: (f64, f64),
    y: (f64, f64),
    svg: String,
    /// Height of the next line's words.
    legend: f64,
}

impl Chart {
    fn new(x: (f64, f64), y: (f64, f64), ticks: [&[f64]; 2], words: [&str; 2]) -> Self {
        let mut chart = Self {
            x,
            y,
            svg: format!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#
            ),
            legend: 38.0,
        };
        for tick in ticks[1] {
            let y = chart.at(x.0, *tick).1;
            let _ = write!(
                chart.svg,
                r##"<path d="M50 {y:.1}H{}" stroke="#ddd"/><text x="44" y="{:.1}" text-anchor="end">{tick}</text>"##,
                WIDTH - RIGHT,
                y + 4.0
            );
        }
        for tick in ticks[0] {
            let x = chart.at(*tick, y.0).0;
            let _ = write!(
                chart.svg,
                r#"<text x="{x:.1}" y="{}" text-anchor="middle">{tick}</text>"#,
                HEIGHT - 24.0
            );
        }
        let [along, up] = words;
        let _ = write!(
            chart.svg,
            r#"<text x="{}" y="{}" text-anchor="middle">{along}</text><text x="6" y="14">{up}</text>"#,
            WIDTH / 2.0,
            HEIGHT - 6.0
        );
        chart
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |v: f64, (low, high): (f64, f64)| (v.clamp(low, high) - low) / (high - low);
        (
            50.0 + (WIDTH - 50.0 - RIGHT) * part(x, self.x),
            HEIGHT - 40.0 - (HEIGHT - 62.0) * part(y, self.y),
        )
    }

    fn level(&mut self, y: f64, words: &str) {
        let y = self.at(self.x.0, y).1;
        let _ = write!(
            self.svg,
            r#"<path d="M50 {y:.1}H{0}" stroke="black" stroke-dasharray="6 4"/><text x="{0}" y="{1:.1}" text-anchor="end">{words}</text>"#,
            WIDTH - RIGHT,
            y - 5.0
        );
    }

    fn line(&mut self, colour: &str, words: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let _ = write!(
                path,
                "{}{x:.1} {y:.1}",
                if path.is_empty() { 'M' } else { 'L' }
            );
        }
        let _ = write!(
            self.svg,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/><text x="{}" y="{}" fill="{colour}" text-anchor="end">{words}</text>"#,
            WIDTH - RIGHT - 6.0,
            self.legend
        );
        self.legend += 16.0;
    }

    fn finish(self) -> String {
        self.svg + "</svg>"
    }
}

/// Splitmix64 (Steele, Lea and Flood 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / 9_007_199_254_740_992.0
}

/// Events among n requests, by inversion.
fn events(state: &mut u64, n: u64, rate: f64) -> Counts {
    let mean = n as f64 * rate;
    let (mut k, mut p, mut u) = (0u64, (-mean).exp(), uniform(state));
    while u > p && k < n {
        u -= p;
        k += 1;
        p *= mean / k as f64;
    }
    Counts::new(n, k)
}

/// Evidence at a 5 % stage of 20 requests a second with 1 % errors.
fn evidence() -> Result<String, Box<dyn Error>> {
    let mut chart = Chart::new(
        (0.0, 240.0),
        (-4.0, 8.0),
        [
            &[0.0, 60.0, 120.0, 180.0, 240.0],
            &[-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0],
        ],
        ["minutes at 5 % of 20 requests a second", "ln E"],
    );
    chart.level(20.0f64.ln(), "bound ln(1/.05): roll back");
    for (ratio, colour, words) in [
        (2.0, RED, "twice the errors"),
        (1.5, ORANGE, "1.5 times the errors"),
        (1.0, GREEN, "as good as the baseline"),
    ] {
        let (mut process, mut state) = (RateRatio::new(1.0, Grid::Rr7)?, 16);
        let points = (0..=240).map(|minute| {
            if minute > 0 {
                let c = events(&mut state, 60, 0.01 * ratio);
                process.observe(c, events(&mut state, 1_140, 0.01));
            }
            (f64::from(minute), process.log_e())
        });
        chart.line(colour, words, points.collect::<Vec<_>>());
    }
    Ok(chart.finish())
}

/// Share of 400 harmless candidates that have been rolled back so far, at a 5 % stage with a look each minute.
fn peeking() -> Result<String, Box<dyn Error>> {
    const LIVES: u32 = 400;
    const MINUTES: usize = 1_440;
    let mut first = [vec![0u32; MINUTES + 1], vec![0; MINUTES + 1]];
    for life in 0..LIVES {
        let (mut process, mut state) = (RateRatio::new(1.0, Grid::Rr7)?, u64::from(life) << 20);
        let (mut all, mut open) = ([Counts::default(); 2], [true; 2]);
        let [naive, ours] = &mut first;
        for (naive, ours) in naive.iter_mut().zip(ours).skip(1) {
            let (c, b) = (
                events(&mut state, 60, 0.01),
                events(&mut state, 1_140, 0.01),
            );
            process.observe(c, b);
            all = [all[0].plus(c)?, all[1].plus(b)?];
            let p = two_proportions(all[0], all[1], Side::Greater)?.p;
            let alarms = [(naive, p <= 0.05), (ours, process.rejects(0.05))];
            for ((first, alarms), open) in alarms.into_iter().zip(&mut open) {
                *first += u32::from(alarms && *open);
                *open &= !alarms;
            }
        }
    }
    let mut chart = Chart::new(
        (0.0, 1_440.0),
        (0.0, 60.0),
        [
            &[0.0, 360.0, 720.0, 1_080.0, 1_440.0],
            &[0.0, 20.0, 40.0, 60.0],
        ],
        [
            "minutes, one look each",
            "harmless candidates rolled back so far, %",
        ],
    );
    chart.level(5.0, "alpha");
    for (i, (colour, words)) in [(RED, "z-test at each look"), (GREEN, "RateRatio")]
        .into_iter()
        .enumerate()
    {
        let mut sum = 0;
        let points = first[i].iter().enumerate().map(|(minute, more)| {
            sum += more;
            (minute as f64, 100.0 * f64::from(sum) / f64::from(LIVES))
        });
        chart.line(colour, words, points.step_by(10).collect::<Vec<_>>());
    }
    Ok(chart.finish())
}

/// How likely harm has been found after so many requests of the candidate.
fn detection() -> Result<String, Box<dyn Error>> {
    let mut chart = Chart::new(
        (0.0, 8_000.0),
        (0.0, 1.0),
        [
            &[0.0, 2_000.0, 4_000.0, 6_000.0, 8_000.0],
            &[0.0, 0.25, 0.5, 0.75, 1.0],
        ],
        [
            "requests of the candidate, at 5 % of the traffic and 1 % errors",
            "found",
        ],
    );
    chart.legend = 180.0;
    for (ratio, colour, words) in [
        (5.0, RED, "5 times the errors"),
        (2.0, ORANGE, "twice the errors"),
        (1.5, GREEN, "1.5 times the errors"),
        (1.25, "#27c", "1.25 times the errors"),
    ] {
        let plan = Detection::new(0.01, ratio, 0.05, 0.05, 1.5)?;
        let at = |n: u32| (f64::from(n), plan.probability_by(f64::from(n)));
        chart.line(colour, words, (1..=160).map(|i| at(50 * i)));
    }
    Ok(chart.finish())
}

/// A harmless candidate whose arms swing by themselves: a coefficient of variation of .5 in each block of five minutes.
fn noise() -> Result<String, Box<dyn Error>> {
    let mut state = 4;
    let s = 1.25f64.ln().sqrt();
    let swing =
        |state: &mut u64| (s * normal::quantile(uniform(state).max(1e-12)) - 0.5 * s * s).exp();
    let (mut wise, mut naive) = (
        AutoRatio::new(1.0, History::Groups, 0.005)?,
        RateRatio::new(1.0, Grid::Rr7)?,
    );
    for _ in 0..864 {
        let groups = [0, 1].map(|_| {
            let rate = 0.01 * swing(&mut state);
            events(&mut state, 3_000, rate)
        });
        wise.learn(groups)?;
    }
    let mut lines = [vec![(0.0, 0.0)], vec![(0.0, 0.0)]];
    for block in 0..288u32 {
        let rates = [0, 1, 2].map(|_| 0.01 * swing(&mut state));
        for look in 1..=5 {
            let c = events(&mut state, 300, rates[0]);
            let b = [
                events(&mut state, 450, rates[1]),
                events(&mut state, 450, rates[2]),
            ];
            naive.observe(c, b[0].plus(b[1])?);
            wise.observe(u64::from(block), c, b)?;
            if look == 5 {
                let hour = f64::from(block + 1) / 12.0;
                lines[0].push((hour, naive.log_e()));
                lines[1].push((hour, wise.log_e()));
            }
        }
    }
    let mut chart = Chart::new(
        (0.0, 24.0),
        (-10.0, 15.0),
        [
            &[0.0, 6.0, 12.0, 18.0, 24.0],
            &[-10.0, -5.0, 0.0, 5.0, 10.0, 15.0],
        ],
        [
            "hours at 25 % of 20 requests a second, harmless, noisy arms",
            "ln E",
        ],
    );
    chart.level(20.0f64.ln(), "bound: roll back");
    let [naive, wise] = lines;
    chart.line(RED, "RateRatio takes the noise for harm", naive);
    chart.line(GREEN, "AutoRatio, three days of history", wise);
    Ok(chart.finish())
}

fn main() -> Result<(), Box<dyn Error>> {
    let svg = match std::env::args().nth(1).as_deref() {
        Some("evidence") => evidence(),
        Some("peeking") => peeking(),
        Some("detection") => detection(),
        Some("noise") => noise(),
        _ => Err("usage: plots evidence|peeking|detection|noise".into()),
    }?;
    println!("{svg}");
    Ok(())
}
