//! Programs that the project installs for itself, the first time that a command needs them: into a folder that outlives
//! the clone, because some are built for minutes. Each is pinned to a version.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, is_installed, output, run};

/// A program from crates.io.
pub(crate) struct Tool {
    pub(crate) package: &'static str,
    pub(crate) program: &'static str,
    pub(crate) version: &'static str,
    /// More of `cargo install`.
    pub(crate) arguments: &'static [&'static str],
}

/// Where they are kept.
pub(crate) fn tools_directory() -> Result<PathBuf> {
    tools_in(env::var_os("XDG_CACHE_HOME").map(PathBuf::from), env::home_dir())
}

fn tools_in(cache: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    // By its specification the variable counts only where it holds an absolute path.
    let cache = cache.filter(|cache| cache.is_absolute()).or_else(|| Some(home?.join(".cache")));
    Ok(cache.context("there is no place for tools: set HOME or XDG_CACHE_HOME")?.join("larder/tools"))
}

/// The tool's program in this folder, which is built where it is not there in its version.
pub(crate) fn ensure_installed(tool: &Tool, tools: &Path) -> Result<PathBuf> {
    let Tool { package, version, .. } = tool;
    let program = tools.join("bin").join(format!("{}{}", tool.program, env::consts::EXE_SUFFIX));
    if has_version(&program, tool, tools)? {
        return Ok(program);
    }
    let build = tools.join(format!("build-{package}"));
    let mut install = cargo()?;
    install.args(["install", "--locked", "--force", "--version", version, "--root"]).arg(tools).args(tool.arguments);
    install.env("CARGO_PROFILE_DEV_DEBUG", "false").env("CARGO_TARGET_DIR", &build);
    let installed = run(install.arg(package));
    if build.exists() {
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    }
    installed.with_context(|| {
        format!(
            "{package} {version} is not in {} and could not be installed; the first time this needs crates.io",
            tools.display()
        )
    })?;
    Ok(program)
}

/// Asks cargo, since a program may call itself by another version than its package's.
fn has_version(program: &Path, tool: &Tool, tools: &Path) -> Result<bool> {
    let listed = output(cargo()?.args(["install", "--list", "--root"]).arg(tools)).unwrap_or_default();
    let wanted = format!("{} v{}:", tool.package, tool.version);
    Ok(program.is_file() && listed.lines().any(|line| line == wanted))
}

/// A program from PyPI, in a virtual environment of its own in this folder; `extras` are in brackets, if any.
pub(crate) fn ensure_from_pypi(package: &str, extras: &str, version: &str, program: &str) -> Result<PathBuf> {
    let environment = tools_directory()?.join(format!("{package}-{version}"));
    let path = environment.join("bin").join(program);
    // Written last: an environment that was left half made is made again.
    let complete = environment.join("complete");
    if complete.exists() {
        return Ok(path);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let wanted = format!("{package}{extras}=={version}");
    run(Command::new(environment.join("bin/python")).args(["-m", "pip", "install", "--quiet", &wanted]))?;
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(path)
}

/// A program from the machine's package of the same name, which is installed where it is missing and that is possible.
pub(crate) fn ensure_package(package: &str) -> Result<()> {
    if is_installed(package) {
        return Ok(());
    }
    if !can_install_packages() {
        bail!(
            "{package} is needed and was not found: install it, on Debian and Ubuntu with `apt-get install {package}`"
        );
    }
    install_package(package).with_context(|| format!("{package} is needed, and could not be installed"))
}

/// Whether this machine's packages are Debian's and this user may install them.
pub(crate) fn can_install_packages() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") && is_installed("apt-get")
}

/// Installs a package of the machine's.
pub(crate) fn install_package(package: &str) -> Result<()> {
    let apt = |arguments: &[&str]| {
        run(Command::new("apt-get").arg("--quiet").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install = || apt(&["install", "--yes", "--no-install-recommends", package]);
    // What is known of packages may be old, or nothing at all on a fresh machine.
    install().or_else(|_| apt(&["update"]).and_then(|()| install()))
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
