//! [`larder_fuzz::filter_text`] under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder_fuzz::filter_text(data));
