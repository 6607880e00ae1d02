//! Holds JSON against the schemas of the OpenAPI document. Knows the keywords that the document uses, and stops at others:
//! what is not checked must not be claimed.

use serde_json::Value;

/// Words that say something to people, or to a form, and rule nothing out.
const ANNOTATIONS: [&str; 3] = ["description", "examples", "format"];

/// Everything in which `value` is not as `schema` of `document` says, each with its place.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "$", &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (word, rule) in schema.as_object().expect("a schema is an object") {
        match word.as_str() {
            "$ref" => {
                let place = rule.as_str().and_then(|place| place.strip_prefix('#')).unwrap();
                let schema = document.pointer(place).unwrap_or_else(|| panic!("{place} is nowhere"));
                check(document, schema, value, at, found);
            }
            "type" => {
                let accepted: Vec<&str> = match rule {
                    Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
                    one => vec![one.as_str().unwrap()],
                };
                if !accepted.iter().any(|kind| is(kind, value)) {
                    found.push(format!("{at}: {value} is no {accepted:?}"));
                }
            }
            "enum" if !rule.as_array().unwrap().contains(value) => {
                found.push(format!("{at}: {value} is none of {rule}"));
            }
            "const" if rule != value => found.push(format!("{at}: {value} is not {rule}")),
            "enum" | "const" => {}
            "minimum" if value.as_f64().is_some_and(|value| value < rule.as_f64().unwrap()) => {
                found.push(format!("{at}: {value} is less than {rule}"));
            }
            "maximum" if value.as_f64().is_some_and(|value| value > rule.as_f64().unwrap()) => {
                found.push(format!("{at}: {value} is more than {rule}"));
            }
            "minimum" | "maximum" => {}
            "minLength" | "maxLength" | "minItems" | "maxItems" => {
                let length = match value {
                    Value::String(text) if word.ends_with("Length") => text.chars().count(),
                    Value::Array(items) if word.ends_with("Items") => items.len(),
                    _ => continue,
                };
                let bound = rule.as_u64().unwrap() as usize;
                let is_beyond = if word.starts_with("min") { length < bound } else { length > bound };
                if is_beyond {
                    found.push(format!("{at}: {length} is beyond {word} {rule}"));
                }
            }
            "pattern" => {
                let pattern = regex_lite::Regex::new(rule.as_str().unwrap()).unwrap();
                if value.as_str().is_some_and(|text| !pattern.is_match(text)) {
                    found.push(format!("{at}: {value} is not like {rule}"));
                }
            }
            "propertyNames" => {
                for name in value.as_object().into_iter().flatten().map(|(name, _)| name) {
                    check(document, rule, &Value::from(name.as_str()), &format!("{at}.{name}"), found);
                }
            }
            "oneOf" => {
                let each = rule.as_array().unwrap().iter().map(|schema| faults(document, schema, value));
                let fitting = each.filter(Vec::is_empty).count();
                if fitting != 1 {
                    found.push(format!("{at}: fits {fitting} of {rule}"));
                }
            }
            "anyOf" => {
                let each = rule.as_array().unwrap().iter().map(|schema| faults(document, schema, value));
                let each: Vec<Vec<String>> = each.collect();
                if each.iter().all(|faults| !faults.is_empty()) {
                    found.push(format!("{at}: fits nothing: {each:?}"));
                }
            }
            "required" => {
                let Some(object) = value.as_object() else { continue };
                for name in rule.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if !object.contains_key(name) {
                        found.push(format!("{at}: lacks {name}"));
                    }
                }
            }
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(document, schema, value, &format!("{at}.{name}"), found);
                    }
                }
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let known = schema["properties"].get(name).is_some();
                    match rule {
                        _ if known => {}
                        Value::Bool(true) => {}
                        Value::Bool(false) => found.push(format!("{at}: {name} is not described")),
                        schema => check(document, schema, value, &format!("{at}.{name}"), found),
                    }
                }
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, value, &format!("{at}[{index}]"), found);
                }
            }
            word => assert!(ANNOTATIONS.contains(&word), "the keyword {word} is not checked"),
        }
    }
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => panic!("{kind} is no type"),
    }
}
