//! Measures the four bundles: bits per byte, exactness and time per reply.
//!
//! `cargo run --release -p examples --bin desk_score [-- REQUESTS]`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use desk_model::{Model, Score, desk, write_all};
use std::error::Error;
use std::time::Instant;

const LIVE_SEED: u64 = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args()
        .nth(1)
        .map_or(Ok(1_000), |count| count.parse())?;
    let parent = std::env::temp_dir().join(format!("desk-score-{}", std::process::id()));
    println!("bundle   bits/byte  requests    exact  malformed  cut off  tokens  ms per reply");
    for (variant, directory) in write_all(&parent)? {
        let model = Model::load(&directory)?;
        let heldout = desk::heldout(model.template(), 300);
        let bits = model.bits_per_byte_over(heldout.iter().map(String::as_str));
        let (long, short): (Vec<_>, Vec<_>) = desk::live(LIVE_SEED, count)
            .into_iter()
            .partition(|request| request.long);
        for (name, requests) in [
            ("suite", desk::offline_suite(100)),
            ("short", short),
            ("long", long),
        ] {
            let began = Instant::now();
            let score = Score::of(&model, &requests);
            let of = score.requests.max(1) as f64;
            println!(
                "{:<8} {bits:9.4}  {:>3} {name:<5}  {:5.1} %    {:5.1} %  {:5.1} %  {:6.1}  {:12.2}",
                variant.name(),
                score.requests,
                100.0 * score.exact(),
                100.0 * score.malformed(),
                100.0 * score.cut_off as f64 / of,
                score.tokens as f64 / of,
                began.elapsed().as_secs_f64() * 1e3 / of,
            );
        }
    }
    std::fs::remove_dir_all(&parent)?;
    Ok(())
}
