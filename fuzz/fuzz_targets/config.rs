//! What an operator writes: see `src/fuzz/config.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::fuzz::config::check(data));
