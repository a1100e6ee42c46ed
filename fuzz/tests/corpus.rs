//! Every input of the corpora, through the function that it is for.

use std::fs;
use std::path::{Path, PathBuf};

use larder_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_input_that_was_kept_is_taken() {
    for (name, target) in TARGETS {
        let mut inputs: Vec<PathBuf> = fs::read_dir(corpus().join(name))
            .unwrap_or_else(|error| panic!("{name} has no corpus: {error}"))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            println!("{name}: {}", input.display());
            target(&fs::read(input).expect("a file"));
        }
    }
}

#[test]
fn every_corpus_is_of_a_target() {
    for entry in fs::read_dir(corpus()).expect("the corpora") {
        let name = entry.expect("an entry").file_name();
        assert!(TARGETS.iter().any(|(target, _)| *target == name.to_string_lossy()), "{}", name.display());
    }
}

/// The ends and the middle of inputs too: what is cut short is the most common damage.
#[test]
fn inputs_that_are_cut_short_are_taken() {
    for (name, target) in TARGETS {
        for entry in fs::read_dir(corpus().join(name)).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("a file");
            let step = (input.len() / 16).max(1);
            for end in (0..input.len()).step_by(step) {
                target(&input[..end]);
            }
        }
    }
}
