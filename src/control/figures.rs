//! The figures of the operator's page: those of `/metrics`, with policies added up, so that they neither differ from what
//! Prometheus is told nor grow with the number of policies.

use std::collections::BTreeMap;

/// The counters and gauges that the page shows.
const SHOWN: [&str; 9] = [
    "tidegate_requests_total",
    "tidegate_http_responses_total",
    "tidegate_decision_duration_seconds_bucket",
    "tidegate_fallbacks_total",
    "tidegate_redis_errors_total",
    "tidegate_budget_resets_total",
    "tidegate_rollbacks_total",
    "tidegate_exposure_ratio",
    "tidegate_memory_keys",
];

/// By name and labels, as in the text format, without `policy`. What is 0, or no number, is left out.
pub type Figures = BTreeMap<String, f64>;

/// Those of a scrape in the text format.
pub fn of_scrape(text: &str) -> Figures {
    let mut figures = Figures::new();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split_once('{').map_or(series, |(name, _)| name);
        if !SHOWN.contains(&name) {
            continue;
        }
        let Some(value) = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value != 0.0) else {
            continue;
        };
        *figures.entry(without_policy(series)).or_default() += value;
    }
    figures
}

/// The series without its label `policy`, whose values are plain tokens and hold neither quotes nor commas.
fn without_policy(series: &str) -> String {
    let Some((name, labels)) = series.split_once('{') else { return series.to_owned() };
    let labels = labels.trim_end_matches('}').split(',');
    let mut left: Vec<&str> = labels.filter(|label| !label.starts_with("policy=")).collect();
    left.sort_unstable();
    format!("{name}{{{}}}", left.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_added_up_and_labels_stand_in_their_order() {
        let figures = of_scrape(
            "# HELP tidegate_requests_total x\n\
             tidegate_requests_total{backend=\"redis\",state=\"allow\",policy=\"a\",arm=\"canary\"} 2\n\
             tidegate_requests_total{backend=\"redis\",state=\"allow\",policy=\"b\",arm=\"canary\"} 3\n\
             tidegate_requests_total{backend=\"redis\",state=\"block\",policy=\"b\",arm=\"canary\"} 0\n\
             tidegate_exposure_ratio NaN\n\
             tidegate_memory_keys 7\n\
             tidegate_other_total 9\n",
        );
        let all: Vec<(&str, f64)> = figures.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            all,
            [
                ("tidegate_memory_keys", 7.0),
                ("tidegate_requests_total{arm=\"canary\",backend=\"redis\",state=\"allow\"}", 5.0)
            ]
        );
    }
}
