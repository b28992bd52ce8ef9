//! What must hold of every input, whatever its bytes: for `make fuzz`, and with random inputs for `make test`. In no release.
//!
//! Each `check` takes bytes, does with them what the relay does with what servers, rows or operators give it, and asserts what
//! must be true of the result. That nothing panics is the least of it.

pub mod config;
pub mod frame;
pub mod message;
pub mod pgoutput;
pub mod urls;

/// A password in an input. No error and no `Debug` may show it.
const CANARY: &str = "Kanarienvogel";

fn keeps_its_secret(what: &str, text: &str) {
    assert!(!text.contains(CANARY), "{what} shows a password: {text}");
}
