//! No text about a configuration repeats a part of a secret, wherever it was put by mistake.

use tidegate::config::{KEYS, report};

use super::Setup;

/// A part of every secret of this file, and of no line.
const MARKER: &str = "hunter2marker";

#[test]
fn secret_in_the_wrong_option_is_not_repeated() {
    let values = [
        "http://u:hunter2marker,x@h",
        "http://u:x,hunter2marker@h",
        "http://h:80,http://u:a,hunter2marker@h:80",
        "u:hunter2marker@h",
        "hunter2marker@h",
        "http://u:hunter2marker",
        "http://h/?token=hunter2marker",
        "h?token=hunter2marker",
        "redis://:hunter2marker@h:6379",
        "postgres://u:hunter2marker@h/db",
        "password=hunter2marker",
        "tidegate[{token=hunter2marker}]=debug",
        "sqlite://u:hunter2marker@h/data.db",
        "sqlite:///data.db?key=hunter2marker",
    ];
    for known in KEYS {
        // The names of files are shown: without them no error of a file could be understood.
        if known.key.ends_with("_file") || known.key == "policies.file" {
            continue;
        }
        for value in values {
            let setup = Setup::new().flag(known.key, value);
            let text = match setup.load() {
                Ok(loaded) => {
                    let shown = format!("{}{}", report::show(&loaded), report::show_json(&loaded));
                    format!("{shown}{:?}", loaded.warnings)
                }
                Err(errors) => report::errors_text(&errors),
            };
            assert!(!text.contains(MARKER), "{}={value}: {text}", known.key);
        }
    }
}
