//! The `potstill` command; all of it is in [`potstill::cli`].

fn main() -> std::process::ExitCode {
    potstill::cli::main()
}
