// Command flock-bird-stop ends BIRD, as the hook that the kubelet runs before it stops
// BIRD's container. See docs/deploy.md.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
)

const usage = `flock-bird-stop ends BIRD before its container is stopped.

  flock-bird-stop [DIRECTORY]

DIRECTORY, by default /run/flock/bird, has BIRD's control socket (bird.ctl) and the
decision of the agent. On a roll-out or a restart BIRD ends without a notification, and
routers keep the node's routes until it is back (RFC 4724). When the node leaves the
network, routers are asked to prefer other paths (RFC 8326), and the sessions end with
a Cease.
`

// within is less than the DaemonSet's terminationGracePeriodSeconds.
const within = 10 * time.Second

func main() {
	dir := "/run/flock/bird"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	switch dir {
	case "help", "--help", "-help", "-h":
		fmt.Print(usage)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if _, err := stop.Run(ctx, dir, dir+"/bird.ctl"); err != nil {
		fmt.Fprintf(os.Stderr, "flock-bird-stop: %v\n", err)
		os.Exit(1)
	}
}
