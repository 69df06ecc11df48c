package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/address/embed"
	"flock.fritzlab.net/flock/pkg/address/grant"
	"flock.fritzlab.net/flock/pkg/address/ipam"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// silentSource knows no pod now.
type silentSource struct{ source.Source }

func (silentSource) Get(context.Context, pod.Ref) (*source.Pod, error) {
	return nil, errors.New("the kubelet is silent")
}

// TestFailedPhase: of a call that fails, the phases that failed have an error, whatever
// followed them, and no other phase has.
func TestFailedPhase(t *testing.T) {
	t.Parallel()
	type env struct {
		*attacher
		call   *cni.Call
		dir    string
		cancel func()
	}
	unwritable := func(t *testing.T, e env) { // also as root
		dir := filepath.Join(e.dir, "attachments")
		if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	down := func(t *testing.T, e env) {
		if _, err := e.Add(t.Context(), e.call); err != nil {
			t.Fatal(err)
		}
		e.call.Command = cni.CommandDel
	}
	for name, c := range map[string]struct {
		pod     string
		state   ledger.State // of the record that there is
		prepare func(*testing.T, env)
		phases  string // those that failed have a !
		says    string // each of these
	}{
		"no NodeConfig": {"", "", func(_ *testing.T, e env) { e.state.(*node).Set(nodeState{unavailable: "no NodeConfig"}) },
			"wait!", "no NodeConfig"},
		"policies": {"web-0", ledger.Pending, func(_ *testing.T, e env) { e.policies.pods = silentSource{} },
			"wait policies! container undo", "the kubelet is silent"},
		"policies of an earlier ADD": {"web-0", ledger.Committed, func(_ *testing.T, e env) { e.policies.pods = silentSource{} },
			"wait policies! container", "the kubelet is silent"},
		"abandoned": {"", ledger.Pending, func(_ *testing.T, e env) { e.cancel() },
			"wait policies container! undo", "ADD undone"},
		"guard": {"", ledger.Pending, func(_ *testing.T, e env) { e.guard.Close() },
			"wait policies container guard! undo", "bad file descriptor"},
		"link": {"", ledger.Pending, func(t *testing.T, e env) {
			file, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { file.Close() })
			e.call.NetNS = file
		}, "wait policies container guard link! undo", "network namespace"},
		"link of an earlier ADD": {"", ledger.Committed, func(t *testing.T, e env) {
			file, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { file.Close() })
			e.call.NetNS = file
		}, "wait policies container guard link!", "network namespace"},
		"ports, and no undoing": {"", ledger.Pending, func(_ *testing.T, e env) { e.ports.Close() },
			"wait policies container guard link ports! undo!", "bad file descriptor"},
		"commit": {"", ledger.Pending, unwritable,
			"wait policies container guard link ports commit! undo", "attachment record"},
		"DEL: link": {"", ledger.Pending, func(t *testing.T, e env) { down(t, e); e.host.Close() },
			"container record link! ports", "bad file descriptor"},
		"DEL: ports": {"", ledger.Pending, func(t *testing.T, e env) { down(t, e); e.ports.Close() },
			"container record link ports!", "bad file descriptor"},
		"DEL: link and ports": {"", ledger.Pending, func(t *testing.T, e env) { down(t, e); e.host.Close(); e.ports.Close() },
			"container record link! ports!", "bad file descriptor"},
		"DEL: the link is gone, its addresses are not free": {"", ledger.Committed, func(t *testing.T, e env) {
			unwritable(t, e)
			e.call.Command = cni.CommandDel
		}, "container record link ports policies record!", "attachment record"},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan *collectorpb.ExportTraceServiceRequest, 1)
			collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				message := &collectorpb.ExportTraceServiceRequest{}
				if err = errors.Join(err, proto.Unmarshal(body, message)); err != nil {
					t.Error(err)
				}
				got <- message
			}))
			defer collector.Close()
			dir := t.TempDir()
			all, _ := composedWith(t, Config{OTLPEndpoint: collector.URL, StateDir: dir, Log: slog.New(slog.DiscardHandler)})
			a := each[*attacher](all)[0]
			cidr := netip.MustParsePrefix("2001:db8:1::/64")
			a.ledger.Configure(ipam.Config{Node: "node1", IPv6: []netip.Prefix{cidr}})
			each[*node](all)[0].Set(nodeState{inForce: &inForce{mtu: 1500, node: config.Node{IPv6: []netip.Prefix{cidr}, Defaults: config.Defaults{IPv6: true}}}})
			each[*gate](all)[0].setMissing("")
			netns, err := os.Open(nettest.New(t).Path())
			if err != nil {
				t.Fatal(err)
			}
			defer netns.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			e := env{a, &cni.Call{Command: cni.CommandAdd, ContainerID: "c", IfName: "eth0", NetNS: netns}, dir, func() { cancel(cni.ErrCallerGone) }}
			if c.pod != "" {
				e.call.Pod = pod.Ref{Namespace: "shop", Name: c.pod, UID: "1"}
			}
			if c.state != "" {
				r := ledger.Record{ID: id(e.call), Pod: e.call.Pod, HostIf: wiring.HostIfName("c"), MTU: 1500, HostPorts: []pod.HostPort{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}}
				if _, _, err := a.ledger.Promise(r, grant.Plan{IPv6: &grant.Source{}}, embed.Workload{}); err != nil {
					t.Fatal(err)
				}
				if c.state == ledger.Committed {
					if err := a.ledger.Commit(r.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.prepare(t, e)
			if e.call.Command == cni.CommandAdd {
				_, err = a.Add(ctx, e.call)
			} else {
				err = a.Del(ctx, e.call)
			}
			if err == nil {
				t.Fatalf("%s succeeded", e.call.Command)
			}
			ended, end := context.WithCancel(t.Context())
			end()
			a.stopwatch.Run(ended) // sends what there is
			var phases []string
			for _, s := range (<-got).ResourceSpans[0].ScopeSpans[0].Spans {
				failed := s.Status != nil
				switch {
				case len(s.ParentSpanId) == 0: // a new call: the last one counts
					phases = nil
					if !strings.Contains(err.Error(), c.says) {
						t.Errorf("%q does not say %q", err, c.says)
					}
				case failed && !strings.Contains(s.Status.Message, c.says):
					t.Errorf("%s: %q does not say %q", s.Name, s.Status.Message, c.says)
				}
				if len(s.ParentSpanId) > 0 {
					if phases = append(phases, s.Name); failed {
						phases[len(phases)-1] += "!"
					}
				}
			}
			if got := strings.Join(phases, " "); got != c.phases {
				t.Errorf("phases %q, want %q; the error is %v", got, c.phases, err)
			}
		})
	}
}
