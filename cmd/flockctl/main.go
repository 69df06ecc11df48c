// Command flockctl shows operators what flock is doing, and why. Installed as
// kubectl-flock it is a plugin of kubectl. See docs/flockctl.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"flock.fritzlab.net/flock/pkg/flockctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(flockctl.Main(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}
