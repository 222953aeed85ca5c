// The C library from Rust: quantize a matrix to Q4_K and back. docs/c.md says how to build it.
use std::{ffi::CStr, os::raw::c_char, ptr};

#[repr(C)]
struct Source { data: *const f32, kind: i32, reserved: i32, n_out: i64, n_in: i64,
                stride_out: i64, stride_in: i64, scales: *const f32, groups: i64, scale_stride: i64 }

unsafe extern "C" {
    fn weightcast_type_from_name(name: *const c_char) -> i32;
    fn weightcast_row_bytes(kind: i32, n_in: i64) -> i64;
    fn weightcast_strerror(status: i32) -> *const c_char;
    fn weightcast_quantize(source: *const Source, importance: *const f32, kind: i32, dst: *mut u8,
                           dst_stride: i64, result: *mut [i64; 5]) -> i32;
    fn weightcast_dequantize(kind: i32, src: *const u8, n_elements: i64, dst: *mut f32) -> i32;
}

fn main() {
    let (n_out, n_in) = (64, 1024);
    let x: Vec<f32> = (0..n_out * n_in).map(|i| (i as f32).sin()).collect();
    let kind = unsafe { weightcast_type_from_name(c"q4_k".as_ptr()) };
    let row_bytes = unsafe { weightcast_row_bytes(kind, n_in) };
    let mut rows = vec![0u8; (n_out * row_bytes) as usize];
    let (mut back, mut result) = (vec![0f32; x.len()], [0i64; 5]);
    let source = Source { data: x.as_ptr(), kind: 0, reserved: 0, n_out, n_in, stride_out: n_in,
                          stride_in: 1, scales: ptr::null(), groups: 0, scale_stride: 0 };
    let status = unsafe { weightcast_quantize(&source, ptr::null(), kind, rows.as_mut_ptr(), row_bytes, &mut result) };
    let said = unsafe { CStr::from_ptr(weightcast_strerror(status)) }.to_str().unwrap();
    assert_eq!(status, 0, "{said}, row {} column {}", result[0], result[1]);
    assert_eq!(unsafe { weightcast_dequantize(kind, rows.as_ptr(), n_out * n_in, back.as_mut_ptr()) }, 0);
    let squares: f64 = x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    println!("Q4_K: {} values in {} bytes, rms error {:.5}", x.len(), rows.len(), (squares / x.len() as f64).sqrt());
}
