//go:build !linux

// Command flock is the CNI plugin. It runs on Linux only.
package main

func main() {
	println("flock: the CNI plugin runs on Linux only")
}
