//! `cargo xtask fuzz`: bytes that nobody has thought of, for everything that reads data of others (`fuzz/src/lib.rs`), by
//! libFuzzer through cargo-fuzz.
//!
//! It runs with the compiler that the project is built with: coverage is a pass of LLVM that every compiler has, and
//! sanitizers, which take a nightly one, look for what safe Rust does not do.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{root, run, target_directory};
use crate::tools::{Tool, ensure_installed, tools_directory};

const CARGO_FUZZ: Tool =
    Tool { package: "cargo-fuzz", program: "cargo-fuzz", version: "0.13.2", arguments: &["--debug"] };
/// Ten minutes each.
const SECONDS: u32 = 600;
/// The largest input in bytes: what goes wrong goes wrong in small ones.
const INPUT_BYTES_MAX: u32 = 4096;
/// Seconds after which an input is one that does not end.
const INPUT_TIMEOUT: u32 = 10;

/// Fuzzes one target, or all of them one after the other, for so many seconds each.
pub(crate) fn fuzz(arguments: &[&str]) -> Result<()> {
    const USAGE: &str = "usage: cargo xtask fuzz [TARGET] [--seconds N]";
    let (name, seconds) = match *arguments {
        [] => (None, SECONDS),
        ["--seconds", seconds] => (None, number(seconds)?),
        [name] if !name.starts_with('-') => (Some(name), SECONDS),
        [name, "--seconds", seconds] => (Some(name), number(seconds)?),
        _ => bail!("{USAGE}"),
    };
    let targets = targets()?;
    let chosen: Vec<&String> = targets.iter().filter(|target| name.is_none_or(|name| *target == name)).collect();
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", targets.join(", "));
    }
    let program = ensure_installed(&CARGO_FUZZ, &tools_directory()?)?;
    for target in chosen {
        fuzz_one(&program, target, seconds)?;
    }
    Ok(())
}

fn number(seconds: &str) -> Result<u32> {
    seconds.parse().with_context(|| format!("{seconds} is no number of seconds"))
}

/// Those that have a corpus, which are all: a test sees to it.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/corpus")).context("the corpora cannot be listed")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What it finds new is kept in `target/fuzz`, where the next run goes on; an input that goes wrong is left in
/// `fuzz/artifacts`, and belongs into the corpus once it does not any more.
fn fuzz_one(program: &Path, target: &str, seconds: u32) -> Result<()> {
    let found = root().join("target/fuzz").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = Command::new(program);
    command.current_dir(root()).args(["run", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--features", "libfuzzer"]);
    command.arg("--target-dir").arg(target_directory()?.join("fuzz")).arg(target);
    command.arg(&found).arg(root().join("fuzz/corpus").join(target));
    // Optimized as far as it takes to build it in minutes.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    command.args(["--", &format!("-max_total_time={seconds}"), &format!("-max_len={INPUT_BYTES_MAX}")]);
    command.args([&format!("-timeout={INPUT_TIMEOUT}"), "-rss_limit_mb=2048", "-print_final_stats=1"]);
    run(&mut command)
}
