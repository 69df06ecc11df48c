package bird

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/routing"
)

// Sessions are not down because BIRD could not be asked for them: only without a BIRD there are
// none, or when it has not answered for long.
func TestSessionsStandWhileBIRDCannotBeAsked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bird.ctl")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	nettest.Serve(t, listener, func(net.Conn) {})
	seen := []routing.Session{{Name: "tor", Up: true}}
	a := NewApplier(ApplierConfig{Socket: path})
	know := func() { a.state.Sessions, a.state.Recovering = seen, "the routes" }
	expect := func(when string, want int) {
		t.Helper()
		if s := a.State(); len(s.Sessions) != want || (s.Recovering == "") != (want == 0) {
			t.Errorf("%s: %+v", when, s)
		}
	}
	know()
	for range 2 {
		if next := a.ask(t.Context()); next != askWhileDown {
			t.Errorf("the next question is in %v, want %v", next, askWhileDown)
		}
		expect("BIRD could not be asked", 1)
		if a.State().Silent {
			t.Error("one moment is silence")
		}
	}
	a.unanswered = time.Now().Add(-doubt)
	a.ask(t.Context())
	expect("BIRD could not be asked for some time", 1)
	if !a.State().Silent {
		t.Error("nobody says that BIRD does not answer")
	}
	a.unanswered = time.Now().Add(-believe)
	a.ask(t.Context())
	expect("BIRD could not be asked for long", 0)

	know()
	listener.Close()
	a.ask(t.Context())
	expect("there is no BIRD", 0)
	if a.State().Silent {
		t.Error("a BIRD that is not there is silent")
	}
}
