//! Finds what was written, everywhere where it may be, and lets the strongest layer win.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Source, Value, ValueKind};

use super::error::Problem;
use super::file;
use super::keys::{self, KEYS, Known};
use super::parse;
use super::seen::Seen;
use super::take::text_of;

/// The text of the default file in this binary.
pub const COMPILED_IN: &str = include_str!("../../config/default.toml");

/// The source of a value that nobody wrote.
pub(super) const DEFAULT: &str = "default (compiled in)";
const ENVIRONMENT: &str = "environment: ";
const FLAG: &str = "flag ";

/// Where to look. Nothing else is looked at, so a test can say all of it.
#[derive(Clone, Default)]
pub struct Sources {
    /// The directory of `default.toml`, `{APP_ENV}.toml` and `policies.toml`. None of them must be there.
    pub config_dir: PathBuf,
    /// The file of `--config`, which must be there.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Dotted keys and values given on the command line; an empty value unsets.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// `config/` in the working directory, the environment of this process, and what the command line said.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        // What is not UTF-8 arrives with U+FFFD in it, by which a variable of ours is refused below.
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Self { config_dir: PathBuf::from("config"), file, env, flags }
    }
}

impl fmt::Debug for Sources {
    /// The names, without the values: there are passwords among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("config_dir", &self.config_dir)
            .field("file", &self.file)
            .field("env", &self.env.keys())
            .field("flags", &self.flags.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .finish()
    }
}

/// What the layers have come to.
pub(super) struct Merged {
    /// The winning values, each with its origin.
    pub values: BTreeMap<&'static str, Value>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
    /// The files of settings, there or not.
    pub files: Seen,
}

/// One layer, and what is wrong in it.
#[derive(Clone, Default)]
struct Layer {
    options: Vec<(&'static Known, Value)>,
    problems: Vec<Problem>,
}

/// Reads every layer and merges them, the weakest first.
pub(super) fn merge(sources: &Sources) -> Merged {
    let mut files = Seen::default();
    let compiled = Layer::of_text(DEFAULT, COMPILED_IN);
    let mut on_disk = Layer::of_file(&sources.config_dir.join("default.toml"), false, &mut files);
    // A copy of the default file chooses nothing: only lines that differ count as written.
    on_disk.options.retain(|(known, value)| compiled.text(known.key) != Some(text_of(value)));
    let given =
        sources.file.as_deref().map(|path| Layer::of_file(path, true, &mut files)).unwrap_or_default();
    let (environment, warnings) = Layer::of_environment(&sources.env);
    let flags = Layer::of_flags(&sources.flags);

    let app_env = [&flags, &environment, &given, &on_disk, &compiled]
        .into_iter()
        .find_map(|layer| layer.text("app.env"))
        .and_then(|text| parse::app_env(&text).ok());
    let mut by_env = app_env.map_or_else(Layer::default, |env| {
        Layer::of_file(&sources.config_dir.join(format!("{}.toml", env.as_str())), false, &mut files)
    });
    by_env.refuse_app_env();

    let layers = [compiled, on_disk, by_env, given, environment, flags];
    let problems = layers.iter().flat_map(|layer| layer.problems.clone()).collect();
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    // Every layer holds known keys with plain values only, which the crate cannot fail on.
    let tree = builder.build().and_then(|config| config.collect()).unwrap_or_default();
    let values = KEYS.iter().filter_map(|known| Some((known.key, leaf(&tree, known.key)?.clone())));
    Merged { values: values.collect(), problems, warnings, files }
}

fn leaf<'a>(tree: &'a config::Map<String, Value>, key: &str) -> Option<&'a Value> {
    let (section, name) = key.split_once('.')?;
    match &tree.get(section)?.kind {
        ValueKind::Table(table) => table.get(name),
        _ => None,
    }
}

/// How an error names the origin of a value.
pub(super) fn place(origin: &str, key: &str) -> String {
    match origin.strip_prefix(ENVIRONMENT).or_else(|| origin.strip_prefix(FLAG)) {
        Some(name) => name.to_owned(),
        None => format!("{origin}:{key}"),
    }
}

impl Layer {
    fn of_file(path: &Path, must_be_there: bool, files: &mut Seen) -> Self {
        let name = path.display().to_string();
        let mut layer = Self::default();
        match files.text(path) {
            Ok(Some(text)) => return Self::of_text(&name, &text),
            Ok(None) if must_be_there => {
                layer
                    .problems
                    .push(Problem::new(name, "there is no such file; accepted: a readable TOML file"));
            }
            Ok(None) => {}
            Err(message) => layer.problems.push(Problem::new(name, message)),
        }
        layer
    }

    fn of_text(name: &str, text: &str) -> Self {
        let mut layer = Self::default();
        match file::table(name, text) {
            Ok(table) => layer.options = file::options(name, table, &mut layer.problems),
            Err(problem) => layer.problems.push(problem),
        }
        layer
    }

    fn of_environment(env: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut layer = Self::default();
        let mut warnings = Vec::new();
        let set = |name: &str| env.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        for known in KEYS {
            let long = keys::long_name(known.key);
            let by_short = known.short.and_then(|short| Some((short, set(short)?)));
            let by_long = set(&long).map(|value| (long.as_str(), value));
            if let (Some((short, one)), Some((_, other))) = (by_short, by_long)
                && (one != other || known.key == "redis.url")
            {
                let message = format!("{long} is set as well; accepted: one of the two, unset the other");
                layer.problems.push(Problem::new(short, message));
            }
            if let Some((name, value)) = by_short.or(by_long) {
                layer.push(known, format!("{ENVIRONMENT}{name}"), value);
            }
        }
        for name in env.keys().filter(|name| set(name).is_some()) {
            if keys::LATER.contains(&name.as_str()) {
                layer.problems.push(Problem::new(name, "it is not in this version; unset it"));
            } else if name.starts_with("TIDEGATE__") {
                let mut names = KEYS.iter().map(|known| keys::long_name(known.key));
                if !names.any(|long| long == *name) {
                    let names = KEYS.iter().map(|known| keys::long_name(known.key));
                    layer.problems.push(Problem::new(name, file::unknown(name, names)));
                }
            } else if let Some(meant) = single_underscores(name) {
                warnings.push(format!("{name} is not read; did you mean {meant}?"));
            }
        }
        (layer, warnings)
    }

    fn of_flags(flags: &[(String, String)]) -> Self {
        let mut layer = Self::default();
        for (key, value) in flags {
            match keys::known(key) {
                Some(known) => layer.push(known, format!("{FLAG}{}", keys::flag_name(key)), value.trim()),
                None => {
                    let names = KEYS.iter().map(|known| known.key.to_owned());
                    layer.problems.push(Problem::new(keys::flag_name(key), file::unknown(key, names)));
                }
            }
        }
        layer
    }

    fn push(&mut self, known: &'static Known, origin: String, value: &str) {
        if value.contains(char::REPLACEMENT_CHARACTER) {
            self.problems.push(Problem::new(
                place(&origin, known.key),
                "the value is not UTF-8; accepted: UTF-8 text",
            ));
        } else {
            self.options.push((known, Value::new(Some(&origin), value)));
        }
    }

    /// A file that `app.env` chose cannot choose another one.
    fn refuse_app_env(&mut self) {
        for (known, value) in self.options.extract_if(.., |(known, _)| known.key == "app.env") {
            let message =
                "this file is read because of app.env; accepted: APP_ENV, or app.env in default.toml";
            let place = place(value.origin().unwrap_or_default(), known.key);
            self.problems.push(Problem::new(place, message));
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        // The last, as the merge has it.
        self.options.iter().rev().find(|(known, _)| known.key == key).map(|(_, value)| text_of(value))
    }
}

/// The long name that `name` has with underscores missing. Only worth a warning: a cluster that runs a service
/// called "tidegate-server" sets `TIDEGATE_SERVER_PORT` (to a URL) for its own reasons.
fn single_underscores(name: &str) -> Option<String> {
    let flat = |name: &str| name.replace("__", "_");
    let short = KEYS.iter().any(|known| known.short == Some(name));
    if short || !name.starts_with("TIDEGATE_") {
        return None;
    }
    KEYS.iter().map(|known| keys::long_name(known.key)).find(|long| flat(long) == flat(name))
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, Value>, ConfigError> {
        Ok(self.options.iter().map(|(known, value)| (known.key.to_owned(), value.clone())).collect())
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.options.iter().map(|(known, _)| known.key)).finish()
    }
}
