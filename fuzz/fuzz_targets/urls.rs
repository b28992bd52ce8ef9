//! What stands in the place of the two URLs: see `src/fuzz/urls.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postrider::fuzz::urls::check(data));
