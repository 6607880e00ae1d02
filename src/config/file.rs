//! Reads files: text of bounded length, and TOML as options with their keys.

use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use config::{Value, ValueKind};

use super::error::Problem;
use super::keys::{self, Known};

/// Room for ten thousand rules or a list of half a million addresses; a device or a dump named by mistake is not read to
/// its end.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The text of a file; `None` when there is none.
///
/// The error says what is wrong and what is accepted, not which file.
pub(super) fn text(path: &Path) -> Result<Option<String>, String> {
    match bytes(path) {
        Ok(bytes) if bytes.len() as u64 > LONGEST => {
            Err("the file is longer than 16 MiB; accepted: a shorter one".to_owned())
        }
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err("the file is not UTF-8; accepted: UTF-8 text".to_owned()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("the file cannot be read ({error}); accepted: a readable file")),
    }
}

/// The bytes of a file, and one more than is accepted when there are too many.
pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Whoever opens a pipe waits for somebody to write to it: a reload would never end, nor any after it.
    if std::fs::metadata(path)?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file's table. Of the parser's error only message and line are kept: its excerpt could show a secret.
pub(super) fn table(name: &str, text: &str) -> Result<toml::Table, Problem> {
    text.parse::<toml::Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Problem::new(format!("{name}:{line}"), format!("{}; accepted: TOML", error.message()))
    })
}

/// The known options of a table. Whatever else is in it becomes a problem.
pub(super) fn options(
    name: &str,
    table: toml::Table,
    problems: &mut Vec<Problem>,
) -> Vec<(&'static Known, Value)> {
    let mut found = Vec::new();
    walk(name, "", table, &mut found, problems);
    found
}

fn walk(
    name: &str,
    section: &str,
    table: toml::Table,
    found: &mut Vec<(&'static Known, Value)>,
    problems: &mut Vec<Problem>,
) {
    for (key, value) in table {
        let key = if section.is_empty() { key } else { format!("{section}.{key}") };
        let problem = match (keys::known(&key), value) {
            (Some(known), value) => match to_value(name, value) {
                Some(value) => {
                    found.push((known, value));
                    continue;
                }
                None => "it holds a table; accepted: a single value".to_owned(),
            },
            (None, toml::Value::Table(inner)) if keys::is_section(&key) => {
                walk(name, &key, inner, found, problems);
                continue;
            }
            (None, _) if keys::is_section(&key) => {
                format!("it is a single value; accepted: a section [{key}]")
            }
            (None, _) if key == "rule" => {
                "rules are not read here; accepted: the file of policies.file".to_owned()
            }
            (None, _) => unknown(&key, keys::KEYS.iter().map(|known| known.key.to_owned())),
        };
        // A URL with its password in the place of a key.
        let key = if key.contains('@') { format!("{section}.(not shown)") } else { key };
        problems.push(Problem::new(format!("{name}:{key}"), problem));
    }
}

/// The words for a name that is not known.
pub(super) fn unknown(name: &str, candidates: impl Iterator<Item = String>) -> String {
    let is = |key: &str| key == name || keys::long_name(key) == name;
    if let Some((_, instead)) = keys::REPLACED.iter().find(|(gone, _)| is(gone)) {
        return format!("there is no such option; accepted: {instead}, which took its place");
    }
    match keys::nearest(name, candidates) {
        Some(meant) => format!("there is no such option; did you mean {meant}?"),
        None => "there is no such option; accepted: those that `tidegate config show` lists".to_owned(),
    }
}

fn to_value(origin: &str, value: toml::Value) -> Option<Value> {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(flag) => ValueKind::Boolean(flag),
        toml::Value::Datetime(time) => ValueKind::String(time.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<Value>> = items
                .into_iter()
                .map(|item| to_value(origin, item).filter(|one| !matches!(one.kind, ValueKind::Array(_))))
                .collect();
            ValueKind::Array(items?)
        }
        toml::Value::Table(_) => return None,
    };
    Some(Value::new(Some(&origin.to_owned()), kind))
}
