//go:build !linux

// Command flock-agent is flock on a node. It runs on Linux only.
package main

func main() {
	println("flock-agent: runs on Linux only")
}
