//! One program for all targets: `FUZZ_TARGET` names the one that it runs, arguments are libFuzzer's.
#![no_main]

use fuzz::{TARGETS, Target, bounded};
use std::sync::LazyLock;

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("set FUZZ_TARGET to one of: {}", names.join(" "));
        std::process::exit(2);
    };
    *target
});

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&CHOSEN); }, |input: &[u8]| {
    let _ = bounded(CHOSEN.name, CHOSEN.bound, input, CHOSEN.run);
});
