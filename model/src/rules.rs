//! What a declared schema refuses in an entity, as far as the entity alone can tell. Whether a store is strict enough
//! to ask is its own matter.

use serde_json::Value;

use crate::{
    Collection,
    json::{MemberRef, Object},
};

/// The rules that the entity breaks, each the same text for every entity that breaks it: `templates.vm_type is
/// required` where it is absent or null, `templates.name is longer than 255 characters` where it is text.
pub fn violations(collection: &Collection, entity: &impl Object) -> Vec<String> {
    let mut broken = Vec::new();
    for field in collection.fields.iter().filter(|field| field.required || field.max_length.is_some()) {
        let name = format_args!("{}.{}", collection.name, field.name);
        match (entity.get(&field.name), field.max_length) {
            (None | Some(MemberRef::Other(Value::Null)), _) if field.required => {
                broken.push(format!("{name} is required"))
            }
            // Each character has a byte at least.
            (Some(MemberRef::Text(text)), Some(max))
                if text.len() > max as usize && text.chars().nth(max as usize).is_some() =>
            {
                broken.push(format!("{name} is longer than {max} characters"));
            }
            _ => {}
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Field, FieldType, entity::tests::collection, json};

    #[test]
    fn required_and_length_are_checked() {
        let field = |name: &str, required, max_length| Field {
            name: name.to_owned(),
            ty: FieldType::Text,
            required,
            max_length,
        };
        let templates = Collection {
            fields: vec![field("vm_type", true, None), field("name", false, Some(3)), field("both", true, Some(1))],
            ..collection("templates")
        };
        for (text, expected) in [
            (r#"{"vm_type":"","both":""}"#, &[][..]),
            (r#"{"vm_type":0,"both":"é","name":"日本語"}"#, &[]),
            (r#"{"vm_type":false,"both":[1,2],"name":12345}"#, &[]),
            (r#"{"both":null}"#, &["templates.vm_type is required", "templates.both is required"]),
            (
                r#"{"vm_type":"x","both":"12","name":"1234"}"#,
                &["templates.name is longer than 3 characters", "templates.both is longer than 1 characters"],
            ),
        ] {
            assert_eq!(violations(&templates, &json::parse_object(text.as_bytes()).unwrap()), expected, "{text}");
        }
    }
}
