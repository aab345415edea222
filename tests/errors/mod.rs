//! Every mistake a user can make: the command ends with 1 and one line that says which file and field, what was
//! expected and found, and what to do; and what was on the disk before is still whole.
#![cfg(feature = "cli")]

mod disk;
mod files;
mod place;
mod settings;
mod text;
