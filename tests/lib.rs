//! What the examples in the documentation of `larder` run on. The tests are in `it/`, one binary that links the host once.

use std::error::Error;
use std::path::PathBuf;

use larder::config::Config;
use larder::host::Host;
use larder::repository::Repository;
use serde_json::json;

/// Runs an example on every strategy: the same code, on a store that holds a template and two requests. It must end well.
///
/// `cargo xtask test` builds the plugins and says where they are.
pub fn on_every_strategy(example: impl AsyncFn(Repository) -> Result<(), Box<dyn Error>>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for strategy in ["json", "sql", "dynamodb"] {
        runtime.block_on(async {
            let folder = tempfile::tempdir().expect("a folder");
            let engine = std::env::var("LARDER_TEST_DYNAMODB").expect("`cargo xtask test` starts what examples need");
            // As unlikely to be there already as the folder.
            let prefix = format!("doc{}", folder.path().file_name().expect("a name").display());
            let config = json!({"storage": {
                "strategy": strategy,
                "json_strategy": {"base_path": folder.path().join("data")},
                "sql_strategy": {"type": "sqlite", "name": folder.path().join("data/entities.db")},
                "dynamodb_strategy": {"endpoint_url": engine, "region": "us-east-1", "table_prefix": prefix},
            }, "plugins": {"directory": std::env::var_os("LARDER_TEST_PLUGINS").map(PathBuf::from)}});
            let config = Config::from_value(config, folder.path()).expect("a configuration");
            let host = Host::new(config, None).expect("a host");
            let repository = host.open(None).await.unwrap_or_else(|error| {
                panic!(
                    "{error} ({}): `cargo xtask test` builds what examples need",
                    error.hint.as_deref().unwrap_or_default()
                )
            });
            repository.prepare(false, false).await.expect("a store that can be prepared");
            fill(&repository).await.expect("entities to begin with");
            if let Err(error) = example(repository).await {
                panic!("on {strategy}: {error}");
            }
            assert!(host.close().await.is_empty(), "{strategy} does not close");
        });
    }
}

async fn fill(repository: &Repository) -> larder::error::Result<()> {
    let template = json!({
        "template_id": "small", "name": "Small", "provider_api": "RunInstances", "vm_type": "t3.medium", "max_number": 10,
    });
    repository.save("templates", template.to_string().as_bytes(), larder::model::Expectation::Any).await?;
    for (id, count) in [("req-1", 2), ("req-2", 1)] {
        let request = json!({
            "request_id": id, "template_id": "small", "machine_count": count, "status": "PENDING", "request_type": "acquire",
        });
        repository.save("requests", request.to_string().as_bytes(), larder::model::Expectation::Any).await?;
    }
    Ok(())
}
