//! The binary: runs the command that was typed and ends with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::run()
}
