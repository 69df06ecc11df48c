package birdc_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/birdc"
	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

const conf = `
log stderr all;
router id 192.0.2.1;
timeformat base iso long ms;
timeformat protocol iso long ms;
define answer = "forty-two";
protocol device {}
protocol bgp peer_x { local as 64512; neighbor 192.0.2.2 as 64513; debug { states }; ipv6 { import none; export none; }; }
`

// TestRealBIRD holds every call against the real daemon.
func TestRealBIRD(t *testing.T) {
	t.Parallel()
	ns := routingtest.NewNS(t, "birdc")
	b := routingtest.StartBIRDWith(ns, conf)
	ctx := t.Context()
	dial := func() *birdc.Conn {
		c, err := birdc.Dial(ctx, b.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(code int, err error) {
		t.Helper()
		var refusal *birdc.ReplyError
		if !errors.As(err, &refusal) || refusal.Code != code {
			t.Fatalf("%v, want code %d", err, code)
		}
	}

	s, err := c.ShowStatus(ctx)
	must(err)
	if s.Version == "" || s.RouterID != "192.0.2.1" || time.Since(s.Boot).Abs() > 10*time.Second || s.GracefulRestart {
		t.Errorf("%+v", s)
	}
	ps, err := c.ShowProtocols(ctx)
	must(err)
	if len(ps) != 2 || ps[1].Name != "peer_x" || ps[1].BGP == nil || ps[1].BGP.NeighborAS != 64513 || ps[1].BGP.State == "" || ps[1].Since.IsZero() || len(ps[1].Channels) != 1 {
		t.Errorf("%+v", ps)
	}
	v, err := c.Eval(ctx, "answer")
	must(err)
	if v != "forty-two" {
		t.Errorf("answer = %q", v)
	}
	_, err = c.Eval(ctx, "question")
	refused(9001, err)

	bad := filepath.Join(ns.Dir, "bad.conf")
	must(os.WriteFile(bad, []byte("router id nonsense;\n"), 0o600))
	refused(8002, c.Check(ctx, bad))
	refused(8002, c.Check(ctx, bad+".not"))
	must(c.Check(ctx, filepath.Join(ns.Dir, "router.conf")))
	_, err = c.Configure(ctx, birdc.Options{File: bad})
	refused(8002, err)

	events, watcher := make(chan string, 100), dial()
	watchErr := make(chan error, 1)
	if routingtest.BIRD3() {
		refused(9001, watcher.Echo(ctx))
		watchErr <- birdc.ErrClosed
	} else {
		must(watcher.Echo(ctx))
		go func() { watchErr <- watcher.Watch(ctx, func(line string) { events <- line }) }()
		routingtest.Eventually(t, 5*time.Second, func() error {
			if _, err := c.Configure(ctx, birdc.Options{}); err != nil {
				return err
			}
			if len(events) == 0 {
				return errors.New("no event")
			}
			return nil
		})
	}

	refused(19, c.Confirm(ctx))
	_, err = c.Configure(ctx, birdc.Options{Undo: 20 * time.Second})
	must(err)
	if waits, err := c.Unconfirmed(ctx); err != nil || !waits {
		t.Errorf("unconfirmed: %t, %v", waits, err)
	}
	must(c.Confirm(ctx))
	if waits, err := c.Unconfirmed(ctx); err != nil || waits {
		t.Errorf("unconfirmed: %t, %v", waits, err)
	}

	must(c.GracefulRestart(ctx))
	if err := <-watchErr; !errors.Is(err, birdc.ErrClosed) {
		t.Errorf("watching ended with %v, want ErrClosed", err)
	}
	b.Wait()
	if _, err := birdc.Dial(context.Background(), b.Socket); !errors.Is(err, birdc.ErrAbsent) {
		t.Errorf("%v, want ErrAbsent", err)
	}
}
