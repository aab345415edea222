//! The `potstill` command; all of it is in [`potstill::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without a session (in a container, over ssh) Vulkan drivers complain on stderr that they find no display server;
    // none is needed here.
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    potstill::cli::main()
}
