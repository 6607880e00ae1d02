//! The classic text format of Prometheus (0.0.4), made of OpenMetrics.
//!
//! They differ in little here: a counter's family is named with its `_total`, there is no `# EOF` and no `# UNIT`.

/// The same metrics for a scraper that does not ask for OpenMetrics.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    // HELP stands before TYPE, which is what tells a counter.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.extend(["# HELP ", name, total, " ", words, "\n"]);
            }
            text.extend(["# TYPE ", name, total, " ", kind, "\n"]);
        } else if !line.starts_with("# ") {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_in_full_and_nothing_of_openmetrics_alone_is_left() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{b=\"# c\"} 1\n# HELP d_s Time.\n# TYPE d_s gauge\n\
                    # UNIT d_s s\nd_s NaN\n# EOF\n";
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"# c\"} 1\n# HELP d_s Time.\n\
                    # TYPE d_s gauge\nd_s NaN\n";
        assert_eq!(classic(open), text);
    }
}
