// The C library from Go: quantize a matrix to Q4_K and back. docs/c.md says how to build it.
package main

// #cgo pkg-config: weightcast
// #include <stdlib.h>
// #include <weightcast.h>
import "C"

import (
	"fmt"
	"log"
	"math"
	"unsafe"
)

// The source holds a pointer, so what it points to must be C's memory.
func floats(n int) []C.float { return unsafe.Slice((*C.float)(C.calloc(C.size_t(n), 4)), n) }

func check(status C.int32_t, result C.weightcast_result) {
	if status != C.WEIGHTCAST_OK {
		log.Fatalf("%s, row %d, column %d", C.GoString(C.weightcast_strerror(status)), result.bad_out, result.bad_in)
	}
}

func main() {
	const rows, columns = 64, 1024
	x, back := floats(rows*columns), floats(rows*columns)
	for i := range x {
		x[i] = C.float(math.Sin(float64(i)))
	}
	name := C.CString("q4_k")
	defer C.free(unsafe.Pointer(name))
	kind := C.weightcast_type_from_name(name)
	rowBytes := C.weightcast_row_bytes(kind, columns)
	blocks := make([]byte, rows*rowBytes)
	var result C.weightcast_result
	source := C.weightcast_source{data: unsafe.Pointer(&x[0]), _type: C.WEIGHTCAST_F32,
		n_out: rows, n_in: columns, stride_out: columns, stride_in: 1}
	check(C.weightcast_quantize(&source, nil, kind, unsafe.Pointer(&blocks[0]), rowBytes, &result), result)
	check(C.weightcast_dequantize(kind, unsafe.Pointer(&blocks[0]), rows*columns, &back[0]), result)
	squares := 0.0
	for i := range x {
		squares += math.Pow(float64(x[i]-back[i]), 2)
	}
	fmt.Printf("Q4_K: %d values in %d bytes, rms error %.5f\n", len(x), len(blocks), math.Sqrt(squares/float64(len(x))))
}
