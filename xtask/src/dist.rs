//! `cargo xtask dist`: a folder that can be copied to another machine and used there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::artifacts::{build_host, build_plugins, copy, fresh_directory};
use crate::shell::{output, root};

/// Read by people; those that exist are put beside the program.
const DOCUMENTS: &[&str] = &["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "LICENSE"];
const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// Builds and puts `target/dist` together.
pub(crate) fn run() -> Result<()> {
    let plugins = build_plugins()?;
    let program = build_host(true)?;

    let dist = root().join("target/dist");
    fresh_directory(&dist)?;
    fs::create_dir(dist.join("plugins"))?;
    fs::create_dir(dist.join("completions"))?;
    let mut files = vec![program.file_name().expect("a program has a name").to_string_lossy().into_owned()];
    copy(&program, &dist.join(&files[0]))?;
    for entry in fs::read_dir(&plugins)? {
        let name = format!("plugins/{}", entry?.file_name().to_string_lossy());
        copy(&root().join("target").join(&name), &dist.join(&name))?;
        files.push(name);
    }
    for document in DOCUMENTS.iter().filter(|document| root().join(document).exists()) {
        copy(&root().join(document), &dist.join(document))?;
        files.push((*document).to_owned());
    }
    for shell in SHELLS {
        let name = format!("completions/larder.{shell}");
        fs::write(dist.join(&name), output(Command::new(&program).args(["completions", shell]))?)?;
        files.push(name);
    }

    files.sort();
    let sums = files.iter().map(|file| Ok(format!("{}  {file}\n", sha256(&dist.join(file))?)));
    fs::write(dist.join("SHA256SUMS"), sums.collect::<Result<String>>()?)?;
    println!("\n{} is ready:", dist.display());
    for file in files {
        println!("  {file} ({} bytes)", fs::metadata(dist.join(&file))?.len());
    }
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
