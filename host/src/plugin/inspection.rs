//! A component as it can be read: what it imports and exports, how large it is, and whether this host would load it.
//! Nothing of it is compiled or run for that, so it is safe to look at a stranger's.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmparser::{
    BinaryReaderError, CanonicalFunction, ComponentTypeRef, MemoryType, Parser, Payload, TypeRef, Validator,
    WasmFeatures,
};

use super::bindings::{PACKAGE, PACKAGE_VERSION};
use super::{Capability, ComponentBounds};
use crate::error::{Error, Result};
use crate::text::one_line;

/// Pages of a memory are of this size, unless it says otherwise.
const PAGE_BITS: u32 = 16;
const MIB: u64 = 1 << 20;

/// What can be told of a component by reading it.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The strategy's name, which is the stem of the file.
    pub name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// Of the file, in hexadecimal.
    pub sha256: String,
    /// Of the file.
    pub size_bytes: u64,
    /// What it is made of.
    pub content: Content,
    /// The version of the contract that it implements, none where it is a component of another world.
    pub contract: Option<String>,
    /// The capabilities that it imports: it is loaded for a store that was granted all of them.
    pub wants: Vec<Capability>,
    /// The capabilities that it may use where they were granted, and is loaded without: sockets, which standard libraries
    /// import whether they are used or not.
    pub may_use: Vec<Capability>,
    /// Why this host would not load it, if it would not.
    pub refusal: Option<Error>,
}

/// What a component is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The names of its imports, with their versions, sorted. Types alone are left out.
    pub imports: Vec<String>,
    /// The names of its exports, with their versions, sorted.
    pub exports: Vec<String>,
    /// Core modules in it, whatever component of it they are in.
    pub modules: u64,
    /// Functions that the modules define.
    pub functions: u64,
    /// Tables that the modules define.
    pub tables: u64,
    /// Memories that the modules define, or import from beyond the component.
    pub memories: Vec<Memory>,
    /// Whether it would start threads.
    pub starts_threads: bool,
}

/// A linear memory of a core module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that it begins with.
    pub initial_bytes: u64,
    /// Bytes that it may grow to, none where that is as far as its addresses reach.
    pub max_bytes: Option<u64>,
    /// Whether threads share it.
    pub is_shared: bool,
    /// Whether its addresses have 64 bits.
    pub is_64_bit: bool,
}

impl Memory {
    fn new(ty: &MemoryType) -> Memory {
        let bytes = |pages: u64| u128::from(pages) << ty.page_size_log2.unwrap_or(PAGE_BITS).min(PAGE_BITS);
        let bytes = |pages: u64| u64::try_from(bytes(pages)).unwrap_or(u64::MAX);
        Memory {
            initial_bytes: bytes(ty.initial),
            max_bytes: ty.maximum.map(bytes),
            is_shared: ty.shared,
            is_64_bit: ty.memory64,
        }
    }
}

impl Content {
    /// Reads a component, with the components and modules in it.
    fn read(bytes: &[u8]) -> Result<Content, BinaryReaderError> {
        let mut content = Content::default();
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } => {
                    content.modules += 1;
                    depth += 1;
                }
                Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::FunctionSection(functions) => content.functions += u64::from(functions.count()),
                Payload::TableSection(tables) => content.tables += u64::from(tables.count()),
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        content.memories.push(Memory::new(&memory?));
                    }
                }
                // A memory that modules of one component share is defined in one of them, and counts there. What kind it
                // is must be the same on both sides.
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        if let TypeRef::Memory(ty) = import?.ty
                            && (ty.shared || ty.memory64)
                        {
                            content.memories.push(Memory { initial_bytes: 0, ..Memory::new(&ty) });
                        }
                    }
                }
                Payload::ComponentCanonicalSection(functions) => {
                    for function in functions {
                        content.starts_threads |= matches!(
                            function?,
                            CanonicalFunction::ThreadSpawnRef { .. }
                                | CanonicalFunction::ThreadSpawnIndirect { .. }
                                | CanonicalFunction::ThreadNewIndirect { .. }
                        );
                    }
                }
                Payload::ComponentImportSection(imports) if depth == 0 => {
                    for import in imports {
                        let import = import?;
                        // Nothing of a type can be called.
                        if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                            content.imports.push(full_name(import.name.name, import.name.version_suffix));
                        }
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 0 => {
                    for export in exports {
                        let name = export?.name;
                        content.exports.push(full_name(name.name, name.version_suffix));
                    }
                }
                _ => {}
            }
        }
        content.imports.sort();
        content.exports.sort();
        Ok(content)
    }

    /// Bytes that all of its memories begin with.
    pub fn initial_memory_bytes(&self) -> u64 {
        self.memories.iter().fold(0, |sum: u64, memory| sum.saturating_add(memory.initial_bytes))
    }

    /// Bytes that all of them may grow to, none where one has no bound.
    pub fn max_memory_bytes(&self) -> Option<u64> {
        self.memories.iter().try_fold(0, |sum: u64, memory| Some(sum.saturating_add(memory.max_bytes?)))
    }
}

fn full_name(name: &str, version_suffix: Option<&str>) -> String {
    format!("{name}{}", version_suffix.unwrap_or_default())
}

/// A component that was read: its bytes, and what they say.
pub(super) struct Read {
    pub(super) inspection: Inspection,
    pub(super) bytes: Vec<u8>,
}

/// Reads the component in the file `path`.
///
/// # Errors
/// Where there is none. One that would not be loaded is no error here.
pub(super) fn read(path: &Path, bounds: &ComponentBounds) -> Result<Read> {
    of(path, read_file(path, bounds.component_bytes_max)?, bounds)
}

/// Reads a component that a file has.
pub(super) fn of(path: &Path, bytes: Vec<u8>, bounds: &ComponentBounds) -> Result<Read> {
    let refused = |message: &str| Error::refused(format!("plugin {}: {message}", path.display()));
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .ok_or_else(|| refused("its file name is not UTF-8"))?
        .to_owned();
    check_is_component(&bytes).map_err(|(message, hint)| refused(message).hint(hint))?;
    let content = Content::read(&bytes).map_err(|error| invalid(path, error))?;
    let prefix = format!("{PACKAGE}/repository@");
    let contract = content.exports.iter().find_map(|name| Some(one_line(name.strip_prefix(&prefix)?)));
    let mut inspection = Inspection {
        name,
        path: path.to_owned(),
        sha256: super::hex(&Sha256::digest(&bytes)),
        size_bytes: bytes.len() as u64,
        contract,
        wants: Vec::new(),
        may_use: Vec::new(),
        refusal: None,
        content,
    };
    let checked = inspection.check_exports().and_then(|()| inspection.check_imports());
    let checked = checked.and_then(|()| inspection.check_bounds(bounds));
    inspection.refusal = checked.err().map(|(message, hint)| refused(&message).hint(hint));
    Ok(Read { inspection, bytes })
}

/// The file that is to be a component. What is no regular file is not waited for.
pub(super) fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let refused = |message: &str| Error::refused(format!("plugin {}: {message}", path.display()));
    let unreadable = |error: io::Error| {
        refused("cannot be read").caused_by(error).hint("give the component's file, such as plugins/json.wasm")
    };
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(refused("is not a file").hint("give the component's file, such as plugins/json.wasm"));
    }
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unreadable)?.take(bytes_max + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        return Err(refused(&format!("is larger than {bytes_max} bytes"))
            .hint("raise `plugins.component_mb_max` if you trust it"));
    }
    Ok(bytes)
}

/// Whether every byte of it is WebAssembly as it should be. What this host does not run, such as threads, is valid here:
/// it is refused with a reason of its own.
pub(super) fn validate(path: &Path, bytes: &[u8]) -> Result<()> {
    let validated = Validator::new_with_features(WasmFeatures::all()).validate_all(bytes);
    validated.map(drop).map_err(|error| invalid(path, error))
}

/// The error for what is no component as a whole.
pub(super) fn invalid(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::refused(format!("plugin {}: is not a valid component", path.display()))
        .caused_by(one_line(&cause.to_string()))
        .hint("the file may be damaged or only half copied: build or copy it again")
}

type Refusal<M> = (M, &'static str);

/// A component and a core module begin alike and differ in the layer, the second half of the version word.
fn check_is_component(bytes: &[u8]) -> Result<(), Refusal<&'static str>> {
    match bytes {
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Err((
            "is a core WebAssembly module, not a component",
            "build it for the target wasm32-wasip2, or make a component of it with `wasm-tools component new`",
        )),
        _ => Err(("is not WebAssembly", "only components (.wasm, binary format) belong in the plugins directory")),
    }
}

impl Inspection {
    fn check_exports(&self) -> Result<(), Refusal<String>> {
        match self.contract.as_deref() {
            Some(PACKAGE_VERSION) => Ok(()),
            Some(other) => Err((
                format!(
                    "implements {PACKAGE}/repository@{other}, and this host speaks {PACKAGE}/repository@{PACKAGE_VERSION}"
                ),
                "build it against the contract of this version of larder",
            )),
            None => Err((
                format!("is a component of another world: it does not export {PACKAGE}/repository@{PACKAGE_VERSION}"),
                "a strategy exports the repository interface of larder's wit/ folder",
            )),
        }
    }

    /// Sorts the imports into what must be granted, what may be, and what anybody has.
    fn check_imports(&mut self) -> Result<(), Refusal<String>> {
        let own = |capability: &Capability| format!("{PACKAGE}/{}@{PACKAGE_VERSION}", capability.name());
        let mut unknown = None;
        for name in &self.content.imports {
            if let Some(capability) = Capability::ALL.into_iter().find(|it| *name == own(it)) {
                self.wants.push(capability);
            } else if ["wasi:http/outgoing-handler@0.2.", "wasi:http/types@0.2."].iter().any(|it| name.starts_with(it))
            {
                self.wants.push(Capability::Http);
            } else if ["wasi:sockets/tcp@", "wasi:sockets/ip-name-lookup@"].iter().any(|it| name.starts_with(it)) {
                self.may_use.push(Capability::Tcp);
            // Of HTTP there is the sending side alone.
            } else if *name != format!("{PACKAGE}/types@{PACKAGE_VERSION}")
                && (!name.starts_with("wasi:") || name.starts_with("wasi:http/"))
            {
                unknown = unknown.or(Some(name));
            }
        }
        self.wants.sort();
        self.wants.dedup();
        self.may_use.dedup();
        match unknown {
            None => Ok(()),
            Some(name) => Err((
                format!("imports {}, which this host does not have", one_line(name)),
                "it was built for another host, or for another version of larder",
            )),
        }
    }

    /// What can be seen to go too far before it is compiled.
    fn check_bounds(&self, bounds: &ComponentBounds) -> Result<(), Refusal<String>> {
        let content = &self.content;
        if content.functions > bounds.functions_max {
            return Err((
                format!("has {} functions, and may have {}", content.functions, bounds.functions_max),
                "raise `plugins.functions_max` if you trust it: each of them is compiled",
            ));
        }
        if content.starts_threads || content.memories.iter().any(|memory| memory.is_shared) {
            return Err((
                "wants threads or a memory that they share".into(),
                "an instance is one thread: build it without threads",
            ));
        }
        if content.memories.iter().any(|memory| memory.is_64_bit) {
            return Err(("has a memory of 64-bit addresses".into(), "build it for the target wasm32-wasip2"));
        }
        let initial = content.initial_memory_bytes();
        if initial > bounds.memory_bytes_max {
            return Err((
                format!(
                    "begins with {} MiB of memory, and an instance may have {} MiB",
                    initial.div_ceil(MIB),
                    bounds.memory_bytes_max / MIB
                ),
                "raise `plugins.memory_mb_max` if you trust it",
            ));
        }
        Ok(())
    }
}
