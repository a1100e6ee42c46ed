//! The collections: the three that are built in, and what the configuration makes of them.

use larder_model::{Collection, Field, FieldType, Index, Reference, Stamps};
use serde_json::{Map, Value, json};

use super::schema::{key_path, nearest_first};
use super::written::{DeclaredCollection, DeclaredType, Ordered, Stamp};
use crate::error::{Error, Result};

/// PostgreSQL cuts longer names, and two of them could become one.
const NAME_BYTES_MAX: usize = 63;

/// The collections of a host factory, with the fields, lengths and references of their tables, and their indexes. The
/// key is no field: it is text of up to 255 characters in every collection.
pub(super) fn built_in() -> Vec<Collection> {
    use FieldType::{Integer, Json, Text, Timestamp};
    let field = |name: &str, ty, required, max_length| Field { name: name.to_owned(), ty, required, max_length };
    let required = |name: &str, length| field(name, Text, true, Some(length));
    let optional = |name: &str, length| field(name, Text, false, Some(length));
    let count = |name: &str| field(name, Integer, true, None);
    let json = |name: &str| field(name, Json, false, None);
    let time = |name: &str| field(name, Timestamp, false, None);
    let index = |name: &str, fields: &[&str]| Index {
        name: name.to_owned(),
        fields: fields.iter().map(|field| field.to_string()).collect(),
    };
    let reference =
        |field: &str, collection: &str| Reference { field: field.to_owned(), collection: collection.to_owned() };
    let stamps = |adds_updated| Stamps {
        version: "version".to_owned(),
        created: Some("created_at".to_owned()),
        updated: Some("updated_at".to_owned()),
        adds_updated,
    };
    vec![
        Collection {
            name: "templates".to_owned(),
            key: "template_id".to_owned(),
            stamps: stamps(true),
            fields: vec![
                required("name", 255),
                required("provider_api", 50),
                required("vm_type", 50),
                count("max_number"),
                optional("image_id", 255),
                json("subnet_ids"),
                json("security_group_ids"),
                json("attributes"),
                time("created_at"),
                time("updated_at"),
            ],
            indexes: vec![],
            references: vec![],
        },
        Collection {
            name: "requests".to_owned(),
            key: "request_id".to_owned(),
            stamps: stamps(true),
            fields: vec![
                required("template_id", 255),
                count("machine_count"),
                required("status", 50),
                required("request_type", 50),
                time("created_at"),
                time("updated_at"),
                time("completed_at"),
                json("tags"),
                json("metadata"),
            ],
            indexes: vec![
                index("status", &["status", "created_at"]),
                index("template_id-created_at-index", &["template_id", "created_at"]),
            ],
            references: vec![reference("template_id", "templates")],
        },
        Collection {
            name: "machines".to_owned(),
            key: "machine_id".to_owned(),
            // The table has no `updated_at`.
            stamps: stamps(false),
            fields: vec![
                required("request_id", 255),
                required("template_id", 255),
                required("status", 50),
                optional("instance_type", 50),
                optional("provider_instance_id", 255),
                optional("private_ip", 45),
                optional("public_ip", 45),
                time("created_at"),
                time("started_at"),
                time("terminated_at"),
            ],
            indexes: vec![
                index("status", &["status", "created_at"]),
                index("request_id-created_at-index", &["request_id", "created_at"]),
            ],
            references: vec![reference("request_id", "requests"), reference("template_id", "templates")],
        },
    ]
}

/// The built-in collections, with those that are declared in place of the one of that name, or after them.
pub(super) fn resolve(declared: &Ordered<DeclaredCollection>) -> Result<Vec<Collection>> {
    let mut collections = built_in();
    for (name, declaration) in &declared.0 {
        let collection = collection(name, declaration)?;
        match collections.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = collection,
            None => collections.push(collection),
        }
    }
    let names: Vec<&str> = collections.iter().map(|collection| collection.name.as_str()).collect();
    check_distinct(&names, "storage.collections")?;
    for collection in &collections {
        for reference in &collection.references {
            if !names.contains(&reference.collection.as_str()) {
                let nearest = nearest_first(&reference.collection, &names);
                return Err(Error::config(format!(
                    "`{}` refers to `{}`, which is no collection: did you mean `{}`?",
                    key_path(["storage", "collections", &collection.name, "references", &reference.field]),
                    reference.collection,
                    nearest[0],
                ))
                .hint(format!("the collections are `{}`", nearest.join("`, `"))));
            }
        }
    }
    Ok(collections)
}

fn collection(name: &str, declared: &DeclaredCollection) -> Result<Collection> {
    let here = |rest: &[&str]| key_path(["storage", "collections", name].iter().chain(rest));
    let usable = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if !usable || name.len() > NAME_BYTES_MAX {
        return Err(Error::config(format!(
            "`{}` is no name for a collection: up to {NAME_BYTES_MAX} letters, digits, `_` and `-`, a letter first",
            here(&[])
        ))
        .hint("tables and files are named after it"));
    }
    let stamp = |stamp: &Stamp, usual: &str| match stamp {
        Stamp::Usual => Some(usual.to_owned()),
        Stamp::Named(name) => Some(name.clone()),
        Stamp::Off => None,
    };
    let stamps = Stamps {
        version: declared.version.clone(),
        created: stamp(&declared.created_at, "created_at"),
        updated: stamp(&declared.updated_at, "updated_at"),
        adds_updated: declared.adds_updated_at,
    };
    let mut roles = vec![declared.key.as_str(), stamps.version.as_str()];
    roles.extend(stamps.created.as_deref());
    roles.extend(stamps.updated.as_deref());
    for (position, role) in roles.iter().enumerate() {
        check_member_name(role, || here(&[]))?;
        if roles[..position].contains(role) {
            return Err(Error::config(format!("`{}` uses the member `{role}` for two things", here(&[])))
                .hint("key, version, created_at and updated_at are members of their own"));
        }
    }

    let mut fields = Vec::new();
    for (field, declared_field) in &declared.fields.0 {
        let at = || here(&["fields", field]);
        check_member_name(field, at)?;
        // The key's column is there in any case.
        if *field == declared.key {
            continue;
        }
        let ty = field_type(declared_field.ty);
        if declared_field.max_length.is_some() && ty != FieldType::Text {
            return Err(Error::config(format!("`{}.max_length` is for text only", at())));
        }
        if *field == stamps.version && ty != FieldType::Integer {
            return Err(Error::config(format!("`{}` holds versions, so its type must be `integer`", at())));
        }
        let is_time = [&stamps.created, &stamps.updated].into_iter().flatten().any(|time| time == field);
        if is_time && !matches!(ty, FieldType::Timestamp | FieldType::Text) {
            return Err(Error::config(format!("`{}` holds times, so its type must be `timestamp` or `text`", at())));
        }
        fields.push(Field {
            name: field.clone(),
            ty,
            required: declared_field.required,
            max_length: declared_field.max_length,
        });
    }
    let columns: Vec<&str> =
        [declared.key.as_str()].into_iter().chain(fields.iter().map(|field| field.name.as_str())).collect();
    check_distinct(&columns, &here(&["fields"]))?;

    let mut indexes = Vec::new();
    for (index, members) in &declared.indexes.0 {
        let at = || here(&["indexes", index]);
        check_member_name(index, at)?;
        if members.is_empty() {
            return Err(Error::config(format!("`{}` names no member", at())));
        }
        for (position, member) in members.iter().enumerate() {
            check_member_name(member, at)?;
            if members[..position].contains(member) {
                return Err(Error::config(format!("`{}` names `{member}` twice", at())));
            }
        }
        indexes.push(Index { name: index.clone(), fields: members.clone() });
    }

    let mut references = Vec::new();
    for (field, target) in &declared.references.0 {
        if !fields.iter().any(|known| known.name == *field && known.ty == FieldType::Text) {
            return Err(Error::config(format!("`{}` is no field of the type `text`", here(&["references", field])))
                .hint(format!("declare it: \"fields\": {{\"{field}\": {{\"type\": \"text\"}}}}")));
        }
        references.push(Reference { field: field.clone(), collection: target.clone() });
    }
    Ok(Collection { name: name.to_owned(), key: declared.key.clone(), stamps, fields, indexes, references })
}

fn field_type(declared: DeclaredType) -> FieldType {
    match declared {
        DeclaredType::Text => FieldType::Text,
        DeclaredType::Integer => FieldType::Integer,
        DeclaredType::Number => FieldType::Number,
        DeclaredType::Boolean => FieldType::Boolean,
        DeclaredType::Timestamp => FieldType::Timestamp,
        DeclaredType::Json => FieldType::Json,
    }
}

/// Names of members become names of columns.
fn check_member_name(name: &str, at: impl Fn() -> String) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::config(format!(
            "`{}` has a name that is empty, longer than {NAME_BYTES_MAX} bytes, or has control characters",
            at()
        )));
    }
    Ok(())
}

/// Files and columns whose names differ in case alone are one in many places.
fn check_distinct(names: &[&str], at: &str) -> Result<()> {
    for (position, name) in names.iter().enumerate() {
        if let Some(twin) = names[..position].iter().find(|twin| twin.eq_ignore_ascii_case(name)) {
            return Err(Error::config(format!("`{at}` has `{twin}` and `{name}`, which differ in case alone"))
                .hint("tables, columns and files of such names are one and the same in many places"));
        }
    }
    Ok(())
}

/// A collection as a configuration would declare it.
pub(super) fn as_written(collection: &Collection) -> Value {
    let name = |name: &Option<String>| name.clone().map_or(Value::Bool(false), Value::String);
    let fields: Map<String, Value> = collection
        .fields
        .iter()
        .map(|field| {
            let ty = match field.ty {
                FieldType::Text => "text",
                FieldType::Integer => "integer",
                FieldType::Number => "number",
                FieldType::Boolean => "boolean",
                FieldType::Timestamp => "timestamp",
                FieldType::Json => "json",
            };
            let mut shown = json!({ "type": ty, "required": field.required });
            if let Some(max_length) = field.max_length {
                shown["max_length"] = max_length.into();
            }
            (field.name.clone(), shown)
        })
        .collect();
    let indexes: Map<String, Value> =
        collection.indexes.iter().map(|index| (index.name.clone(), index.fields.clone().into())).collect();
    let references: Map<String, Value> = collection
        .references
        .iter()
        .map(|reference| (reference.field.clone(), reference.collection.clone().into()))
        .collect();
    json!({
        "key": collection.key,
        "version": collection.stamps.version,
        "created_at": name(&collection.stamps.created),
        "updated_at": name(&collection.stamps.updated),
        "adds_updated_at": collection.stamps.adds_updated,
        "fields": fields,
        "indexes": indexes,
        "references": references,
    })
}
