package routingtest

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// BIRD is a running daemon.
type BIRD struct {
	*Daemon
	Socket string
	t      *testing.T
}

// BIRDProgram is the BIRD that is tested: Debian's, or what FLOCK_TEST_BIRD says, as make
// test-bird does. Routers of StartBIRDRouter and StartBIRDRouterWith run Debian's in any case.
var BIRDProgram = cmp.Or(os.Getenv("FLOCK_TEST_BIRD"), "bird")

// BIRD3 says that BIRDProgram is of version 3, which tells its clients nothing that they do
// not ask for.
var BIRD3 = sync.OnceValue(func() bool { return isVersion("3.") })

// CeaseOnRestart says that BIRDProgram is of version 3.3, which ends sessions with a Cease
// when it is ordered to restart gracefully: it stops its device protocol first, and with it
// goes the neighbor of each session.
var CeaseOnRestart = sync.OnceValue(func() bool { return isVersion("3.3.") })

func isVersion(prefix string) bool {
	out, err := exec.Command(BIRDProgram, "--version").CombinedOutput() // it goes to stderr
	return err == nil && strings.HasPrefix(string(out), "BIRD version "+prefix)
}

// StartBIRD starts BIRD in ns with the file at conf, and returns when it answers.
// It ends with the test at the latest.
func StartBIRD(ns *NS, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	return startBIRD(ns, BIRDProgram, conf, flags...)
}

func startBIRD(ns *NS, program, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	b := &BIRD{Socket: filepath.Join(ns.Dir, "bird.ctl"), t: ns.t}
	os.Remove(b.Socket)
	b.Daemon = StartDaemon(ns, program, append([]string{"-f", "-c", conf, "-s", b.Socket, "-P", filepath.Join(ns.Dir, "bird.pid")}, flags...)...)
	Eventually(b.t, 5*time.Second, func() error {
		c, err := birdc.Dial(context.Background(), b.Socket)
		if err == nil {
			c.Close()
		}
		return err
	})
	return b
}

// StartBIRDWith is StartBIRD with a configuration in place of a file.
func StartBIRDWith(ns *NS, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	return startBIRDWith(ns, BIRDProgram, conf, flags...)
}

// StartBIRDRouterWith is StartBIRDWith for a router, which runs Debian's BIRD in any case.
func StartBIRDRouterWith(ns *NS, conf string) *BIRD {
	ns.t.Helper()
	return startBIRDWith(ns, "bird", conf)
}

func startBIRDWith(ns *NS, program, conf string, flags ...string) *BIRD {
	ns.t.Helper()
	file := filepath.Join(ns.Dir, "router.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		ns.t.Fatal(err)
	}
	return startBIRD(ns, program, file, flags...)
}

// Do runs one command of BIRD's.
func (b *BIRD) Do(f func(context.Context, *birdc.Conn) error) {
	b.t.Helper()
	c, err := birdc.Dial(context.Background(), b.Socket)
	if err == nil {
		defer c.Close()
		err = f(context.Background(), c)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// Configure makes BIRD load its file again.
func (b *BIRD) Configure() {
	b.t.Helper()
	b.Do(func(ctx context.Context, c *birdc.Conn) error {
		_, err := c.Configure(ctx, birdc.Options{})
		return err
	})
}

// Protocol returns BIRD's view of the protocol called name, and its zero value if
// there is none or BIRD does not answer.
func (b *BIRD) Protocol(name string) birdc.Protocol {
	c, err := birdc.Dial(context.Background(), b.Socket)
	if err != nil {
		return birdc.Protocol{}
	}
	defer c.Close()
	ps, _ := c.ShowProtocols(context.Background())
	for _, p := range ps {
		if p.Name == name {
			return p
		}
	}
	return birdc.Protocol{}
}

// Show returns the lines of BIRD's answer to a command, and none if it does not
// answer.
func (b *BIRD) Show(command string) []string {
	c, err := birdc.Dial(context.Background(), b.Socket)
	if err != nil {
		return nil
	}
	defer c.Close()
	lines, _ := c.Do(context.Background(), command)
	var out []string
	for _, l := range lines {
		out = append(out, l.Text)
	}
	return out
}
