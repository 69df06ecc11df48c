package stop

import (
	"bufio"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
)

// bird answers as BIRD does, but hangs up on the first that connects. It returns what it was told.
func bird(t *testing.T, socket string) <-chan string {
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	first := true
	nettest.Serve(t, l, func(conn net.Conn) {
		if first {
			first = false
			return
		}
		conn.Write([]byte("0001 BIRD 2.0 ready.\n"))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		told <- strings.TrimSpace(line)
		conn.Write([]byte("0025 Graceful restart ordered\n"))
	})
	return told
}

// BIRD is asked to restart also where nothing can be read, and where it does not answer at once:
// SIGTERM alone would be a departure.
func TestWithoutTheFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "bird.ctl")
	told := bird(t, socket)
	if err := os.Mkdir(filepath.Join(dir, decisionFile), 0o700); err != nil { // EISDIR
		t.Fatal(err)
	}
	if d, err := Run(t.Context(), dir, socket); d != (Decision{}) || err == nil {
		t.Errorf("%+v, %v; want a restart, and why the decision was not read", d, err)
	}
	select {
	case command := <-told:
		if command != "graceful restart" {
			t.Errorf("BIRD was told %q", command)
		}
	default:
		t.Error("BIRD was told nothing")
	}
}

// A read that fails is followed by others. What was read before it stays.
func TestReadFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after, want Decision }{
		"at first": {after: Decision{Leave: true, Final: true}, want: Decision{Leave: true, Final: true}},
		"later":    {before: Decision{Leave: true}, after: Decision{Final: true}, want: Decision{Final: true}},
		"for good": {before: Decision{Leave: true}, want: Decision{Leave: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, decisionFile)
				leave := func(d Decision) {
					if err := errors.Join(os.RemoveAll(path), Write(dir, d)); err != nil {
						t.Error(err)
					}
				}
				broken := func() {
					if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
						t.Error(err)
					}
				}
				// At moments at which nobody reads.
				if c.before == (Decision{}) {
					broken()
				} else {
					leave(c.before)
					time.AfterFunc(100*time.Millisecond+1, broken)
				}
				if c.after != (Decision{}) {
					time.AfterFunc(time.Second+1, func() { leave(c.after) })
				}
				if d, err := final(t.Context(), dir); d != c.want || err != nil {
					t.Errorf("%+v, %v; want %+v", d, err, c.want)
				}
			})
		})
	}
}
