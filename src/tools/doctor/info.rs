//! What `INFO` told of the server, as far as it told it.

/// The text of `INFO`.
#[derive(Clone, Debug, Default)]
pub(super) struct Info(pub(super) String);

impl Info {
    /// A field's value.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
    }

    /// A field's number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }
}

/// `512 B`, `3.1 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut left = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if left < 1_024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{left:.1} {unit}") };
        }
        left /= 1_024.0;
    }
    format!("{left:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = Info("# Memory\r\nused_memory_rss:9\r\nused_memory:3\r\nrole:master\r\n".into());
        assert_eq!((info.number("used_memory"), info.field("role")), (Some(3), Some("master")));
        assert_eq!(info.number("maxmemory"), None);
        assert_eq!([bytes(512), bytes(3 << 20), bytes(5 << 40)], ["512 B", "3.0 MiB", "5.0 TiB"]);
    }
}
