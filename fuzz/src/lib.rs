//! Coverage-guided fuzzing of everything in `llm-version-core` that reads bytes of others.
//!
//! A target takes bytes and must neither panic nor allocate beyond its bound; where it accepts them it also states what must
//! hold then. `tests/seeds.rs` runs every target on the seeds without a fuzzer.

mod memory;
mod parsers;
mod parts;
mod seeds;
mod trees;

pub use memory::{Bound, bounded};
pub use seeds::seeds;

/// Something that is fuzzed.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Target {
    /// Its name, as in `FUZZ_TARGET`.
    pub name: &'static str,
    /// The memory that it may have at one time.
    pub bound: Bound,
    /// Runs it; whether the input was accepted.
    pub run: fn(&[u8]) -> bool,
}

const fn target(
    name: &'static str,
    per_byte: usize,
    fixed: usize,
    run: fn(&[u8]) -> bool,
) -> Target {
    let bound = Bound { per_byte, fixed };
    Target { name, bound, run }
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Every target, with the bytes that it may have allocated at one time: per byte of input, and besides. Those that work on
/// files have a block of 256 KiB for each.
pub const TARGETS: &[Target] = &[
    target("manifest", 64, 64 * KIB, parsers::manifest),
    target("reference", 16, 4 * KIB, parsers::reference),
    target("safetensors", 64, 16 * KIB, parsers::safetensors),
    target("gguf", 64, 16 * KIB, parsers::gguf),
    target("metadata", 64, 64 * KIB, parsers::metadata),
    target("content", 16, 16 * KIB, parsers::content),
    target("oms", 64, 64 * KIB, parsers::oms),
    target("log", 64, 64 * KIB, parsers::log),
    target("oci", 64, MIB, trees::oci),
    target("hf", 64, MIB, trees::hf),
    target("tree", 64, MIB, trees::tree),
];
