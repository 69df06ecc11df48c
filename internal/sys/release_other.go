//go:build !linux

package sys

func release(int) {}
