//! The contract as wasmtime sees it, generated from `wit/`, and how its types become the model's. Both directions are
//! here and nowhere else; a new member of a WIT type fails to compile until it has its place below.

use larder_model as model;
use model::filter::{Comparison, Node, Scalar};

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "strategy",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "larder:storage/files.lock": crate::capability::files::Lock,
            "larder:storage/files.replacement": crate::capability::files::Replacement,
            "larder:storage/sql.transaction": crate::capability::sql::Transaction,
        },
    });
}

pub(crate) use generated::exports::larder::storage::repository;
pub(crate) use generated::larder::storage::{dynamodb, files, sql, types};
pub(crate) use generated::{Strategy, StrategyPre};

/// The package that components name in their imports and exports, with the version this host speaks.
pub(crate) const PACKAGE: &str = "larder:storage";
/// See [`PACKAGE`].
pub(crate) const PACKAGE_VERSION: &str = "0.1.0";

pub(crate) fn error_from(error: types::Error) -> model::Error {
    use types::ErrorKind as W;
    model::Error {
        kind: match error.kind {
            W::NotFound => model::ErrorKind::NotFound,
            W::AlreadyExists => model::ErrorKind::AlreadyExists,
            W::VersionConflict => model::ErrorKind::VersionConflict,
            W::Rejected => model::ErrorKind::Rejected,
            W::InvalidArgument => model::ErrorKind::InvalidArgument,
            W::Unsupported => model::ErrorKind::Unsupported,
            W::Denied => model::ErrorKind::Denied,
            W::LimitExceeded => model::ErrorKind::LimitExceeded,
            W::Throttled => model::ErrorKind::Throttled,
            W::Timeout => model::ErrorKind::Timeout,
            W::Unavailable => model::ErrorKind::Unavailable,
            W::Corrupt => model::ErrorKind::Corrupt,
            W::Internal => model::ErrorKind::Internal,
            W::Busy => model::ErrorKind::Busy,
        },
        retry: match error.retry {
            types::Retry::Never => model::Retry::Never,
            types::Retry::Safe => model::Retry::Safe,
            types::Retry::UnknownOutcome => model::Retry::UnknownOutcome,
        },
        message: error.message,
        write_index: error.write_index,
        current_version: error.current_version,
    }
}

pub(crate) fn error_into(error: model::Error) -> types::Error {
    use types::ErrorKind as W;
    types::Error {
        kind: match error.kind {
            model::ErrorKind::NotFound => W::NotFound,
            model::ErrorKind::AlreadyExists => W::AlreadyExists,
            model::ErrorKind::VersionConflict => W::VersionConflict,
            model::ErrorKind::Rejected => W::Rejected,
            model::ErrorKind::InvalidArgument => W::InvalidArgument,
            model::ErrorKind::Unsupported => W::Unsupported,
            model::ErrorKind::Denied => W::Denied,
            model::ErrorKind::LimitExceeded => W::LimitExceeded,
            model::ErrorKind::Throttled => W::Throttled,
            model::ErrorKind::Timeout => W::Timeout,
            model::ErrorKind::Unavailable => W::Unavailable,
            model::ErrorKind::Corrupt => W::Corrupt,
            model::ErrorKind::Internal => W::Internal,
            model::ErrorKind::Busy => W::Busy,
        },
        retry: match error.retry {
            model::Retry::Never => types::Retry::Never,
            model::Retry::Safe => types::Retry::Safe,
            model::Retry::UnknownOutcome => types::Retry::UnknownOutcome,
        },
        message: error.message,
        write_index: error.write_index,
        current_version: error.current_version,
    }
}

pub(crate) fn entity_from(entity: types::Entity) -> model::Entity {
    model::Entity { id: entity.id, version: entity.version, body: entity.body }
}

pub(crate) fn entity_into(entity: model::Entity) -> types::Entity {
    types::Entity { id: entity.id, version: entity.version, body: entity.body }
}

fn expectation_into(expect: model::Expectation) -> types::Expectation {
    match expect {
        model::Expectation::Any => types::Expectation::Any,
        model::Expectation::Absent => types::Expectation::Absent,
        model::Expectation::Present => types::Expectation::Present,
        model::Expectation::Version(version) => types::Expectation::Version(version),
    }
}

pub(crate) fn write_into(write: model::Write) -> types::Write {
    match write {
        model::Write::Put(put) => types::Write::Put(types::Put {
            collection: put.collection,
            id: put.id,
            body: put.body,
            expect: expectation_into(put.expect),
        }),
        model::Write::Remove(removal) => types::Write::Remove(types::Removal {
            collection: removal.collection,
            id: removal.id,
            expect: expectation_into(removal.expect),
        }),
    }
}

pub(crate) fn outcome_from(outcome: types::Outcome) -> model::Outcome {
    model::Outcome { version: outcome.version, existed: outcome.existed }
}

fn scalar_into(scalar: Scalar) -> types::Scalar {
    match scalar {
        Scalar::Null => types::Scalar::Null,
        Scalar::Boolean(value) => types::Scalar::Boolean(value),
        Scalar::Number(text) => types::Scalar::Number(text),
        Scalar::Text(text) => types::Scalar::Text(text),
    }
}

fn node_into(node: Node) -> types::FilterNode {
    match node {
        Node::Compare { field, op, value } => types::FilterNode::Compare(types::Condition {
            field,
            op: match op {
                Comparison::Eq => types::Comparison::Eq,
                Comparison::Ne => types::Comparison::Ne,
                Comparison::Lt => types::Comparison::Lt,
                Comparison::Le => types::Comparison::Le,
                Comparison::Gt => types::Comparison::Gt,
                Comparison::Ge => types::Comparison::Ge,
                Comparison::BeginsWith => types::Comparison::BeginsWith,
                Comparison::Contains => types::Comparison::Contains,
            },
            value: scalar_into(value),
        }),
        Node::AnyOf { field, values } => {
            types::FilterNode::AnyOf(types::Membership { field, values: values.into_iter().map(scalar_into).collect() })
        }
        Node::Exists(field) => types::FilterNode::Exists(field),
        Node::All(children) => types::FilterNode::All(children),
        Node::Any(children) => types::FilterNode::Any(children),
        Node::Negate(child) => types::FilterNode::Negate(child),
    }
}

pub(crate) fn filter_into(nodes: Vec<Node>) -> types::Filter {
    nodes.into_iter().map(node_into).collect()
}

pub(crate) fn query_into(query: &model::Query, nodes: &[Node]) -> types::Query {
    types::Query {
        filter: filter_into(nodes.to_vec()),
        order_by: query
            .order_by
            .iter()
            .map(|key| types::SortKey { field: key.field.0.clone(), descending: key.descending })
            .collect(),
        limit: query.limit,
        max_bytes: query.max_bytes,
        index: query.index.clone(),
        cursor: query.cursor.clone(),
    }
}

pub(crate) fn isolation_into(isolation: model::Isolation) -> types::Isolation {
    match isolation {
        model::Isolation::ReadCommitted => types::Isolation::ReadCommitted,
        model::Isolation::RepeatableRead => types::Isolation::RepeatableRead,
        model::Isolation::Serializable => types::Isolation::Serializable,
    }
}

fn isolation_from(isolation: types::Isolation) -> model::Isolation {
    match isolation {
        types::Isolation::ReadCommitted => model::Isolation::ReadCommitted,
        types::Isolation::RepeatableRead => model::Isolation::RepeatableRead,
        types::Isolation::Serializable => model::Isolation::Serializable,
    }
}

pub(crate) fn isolation_from_option(isolation: Option<types::Isolation>) -> Option<model::Isolation> {
    isolation.map(isolation_from)
}

pub(crate) fn collection_into(collection: &model::Collection) -> types::Collection {
    types::Collection {
        name: collection.name.clone(),
        key: collection.key.clone(),
        stamps: types::Stamps {
            version: collection.stamps.version.clone(),
            created: collection.stamps.created.clone(),
            updated: collection.stamps.updated.clone(),
            adds_updated: collection.stamps.adds_updated,
        },
        fields: collection
            .fields
            .iter()
            .map(|field| types::Field {
                name: field.name.clone(),
                ty: match field.ty {
                    model::FieldType::Text => types::FieldType::Text,
                    model::FieldType::Integer => types::FieldType::Integer,
                    model::FieldType::Number => types::FieldType::Number,
                    model::FieldType::Boolean => types::FieldType::Boolean,
                    model::FieldType::Timestamp => types::FieldType::Timestamp,
                    model::FieldType::Json => types::FieldType::Json,
                },
                required: field.required,
                max_length: field.max_length,
            })
            .collect(),
        indexes: collection
            .indexes
            .iter()
            .map(|index| types::Index { name: index.name.clone(), fields: index.fields.clone() })
            .collect(),
        references: collection
            .references
            .iter()
            .map(|reference| types::Reference {
                field: reference.field.clone(),
                collection: reference.collection.clone(),
            })
            .collect(),
    }
}

pub(crate) fn existing_into(existing: model::Existing) -> repository::Existing {
    match existing {
        model::Existing::Fail => repository::Existing::Fail,
        model::Existing::Skip => repository::Existing::Skip,
        model::Existing::Overwrite => repository::Existing::Overwrite,
    }
}

pub(crate) fn description_from(description: repository::Description) -> model::Description {
    use repository::Features;
    model::Description {
        strategy: description.strategy,
        version: description.version,
        features: model::Features {
            atomic_apply: description.features.contains(Features::ATOMIC_APPLY),
            transactions: description.features.contains(Features::TRANSACTIONS),
            deferred_sync: description.features.contains(Features::DEFERRED_SYNC),
            shared_state: description.features.contains(Features::SHARED_STATE),
            needs_prepare: description.features.contains(Features::NEEDS_PREPARE),
        },
        isolations: description.isolations.into_iter().map(isolation_from).collect(),
        max_atomic_writes: description.max_atomic_writes,
        max_entity_bytes: description.max_entity_bytes,
        config_schema: description.config_schema,
    }
}
