package main

import "golang.org/x/sys/unix"

// monotonic reads the clock that Go's own monotonic time is taken from, but that
// Go shows only as a difference within one process.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the clock exists wherever this builds
	}
	return ts.Nano()
}
