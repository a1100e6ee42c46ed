//! Tables of DynamoDB for tests, under a prefix of each test's own, on the engine that `cargo xtask test` starts or on one
//! of the test's own; and what another program sees and does there.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_test_engine::{
    Engine, PROGRAM_VARIABLE, REGION, Refusal, SCALING_URL_VARIABLE, Storage, URL_VARIABLE, call, delete_tables,
};
use serde_json::{Value, json};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the tests with `cargo xtask test`, which starts what they need")
    })
}

/// Where Application Auto Scaling is.
pub fn scaling_url() -> String {
    variable(SCALING_URL_VARIABLE)
}

/// An engine of the test's own, whose tables outlive its process.
pub fn own_engine() -> Engine {
    Engine::start(&PathBuf::from(variable(PROGRAM_VARIABLE)), Storage::File).expect("an engine")
}

/// Tables with a prefix that nobody else uses. Dropped, they are gone.
#[derive(Debug)]
pub struct Tables {
    /// The engine's, also where a store goes through a proxy.
    pub url: String,
    pub prefix: String,
}

impl Tables {
    /// On the engine that all tests share. The word is a part of the tables' names.
    pub fn new(word: &str) -> Tables {
        Tables::on(variable(URL_VARIABLE), word)
    }

    pub fn on(url: String, word: &str) -> Tables {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Tables { url, prefix: format!("it_{}_{number}_{word}", std::process::id()) }
    }

    /// What `dynamodb_strategy` says of them.
    pub fn members(&self) -> String {
        self.members_at(&self.url)
    }

    /// The same at another address, where something stands before the engine.
    pub fn members_at(&self, url: &str) -> String {
        format!(r#""endpoint_url": "{url}", "region": "{REGION}", "table_prefix": "{}""#, self.prefix)
    }

    /// A table's name.
    pub fn name(&self, collection: &str) -> String {
        format!("{}_{collection}", self.prefix)
    }

    /// The collections that have a table.
    pub fn collections(&self) -> Vec<String> {
        let names = larder_test_engine::tables(&self.url);
        let mut names: Vec<String> =
            names.iter().filter_map(|name| Some(name.strip_prefix(&format!("{}_", self.prefix))?.to_owned())).collect();
        names.sort();
        names
    }

    /// An operation on one of the tables, as another program would do it.
    pub fn try_call(&self, operation: &str, collection: &str, mut input: Value) -> Result<Value, Refusal> {
        input["TableName"] = self.name(collection).into();
        call(&self.url, operation, &input)
    }

    /// One that must succeed.
    #[track_caller]
    pub fn call(&self, operation: &str, collection: &str, input: Value) -> Value {
        let answer = self.try_call(operation, collection, input);
        answer.unwrap_or_else(|refusal| panic!("{operation} on {collection}: {refusal}"))
    }

    /// An item in the service's notation; null where there is none.
    pub fn item(&self, collection: &str, id: &str) -> Value {
        let input = json!({"Key": key(collection, id), "ConsistentRead": true});
        self.call("GetItem", collection, input)["Item"].take()
    }

    /// How many items a table holds.
    pub fn count(&self, collection: &str) -> u64 {
        let (mut count, mut start) = (0, Value::Null);
        loop {
            let mut input = json!({"Select": "COUNT", "ConsistentRead": true});
            if start != Value::Null {
                input["ExclusiveStartKey"] = start;
            }
            let mut page = self.call("Scan", collection, input);
            count += page["Count"].as_u64().expect("a count");
            start = page["LastEvaluatedKey"].take();
            if start == Value::Null {
                return count;
            }
        }
    }
}

/// An item's key in the service's notation.
pub fn key(collection: &str, id: &str) -> Value {
    json!({format!("{}_id", collection.strip_suffix('s').expect("a plural")): {"S": id}})
}

impl Drop for Tables {
    fn drop(&mut self) {
        delete_tables(&self.url, &format!("{}_", self.prefix));
    }
}
