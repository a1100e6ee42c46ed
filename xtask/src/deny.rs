//! `cargo deny`: licences, sources and bans of the dependencies, by the policy in `deny.toml`. The tool is built from
//! crates.io the first time, into a folder that outlives the clone, because it takes longer than all other checks.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{cargo, output, root, run};

/// Of `cargo-deny`. Pinned, so that the same tree gets the same answer on each machine.
const VERSION: &str = "0.20.2";

/// Holds the dependencies against the policy. Not against the database of advisories, which is not on crates.io.
pub(crate) fn check_dependencies() -> Result<()> {
    let program = ensure_installed(&tools_directory()?)?;
    run(Command::new(program).current_dir(root()).args(["--locked", "check", "bans", "licenses", "sources"]))
}

/// Where the project keeps tools that it installs for itself.
pub(crate) fn tools_directory() -> Result<PathBuf> {
    tools_in(env::var_os("XDG_CACHE_HOME").map(PathBuf::from), env::home_dir())
}

fn tools_in(cache: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    // By its specification the variable counts only where it holds an absolute path.
    let cache = cache.filter(|cache| cache.is_absolute()).or_else(|| Some(home?.join(".cache")));
    Ok(cache.context("there is no place for tools: set HOME or XDG_CACHE_HOME")?.join("larder/tools"))
}

fn ensure_installed(tools: &Path) -> Result<PathBuf> {
    let program = tools.join("bin").join(format!("cargo-deny{}", env::consts::EXE_SUFFIX));
    if is_version(&program) {
        return Ok(program);
    }
    let build = tools.join("build-cargo-deny");
    let mut install = cargo()?;
    install
        .args(["install", "--locked", "--no-default-features", "--force", "--version", VERSION, "--root"])
        .arg(tools);
    // Unoptimized it is built in half the time, and runs a second longer.
    install.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "false").env("CARGO_TARGET_DIR", &build);
    let installed = run(install.arg("cargo-deny"));
    if build.exists() {
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    }
    installed.with_context(|| {
        format!(
            "cargo-deny {VERSION} is not in {} and could not be installed; the first time this needs crates.io",
            tools.display()
        )
    })?;
    Ok(program)
}

fn is_version(program: &Path) -> bool {
    let said = output(Command::new(program).arg("--version"));
    said.is_ok_and(|said| said.trim() == format!("cargo-deny {VERSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_kept_in_the_users_cache() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(tools_in(path("/cache"), path("/home/a")).unwrap(), Path::new("/cache/larder/tools"));
        assert_eq!(tools_in(path("relative"), path("/home/a")).unwrap(), Path::new("/home/a/.cache/larder/tools"));
        assert_eq!(tools_in(None, path("/home/a")).unwrap(), Path::new("/home/a/.cache/larder/tools"));
        assert!(tools_in(None, None).is_err());
    }
}
