// Package kerneltest lists what flock has in a kernel, as iproute2 and nft show it, each object
// with the command that takes it away: for tests that take everything away. It asks the kernel,
// so that what a feature adds is in the list without being named here.
package kerneltest
