//! The table at the end of `make bench`: what the other benches left, a line each. With `-- --forget` it takes away what an
//! earlier run left, so that nothing old stands beside what is new.

#![allow(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

/// The benches, in the order of the table.
const BENCHES: [&str; 9] =
    ["decision", "memory", "rules", "told", "redis", "front", "gateway", "load", "instructions"];

/// Where `support/rows.rs` leaves them.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-rows");

fn main() {
    if std::env::args().any(|argument| argument == "--forget") {
        let _ = std::fs::remove_dir_all(FOLDER);
        return;
    }
    let head = ["bench", "what", "figure", "ratio, in the same run", "target", ""].map(str::to_owned);
    let mut lines = vec![head.to_vec()];
    for bench in BENCHES {
        let Ok(text) = std::fs::read_to_string(format!("{FOLDER}/{bench}")) else { continue };
        lines.extend(text.lines().map(|line| {
            let mut fields = vec![bench.to_owned()];
            fields.extend(line.split('\t').map(str::to_owned));
            fields
        }));
    }
    if lines.len() == 1 {
        println!("no bench has left a line yet: `make bench` runs them all");
        return;
    }
    let wide = |field: usize| lines.iter().map(|line| line[field].chars().count()).max().unwrap();
    let widths: Vec<usize> = (0..head.len()).map(wide).collect();
    for (at, line) in lines.iter().enumerate() {
        let fields: Vec<String> =
            line.iter().zip(&widths).map(|(field, &width)| format!("{field:<width$}")).collect();
        println!("| {} |", fields.join(" | "));
        if at == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
    let count = |verdict: &str| lines.iter().filter(|line| line[5].starts_with(verdict)).count();
    println!("{} met, {} MISSED, {} not measured", count("met"), count("MISSED"), count("not measured"));
}
