//! The outcome as one page of HTML that needs nothing else: tables, and charts drawn as SVG.

use std::fmt::Write as _;

use super::show::about;
use super::tally::Second;
use super::verdict::{ms, share};
use super::{Outcome, SeenPhase};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 220.0;
/// Room for the axes: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 12.0, 10.0, 26.0);

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#59636e;--line:#d1d9e0;--a:#0969da;--b:#9a6700;--c:#cf222e;--d:#8250df}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--soft:#9198a1;--line:#3d444d;--a:#58a6ff;--b:#d29922;--c:#ff7b72;--d:#bc8cff}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:920px;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child,.words td,.words th{text-align:left}td{white-space:nowrap}.why{white-space:normal}.yes{color:var(--a)}.no{color:var(--c);font-weight:700}.why{color:var(--soft);font-size:.9em}svg{width:100%;height:auto}\
svg text{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--line)}.wrap{overflow-x:auto}\
.a{stroke:var(--a);fill:none}.b{stroke:var(--b);fill:none}.c{stroke:var(--c);fill:none}.d{stroke:var(--d);fill:none}\
.key{font-size:.9em;color:var(--soft)}.key b{font-weight:600}.ka{color:var(--a)}.kb{color:var(--b)}.kc{color:var(--c)}.kd{color:var(--d)}";

/// The page.
pub fn html(outcome: &Outcome) -> String {
    let verdict = if outcome.holds() { "All thresholds hold" } else { "Not all thresholds hold" };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Load test: {verdict}</title><style>{STYLE}</style>\n<h1>{} {verdict}</h1>\n<p>{}. {}.</p>\n",
        mark(Some(outcome.holds())),
        escaped(&about(outcome)),
        escaped(&outcome.ended_at),
    );
    page += "<h2>Thresholds</h2><div class=wrap><table class=words><tr><th><th>phase<th>what<th>seen<th>asked</tr>\n";
    for check in &outcome.checks {
        let cells = [check.phase, check.what, &check.seen, &check.asked].map(escaped);
        let _ = write!(page, "<tr><td>{}<td>{}", mark(check.holds), cells.join("<td>"));
        if let Some(why) = &check.why {
            let _ = write!(page, "<div class=why>{}</div>", escaped(why));
        }
        page += "</tr>\n";
    }
    page += "</table></div>\n<h2>Phases</h2><div class=wrap><table><tr><th>phase<th>rate /s<th>sent<th>answered<th>P50\
             <th>P95<th>P99<th>P99.9<th>longest<th>429<th>429 foretold<th>5xx</tr>\n";
    outcome.phases.iter().for_each(|phase| page += &row(phase));
    page += "</table></div>\n";
    let seconds: Vec<(f64, Second)> =
        outcome.seconds.iter().map(|&(at, second)| (at as f64, second)).collect();
    let line = |of: fn(&Second) -> f64| -> Vec<(f64, f64)> {
        seconds.iter().map(|(at, second)| (*at, of(second))).collect()
    };
    page += "<h2>Latency by the second, from the planned moment</h2>\n";
    let answered = |(_, second): &&(f64, Second)| second.sent > second.failed;
    let latency = |of: fn(&Second) -> f64| -> Vec<(f64, f64)> {
        seconds.iter().filter(answered).map(|(at, second)| (*at, of(second))).collect()
    };
    page += &chart(
        "ms",
        &[
            ("a", "P50", latency(|second| second.p50_ms)),
            ("b", "P95", latency(|second| second.p95_ms)),
            ("c", "P99", latency(|second| second.p99_ms)),
        ],
    );
    page += "<h2>Answers by the second</h2>\n";
    page += &chart(
        "/s",
        &[
            ("a", "2xx and 3xx", line(|second| second.ok as f64)),
            ("b", "429", line(|second| second.throttled as f64)),
            ("c", "5xx and none", line(|second| (second.errors + second.failed) as f64)),
            ("d", "other 4xx", line(|second| second.refused as f64)),
        ],
    );
    page += "<h2>Latency by share of the answers</h2>\n<p class=key>The x axis is logarithmic: 1 is 90 %, 2 is 99 %, 3 is 99.9 %.</p>\n";
    let classes = ["a", "b", "c", "d"];
    let judged = outcome.phases.iter().filter(|phase| phase.judged).zip(classes);
    let curves: Vec<_> = judged.map(|(phase, class)| (class, phase.name, curve(phase))).collect();
    page + &chart("ms", &curves) + "</html>\n"
}

fn row(phase: &SeenPhase) -> String {
    let counts = &phase.counts;
    let latency = |percent| ms(counts.percentile_ms(percent));
    format!(
        "<tr><td>{}<td>{:.1}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>\n",
        phase.name,
        phase.rate,
        counts.all(),
        counts.answered(),
        latency(50.0),
        latency(95.0),
        latency(99.0),
        latency(99.9),
        ms(counts.latency.max() as f64 / 1e3),
        share(counts.share(counts.with_status(429..=429))),
        phase.foretold.map_or_else(|| "not known".to_owned(), |foretold| share(foretold.share())),
        share(counts.share(counts.with_status(500..=599))),
    )
}

/// Nines on the x axis, milliseconds on the y axis.
fn curve(phase: &SeenPhase) -> Vec<(f64, f64)> {
    let answered = phase.counts.answered() as f64;
    // Beyond the last answer there is nothing to tell.
    let nines = answered.max(1.0).log10();
    (0..=60)
        .map(|step| f64::from(step) / 60.0 * nines)
        .map(|nines| (nines, phase.counts.percentile_ms(100.0 * (1.0 - 10_f64.powf(-nines)))))
        .collect()
}

/// A line of a chart: its class, its name and its points.
type Line<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Lines over one x axis.
fn chart(unit: &str, lines: &[Line<'_>]) -> String {
    let (left, right, top, bottom) = MARGIN;
    let points = || lines.iter().flat_map(|(_, _, points)| points);
    let longest = points().map(|point| point.0).fold(1.0, f64::max);
    let highest = nice(points().map(|point| point.1).fold(0.0, f64::max));
    let x = |at: f64| left + at / longest * (WIDTH - left - right);
    let y = |value: f64| HEIGHT - bottom - value / highest * (HEIGHT - top - bottom);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for step in 0..=4 {
        let value = highest * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<line class=grid x1={left} x2={} y1={y:.1} y2={y:.1} /><text x={} y={:.1} text-anchor=end>{}</text>",
            WIDTH - right,
            left - 6.0,
            y(value) + 4.0,
            label(value, unit),
            y = y(value),
        );
        let at = longest * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<text x={:.1} y={} text-anchor=middle>{}</text>",
            x(at),
            HEIGHT - 6.0,
            label(at, "")
        );
    }
    for (class, name, points) in lines {
        let path: Vec<String> =
            points.iter().map(|&(at, value)| format!("{:.1},{:.1}", x(at), y(value))).collect();
        let _ = write!(
            svg,
            "<polyline class={class} stroke-width=1.5 points=\"{}\"><title>{name}</title></polyline>",
            path.join(" ")
        );
    }
    svg += "</svg>\n<p class=key>";
    for (class, name, _) in lines {
        let _ = write!(svg, "<b class=k{class}>━ {name}</b>&ensp;");
    }
    svg + "</p>\n"
}

/// The next of 1, 2, 5, 10, 20 … at or above.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let scale = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * scale).find(|&step| step >= value).unwrap_or(value)
}

fn label(value: f64, unit: &str) -> String {
    let number =
        if value >= 10.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    format!("{number} {unit}").trim_end().to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A sign that every font has.
fn mark(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "<span class=yes>✓</span>",
        Some(false) => "<span class=no>✗</span>",
        None => "?",
    }
}
