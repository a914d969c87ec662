//! What a target may allocate.

use peak_alloc::PeakAlloc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that is proportional to the input.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "a line has two numbers")]
pub struct Bound {
    /// Bytes per byte of input.
    pub per_byte: usize,
    /// Bytes besides.
    pub fixed: usize,
}

/// The largest part of a bound that was used so far, in thousandths.
static WORST: AtomicUsize = AtomicUsize::new(0);

/// The memory of one run at a time is measured.
static RUNNING: Mutex<()> = Mutex::new(());

/// Runs `run` on `input`, and returns what it does.
///
/// # Panics
/// If it had more memory at one time, on all threads together, than `bound` allows.
pub fn bounded(name: &str, bound: Bound, input: &[u8], run: fn(&[u8]) -> bool) -> bool {
    let _alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let accepted = run(input);
    let most = MEMORY.peak_usage().saturating_sub(before);
    let allowed = bound.fixed + bound.per_byte * input.len();
    assert!(
        most <= allowed,
        "{name}: {most} bytes for an input of {}, allowed are {allowed}",
        input.len()
    );
    let part = most * 1_000 / allowed;
    if part > WORST.fetch_max(part, Ordering::Relaxed) {
        let per_byte = most as f64 / input.len().max(1) as f64;
        eprintln!(
            "MEMORY {name}: at most {:.1} % of the bound: {most} bytes for an input of {} ({per_byte:.1} per byte)",
            part as f64 / 10.0,
            input.len(),
        );
    }
    accepted
}
