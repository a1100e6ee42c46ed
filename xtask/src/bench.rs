//! `cargo xtask bench`: release builds, the measurements of `bench/`, and their tables in `docs/performance.md`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::artifacts::{build_plugins, fresh_directory, host};
use crate::dynamodb::ensure_dynoxide;
use crate::postgres::ensure_programs;
use crate::shell::{cargo, root, run, target_directory};
use crate::tools::{ensure_from_pypi, ensure_package};

/// Of the programs that migrations are measured beside. `pgloader` is the machine's package.
const SQLITE_UTILS_VERSION: &str = "4.2.1";
const INGESTR_VERSION: &str = "0.15.9";

/// What stands between these in `docs/performance.md` is written here.
const BEGIN: &str = "<!-- cargo xtask bench writes from here -->";
const END: &str = "<!-- to here -->";

/// Builds, measures and writes the tables down. `arguments` go to the program; of a short form, or of one subject, nothing is
/// written down.
pub(crate) fn run_benchmarks(arguments: &[&str]) -> Result<()> {
    let plugins = build_plugins()?;
    run(cargo()?.args(["build", "--release", "--package", "larder", "--package", "larder-bench"]))?;
    let larder = host(true)?;

    // Of this run alone: another one may be under way.
    let work = root().join("target/bench").join(std::process::id().to_string());
    fresh_directory(&work)?;
    let out = work.join("tables.md");
    let program = format!("larder-bench{}", std::env::consts::EXE_SUFFIX);
    let mut bench = Command::new(target_directory()?.join("release").join(program));
    bench.arg("--plugins").arg(plugins).arg("--larder").arg(larder).arg("--work").arg(&work).arg("--out").arg(&out);
    bench.arg("--postgres").arg(ensure_programs()?);
    bench.arg("--dynamodb").arg(ensure_dynoxide()?).envs(larder_test_engine::CREDENTIALS);
    // Without them all but migrations can be measured.
    for (option, program) in [
        ("--sqlite-utils", ensure_from_pypi("sqlite-utils", "", SQLITE_UTILS_VERSION, "sqlite-utils")),
        ("--ingestr", ensure_from_pypi("ingestr", "", INGESTR_VERSION, "ingestr")),
        ("--pgloader", ensure_package("pgloader").map(|()| "pgloader".into())),
    ] {
        match program {
            Ok(program) => drop(bench.arg(option).arg(program)),
            Err(error) => eprintln!("warning: {error:#}"),
        }
    }
    // Where a bound is broken there are tables all the same.
    let measured = run(bench.args(arguments));
    let tables = fs::read_to_string(&out);
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    let Ok(tables) = tables else { return measured };
    if arguments.is_empty() {
        let path = root().join("docs/performance.md");
        let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, with_tables(&page, &tables)?).with_context(|| format!("cannot write {}", path.display()))?;
        println!("\n{} is up to date", path.display());
    } else {
        println!("\n{tables}");
    }
    measured
}

fn with_tables(page: &str, tables: &str) -> Result<String> {
    let Some((before, rest)) = page.split_once(BEGIN) else { bail!("the page lacks the line {BEGIN}") };
    let Some((_, after)) = rest.split_once(END) else { bail!("the page lacks the line {END}") };
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", tables.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_replace_what_stands_between_the_markers_and_nothing_else() {
        let page = format!("# A\n\n{BEGIN}\nold\n{END}\n\nB\n");
        let written = with_tables(&page, "| new |\n").unwrap();
        assert_eq!(written, format!("# A\n\n{BEGIN}\n\n| new |\n\n{END}\n\nB\n"));
        assert_eq!(with_tables(&written, "| new |").unwrap(), written);
        assert!(with_tables("# A\n", "| new |").is_err());
    }
}
