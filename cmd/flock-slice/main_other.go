//go:build !linux

// Command flock-slice runs a program with short slices of the processor's time. It
// runs on Linux only.
package main

func main() {
	println("flock-slice: runs on Linux only")
}
