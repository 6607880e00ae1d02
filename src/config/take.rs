//! Hands out the merged values one by one, and remembers what was wrong and what may be shown.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::Effective;
use super::error::{Problem, may_hold_secret, quoted, quoted_of};
use super::keys::{self, KEYS};
use super::layers::{DEFAULT, place};
use super::secret::REDACTED;

/// The merged values and what has become of them.
pub(super) struct Taken {
    values: BTreeMap<&'static str, Value>,
    shown: BTreeMap<&'static str, (String, Option<&'static str>)>,
    pub problems: Vec<Problem>,
}

impl Taken {
    pub(super) fn new(values: BTreeMap<&'static str, Value>, problems: Vec<Problem>) -> Self {
        Self { values, shown: BTreeMap::new(), problems }
    }

    /// The value as text, trimmed; empty when it is not set.
    pub(super) fn text(&self, key: &'static str) -> String {
        self.values.get(key).map(text_of).unwrap_or_default()
    }

    /// The items of a list, or of a text with commas.
    pub(super) fn list(&self, key: &'static str) -> Vec<String> {
        let text = self.text(key);
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// Whether it has a value.
    pub(super) fn is_set(&self, key: &'static str) -> bool {
        !self.text(key).is_empty()
    }

    /// Whether the value is somebody's choice rather than the default.
    pub(super) fn is_chosen(&self, key: &'static str) -> bool {
        self.origin(key) != DEFAULT
    }

    fn origin(&self, key: &'static str) -> &str {
        self.values.get(key).and_then(Value::origin).unwrap_or(DEFAULT)
    }

    /// The name of the value's place, for errors and warnings.
    pub(super) fn place(&self, key: &'static str) -> String {
        place(self.origin(key), key)
    }

    /// Notes a problem with a value.
    pub(super) fn refuse(&mut self, key: &'static str, message: impl AsRef<str>) {
        self.problems.push(Problem::new(self.place(key), message));
    }

    /// Notes a problem with a value, and the value where it may be seen.
    pub(super) fn refuse_read(&mut self, key: &'static str, message: &str) {
        if keys::known(key).is_none_or(|known| known.secret) {
            self.refuse(key, message);
        } else {
            self.refuse(key, format!("read {}; {message}", quoted(&self.text(key))));
        }
    }

    /// Notes a problem with an item of a list, and the item where it may be seen.
    pub(super) fn refuse_item(&mut self, key: &'static str, item: &str, message: impl std::fmt::Display) {
        self.refuse(key, format!("read {}; {message}", quoted_of(item, &self.text(key))));
    }

    /// The value through `parse`, whose error says what is accepted; `instead` when it fails, so that the rest is
    /// read as well.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        instead: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        parse(&self.text(key)).unwrap_or_else(|message| {
            self.refuse_read(key, &message);
            instead
        })
    }

    /// The value through `parse`, unless it is not set.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.is_set(key) { self.get(key, None, |text| parse(text).map(Some)) } else { None }
    }

    /// What to show in place of the text; with a `source` where the value follows from others.
    pub(super) fn show(&mut self, key: &'static str, value: impl Into<String>, source: Option<&'static str>) {
        self.shown.insert(key, (value.into(), source));
    }

    /// Every option as it is in force.
    pub(super) fn effective(&self) -> Vec<Effective> {
        let one = |known: &keys::Known| {
            let (value, source) = match self.shown.get(known.key) {
                Some((value, source)) => (value.clone(), *source),
                None if (known.secret && self.is_set(known.key))
                    || may_hold_secret(&self.text(known.key)) =>
                {
                    (REDACTED.to_owned(), None)
                }
                None => (self.text(known.key), None),
            };
            let source = source.unwrap_or(self.origin(known.key)).to_owned();
            Effective { key: known.key, value, source }
        };
        KEYS.iter().map(one).collect()
    }
}

/// A value as text, a list separated by commas.
pub(super) fn text_of(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil | ValueKind::Table(_) => String::new(),
        ValueKind::Boolean(flag) => flag.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::I128(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        ValueKind::U128(number) => number.to_string(),
        ValueKind::Float(number) => number.to_string(),
        ValueKind::String(text) => text.trim().to_owned(),
        ValueKind::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(", "),
    }
}
