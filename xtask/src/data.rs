//! `cargo xtask data`: sample documents of any size, for benchmarks and for trying things out.

use std::fs;

use anyhow::{Context, Result, bail};

/// Writes the document that was asked for.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let [kind, options @ ..] = arguments else { bail!("which data: machines or hostfactory") };
    let (mut count, mut out, mut seed) = (100_000, None, larder_samples::SEED);
    for option in options.chunks(2) {
        match *option {
            ["--count", value] if *kind == "machines" => count = value.parse().context("--count is no number")?,
            ["--out", value] => out = Some(value),
            ["--seed", value] => seed = value.parse().context("--seed is no number")?,
            _ => bail!("unknown option or no value: {}", option[0]),
        }
    }
    let text = match *kind {
        "machines" => larder_samples::machines(count, seed),
        "hostfactory" => larder_samples::hostfactory(seed),
        other => bail!("unknown data {other}: machines or hostfactory"),
    };
    let out = out.context("--out FILE is missing")?;
    fs::write(out, &text).with_context(|| format!("cannot write {out}"))?;
    println!("{out}: {} bytes", text.len());
    Ok(())
}
