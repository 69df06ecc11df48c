//go:build linux

// Command pause holds a pod's sandbox: it waits for the signal to end, and as
// process 1 of a shared PID namespace it reaps what others leave behind.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	// There is no signal for a process that died before Notify.
	for reap(); ; reap() {
		if s := <-signals; s != syscall.SIGCHLD {
			return
		}
	}
}

// reap takes all that have died: one SIGCHLD may stand for several.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != syscall.EINTR && (err != nil || pid <= 0) {
			return
		}
	}
}
