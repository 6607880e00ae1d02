//! Shows a configuration, or what is wrong with one, to people and to scripts.

use std::fmt::Write as _;

use serde_json::json;

use super::{Errors, Loaded};

/// Every option as `key = value    # source`, aligned, secrets redacted. It is TOML.
pub fn show(loaded: &Loaded) -> String {
    let lines: Vec<(&str, String, &str)> =
        loaded.effective.iter().map(|one| (one.key, toml_value(&one.value), one.source.as_str())).collect();
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let keys = width(&mut lines.iter().map(|(key, ..)| key.len()));
    // One long path does not push every source out of sight.
    let values = width(&mut lines.iter().map(|(_, value, _)| value.chars().count())).min(40);
    let mut text = String::new();
    for (key, value, source) in lines {
        let _ = writeln!(text, "{key:keys$} = {value:values$}    # {source}");
    }
    for warning in &loaded.warnings {
        let _ = writeln!(text, "# warning: {warning}");
    }
    text
}

/// The same for scripts.
pub fn show_json(loaded: &Loaded) -> serde_json::Value {
    let options: Vec<_> = loaded
        .effective
        .iter()
        .map(|one| json!({ "key": one.key, "value": one.value, "source": one.source }))
        .collect();
    json!({ "options": options, "warnings": loaded.warnings })
}

/// One line a problem.
pub fn errors_text(errors: &Errors) -> String {
    format!("{errors}\n")
}

/// The same for scripts.
pub fn errors_json(errors: &Errors) -> serde_json::Value {
    let problems: Vec<_> =
        errors.0.iter().map(|one| json!({ "place": one.place, "message": one.message })).collect();
    json!({ "errors": problems })
}

/// Numbers and booleans bare, everything else in quotes.
fn toml_value(text: &str) -> String {
    let number = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        // TOML has no leading zeros.
        && format!("number = {text}").parse::<toml::Table>().is_ok();
    if number || matches!(text, "true" | "false") {
        text.to_owned()
    } else {
        toml::Value::from(text).to_string()
    }
}
