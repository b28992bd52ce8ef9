//! What the server says of rows: see `src/fuzz/pgoutput.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::fuzz::pgoutput::check(data));
