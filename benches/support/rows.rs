//! What a bench has to say in the table at the end of `make bench`: a line each of what, figure, ratio and target. Each
//! bench leaves its lines in a file of its own; `benches/table.rs` prints them all.

#![allow(dead_code, reason = "each bench takes what it needs")]

use std::fmt::Write as _;
use std::path::PathBuf;

/// Where the lines are left: below the build's own directory.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-rows");

/// What is asked of a line.
pub(crate) enum Most {
    /// Of its figure.
    Figure(f64),
    /// Of its ratio.
    Ratio(f64),
}

/// The lines of one bench, written when it is over.
pub(crate) struct Rows {
    file: Option<PathBuf>,
    text: String,
}

impl Rows {
    /// Of the bench of this name. Kept by a real run only: `cargo test --benches` measures nothing.
    pub(crate) fn of(bench: &str) -> Self {
        let real = std::env::args().any(|argument| argument == "--bench");
        Self { file: real.then(|| PathBuf::from(FOLDER).join(bench)), text: String::new() }
    }

    /// A figure with its unit, its ratio to something that was measured in the same run, and what is asked of either.
    pub(crate) fn tell(
        &mut self,
        what: &str,
        (figure, unit): (f64, &str),
        ratio: Option<(f64, &str)>,
        most: Option<Most>,
    ) {
        let (seen, target) = match &most {
            Some(Most::Figure(most)) => (figure, format!("≤ {most} {unit}")),
            Some(Most::Ratio(most)) => (ratio.map_or(f64::NAN, |(ratio, _)| ratio), format!("≤ {most} ×")),
            None => (f64::NAN, String::new()),
        };
        let verdict = match most {
            Some(Most::Figure(most) | Most::Ratio(most)) if seen <= most => "met",
            Some(_) => "MISSED",
            None => "",
        };
        let ratio = ratio.map_or_else(String::new, |(ratio, to)| format!("{ratio:.2} × {to}"));
        let digits = if figure.abs() < 100.0 { 2 } else { 0 };
        let _ = writeln!(self.text, "{what}\t{figure:.digits$} {unit}\t{ratio}\t{target}\t{verdict}");
    }

    /// Something that could not be measured, and what it needs.
    pub(crate) fn skipped(&mut self, what: &str, needs: &str) {
        println!("not measured: {what}: {needs}");
        let _ = writeln!(self.text, "{what}\t–\t\t\tnot measured: {needs}");
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // What a bench that stopped half-way had measured is no result.
        if let Some(file) = self.file.as_ref().filter(|_| !std::thread::panicking()) {
            std::fs::create_dir_all(FOLDER).unwrap();
            std::fs::write(file, &self.text).unwrap();
        }
    }
}
