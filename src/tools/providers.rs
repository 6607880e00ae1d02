//! What managed services allow and charge: `config/providers.toml`, compiled in and overridable.

use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// The file in this binary.
pub const COMPILED_IN: &str = include_str!("../../config/providers.toml");

/// All of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Providers {
    /// When it was looked up, as `YYYY-MM-DD`.
    pub as_of: String,
    /// The services.
    #[serde(rename = "provider")]
    pub all: Vec<Provider>,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// Whether what a script runs counts beside the script itself; `None`: nobody knows.
    #[serde(deserialize_with = "yes_no_or_unknown")]
    pub bills_inside_scripts: Option<bool>,
    /// Its plans.
    #[serde(rename = "plan")]
    pub plans: Vec<Plan>,
}

/// One plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The flat price of a month in US dollars; left out: there is none.
    #[serde(default = "free")]
    pub price_usd_month: Figure,
    /// The price of 100 000 commands in US dollars.
    #[serde(default, deserialize_with = "price")]
    pub per_100k_commands_usd: f64,
    /// Commands that a month may have.
    #[serde(default)]
    pub commands_per_month: Figure,
    /// Commands that a day may have.
    #[serde(default)]
    pub commands_per_day: Figure,
    /// Commands that a second may have.
    #[serde(default)]
    pub commands_per_second: Figure,
    /// Memory in MiB.
    #[serde(default = "unknown")]
    pub memory_mb: Figure,
    /// Connections at once.
    #[serde(default = "unknown")]
    pub connections: Figure,
    /// Bytes in and out in a month, in GB.
    #[serde(default = "unknown")]
    pub bandwidth_gb_month: Figure,
}

/// A figure of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Figure {
    /// So much.
    Is(f64),
    /// As much as one likes.
    #[default]
    Unlimited,
    /// No source says.
    Unknown,
}

/// Reads a file's text; `name` is what errors call it.
///
/// # Errors
/// What is wrong in it, and where.
pub fn parse(name: &str, text: &str) -> Result<Providers, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        format!(
            "{name}:{line}: {}; accepted: the form of config/providers.toml, explained there",
            error.message()
        )
    })
}

/// The file that was named, or the one in `directory` if it is there, or the one compiled in.
///
/// # Errors
/// When it can't be read.
pub fn load(named: Option<&Path>, directory: &Path) -> Result<Providers, String> {
    let beside = directory.join("providers.toml");
    let path = named.unwrap_or(&beside);
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&path.display().to_string(), &text),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            parse("providers.toml (compiled in)", COMPILED_IN)
        }
        Err(error) => Err(format!("{}: can't be read: {error}", path.display())),
    }
}

fn unknown() -> Figure {
    Figure::Unknown
}

fn free() -> Figure {
    Figure::Is(0.0)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Flag(bool),
    Number(f64),
    Word(String),
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = "accepted: a number that is not negative, \"unlimited\" or \"unknown\"";
        match Written::deserialize(deserializer).map_err(|_| D::Error::custom(wanted))? {
            Written::Number(number) if number >= 0.0 && number.is_finite() => Ok(Self::Is(number)),
            Written::Word(word) if word == "unlimited" => Ok(Self::Unlimited),
            Written::Word(word) if word == "unknown" => Ok(Self::Unknown),
            _ => Err(D::Error::custom(wanted)),
        }
    }
}

fn price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let price = f64::deserialize(deserializer)?;
    match price >= 0.0 && price.is_finite() {
        true => Ok(price),
        false => Err(D::Error::custom("accepted: a price in US dollars that is not negative")),
    }
}

fn yes_no_or_unknown<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let wanted = "accepted: true, false or \"unknown\"";
    match Written::deserialize(deserializer).map_err(|_| D::Error::custom(wanted))? {
        Written::Flag(flag) => Ok(Some(flag)),
        Written::Word(word) if word == "unknown" => Ok(None),
        _ => Err(D::Error::custom(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_shipped_is_sound_dated_and_names_a_source_for_each_provider() {
        let providers = parse("compiled in", COMPILED_IN).unwrap();
        assert!(providers.as_of.len() == 10 && providers.as_of.starts_with("20"), "{}", providers.as_of);
        let sections: Vec<&str> = COMPILED_IN.split("[[provider]]").skip(1).collect();
        assert_eq!(sections.len(), providers.all.len());
        for (section, provider) in sections.iter().zip(&providers.all) {
            assert!(section.contains("# ") && section.contains("https://"), "{}: no source", provider.name);
            assert!(section.contains("20") && !provider.plans.is_empty(), "{}", provider.name);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line_and_what_is_accepted() {
        for (from, to, said) in [
            ("memory_mb = 256", "memory_mb = \"lots\"", "\"unlimited\" or \"unknown\""),
            ("memory_mb = 256", "memory_mb = -1", "not negative"),
            ("memory_mb = 256", "memroy_mb = 256", "memroy_mb"),
            ("bills_inside_scripts = true", "bills_inside_scripts = 3", "true, false or \"unknown\""),
            ("per_100k_commands_usd = 0.20", "per_100k_commands_usd = -0.20", "a price in US dollars"),
            ("per_100k_commands_usd = 0.20", "per_100k_commands_usd = nan", "a price in US dollars"),
            ("per_100k_commands_usd = 0.20", "per_100k_commands_usd = inf", "a price in US dollars"),
            ("price_usd_month = 10", "price_usd_month = nan", "not negative"),
            ("[[provider]]", "[[provider", "accepted"),
        ] {
            let error = parse("p.toml", &COMPILED_IN.replacen(from, to, 1)).unwrap_err();
            assert!(error.starts_with("p.toml:") && error.contains(said), "{error}");
        }
    }
}
