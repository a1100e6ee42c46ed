//! The program: parse, run, render one error, exit.

use std::process::ExitCode;

use clap::Parser;
use larder::cli::Cli;
use larder::{command, exit, output};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.format;
    match command::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(format, &error);
            ExitCode::from(exit::code(&error))
        }
    }
}
