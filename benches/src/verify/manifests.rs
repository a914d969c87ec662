//! Differences of large manifests: how long they take, and that memory is proportional to the manifests.

use super::{BUDGET, GROUP};
use crate::Error;
use crate::figure::{Figure, Limit};
use crate::measure::{Turn, in_turn};
use llm_version_core::{
    Component, ComponentKind, ComponentPath, Digest, Draft, Manifest, Name, Version, diff,
};
use std::hint::black_box;

/// Entries of each manifest.
const ENTRIES: u32 = 100_000;
/// Of the manifests whose memory is compared with theirs.
const FEWER: u32 = 10_000;

/// A manifest in which every `every`-th component differs from that of another `seed`.
fn manifest(entries: u32, seed: u32, every: u32) -> Result<Manifest, Error> {
    let mut draft = Draft::new(Name::new("bench")?, Version::new(1, seed, 0));
    for n in 0..entries {
        let own = if n % every == 0 { seed } else { 0 };
        let path = ComponentPath::new(format!("model/data/{:04}/{n:06}.dat", n / 200))?;
        let digest = Digest::of(&[n.to_le_bytes(), own.to_le_bytes()].concat());
        let component = Component::new(path, ComponentKind::Other, u64::from(n), digest);
        draft.components.push(component);
    }
    Ok(draft.finish()?)
}

/// The most bytes allocated at one time by a difference in which every entry is modified, per entry of both manifests.
fn bytes_per_entry(entries: u32) -> Result<f64, Error> {
    let (old, new) = (manifest(entries, 1, 1)?, manifest(entries, 2, 1)?);
    let spent = allocation_counter::measure(|| {
        black_box(diff(black_box(&old), black_box(&new)));
    });
    Ok(spent.bytes_max as f64 / f64::from(2 * entries))
}

/// Measures them.
///
/// # Errors
/// A manifest cannot be made, which it can.
pub(super) fn run() -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for (every, what) in [(100, "one entry in 100"), (1, "every entry")] {
        let (old, new) = (manifest(ENTRIES, 1, every)?, manifest(ENTRIES, 2, every)?);
        let mut turns: [Turn<'_, Error>; 1] = [Box::new(|| {
            black_box(diff(black_box(&old), black_box(&new)));
            Ok(())
        })];
        let took = in_turn(&mut turns, BUDGET / 10, |_| true)?;
        let [took] = *took.as_slice() else {
            return Err("a measurement is missing".into());
        };
        let name = format!("diff of two manifests of {ENTRIES} entries, {what} modified");
        figures.push(Figure::new(GROUP, name, took.wall * 1e3, "ms").limit(Limit::Below(100.0)));
    }
    let (many, fewer) = (bytes_per_entry(ENTRIES)?, bytes_per_entry(FEWER)?);
    figures.push(Figure::new(
        GROUP,
        "diff, memory at its peak per entry of both manifests, every entry modified",
        many,
        "bytes",
    ));
    figures.push(
        Figure::new(
            GROUP,
            format!("diff, memory per entry with {ENTRIES} entries against {FEWER}"),
            many / fewer,
            "x",
        )
        // Lists grow by doubling.
        .limit(Limit::AtMost(2.0)),
    );
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_entries_differ_as_were_asked_for() {
        for (every, expected) in [(1, 1_000), (100, 10)] {
            let (old, new) = (
                manifest(1_000, 1, every).unwrap(),
                manifest(1_000, 2, every).unwrap(),
            );
            assert_eq!(diff(&old, &new).changes.len(), expected);
        }
        assert!(bytes_per_entry(1_000).unwrap() > 0.0);
    }
}
