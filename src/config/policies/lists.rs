//! Allow and deny lists: in the policy file itself, and one entry a line in files of their own.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::{Table, Value};

use crate::config::parse;
use crate::limiter::access::{Access, AccessList};
use crate::limiter::subject::Part;

/// What an entry may be.
const ENTRY: &str = "an address such as \"192.0.2.7\", a network such as \"10.0.0.0/8\", or a subject with its value \
                     such as \"header:x-api-key=VALUE\", \"query:NAME=VALUE\", \"cookie:NAME=VALUE\" or \"jwt:CLAIM=VALUE\"";

/// Reads a file of entries; `None` when it is not there, an error in words when it can't be read.
pub type ReadFile<'a> = dyn FnMut(&Path) -> Result<Option<String>, String> + 'a;

/// What is wrong, under which key.
pub(super) type Refusals = Vec<(&'static str, String)>;

/// Reads the lists of a table. Names of files are relative to `directory`.
pub(super) fn read(table: &Table, directory: &Path, file: &mut ReadFile<'_>) -> (AccessList, Refusals) {
    let (mut list, mut refusals) = (AccessList::default(), Refusals::new());
    for (key, access) in [("allow", Access::Allow), ("deny", Access::Deny)] {
        for text in texts(table, key, &mut refusals) {
            if let Err(message) = entry(&text, access, &mut list) {
                refusals.push((key, format!("{}: {message}", shown(&text))));
            }
        }
    }
    for (key, access) in [("allow_files", Access::Allow), ("deny_files", Access::Deny)] {
        for name in texts(table, key, &mut refusals) {
            let path = directory.join(PathBuf::from(&name));
            let text = match file(&path) {
                Ok(Some(text)) => text,
                Ok(None) => {
                    let message =
                        "there is no such file; accepted: a file with one entry a line, which may be empty";
                    refusals.push((key, format!("\"{name}\": {message}")));
                    continue;
                }
                Err(message) => {
                    refusals.push((key, format!("\"{name}\": {message}")));
                    continue;
                }
            };
            // Some editors begin a file with a byte order mark.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            for (number, line) in (1..).zip(text.lines()) {
                // A value may hold a "#" itself, so that a comment is a line of its own or begins after a space.
                let line = line.split_once(" #").map_or(line, |(before, _)| before).trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                if let Err(message) = entry(line, access, &mut list) {
                    refusals.push((key, format!("{name}:{number}: {}: {message}", shown(line))));
                }
            }
        }
    }
    (list, refusals)
}

fn texts(table: &Table, key: &'static str, refusals: &mut Refusals) -> Vec<String> {
    let Some(value) = table.get(key) else { return Vec::new() };
    match value {
        Value::Array(items) if items.iter().all(Value::is_str) => {
            items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        other => {
            let accepted = match key.ends_with("files") {
                true => "accepted: a list of file names, such as [\"blocked.txt\"]".to_owned(),
                false => format!("accepted: a list; in it {ENTRY}"),
            };
            // The brackets were forgotten, or something else stands among the texts.
            let read = other.as_str().filter(|_| !key.ends_with("files"));
            refusals
                .push((key, read.map_or(accepted.clone(), |text| format!("{}: {accepted}", shown(text)))));
            Vec::new()
        }
    }
}

/// An entry as errors show it: what is meant as an address, or the name of a subject. Anything else may be somebody's
/// key, in part or as a whole.
fn shown(text: &str) -> String {
    let of_address = |byte: u8| byte.is_ascii_hexdigit() || b".:/".contains(&byte);
    match text.split_once('=') {
        Some((kind, _)) if kind.trim().parse::<Part>().is_ok() => format!("\"{kind}=(not shown)\""),
        None if text.contains(['.', ':', '/']) && text.len() <= 49 && text.bytes().all(of_address) => {
            format!("\"{text}\"")
        }
        _ => "an entry that is not shown, it may be a key".to_owned(),
    }
}

fn entry(text: &str, access: Access, list: &mut AccessList) -> Result<(), String> {
    if let Some((kind, value)) = text.split_once('=') {
        // Space around "=" is for the eye: no value of a header begins with one.
        let value = value.trim();
        let part = kind.trim().parse::<Part>().ok().filter(|part| !matches!(part, Part::Ip | Part::Everyone));
        let part = part.ok_or_else(|| format!("accepted: {ENTRY}"))?;
        if value.is_empty() {
            return Err(format!("there is no value behind \"=\"; accepted: {ENTRY}"));
        }
        list.add_subject(part, value.as_bytes(), access);
        return Ok(());
    }
    let network: IpNet = parse::network(text).map_err(|_| format!("accepted: {ENTRY}"))?;
    list.add_network(network, access);
    Ok(())
}
