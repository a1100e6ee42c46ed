//! From a file in the plugins directory to a checked component: what it wants is read before anything of it runs, and
//! what it says of itself is asked with every capability out of reach.

pub(crate) mod bindings;
pub(crate) mod engine;
pub(crate) mod instance;
pub(crate) mod limits;
pub(crate) mod look;

use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_model::Description;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Store};

use crate::capability;
use crate::error::{Error, Result};
use bindings::{PACKAGE, PACKAGE_VERSION, StrategyPre};
use instance::State;

/// What `describe` may take: it computes nothing.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(5);
/// The largest name, version and schema that are taken from a plugin.
const DESCRIPTION_BYTES_MAX: usize = 1 << 20;

/// A capability that a component asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// One directory.
    Files,
    /// One database.
    Sql,
    /// Tables in DynamoDB.
    Dynamodb,
}

impl Capability {
    /// All that this host can lend.
    pub const ALL: [Capability; 3] = [Capability::Files, Capability::Sql, Capability::Dynamodb];

    /// Its name in the contract and in `grants`.
    pub fn name(self) -> &'static str {
        match self {
            Capability::Files => "files",
            Capability::Sql => "sql",
            Capability::Dynamodb => "dynamodb",
        }
    }

    /// The configuration that would lend it to a store.
    pub fn grant_example(self) -> &'static str {
        match self {
            Capability::Files => r#""grants": {"files": {"directory": "DIRECTORY"}}"#,
            Capability::Sql => r#""grants": {"sql": {"type": "sqlite", "name": "FILE.db"}}"#,
            Capability::Dynamodb => r#""grants": {"dynamodb": {"region": "REGION", "table_prefix": "PREFIX"}}"#,
        }
    }
}

/// A component that implements the contract, compiled and described.
#[derive(Clone)]
pub struct Plugin {
    /// The strategy's name, which is the stem of the file.
    pub name: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// Of the file, in hexadecimal.
    pub sha256: String,
    /// Of the file.
    pub size_bytes: u64,
    /// The capabilities that it imports.
    pub wants: Vec<Capability>,
    /// The WASI interfaces that it imports.
    pub wasi: Vec<String>,
    /// What it says of itself.
    pub description: Description,
    pub(crate) component: Component,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

/// Names of the components in `directory`, sorted: the stems of its `.wasm` files.
pub fn discover(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).map_err(|error| {
        Error::refused(format!("cannot read the plugins directory {}", directory.display()))
            .caused_by(error)
            .hint("name the directory that holds json.wasm and sql.wasm with --plugins, LARDER_PLUGINS or `plugins.directory`")
    })?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_component = path.extension().is_some_and(|extension| extension == "wasm") && path.is_file();
            is_component.then(|| Some(path.file_stem()?.to_str()?.to_owned())).flatten()
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Loads the strategy `name` from `directory`.
pub async fn load(engine: &Engine, directory: &Path, name: &str, component_bytes_max: u64) -> Result<Plugin> {
    let path = directory.join(format!("{name}.wasm"));
    // The name comes from the configuration, and a file name is all that it may be.
    if name.is_empty() || Path::new(name).components().count() != 1 || name.starts_with('.') || !path.is_file() {
        let available = discover(directory)?;
        return Err(Error::refused(format!("there is no plugin `{name}` in {}", directory.display())).hint(
            if available.is_empty() {
                "the directory holds no .wasm file: build the plugins, or name another directory with --plugins".into()
            } else {
                format!("it holds: {}", available.join(", "))
            },
        ));
    }
    let plugin = load_file(engine, &path, component_bytes_max).await?;
    Ok(plugin)
}

/// Loads the component in the file `path`, whose stem must be the strategy's name.
pub async fn load_file(engine: &Engine, path: &Path, component_bytes_max: u64) -> Result<Plugin> {
    let refused = |message: String| Error::refused(format!("plugin {}: {message}", path.display()));
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .ok_or_else(|| refused("its file name is not UTF-8".into()))?
        .to_owned();
    let metadata = std::fs::metadata(path).map_err(|error| {
        refused("cannot be read".into()).caused_by(error).hint("give the component's file, such as plugins/json.wasm")
    })?;
    if metadata.len() > component_bytes_max {
        return Err(refused(format!("is larger than {component_bytes_max} bytes"))
            .hint("raise `plugins.component_mb_max` if you trust it"));
    }
    let bytes = std::fs::read(path).map_err(|error| refused("cannot be read".into()).caused_by(error))?;
    let (component, wants, wasi) =
        examine(engine, &bytes).map_err(|error| Error { message: refused(error.message).message, ..error })?;
    let description = describe(engine, &component, &name)
        .await
        .map_err(|error| error.context(refused("cannot be described".into()).message))?;
    if description.strategy != name {
        return Err(refused(format!("says that it is the strategy `{}`", instance::one_line(&description.strategy)))
            .hint(format!(
                "the file's name is the strategy's name: rename it to {}.wasm",
                instance::one_line(&description.strategy)
            )));
    }
    Ok(Plugin {
        name,
        path: path.to_owned(),
        sha256: hex(&Sha256::digest(&bytes)),
        size_bytes: bytes.len() as u64,
        wants,
        wasi,
        description,
        component,
    })
}

/// A component and what it imports, from bytes that may be anything. Nothing of it runs.
pub(crate) fn examine(engine: &Engine, bytes: &[u8]) -> Result<(Component, Vec<Capability>, Vec<String>)> {
    check_is_component(bytes).map_err(|(message, hint)| Error::refused(message).hint(hint))?;
    // Never `deserialize`: a precompiled file is native code.
    let component = Component::from_binary(engine, bytes).map_err(|error| {
        Error::refused("is not a valid component")
            .caused_by(instance::one_line(&error.to_string()))
            .hint("the file may be damaged or only half copied: build or copy it again")
    })?;
    let (wants, wasi) =
        check_interfaces(engine, &component).map_err(|(message, hint)| Error::refused(message).hint(hint))?;
    Ok((component, wants, wasi))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A component whose functions do not have the types that they have here.
#[derive(Debug)]
struct OtherContract(String);

impl std::fmt::Display for OtherContract {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OtherContract {}

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

/// The capabilities and the WASI interfaces that the component imports, or why it cannot be used.
fn check_interfaces(engine: &Engine, component: &Component) -> Result<(Vec<Capability>, Vec<String>), Refusal<String>> {
    let ty = component.component_type();
    let repository = format!("{PACKAGE}/repository@{PACKAGE_VERSION}");
    let mut other_version = None;
    let mut implements = false;
    for (name, _) in ty.exports(engine) {
        implements |= name == repository;
        if name.starts_with(&format!("{PACKAGE}/repository@")) {
            other_version = Some(name.to_owned());
        }
    }
    if !implements {
        return Err(match other_version {
            Some(name) => (
                format!("implements {}, and this host speaks {repository}", instance::one_line(&name)),
                "build it against the contract of this version of larder",
            ),
            None => (
                format!("is a component of another world: it does not export {repository}"),
                "a strategy exports the repository interface of larder's wit/ folder",
            ),
        });
    }
    let (mut wants, mut wasi) = (Vec::new(), Vec::new());
    for (name, _) in ty.imports(engine) {
        let capability =
            Capability::ALL.into_iter().find(|it| name == format!("{PACKAGE}/{}@{PACKAGE_VERSION}", it.name()));
        match capability {
            Some(capability) => wants.push(capability),
            // Types alone: nothing can be called.
            None if name == format!("{PACKAGE}/types@{PACKAGE_VERSION}") => {}
            None if name.starts_with("wasi:") => wasi.push(name.to_owned()),
            None => {
                return Err((
                    format!("imports {}, which this host does not have", instance::one_line(name)),
                    "it was built for another host, or for another version of larder",
                ));
            }
        }
    }
    wants.sort();
    Ok((wants, wasi))
}

/// Every capability is linked and none is lent, so that one that is used before a store is opened traps.
async fn describe(engine: &Engine, component: &Component, name: &str) -> Result<Description> {
    let pre = capability::link_interfaces(engine, &Capability::ALL)
        .and_then(|linker| StrategyPre::new(linker.instantiate_pre(component)?))
        .map_err(|error| {
            Error::refused("its imports do not link").caused_by(instance::one_line(&format!("{error:#}")))
        })?;
    let mut store = Store::new(engine, State::new(instance::DESCRIBE_MEMORY_BYTES_MAX, None, None, None));
    instance::arm(&mut store);
    let described = tokio::time::timeout(DESCRIBE_DEADLINE, async {
        match pre.instantiate_async(&mut store).await {
            Ok(strategy) => Ok(strategy.larder_storage_repository().call_describe(&mut store).await?),
            Err(error) if error.is::<wasmtime::Trap>() => Err(error),
            // Its functions have other types than this host's, whatever version they claim.
            Err(error) => Err(wasmtime::Error::from(OtherContract(instance::one_line(&format!("{error:#}"))))),
        }
    })
    .await;
    let description = match described {
        Ok(Ok(description)) => description,
        Ok(Err(error)) if error.is::<OtherContract>() => {
            return Err(Error::refused(format!("it was built for another revision of the contract {PACKAGE_VERSION}"))
                .caused_by(error)
                .hint("build it again from the sources of this version of larder"));
        }
        Ok(Err(error)) => return Err(instance::trapped(name, "describe", &error, store.data())),
        Err(_) => return Err(instance::overran(name, "describe", DESCRIBE_DEADLINE)),
    };
    if description.strategy.len() + description.version.len() + description.config_schema.len() > DESCRIPTION_BYTES_MAX
    {
        return Err(Error::refused(format!("its description is larger than {DESCRIPTION_BYTES_MAX} bytes")));
    }
    Ok(bindings::description_from(description))
}
