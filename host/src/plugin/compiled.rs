//! Compiled components on the disk, by the content of what they were compiled from: each is a file that is mapped and not read,
//! so that a command begins within milliseconds. What is there is run without another look, which is why no store is
//! granted this folder.

use std::fs::{self, DirBuilder, DirEntry, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;
use wasmtime::component::Component;
use wasmtime::{Engine, Result};

/// Of all that is kept: a few dozen components.
const BYTES_MAX: u64 = 512 << 20;

/// The component that these bytes are, which have this SHA-256. It is compiled where no such one is kept.
pub(super) fn component(engine: &Engine, folder: &Path, bytes: &[u8], sha256: &str) -> Result<Component> {
    // The same bytes are other code for another version of wasmtime and for other settings.
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let path = folder.join(format!("{sha256}-{:016x}", hasher.finish()));
    if let Some(component) = mapped(engine, &path) {
        return Ok(component);
    }
    let compiled = engine.precompile_component(bytes)?;
    // Without a place for it everything works, only slower: a read-only home is no reason to fail.
    if keep(folder, &path, &compiled).is_ok()
        && let Some(component) = mapped(engine, &path)
    {
        return Ok(component);
    }
    #[allow(unsafe_code)]
    // SAFETY: these are the bytes that this engine made just now.
    unsafe {
        Component::deserialize(engine, &compiled)
    }
}

/// None where there is none, or it is of no use: a damaged one, for example. That it is of this version is said by its name.
fn mapped(engine: &Engine, path: &Path) -> Option<Component> {
    // Most often it is there.
    if !path.is_file() {
        return None;
    }
    #[allow(unsafe_code)]
    // SAFETY: what is in this folder is taken for what this module wrote: whole files, that an engine made, which are replaced
    // and removed, and never changed. `docs/security.md` says of whom this is believed.
    unsafe {
        // Where nothing that is mapped may be run, what it holds can be run all the same.
        Component::deserialize_file(engine, path).or_else(|_| Component::deserialize(engine, fs::read(path)?)).ok()
    }
}

/// Puts it there as a whole, whatever happens meanwhile, and removes what was written longest ago where all becomes too much.
fn keep(folder: &Path, path: &Path, compiled: &[u8]) -> io::Result<()> {
    make(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(compiled)?;
    // A crash must not leave the name without the content.
    file.as_file().sync_all()?;
    file.persist(path)?;
    make_room(folder, path);
    Ok(())
}

/// Others may do the same at the same time: what cannot be looked at or removed stays.
fn make_room(folder: &Path, written: &Path) {
    let file = |entry: io::Result<DirEntry>| {
        let path = entry.ok()?.path();
        let metadata = path.metadata().ok().filter(Metadata::is_file)?;
        Some((metadata.modified().ok()?, metadata.len(), path))
    };
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().filter_map(file).collect();
    files.sort_unstable();
    let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, size, path) in files {
        if bytes > BYTES_MAX && path != written && fs::remove_file(path).is_ok() {
            bytes -= size;
        }
    }
}

/// Makes the folder, for this user alone.
fn make(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// The smallest component.
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    fn only_file(folder: &Path) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        file.clone()
    }

    #[test]
    fn what_was_compiled_once_is_not_compiled_again() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("larder/compiled");
        let engine = Engine::default();
        component(&engine, &folder, COMPONENT, "00").unwrap();
        let kept = only_file(&folder);
        // Were it compiled, this would be no component.
        component(&engine, &folder, b"nothing", "00").unwrap();
        assert!(component(&engine, &folder, b"nothing", "01").is_err());
        assert_eq!(only_file(&folder), kept);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn what_is_of_no_use_is_made_again() {
        let place = tempfile::tempdir().unwrap();
        let engine = Engine::default();
        component(&engine, place.path(), COMPONENT, "00").unwrap();
        let kept = only_file(place.path());
        let whole = fs::read(&kept).unwrap();
        for damaged in [&b""[..], b"\x7fELF", &whole[..whole.len() / 2]] {
            fs::write(&kept, damaged).unwrap();
            component(&engine, place.path(), COMPONENT, "00").unwrap();
            assert_eq!(fs::read(only_file(place.path())).unwrap(), whole);
        }
    }

    #[test]
    fn without_a_place_it_is_compiled_each_time() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        component(&Engine::default(), &file.join("compiled"), COMPONENT, "00").unwrap();
    }

    #[test]
    fn what_was_written_longest_ago_is_removed_where_all_is_too_much() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, age: u64| {
            let file = File::create(place.path().join(name)).unwrap();
            // It takes no room on the disk.
            file.set_len(BYTES_MAX / 2).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        file("old", 20);
        file("older", 30);
        file("new", 10);
        component(&Engine::default(), place.path(), COMPONENT, "00").unwrap();
        let is_there = |name: &str| place.path().join(name).exists();
        assert_eq!((is_there("older"), is_there("old"), is_there("new")), (false, false, true));
    }
}
