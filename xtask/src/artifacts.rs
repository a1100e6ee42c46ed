//! What is built and where it lands. Cargo builds into its target folder, which clones may share; what the other
//! commands use is then copied into `target` of the workspace, so that each clone reads its own.
//!
//! Plugins and guests are built for another target than the host, so neither rebuilds the other.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, ensure_wasm_target, root, run, target_directory};

/// What plugins are compiled for.
pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// A crate that becomes a WebAssembly component.
#[derive(Debug)]
pub(crate) struct Component {
    /// The crate's folder: the strategy's or the guest's name, and the stem of the file.
    pub(crate) name: String,
    /// The package.
    pub(crate) package: String,
}

/// The components in the folders of `directory`, of the workspace. A library among them is none.
pub(crate) fn components(directory: &str) -> Result<Vec<Component>> {
    let directory = root().join(directory);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut components = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let folder = entry?.path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        if !manifest.contains("\"cdylib\"") {
            continue;
        }
        let package = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let package = package.with_context(|| format!("{} has no name", folder.display()))?.to_owned();
        let name = folder.file_name().expect("a listed folder has a name").to_string_lossy().into_owned();
        components.push(Component { name, package });
    }
    components.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(components)
}

/// The plugins: `json`, `sql` and so on.
pub(crate) fn plugins() -> Result<Vec<Component>> {
    components("plugins")
}

/// The components that tests need and nobody else.
pub(crate) fn guests() -> Result<Vec<Component>> {
    components("tests/guests")
}

/// Builds the plugins and returns the folder that they are in.
pub(crate) fn build_plugins() -> Result<PathBuf> {
    let plugins = plugins()?;
    build(&plugins)?;
    install(&plugins, &root().join("target/plugins"))
}

/// Builds the plugins and the tests' guests and returns the folders that they are in.
pub(crate) fn build_plugins_and_guests() -> Result<(PathBuf, PathBuf)> {
    let (plugins, guests) = (plugins()?, guests()?);
    build(plugins.iter().chain(&guests))?;
    Ok((install(&plugins, &root().join("target/plugins"))?, install(&guests, &root().join("target/guests"))?))
}

/// Builds the host alone and returns the program.
pub(crate) fn build_host(release: bool) -> Result<PathBuf> {
    run(cargo()?.args(["build", "--package", "larder"]).args(release.then_some("--release")))?;
    host(release)
}

/// The host program that the last build of this profile left.
pub(crate) fn host(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let program = target_directory()?.join(profile).join(format!("larder{}", std::env::consts::EXE_SUFFIX));
    if !program.is_file() {
        bail!("the build left no {}", program.display());
    }
    Ok(program)
}

/// An empty folder where there may have been one with something in it.
pub(crate) fn fresh_directory(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// Copies a file.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Builds each as a component and nothing else: a library beside it would keep the linker from optimizing the whole.
fn build<'a>(components: impl IntoIterator<Item = &'a Component>) -> Result<()> {
    ensure_wasm_target()?;
    for component in components {
        let package = ["--package", &component.package, "--lib", "--crate-type", "cdylib"];
        run(cargo()?.args(["rustc", "--release", "--target", WASM_TARGET]).args(package))?;
    }
    Ok(())
}

/// Copies what was built as `NAME.wasm`. What was there before goes: a plugin that is no longer built is no plugin.
fn install(components: &[Component], directory: &Path) -> Result<PathBuf> {
    let built = target_directory()?.join(WASM_TARGET).join("release");
    fresh_directory(directory)?;
    for Component { name, package } in components {
        let file = built.join(package.replace('-', "_")).with_extension("wasm");
        copy(&file, &directory.join(name).with_extension("wasm"))?;
    }
    Ok(directory.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_are_found_and_their_library_is_not_among_them() {
        let names: Vec<String> = plugins().unwrap().into_iter().map(|plugin| plugin.name).collect();
        assert!(names.iter().any(|name| name == "json") && names.iter().any(|name| name == "sql"), "{names:?}");
        assert!(!names.iter().any(|name| name == "guest"));
    }
}
