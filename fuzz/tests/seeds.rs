//! Every target on its seeds, without a fuzzer.

use fuzz::{TARGETS, bounded, seeds};
// It is built with the flags of the fuzzer, whose runtime counts for whoever has them.
use libfuzzer_sys as _;
use std::fs;
use std::path::Path;

/// The committed seeds are those that the code makes: `UPDATE=1 cargo test` writes them. Other files in their folders are
/// inputs that failed once.
///
/// One test, since the memory of all threads is measured.
#[test]
fn targets_run_on_their_seeds() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target.name);
        let run = |input: &[u8]| bounded(target.name, target.bound, input, target.run);
        let mut accepted = Vec::new();
        for (name, input) in seeds(target.name) {
            let path = folder.join(&name);
            if std::env::var_os("UPDATE").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &input).unwrap();
            }
            let committed = fs::read(&path).unwrap_or_default();
            assert!(committed == input, "{path:?} differs: UPDATE=1 writes it");
            if run(&input) {
                accepted.push(name);
            }
            // And on what is left of it.
            for end in (0..input.len()).step_by(97) {
                run(&input[..end]);
            }
        }
        println!("{} accepts {}", target.name, accepted.join(", "));
        assert!(!accepted.is_empty(), "{} refuses every seed", target.name);
        for entry in fs::read_dir(folder).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
        }
    }
}
