//! Draws the plot of the guide: `cargo run -p llm-gates --example plots > llm-gates/docs/evidence.svg`.
//!
//! Evidence of `RateRatio` at a 5 % stage, 1,200 requests a minute with 1 % errors, for candidates with 1, 1.5 and 2 times the baseline's rate.
#![expect(clippy::print_stdout, reason = "the plot goes to standard output")]

use std::fmt::Write as _;

use llm_gates::{Counts, Grid, RateRatio};

const MINUTES: u32 = 240;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
/// Greatest and least ln E drawn.
const TOP: f64 = 8.0;
const BOTTOM: f64 = -4.0;

/// Splitmix64 (Steele, Lea and Flood 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / 9_007_199_254_740_992.0
}

fn events(state: &mut u64, n: u64, rate: f64) -> Counts {
    Counts::new(n, (0..n).filter(|_| uniform(state) < rate).count() as u64)
}

fn x(minute: u32) -> f64 {
    50.0 + (WIDTH - 60.0) * f64::from(minute) / f64::from(MINUTES)
}

fn y(log_e: f64) -> f64 {
    10.0 + (HEIGHT - 50.0) * (TOP - log_e.clamp(BOTTOM, TOP)) / (TOP - BOTTOM)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    );
    write!(
        svg,
        r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#
    )?;
    for tick in [-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0] {
        write!(
            svg,
            r##"<path d="M50 {0:.1}H{1}" stroke="#ddd"/><text x="44" y="{2:.1}" text-anchor="end">{tick}</text>"##,
            y(tick),
            WIDTH - 10.0,
            y(tick) + 4.0
        )?;
    }
    let bound = (1.0f64 / 0.05).ln();
    write!(
        svg,
        r#"<path d="M50 {0:.1}H{1}" stroke="black" stroke-dasharray="6 4"/><text x="56" y="{2:.1}">bound ln(1/.05): roll back</text>"#,
        y(bound),
        WIDTH - 10.0,
        y(bound) - 5.0
    )?;
    for (ratio, colour, words) in [
        (1.0, "#2a7", "as good as the baseline"),
        (1.5, "#e80", "1.5 times the errors"),
        (2.0, "#c22", "twice the errors"),
    ] {
        let mut process = RateRatio::new(1.0, Grid::Rr7)?;
        let mut state = 11;
        let mut path = format!("M{:.1} {:.1}", x(0), y(0.0));
        for minute in 1..=MINUTES {
            process.observe(
                events(&mut state, 60, 0.01 * ratio),
                events(&mut state, 1_140, 0.01),
            );
            write!(path, "L{:.1} {:.1}", x(minute), y(process.log_e()))?;
        }
        write!(
            svg,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#
        )?;
        let at = if ratio > 1.9 {
            30.0
        } else if ratio > 1.4 {
            46.0
        } else {
            62.0
        };
        write!(
            svg,
            r#"<text x="{}" y="{}" fill="{colour}" text-anchor="end">{words}</text>"#,
            WIDTH - 14.0,
            at + 190.0
        )?;
    }
    write!(
        svg,
        r#"<text x="{}" y="{}" text-anchor="middle">minutes at 5 % of 20 requests a second</text><text x="14" y="20">ln E</text></svg>"#,
        WIDTH / 2.0,
        HEIGHT - 8.0
    )?;
    println!("{svg}");
    Ok(())
}
