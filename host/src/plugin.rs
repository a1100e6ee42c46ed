//! From a file in the plugins directory to a checked component: what it wants is read before anything of it runs, and
//! what it says of itself is asked with every capability out of reach.

pub(crate) mod bindings;
mod compiled;
pub(crate) mod engine;
pub mod inspection;
pub(crate) mod instance;
pub(crate) mod limits;
pub(crate) mod look;
pub mod pins;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_model::Description;
use wasmtime::Store;
use wasmtime::component::Component;

use crate::capability::{self, Lent};
use crate::config::PluginSettings;
use crate::error::{Error, Result};
use crate::text::one_line;
use bindings::{PACKAGE_VERSION, StrategyPre};
use engine::Engine;
pub use inspection::Inspection;
use instance::State;
use limits::Limits;
use pins::Pins;

/// What `describe` may take: it computes nothing.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(5);
/// The largest name, version and schema that are taken from a plugin.
const DESCRIPTION_BYTES_MAX: usize = 1 << 20;

/// What a component may be, before anything of it is compiled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComponentBounds {
    component_bytes_max: u64,
    functions_max: u64,
    memory_bytes_max: u64,
}

impl ComponentBounds {
    pub(crate) fn new(settings: &PluginSettings) -> ComponentBounds {
        ComponentBounds {
            component_bytes_max: settings.component_bytes_max,
            functions_max: settings.functions_max,
            memory_bytes_max: settings.memory_bytes_max as u64,
        }
    }
}

/// A capability that a component asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// One directory.
    Files,
    /// One database.
    Sql,
    /// Tables in DynamoDB.
    Dynamodb,
    /// TCP connections to named hosts.
    Tcp,
    /// HTTP requests to named origins.
    Http,
}

impl Capability {
    /// All that this host can lend.
    pub const ALL: [Capability; 5] =
        [Capability::Files, Capability::Sql, Capability::Dynamodb, Capability::Tcp, Capability::Http];

    /// Its name in `grants`, and in the contract where it is of the contract.
    pub fn name(self) -> &'static str {
        match self {
            Capability::Files => "files",
            Capability::Sql => "sql",
            Capability::Dynamodb => "dynamodb",
            Capability::Tcp => "tcp",
            Capability::Http => "http",
        }
    }

    /// The configuration that would lend it to a store.
    pub fn grant_example(self) -> &'static str {
        match self {
            Capability::Files => r#""grants": {"files": {"directory": "DIRECTORY"}}"#,
            Capability::Sql => r#""grants": {"sql": {"type": "sqlite", "name": "FILE.db"}}"#,
            Capability::Dynamodb => r#""grants": {"dynamodb": {"region": "REGION", "table_prefix": "PREFIX"}}"#,
            Capability::Tcp => r#""grants": {"tcp": {"allow": ["HOST:PORT"]}}"#,
            Capability::Http => r#""grants": {"http": {"allow": ["https://HOST"]}}"#,
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
    /// The capabilities that it may use where they were granted.
    pub may_use: Vec<Capability>,
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

/// Loads the strategy `name` from `directory`. Where plugins are pinned, it must be the one that is.
pub(crate) async fn load(
    engine: &Engine,
    directory: &Path,
    name: &str,
    bounds: &ComponentBounds,
    pins: Option<&Pins>,
) -> Result<Plugin> {
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
    load_file(engine, &path, bounds, pins).await
}

/// Reads the component in the file `path`, and every byte of it, and runs nothing.
pub(crate) fn inspect(path: &Path, bounds: &ComponentBounds) -> Result<Inspection> {
    let read = inspection::read(path, bounds)?;
    inspection::validate(path, &read.bytes)?;
    Ok(read.inspection)
}

/// Loads the component in the file `path`, whose stem must be the strategy's name.
pub(crate) async fn load_file(
    engine: &Engine,
    path: &Path,
    bounds: &ComponentBounds,
    pins: Option<&Pins>,
) -> Result<Plugin> {
    let refused = |message: String| Error::refused(format!("plugin {}: {message}", path.display()));
    let inspection::Read { inspection, bytes } = inspection::read(path, bounds)?;
    if let Some(pins) = pins {
        pins.check(&inspection)?;
    }
    if let Some(refusal) = inspection.refusal {
        return Err(refusal);
    }
    let component = engine.component(&bytes, &inspection.sha256).map_err(|error| inspection::invalid(path, error))?;
    let name = inspection.name;
    let description = describe(engine, &component, &name)
        .await
        .map_err(|error| error.context(refused("cannot be described".into()).message))?;
    if description.strategy != name {
        return Err(refused(format!("says that it is the strategy `{}`", one_line(&description.strategy))).hint(
            format!("the file's name is the strategy's name: rename it to {}.wasm", one_line(&description.strategy)),
        ));
    }
    Ok(Plugin {
        name,
        path: inspection.path,
        sha256: inspection.sha256,
        size_bytes: inspection.size_bytes,
        wants: inspection.wants,
        may_use: inspection.may_use,
        description,
        component,
    })
}

/// Looks at bytes that may be anything as at a file of the plugins directory, up to where something of it would run.
pub(crate) fn examine(engine: &Engine, bytes: Vec<u8>, settings: &PluginSettings) -> Result<()> {
    let path = Path::new("bytes.wasm");
    let inspection::Read { inspection, bytes } = inspection::of(path, bytes, &ComponentBounds::new(settings))?;
    inspection.refusal.map_or(Ok(()), Err)?;
    engine.component(&bytes, &inspection.sha256).map(drop).map_err(|error| inspection::invalid(path, error))
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

/// Every capability is linked and none is lent, so that one that is used before a store is opened traps.
async fn describe(engine: &Engine, component: &Component, name: &str) -> Result<Description> {
    let pre = capability::link_interfaces(engine, &Capability::ALL)
        .and_then(|linker| StrategyPre::new(linker.instantiate_pre(component)?))
        .map_err(|error| Error::refused("its imports do not link").caused_by(one_line(&format!("{error:#}"))))?;
    let mut store = Store::new(engine, State::new(Limits::DESCRIBING, Arc::default(), &Lent::default()));
    instance::arm(&mut store);
    let described = tokio::time::timeout(DESCRIBE_DEADLINE, async {
        match pre.instantiate_async(&mut store).await {
            Ok(strategy) => Ok(strategy.larder_storage_repository().call_describe(&mut store).await?),
            Err(error) if error.is::<wasmtime::Trap>() || store.data().exceeded(&error).is_some() => Err(error),
            // Its functions have other types than this host's, whatever version they claim.
            Err(error) => Err(wasmtime::Error::from(OtherContract(one_line(&format!("{error:#}"))))),
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
        Ok(Err(error)) => {
            return Err(match store.data().exceeded(&error) {
                Some(exceeded) => Error::refused(format!("it {} before it was asked anything", exceeded.what()))
                    .caused_by(exceeded.why(&Limits::DESCRIBING)),
                None => instance::trapped(name, "describe", &error, store.data()),
            });
        }
        Err(_) => {
            let seconds = DESCRIBE_DEADLINE.as_secs();
            return Err(Error::refused(format!("plugin `{name}` did not end describe within {seconds} s")));
        }
    };
    if description.strategy.len() + description.version.len() + description.config_schema.len() > DESCRIPTION_BYTES_MAX
    {
        return Err(Error::refused(format!("its description is larger than {DESCRIPTION_BYTES_MAX} bytes")));
    }
    Ok(bindings::description_from(description))
}
