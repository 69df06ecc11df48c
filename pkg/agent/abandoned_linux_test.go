package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/config"
)

// composed makes the parts of an agent in a namespace of its own. None of them runs.
func composed(t *testing.T, log *slog.Logger) (parts, *nettest.NS) {
	t.Helper()
	return composedWith(t, Config{StateDir: t.TempDir(), Log: log})
}

func composedWith(t *testing.T, c Config) (parts, *nettest.NS) {
	t.Helper()
	ns, dir := nettest.New(t), t.TempDir()
	kubeconfig := dir + "/kubeconfig"
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"u","user":{}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var all parts
	var stop func()
	var err error
	ns.Run(func() {
		c.NodeName, c.Kubeconfig = "node1", kubeconfig
		all, stop, err = compose(t.Context(), c, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return all, ns
}

// onMessage calls itself with each message that is logged.
type onMessage func(string)

func (f onMessage) Enabled(context.Context, slog.Level) bool { return true }
func (f onMessage) Handle(_ context.Context, r slog.Record) error {
	f(r.Message)
	return nil
}
func (f onMessage) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f onMessage) WithGroup(string) slog.Handler      { return f }

// Nobody knows of a pod whose ADD nobody waited for: it is undone at once, whether
// the runtime gave up before the pod was wired or just after.
func TestAbandonedADD(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after", "second"} {
		t.Run(when, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			giveUp := when == "after"
			all, ns := composed(t, slog.New(onMessage(func(message string) {
				if message == "pod attached" && giveUp {
					cancel(cni.ErrCallerGone)
				}
			})))
			a := each[*attacher](all)[0]
			cidr := netip.MustParsePrefix("2001:db8:1::/64")
			a.ledger.Configure(ipam.Config{Node: "node1", IPv6: []netip.Prefix{cidr}})
			each[*node](all)[0].Set(nodeState{inForce: &inForce{mtu: 1500, node: config.Node{
				IPv6: []netip.Prefix{cidr}, Defaults: config.Defaults{IPv6: true},
			}}})
			each[*gate](all)[0].setMissing("")
			pod := nettest.New(t)
			netns, err := os.Open(pod.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer netns.Close()
			call := &cni.Call{Command: cni.CommandAdd, ContainerID: "c", IfName: "eth0", NetNS: netns}

			switch when {
			case "before":
				cancel(cni.ErrCallerGone)
			case "second": // of an attachment that somebody may use
				if _, err := a.Add(ctx, call); err != nil {
					t.Fatal(err)
				}
				giveUp = true
			}
			_, err = a.Add(ctx, call)
			records, routes := a.ledger.Records(), ns.IP("-6", "route", "show", "proto", "85")
			if when == "second" {
				if err != nil || len(records) != 1 || records[0].State != ledger.Committed || !strings.Contains(routes, "2001:db8:1:") {
					t.Errorf("%v; records %+v, routes %q; want what the first ADD made", err, records, routes)
				}
				// A DEL that names neither interface nor network is for all of the container.
				if err := a.Del(ctx, &cni.Call{Command: cni.CommandDel, ContainerID: "c"}); err != nil || ns.IP("-6", "route", "show", "proto", "85") != "" {
					t.Errorf("DEL: %v, routes are left: %s", err, ns.IP("-6", "route", "show", "proto", "85"))
				}
				return
			}
			if !errors.Is(err, cni.ErrCallerGone) {
				t.Errorf("ADD: %v, want %v", err, cni.ErrCallerGone)
			}
			for _, r := range records {
				if r.State != ledger.Released {
					t.Errorf("record %+v is held", r)
				}
			}
			if routes != "" {
				t.Errorf("routes are left: %s", routes)
			}
		})
	}
}
