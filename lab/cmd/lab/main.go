// Command lab runs a whole Kubernetes cluster, its routers included, on one
// Linux machine: see lab --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"flock.fritzlab.net/flock/lab/member"
)

func main() {
	member.RunHelper()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	var ran exitStatus
	switch {
	case err == nil:
	case errors.As(err, &ran):
		os.Exit(int(ran))
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}
